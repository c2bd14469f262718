//! docker with our runtime: a private daemon, `docker run --runtime`, and every verb that ends in
//! the runtime. `HOLDFAST_TEST_PEER=runc` makes it drive runc, to show that a check is right.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use holdfast_integration::checks::{self, Check};
use holdfast_integration::containerd::peer;
use holdfast_integration::deadline;
use holdfast_integration::engine::{
    self, Engine, LIMIT, exec_with_a_terminal, namespaces_of_the_host, output_and_exit_code, pause,
    programs_that_cannot_be_run, run_with_a_terminal, standard_input, stop_kill_start_rm,
    volumes_propagate_as_asked,
};
use holdfast_integration::scratch::text;
use holdfast_integration::{image, leaks, place, skip};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const CHECKS: &[Check<Docker>] = holdfast_integration::checks![
    output_and_exit_code,
    programs_that_cannot_be_run,
    exec,
    exec_with_a_terminal,
    run_with_a_terminal,
    standard_input,
    stop_kill_start_rm,
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
    out_of_memory,
    healthcheck,
];

#[test]
fn docker() {
    let Some(docker) = Docker::start("docker") else {
        return;
    };
    checks::run(&docker, CHECKS, 3);
    docker.assert_nothing_left();
}

/// A private daemon.
struct Docker {
    folder: TempDir,
    daemon: Child,
    client: PathBuf,
    cgroup: String,
    /// Whether its key was there before: dockerd makes one and cannot be told where.
    had_key: bool,
}

const KEY: &str = "/etc/docker/key.json";

impl Docker {
    fn start(test: &str) -> Option<Self> {
        let needs = place::is_root()
            .and_then(|()| image::busybox())
            .and_then(|_| {
                let daemon = place::program("dockerd").ok_or("dockerd is not installed")?;
                // The client of the same package, whatever else PATH has.
                let beside = Path::new("/usr/bin/docker");
                let client = if beside.exists() {
                    beside.to_path_buf()
                } else {
                    place::program("docker").ok_or("docker is not installed")?
                };
                Ok((daemon, client))
            });
        let (program, client) = match needs {
            Ok(needs) => needs,
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
        let cgroup = place::unique("holdfast-test");
        let at = |name: &str| text(&folder.path().join(name));
        let log = File::create(at("dockerd.log")).unwrap();
        let had_key = Path::new(KEY).exists();
        // So that the machine's own configuration is not read.
        // Checkpoints are an experiment of docker's since 2016.
        fs::write(at("daemon.json"), r#"{"experimental": true}"#).unwrap();
        let daemon = Command::new(program)
            .args(["--config-file", &at("daemon.json")])
            .args(["--data-root", &at("data"), "--exec-root", &at("exec")])
            .args(["-H", &format!("unix://{}", at("docker.sock"))])
            .args(["--pidfile", &at("docker.pid"), "--group", "root"])
            .args([
                "--iptables=false",
                "--ip6tables=false",
                "--ip-forward=false",
            ])
            .args(["--bridge=none", "--cgroup-parent", &format!("/{cgroup}")])
            .arg("--add-runtime")
            .arg(format!("holdfast={}", text(&place::built("holdfast"))))
            .env("HOLDFAST_LEDGER_DIR", at("ledger"))
            .env("HOLDFAST_TEST_FOLDER", folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap();
        let mut docker = Self {
            folder,
            daemon,
            client,
            cgroup,
            had_key,
        };
        deadline::eventually("dockerd answers", Duration::from_secs(60), || {
            let ended = docker.daemon.try_wait().unwrap();
            assert!(ended.is_none(), "dockerd ended\n{}", docker.log());
            docker.path("docker.sock").exists().then_some(())?;
            docker.call(&["version"]).status.success().then_some(())
        });
        let archive = image::write_root_archive(docker.folder.path());
        docker.call(&["import", &text(&archive), "busybox"]).ok();
        Some(docker)
    }

    fn log(&self) -> String {
        let log = fs::read_to_string(self.path("dockerd.log")).unwrap_or_default();
        let telling = |line: &&str| !line.contains("level=info") && !line.contains("level=debug");
        log.lines().filter(telling).collect::<Vec<_>>().join("\n")
    }

    fn assert_nothing_left(&self) {
        deadline::eventually("everything is gone", Duration::from_secs(10), || {
            let states: Vec<String> = ["runc", "holdfast"]
                .iter()
                .flat_map(|name| leaks::states_in(&self.path(&format!("exec/runtime-{name}/moby"))))
                .collect();
            let left = leaks::cgroups_below(&self.cgroup).len() + states.len();
            let shims = leaks::processes_mentioning(&text(self.folder.path()));
            let shims = shims
                .iter()
                .filter(|p| p.command.contains("shim") || p.is_keeper());
            (left + shims.count() == 0).then_some(())
        });
    }
}

impl Engine for Docker {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(&self.client);
        command.arg("-H");
        command.arg(format!("unix://{}", text(&self.path("docker.sock"))));
        command.args(args).env("HOME", self.folder.path());
        command
    }

    fn run_words(&self, flags: &[&str], args: &[&str]) -> Vec<String> {
        let runtime = if peer() { "runc" } else { "holdfast" };
        let words = ["run", "--runtime", runtime, "--network", "none"];
        let words = [&words[..], flags, &["busybox"], args].concat();
        words.into_iter().map(str::to_owned).collect()
    }

    fn remove(&self, name: &str) {
        self.call(&["rm", "-f", name]).ok();
    }

    fn cgroup_of(&self, name: &str) -> PathBuf {
        Path::new(&self.cgroup).join(self.inspect(name, ".Id"))
    }

    /// It has waited for that itself.
    fn await_ended(&self, _name: &str) {}
}

impl Drop for Docker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("dockerd said:\n{}", self.log());
        }
        let pid = Pid::from_raw(i32::try_from(self.daemon.id()).unwrap());
        // Ends its containers and its containerd.
        let _ = kill(pid, Signal::SIGTERM);
        if deadline::wait(&mut self.daemon, Duration::from_secs(20)).is_none() {
            let _ = self.daemon.kill();
            let _ = self.daemon.wait();
        }
        for process in leaks::processes_mentioning(&text(self.folder.path())) {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
        leaks::remove_cgroups(&self.cgroup);
        leaks::unmount_under(self.folder.path());
        if !self.had_key {
            let _ = fs::remove_file(KEY);
        }
    }
}

