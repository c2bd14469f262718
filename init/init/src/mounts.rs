//! Mounts: everything lands on a descriptor that was resolved inside the root.

use core::ffi::CStr;

use holdfast_plan::{Step, TargetKind};
use linux_raw_sys::general as k;

use crate::fault::{Done, Fault};
use crate::root::{PathBuffer, Root, release};
use crate::steps::State;
use crate::sys::{self, EBUSY, EINVAL, ENOENT, ENOTDIR, Errno};

const MS_SHARED: u64 = k::MS_SHARED as u64;
pub(crate) const MS_PRIVATE: u64 = k::MS_PRIVATE as u64;
const MS_REC: u64 = k::MS_REC as u64;

/// Flags of mount(2) as attributes of fsmount(2): those that a mount of cgroups has.
fn attributes(flags: u64) -> u32 {
    [
        (k::MS_RDONLY, k::MOUNT_ATTR_RDONLY),
        (k::MS_NOSUID, k::MOUNT_ATTR_NOSUID),
        (k::MS_NODEV, k::MOUNT_ATTR_NODEV),
        (k::MS_NOEXEC, k::MOUNT_ATTR_NOEXEC),
    ]
    .iter()
    .filter(|(flag, _)| flags & u64::from(*flag) != 0)
    .fold(0, |all, (_, attribute)| all | attribute)
}

/// Where the kernel's own file systems are, as most paths that are covered are below them.
const KERNEL_PLACES: [&CStr; 2] = [c"/proc", c"/sys"];
/// Their types, and the numbers that tell them from others (linux/magic.h).
const KERNEL: [(&CStr, u64); 2] = [(c"proc", 0x9fa0), (c"sysfs", 0x6265_6572)];

/// `mount_setattr` knows recursion as a flag of the call, not of the propagation.
pub(crate) fn set_propagation(fd: i32, propagation: u64) -> Done {
    if propagation == 0 {
        return Ok(());
    }
    let recursive = propagation & MS_REC != 0;
    sys::mount_setattr(fd, recursive, 0, 0, propagation & !MS_REC)
        .map_err(|errno| Fault::call(b"mount_setattr propagation", errno))
}

