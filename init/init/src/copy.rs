//! Copying what a tmpfs covers into it (`tmpcopyup`).
//!
//! Source and copy are walked by descriptor, one name at a time and never through a symlink:
//! what another container changes in a shared root file system meanwhile leads nowhere else.

use core::ffi::CStr;

use linux_raw_sys::general as k;

use crate::fault::{Done, Fault};
use crate::steps::State;
use crate::sys::{self, Call, EINVAL, ELOOP, ENOENT, EOPNOTSUPP, EPERM, Entry, Errno};

/// Folders inside folders; each level holds two descriptors.
const MAX_DEPTH: u32 = 128;
/// The longest extended attribute that is copied; access lists and capabilities are far shorter.
const MAX_ATTRIBUTE: usize = 4096;

impl State {
    /// Holds the directory at `path`, so that it can be read when something is mounted over it.
    pub(crate) fn keep_below(&mut self, path: &CStr) -> Done {
        let root = self.root()?.dir();
        let resolve = k::RESOLVE_IN_ROOT | k::RESOLVE_NO_MAGICLINKS;
        self.below = match sys::openat2(root, path, k::O_RDONLY | k::O_DIRECTORY, resolve) {
            Ok(dir) => Some(dir),
            // Nothing to copy: the mount makes the directory.
            Err(Errno(ENOENT)) => None,
            Err(errno) => return Err(Fault::on(b"openat2", path.to_bytes(), errno)),
        };
        Ok(())
    }

    /// Copies what [`State::keep_below`] held to `target`; with `attributes` the owner, mode
    /// and times of the directory itself, too.
    pub(crate) fn copy_up(&mut self, target: &CStr, attributes: bool) -> Done {
        let Some(from) = self.below.take() else {
            return Ok(());
        };
        let root = self.root()?.dir();
        let resolve = k::RESOLVE_IN_ROOT | k::RESOLVE_NO_MAGICLINKS;
        let to = sys::openat2(root, target, k::O_RDONLY | k::O_DIRECTORY, resolve)
            .map_err(|errno| Fault::on(b"openat2", target.to_bytes(), errno))?;
        directory(from, to, 0)?;
        if attributes {
            let fault = |call: &'static [u8]| move |e| Fault::on(call, target.to_bytes(), e);
            let entry = sys::entry(from, c"").map_err(fault(b"statx"))?;
            owner_and_mode(to, &entry).map_err(fault(b"fchown, fchmod"))?;
            sys::set_times(to, None, &entry).map_err(fault(b"utimensat"))?;
        }
        sys::close(from);
        sys::close(to);
        Ok(())
    }
}

fn directory(from: i32, to: i32, depth: u32) -> Done {
    if depth > MAX_DEPTH {
        return Err(Fault::on(b"copy", b"folders deeper than 128", Errno(ELOOP)));
    }
    let mut buffer = [0; 2048];
    loop {
        let len =
            sys::getdents(from, &mut buffer).map_err(|errno| Fault::call(b"getdents64", errno))?;
        if len == 0 {
            return Ok(());
        }
        let mut rest = buffer.get(..len).unwrap_or_default();
        while let Some((name, next)) = entry_name(rest) {
            rest = next;
            if name != c"." && name != c".." {
                one(from, to, name, depth)?;
            }
        }
    }
}

/// The name of the first `struct linux_dirent64`, and what follows it: inode and offset take 16
/// bytes, then come the record's length (2) and the type (1).
fn entry_name(records: &[u8]) -> Option<(&CStr, &[u8])> {
    let len = u16::from_ne_bytes(records.get(16..18)?.try_into().ok()?);
    let name = CStr::from_bytes_until_nul(records.get(19..usize::from(len))?).ok()?;
    Some((name, records.get(usize::from(len)..)?))
}

