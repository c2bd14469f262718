//! One directory of a cgroup file system: everything is read and written relative to it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::error::{Error, Hint, Result};
use crate::sys;

/// A cgroup directory, opened when it first pays.
///
/// A file is opened relative to the directory's fd once that is open, and by its full path before: a hierarchy
/// in which only `cgroup.procs` is written then costs no open of the directory. Both name the same file: no
/// symlink can exist in a cgroup file system, and the path above the container's cgroup belongs to root.
#[derive(Debug)]
pub(crate) struct Dir {
    path: PathBuf,
    fd: OnceLock<OwnedFd>,
}

impl Dir {
    pub(crate) fn at(path: PathBuf) -> Self {
        Self {
            path,
            fd: OnceLock::new(),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The fd of the directory, opened now if it was not.
    pub(crate) fn fd(&self) -> Result<BorrowedFd<'_>> {
        if let Some(fd) = self.fd.get() {
            return Ok(fd.as_fd());
        }
        let fd = sys::open(None, &self.path, libc::O_RDONLY | libc::O_DIRECTORY)
            .map_err(Error::io("open directory", &self.path))?;
        // Lost a race against another thread: its fd is as good, ours is closed.
        Ok(self.fd.get_or_init(|| fd).as_fd())
    }

    /// Opens a file of this directory.
    pub(crate) fn open(&self, name: &str, flags: libc::c_int) -> io::Result<OwnedFd> {
        match self.fd.get() {
            Some(fd) => sys::open(Some(fd.as_fd()), Path::new(name), flags),
            None => sys::open(None, &self.path.join(name), flags),
        }
    }

    /// Writes `value` in one write(2), the errno left as it is.
    pub(crate) fn try_write(&self, name: &str, value: &str) -> io::Result<()> {
        let fd = self.open(name, libc::O_WRONLY)?;
        sys::write_once(fd.as_fd(), value.as_bytes())
    }

    /// Writes `value` in one write(2).
    pub(crate) fn write(&self, name: &str, value: &str) -> Result<()> {
        self.try_write(name, value)
            .map_err(|source| self.refused(name, value, source))
    }

    /// The error for a refused write.
    pub(crate) fn refused(&self, name: &str, value: &str, source: io::Error) -> Error {
        Error::Write {
            file: self.path.join(name),
            value: value.to_owned(),
            hint: Hint::default(),
            source,
        }
    }

    /// The whole text of a file.
    pub(crate) fn read(&self, name: &str) -> Result<String> {
        self.try_read(name)
            .map_err(Error::io("read", self.path.join(name)))
    }

    /// The whole text of a file, the errno left as it is.
    pub(crate) fn try_read(&self, name: &str) -> io::Result<String> {
        let fd = self.open(name, libc::O_RDONLY)?;
        read_all(fd.as_fd())
    }

    /// The names of the cgroups directly below.
    pub(crate) fn children(&self) -> io::Result<Vec<String>> {
        // kernfs counts subdirectories in the link count: most cgroups have none, and one fstat says so.
        if let Some(fd) = self.fd.get()
            && sys::link_count(fd.as_fd()) == Some(2)
        {
            return Ok(Vec::new());
        }
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                // cgroup names are bytes; one that is not UTF-8 cannot have been made by a sane program, and
                // leaving it out shows up as EBUSY with its parent's name.
                if let Ok(name) = entry.file_name().into_string() {
                    names.push(name);
                }
            }
        }
        Ok(names)
    }

    /// The directory and all below it, parents before children. What vanishes meanwhile is left out.
    pub(crate) fn walk(&self) -> io::Result<Vec<PathBuf>> {
        let mut found = vec![self.path.clone()];
        let mut next = 0;
        let mut names = self.children()?;
        loop {
            for name in names.drain(..) {
                if let Some(parent) = found.get(next) {
                    found.push(parent.join(name));
                }
            }
            next += 1;
            let Some(path) = found.get(next) else {
                return Ok(found);
            };
            let child = Self::at(path.clone());
            // Pinning makes the link count usable: fstat instead of reading a directory of fifty files.
            names = match child.fd() {
                Ok(_) => match child.children() {
                    Ok(names) => names,
                    Err(error) if gone(&error) => Vec::new(),
                    Err(error) => return Err(error),
                },
                Err(error) if error.is_gone() => Vec::new(),
                Err(Error::Io { source, .. }) => return Err(source),
                Err(_) => Vec::new(),
            };
        }
    }
}

/// True for the two errnos of a cgroup that was removed.
pub(crate) fn gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

/// Reads a file of one record to its end: a read that leaves room in the buffer was the last.
///
/// That holds for regular files and for all files of cgroupfs and /proc that are made by one `seq_show`, which are all
/// this crate reads but `cgroup.procs` and mountinfo. It saves a call for each file.
pub(crate) fn read_all(fd: BorrowedFd<'_>) -> io::Result<String> {
    read_until(fd, |read, room| read < room)
}

/// Reads a file of many records to its end: those come a page at a time, and only an empty read is the end.
pub(crate) fn read_records(fd: BorrowedFd<'_>) -> io::Result<String> {
    read_until(fd, |read, _| read == 0)
}

fn read_until(fd: BorrowedFd<'_>, end: impl Fn(usize, usize) -> bool) -> io::Result<String> {
    let mut bytes = vec![0_u8; 4096];
    let mut filled = 0;
    loop {
        if bytes.len() - filled < 4096 {
            bytes.resize(bytes.len() * 2, 0);
        }
        let room = bytes.get_mut(filled..).unwrap_or_default();
        let length = room.len();
        let n = sys::read_at(fd, room, filled)?;
        filled += n;
        if end(n, length) {
            break;
        }
    }
    bytes.truncate(filled);
    String::from_utf8(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_with_and_without_an_open_directory() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("a"), "x").unwrap();
        let dir = Dir::at(root.path().to_owned());
        assert_eq!(dir.read("a").unwrap(), "x");
        dir.fd().unwrap();
        dir.write("a", "y").unwrap();
        assert_eq!(dir.read("a").unwrap(), "y");
        let error = dir.write("b", "z").unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOENT));
        assert!(
            !root.path().join("b").exists(),
            "a write must never create a file"
        );
    }

    #[test]
    fn long_files_are_read_whole() {
        let root = tempfile::tempdir().unwrap();
        let text = "0123456789abcdef\n".repeat(3000);
        std::fs::write(root.path().join("a"), &text).unwrap();
        let dir = Dir::at(root.path().to_owned());
        assert_eq!(dir.read("a").unwrap(), text);
        let fd = dir.open("a", libc::O_RDONLY).unwrap();
        assert_eq!(read_records(fd.as_fd()).unwrap(), text);
    }

    #[test]
    fn a_walk_has_parents_before_children() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("a/b/c")).unwrap();
        std::fs::create_dir_all(root.path().join("d")).unwrap();
        std::fs::write(root.path().join("file"), "").unwrap();
        let found = Dir::at(root.path().to_owned()).walk().unwrap();
        assert_eq!(found.len(), 5);
        for path in found.iter().skip(1) {
            let parent = path.parent().unwrap();
            let mine = found.iter().position(|p| p == path).unwrap();
            let parents = found.iter().position(|p| p == parent).unwrap();
            assert!(parents < mine);
        }
    }
}
