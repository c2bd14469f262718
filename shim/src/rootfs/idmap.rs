//! Mounts whose owners are shifted, for containers with a user namespace: the options `uidmap=`
//! and `gidmap=`, each `INSIDE:OUTSIDE:LENGTH`, several separated by commas.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};

use crate::sys;

/// How owners are shifted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Maps {
    /// `uidmap=`, as it came.
    pub(super) uid: String,
    /// `gidmap=`, as it came.
    pub(super) gid: String,
}

impl Maps {
    /// None when there is nothing to shift.
    pub(super) fn user_namespace(&self) -> io::Result<Option<OwnedFd>> {
        if self.uid.is_empty() && self.gid.is_empty() {
            return Ok(None);
        }
        let (uid, gid) = (for_kernel(&self.uid)?, for_kernel(&self.gid)?);
        sys::user_namespace(&uid, &gid).map(Some)
    }
}

/// The text of `/proc/PID/uid_map` for a map of the options; user_namespaces(7).
fn for_kernel(map: &str) -> io::Result<String> {
    let invalid = || {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{map:?} is no id map: write it as INSIDE:OUTSIDE:LENGTH, and both maps"),
        )
    };
    let mut text = String::new();
    for part in map.split(',') {
        let numbers: Vec<u32> = part
            .split(':')
            .map(|number| number.parse().map_err(|_| invalid()))
            .collect::<Result<_, _>>()?;
        let [inside, outside, length] = numbers[..] else {
            return Err(invalid());
        };
        text.push_str(&format!("{inside} {outside} {length}\n"));
    }
    Ok(text)
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Mounts `source` on `target` once more, shifted.
pub(super) fn mount(source: &Path, target: &Path, user: &OwnedFd) -> io::Result<()> {
    sys::mount_shifted(&c_path(source)?, &c_path(target)?, user.as_fd())
}

/// Shifted views of overlay's layers. The overlay keeps its own hold on them, so they are needed
/// only while it is being mounted; dropped, they go.
#[derive(Debug)]
pub(super) struct Layers {
    folder: PathBuf,
    made: Vec<PathBuf>,
}

impl Layers {
    /// Makes a view of each of `layers` below `folder`, which must not exist yet.
    pub(super) fn new(layers: &[&str], folder: PathBuf, user: &OwnedFd) -> io::Result<Self> {
        std::fs::create_dir(&folder)?;
        let mut views = Self {
            folder,
            made: Vec::new(),
        };
        for (number, layer) in layers.iter().enumerate() {
            let view = views.folder.join(number.to_string());
            std::fs::create_dir(&view)?;
            views.made.push(view.clone());
            mount(Path::new(layer), &view, user)?;
        }
        Ok(views)
    }

    /// The views, as overlay's option has them.
    pub(super) fn option(&self) -> String {
        let paths: Vec<String> = self
            .made
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        format!("lowerdir={}", paths.join(":"))
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        for view in &self.made {
            // EINVAL: the one that could not be mounted.
            let _ = umount2(view, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
            if let Err(error) = std::fs::remove_dir(view) {
                log::warn!("remove {}: {error}", view.display());
            }
        }
        if let Err(error) = std::fs::remove_dir(&self.folder) {
            log::warn!("remove {}: {error}", self.folder.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_written_as_the_kernel_wants_them() {
        assert_eq!(
            for_kernel("0:1000:10,10:5000:1").unwrap(),
            "0 1000 10\n10 5000 1\n"
        );
        for wrong in ["", "0:1", "0:1:2:3", "a:1:2", "0:1:-2"] {
            for_kernel(wrong).unwrap_err();
        }
        assert!(Maps::default().user_namespace().unwrap().is_none());
    }
}
