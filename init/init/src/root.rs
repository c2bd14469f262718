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
use crate::sys::{self, Call, EEXIST, ELOOP, ENAMETOOLONG, ENOENT, Errno};

const PATH_MAX: usize = 4096;
/// More descriptors than this are not kept open: a plan with a thousand mounts must work
/// under a soft limit of 1024 files.
const KEEP_OPEN_BELOW: i32 = 128;
/// As many links as the kernel follows in one path.
const MAX_LINKS: u32 = 40;

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
                .ok_or(Errno(ENAMETOOLONG))?
                .copy_from_slice(part);
            path.len = end;
        }
        Ok(path)
    }

    fn part(&self, range: core::ops::RangeTo<usize>) -> &[u8] {
        self.bytes.get(range).unwrap_or_default()
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
        let made = match kind {
            TargetKind::Directory => self.mkdirs(path, 0o755)?,
            TargetKind::File => self.make_file(path)?,
        };
        if !nofollow {
            return Ok(made);
        }
        // A symlink that appeared in between was followed above, but is not what is mounted on.
        release(made);
        self.open(path, flags, nofollow)
            .map_err(|errno| Fault::on(b"openat2", path.to_bytes(), errno))
    }

    /// As [`target`](Self::target), but a symlink at the end of the path is what is opened.
    pub(crate) fn last_entry(self, path: &CStr, kind: TargetKind) -> Result<i32, Fault> {
        let flags = match kind {
            TargetKind::Directory => k::O_DIRECTORY | k::O_NOFOLLOW,
            TargetKind::File => k::O_NOFOLLOW,
        };
        let open = || self.open(path, flags, false);
        match open() {
            Err(Errno(ENOENT)) => {
                release(self.target(path, kind, false)?);
                open()
            }
            opened => opened,
        }
        .map_err(|errno| Fault::on(b"openat2", path.to_bytes(), errno))
    }

    /// Makes an empty file where the path leads, and opens it: through symlinks whose own
    /// target is missing, too.
    fn make_file(self, path: &CStr) -> Result<i32, Fault> {
        let fault = |call: &'static [u8]| move |errno| Fault::on(call, path.to_bytes(), errno);
        let mut at = PathBuffer::of(&[path.to_bytes()]).map_err(fault(b"path"))?;
        for _ in 0..=MAX_LINKS {
            let (dir, name) = self.parent(at.as_cstr())?;
            match sys::mknodat(dir, name, k::S_IFREG | 0o644, 0) {
                Ok(()) | Err(Errno(EEXIST)) => {}
                Err(errno) => return Err(fault(b"mknodat")(errno)),
            }
            match self.open(at.as_cstr(), 0, false) {
                Ok(fd) => return Ok(fd),
                // Something is there, and leads to nothing.
                Err(Errno(ENOENT)) => {}
                Err(errno) => return Err(fault(b"openat2")(errno)),
            }
            let head = at.len - name.to_bytes().len();
            let next = beyond(dir, name, at.part(..head), &[]).map_err(fault(b"readlinkat"))?;
            at = next;
        }
        Err(fault(b"openat2")(Errno(ELOOP)))
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

    /// `mkdir -p`: finds the longest prefix that exists and goes down from there. A symlink
    /// whose target is missing is followed inside the root, and the target made.
    pub(crate) fn mkdirs(self, path: &CStr, mode: u32) -> Result<i32, Fault> {
        let fault = |call: &'static [u8]| move |errno| Fault::on(call, path.to_bytes(), errno);
        let mut at = PathBuffer::of(&[path.to_bytes()]).map_err(fault(b"path"))?;
        for _ in 0..=MAX_LINKS {
            match self.descend(at.as_cstr(), mode)? {
                Descent::There(dir) => return Ok(dir),
                Descent::Link(beyond) => at = beyond,
            }
        }
        Err(fault(b"mkdirat")(Errno(ELOOP)))
    }

    fn descend(self, path: &CStr, mode: u32) -> Result<Descent, Fault> {
        let whole = path.to_bytes();
        let fault = |call: &'static [u8]| move |errno| Fault::on(call, whole, errno);
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
            let prefix = PathBuffer::of(&[head]).map_err(fault(b"path"))?;
            match self.open(prefix.as_cstr(), k::O_DIRECTORY, false) {
                Ok(fd) => break fd,
                Err(Errno(ENOENT)) => {}
                Err(errno) => return Err(Fault::on(b"openat2", head, errno)),
            }
        };
        while let Some(part) = whole.get(end..).filter(|part| !part.is_empty()) {
            let len = part.iter().position(|b| *b == b'/').unwrap_or(part.len());
            let start = end;
            end += len.max(1);
            let name = match part.get(..len) {
                None | Some(b"" | b".") => continue,
                Some(name) => name,
            };
            let name = PathBuffer::of(&[name]).map_err(fault(b"path"))?;
            let next = if name.as_cstr() == c".." {
                // What is above is known to the kernel only; the prefix exists by now.
                let prefix = PathBuffer::of(&[whole.get(..end).unwrap_or_default()])
                    .map_err(fault(b"path"))?;
                self.open(prefix.as_cstr(), k::O_DIRECTORY, false)
            } else {
                match sys::mkdirat(dir, name.as_cstr(), mode) {
                    Ok(()) | Err(Errno(EEXIST)) => {}
                    Err(errno) => return Err(fault(b"mkdirat")(errno)),
                }
                let resolve = k::RESOLVE_BENEATH | k::RESOLVE_NO_SYMLINKS;
                sys::openat2(dir, name.as_cstr(), k::O_PATH | k::O_DIRECTORY, resolve)
            };
            let next = match next {
                Ok(next) => next,
                Err(Errno(ELOOP)) => {
                    let (head, rest) = (whole.get(..start), whole.get(end..));
                    let rest = rest.unwrap_or_default();
                    return beyond(dir, name.as_cstr(), head.unwrap_or_default(), rest)
                        .map(Descent::Link)
                        .map_err(fault(b"readlinkat"));
                }
                Err(errno) => return Err(fault(b"openat2")(errno)),
            };
            if dir != self.dir {
                release(dir);
            }
            dir = next;
        }
        Ok(Descent::There(dir))
    }
}

/// How far [`Root::descend`] came.
#[expect(
    clippy::large_enum_variant,
    reason = "there is no allocator to box the path with, and at most one of these is alive"
)]
enum Descent {
    /// The directory is there.
    There(i32),
    /// A symlink was in the way; this path leads past it.
    Link(PathBuffer),
}

/// The path that a symlink `name` in `dir` stands for: `head` is the path of `dir`, `rest`
/// what follows the link.
fn beyond(dir: i32, name: &CStr, head: &[u8], rest: &[u8]) -> Call<PathBuffer> {
    let mut buffer = [0; PATH_MAX];
    let len = sys::readlinkat(dir, name, &mut buffer)?;
    let content = buffer.get(..len).unwrap_or_default();
    if content.first() == Some(&b'/') {
        PathBuffer::of(&[content, rest])
    } else {
        PathBuffer::of(&[head, b"/", content, rest])
    }
}

/// Closes a descriptor when there are many; execve closes the rest.
pub(crate) fn release(fd: i32) {
    if fd >= KEEP_OPEN_BELOW {
        sys::close(fd);
    }
}
