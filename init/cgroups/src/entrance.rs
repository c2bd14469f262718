//! The cheap way into the v1 hierarchies. The decision and its numbers: docs/0001-enter-by-tasks.md.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::cgroup::Cgroup;
use crate::error::{Error, Result};
use crate::sys;

/// The open `tasks` files of a cgroup, for a process that moves itself.
///
/// Made by the parent, used by its child between clone and execve; or the fds are handed on (they are close-on-exec)
/// and one write(2) of `0` to each does the same.
#[derive(Debug)]
pub struct Entrance {
    files: Vec<OwnedFd>,
}

impl Entrance {
    /// Moves the calling thread, which must be the only one of its process, into the v1 hierarchies.
    ///
    /// Makes one write(2) for each hierarchy and nothing else: no allocation, no lock, safe after clone or vfork.
    ///
    /// # Errors
    /// The errno of the first write that fails; ENOSPC means an empty `cpuset.cpus` or `.mems`.
    pub fn enter(&self) -> io::Result<()> {
        self.files
            .iter()
            .try_for_each(|file| sys::write_once(file.as_fd(), b"0"))
    }

    /// The files, to hand them to another program.
    pub fn fds(&self) -> impl ExactSizeIterator<Item = BorrowedFd<'_>> {
        self.files.iter().map(AsFd::as_fd)
    }
}

impl Cgroup {
    /// Opens the `tasks` file of every v1 hierarchy; none on pure v2, where [`Self::dir_fd`] and `CLONE_INTO_CGROUP` do it
    /// all. In hybrid layouts both are needed.
    ///
    /// # Errors
    /// [`Error::Io`] with the file.
    pub fn entrance(&self) -> Result<Entrance> {
        let files = self
            .places
            .iter()
            .filter(|place| !place.hierarchy.is_v2())
            .map(|place| {
                let failed = Error::io("open", place.dir.path().join("tasks"));
                place.dir.open("tasks", libc::O_WRONLY).map_err(failed)
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Entrance { files })
    }
}
