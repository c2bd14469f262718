//! Children: what they are given, pidfds, and how they end.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use holdfast_record::ExitStatus;

use super::{check, fd_from};

/// Which children [`wait_child`] looks at.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Children<'a> {
    /// Every child of the process.
    Any,
    /// The child with this pid.
    Pid(u32),
    /// The child that this pidfd names.
    Pidfd(BorrowedFd<'a>),
}

/// How a child ended, as `waitid(2)` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChildEnd {
    /// Pid of the child.
    pub(crate) pid: u32,
    /// Exit code or signal.
    pub(crate) status: ExitStatus,
}

/// Asks, without blocking, for a child that has ended. With `peek` it stays a zombie.
///
/// # Errors
/// `ECHILD` when there is no such child; see waitid(2).
pub(crate) fn wait_child(which: Children<'_>, peek: bool) -> io::Result<Option<ChildEnd>> {
    let (id_type, id) = match which {
        Children::Any => (libc::P_ALL, 0),
        Children::Pid(pid) => (libc::P_PID, pid),
        Children::Pidfd(fd) => (libc::P_PIDFD, fd.as_raw_fd().unsigned_abs()),
    };
    let mut flags = libc::WEXITED | libc::WNOHANG;
    if peek {
        flags |= libc::WNOWAIT;
    }
    // SAFETY: siginfo_t is plain data for which all zeroes is a valid value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is a live, writable siginfo_t for the whole call.
    let ret = unsafe { libc::waitid(id_type, id, &raw mut info, flags) };
    if ret < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: waitid filled `info` with the child layout, or left the zeroes of above.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    let Ok(pid) = u32::try_from(pid) else {
        return Ok(None);
    };
    if pid == 0 {
        return Ok(None);
    }
    // Only ends were asked for (WEXITED), so anything else is not the kernel's answer.
    let status = ExitStatus::from_waitid(info.si_code, status)
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    Ok(Some(ChildEnd { pid, status }))
}

/// Opens a pidfd. The caller makes sure that `pid` cannot have been reused.
///
/// # Errors
/// See pidfd_open(2).
pub(crate) fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes two integers, touches no memory of ours.
    fd_from(check(unsafe {
        libc::syscall(libc::SYS_pidfd_open, pid, 0)
    })?)
}

/// Sends `signal` (any number, also real-time) to the process behind `pidfd`.
///
/// # Errors
/// `ESRCH` when it is gone; `EINVAL` for a bad signal; see pidfd_send_signal(2).
pub(crate) fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo is allowed by pidfd_send_signal(2); the rest are integers.
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })
    .map(drop)
}

/// How a process has ended that was reaped by whoever was its parent; none while it was not.
///
/// # Errors
/// `ENOTTY` or `EINVAL` where the kernel does not keep it (before Linux 6.15).
pub(crate) fn pidfd_exit_status(pidfd: BorrowedFd<'_>) -> io::Result<Option<ExitStatus>> {
    const PIDFD_GET_INFO: libc::c_ulong = 0xc040_ff0b;
    const PIDFD_INFO_EXIT: u64 = 1 << 3;
    /// `struct pidfd_info` of linux/pidfd.h in its first size.
    #[repr(C)]
    struct Info {
        mask: u64,
        cgroup: u64,
        ids: [u32; 11],
        exit_code: i32,
    }
    const _: () = assert!(size_of::<Info>() == 64);
    let mut info = Info {
        mask: PIDFD_INFO_EXIT,
        cgroup: 0,
        ids: [0; 11],
        exit_code: 0,
    };
    // SAFETY: the request reads and writes 64 bytes, as its number says; `info` is as long and lives through the call.
    let done = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO as _, &raw mut info) };
    check(done.into())?;
    if info.mask & PIDFD_INFO_EXIT == 0 {
        return Ok(None);
    }
    let (code, status) = if libc::WIFSIGNALED(info.exit_code) {
        let code = if libc::WCOREDUMP(info.exit_code) {
            libc::CLD_DUMPED
        } else {
            libc::CLD_KILLED
        };
        (code, libc::WTERMSIG(info.exit_code))
    } else {
        (libc::CLD_EXITED, libc::WEXITSTATUS(info.exit_code))
    };
    Ok(ExitStatus::from_waitid(code, status))
}

