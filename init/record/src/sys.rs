//! The few system calls that `std` does not offer. Each function is safe to call; nothing else in this crate is unsafe.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Takes the exclusive `flock(2)` of the open file if nobody has it; `false` when somebody has.
pub(crate) fn try_lock(file: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: flock takes no pointer; `file` is open for the duration of the call because it is borrowed.
    let result = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
    if result == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::EWOULDBLOCK) {
        Ok(false)
    } else {
        Err(error)
    }
}

/// `fallocate(2)` that keeps the file's size.
pub(crate) fn preallocate(file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    let too_big = |_| io::Error::from_raw_os_error(libc::EFBIG);
    let offset = libc::off_t::try_from(offset).map_err(too_big)?;
    let len = libc::off_t::try_from(len).map_err(too_big)?;
    // SAFETY: fallocate takes no pointer; `file` is open for the duration of the call because it is borrowed.
    let result =
        unsafe { libc::fallocate(file.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, offset, len) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Fills `buffer` from the kernel's random source without waiting for it; `getrandom(2)`.
pub(crate) fn random(buffer: &mut [u8; 8]) -> io::Result<()> {
    // SAFETY: the pointer and length are those of one live, writable array; 8 bytes are never cut short (getrandom(2)).
    let read = unsafe {
        libc::getrandom(
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::GRND_NONBLOCK,
        )
    };
    if read == 8 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
