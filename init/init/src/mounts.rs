//! Mounts: everything lands on a descriptor that was resolved inside the root.

use core::ffi::CStr;

use holdfast_plan::{Step, TargetKind};
use linux_raw_sys::general as k;

use crate::fault::{Done, Fault};
use crate::root::{PathBuffer, Root, release};
use crate::steps::State;
use crate::sys::{self, EINVAL, ENOENT, ENOTDIR, Errno};

const MS_SHARED: u64 = k::MS_SHARED as u64;
pub(crate) const MS_PRIVATE: u64 = k::MS_PRIVATE as u64;
const MS_REC: u64 = k::MS_REC as u64;

/// `mount_setattr` knows recursion as a flag of the call, not of the propagation.
pub(crate) fn set_propagation(fd: i32, propagation: u64) -> Done {
    if propagation == 0 {
        return Ok(());
    }
    let recursive = propagation & MS_REC != 0;
    sys::mount_setattr(fd, recursive, 0, 0, propagation & !MS_REC)
        .map_err(|errno| Fault::call(b"mount_setattr propagation", errno))
}

impl State {
    /// Attaches the root file system's tree at its host path.
    pub(crate) fn attach_root(&mut self, tree: i32, path: &CStr, propagation: u64) -> Done {
        if propagation & MS_SHARED != 0 {
            private_parent(path)?;
            // The clone of a shared mount is its peer, and no peer can become the root.
            set_propagation(tree, MS_PRIVATE)?;
        } else {
            set_propagation(tree, propagation)?;
        }
        let target = sys::open(path, k::O_PATH | k::O_DIRECTORY)
            .map_err(|errno| Fault::on(b"open", path.to_bytes(), errno))?;
        sys::move_mount(tree, target)
            .map_err(|errno| Fault::on(b"move_mount", path.to_bytes(), errno))?;
        self.root = Some(Root::new(tree));
        Ok(())
    }

    pub(crate) fn mount_fs(&mut self, step: &Step<'_>) -> Done {
        let Step::MountFs {
            fstype,
            source,
            target,
            flags,
            propagation,
            data,
            nofollow,
            attr_set,
            attr_clr,
        } = *step
        else {
            return Err(Fault::check(b"not a file system"));
        };
        let root = self.root()?;
        let dir = root.target(target, TargetKind::Directory, nofollow)?;
        // mount(2) takes a path; "." of a directory we hold cannot be swapped.
        sys::fchdir(dir).map_err(|errno| Fault::on(b"fchdir", target.to_bytes(), errno))?;
        sys::mount(Some(source), c".", Some(fstype), flags, Some(data))
            .map_err(|errno| Fault::on(b"mount", target.to_bytes(), errno))?;
        release(dir);
        if propagation != 0 || attr_set != 0 || attr_clr != 0 {
            let top = root
                .open(target, k::O_DIRECTORY, nofollow)
                .map_err(|errno| Fault::on(b"openat2", target.to_bytes(), errno))?;
            if attr_set != 0 || attr_clr != 0 {
                sys::mount_setattr(top, true, attr_set, attr_clr, 0)
                    .map_err(|errno| Fault::on(b"mount_setattr", target.to_bytes(), errno))?;
            }
            set_propagation(top, propagation)?;
            release(top);
        }
        Ok(())
    }

    pub(crate) fn mount_tree(&mut self, step: &Step<'_>) -> Done {
        let Step::MountTree {
            fd,
            target,
            kind,
            attr_set,
            attr_clr,
            cut,
            propagation,
            rec_attr_set,
            rec_attr_clr,
        } = *step
        else {
            return Err(Fault::check(b"not a tree"));
        };
        let attributes = |recursive, set, clear| {
            if set == 0 && clear == 0 {
                return Ok(());
            }
            sys::mount_setattr(fd, recursive, set, clear, 0)
                .map_err(|errno| Fault::on(b"mount_setattr", target.to_bytes(), errno))
        };
        attributes(false, attr_set, attr_clr)?;
        attributes(true, rec_attr_set, rec_attr_clr)?;
        set_propagation(fd, cut)?;
        let at = self.root()?.target(target, kind, false)?;
        sys::move_mount(fd, at)
            .map_err(|errno| Fault::on(b"move_mount", target.to_bytes(), errno))?;
        // After the move: joining a shared parent would make a private tree shared again.
        set_propagation(fd, propagation)?;
        release(at);
        release(fd);
        Ok(())
    }

