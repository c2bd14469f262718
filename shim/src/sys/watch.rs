//! Descriptors that wake the event loop.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use holdfast_cgroups::OomEvents;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{check, fd_from};
use crate::resume::descriptor::Descriptor;

/// Registers a pipe, fifo, socket or terminal with the event loop.
///
/// # Errors
/// `EPERM` for what epoll(7) cannot watch.
pub(crate) fn watch(
    fd: impl Into<Descriptor>,
    interest: Interest,
) -> io::Result<AsyncFd<Descriptor>> {
    // SAFETY: a Descriptor owns one open descriptor and names the same one for all its life.
    Ok(unsafe { AsyncFd::register_with_interest(fd.into(), interest) }?)
}

/// Registers a listening socket with the event loop.
///
/// # Errors
/// epoll(7)'s.
pub(crate) fn watch_listener(listener: UnixListener) -> io::Result<AsyncFd<UnixListener>> {
    // SAFETY: a listener owns one open descriptor and names the same one for all its life.
    Ok(unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) }?)
}

/// What an [`AsyncFd`] of out-of-memory events holds.
#[derive(Debug)]
pub(crate) struct OomSource(pub(crate) OomEvents);

impl AsRawFd for OomSource {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Registers out-of-memory events with the event loop.
///
/// # Errors
/// epoll(7)'s.
pub(crate) fn watch_oom(events: OomEvents) -> io::Result<(AsyncFd<OomSource>, Interest)> {
    let interest = if events.poll_events() == libc::POLLPRI {
        Interest::PRIORITY
    } else {
        Interest::READABLE
    };
    // SAFETY: OomEvents owns one open descriptor and names the same one for all its life.
    let watched = unsafe { AsyncFd::register_with_interest(OomSource(events), interest) }?;
    Ok((watched, interest))
}

/// A counter that can be written by a signal handler and read by the event loop; see eventfd(2).
///
/// # Errors
/// The kernel's.
pub(crate) fn event_counter() -> io::Result<OwnedFd> {
    // SAFETY: integers only.
    fd_from(check(
        unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) }.into(),
    )?)
}
