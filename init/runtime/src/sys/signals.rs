//! Signal dispositions of the runtime's own process, signals as descriptors, window sizes.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Undoes Rust's "ignore SIGPIPE": an ignored signal would be inherited over execve by the
/// user's program. Sockets are written with `MSG_NOSIGNAL`.
pub(crate) fn default_sigpipe() {
    // SAFETY: installs no handler; called once at start, before any other thread exists.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

/// Blocks all signals that can be forwarded and returns a descriptor to read them from.
pub(crate) fn all_as_descriptor() -> io::Result<OwnedFd> {
    // SAFETY: `set` is initialised by sigfillset before use; the descriptor is new.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        // Faults of our own must not become silent.
        for fault in [
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGILL,
            libc::SIGFPE,
            libc::SIGABRT,
        ] {
            libc::sigdelset(&raw mut set, fault);
        }
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// The next signal waiting, if any.
pub(crate) fn next_signal(descriptor: BorrowedFd<'_>) -> Option<i32> {
    // SAFETY: all-zero bytes are a valid signalfd_siginfo, and the buffer has its size.
    unsafe {
        let mut info: libc::signalfd_siginfo = std::mem::zeroed();
        let size = size_of::<libc::signalfd_siginfo>();
        let got = libc::read(descriptor.as_raw_fd(), (&raw mut info).cast(), size);
        (got == size.cast_signed()).then_some(info.ssi_signo.cast_signed())
    }
}

/// Gives one terminal the window size of another; one that has none is left alone.
pub(crate) fn copy_window_size(from: BorrowedFd<'_>, to: BorrowedFd<'_>) {
    // SAFETY: both ioctls take a winsize, which is integers only.
    unsafe {
        let mut size: libc::winsize = std::mem::zeroed();
        if libc::ioctl(from.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) == 0 {
            libc::ioctl(to.as_raw_fd(), libc::TIOCSWINSZ, &raw const size);
        }
    }
}