    /// Covers a file with `/dev/null` and a directory with one empty, read-only tmpfs that all
    /// masked directories share.
    pub(crate) fn mask(&mut self, path: &CStr) -> Done {
        let at = match self.root()?.open(path, 0, false) {
            Ok(fd) => fd,
            Err(Errno(ENOENT | ENOTDIR)) => return Ok(()),
            Err(errno) => return Err(Fault::on(b"openat2", path.to_bytes(), errno)),
        };
        let mode = sys::fstat(at)
            .map_err(|errno| Fault::on(b"statx", path.to_bytes(), errno))?
            .mode;
        let cover = if mode & k::S_IFMT == k::S_IFDIR {
            self.empty_directory()?
        } else {
            let null = self.null_device()?;
            sys::clone_tree(null, 0)
                .map_err(|errno| Fault::on(b"open_tree", b"/dev/null", errno))?
        };
        sys::move_mount(cover, at)
            .map_err(|errno| Fault::on(b"move_mount", path.to_bytes(), errno))?;
        release(at);
        Ok(())
    }

    /// The host's `/dev/null`, checked to be it (CVE-2025-31133).
    fn null_device(&mut self) -> Result<i32, Fault> {
        if let Some(fd) = self.null {
            return Ok(fd);
        }
        let fd = sys::open(c"/dev/null", k::O_PATH | k::O_NOFOLLOW)
            .map_err(|errno| Fault::on(b"open", b"/dev/null", errno))?;
        let stat = sys::fstat(fd).map_err(|errno| Fault::on(b"statx", b"/dev/null", errno))?;
        if stat.mode & k::S_IFMT != k::S_IFCHR || stat.rdev != (1, 3) {
            return Err(Fault::check(
                b"/dev/null of the host is not the null device",
            ));
        }
        self.null = Some(fd);
        Ok(fd)
    }

    fn empty_directory(&mut self) -> Result<i32, Fault> {
        if let Some(attached) = self.empty {
            return sys::clone_tree(attached, 0)
                .map_err(|errno| Fault::on(b"open_tree", b"tmpfs", errno));
        }
        let fault = |errno| Fault::on(b"fsmount", b"tmpfs", errno);
        let context = sys::fsopen(c"tmpfs").map_err(fault)?;
        sys::fsconfig_string(context, c"nr_inodes", c"2").map_err(fault)?;
        sys::fsconfig_string(context, c"mode", c"0555").map_err(fault)?;
        let attributes = k::MOUNT_ATTR_RDONLY
            | k::MOUNT_ATTR_NOSUID
            | k::MOUNT_ATTR_NODEV
            | k::MOUNT_ATTR_NOEXEC;
        let tree = sys::fsmount(context, attributes).map_err(fault)?;
        self.empty = Some(tree);
        Ok(tree)
    }

    /// Binds a path over itself, read-only with everything below it.
    pub(crate) fn readonly(&mut self, path: &CStr) -> Done {
        let at = match self.root()?.open(path, 0, false) {
            Ok(fd) => fd,
            Err(Errno(ENOENT | ENOTDIR)) => return Ok(()),
            Err(errno) => return Err(Fault::on(b"openat2", path.to_bytes(), errno)),
        };
        let fault = |call: &'static [u8]| move |errno| Fault::on(call, path.to_bytes(), errno);
        let tree = sys::clone_tree(at, k::AT_RECURSIVE).map_err(fault(b"open_tree"))?;
        sys::mount_setattr(tree, true, u64::from(k::MOUNT_ATTR_RDONLY), 0, 0)
            .map_err(fault(b"mount_setattr"))?;
        sys::move_mount(tree, at).map_err(fault(b"move_mount"))?;
        release(at);
        release(tree);
        Ok(())
    }