fn exec(docker: &Docker) {
    docker.background("exec", &[]);
    engine::execs_in(docker, "exec");
    let missing = docker.call(&["exec", "exec", "nosuchprogram"]);
    assert!(missing.code() == 126 || missing.code() == 127, "{missing}");
    let told = format!("{}{}", missing.stdout, missing.stderr);
    assert!(
        told.contains("executable file not found in $PATH"),
        "{missing}"
    );
    docker.remove("exec");
}

fn top_and_stats(docker: &Docker) {
    docker.background("top", &["-m", "32m"]);
    let top = docker.call(&["top", "top"]);
    assert!(top.ok().contains("sleep 600"), "{top}");
    let only = docker.call(&["top", "top", "-o", "pid,comm"]);
    assert!(only.ok().contains("sleep"), "{only}");
    let format = "{{.PIDs}} {{.MemUsage}}";
    let stats = docker.call(&["stats", "--no-stream", "--format", format, "top"]);
    assert!(stats.ok().starts_with("2 "), "{stats}");
    assert!(stats.ok().contains("/ 32MiB"), "{stats}");
    docker.remove("top");
}

fn update(docker: &Docker) {
    engine::update_with(docker, &["--pids-limit", "44"]);
    let pids = docker.limit("update", ("pids", "pids.max"), "pids.max");
    assert_eq!(pids, "44");
    docker.remove("update");
}

fn init(docker: &Docker) {
    if place::program("docker-init").is_none() {
        return skip("docker::init", "docker-init (tini) is not installed");
    }
    assert_eq!(
        docker.says(&["--init"], "cat /proc/1/comm"),
        "docker-init\n"
    );
}

