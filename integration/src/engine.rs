//! What docker and podman have in common: their words, and the checks that both have to pass with
//! our runtime.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::mount::{MsFlags, mount};

use crate::deadline::{self, Finished};
use crate::pty::Terminal;
use crate::scratch::text;
use crate::{leaks, place};

/// How long one call of an engine may take on a loaded machine.
pub const LIMIT: Duration = Duration::from_secs(60);

/// A container's program that TERM ends, with 0.
pub const WAITS: &str = "trap 'exit 0' TERM; while :; do sleep 600 & wait $!; done";

/// docker or podman, with everything of its own in the folder of the test.
pub trait Engine {
    /// A path in the folder of the test.
    fn path(&self, name: &str) -> PathBuf;

    /// Its command line with these arguments.
    fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command;

    /// The words of `run` with our runtime (or the peer's) and the image of the test.
    fn run_words(&self, flags: &[&str], args: &[&str]) -> Vec<String>;

    /// Removes a container, running or not.
    fn remove(&self, name: &str);

    /// The cgroup of a container, below the root of a hierarchy.
    fn cgroup_of(&self, name: &str) -> PathBuf;

    /// Waits until an ended container can be started again.
    fn await_ended(&self, name: &str);

    /// One call, to its end.
    #[track_caller]
    fn call<S: AsRef<OsStr>>(&self, args: &[S]) -> Finished {
        deadline::run(&mut self.command(args), LIMIT)
    }

    /// `run`.
    #[track_caller]
    fn run(&self, flags: &[&str], args: &[&str]) -> Finished {
        self.call(&self.run_words(flags, args))
    }

    /// `run --rm` of a shell script; its output.
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

    /// What `inspect` says of a container: `what` is a path such as `.State.Status`.
    #[track_caller]
    fn inspect(&self, name: &str, what: &str) -> String {
        let format = format!("{{{{{what}}}}}");
        let said = self.call(&["inspect", "-f", &format, name]);
        said.ok().trim().to_owned()
    }

    /// A file of a container's cgroup: controller and file of v1, and the file of v2.
    ///
    /// # Panics
    /// When it cannot be read.
    #[track_caller]
    fn limit(&self, name: &str, v1: (&str, &str), v2: &str) -> String {
        let root = Path::new("/sys/fs/cgroup");
        let own = self.cgroup_of(name);
        let path = if root.join(v1.0).is_dir() {
            root.join(v1.0).join(own).join(v1.1)
        } else {
            root.join(own).join(v2)
        };
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        text.trim().to_owned()
    }

    /// Runs it on a terminal, types once it shows `ready`; all that it showed, and its exit code.
    ///
    /// # Panics
    /// When it shows no `ready`, does not end, or ends by a signal.
    #[track_caller]
    fn on_terminal<S: AsRef<OsStr>>(&self, args: &[S], typed: &str) -> (String, i32) {
        let (mut ours, theirs) = Terminal::pair();
        let mut command = self.command(args);
        let dup = || Stdio::from(theirs.try_clone().expect("dup"));
        let mut child = command
            .stdin(dup())
            .stdout(dup())
            .stderr(dup())
            .spawn()
            .expect("start the engine");
        // The terminal ends when only the engine's descriptors of it are left and those are closed.
        drop((command, theirs));
        let mut shown = ours.expect("ready", LIMIT);
        ours.type_in(typed);
        shown.push_str(&ours.rest(LIMIT));
        let status = deadline::wait(&mut child, LIMIT).expect("the engine ends");
        (shown, status.code().expect("an exit code"))
    }
}