    pub(crate) fn mount_attributes(
        &mut self,
        target: &CStr,
        set: u64,
        clear: u64,
        recursive: bool,
    ) -> Done {
        let at = self
            .root()?
            .open(target, 0, false)
            .map_err(|errno| Fault::on(b"openat2", target.to_bytes(), errno))?;
        sys::mount_setattr(at, recursive, set, clear, 0)
            .map_err(|errno| Fault::on(b"mount_setattr", target.to_bytes(), errno))?;
        release(at);
        Ok(())
    }

    pub(crate) fn readonly_root(&mut self) -> Done {
        let root = self.root()?.dir();
        sys::mount_setattr(root, false, u64::from(k::MOUNT_ATTR_RDONLY), 0, 0)
            .map_err(|errno| Fault::call(b"mount_setattr", errno))
    }

    /// `pivot_root(".", ".")` stacks the old root on the new one; detaching "." removes it.
    pub(crate) fn pivot_root(&mut self, shared: bool) -> Done {
        let root = self.root()?.dir();
        let old = if shared {
            let old = sys::open(c"/", k::O_PATH | k::O_DIRECTORY);
            Some(old.map_err(|errno| Fault::on(b"open", b"/", errno))?)
        } else {
            None
        };
        sys::fchdir(root).map_err(|errno| Fault::call(b"fchdir", errno))?;
        sys::pivot_root(c".", c".").map_err(|errno| Fault::call(b"pivot_root", errno))?;
        if let Some(old) = old {
            set_propagation(old, u64::from(k::MS_SLAVE) | MS_REC)?;
        }
        sys::detach(c".").map_err(|errno| Fault::call(b"umount2 old root", errno))?;
        sys::chdir(c"/").map_err(|errno| Fault::call(b"chdir", errno))
    }

    pub(crate) fn move_root(&mut self) -> Done {
        let root = self.root()?.dir();
        sys::fchdir(root).map_err(|errno| Fault::call(b"fchdir", errno))?;
        sys::mount(Some(c"."), c"/", None, u64::from(k::MS_MOVE), None)
            .map_err(|errno| Fault::call(b"mount MS_MOVE", errno))?;
        self.chroot()
    }

    pub(crate) fn chroot(&mut self) -> Done {
        let root = self.root()?.dir();
        sys::fchdir(root).map_err(|errno| Fault::call(b"fchdir", errno))?;
        sys::chroot(c".").map_err(|errno| Fault::call(b"chroot", errno))?;
        sys::chdir(c"/").map_err(|errno| Fault::call(b"chdir", errno))
    }
}

/// Makes the mount that `path` lies on private: pivot_root refuses a shared parent, and the
/// attached root must not travel to the host.
fn private_parent(path: &CStr) -> Done {
    let bytes = path.to_bytes();
    let mut end = bytes.len();
    loop {
        let head = match bytes.get(..end) {
            Some(head) if !head.is_empty() => head,
            _ => b"/",
        };
        let prefix = PathBuffer::of(&[head]).map_err(|e| Fault::on(b"path", bytes, e))?;
        match sys::mount(None, prefix.as_cstr(), None, MS_PRIVATE, None) {
            Ok(()) => return Ok(()),
            // Not a mount point: its parent may be one.
            Err(Errno(EINVAL)) if head != b"/" => {
                end = head.iter().rposition(|b| *b == b'/').unwrap_or(0);
            }
            Err(errno) => return Err(Fault::on(b"mount MS_PRIVATE", head, errno)),
        }
    }
}