/// Puts a clone of the host's mount at `path` in the place of `file`.
pub(crate) fn clone_tree(file: i32, path: &CStr, recursive: bool, nofollow: bool) -> Done {
    let fault = |errno| Fault::on(b"open_tree", path.to_bytes(), errno);
    let mut flags = 0;
    if recursive {
        flags |= k::AT_RECURSIVE;
    }
    if nofollow {
        flags |= k::AT_SYMLINK_NOFOLLOW;
    }
    let tree = sys::clone_path(path, flags).map_err(fault)?;
    sys::replace(file, tree).map_err(fault)?;
    sys::close(tree);
    Ok(())
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
        match sys::mount(Some(source), c".", Some(fstype), flags, Some(data)) {
            // The host's /sys came with its cgroups: mount(2) refuses what is of the same file system as what it would
            // cover, however different its root (the container's cgroup namespace) is. move_mount(2) does not ask.
            Err(Errno(EBUSY)) if fstype == c"cgroup2" => {
                let fault =
                    |call: &'static [u8]| move |errno| Fault::on(call, target.to_bytes(), errno);
                let context = sys::fsopen(fstype).map_err(fault(b"fsopen"))?;
                let tree = sys::fsmount(context, attributes(flags)).map_err(fault(b"fsmount"))?;
                sys::move_mount(tree, dir).map_err(fault(b"move_mount"))?;
                release(tree);
                release(context);
            }
            mounted => mounted.map_err(|errno| Fault::on(b"mount", target.to_bytes(), errno))?,
        }
        release(dir);
        self.kernel_mounted(target, None);
        let magic = KERNEL
            .iter()
            .find(|(name, _)| *name == fstype)
            .map(|(_, magic)| *magic);
        if propagation != 0 || attr_set != 0 || attr_clr != 0 || magic.is_some() {
            let top = root
                .open(target, k::O_DIRECTORY, nofollow)
                .map_err(|errno| Fault::on(b"openat2", target.to_bytes(), errno))?;
            if magic.is_some_and(|magic| sys::fs_magic(top) != Ok(magic)) {
                return Err(Fault::on(
                    b"somebody moved the mount",
                    target.to_bytes(),
                    Errno(0),
                ));
            }
            if attr_set != 0 || attr_clr != 0 {
                sys::mount_setattr(top, true, attr_set, attr_clr, 0)
                    .map_err(|errno| Fault::on(b"mount_setattr", target.to_bytes(), errno))?;
            }
            set_propagation(top, propagation)?;
            if magic.is_none() || !self.kernel_mounted(target, Some(top)) {
                release(top);
            }
        }
        Ok(())
    }

    /// Remembers the root of what is mounted on `/proc` or `/sys`; whether `target` is one of them.
    fn kernel_mounted(&mut self, target: &CStr, top: Option<i32>) -> bool {
        let mut held = false;
        for (place, slot) in KERNEL_PLACES.iter().zip(&mut self.kernel) {
            if target == *place {
                *slot = top;
                held = true;
            }
        }
        held
    }

    /// Opens what is to be covered. Below `/proc` and `/sys` it is looked up in what was mounted
    /// there: by then somebody who writes to the same root file system can have put another folder
    /// in the place of the mount point, and the mount would stay uncovered.
    fn open_covered(&mut self, path: &CStr) -> Result<i32, Errno> {
        for (place, held) in KERNEL_PLACES.iter().zip(self.kernel) {
            let below = path
                .to_bytes_with_nul()
                .strip_prefix(place.to_bytes())
                .filter(|rest| rest.starts_with(b"/"))
                .and_then(|rest| CStr::from_bytes_with_nul(rest).ok());
            if let (Some(below), Some(held)) = (below, held) {
                return Root::new(held).open(below, 0, false);
            }
        }
        self.root_or_errno()?.open(path, 0, false)
    }

    fn root_or_errno(&mut self) -> Result<Root, Errno> {
        self.root().map_err(|fault| Errno(fault.errno))
    }

    pub(crate) fn mount_tree(&mut self, step: &Step<'_>) -> Done {
        let Step::MountTree {
            fd,
            target,
            kind,
            nofollow,
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
        let root = self.root()?;
        let at = if nofollow {
            root.last_entry(target, kind)?
        } else {
            root.target(target, kind, false)?
        };
        sys::move_mount(fd, at)
            .map_err(|errno| Fault::on(b"move_mount", target.to_bytes(), errno))?;
        // After the move: joining a shared parent would make a private tree shared again.
        set_propagation(fd, propagation)?;
        release(at);
        if !self.kernel_mounted(target, Some(fd)) {
            release(fd);
        }
        Ok(())
    }

    /// Covers a file with `/dev/null` and a directory with one empty, read-only tmpfs that all
    /// masked directories share.
    pub(crate) fn mask(&mut self, path: &CStr) -> Done {
        let at = match self.open_covered(path) {
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
        let at = match self.open_covered(path) {
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

    pub(crate) fn label(&mut self, target: &CStr, label: &CStr) -> Done {
        let at = self
            .root()?
            .open(target, k::O_DIRECTORY, false)
            .map_err(|errno| Fault::on(b"openat2", target.to_bytes(), errno))?;
        // setxattr(2) takes a path; "." of a directory we hold cannot be swapped.
        sys::fchdir(at).map_err(|errno| Fault::on(b"fchdir", target.to_bytes(), errno))?;
        sys::set_attribute(c".", c"security.selinux", label.to_bytes_with_nul())
            .map_err(|errno| Fault::on(b"setxattr", target.to_bytes(), errno))?;
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
