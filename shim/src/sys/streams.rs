//! Sockets that are looked at before they are read, pipes whose bytes stay in the kernel, terminals, and descriptors
//! that come with a message.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::check;
use crate::resume::descriptor::Descriptor;

/// Looks at the next bytes of a stream socket; [`take`] takes them off. The socket knows how many were looked at, so
/// that a next image can tell ([`finish_taking`]).
///
/// # Errors
/// `EAGAIN` when there are none; see recv(2).
pub(crate) fn peek(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    use nix::sys::socket::{MsgFlags, recv};
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    Ok(recv(socket.as_raw_fd(), buffer, flags)?)
}

/// Takes off what was looked at.
///
/// # Errors
/// See recv(2).
pub(crate) fn take(socket: BorrowedFd<'_>, buffer: &mut [u8], mut size: usize) -> io::Result<()> {
    use nix::sys::socket::{MsgFlags, recv};
    while size > 0 {
        let most = size.min(buffer.len());
        let some = buffer.get_mut(..most).unwrap_or_default();
        match recv(socket.as_raw_fd(), some, MsgFlags::MSG_DONTWAIT)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            taken => size -= taken.min(size),
        }
    }
    Ok(())
}

/// Makes [`peek`] begin at the first byte that was not taken; `taken`: as many as an image before had on the slate
/// before it took them off. Whether it came to that the socket knows.
///
/// # Errors
/// See socket(7), `SO_PEEK_OFF`.
pub(crate) fn finish_taking(socket: BorrowedFd<'_>, taken: Option<u64>) -> io::Result<()> {
    let mut offset: libc::c_int = 0;
    let mut size = libc::socklen_t::try_from(size_of_val(&offset)).map_err(io::Error::other)?;
    // SAFETY: the option is one int, which lives through the call, and so does its size.
    let asked = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEEK_OFF,
            (&raw mut offset).cast(),
            &raw mut size,
        )
    };
    check(asked.into())?;
    // Less than was looked at: it was killed while it took them off.
    if let Ok(looked @ 1..) = u64::try_from(offset)
        && taken.is_some_and(|taken| looked <= taken)
    {
        let looked = usize::try_from(looked).map_err(io::Error::other)?;
        take(socket, &mut [0; 4096], looked)?;
    }
    let zero: libc::c_int = 0;
    // SAFETY: as above.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEEK_OFF,
            (&raw const zero).cast(),
            size,
        )
    };
    check(set.into()).map(drop)
}

/// Moves bytes from one pipe to another within the kernel, as many as there are and fit, at most `size`; 0 at the end
/// of the first one.
///
/// # Errors
/// `EAGAIN` when the first is empty or the second full; see splice(2).
pub(crate) fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, size: usize) -> io::Result<usize> {
    let none = std::ptr::null_mut();
    let flags = libc::SPLICE_F_NONBLOCK | libc::SPLICE_F_MOVE;
    // SAFETY: null offsets are allowed, and right for pipes; the rest are integers.
    let moved = check(unsafe {
        libc::splice(from.as_raw_fd(), none, to.as_raw_fd(), none, size, flags) as libc::c_long
    })?;
    Ok(usize::try_from(moved).unwrap_or(0))
}

/// How many bytes can be read from a pipe at once.
///
/// # Errors
/// See ioctl(2).
pub(crate) fn readable_bytes(pipe: BorrowedFd<'_>) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: the request writes one int, which lives through the call.
    check(unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut count) }.into())?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Sets the window size of a terminal.
///
/// # Errors
/// See ioctl_tty(2).
pub(crate) fn set_window_size(tty: BorrowedFd<'_>, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one winsize, which lives for the whole call.
    check(unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }.into())
        .map(drop)
}

/// One message from a socket with at most one descriptor attached.
#[derive(Debug)]
pub(crate) struct Received {
    /// Bytes of the message; 0 is end of file.
    pub(crate) len: usize,
    /// The descriptor that came along, close-on-exec.
    pub(crate) fd: Option<Descriptor>,
}

/// Receives a message and the descriptor that may come with it (`SCM_RIGHTS`).
///
/// # Errors
/// `EAGAIN` on an empty non-blocking socket; see recvmsg(2).
pub(crate) fn receive_with_fd(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    #[repr(align(8))]
    struct Control([u8; 128]);
    let mut control = Control([0; 128]);
    let mut iov = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: msghdr is plain data for which all zeroes is a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len() as _;
    // SAFETY: `message` points at `iov`, `buffer` and `control`, all alive and sized as told.
    let len = check(unsafe {
        libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) as libc::c_long
    })?;
    let mut fd = None;
    // SAFETY: the CMSG macros walk the control buffer that recvmsg has just filled; each
    // descriptor read from an SCM_RIGHTS message is new and owned by us, so all but the
    // first are closed by dropping them.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(header).cast::<RawFd>();
                for index in 0..bytes / size_of::<RawFd>() {
                    let received = OwnedFd::from_raw_fd(data.add(index).read_unaligned());
                    fd.get_or_insert(received);
                }
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    Ok(Received {
        len: usize::try_from(len).unwrap_or(0),
        fd: fd.map(Descriptor::from),
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn what_was_looked_at_is_taken_once() {
        use std::io::Write as _;
        use std::os::unix::net::UnixStream;
        let (mut writer, reader) = UnixStream::pair().unwrap();
        let mut buffer = [0; 16];
        finish_taking(reader.as_fd(), None).unwrap();
        writer.write_all(b"first").unwrap();
        assert_eq!(peek(reader.as_fd(), &mut buffer).unwrap(), 5);
        // Not on the slate: it is read again.
        finish_taking(reader.as_fd(), None).unwrap();
        assert_eq!(peek(reader.as_fd(), &mut buffer).unwrap(), 5);
        writer.write_all(b"second").unwrap();
        // On the slate, and not taken yet.
        finish_taking(reader.as_fd(), Some(5)).unwrap();
        assert_eq!(peek(reader.as_fd(), &mut buffer).unwrap(), 6);
        assert_eq!(&buffer[..6], b"second");
        take(reader.as_fd(), &mut buffer, 6).unwrap();
        // On the slate, and taken.
        writer.write_all(b"third!").unwrap();
        finish_taking(reader.as_fd(), Some(6)).unwrap();
        assert_eq!(peek(reader.as_fd(), &mut buffer).unwrap(), 6);
        assert_eq!(&buffer[..6], b"third!");
        // On the slate, and taken in part.
        take(reader.as_fd(), &mut buffer, 2).unwrap();
        finish_taking(reader.as_fd(), Some(6)).unwrap();
        writer.write_all(b"4").unwrap();
        assert_eq!(peek(reader.as_fd(), &mut buffer).unwrap(), 1);
        assert_eq!(buffer[0], b'4');
    }
}
