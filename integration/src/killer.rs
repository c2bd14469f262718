//! SIGKILL of a program at the n-th system call it makes: the same place in every run.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::scratch::{LIMIT, Scratch};

/// No command of the runtime makes as many system calls.
const MOST: usize = 3000;

/// How long a killed process may be waited for.
pub const GONE: Duration = Duration::from_secs(10);

/// How a program that was to be killed ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It was killed when it entered the system call.
    Killed,
    /// It ended before it made as many, with this exit code (128 + signal).
    Itself(i32),
}

/// Runs a program, and kills it when it enters its `number`-th system call, counted from its first
/// one after execve(2). Its children are not traced. Its streams are `/dev/null`.
///
/// # Panics
/// When it cannot be traced, or makes no system call for `limit`.
pub fn kill_at(command: &mut Command, number: usize, limit: Duration) -> End {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    sys::trace(command);
    #[expect(clippy::zombie_processes, reason = "waited for below, by its pid")]
    let child = command.spawn().expect("start what is to be killed");
    let pid = Pid::from_raw(child.id().cast_signed());
    // The trap of its execve.
    match waitpid(pid, None).expect("wait for execve") {
        WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
        other => panic!("instead of its execve: {other:?}"),
    }
    let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(pid, options).expect("trace system calls");
    let mut stops = 0;
    let mut signal = None;
    loop {
        ptrace::syscall(pid, signal.take()).expect("let it go on");
        match next_stop(pid, limit) {
            WaitStatus::PtraceSyscall(_) => {
                stops += 1;
                // Every call stops twice: when it is entered, and when it returns.
                if stops == 2 * number - 1 {
                    nix::sys::signal::kill(pid, Signal::SIGKILL).expect("kill it");
                    let _ = waitpid(pid, None);
                    return End::Killed;
                }
            }
            WaitStatus::Stopped(_, other) => signal = Some(other),
            WaitStatus::Exited(_, code) => return End::Itself(code),
            WaitStatus::Signaled(_, signal, _) => return End::Itself(128 + signal as i32),
            other => panic!("unexpected: {other:?}"),
        }
    }
}

fn next_stop(pid: Pid, limit: Duration) -> WaitStatus {
    let until = Instant::now() + limit;
    let mut pause = Duration::from_micros(20);
    loop {
        match waitpid(pid, Some(WaitPidFlag::WNOHANG)).expect("wait for the next system call") {
            WaitStatus::StillAlive => {}
            status => return status,
        }
        if Instant::now() > until {
            let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
            panic!("no system call for {limit:?}");
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(5));
    }
}

/// Reaps the ended children of this process that lived in a pid namespace of their own, such as
/// those of a killed `exec`. Until that is done the namespace's init cannot end (it sleeps in
/// `zap_pid_ns_processes`); on a machine the shim or init does it.
pub fn reap_contained() {
    let own = std::process::id().to_string();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let Ok(status) = std::fs::read_to_string(entry.path().join("status")) else {
            continue;
        };
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.map(|rest| {
                rest.split_whitespace()
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            })
            .unwrap_or_default()
        };
        let contained = field("NSpid:").len() > 1;
        let ended = field("State:").first().is_some_and(|state| state == "Z");
        if contained && ended && field("PPid:") == [own.clone()] {
            let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
        }
    }
}

/// Kills the runtime at its system calls 1, 1 + step, … until it comes to its end; returns the
/// number of its system calls. `before` prepares the machine, `after` puts it in order and checks it.
///
/// # Panics
/// When the runtime fails although it was not killed, or never ends.
pub fn sweep(
    scratch: &Scratch,
    words: &[&str],
    step: usize,
    mut before: impl FnMut(),
    mut after: impl FnMut(usize),
) -> usize {
    for number in (1..MOST).step_by(step) {
        before();
        let end = kill_at(&mut scratch.command(words), number, LIMIT);
        reap_contained();
        after(number);
        if let End::Itself(code) = end {
            assert_eq!(code, 0, "{words:?} fails anyway");
            println!(
                "{words:?}: killed at {} places of {number}",
                number.div_ceil(step)
            );
            return number;
        }
    }
    panic!("{words:?}: more than {MOST} system calls");
}

/// `delete --force`, given with its options, succeeds after a death at call `number`, and nothing is
/// left; processes are given a moment for their end.
///
/// # Panics
/// When it does not, or something is.
#[track_caller]
pub fn clean_up(scratch: &Scratch, delete: &[&str], number: usize) {
    // The init of a pid namespace does not end before what died in it has been reaped, and that is
    // ours to do: also a hook whose parent has been killed.
    let done = AtomicBool::new(false);
    let deleted = std::thread::scope(|scope| {
        scope.spawn(|| {
            // Bounded, so that a delete that is too late can be told.
            let until = Instant::now() + 2 * LIMIT;
            while !done.load(Ordering::Relaxed) && Instant::now() < until {
                reap_contained();
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let deleted = scratch.call(delete);
        done.store(true, Ordering::Relaxed);
        deleted
    });
    assert!(deleted.status.success(), "killed at {number}: {deleted}");
    let until = Instant::now() + GONE;
    loop {
        reap_contained();
        let left = scratch.left_behind();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < until, "killed at {number}: {left:?}");
        std::thread::yield_now();
    }
}

mod sys {
    #![allow(unsafe_code)]
    use std::os::unix::process::CommandExt as _;

    use super::{Command, ptrace};

    /// Makes the program trace-me: it stops after its execve.
    pub(super) fn trace(command: &mut Command) {
        // SAFETY: between fork and execve only one system call is made, without allocation.
        unsafe {
            command.pre_exec(|| ptrace::traceme().map_err(Into::into));
        }
    }
}
