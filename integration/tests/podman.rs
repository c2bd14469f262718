//! podman with our runtime: its own storage and runtime root, conmon between the two, and every
//! verb that ends in the runtime. `HOLDFAST_TEST_PEER=runc` makes it drive runc.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use holdfast_integration::checks::{self, Check};
use holdfast_integration::containerd::peer;
use holdfast_integration::deadline;
use holdfast_integration::engine::{
    self, Engine, LIMIT, WAITS, exec_with_a_terminal, namespaces_of_the_host, output_and_exit_code,
    pause, programs_that_cannot_be_run, run_with_a_terminal, standard_input, stop_kill_start_rm,
    volumes_propagate_as_asked,
};
use holdfast_integration::scratch::text;
use holdfast_integration::{image, leaks, place, skip};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const CHECKS: &[Check<Podman>] = holdfast_integration::checks![
    output_and_exit_code,
    programs_that_cannot_be_run,
    exec,
    exec_with_a_terminal,
    run_with_a_terminal,
    standard_input,
    stop_kill_start_rm,
    init_before_start,
    top_and_stats,
    update,
    pause,
    checkpoint,
    init,
    privileged,
    security_options,
    read_only,
    volumes_propagate_as_asked,
    namespaces_of_the_host,
    limits_and_sysctls,
    a_user_namespace,
    descriptors_are_preserved,
    a_pod,
    out_of_memory,
    healthcheck,
];

#[test]
fn podman() {
    let Some(podman) = Podman::new("podman") else {
        return;
    };
    checks::run(&podman, CHECKS, 3);
    // runc leaves a pod's cgroup in the hierarchies that podman does not know.
    if !peer() {
        podman.assert_nothing_left();
    }
}

/// A private storage and configuration.
struct Podman {
    folder: TempDir,
    program: PathBuf,
    cgroup: String,
}

impl Podman {
    fn new(test: &str) -> Option<Self> {
        let needs = place::is_root()
            .and_then(|()| image::busybox())
            .and_then(|_| {
                for need in ["conmon", "catatonit"] {
                    place::program(need).ok_or(format!("{need} is not installed"))?;
                }
                Ok(place::program("podman").ok_or("podman is not installed")?)
            });
        let program = match needs {
            Ok(program) => program,
            Err(why) => {
                skip(test, &why);
                return None;
            }
        };
        leaks::keep_own_descriptors();
        let folder = tempfile::Builder::new()
            .prefix("holdfast-test-")
            .tempdir()
            .unwrap();
        let podman = Self {
            folder,
            program,
            cgroup: place::unique("holdfast-test"),
        };
        // podman wants to raise RLIMIT_NOFILE, which not every machine allows.
        let limits = "default_ulimits = [\"nofile=1024:2048\", \"nproc=4096:4096\"]";
        let configuration = format!(
            "[containers]\n{limits}\n[engine]\ncgroup_manager = \"cgroupfs\"\n\
             events_logger = \"file\"\n"
        );
        fs::write(podman.path("containers.conf"), configuration).unwrap();
        podman.write_runtime();
        let archive = image::write_root_archive(podman.folder.path());
        podman
            .call(&["import", "-q", &text(&archive), "busybox"])
            .ok();
        Some(podman)
    }

    /// The runtime with a state folder of its own. Not by `--runtime-flag`: podman 4.3 forgets
    /// it when conmon has it clean up.
    fn write_runtime(&self) {
        let program = if peer() {
            place::program("runc").expect("runc")
        } else {
            place::built("holdfast")
        };
        let (program, state) = (text(&program), text(&self.path("state")));
        let script = format!("#!/bin/sh\nexec {program} --root {state} \"$@\"\n");
        place::write_program(&self.path("runtime"), &script);
    }

    fn assert_nothing_left(&self) {
        deadline::nothing_left("behind", Duration::from_secs(10), || {
            let mut left = leaks::states_in(&self.path("state"));
            let mut cgroups = leaks::cgroups_below(&self.cgroup);
            // podman's own, for all its conmons.
            cgroups.retain(|path| !path.ends_with("conmon"));
            left.extend(
                cgroups
                    .iter()
                    .map(|path| format!("cgroup {}", path.display())),
            );
            let processes = leaks::processes_mentioning(&text(self.folder.path()));
            left.extend(processes.iter().map(|p| format!("process {}", p.command)));
            left
        });
    }
}

