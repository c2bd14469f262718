//! A user namespace that exists for its maps only: what an id-mapped mount refers to.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::child::{self, Cloned};
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
        let kind = child::Kind {
            namespaces: libc::CLONE_NEWUSER.cast_unsigned().into(),
            ..child::Kind::default()
        };
        // SAFETY: the child makes system calls on integers only, until it is killed.
        match unsafe { child::clone(kind) }? {
            Some(Cloned { pid, pidfd }) => Ok(Self { pid, pidfd }),
            // SAFETY: integers only.
            None => unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                if libc::getppid().cast_unsigned() != parent {
                    libc::_exit(1);
                }
                loop {
                    libc::pause();
                }
            },
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
