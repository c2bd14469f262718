//! The mount targets of a container that is restored into a root file system it has not been in.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};

use super::request::binds;
use crate::bundle::{Bundle, clean, cstring};
use crate::error::{Doing, Result};
use crate::sys::fd;

/// `openat2(2)`: `..` and symlinks end at the directory that was given.
const RESOLVE_IN_ROOT: u64 = 0x10;

/// Makes the targets that are missing: criu does not. Those below a file system of the
/// container's own are in its images.
///
/// # Errors
/// The target that cannot be made.
pub(crate) fn make_targets(bundle: &Bundle) -> Result<()> {
    let path = cstring("root.path", &bundle.rootfs)?;
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    let root =
        fd::open_inherited(&path, flags).doing(|| format!("open {}", bundle.rootfs.display()))?;
    let binds = binds(bundle);
    let mounts = bundle.spec.mounts().iter().flatten();
    let fresh: Vec<PathBuf> = mounts
        .map(|mount| clean(&Path::new("/").join(mount.destination())))
        .filter(|target| !binds.iter().any(|(bound, _)| bound == target))
        .collect();
    let own = fresh.iter().map(|target| (target, true));
    let bound = binds
        .iter()
        .map(|(target, source)| (target, source.is_dir()));
    for (target, directory) in own.chain(bound) {
        if fresh.iter().any(|f| f != target && target.starts_with(f)) {
            continue;
        }
        make(root.as_fd(), target, directory)
            .doing(|| format!("make the mount target {}", target.display()))?;
    }
    Ok(())
}

/// Makes one target inside `root`, and the directories that lead to it.
fn make(root: BorrowedFd<'_>, target: &Path, directory: bool) -> io::Result<()> {
    let path = target.strip_prefix("/").unwrap_or(target);
    let Some(last) = path.file_name() else {
        return Ok(());
    };
    let mut so_far = PathBuf::new();
    let mut parent: Option<OwnedFd> = None;
    for name in path.parent().into_iter().flat_map(Path::components) {
        so_far.push(name);
        let at = parent.as_ref().map_or(root, AsFd::as_fd);
        make_directory(at, name.as_os_str())?;
        parent = Some(open_below(root, &so_far)?);
    }
    let at = parent.as_ref().map_or(root, AsFd::as_fd);
    // What is there, a symlink included, is left to criu, which mounts inside the root.
    if directory {
        return make_directory(at, last);
    }
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let mode = Mode::from_bits_truncate(0o644);
    match openat(Some(at.as_raw_fd()), last, flags, mode) {
        Ok(file) => drop(fd::adopt(file)?),
        Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    Ok(())
}

fn make_directory(at: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match mkdirat(Some(at.as_raw_fd()), name, Mode::from_bits_truncate(0o755)) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn open_below(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    let path = cstring("target", path).map_err(io::Error::other)?;
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    fd::openat2(root, &path, flags, RESOLVE_IN_ROOT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_made_inside_the_root_and_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        let outside = folder.path().join("outside");
        std::fs::create_dir_all(root.join("real")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::os::unix::fs::symlink(&outside, root.join("out")).unwrap();
        std::os::unix::fs::symlink("/real", root.join("in")).unwrap();
        let fd = fd::open_inherited(
            &cstring("root", &root).unwrap(),
            libc::O_PATH | libc::O_CLOEXEC,
        )
        .unwrap();
        make(fd.as_fd(), Path::new("/a/b/file"), false).unwrap();
        make(fd.as_fd(), Path::new("/a/b/dir"), true).unwrap();
        make(fd.as_fd(), Path::new("/in/dir"), true).unwrap();
        make(fd.as_fd(), Path::new("/"), true).unwrap();
        assert!(root.join("a/b/file").is_file() && root.join("a/b/dir").is_dir());
        assert!(root.join("real/dir").is_dir());
        make(fd.as_fd(), Path::new("/out/dir"), true).unwrap_err();
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    }
}
