//! The system calls that std and nix do not have.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use crate::program::Program;

/// Loads `program` into the calling thread with one raw `seccomp(2)` (into all threads with
/// [`LoadFlags::TSYNC`](crate::LoadFlags::TSYNC)); returns the listener if the program wants one.
///
/// It takes CAP_SYS_ADMIN in the caller's user namespace, or `no_new_privs`
/// ([`LoadPoint`](crate::LoadPoint)). It cannot be undone, and threads and children inherit it.
///
/// # Errors
/// EACCES: neither CAP_SYS_ADMIN nor no_new_privs. EINVAL: the kernel does not know a flag
/// (WAIT_KILLABLE_RECV before Linux 5.19) or the program. EBUSY: another filter of the process has a
/// listener. ESRCH: TSYNC could not take over a thread. ENOMEM: all filters of the thread together
/// exceed 32768 instructions. Source: seccomp(2).
pub fn load(program: &Program) -> io::Result<Option<OwnedFd>> {
    let length = u16::try_from(program.instructions()).map_err(io::Error::other)?;
    let filter = libc::sock_fprog {
        len: length,
        filter: program
            .bytes()
            .as_ptr()
            .cast_mut()
            .cast::<libc::sock_filter>(),
    };
    // SAFETY: `filter` describes `length` instructions of 8 bytes inside `program`, which outlives
    // the call; the kernel only copies from there, so neither alignment nor mutability matters.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            program.flags().bits(),
            &raw const filter,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    if !program.wants_listener() {
        return match result {
            0 => Ok(None),
            // With TSYNC alone: the thread that could not be taken over.
            _thread => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        };
    }
    let fd = RawFd::try_from(result).map_err(io::Error::other)?;
    // SAFETY: with NEW_LISTENER a result that is no error is a new descriptor that nobody else owns.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Waits until thread `thread` of this process, which has been joined, is gone from the kernel too.
///
/// pthread_join(3) returns when the thread gives up its memory, a few steps before it leaves the
/// thread group. In between `unshare(2)` and `setns(2)` of a user namespace fail with EINVAL, as
/// the process is not single-threaded yet.
///
/// # Errors
/// ETIMEDOUT if it is still there after `limit`.
pub(crate) fn wait_until_gone(thread: Pid, limit: Duration) -> io::Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        // SAFETY: signal 0 sends nothing and no memory is passed.
        let result = unsafe {
            libc::syscall(
                libc::SYS_tgkill,
                Pid::this().as_raw(),
                thread.as_raw(),
                0_i32,
            )
        };
        if result != 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::ESRCH) => Ok(()),
                _ => Err(error),
            };
        }
        if Instant::now() >= deadline {
            return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
        }
        std::thread::yield_now();
    }
}

/// The kernel's release and version (`uname -rv`), separated by a NUL.
pub(crate) fn kernel_version() -> Vec<u8> {
    // SAFETY: utsname is plain bytes, for which zero is valid.
    let mut name: libc::utsname = unsafe { std::mem::zeroed() };
    // SAFETY: `name` is a writable utsname. It fails only for a bad pointer; then it stays zero.
    unsafe { libc::uname(&raw mut name) };
    let text = |field: &[libc::c_char]| -> Vec<u8> {
        field
            .iter()
            .take_while(|&&byte| byte != 0)
            .map(|&byte| byte.to_ne_bytes()[0])
            .collect()
    };
    let mut version = text(&name.release);
    version.push(0);
    version.extend(text(&name.version));
    version
}