fn one(from: i32, to: i32, name: &CStr, depth: u32) -> Done {
    let fault = |call: &'static [u8]| move |errno| Fault::on(call, name.to_bytes(), errno);
    let entry = sys::entry(from, name).map_err(fault(b"statx"))?;
    let resolve = k::RESOLVE_BENEATH | k::RESOLVE_NO_SYMLINKS;
    match entry.mode & k::S_IFMT {
        k::S_IFDIR => {
            sys::mkdirat(to, name, 0o700).map_err(fault(b"mkdirat"))?;
            let flags = k::O_RDONLY | k::O_DIRECTORY;
            let source = sys::openat2(from, name, flags, resolve).map_err(fault(b"openat2"))?;
            let copy = sys::openat2(to, name, flags, resolve).map_err(fault(b"openat2"))?;
            directory(source, copy, depth + 1)?;
            owner_and_mode(copy, &entry).map_err(fault(b"fchown, fchmod"))?;
            attributes(source, copy).map_err(fault(b"fsetxattr"))?;
            sys::close(source);
            sys::close(copy);
        }
        k::S_IFREG => {
            let flags = k::O_RDONLY | k::O_NONBLOCK;
            let source = sys::openat2(from, name, flags, resolve).map_err(fault(b"openat2"))?;
            let copy = sys::create(to, name).map_err(fault(b"openat"))?;
            while sys::sendfile(copy, source).map_err(fault(b"sendfile"))? > 0 {}
            // Last: a change of the owner takes away the capabilities and set-user-ID.
            owner_and_mode(copy, &entry).map_err(fault(b"fchown, fchmod"))?;
            attributes(source, copy).map_err(fault(b"fsetxattr"))?;
            sys::close(source);
            sys::close(copy);
        }
        k::S_IFLNK => {
            link(from, to, name).map_err(fault(b"readlinkat, symlinkat"))?;
            sys::chownat(to, name, entry.uid, entry.gid).map_err(fault(b"fchownat"))?;
        }
        _ => {
            sys::mknodat(to, name, entry.mode, entry.device).map_err(fault(b"mknodat"))?;
            sys::chownat(to, name, entry.uid, entry.gid).map_err(fault(b"fchownat"))?;
        }
    }
    sys::set_times(to, Some(name), &entry).map_err(fault(b"utimensat"))
}

/// Not inlined: its buffer is not wanted in every level of [`directory`].
#[inline(never)]
fn link(from: i32, to: i32, name: &CStr) -> Call<()> {
    let mut buffer = [0; 4096];
    let len = sys::readlinkat(from, name, &mut buffer)?;
    // A link's content is shorter than the buffer, so a NUL is left.
    let content = buffer
        .get(..=len)
        .and_then(|bytes| CStr::from_bytes_until_nul(bytes).ok())
        .ok_or(Errno(EINVAL))?;
    sys::symlinkat(content, to, name)
}

fn owner_and_mode(copy: i32, entry: &Entry) -> Call<()> {
    if (entry.uid, entry.gid) != (0, 0) {
        sys::fchown_both(copy, entry.uid, entry.gid)?;
    }
    sys::fchmod(copy, entry.mode & 0o7777)
}

/// Extended attributes: access lists, file capabilities, and what users keep there.
#[inline(never)]
fn attributes(from: i32, to: i32) -> Call<()> {
    let mut names = [0; MAX_ATTRIBUTE];
    let len = match sys::flistxattr(from, &mut names) {
        Ok(len) => len,
        Err(Errno(EOPNOTSUPP)) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    let mut rest = names.get(..len).unwrap_or_default();
    while let Ok(name) = CStr::from_bytes_until_nul(rest) {
        rest = rest.get(name.count_bytes() + 1..).unwrap_or_default();
        // The new mount has a label of its own.
        if name == c"security.selinux" {
            continue;
        }
        let mut value = [0; MAX_ATTRIBUTE];
        let len = sys::fgetxattr(from, name, &mut value)?;
        match sys::fsetxattr(to, name, value.get(..len).unwrap_or_default()) {
            // What tmpfs of this kernel, or nobody in a user namespace, can have.
            Ok(()) | Err(Errno(EOPNOTSUPP | EPERM)) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
