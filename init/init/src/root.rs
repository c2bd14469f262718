//! Paths inside the container's root.
//!
//! Every path goes through `openat2(RESOLVE_IN_ROOT)`: a symlink in the image, or one
//! that another container swaps in while we look, cannot lead outside
//! (CVE-2021-30465, CVE-2023-27561, CVE-2026-41579). What is missing is created below a
//! directory that is already held by descriptor (CVE-2024-45310).

use core::ffi::CStr;

use holdfast_plan::TargetKind;
use linux_raw_sys::general as k;

use crate::fault::Fault;
use crate::sys::{self, Call, EEXIST, ENOENT, Errno};

const PATH_MAX: usize = 4096;
/// More descriptors than this are not kept open: a plan with a thousand mounts must work
/// under a soft limit of 1024 files.
const KEEP_OPEN_BELOW: i32 = 128;

/// A path in a buffer of our own, to cut prefixes off.
pub(crate) struct PathBuffer {
    bytes: [u8; PATH_MAX],
    len: usize,
}

impl PathBuffer {
    /// Joins the parts without adding separators.
    pub(crate) fn of(parts: &[&[u8]]) -> Call<Self> {
        let mut path = Self {
            bytes: [0; PATH_MAX],
            len: 0,
        };
        for part in parts {
            let end = path.len + part.len();
            let room = path.bytes.get_mut(path.len..end);
            // One byte stays for the NUL.
            room.filter(|_| end < PATH_MAX)
                .ok_or(Errno(36))?
                .copy_from_slice(part);
            path.len = end;
        }
        Ok(path)
    }

    pub(crate) fn as_cstr(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or(c"")
    }
}

/// The directory that paths are resolved in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Root {
    dir: i32,
}

impl Root {
    pub(crate) fn new(dir: i32) -> Self {
        Self { dir }
    }

    pub(crate) fn dir(self) -> i32 {
        self.dir
    }

    /// Opens an existing path as `O_PATH`; with `nofollow`, without any symlink on the way.
    pub(crate) fn open(self, path: &CStr, flags: u32, nofollow: bool) -> Call<i32> {
        let mut resolve = k::RESOLVE_IN_ROOT | k::RESOLVE_NO_MAGICLINKS;
        if nofollow {
            resolve |= k::RESOLVE_NO_SYMLINKS;
        }
        sys::openat2(self.dir, path, k::O_PATH | flags, resolve)
    }

    /// Opens a mount target, creating it when it is missing.
    pub(crate) fn target(
        self,
        path: &CStr,
        kind: TargetKind,
        nofollow: bool,
    ) -> Result<i32, Fault> {
        let flags = match kind {
            TargetKind::Directory => k::O_DIRECTORY,
            TargetKind::File => 0,
        };
        match self.open(path, flags, nofollow) {
            Ok(fd) => return Ok(fd),
            Err(Errno(ENOENT)) => {}
            Err(errno) => return Err(Fault::on(b"openat2", path.to_bytes(), errno)),
        }
        match kind {
            TargetKind::Directory => return self.mkdirs(path, 0o755),
            TargetKind::File => {
                let (parent, name) = self.parent(path)?;
                match sys::mknodat(parent, name, k::S_IFREG | 0o644, 0) {
                    Ok(()) | Err(Errno(EEXIST)) => {}
                    Err(errno) => return Err(Fault::on(b"mknodat", path.to_bytes(), errno)),
                }
            }
        }
        self.open(path, flags, nofollow)
            .map_err(|errno| Fault::on(b"openat2", path.to_bytes(), errno))
    }

    /// The directory that holds the last component, made when missing, and that component.
    pub(crate) fn parent(self, path: &CStr) -> Result<(i32, &CStr), Fault> {
        let bytes = path.to_bytes_with_nul();
        let slash = bytes.iter().rposition(|b| *b == b'/');
        let (dir, name) = match slash {
            Some(at) => bytes.split_at(at + 1),
            None => (&[][..], bytes),
        };
        let name = CStr::from_bytes_with_nul(name).unwrap_or(c"");
        if name.is_empty() || name == c"." || name == c".." {
            return Err(Fault::on(
                b"a name is needed, not",
                path.to_bytes(),
                Errno(0),
            ));
        }
        if dir.is_empty() || dir == b"/" {
            return Ok((self.dir, name));
        }
        let dir = PathBuffer::of(&[dir]).map_err(|e| Fault::on(b"path", path.to_bytes(), e))?;
        let fd = self.target(dir.as_cstr(), TargetKind::Directory, false)?;
        Ok((fd, name))
    }

    /// `mkdir -p`: finds the longest prefix that exists and goes down from there.
    pub(crate) fn mkdirs(self, path: &CStr, mode: u32) -> Result<i32, Fault> {
        let whole = path.to_bytes();
        let mut end = whole.len();
        let mut dir = loop {
            end = whole
                .get(..end)
                .and_then(|head| head.iter().rposition(|b| *b == b'/'))
                .unwrap_or(0);
            let head = whole.get(..end).unwrap_or_default();
            if head.iter().all(|b| *b == b'/') {
                break self.dir;
            }
            let prefix =
                PathBuffer::of(&[head]).map_err(|errno| Fault::on(b"path", whole, errno))?;
            match self.open(prefix.as_cstr(), k::O_DIRECTORY, false) {
                Ok(fd) => break fd,
                Err(Errno(ENOENT)) => {}
                Err(errno) => return Err(Fault::on(b"openat2", head, errno)),
            }
        };
        let rest = whole.get(end..).unwrap_or_default();
        for name in rest.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
            let name = PathBuffer::of(&[name]).map_err(|errno| Fault::on(b"path", whole, errno))?;
            match sys::mkdirat(dir, name.as_cstr(), mode) {
                Ok(()) | Err(Errno(EEXIST)) => {}
                Err(errno) => return Err(Fault::on(b"mkdirat", whole, errno)),
            }
            let resolve = k::RESOLVE_BENEATH | k::RESOLVE_NO_SYMLINKS;
            let next = sys::openat2(dir, name.as_cstr(), k::O_PATH | k::O_DIRECTORY, resolve)
                .map_err(|errno| Fault::on(b"openat2", whole, errno))?;
            if dir != self.dir {
                release(dir);
            }
            dir = next;
        }
        Ok(dir)
    }
}

/// Closes a descriptor when there are many; execve closes the rest.
pub(crate) fn release(fd: i32) {
    if fd >= KEEP_OPEN_BELOW {
        sys::close(fd);
    }
}
