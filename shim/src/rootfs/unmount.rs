//! Undoing mounts: everything below a root file system, whoever made it, at any time and twice.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::holders::holders;
use super::{BUSY_PAUSE, RootfsError};

/// Mount points at and below `root`, deepest last-made first.
pub(super) fn mounts_below(root: &Path) -> Result<Vec<PathBuf>, RootfsError> {
    mounts_in("/proc/self/mountinfo", root).map_err(RootfsError::Mountinfo)
}

/// As [`mounts_below`], for the process whose mountinfo it is.
pub(crate) fn mounts_in(mountinfo: &str, root: &Path) -> io::Result<Vec<PathBuf>> {
    let text = std::fs::read_to_string(mountinfo)?;
    let mut found: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|field| PathBuf::from(unescape(field)))
        .filter(|path| path.starts_with(root))
        .collect();
    found.reverse();
    found.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    Ok(found)
}

/// Undoes the kernel's octal escapes (`\040` for a space).
fn unescape(field: &str) -> String {
    let mut out = Vec::with_capacity(field.len());
    let mut bytes = field.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        let value = bytes.by_ref().take(3).fold(0u32, |value, digit| {
            value * 8 + u32::from(digit.wrapping_sub(b'0'))
        });
        out.push(u8::try_from(value).unwrap_or(b'?'));
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Unmounts everything at and below `rootfs`; nothing there is success. What is still busy
/// after `busy_limit` is detached, and its holders are returned, to be logged.
///
/// # Errors
/// [`RootfsError`].
pub(crate) fn unmount_all(rootfs: &Path, busy_limit: Duration) -> Result<Vec<String>, RootfsError> {
    let root = match std::fs::canonicalize(rootfs) {
        Ok(root) => root,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        // A mount whose server is gone cannot be looked at; its name is good enough.
        Err(_) => rootfs.to_owned(),
    };
    let deadline = Instant::now() + busy_limit;
    let mut detached = Vec::new();
    for path in mounts_below(&root)? {
        loop {
            match umount2(&path, MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => break,
                Err(Errno::EBUSY) if Instant::now() < deadline => std::thread::sleep(BUSY_PAUSE),
                Err(Errno::EBUSY) => {
                    let who = holders(&path);
                    umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).map_err(
                        |errno| RootfsError::Unmount {
                            path: path.clone(),
                            source: errno.into(),
                        },
                    )?;
                    detached.push(format!(
                        "{} was busy and has been detached; held by {}",
                        path.display(),
                        who.join(", ")
                    ));
                    break;
                }
                Err(errno) => {
                    return Err(RootfsError::Unmount {
                        path,
                        source: errno.into(),
                    });
                }
            }
        }
    }
    Ok(detached)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_escapes_are_undone() {
        assert_eq!(unescape("/a\\040b\\134"), "/a b\\");
    }
}
