//! The mounts that containerd hands over with Create, and their undoing.
//!
//! Runs on a blocking thread: mount(2) and umount(2) on a dead server can take for ever, and
//! only their own container may wait for it.

mod holders;
mod idmap;
mod loop_device;
mod options;
mod overlay;
mod unmount;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_shim_protos::api::Mount;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

pub(crate) use unmount::{mounts_in, unmount_all};

/// How long a busy mount is tried again before its holders are named and it is detached.
pub(crate) const BUSY_LIMIT: Duration = Duration::from_millis(2500);
/// Pause between two tries; the kernel has no event for "no longer busy".
const BUSY_PAUSE: Duration = Duration::from_millis(50);
/// Options that containerd keeps for itself.
const OURS: &str = "X-containerd.";

/// A mount could not be made or undone.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootfsError {
    /// mount(2).
    #[error("mount {kind} {origin} on {target} (options {options:?})")]
    Mount {
        /// File system type.
        kind: String,
        /// Source.
        origin: String,
        /// Where to.
        target: PathBuf,
        /// As given.
        options: Vec<String>,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// Owners could not be shifted.
    #[error(
        "mount: shift the owners of {origin} on {target} by {maps}; the file system below has to \
         support idmapped mounts"
    )]
    Shift {
        /// Source.
        origin: String,
        /// Where to.
        target: PathBuf,
        /// The id maps.
        maps: String,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// A loop device.
    #[error("mount: put the image {image} behind a loop device")]
    Loop {
        /// The image.
        image: PathBuf,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// The target directory.
    #[error("mount: the target {path}")]
    Target {
        /// The path.
        path: PathBuf,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// /proc/self/mountinfo.
    #[error("read /proc/self/mountinfo")]
    Mountinfo(#[source] io::Error),
    /// umount(2).
    #[error("failed rootfs umount: {path}")]
    Unmount {
        /// The mount point.
        path: PathBuf,
        /// The errno.
        #[source]
        source: io::Error,
    },
}

/// Mounts `mounts` in order below `rootfs`; undoes all of it when one fails.
///
/// # Errors
/// [`RootfsError`].
pub(crate) fn mount_all(mounts: &[Mount], rootfs: &Path) -> Result<(), RootfsError> {
    for one in mounts {
        if let Err(error) = mount_one(one, rootfs) {
            if let Err(undo) = unmount_all(rootfs, BUSY_LIMIT) {
                log::error!("undo the mounts below {}: {undo}", rootfs.display());
            }
            return Err(error);
        }
    }
    Ok(())
}

/// The program that makes a mount which the kernel cannot make by itself, and its arguments;
/// none for all others. As mount.fuse(8) has it: `fuse3.fuse-overlayfs` is made by `mount.fuse3`
/// with `-t fuse-overlayfs`.
pub(crate) fn helper(one: &Mount, rootfs: &Path) -> Option<(&'static str, Vec<OsString>)> {
    let (program, kind) = if let Some(kind) = one.type_.strip_prefix("fuse3.") {
        ("mount.fuse3", kind)
    } else {
        ("mount.fuse", one.type_.strip_prefix("fuse.")?)
    };
    let target = target(one, rootfs).ok()?;
    let mut arguments = vec![OsString::from(&one.source), target.into()];
    for option in &one.options {
        if !option.starts_with(OURS) {
            arguments.extend(["-o".into(), option.into()]);
        }
    }
    arguments.extend(["-t".into(), kind.into()]);
    Some((program, arguments))
}

/// Where a mount goes; made when it is not there.
fn target(one: &Mount, rootfs: &Path) -> Result<PathBuf, RootfsError> {
    let target = if one.target.is_empty() {
        rootfs.to_owned()
    } else {
        below(rootfs, &one.target)?
    };
    if !target.exists() {
        std::fs::create_dir_all(&target).map_err(|source| RootfsError::Target {
            path: target.clone(),
            source,
        })?;
    }
    Ok(target)
}

fn mount_one(one: &Mount, rootfs: &Path) -> Result<(), RootfsError> {
    let target = target(one, rootfs)?;
    let mut parsed = options::parse(&one.options);
    let maps = parsed.maps.clone();
    let shift = |source: io::Error| RootfsError::Shift {
        origin: one.source.clone(),
        target: target.clone(),
        maps: format!("{} and {}", maps.uid, maps.gid),
        source,
    };
    let user = maps.user_namespace().map_err(shift)?;
    let is_overlay = one.type_ == "overlay";
    // Overlay itself cannot be shifted, its layers can.
    let layers = match &user {
        Some(user) if is_overlay => {
            Some(overlay::shift_layers(&mut parsed, rootfs, user).map_err(shift)?)
        }
        Some(_) | None => None,
    };
    let failed = |errno: Errno| RootfsError::Mount {
        kind: one.type_.clone(),
        origin: one.source.clone(),
        target: target.clone(),
        options: one.options.clone(),
        source: errno.into(),
    };
    let device = if parsed.image {
        let read_only = parsed.flags.contains(MsFlags::MS_RDONLY);
        let device = loop_device::attach(Path::new(&one.source), read_only).map_err(|source| {
            RootfsError::Loop {
                image: PathBuf::from(&one.source),
                source,
            }
        })?;
        Some(device)
    } else {
        None
    };
    let origin = device
        .as_ref()
        .map_or(Path::new(&one.source), |device| &device.path);
    let data = parsed.data.join(",");
    let first = parsed.flags
        - if parsed.flags.contains(MsFlags::MS_BIND) {
            MsFlags::MS_RDONLY
        } else {
            MsFlags::empty()
        };
    if is_overlay && data.len() > overlay::MAX_OPTIONS {
        overlay::mount_long(&parsed, &target).map_err(failed)?;
    } else {
        let kind =
            (!matches!(one.type_.as_str(), "bind" | "rbind" | "")).then_some(one.type_.as_str());
        let first = if kind.is_none() {
            first | MsFlags::MS_BIND
        } else {
            first
        };
        let data = (!data.is_empty()).then_some(data.as_str());
        mount(Some(origin), &target, kind, first, data).map_err(failed)?;
    }
    drop(layers);
    if let Some(user) = user.filter(|_| !is_overlay) {
        // On top of the plain one; both go at the end.
        idmap::mount(&target, &target, &user).map_err(shift)?;
    }
    // A bind mount takes its flags only from a second call.
    let changes = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    if parsed.flags.contains(MsFlags::MS_BIND) && parsed.flags.intersects(changes) {
        let again = (parsed.flags - MsFlags::MS_REC) | MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
        mount(None::<&str>, &target, None::<&str>, again, None::<&str>).map_err(failed)?;
    }
    if !parsed.propagation.is_empty() {
        mount(
            None::<&str>,
            &target,
            None::<&str>,
            parsed.propagation,
            None::<&str>,
        )
        .map_err(failed)?;
    }
    Ok(())
}

/// `target` below `root`, refusing what would leave it.
fn below(root: &Path, target: &str) -> Result<PathBuf, RootfsError> {
    let relative = target.trim_start_matches('/');
    if Path::new(relative)
        .components()
        .any(|part| matches!(part, std::path::Component::ParentDir))
    {
        return Err(RootfsError::Target {
            path: target.into(),
            source: io::Error::from_raw_os_error(libc::EINVAL),
        });
    }
    Ok(root.join(relative))
}

#[cfg(test)]
#[path = "rootfs/tests.rs"]
mod tests;
