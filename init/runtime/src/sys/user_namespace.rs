//! A user namespace that exists for its maps only: what an id-mapped mount refers to.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::clone::{signal_pidfd, wait_pidfd};

/// Makes a user namespace with these maps (lines as in `/proc/PID/uid_map`).
///
/// A process has to live in it while the maps are written; it is gone when this returns, and
/// dies with us when we are killed in between.
pub(crate) fn with_maps(uid_map: &str, gid_map: &str) -> io::Result<OwnedFd> {
    let inhabitant = Inhabitant::start()?;
    let file = |name: &str| format!("/proc/{}/{name}", inhabitant.pid);
    fs::write(file("uid_map"), uid_map)?;
    fs::write(file("gid_map"), gid_map)?;
    fs::File::open(file("ns/user")).map(OwnedFd::from)
}

/// `mount_setattr(MOUNT_ATTR_IDMAP)` on a detached tree.
pub(crate) fn map_ids(
    tree: BorrowedFd<'_>,
    namespace: BorrowedFd<'_>,
    recursive: bool,
) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: namespace.as_raw_fd().cast_unsigned().into(),
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: a NUL-terminated path and a struct of the size that is passed.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

struct Inhabitant {
    pid: i32,
    pidfd: OwnedFd,
}

impl Inhabitant {
    fn start() -> io::Result<Self> {
        let parent = std::process::id();
        let mut pidfd: libc::c_int = -1;
        // SAFETY: all-zero bytes are a valid clone_args: no stack, no tid, no tls.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        let flags = libc::CLONE_NEWUSER | libc::CLONE_PIDFD;
        args.flags = flags.cast_unsigned().into();
        args.pidfd = (&raw mut pidfd).expose_provenance() as u64;
        args.exit_signal = libc::SIGCHLD.cast_unsigned().into();
        // SAFETY: `args` is valid for its size and its pidfd points to a live int; without
        // CLONE_VM the child gets a copy of the address space, as after fork.
        let pid = unsafe {
            libc::syscall(
                libc::SYS_clone3,
                &raw mut args,
                size_of::<libc::clone_args>(),
            )
        };
        if pid == 0 {
            // SAFETY: system calls on integers only, until the process is killed.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                if libc::getppid().cast_unsigned() != parent {
                    libc::_exit(1);
                }
                loop {
                    libc::pause();
                }
            }
        }
        match i32::try_from(pid) {
            Ok(pid) if pid > 0 => Ok(Self {
                pid,
                // SAFETY: clone3 succeeded with CLONE_PIDFD, so the kernel stored a new
                // descriptor that nobody else owns.
                pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
            }),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Inhabitant {
    fn drop(&mut self) {
        // It can only be gone already; either way it is there to be waited for.
        let _ = signal_pidfd(self.pidfd.as_fd(), libc::SIGKILL);
        let _ = wait_pidfd(self.pidfd.as_fd(), true);
    }
}
