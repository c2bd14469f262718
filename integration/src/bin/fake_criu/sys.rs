//! What has no safe form: a sibling, and the socket that was inherited.
#![allow(unsafe_code)]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::libc;

/// The socket whose number is on the command line.
pub(crate) fn inherited(fd: RawFd) -> OwnedFd {
    // SAFETY: the caller made it for us, and nothing else here uses the number.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// The process that made the socket pair: whose descriptors the numbers in requests are.
pub(crate) fn peer(socket: &OwnedFd) -> i32 {
    let credentials = nix::sys::socket::sockopt::PeerCredentials;
    nix::sys::socket::getsockopt(socket, credentials)
        .unwrap()
        .pid()
}

/// A copy of this process that runs `body` and ends; as a child of our parent for `sibling`.
pub(crate) fn fork(sibling: bool, body: impl FnOnce()) -> i32 {
    let flags = libc::SIGCHLD | if sibling { libc::CLONE_PARENT } else { 0 };
    // SAFETY: no CLONE_VM: the copy works on its own memory, as after fork; there is one thread.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    if pid == 0 {
        body();
        // SAFETY: ends the copy without the exit handlers of the original.
        unsafe { libc::_exit(1) }
    }
    i32::try_from(pid)
        .ok()
        .filter(|pid| *pid > 0)
        .expect("clone")
}

/// Kills a process and waits until it is dead; reaping it is its parent's.
pub(crate) fn kill_and_wait(pid: i32) {
    // SAFETY: integers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = inherited(RawFd::try_from(fd).unwrap());
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    let mut fds = [nix::poll::PollFd::new(
        std::os::fd::AsFd::as_fd(&fd),
        nix::poll::PollFlags::POLLIN,
    )];
    let ended = nix::poll::poll(&mut fds, 10_000_u16).unwrap();
    assert_eq!(ended, 1, "process {pid} does not die");
}
