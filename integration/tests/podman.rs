//! podman with our runtime: its own storage and runtime root, conmon between the two, and every
//! verb that ends in the runtime. `HOLDFAST_TEST_PEER=runc` makes it drive runc.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use holdfast_integration::checks::{self, Check};
use holdfast_integration::containerd::peer;
use holdfast_integration::deadline::{self, Finished};
use holdfast_integration::pty::Terminal;
use holdfast_integration::scratch::text;
use holdfast_integration::{image, leaks, place, skip};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// How long one call of podman may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(60);

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

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
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
        let path = self.path("runtime");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
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

    #[track_caller]
    fn call(&self, args: &[&str]) -> Finished {
        deadline::run(&mut self.command(args), LIMIT)
    }

    fn run_words(&self, flags: &[&str], args: &[&str]) -> Vec<String> {
        let parent = format!("--cgroup-parent=/{}", self.cgroup);
        ["run", "--network", "none", &parent]
            .iter()
            .chain(flags)
            .chain(&["localhost/busybox"])
            .chain(args)
            .map(|word| (*word).to_owned())
            .collect()
    }

    /// `podman run`.
    #[track_caller]
    fn run(&self, flags: &[&str], args: &[&str]) -> Finished {
        let words = self.run_words(flags, args);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.call(&words)
    }

    /// `podman run --rm` of a shell script; its output.
    #[track_caller]
    fn says(&self, flags: &[&str], script: &str) -> String {
        let flags = [&["--rm"], flags].concat();
        self.run(&flags, &["sh", "-c", script]).ok().to_owned()
    }

    /// A container that runs until it is ended.
    #[track_caller]
    fn background(&self, name: &str, flags: &[&str]) {
        let flags = [&["-d", "--name", name], flags].concat();
        self.run(&flags, &["sh", "-c", WAITS]).ok();
    }

    #[track_caller]
    fn inspect(&self, name: &str, what: &str) -> String {
        let format = format!("{{{{{what}}}}}");
        let said = self.call(&["inspect", "-f", &format, name]);
        said.ok().trim().to_owned()
    }

    #[track_caller]
    fn remove(&self, name: &str) {
        self.call(&["rm", "-f", "-t", "0", name]).ok();
    }

    /// A file of a container's cgroup: v1's name and v2's.
    #[track_caller]
    fn limit(&self, name: &str, v1: (&str, &str), v2: &str) -> String {
        let own = self.inspect(name, ".State.CgroupPath");
        let own = own.trim_start_matches('/');
        let root = Path::new("/sys/fs/cgroup");
        let path = if root.join(v1.0).is_dir() {
            root.join(v1.0).join(own).join(v1.1)
        } else {
            root.join(own).join(v2)
        };
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        text.trim().to_owned()
    }

    fn assert_nothing_left(&self) {
        let mut left = Vec::new();
        for _ in 0..500 {
            left = leaks::states_in(&self.path("state"));
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
            if left.is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("left behind:\n  {}", left.join("\n  "));
    }
}

/// A container's program that TERM ends, with 0.
const WAITS: &str = "trap 'exit 0' TERM; while :; do sleep 600 & wait $!; done";

impl checks::Engine for Podman {
    fn path(&self, name: &str) -> PathBuf {
        self.path(name)
    }

    fn call(&self, args: &[&str]) -> Finished {
        self.call(args)
    }

    fn background(&self, name: &str, flags: &[&str]) {
        self.background(name, flags);
    }

