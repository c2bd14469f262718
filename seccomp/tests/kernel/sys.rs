//! System calls without a safe wrapper.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Calls syscall `number` with `args` and nothing else; the errno if it failed.
///
/// Only for syscalls that take plain numbers: no argument may be a pointer.
pub(crate) fn call(number: i64, args: [u64; 2]) -> Result<i64, i32> {
    // SAFETY: the callers pass numbers that the kernel does not take for addresses of ours.
    let result = unsafe { libc::syscall(number, args[0], args[1]) };
    if result == -1 {
        return Err(io::Error::last_os_error().raw_os_error().unwrap_or(0));
    }
    Ok(result)
}

/// A pidfd of our child `pid`, which has not been waited for.
pub(crate) fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: pidfd_open returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Bytes waiting in a pipe.
pub(crate) fn waiting(pipe: BorrowedFd<'_>) -> io::Result<i32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int to the address, which is that of `bytes`.
    let result = unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(bytes)
}

/// Takes over descriptors received with SCM_RIGHTS.
pub(crate) fn own(received: &[i32]) -> Vec<OwnedFd> {
    received
        .iter()
        // SAFETY: the kernel has just made these descriptors for this message alone.
        .map(|&fd| unsafe { OwnedFd::from_raw_fd(fd) })
        .collect()
}