impl Engine for Podman {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(&self.program);
        for (flag, name) in [
            ("--root", "root"),
            ("--runroot", "run"),
            ("--tmpdir", "tmp"),
        ] {
            command.arg(flag).arg(self.path(name));
        }
        command
            .arg("--runtime")
            .arg(self.path("runtime"))
            .args(args);
        command
            .env("CONTAINERS_CONF", self.path("containers.conf"))
            .env("HOLDFAST_LEDGER_DIR", self.path("ledger"))
            .env("HOLDFAST_TEST_FOLDER", self.folder.path())
            .env("HOME", self.folder.path())
            // conmon leaves a file called oom where it was started.
            .current_dir(self.folder.path());
        command
    }

    fn run_words(&self, flags: &[&str], args: &[&str]) -> Vec<String> {
        let parent = format!("--cgroup-parent=/{}", self.cgroup);
        let words = ["run", "--network", "none", &parent];
        let words = [&words[..], flags, &["localhost/busybox"], args].concat();
        words.into_iter().map(str::to_owned).collect()
    }

    fn remove(&self, name: &str) {
        self.call(&["rm", "-f", "-t", "0", name]).ok();
    }

    fn cgroup_of(&self, name: &str) -> PathBuf {
        let path = self.inspect(name, ".State.CgroupPath");
        PathBuf::from(path.trim_start_matches('/'))
    }

    /// Until conmon has had it deleted from the runtime: podman 4.3 fails when it starts one
    /// sooner, with every runtime.
    fn await_ended(&self, name: &str) {
        let state = self.path("state").join(self.inspect(name, ".Id"));
        deadline::eventually("podman cleans up", LIMIT, || {
            (!state.exists()).then_some(())
        });
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        for words in [
            &["pod", "rm", "-f", "-t", "0", "-a"][..],
            &["rm", "-f", "-t", "0", "-a"],
        ] {
            let _ = deadline::run(&mut self.command(words), LIMIT);
        }
        for process in leaks::processes_mentioning(&text(self.folder.path())) {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
        leaks::remove_cgroups(&self.cgroup);
        leaks::unmount_under(self.folder.path());
    }
}

fn exec(podman: &Podman) {
    podman.background("exec", &[]);
    engine::execs_in(podman, "exec");
    let missing = podman.call(&["exec", "exec", "nosuchprogram"]);
    assert_eq!(missing.code(), 127, "{missing}");
    let data = podman.call(&["exec", "exec", "/etc/passwd"]);
    assert_eq!(data.code(), 126, "{data}");
    podman.remove("exec");
}

/// `create` and `start` apart: the container waits for its start.
fn init_before_start(podman: &Podman) {
    let parent = format!("--cgroup-parent=/{}", podman.cgroup);
    let words = ["create", "--network", "none", &parent, "--name", "waits"];
    let program = ["localhost/busybox", "sh", "-c", WAITS];
    podman.call(&[&words[..], &program[..]].concat()).ok();
    podman.call(&["init", "waits"]).ok();
    // podman asks the runtime's `state`.
    assert_eq!(podman.inspect("waits", ".State.Status"), "initialized");
    podman.call(&["start", "waits"]).ok();
    assert_eq!(podman.inspect("waits", ".State.Status"), "running");
    podman.remove("waits");
}

fn top_and_stats(podman: &Podman) {
    podman.background("top", &["-m", "32m"]);
    let top = podman.call(&["top", "top", "pid", "args"]);
    assert!(top.ok().contains("sleep 600"), "{top}");
    let format = "{{.PIDs}} {{.MemUsage}}";
    let stats = podman.call(&["stats", "--no-stream", "--format", format, "top"]);
    assert!(stats.ok().starts_with("2 "), "{stats}");
    assert!(stats.ok().contains("/ 33.55MB"), "{stats}");
    podman.remove("top");
}

fn update(podman: &Podman) {
    engine::update_with(podman, &["--cpu-shares", "300"]);
    podman.remove("update");
}

fn init(podman: &Podman) {
    assert_eq!(
        podman.says(&["--init"], "cat /proc/1/comm"),
        "podman-init\n"
    );
}

fn privileged(podman: &Podman) {
    let script = "grep CapEff: /proc/self/status; grep Seccomp: /proc/self/status; \
                  mount -t tmpfs x /mnt && echo mounted";
    let said = podman.says(&["--privileged"], script);
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let own = status.lines().find(|l| l.starts_with("CapBnd:")).unwrap();
    let own = own.replace("CapBnd", "CapEff");
    assert_eq!(said, format!("{own}\nSeccomp:\t0\nmounted\n"));
}