    fn remove(&self, name: &str) {
        self.remove(name);
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

fn output_and_exit_code(podman: &Podman) {
    let ran = podman.run(&["--rm"], &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(ran.code(), 7, "{ran}");
    assert_eq!(ran.stdout, "out\n", "{ran}");
    assert_eq!(ran.stderr, "err\n", "{ran}");
}

/// podman makes 127 and 126 out of the runtime's words.
fn programs_that_cannot_be_run(podman: &Podman) {
    let missing = podman.run(&["--rm"], &["nosuchprogram"]);
    assert_eq!(missing.code(), 127, "{missing}");
    let words = "executable file not found in $PATH";
    assert!(missing.stderr.contains(words), "{missing}");
    let data = podman.run(&["--rm"], &["/etc/passwd"]);
    assert_eq!(data.code(), 126, "{data}");
    assert!(data.stderr.contains("permission denied"), "{data}");
}

fn exec(podman: &Podman) {
    podman.background("exec", &[]);
    let ran = podman.call(&["exec", "exec", "sh", "-c", "echo out; exit 3"]);
    assert_eq!((ran.code(), &ran.stdout[..]), (3, "out\n"), "{ran}");
    let script = "id -u; id -g; echo $A; pwd";
    let with = ["exec", "-u", "5:6", "-e", "A=b", "-w", "/tmp", "exec"];
    let ran = podman.call(&[&with[..], &["sh", "-c", script]].concat());
    assert_eq!(ran.ok(), "5\n6\nb\n/tmp\n");
    let missing = podman.call(&["exec", "exec", "nosuchprogram"]);
    assert_eq!(missing.code(), 127, "{missing}");
    let data = podman.call(&["exec", "exec", "/etc/passwd"]);
    assert_eq!(data.code(), 126, "{data}");
    podman
        .call(&["exec", "-d", "exec", "touch", "/detached"])
        .ok();
    deadline::eventually("the detached exec ran", LIMIT, || {
        let test = podman.call(&["exec", "exec", "test", "-e", "/detached"]);
        test.status.success().then_some(())
    });
    podman.remove("exec");
}

/// Runs podman on a terminal; what it showed, and its exit code.
fn on_terminal(podman: &Podman, words: &[&str], typed: &str) -> (String, i32) {
    let (mut ours, theirs) = Terminal::pair();
    let mut command = podman.command(words);
    let mut child = command
        .stdin(Stdio::from(theirs.try_clone().unwrap()))
        .stdout(Stdio::from(theirs.try_clone().unwrap()))
        .stderr(Stdio::from(theirs))
        .spawn()
        .unwrap();
    drop(command);
    let mut shown = ours.expect("ready", LIMIT);
    ours.type_in(typed);
    shown.push_str(&ours.rest(LIMIT));
    let status = deadline::wait(&mut child, LIMIT).expect("podman ends");
    (shown, status.code().unwrap())
}

fn exec_with_a_terminal(podman: &Podman) {
    podman.background("tty", &[]);
    let script = "tty; echo ready; read line; echo got $line; exit 5";
    let words = ["exec", "-it", "tty", "sh", "-c", script];
    let (shown, code) = on_terminal(podman, &words, "hello\n");
    assert!(shown.contains("/dev/pts/"), "{shown}");
    assert!(shown.contains("got hello"), "{shown}");
    assert_eq!(code, 5, "{shown}");
    podman.remove("tty");
}

fn run_with_a_terminal(podman: &Podman) {
    let script = "tty; echo ready; read line; echo got $line; exit 6";
    let words = podman.run_words(&["--rm", "-it"], &["sh", "-c", script]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (shown, code) = on_terminal(podman, &words, "hello\n");
    assert!(shown.contains("/dev/pts/0"), "{shown}");
    assert!(shown.contains("got hello"), "{shown}");
    assert_eq!(code, 6, "{shown}");
}

fn standard_input(podman: &Podman) {
    let file = podman.path("stdin");
    // More than a pipe holds.
    let much = "0123456789abcdef\n".repeat(20_000);
    fs::write(&file, &much).unwrap();
    let words = podman.run_words(&["--rm", "-i"], &["cat"]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let input = Stdio::from(File::open(&file).unwrap());
    let ran = deadline::run_with_stdin(&mut podman.command(&words), input, LIMIT);
    assert!(ran.ok() == much, "{} of {}", ran.stdout.len(), much.len());
}

/// Waits until conmon has had the ended container deleted from the runtime: podman 4.3 fails
/// when it starts one sooner, with every runtime.
fn await_cleaned_up(podman: &Podman, name: &str) {
    let state = podman.path("state").join(podman.inspect(name, ".Id"));
    deadline::eventually("podman cleans up", LIMIT, || {
        (!state.exists()).then_some(())
    });
}

fn stop_kill_start_rm(podman: &Podman) {
    podman.background("ends", &[]);
    podman.call(&["stop", "ends"]).ok();
    assert_eq!(podman.inspect("ends", ".State.ExitCode"), "0");
    await_cleaned_up(podman, "ends");
    podman.call(&["start", "ends"]).ok();
    assert_eq!(podman.inspect("ends", ".State.Status"), "running");
    podman.call(&["kill", "ends"]).ok();
    assert_eq!(podman.call(&["wait", "ends"]).ok().trim(), "137");
    await_cleaned_up(podman, "ends");
    podman.call(&["restart", "ends"]).ok();
    podman.call(&["kill", "-s", "TERM", "ends"]).ok();
    assert_eq!(podman.call(&["wait", "ends"]).ok().trim(), "0");
    podman.call(&["rm", "ends"]).ok();
    podman.call(&["inspect", "ends"]).failed();
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
    podman.background("update", &["-m", "128m", "--memory-swap", "128m"]);
    let flags = ["--memory", "64m", "--memory-swap", "96m", "--cpus", "0.5"];
    let more = ["--cpuset-cpus", "0", "--cpu-shares", "300", "update"];
    podman
        .call(&[&["update"], &flags[..], &more[..]].concat())
        .ok();
    let memory = podman.limit("update", ("memory", "memory.limit_in_bytes"), "memory.max");
    assert_eq!(memory, (64 << 20).to_string());
    let quota = podman.limit("update", ("cpu", "cpu.cfs_quota_us"), "cpu.max");
    assert_eq!(quota.split(' ').next(), Some("50000"));
    podman.remove("update");
}

fn pause(podman: &Podman) {
    podman.background("pause", &[]);
    podman.call(&["pause", "pause"]).ok();
    assert_eq!(podman.inspect("pause", ".State.Status"), "paused");
    podman.call(&["exec", "pause", "true"]).failed();
    podman.call(&["unpause", "pause"]).ok();
    podman.call(&["exec", "pause", "true"]).ok();
    podman.call(&["pause", "pause"]).ok();
    // Also a frozen one can be removed.
    podman.remove("pause");
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

/// A mount made on either side after the start is seen on the other or not, as asked for.
fn volumes_propagate_as_asked(podman: &Podman) {
    checks::volumes_propagate_as_asked(podman);
}

fn checkpoint(podman: &Podman) {
    let words = &["container", "checkpoint", "point"];
    checks::a_checkpoint_that_cannot_be(podman, "podman::checkpoint", &words[..]);
}

fn namespaces_of_the_host(podman: &Podman) {
    let flags = ["--pid", "host", "--ipc", "host", "--uts", "host"];
    let script = "cd /proc/self/ns; readlink pid; readlink ipc; readlink uts";
    let said = podman.says(&flags, script);
    let own = ["pid", "ipc", "uts"].map(|name| {
        let link = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        text(&link)
    });
    assert_eq!(said.lines().collect::<Vec<_>>(), own);
    let said = podman.says(&["--cgroupns", "private"], "cat /proc/self/cgroup");
    assert!(said.lines().all(|line| line.ends_with(":/")), "{said}");
}

fn limits_and_sysctls(podman: &Podman) {
    let flags = [
        // One given limit makes podman forget those of the configuration.
        "--ulimit",
        "nproc=4096:4096",
        "--ulimit",
        "nofile=100:200",
        "--sysctl",
        "net.ipv4.ip_default_ttl=77",
        "--shm-size",
        "8m",
        "--hostname",
        "other",
        "--oom-score-adj",
        "500",
        "--device",
        "/dev/zero:/dev/other",
    ];
    let script = "ulimit -n; ulimit -Hn; cat /proc/sys/net/ipv4/ip_default_ttl; hostname; \
                  cat /proc/self/oom_score_adj; head -c 3 /dev/other | wc -c; \
                  df -m /dev/shm | tail -n 1 | awk '{print $2}'";
    let said = podman.says(&flags, script);
    assert_eq!(said, "100\n200\n77\nother\n500\n3\n8\n");
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
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
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