/// Takes a descriptor that was inherited under a known number.
///
/// # Errors
/// `EBADF` when nothing is open there.
pub(crate) fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD takes integers only and fails with EBADF for a closed number.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) }.into())?;
    // SAFETY: open (checked above), and the caller is the only one who asks for `number`.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Most descriptors that one child is given by number.
const MAX_CHILD_FDS: usize = 4;
/// A number above those that children are given.
const ABOVE_ALL: RawFd = 10;

/// What a child gets besides what [`Command`] can say.
#[derive(Debug, Default)]
pub(crate) struct ChildSetup {
    /// `(ours, theirs)`: our descriptor becomes that number in the child.
    pub(crate) fds: Vec<(OwnedFd, RawFd)>,
    /// Signal for the child when the thread that started it ends.
    pub(crate) parent_death_signal: Option<i32>,
    /// Make the child the leader of its own process group.
    pub(crate) own_group: bool,
}

/// Adds `setup` to `command`; it is applied between fork and exec.
pub(crate) fn prepare_child(command: &mut Command, setup: ChildSetup) {
    debug_assert!(setup.fds.len() <= MAX_CHILD_FDS);
    if setup.own_group {
        command.process_group(0);
    }
    let ChildSetup {
        fds,
        parent_death_signal,
        ..
    } = setup;
    // SAFETY: the closure only makes system calls on integers it owns (no allocation, no
    // lock), which is what may be done in the child of a fork.
    unsafe {
        command.pre_exec(move || {
            if let Some(signal) = parent_death_signal {
                check(libc::prctl(libc::PR_SET_PDEATHSIG, signal, 0, 0, 0).into())?;
            }
            // Out of the way first: one's old number may be another's new one.
            let mut moved = [-1; MAX_CHILD_FDS];
            for (slot, (ours, _)) in moved.iter_mut().zip(&fds) {
                *slot = libc::fcntl(ours.as_raw_fd(), libc::F_DUPFD_CLOEXEC, ABOVE_ALL);
                check((*slot).into())?;
            }
            for (from, (_, theirs)) in moved.iter().zip(&fds) {
                check(libc::dup2(*from, *theirs).into())?;
            }
            Ok(())
        });
    }
}

/// Starts a new core scheduling cookie for the process group of the caller.
///
/// # Errors
/// `ENODEV` or `EINVAL` where the kernel has no core scheduling.
pub(crate) fn create_core_scheduling_cookie() -> io::Result<()> {
    const PR_SCHED_CORE: i32 = 62;
    const PR_SCHED_CORE_CREATE: libc::c_ulong = 1;
    const PROCESS_GROUP: libc::c_ulong = 2;
    // SAFETY: integers only.
    check(
        unsafe {
            libc::prctl(
                PR_SCHED_CORE,
                PR_SCHED_CORE_CREATE,
                0 as libc::c_ulong,
                PROCESS_GROUP,
                0 as libc::c_ulong,
            )
        }
        .into(),
    )
    .map(drop)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::zombie_processes, reason = "reaped by pidfd")]
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn a_child_is_peeked_at_and_then_reaped_by_its_pidfd() {
        let child = Command::new("/bin/sh")
            .args(["-c", "exit 7"])
            .spawn()
            .unwrap();
        let pidfd = pidfd_open(child.id()).unwrap();
        let mut poll = [nix::poll::PollFd::new(
            pidfd.as_fd(),
            nix::poll::PollFlags::POLLIN,
        )];
        nix::poll::poll(&mut poll, nix::poll::PollTimeout::from(5000u16)).unwrap();
        let peeked = wait_child(Children::Pid(child.id()), true)
            .unwrap()
            .unwrap();
        assert_eq!(peeked.status, ExitStatus::Exited(7));
        let reaped = wait_child(Children::Pidfd(pidfd.as_fd()), false).unwrap();
        assert_eq!(reaped, Some(peeked));
        let gone = wait_child(Children::Pidfd(pidfd.as_fd()), false).unwrap_err();
        assert_eq!(gone.raw_os_error(), Some(libc::ECHILD));
    }
}
