//! docker with our runtime: a private daemon, `docker run --runtime`, and every verb that ends in
//! the runtime. `HOLDFAST_TEST_PEER=runc` makes it drive runc, to show that a check is right.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
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

/// How long one call of docker may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(60);

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

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn log(&self) -> String {
        let log = fs::read_to_string(self.path("dockerd.log")).unwrap_or_default();
        let telling = |line: &&str| !line.contains("level=info") && !line.contains("level=debug");
        log.lines().filter(telling).collect::<Vec<_>>().join("\n")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.client);
        command.arg("-H");
        command.arg(format!("unix://{}", text(&self.path("docker.sock"))));
        command.args(args).env("HOME", self.folder.path());
        command
    }

    #[track_caller]
    fn call(&self, args: &[&str]) -> Finished {
        deadline::run(&mut self.command(args), LIMIT)
    }

    fn run_words<'a>(flags: &[&'a str], args: &[&'a str]) -> Vec<&'a str> {
        let runtime = if peer() { "runc" } else { "holdfast" };
        let mut words = vec!["run", "--runtime", runtime, "--network", "none"];
        words.extend(flags);
        words.push("busybox");
        words.extend(args);
        words
    }

    /// `docker run`.
    #[track_caller]
    fn run(&self, flags: &[&str], args: &[&str]) -> Finished {
        self.call(&Self::run_words(flags, args))
    }

    /// `docker run --rm` of a shell script; its output.
    #[track_caller]
    fn says(&self, flags: &[&str], script: &str) -> String {
        let flags: Vec<&str> = ["--rm"].iter().chain(flags).copied().collect();
        self.run(&flags, &["sh", "-c", script]).ok().to_owned()
    }

    /// A container that runs until it is ended; its id.
    #[track_caller]
    fn background(&self, name: &str, flags: &[&str]) -> String {
        let flags: Vec<&str> = ["-d", "--name", name]
            .iter()
            .chain(flags)
            .copied()
            .collect();
        let ran = self.run(&flags, &["sh", "-c", WAITS]);
        ran.ok().trim().to_owned()
    }

    #[track_caller]
    fn inspect(&self, name: &str, what: &str) -> String {
        let format = format!("{{{{{what}}}}}");
        let said = self.call(&["inspect", "-f", &format, name]);
        said.ok().trim().to_owned()
    }

    #[track_caller]
    fn remove(&self, name: &str) {
        self.call(&["rm", "-f", name]).ok();
    }

    /// A file of a container's cgroup: v1's name and v2's.
    #[track_caller]
    fn limit(&self, id: &str, v1: (&str, &str), v2: &str) -> String {
        let root = Path::new("/sys/fs/cgroup");
        let own = Path::new(&self.cgroup).join(id);
        let path = if root.join(v1.0).is_dir() {
            root.join(v1.0).join(own).join(v1.1)
        } else {
            root.join(own).join(v2)
        };
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        text.trim().to_owned()
    }

    fn assert_nothing_left(&self) {
        deadline::eventually("everything is gone", Duration::from_secs(10), || {
            let states: Vec<String> = ["runc", "holdfast"]
                .iter()
                .flat_map(|name| leaks::states_in(&self.path(&format!("exec/runtime-{name}/moby"))))
                .collect();
            let left = leaks::cgroups_below(&self.cgroup).len() + states.len();
            let shims = leaks::processes_mentioning(&text(self.folder.path()));
            let shims = shims.iter().filter(|p| p.command.contains("shim"));
            (left + shims.count() == 0).then_some(())
        });
    }
}

/// A container's program that TERM ends, with 0.
const WAITS: &str = "trap 'exit 0' TERM; while :; do sleep 600 & wait $!; done";

impl checks::Engine for Docker {
    fn path(&self, name: &str) -> PathBuf {
        self.path(name)
    }

    fn call(&self, args: &[&str]) -> Finished {
        self.call(args)
    }

    fn background(&self, name: &str, flags: &[&str]) {
        let _ = self.background(name, flags);
    }

