//! Overlay, whose layers may be more than fit in a page, and may have to be shifted one by one.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use super::idmap;
use super::options::Parsed;
use crate::sys;

/// Room mount(2) leaves for options: a page, less what the kernel adds.
pub(super) const MAX_OPTIONS: usize = 4096 - 512;

/// Replaces overlay's layers by shifted views of them, in the bundle.
pub(super) fn shift_layers(
    parsed: &mut Parsed,
    rootfs: &Path,
    user: &OwnedFd,
) -> io::Result<idmap::Layers> {
    let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
    let option = parsed
        .data
        .iter_mut()
        .find(|option| option.starts_with("lowerdir="))
        .ok_or_else(invalid)?;
    let layers: Vec<&str> = option.trim_start_matches("lowerdir=").split(':').collect();
    let folder = rootfs.parent().ok_or_else(invalid)?.join(".shifted-layers");
    let views = idmap::Layers::new(&layers, folder, user)?;
    *option = views.option();
    Ok(views)
}

/// Overlay with more layers than fit in a page: one call per layer where the kernel can
/// (6.5), else relative to the directory that all layers share.
pub(super) fn mount_long(parsed: &Parsed, target: &Path) -> Result<(), Errno> {
    let lower = parsed
        .data
        .iter()
        .find_map(|option| option.strip_prefix("lowerdir="))
        .ok_or(Errno::EINVAL)?;
    let layers: Vec<&str> = lower.split(':').collect();
    let other: Vec<(String, Option<String>)> = parsed
        .data
        .iter()
        .filter(|option| !option.starts_with("lowerdir="))
        .map(|option| match option.split_once('=') {
            Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
            None => (option.clone(), None),
        })
        .collect();
    let path = CString::new(target.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    let attributes = mount_attributes(parsed.flags);
    match sys::mount_overlay_layers(&layers, &other, &path, attributes) {
        Ok(()) => return Ok(()),
        Err(error) => log::debug!("overlay layer by layer: {error}; trying relative paths"),
    }
    let common = common_directory(&layers).ok_or(Errno::EINVAL)?;
    let relative: Vec<&str> = layers
        .iter()
        .filter_map(|layer| layer.strip_prefix(common.as_str()))
        .collect();
    let mut data = vec![format!("lowerdir={}", relative.join(":"))];
    data.extend(
        parsed
            .data
            .iter()
            .filter(|option| !option.starts_with("lowerdir="))
            .cloned(),
    );
    let (data, target, flags) = (data.join(","), target.to_owned(), parsed.flags);
    // The thread gets a working directory of its own and ends with it.
    std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
        nix::unistd::chdir(common.as_str())?;
        mount(
            Some("overlay"),
            &target,
            Some("overlay"),
            flags,
            Some(data.as_str()),
        )
    })
    .join()
    .unwrap_or(Err(Errno::EIO))
}

fn mount_attributes(flags: MsFlags) -> u64 {
    let mut attributes = 0;
    for (flag, attribute) in [
        (MsFlags::MS_RDONLY, libc::MOUNT_ATTR_RDONLY),
        (MsFlags::MS_NOSUID, libc::MOUNT_ATTR_NOSUID),
        (MsFlags::MS_NODEV, libc::MOUNT_ATTR_NODEV),
        (MsFlags::MS_NOEXEC, libc::MOUNT_ATTR_NOEXEC),
    ] {
        if flags.contains(flag) {
            attributes |= attribute;
        }
    }
    attributes
}

/// The longest directory (with its slash) that all paths share.
fn common_directory(paths: &[&str]) -> Option<String> {
    let first = paths.first()?;
    let mut len = first.len();
    for path in paths {
        let same = first
            .bytes()
            .zip(path.bytes())
            .take_while(|(a, b)| a == b)
            .count();
        len = len.min(same);
    }
    let end = first.get(..len)?.rfind('/')?;
    (end > 0).then(|| first.get(..=end).unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_share_a_directory() {
        assert_eq!(
            common_directory(&["/a/b1/c", "/a/b2/c"]).as_deref(),
            Some("/a/")
        );
        assert_eq!(common_directory(&["/a", "/b"]), None);
    }
}
