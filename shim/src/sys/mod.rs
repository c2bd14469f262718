//! Every `unsafe` block of the shim: thin, typed faces of system calls that neither the
//! standard library nor nix offers safely.
#![allow(unsafe_code)]

mod children;
mod memory;
mod mounts;
mod streams;
mod watch;

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

pub(crate) use children::{
    ChildEnd, ChildSetup, Children, create_core_scheduling_cookie, pidfd_exit_status, pidfd_open,
    pidfd_send_signal, prepare_child, take_inherited, wait_child,
};
#[cfg(feature = "fault-points")]
pub(crate) use memory::write_to_nowhere;
pub(crate) use memory::{
    executable_memory_file, memory_file, move_above, seal, share_one_heap, trim_heap,
};
pub(crate) use mounts::{
    configure_loop, free_loop_device, mount_overlay_layers, mount_shifted, user_namespace,
};
pub(crate) use streams::{
    Received, finish_taking, peek, readable_bytes, receive_with_fd, set_window_size, splice, take,
};
pub(crate) use watch::{event_counter, watch, watch_listener, watch_oom};

/// Result of a system call that reports failure as -1 and errno.
fn check(ret: libc::c_long) -> io::Result<libc::c_long> {
    if ret < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(ret)
    }
}

/// Narrows a descriptor returned by `syscall(2)`.
fn fd_from(ret: libc::c_long) -> io::Result<OwnedFd> {
    let raw = RawFd::try_from(ret).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: the kernel just returned `raw` as a new descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}