/// The streams and the exit code of a container are those of the command.
///
/// # Panics
/// When they are not.
pub fn output_and_exit_code(engine: &impl Engine) {
    let ran = engine.run(&["--rm"], &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(ran.code(), 7, "{ran}");
    assert_eq!(ran.stdout, "out\n", "{ran}");
    assert_eq!(ran.stderr, "err\n", "{ran}");
}

/// Both engines make 127 and 126 out of the runtime's words.
///
/// # Panics
/// When they do not.
pub fn programs_that_cannot_be_run(engine: &impl Engine) {
    let missing = engine.run(&["--rm"], &["nosuchprogram"]);
    assert_eq!(missing.code(), 127, "{missing}");
    let words = "exec: \"nosuchprogram\": executable file not found in $PATH";
    // podman passes on a line of runc's log, in which the quotes are escaped.
    let told = missing.stderr.replace('\\', "");
    assert!(told.contains(words), "{missing}");
    let data = engine.run(&["--rm"], &["/etc/passwd"]);
    assert_eq!(data.code(), 126, "{data}");
    assert!(data.stderr.contains("permission denied"), "{data}");
}

/// Execs with their output, user, environment and folder, and a detached one, in the running
/// container `name`.
///
/// # Panics
/// When one does something else.
pub fn execs_in(engine: &impl Engine, name: &str) {
    let ran = engine.call(&["exec", name, "sh", "-c", "echo out; exit 3"]);
    assert_eq!((ran.code(), &ran.stdout[..]), (3, "out\n"), "{ran}");
    let script = "id -u; id -g; echo $A; pwd";
    let with = ["exec", "-u", "5:6", "-e", "A=b", "-w", "/tmp", name];
    let ran = engine.call(&[&with[..], &["sh", "-c", script]].concat());
    assert_eq!(ran.ok(), "5\n6\nb\n/tmp\n");
    let touch = ["exec", "-d", name, "touch", "/detached"];
    engine.call(&touch).ok();
    deadline::eventually("the detached exec ran", LIMIT, || {
        let test = engine.call(&["exec", name, "test", "-e", "/detached"]);
        test.status.success().then_some(())
    });
}

/// `exec -it`.
///
/// # Panics
/// When the program has no terminal, or gets no input.
pub fn exec_with_a_terminal(engine: &impl Engine) {
    engine.background("tty", &[]);
    let script = "tty; echo ready; read line; echo got $line; exit 5";
    let words = ["exec", "-it", "tty", "sh", "-c", script];
    let (shown, code) = engine.on_terminal(&words, "hello\n");
    assert!(shown.contains("/dev/pts/"), "{shown}");
    assert!(shown.contains("got hello"), "{shown}");
    assert_eq!(code, 5, "{shown}");
    engine.remove("tty");
}

/// `run -it`.
///
/// # Panics
/// When the program has no terminal, or gets no input.
pub fn run_with_a_terminal(engine: &impl Engine) {
    let script = "tty; ls -l /dev/console; echo ready; read line; echo got $line; exit 6";
    let words = engine.run_words(&["--rm", "-it"], &["sh", "-c", script]);
    let (shown, code) = engine.on_terminal(&words, "hello\n");
    assert!(shown.contains("/dev/pts/0"), "{shown}");
    assert!(shown.contains("got hello"), "{shown}");
    assert_eq!(code, 6, "{shown}");
}

/// More than a pipe holds goes through `run -i`.
///
/// # Panics
/// When a byte is lost.
pub fn standard_input(engine: &impl Engine) {
    let file = engine.path("stdin");
    let much = "0123456789abcdef\n".repeat(20_000);
    fs::write(&file, &much).expect("file");
    let mut command = engine.command(&engine.run_words(&["--rm", "-i"], &["cat"]));
    let input = Stdio::from(File::open(&file).expect("file"));
    let ran = deadline::run_with_stdin(&mut command, input, LIMIT);
    assert!(ran.ok() == much, "{} of {}", ran.stdout.len(), much.len());
}

/// Every way in which a container's life goes on or ends.
///
/// # Panics
/// When one leaves another state or exit code.
pub fn stop_kill_start_rm(engine: &impl Engine) {
    engine.background("ends", &[]);
    engine.call(&["stop", "ends"]).ok();
    assert_eq!(engine.inspect("ends", ".State.ExitCode"), "0");
    engine.await_ended("ends");
    engine.call(&["start", "ends"]).ok();
    assert_eq!(engine.inspect("ends", ".State.Status"), "running");
    engine.call(&["kill", "ends"]).ok();
    assert_eq!(engine.call(&["wait", "ends"]).ok().trim(), "137");
    engine.await_ended("ends");
    engine.call(&["restart", "ends"]).ok();
    engine.call(&["kill", "-s", "TERM", "ends"]).ok();
    assert_eq!(engine.call(&["wait", "ends"]).ok().trim(), "0");
    engine.call(&["rm", "ends"]).ok();
    engine.call(&["inspect", "ends"]).failed();
}

/// A paused container refuses execs, goes on, and can be removed while paused.
///
/// # Panics
/// When one of these is not so.
pub fn pause(engine: &impl Engine) {
    engine.background("pause", &[]);
    engine.call(&["pause", "pause"]).ok();
    assert_eq!(engine.inspect("pause", ".State.Status"), "paused");
    engine.call(&["exec", "pause", "true"]).failed();
    engine.call(&["unpause", "pause"]).ok();
    engine.call(&["exec", "pause", "true"]).ok();
    engine.call(&["pause", "pause"]).ok();
    engine.remove("pause");
}

/// Namespaces that are the host's, and a cgroup namespace that is not.
///
/// # Panics
/// When one is another.
pub fn namespaces_of_the_host(engine: &impl Engine) {
    let flags = ["--pid", "host", "--ipc", "host", "--uts", "host"];
    let script = "cd /proc/self/ns; readlink pid; readlink ipc; readlink uts";
    let said = engine.says(&flags, script);
    let own = ["pid", "ipc", "uts"].map(|name| {
        let link = fs::read_link(format!("/proc/self/ns/{name}")).expect("own namespace");
        text(&link)
    });
    assert_eq!(said.lines().collect::<Vec<_>>(), own);
    let said = engine.says(&["--cgroupns", "private"], "cat /proc/self/cgroup");
    assert!(said.lines().all(|line| line.ends_with(":/")), "{said}");
}

/// Resource limits, sysctls, a host name and a device; `more` flags are the engine's own.
///
/// # Panics
/// When the container has one of them otherwise.
pub fn limits_and_sysctls_with(engine: &impl Engine, more: &[&str]) {
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
    let said = engine.says(&[more, &flags].concat(), script);
    assert_eq!(said, "100\n200\n77\nother\n500\n3\n8\n");
}

/// `update` of a running container, `update`, which is left; `more` flags are the engine's own.
///
/// # Panics
/// When the limits are others than asked for.
pub fn update_with(engine: &impl Engine, more: &[&str]) {
    engine.background("update", &["-m", "128m", "--memory-swap", "128m"]);
    let flags = ["--memory", "64m", "--memory-swap", "96m", "--cpus", "0.5"];
    let words = [&["update", "--cpuset-cpus", "0"], &flags[..], more];
    engine
        .call(&[&words.concat()[..], &["update"]].concat())
        .ok();
    let memory = engine.limit("update", ("memory", "memory.limit_in_bytes"), "memory.max");
    assert_eq!(memory, (64 << 20).to_string());
    let quota = engine.limit("update", ("cpu", "cpu.cfs_quota_us"), "cpu.max");
    assert_eq!(quota.split(' ').next(), Some("50000"));
}

/// Volumes of every propagation: what each side sees of what the other mounts later.
///
/// # Panics
/// When a side sees what it should not, or the other way round.
pub fn volumes_propagate_as_asked(engine: &impl Engine) {
    const KINDS: [&str; 6] = [
        "private", "rprivate", "slave", "rslave", "shared", "rshared",
    ];
    let volumes = engine.path("volumes");
    fs::create_dir(&volumes).expect("folder");
    let none = None::<&str>;
    let tmpfs = |at: &Path| {
        mount(Some("none"), at, Some("tmpfs"), MsFlags::empty(), none).expect("mount a tmpfs");
    };
    tmpfs(&volumes);
    mount(none, &volumes, none, MsFlags::MS_SHARED, none).expect("make it shared");
    let mut flags = Vec::new();
    for kind in KINDS {
        for inner in ["from-host", "from-container"] {
            fs::create_dir_all(volumes.join(kind).join(inner)).expect("folder");
        }
        let volume = text(&volumes.join(kind));
        flags.push(format!("--volume={volume}:/{kind}:{kind}"));
        flags.push(format!("--volume={volume}:/{kind}-ro:{kind},ro"));
    }
    let able = ["--cap-add=SYS_ADMIN", "--security-opt=seccomp=unconfined"];
    let flags: Vec<&str> = flags.iter().map(String::as_str).chain(able).collect();
    engine.background("volumes", &flags);
    for kind in KINDS {
        let seen_inside = !kind.contains("private");
        let seen_outside = kind.contains("shared");
        let point = volumes.join(kind).join("from-host");
        tmpfs(&point);
        fs::write(point.join("file"), "").expect("file");
        let script = format!(
            "mount -t tmpfs none /{kind}/from-container && touch /{kind}/from-container/file; \
             test -e /{kind}/from-host/file && echo seen; \
             touch /{kind}-ro/x 2>/dev/null && echo written; true"
        );
        let said = engine.call(&["exec", "volumes", "sh", "-c", &script]);
        let expected = if seen_inside { "seen\n" } else { "" };
        assert_eq!(said.ok(), expected, "{kind}: {said}");
        let file = volumes.join(kind).join("from-container/file");
        assert_eq!(file.exists(), seen_outside, "{kind}: {}", file.display());
    }
    engine.remove("volumes");
    leaks::unmount_under(&volumes);
}

/// A checkpoint where criu cannot make one: the user reads why, and the container runs on.
/// `words`: the command of the engine, with the container's name `point`.
///
/// # Panics
/// When the error does not tell, or the container is gone.
pub fn a_checkpoint_that_cannot_be(engine: &impl Engine, test: &str, words: &[&str]) {
    let Some(criu) = place::program("criu") else {
        return crate::skip(test, "criu is not installed");
    };
    let check = deadline::run(Command::new(criu).arg("check"), Duration::from_secs(30));
    if check.status.success() {
        return crate::skip(test, "criu works here; runtime_checkpoint.rs has that case");
    }
    engine.background("point", &[]);
    let said = engine.call(words);
    assert!(said.failed().contains("criu"), "{said}");
    engine.call(&["exec", "point", "true"]).ok();
    engine.remove("point");
}
