//! Waiting with a limit and a name.

use std::io::{Read as _, Seek as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// What a finished program left.
#[derive(Debug, Clone)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Everything it wrote to standard output.
    pub stdout: String,
    /// Everything it wrote to standard error.
    pub stderr: String,
    /// From spawn to end.
    pub took: Duration,
    said: String,
}

impl Finished {
    /// The exit code, 128 + signal for a killed program, as a shell has it.
    #[must_use]
    pub fn code(&self) -> i32 {
        use std::os::unix::process::ExitStatusExt as _;
        self.status
            .code()
            .unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Standard output, of a program that must have succeeded.
    ///
    /// # Panics
    /// When it did not, with everything it said.
    #[track_caller]
    pub fn ok(&self) -> &str {
        assert!(self.status.success(), "{self}");
        &self.stdout
    }

    /// Standard error, of a program that must have failed and said why.
    ///
    /// # Panics
    /// When it succeeded or was silent.
    #[track_caller]
    pub fn failed(&self) -> &str {
        assert!(!self.status.success(), "should have failed: {self}");
        assert!(!self.stderr.trim().is_empty(), "failed silently: {self}");
        &self.stderr
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}\n  ended with {} after {:?}\n  stdout: {}\n  stderr: {}",
            self.said,
            self.status,
            self.took,
            self.stdout.trim_end(),
            self.stderr.trim_end()
        )
    }
}

/// Runs a program to its end and keeps its output. Its standard input is `/dev/null` unless set.
///
/// Output goes to unnamed files, not pipes: a grandchild that keeps them open holds nobody up.
///
/// # Panics
/// When it cannot be started, or when it is not done within `limit`; then its process group is
/// killed and what it had said so far is in the message.
#[track_caller]
pub fn run(command: &mut Command, limit: Duration) -> Finished {
    run_with_stdin(command, Stdio::null(), limit)
}

/// [`run`] with a standard input.
///
/// # Panics
/// As [`run`].
#[track_caller]
pub fn run_with_stdin(command: &mut Command, stdin: Stdio, limit: Duration) -> Finished {
    let mut stdout = tempfile::tempfile().expect("file for stdout");
    let mut stderr = tempfile::tempfile().expect("file for stderr");
    let said = describe(command);
    let started = Instant::now();
    let mut child = command
        .stdin(stdin)
        .stdout(stdout.try_clone().expect("dup"))
        .stderr(stderr.try_clone().expect("dup"))
        .process_group(0)
        .spawn()
        .unwrap_or_else(|e| panic!("start {said}: {e}"));
    let status = wait(&mut child, limit);
    let took = started.elapsed();
    let status = status.unwrap_or_else(|| {
        let _ = killpg(group_of(&child), Signal::SIGKILL);
        let _ = child.wait();
        panic!(
            "{said}\n  not done within {limit:?}\n  stdout: {}\n  stderr: {}",
            text(&mut stdout),
            text(&mut stderr)
        )
    });
    Finished {
        status,
        stdout: text(&mut stdout),
        stderr: text(&mut stderr),
        took,
        said,
    }
}

/// Waits for a child; `None` when it is still there after `limit`.
pub fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let until = Instant::now() + limit;
    let mut pause = Duration::from_micros(500);
    loop {
        if let Some(status) = child.try_wait().expect("wait for own child") {
            return Some(status);
        }
        if Instant::now() >= until {
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// Asks again and again until there is an answer: for states of other programs that nothing
/// announces.
///
/// # Panics
/// When there is none within `limit`, naming `what`.
#[track_caller]
pub fn eventually<T>(what: &str, limit: Duration, ask: impl FnMut() -> Option<T>) -> T {
    within(limit, ask).unwrap_or_else(|| panic!("{what}: not within {limit:?}"))
}

/// As [`eventually`]; `None` when there is no answer within `limit`.
pub fn within<T>(limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let until = Instant::now() + limit;
    loop {
        // Also once after the limit: this thread may have slept much longer than it asked for.
        let over = Instant::now() >= until;
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if over {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Fails when something is left, after `limit` for what is still ending.
///
/// # Panics
/// With what was left, `when`.
#[track_caller]
pub fn nothing_left(when: &str, limit: Duration, mut left: impl FnMut() -> Vec<String>) {
    let mut last = Vec::new();
    let gone = within(limit, || {
        last = left();
        last.is_empty().then_some(())
    });
    assert!(gone.is_some(), "left {when}:\n  {}", last.join("\n  "));
}

fn group_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("a pid fits"))
}

fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    words.join(" ")
}

fn text(file: &mut std::fs::File) -> String {
    let mut bytes = Vec::new();
    file.rewind().expect("rewind output");
    file.read_to_end(&mut bytes).expect("read output");
    String::from_utf8_lossy(&bytes).into_owned()
}