fn security_options(podman: &Podman) {
    let status = "grep -E '^(NoNewPrivs|Seccomp|CapEff|CapBnd|CapAmb):' /proc/self/status";
    let said = podman.says(&["--security-opt", "no-new-privileges"], status);
    assert!(said.contains("NoNewPrivs:\t1"), "{said}");
    assert!(said.contains("Seccomp:\t2"), "{said}");
    let said = podman.says(&["--security-opt", "seccomp=unconfined"], status);
    assert!(said.contains("Seccomp:\t0"), "{said}");
    let flags = [
        "--cap-drop",
        "ALL",
        "--cap-add",
        "NET_ADMIN",
        "--user",
        "1000:1000",
    ];
    let said = podman.says(&flags, status);
    assert!(said.contains("CapBnd:\t0000000000001000"), "{said}");
    // podman makes what it adds ambient, for users that are not root.
    assert!(said.contains("CapAmb:\t0000000000001000"), "{said}");
    assert!(said.contains("CapEff:\t0000000000001000"), "{said}");
    let hidden = podman.says(
        &["--security-opt", "mask=/proc/version"],
        "cat /proc/version",
    );
    assert_eq!(hidden, "");
}

/// podman covers /run, /tmp and /var/tmp of a read-only container with a copy of what is there
/// (`tmpcopyup`).
fn read_only(podman: &Podman) {
    let flags = [
        "--read-only",
        "--mount",
        "type=tmpfs,destination=/etc,tmpfs-size=4m",
    ];
    let script = "touch /x 2>&1; touch /tmp/x && touch /etc/x && cat /etc/group";
    let said = podman.says(&flags, script);
    assert!(said.contains("Read-only file system"), "{said}");
    assert!(said.contains("extra:x:2000"), "not copied up: {said}");
}

fn checkpoint(podman: &Podman) {
    let words = &["container", "checkpoint", "point"];
    engine::a_checkpoint_that_cannot_be(podman, "podman::checkpoint", &words[..]);
}

fn limits_and_sysctls(podman: &Podman) {
    // One given limit makes podman forget those of the configuration.
    engine::limits_and_sysctls_with(podman, &["--ulimit", "nproc=4096:4096"]);
}

fn a_user_namespace(podman: &Podman) {
    let flags = ["--uidmap", "0:100000:5000", "--gidmap", "0:100000:5000"];
    let said = podman.says(
        &flags,
        "cat /proc/self/uid_map; touch /mine; stat -c %u /mine",
    );
    let words: Vec<&str> = said.split_whitespace().collect();
    assert_eq!(words, ["0", "100000", "5000", "0"]);
}

fn descriptors_are_preserved(podman: &Podman) {
    let file = podman.path("preserved");
    fs::write(&file, "through descriptor 3\n").unwrap();
    let words = podman.run_words(&["--rm", "--preserve-fds", "1"], &["sh", "-c", "cat <&3"]);
    // The shell is what can open a file as descriptor 3.
    let mut shell = Command::new("sh");
    let podman = podman.command(&words);
    shell.args(["-c", &format!("exec 3<{}; exec \"$@\"", text(&file)), "sh"]);
    shell.arg(podman.get_program()).args(podman.get_args());
    for (name, value) in podman.get_envs() {
        shell.env(name, value.unwrap());
    }
    shell.current_dir(podman.get_current_dir().unwrap());
    let ran = deadline::run(&mut shell, LIMIT);
    assert_eq!(ran.ok(), "through descriptor 3\n");
}

/// The containers of a pod share namespaces with its first one.
fn a_pod(podman: &Podman) {
    let parent = format!("--cgroup-parent=/{}", podman.cgroup);
    let words = [
        "pod",
        "create",
        "--name",
        "pod",
        "--network",
        "none",
        &parent,
    ];
    podman
        .call(&[&words[..], &["--share", "ipc,net,uts,pid"]].concat())
        .ok();
    let run = [
        "run",
        "-d",
        "--pod",
        "pod",
        "--name",
        "in-pod",
        "localhost/busybox",
    ];
    podman.call(&[&run[..], &["sh", "-c", WAITS]].concat()).ok();
    let seen = podman.call(&["exec", "in-pod", "cat", "/proc/1/comm"]);
    assert_eq!(seen.ok(), "catatonit\n");
    podman.call(&["pod", "rm", "-f", "-t", "0", "pod"]).ok();
}

fn out_of_memory(podman: &Podman) {
    let ran = podman.run(&["--rm", "-m", "24m"], &["tail", "-n", "1", "/dev/zero"]);
    assert_eq!(ran.code(), 137, "{ran}");
}

fn healthcheck(podman: &Podman) {
    // podman runs it by itself only under systemd; asking for it needs none.
    let flags = [
        "--health-cmd",
        "test -e /ok",
        "--health-interval",
        "disable",
    ];
    podman.background("health", &[&flags[..], &["--health-retries", "1"]].concat());
    assert_eq!(podman.call(&["healthcheck", "run", "health"]).code(), 1);
    assert_eq!(
        podman.inspect("health", ".State.Health.Status"),
        "unhealthy"
    );
    podman.call(&["exec", "health", "touch", "/ok"]).ok();
    podman.call(&["healthcheck", "run", "health"]).ok();
    assert_eq!(podman.inspect("health", ".State.Health.Status"), "healthy");
    podman.remove("health");
}