    fn remove(&self, name: &str) {
        self.remove(name);
    }
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

fn output_and_exit_code(docker: &Docker) {
    let ran = docker.run(&["--rm"], &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(ran.code(), 7, "{ran}");
    assert_eq!(ran.stdout, "out\n", "{ran}");
    assert_eq!(ran.stderr, "err\n", "{ran}");
}

/// docker makes 127 and 126 out of the runtime's words.
fn programs_that_cannot_be_run(docker: &Docker) {
    let missing = docker.run(&["--rm"], &["nosuchprogram"]);
    assert_eq!(missing.code(), 127, "{missing}");
    let words = "exec: \"nosuchprogram\": executable file not found in $PATH";
    assert!(missing.stderr.contains(words), "{missing}");
    let data = docker.run(&["--rm"], &["/etc/passwd"]);
    assert_eq!(data.code(), 126, "{data}");
    assert!(data.stderr.contains("permission denied"), "{data}");
}

fn exec(docker: &Docker) {
    docker.background("exec", &[]);
    let ran = docker.call(&["exec", "exec", "sh", "-c", "echo out; exit 3"]);
    assert_eq!((ran.code(), &ran.stdout[..]), (3, "out\n"), "{ran}");
    let script = "id -u; id -g; echo $A; pwd";
    let with = ["exec", "-u", "5:6", "-e", "A=b", "-w", "/tmp", "exec"];
    let ran = docker.call(&[&with[..], &["sh", "-c", script]].concat());
    assert_eq!(ran.ok(), "5\n6\nb\n/tmp\n");
    let missing = docker.call(&["exec", "exec", "nosuchprogram"]);
    assert!(missing.code() == 126 || missing.code() == 127, "{missing}");
    let told = format!("{}{}", missing.stdout, missing.stderr);
    assert!(
        told.contains("executable file not found in $PATH"),
        "{missing}"
    );
    docker
        .call(&["exec", "-d", "exec", "touch", "/detached"])
        .ok();
    deadline::eventually("the detached exec ran", LIMIT, || {
        let test = docker.call(&["exec", "exec", "test", "-e", "/detached"]);
        test.status.success().then_some(())
    });
    docker.remove("exec");
}

/// Runs docker on a terminal; what it showed, and its exit code.
fn on_terminal(docker: &Docker, words: &[&str], typed: &str) -> (String, i32) {
    let (mut ours, theirs) = Terminal::pair();
    let mut command = docker.command(words);
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
    let status = deadline::wait(&mut child, LIMIT).expect("docker ends");
    (shown, status.code().unwrap())
}

fn exec_with_a_terminal(docker: &Docker) {
    docker.background("tty", &[]);
    let script = "tty; echo ready; read line; echo got $line; exit 5";
    let words = ["exec", "-it", "tty", "sh", "-c", script];
    let (shown, code) = on_terminal(docker, &words, "hello\n");
    assert!(shown.contains("/dev/pts/"), "{shown}");
    assert!(shown.contains("got hello"), "{shown}");
    assert_eq!(code, 5, "{shown}");
    docker.remove("tty");
}

fn run_with_a_terminal(docker: &Docker) {
    let script = "tty; ls -l /dev/console; echo ready; read line; echo got $line; exit 6";
    let words = Docker::run_words(&["--rm", "-it"], &["sh", "-c", script]);
    let (shown, code) = on_terminal(docker, &words, "hello\n");
    assert!(shown.contains("/dev/pts/0"), "{shown}");
    assert!(shown.contains("got hello"), "{shown}");
    assert_eq!(code, 6, "{shown}");
}

fn standard_input(docker: &Docker) {
    let file = docker.path("stdin");
    // More than a pipe holds.
    let much = "0123456789abcdef\n".repeat(20_000);
    fs::write(&file, &much).unwrap();
    let mut command = docker.command(&Docker::run_words(&["--rm", "-i"], &["cat"]));
    let input = Stdio::from(File::open(&file).unwrap());
    let ran = deadline::run_with_stdin(&mut command, input, LIMIT);
    assert!(ran.ok() == much, "{} of {}", ran.stdout.len(), much.len());
}

fn stop_kill_start_rm(docker: &Docker) {
    docker.background("ends", &[]);
    docker.call(&["stop", "ends"]).ok();
    assert_eq!(docker.inspect("ends", ".State.ExitCode"), "0");
    docker.call(&["start", "ends"]).ok();
    assert_eq!(docker.inspect("ends", ".State.Status"), "running");
    docker.call(&["kill", "ends"]).ok();
    let code = docker.call(&["wait", "ends"]);
    assert_eq!(code.ok().trim(), "137");
    docker.call(&["restart", "ends"]).ok();
    docker.call(&["kill", "-s", "TERM", "ends"]).ok();
    assert_eq!(docker.call(&["wait", "ends"]).ok().trim(), "0");
    docker.call(&["rm", "ends"]).ok();
    docker.call(&["inspect", "ends"]).failed();
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
    let id = docker.background("update", &["-m", "128m", "--memory-swap", "128m"]);
    let flags = ["--memory", "64m", "--memory-swap", "96m", "--cpus", "0.5"];
    let more = ["--pids-limit", "44", "--cpuset-cpus", "0"];
    docker
        .call(&[&["update"], &flags[..], &more[..], &["update"]].concat())
        .ok();
    let memory = docker.limit(&id, ("memory", "memory.limit_in_bytes"), "memory.max");
    assert_eq!(memory, (64 << 20).to_string());
    assert_eq!(docker.limit(&id, ("pids", "pids.max"), "pids.max"), "44");
    let quota = docker.limit(&id, ("cpu", "cpu.cfs_quota_us"), "cpu.max");
    assert_eq!(quota.split(' ').next(), Some("50000"));
    docker.remove("update");
}

fn pause(docker: &Docker) {
    docker.background("pause", &[]);
    docker.call(&["pause", "pause"]).ok();
    assert_eq!(docker.inspect("pause", ".State.Status"), "paused");
    docker.call(&["exec", "pause", "true"]).failed();
    docker.call(&["unpause", "pause"]).ok();
    docker.call(&["exec", "pause", "true"]).ok();
    docker.call(&["pause", "pause"]).ok();
    // Also a frozen one can be removed.
    docker.remove("pause");
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

/// A mount made on either side after the start is seen on the other or not, as asked for.
fn volumes_propagate_as_asked(docker: &Docker) {
    checks::volumes_propagate_as_asked(docker);
}

fn checkpoint(docker: &Docker) {
    let words = &["checkpoint", "create", "point", "first"];
    checks::a_checkpoint_that_cannot_be(docker, "docker::checkpoint", &words[..]);
}

fn namespaces_of_the_host(docker: &Docker) {
    let flags = ["--pid", "host", "--ipc", "host", "--uts", "host"];
    let said = docker.says(
        &flags,
        "cd /proc/self/ns; readlink pid; readlink ipc; readlink uts",
    );
    let own = ["pid", "ipc", "uts"].map(|name| {
        let link = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        text(&link)
    });
    assert_eq!(said.lines().collect::<Vec<_>>(), own);
    let said = docker.says(&["--cgroupns", "private"], "cat /proc/self/cgroup");
    assert!(said.lines().all(|line| line.ends_with(":/")), "{said}");
}

fn limits_and_sysctls(docker: &Docker) {
    let flags = [
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
    let said = docker.says(&flags, script);
    assert_eq!(said, "100\n200\n77\nother\n500\n3\n8\n");
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
