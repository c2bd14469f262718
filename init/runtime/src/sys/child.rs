//! What all children that this crate makes have in common: the clone, and what is done before execve(2).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// linux/sched.h; libc's constant does not fit its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A process that was just made, not waited for.
#[derive(Debug)]
pub(crate) struct Cloned {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
}

/// How a child differs from one of fork(2).
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Kind<'a> {
    /// `CLONE_NEW*`.
    pub(super) namespaces: u64,
    /// Make it a child of our parent (`CLONE_PARENT`).
    pub(super) sibling: bool,
    /// Start inside this cgroup v2 directory.
    pub(super) cgroup: Option<BorrowedFd<'a>>,
}

/// `clone3` with a pidfd and a copy of our memory: nothing in the child, the child in the parent.
///
/// # Safety
/// The child continues on its copy of this stack, with locks as they were in the parent: until it ends or executes
/// a program it may only make system calls on memory that was prepared before.
pub(super) unsafe fn clone(kind: Kind<'_>) -> io::Result<Option<Cloned>> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: all-zero bytes are a valid clone_args: no stack, no tid, no tls.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = kind.namespaces | libc::CLONE_PIDFD.cast_unsigned() as u64;
    args.pidfd = (&raw mut pidfd).expose_provenance() as u64;
    if kind.sibling {
        // The kernel takes our own exit signal then, and wants 0 here.
        args.flags |= libc::CLONE_PARENT.cast_unsigned() as u64;
    } else {
        args.exit_signal = libc::SIGCHLD.cast_unsigned().into();
    }
    if let Some(cgroup) = kind.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd().cast_unsigned().into();
    }
    // SAFETY: `args` is valid for its size and its pidfd points to a live int. No CLONE_VM: the child has its own
    // copy of this stack, as after fork.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const args,
            size_of::<libc::clone_args>(),
        )
    };
    match i32::try_from(pid) {
        Ok(0) => Ok(None),
        Ok(pid) if pid > 0 => Ok(Some(Cloned {
            pid,
            // SAFETY: clone3 with CLONE_PIDFD has stored a new descriptor that nobody else owns.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        })),
        _ => Err(io::Error::last_os_error()),
    }
}

/// argv or envp of these strings, which have to outlive it.
pub(super) fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    let ends = std::iter::once(std::ptr::null());
    strings
        .iter()
        .map(|text| text.as_ptr())
        .chain(ends)
        .collect()
}

/// In the child: marks every descriptor above 2 close-on-exec. False when the kernel (before 5.11) cannot.
///
/// # Safety
/// Only in a child: it changes the whole descriptor table.
pub(super) unsafe fn close_on_exec_above_stdio() -> bool {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: integers only.
    unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            CLOSE_RANGE_CLOEXEC,
        ) == 0
    }
}

/// In the child: blocks no signal. The mask is whatever our caller had, and a program expects none.
pub(super) fn unblock_signals() -> bool {
    // SAFETY: a sigset_t is plain bits, which sigemptyset sets; a null pointer where nothing is asked for.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) == 0
    }
}
