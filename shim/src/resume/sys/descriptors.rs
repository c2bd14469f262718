//! Descriptors that pass from image to image, and to the keeper.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Sends a message at once, with descriptors (`SCM_RIGHTS`).
///
/// # Errors
/// `EAGAIN` when the other end takes nothing; see sendmsg(2).
pub(crate) fn send_with_descriptors(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[RawFd],
) -> io::Result<()> {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let rights = [ControlMessage::ScmRights(descriptors)];
    let control = if descriptors.is_empty() {
        &[]
    } else {
        rights.as_slice()
    };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let bytes = [io::IoSlice::new(bytes)];
    sendmsg::<()>(socket.as_raw_fd(), &bytes, control, flags, None)?;
    Ok(())
}

/// How many bytes of what was sent the other end has not taken.
///
/// # Errors
/// See unix(7), `SIOCOUTQ`.
pub(crate) fn unread(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: the request writes one int, which lives through the call; the kernel's name for it is SIOCOUTQ.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut count) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Takes over a descriptor that the image before has left open, and closes it for children.
///
/// # Errors
/// `EBADF` when it is not open.
pub(crate) fn inherit(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD takes integers only and fails with EBADF for a closed number.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: open (checked above); the slate names each number once, and nothing else in this
    // image has taken it ([`crate::resume`] keeps the list).
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Closes `number`, which nobody in this image owns.
pub(crate) fn close_stale(number: RawFd) {
    // SAFETY: the caller has made sure that the number was open when this image began and that nobody has
    // taken it over since.
    unsafe {
        libc::close(number);
    }
}