/// The set that a line of `/proc/PID/status` shows. docker 20.10 knows capabilities up to 37.
fn capabilities(line: &str) -> u64 {
    let shown = line.split_whitespace().last().unwrap();
    u64::from_str_radix(shown, 16).unwrap() & 0x3f_ffff_ffff
}

fn privileged(docker: &Docker) {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let own = capabilities(status.lines().find(|l| l.starts_with("CapBnd:")).unwrap());
    if peer() && own != 0x3f_ffff_ffff {
        let why = "runc wants capabilities that this machine lacks";
        return skip("docker::privileged", why);
    }
    let script = "grep CapEff: /proc/self/status; grep Seccomp: /proc/self/status; \
                  mount -t tmpfs x /mnt && echo mounted";
    let said = docker.says(&["--privileged"], script);
    let mut lines = said.lines();
    // All that we have ourselves; what we have not is no reason to fail.
    assert_eq!(capabilities(lines.next().unwrap()), own, "{said}");
    assert_eq!(lines.next(), Some("Seccomp:\t0"), "{said}");
    assert_eq!(lines.next(), Some("mounted"), "{said}");
    docker.background("full", &[]);
    let words = ["grep", "CapEff:", "/proc/self/status"];
    let exec = docker.call(&[&["exec", "--privileged", "full"], &words[..]].concat());
    assert_eq!(capabilities(exec.ok()), own, "{exec}");
    docker.remove("full");
}

fn security_options(docker: &Docker) {
    let status = "grep -E '^(NoNewPrivs|Seccomp|CapEff|CapBnd):' /proc/self/status";
    let said = docker.says(&["--security-opt", "no-new-privileges"], status);
    assert!(said.contains("NoNewPrivs:\t1"), "{said}");
    assert!(said.contains("Seccomp:\t2"), "{said}");
    assert!(said.contains("CapEff:\t00000000a80425fb"), "{said}");
    let said = docker.says(&["--security-opt", "seccomp=unconfined"], status);
    assert!(said.contains("Seccomp:\t0"), "{said}");
    assert!(said.contains("NoNewPrivs:\t0"), "{said}");
    let flags = [
        "--cap-drop",
        "ALL",
        "--cap-add",
        "NET_ADMIN",
        "--user",
        "1000:1000",
    ];
    let said = docker.says(&flags, status);
    assert!(said.contains("CapBnd:\t0000000000001000"), "{said}");
    assert!(said.contains("CapEff:\t0000000000000000"), "{said}");
}

fn read_only(docker: &Docker) {
    let flags = ["--read-only", "--tmpfs", "/scratch:size=4m"];
    let said = docker.says(&flags, "touch /x 2>&1; touch /scratch/x && df -m /scratch");
    assert!(said.contains("Read-only file system"), "{said}");
    assert!(said.contains(" 4 "), "{said}");
}

fn checkpoint(docker: &Docker) {
    let words = &["checkpoint", "create", "point", "first"];
    engine::a_checkpoint_that_cannot_be(docker, "docker::checkpoint", &words[..]);
}

fn limits_and_sysctls(docker: &Docker) {
    engine::limits_and_sysctls_with(docker, &[]);
}

fn out_of_memory(docker: &Docker) {
    let ran = docker.run(
        &["--name", "oom", "-m", "24m"],
        &["tail", "-n", "1", "/dev/zero"],
    );
    assert_eq!(ran.code(), 137, "{ran}");
    assert_eq!(docker.inspect("oom", ".State.OOMKilled"), "true");
    docker.remove("oom");
}

fn healthcheck(docker: &Docker) {
    let flags = ["--health-cmd", "test -e /ok", "--health-interval", "200ms"];
    docker.background("health", &[&flags[..], &["--health-retries", "1"]].concat());
    let await_status = |wanted: &str| {
        deadline::eventually(wanted, LIMIT, || {
            (docker.inspect("health", ".State.Health.Status") == wanted).then_some(())
        });
    };
    await_status("unhealthy");
    docker.call(&["exec", "health", "touch", "/ok"]).ok();
    await_status("healthy");
    docker.remove("health");
}
