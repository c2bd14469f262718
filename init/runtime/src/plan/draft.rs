//! A plan in the making, with the descriptors it mentions.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use holdfast_plan::Step;

use super::{PlanBuilder, PlanImage};
use crate::error::{Doing, Error, Result};
use crate::host_path;
use crate::sys::fd;

/// A clone of a mount, in a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tree {
    /// Its descriptor.
    pub fd: RawFd,
    /// Whether a directory is at its top.
    pub is_directory: bool,
    /// Whether it exists by now; else `holdfast-init` makes it.
    pub made: bool,
}

/// Steps, and the descriptors that must stay open until the process has been cloned.
#[derive(Debug)]
pub struct Draft {
    builder: PlanBuilder,
    kept: Vec<OwnedFd>,
    floor: RawFd,
}

impl Draft {
    /// A draft whose first step keeps `preserve` descriptors from 3 on open over the last
    /// execve. Descriptors of the plan are numbered above those.
    pub fn new(preserve: u32) -> Result<Self> {
        let floor = i32::try_from(preserve)
            .ok()
            .and_then(|count| count.checked_add(3))
            .ok_or_else(|| Error::Usage(format!("--preserve-fds {preserve} is too large")))?;
        let mut builder = PlanBuilder::new();
        builder.push(
            Step::PreserveFds { count: preserve },
            "mark inherited descriptors close-on-exec",
        );
        Ok(Self {
            builder,
            kept: Vec::new(),
            floor,
        })
    }

    /// Appends a step; `label` completes "failed to …".
    pub fn push(&mut self, step: Step<'_>, label: impl Into<String>) {
        self.builder.push(step, label);
    }

    /// Keeps an inheritable descriptor open for the new process and returns its number, which
    /// is above those that the user's process keeps.
    ///
    /// # Errors
    /// EMFILE, when it has to be moved.
    pub fn keep(&mut self, file: OwnedFd) -> Result<RawFd> {
        let file = if file.as_raw_fd() < self.floor {
            fd::inherited_above(file.as_fd(), self.floor)
                .doing(|| "move a descriptor above the preserved ones".into())?
        } else {
            file
        };
        let number = file.as_raw_fd();
        self.kept.push(file);
        Ok(number)
    }

    /// A detached clone of the mount at `path`.
    ///
    /// An ordinary user may not clone mounts; then a step lets `holdfast-init` do it, who is root of
    /// its user namespace.
    ///
    /// # Errors
    /// errno, with what `doing` says; a file system that does not answer.
    pub fn tree(
        &mut self,
        path: &CStr,
        recursive: bool,
        nofollow: bool,
        doing: impl FnOnce() -> String,
    ) -> Result<Tree> {
        host_path::reach(path)?;
        self.tree_now(path, recursive, nofollow).doing(doing)
    }

    fn tree_now(&mut self, path: &CStr, recursive: bool, nofollow: bool) -> io::Result<Tree> {
        let made = match fd::clone_tree(path, recursive, nofollow) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => None,
            made => Some(made?),
        };
        let is_made = made.is_some();
        let follow = if nofollow { libc::O_NOFOLLOW } else { 0 };
        let file = match made {
            Some(tree) => tree,
            None => fd::open_inherited(path, libc::O_PATH | follow)?,
        };
        let is_directory = fd::is_directory(file.as_fd())?;
        let file = if file.as_raw_fd() < self.floor {
            fd::inherited_above(file.as_fd(), self.floor)?
        } else {
            file
        };
        let number = file.as_raw_fd();
        self.kept.push(file);
        if !is_made {
            self.push(
                Step::CloneTree {
                    fd: number,
                    path,
                    recursive,
                    nofollow,
                },
                format!("clone the mount of {}", path.to_string_lossy()),
            );
        }
        Ok(Tree {
            fd: number,
            is_directory,
            made: is_made,
        })
    }

    /// The tree itself; none when `holdfast-init` will make it.
    pub fn made(&self, tree: Tree) -> Option<BorrowedFd<'_>> {
        let kept = self.kept.iter().find(|kept| kept.as_raw_fd() == tree.fd);
        kept.filter(|_| tree.made).map(AsFd::as_fd)
    }

    /// The finished plan, and what must stay open until the clone.
    ///
    /// # Errors
    /// When the plan exceeds 4 GiB.
    pub fn finish(self) -> Result<(PlanImage, Vec<OwnedFd>)> {
        let image = self
            .builder
            .finish()
            .map_err(|_| Error::spec("config.json", "is too large"))?;
        Ok((image, self.kept))
    }

    /// The lowest number a descriptor of ours may have.
    pub fn floor(&self) -> RawFd {
        self.floor
    }
}
