//! Filters in real processes.
//!
//! A filter cannot be taken off again, and a process with threads must not fork without exec, so
//! this program is its own test harness: it starts itself again for every scenario
//! (`child.rs`), single-threaded, and looks at it from outside.
//!
//! `cargo test --test kernel -- WORD` runs the tests with WORD in their name;
//! `-- measure` prints what compiling, a cache hit and loading cost.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod child;
mod sys;

use std::io::{IoSliceMut, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::panic::catch_unwind;
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use libseccomp::{ScmpNotifReq, ScmpNotifResp};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::{Uid, pipe2};

const SCENARIO: &str = "HOLDFAST_SECCOMP_SCENARIO";

/// No scenario takes a second; a loaded machine may take more.
const LIMIT: Duration = Duration::from_secs(60);

enum Outcome {
    Passed,
    Skipped(&'static str),
}

type Test = (&'static str, fn() -> Outcome);

const TESTS: &[Test] = &[
    ("early_filter_allows_and_denies", early_filter),
    ("late_filter_needs_no_new_privileges", late_filter),
    ("newer_syscall_is_enosys", newer_syscall_is_enosys),
    ("actions_kill_trap_log_and_trace", actions),
    ("listener_reaches_the_agent", listener),
    ("process_is_single_threaded_after_compiling", threads),
    ("export_finishes_with_any_pipe", export_finishes),
    ("control_export_without_reader_blocks", export_blocks),
    ("cache_hit_compiles_nothing", cache_hit),
    ("cache_hit_makes_few_system_calls", cache_hit_system_calls),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Ok(scenario) = std::env::var(SCENARIO) {
        child::run(&scenario, &args);
        return ExitCode::SUCCESS;
    }
    if args.iter().any(|arg| arg == "--list") {
        for (name, _) in TESTS {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let word = args.iter().find(|arg| !arg.starts_with('-'));
    if word.is_some_and(|word| word == "measure") {
        let folder = tempfile::tempdir().unwrap();
        let (output, status) = finish(start("measure", &[&folder.path().join("cache")]));
        print!("{output}");
        assert!(status.success(), "{status}");
        return ExitCode::SUCCESS;
    }

    let mut failed = 0;
    for (name, test) in TESTS {
        if word.is_some_and(|word| !name.contains(word.as_str())) {
            continue;
        }
        match catch_unwind(test) {
            Ok(Outcome::Passed) => println!("test {name} ... ok"),
            Ok(Outcome::Skipped(why)) => println!("test {name} ... skipped: {why}"),
            Err(_) => {
                println!("test {name} ... FAILED");
                failed += 1;
            }
        }
    }
    println!("{failed} failed");
    ExitCode::from(u8::from(failed > 0))
}

/// A scenario's process; killed and waited for when dropped.
struct Running {
    child: Child,
    pidfd: OwnedFd,
}

impl Running {
    fn spawn(command: &mut Command) -> Self {
        let child = command.spawn().unwrap();
        let pidfd = sys::pidfd(child.id()).unwrap();
        Self { child, pidfd }
    }

    /// The status, or None if it still runs after `limit`.
    fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        readable(self.pidfd.as_fd(), limit).then(|| self.child.wait().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both do nothing if it has been waited for.
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

fn command(scenario: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(SCENARIO, scenario).stdin(Stdio::null());
    command
}

fn start(scenario: &str, args: &[&dyn AsRef<std::ffi::OsStr>]) -> Running {
    Running::spawn(command(scenario).args(args).stdout(Stdio::piped()))
}

/// What it printed, and how it ended.
fn finish(mut running: Running) -> (String, ExitStatus) {
    // A few lines fit into the pipe, so reading may wait for the end.
    let status = running.wait(LIMIT).expect("the scenario does not end");
    let mut output = String::new();
    let stdout = running.child.stdout.as_mut().unwrap();
    stdout.read_to_string(&mut output).unwrap();
    (output, status)
}

fn succeed(scenario: &str, args: &[&dyn AsRef<std::ffi::OsStr>]) -> String {
    let (output, status) = finish(start(scenario, args));
    assert!(status.success(), "{scenario}: {status}\n{output}");
    output
}

fn readable(fd: BorrowedFd<'_>, limit: Duration) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::try_from(limit).unwrap()).unwrap() == 1
}

fn assert_lines(output: &str, expected: &[&str]) {
    assert_eq!(output.lines().collect::<Vec<_>>(), expected);
}

/// Most scenarios load without noNewPrivileges, with CAP_SYS_ADMIN.
const NOT_ROOT: Outcome = Outcome::Skipped("loading a filter early takes root");

const DOCKER_VERDICTS: [&str; 4] = [
    "getppid: works",
    "keyctl: EPERM: Operation not permitted",
    "personality(get): works",
    "personality(1): EPERM: Operation not permitted",
];

fn early_filter() -> Outcome {
    if !Uid::effective().is_root() {
        return NOT_ROOT;
    }
    assert_lines(&succeed("docker", &[&"early"]), &DOCKER_VERDICTS);
    Outcome::Passed
}

fn late_filter() -> Outcome {
    if !Uid::effective().is_root() {
        return NOT_ROOT;
    }
    let denied = "load without noNewPrivileges: Permission denied (os error 13)";
    let mut expected = vec![denied];
    expected.extend(DOCKER_VERDICTS);
    assert_lines(&succeed("docker", &[&"late"]), &expected);
    Outcome::Passed
}

fn newer_syscall_is_enosys() -> Outcome {
    if !Uid::effective().is_root() {
        return NOT_ROOT;
    }
    if !cfg!(target_arch = "x86_64") {
        return Outcome::Skipped("the order of the syscalls is that of x86_64");
    }
    assert_lines(
        &succeed("enosys", &[]),
        &[
            // Without the filter: the kernel has all but the last.
            "getppid: works",
            "getsid: works",
            "inotify_init1: works",
            "syscall 1000: ENOSYS: Function not implemented",
            // With it: known and allowed, known by number only, newer, newer than the kernel.
            "getppid: works",
            "getsid: EPERM: Operation not permitted",
            "inotify_init1: ENOSYS: Function not implemented",
            "syscall 1000: ENOSYS: Function not implemented",
        ],
    );
    Outcome::Passed
}

fn actions() -> Outcome {
    if !Uid::effective().is_root() {
        return NOT_ROOT;
    }
    for action in [
        "SCMP_ACT_KILL",
        "SCMP_ACT_KILL_THREAD",
        "SCMP_ACT_KILL_PROCESS",
        "SCMP_ACT_TRAP",
    ] {
        let (output, status) = finish(start("action", &[&action]));
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{action}: {status}");
        assert_eq!(output, "", "{action}");
    }
    for (action, line) in [
        ("SCMP_ACT_ALLOW", "getppid: works"),
        ("SCMP_ACT_LOG", "getppid: works"),
        ("SCMP_ACT_ERRNO", "getppid: EPERM: Operation not permitted"),
        // Without a tracer; seccomp(2).
        (
            "SCMP_ACT_TRACE",
            "getppid: ENOSYS: Function not implemented",
        ),
    ] {
        assert_lines(&succeed("action", &[&action]), &[line]);
    }
    Outcome::Passed
}

fn listener() -> Outcome {
    if !Uid::effective().is_root() {
        return NOT_ROOT;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.sock");
    let agent = UnixListener::bind(&path).unwrap();
    let running = start("notify", &[&path]);

    assert!(readable(agent.as_fd(), LIMIT), "nobody connects");
    let (connection, _) = agent.accept().unwrap();
    assert!(readable(connection.as_fd(), LIMIT), "no message comes");
    let mut buffer = [0; 4096];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<()>(
        connection.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )
    .unwrap();
    let received: Vec<_> = message
        .cmsgs()
        .unwrap()
        .flat_map(|control| match control {
            ControlMessageOwned::ScmRights(fds) => sys::own(&fds),
            _ => vec![],
        })
        .collect();
    let length = message.bytes;
    let state: serde_json::Value = serde_json::from_slice(&buffer[..length]).unwrap();
    assert_eq!(state["fds"], serde_json::json!(["seccompFd"]));
    assert_eq!(state["pid"], running.child.id());

    // The agent answers for the kernel.
    let listener = &received[0];
    assert!(readable(listener.as_fd(), LIMIT), "nothing is notified");
    let request = ScmpNotifReq::receive(listener.as_raw_fd()).unwrap();
    assert_eq!(request.pid, running.child.id());
    ScmpNotifResp::new_val(request.id, 4242, libseccomp::ScmpNotifRespFlags::empty())
        .respond(listener.as_raw_fd())
        .unwrap();

    let (output, status) = finish(running);
    assert!(status.success(), "{status}");
    assert_eq!(output, "Ok(4242)\n");
    Outcome::Passed
}

fn threads() -> Outcome {
    assert_lines(&succeed("threads", &[&"2000"]), &["single-threaded"]);
    Outcome::Passed
}

fn export_finishes() -> Outcome {
    let sizes: Vec<_> = ["4096", "8192", "65536"]
        .iter()
        .map(|capacity| succeed("export", &[capacity]))
        .collect();
    assert!(sizes.iter().all(|size| *size == sizes[0]), "{sizes:?}");
    let bytes: usize = sizes[0].trim_end_matches(" bytes\n").parse().unwrap();
    assert!(bytes > 4096, "{bytes} bytes would fit into the smallest");
    Outcome::Passed
}

fn export_blocks() -> Outcome {
    // The child's stdout is the pipe, and we are the reader who comes late.
    let into_pipe = |capacity| {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let set = FcntlArg::F_SETPIPE_SZ(capacity);
        assert_eq!(fcntl(writer.as_raw_fd(), set).unwrap(), capacity);
        let running = Running::spawn(command("export without reader").stdout(writer));
        (running, std::fs::File::from(reader))
    };
    let (mut blocked, mut reader) = into_pipe(4096);
    assert!(readable(reader.as_fd(), LIMIT), "the export does not begin");
    assert_eq!(sys::waiting(reader.as_fd()).unwrap(), 4096);
    assert_eq!(blocked.wait(Duration::from_secs(2)), None, "it must hang");
    // It was the missing reader and nothing else.
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    assert!(blocked.wait(LIMIT).unwrap().success());
    let program = holdfast_seccomp::compile(&child::docker()).unwrap().program;
    assert!(program.bytes().ends_with(&bytes));

    // And the small pipe.
    let (mut fits, _reader) = into_pipe(65536);
    assert!(fits.wait(LIMIT).unwrap().success());
    Outcome::Passed
}

fn cache_hit() -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let lines = |output: String| -> [String; 3] {
        let lines: Vec<_> = output.lines().map(str::to_owned).collect();
        lines.try_into().unwrap()
    };
    let [origin, compilations, size] = lines(succeed("cache", &[&cache]));
    assert_eq!([&*origin, &*compilations], ["Libseccomp", "1 compilations"]);
    let [origin, compilations, same_size] = lines(succeed("cache", &[&cache]));
    assert_eq!([&*origin, &*compilations], ["Cache", "0 compilations"]);
    assert_eq!(size, same_size);
    Outcome::Passed
}

fn cache_hit_system_calls() -> Outcome {
    if !Path::new("/usr/bin/strace").exists() {
        return Outcome::Skipped("strace is not installed");
    }
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    succeed("cache", &[&cache]);
    let trace = folder.path().join("trace");
    let mut strace = Running::spawn(
        Command::new("/usr/bin/strace")
            .arg("-o")
            .arg(&trace)
            .arg(std::env::current_exe().unwrap())
            .arg(&cache)
            .env(SCENARIO, "cache")
            .stdout(Stdio::null()),
    );
    let status = strace.wait(LIMIT).expect("strace does not end");
    if !status.success() {
        return Outcome::Skipped("strace may not trace here");
    }
    let trace = std::fs::read_to_string(trace).unwrap();
    let names: Vec<_> = trace
        .lines()
        .filter_map(|line| line.split_once('('))
        .map(|(name, _)| name)
        .collect();
    let marks: Vec<_> = (0..names.len())
        .filter(|&at| names[at] == "getppid")
        .collect();
    assert_eq!(marks.len(), 2, "{trace}");
    let between: Vec<_> = names[marks[0] + 1..marks[1]]
        .iter()
        .copied()
        // The allocator's, whenever it likes; fcntl is std's check of descriptors in debug builds.
        .filter(|name| !matches!(*name, "brk" | "mmap" | "munmap" | "mremap"))
        .filter(|name| !(cfg!(debug_assertions) && *name == "fcntl"))
        .collect();
    let stat = if between.contains(&"statx") {
        "statx"
    } else {
        "fstat"
    };
    assert_eq!(
        between,
        ["uname", "openat", "geteuid", stat, "read", "close"]
    );
    Outcome::Passed
}
