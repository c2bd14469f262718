//! The mounts that containerd hands over with Create, and their undoing.
//!
//! Runs on a blocking thread: mount(2) and umount(2) on a dead server can take for ever, and
//! only their own container may wait for it.

mod idmap;
mod loop_device;

use std::collections::BTreeSet;
use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use containerd_shim_protos::api::Mount;
use holdfast_record::process::Stat;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::sys;
use idmap::Maps;

/// How long a busy mount is tried again before its holders are named and it is detached.
pub(crate) const BUSY_LIMIT: Duration = Duration::from_millis(2500);
/// Pause between two tries; the kernel has no event for "no longer busy".
const BUSY_PAUSE: Duration = Duration::from_millis(50);
/// Room mount(2) leaves for options: a page, less what the kernel adds.
const MAX_OPTIONS: usize = 4096 - 512;
/// Options that containerd keeps for itself.
const OURS: &str = "X-containerd.";
/// Most holders named.
const MAX_HOLDERS: usize = 8;

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

/// What the options of one mount mean to mount(2).
#[derive(Debug, PartialEq, Eq)]
struct Parsed {
    flags: MsFlags,
    propagation: MsFlags,
    data: Vec<String>,
    /// The source is a file, to be mounted through a loop device.
    image: bool,
    maps: Maps,
}

fn parse_options(options: &[String]) -> Parsed {
    let mut parsed = Parsed {
        flags: MsFlags::empty(),
        propagation: MsFlags::empty(),
        data: Vec::new(),
        image: false,
        maps: Maps::default(),
    };
    for option in options {
        let (clear, flag) = match option.as_str() {
            "defaults" => continue,
            "async" => (true, MsFlags::MS_SYNCHRONOUS),
            "atime" => (true, MsFlags::MS_NOATIME),
            "bind" => (false, MsFlags::MS_BIND),
            "dev" => (true, MsFlags::MS_NODEV),
            "diratime" => (true, MsFlags::MS_NODIRATIME),
            "dirsync" => (false, MsFlags::MS_DIRSYNC),
            "exec" => (true, MsFlags::MS_NOEXEC),
            "mand" => (false, MsFlags::MS_MANDLOCK),
            "noatime" => (false, MsFlags::MS_NOATIME),
            "nodev" => (false, MsFlags::MS_NODEV),
            "nodiratime" => (false, MsFlags::MS_NODIRATIME),
            "noexec" => (false, MsFlags::MS_NOEXEC),
            "nomand" => (true, MsFlags::MS_MANDLOCK),
            "norelatime" => (true, MsFlags::MS_RELATIME),
            "nostrictatime" => (true, MsFlags::MS_STRICTATIME),
            "nosuid" => (false, MsFlags::MS_NOSUID),
            "rbind" => (false, MsFlags::MS_BIND | MsFlags::MS_REC),
            "relatime" => (false, MsFlags::MS_RELATIME),
            "remount" => (false, MsFlags::MS_REMOUNT),
            "ro" => (false, MsFlags::MS_RDONLY),
            "rw" => (true, MsFlags::MS_RDONLY),
            "strictatime" => (false, MsFlags::MS_STRICTATIME),
            "suid" => (true, MsFlags::MS_NOSUID),
            "sync" => (false, MsFlags::MS_SYNCHRONOUS),
            "private" | "rprivate" | "slave" | "rslave" | "shared" | "rshared" | "unbindable"
            | "runbindable" => {
                let kind = option.strip_prefix('r').unwrap_or(option);
                let recursive = option.starts_with('r');
                let mut flag = match kind {
                    "private" => MsFlags::MS_PRIVATE,
                    "slave" => MsFlags::MS_SLAVE,
                    "shared" => MsFlags::MS_SHARED,
                    _ => MsFlags::MS_UNBINDABLE,
                };
                if recursive {
                    flag |= MsFlags::MS_REC;
                }
                parsed.propagation = flag;
                continue;
            }
            "loop" => {
                parsed.image = true;
                continue;
            }
            other => {
                if let Some(map) = other.strip_prefix("uidmap=") {
                    map.clone_into(&mut parsed.maps.uid);
                } else if let Some(map) = other.strip_prefix("gidmap=") {
                    map.clone_into(&mut parsed.maps.gid);
                } else if !other.starts_with(OURS) {
                    parsed.data.push(option.clone());
                }
                continue;
            }
        };
        if clear {
            parsed.flags.remove(flag);
        } else {
            parsed.flags.insert(flag);
        }
    }
    parsed
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
    let mut parsed = parse_options(&one.options);
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
        Some(user) if is_overlay => Some(shift_layers(&mut parsed, rootfs, user).map_err(shift)?),
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
    if is_overlay && data.len() > MAX_OPTIONS {
        mount_long_overlay(&parsed, &target).map_err(failed)?;
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

/// Replaces overlay's layers by shifted views of them, in the bundle.
fn shift_layers(parsed: &mut Parsed, rootfs: &Path, user: &OwnedFd) -> io::Result<idmap::Layers> {
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

/// Overlay with more layers than fit in a page: one call per layer where the kernel can
/// (6.5), else relative to the directory that all layers share.
fn mount_long_overlay(parsed: &Parsed, target: &Path) -> Result<(), Errno> {
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

/// Mount points at and below `root`, deepest last-made first.
fn mounts_below(root: &Path) -> Result<Vec<PathBuf>, RootfsError> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").map_err(RootfsError::Mountinfo)?;
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

/// Who keeps a mount busy: pid, command and how.
fn holders(mount_point: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return vec!["nobody known (/proc cannot be read)".to_owned()];
    };
    let mut found = BTreeSet::new();
    for entry in entries.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let dir = entry.path();
        let mut how = Vec::new();
        for (name, word) in [("cwd", "working directory"), ("root", "root directory")] {
            if std::fs::read_link(dir.join(name)).is_ok_and(|to| to.starts_with(mount_point)) {
                how.push(word);
            }
        }
        let open = std::fs::read_dir(dir.join("fd")).is_ok_and(|fds| {
            fds.flatten()
                .any(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(mount_point)))
        });
        if open {
            how.push("open file");
        }
        if !how.is_empty() {
            let comm = Stat::read(pid).map_or_else(|_| "?".to_owned(), |stat| stat.comm);
            found.insert(format!("{pid} ({comm}: {})", how.join(", ")));
        }
        if found.len() >= MAX_HOLDERS {
            break;
        }
    }
    if found.is_empty() {
        found.insert(
            "nobody in sight (a mount below it in another mount namespace, or the kernel)"
                .to_owned(),
        );
    }
    found.into_iter().collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn mount_of(kind: &str, source: &str, options: &str) -> Mount {
        Mount {
            type_: kind.to_owned(),
            source: source.to_owned(),
            options: words(options),
            ..Mount::default()
        }
    }

    fn may_mount() -> bool {
        let root = nix::unistd::geteuid().is_root();
        if !root {
            eprintln!("skipped: mounting needs root");
        }
        root
    }

    #[test]
    fn options_become_flags_propagation_and_data() {
        let parsed = parse_options(&words(
            "rbind ro rslave nosuid suid size=1k X-containerd.x=1",
        ));
        assert_eq!(
            parsed.flags,
            MsFlags::MS_BIND | MsFlags::MS_REC | MsFlags::MS_RDONLY
        );
        assert_eq!(parsed.propagation, MsFlags::MS_SLAVE | MsFlags::MS_REC);
        assert_eq!(parsed.data, ["size=1k"]);
        assert!(parse_options(&words("loop ro")).image);
        let shifted = parse_options(&words("uidmap=0:1:2 gidmap=0:3:4 index=off"));
        let maps = ("0:1:2", "0:3:4");
        assert_eq!((shifted.maps.uid.as_str(), shifted.maps.gid.as_str()), maps);
        assert_eq!(shifted.data, ["index=off"]);
    }

    #[test]
    fn paths_are_shared_and_escapes_undone() {
        assert_eq!(
            common_directory(&["/a/b1/c", "/a/b2/c"]).as_deref(),
            Some("/a/")
        );
        assert_eq!(common_directory(&["/a", "/b"]), None);
        assert_eq!(unescape("/a\\040b\\134"), "/a b\\");
        below(Path::new("/r"), "/etc/../..").unwrap_err();
    }

    #[test]
    fn mounts_come_and_go_and_a_failure_undoes_what_was_done() {
        if !may_mount() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let rootfs = dir.path().join("rootfs");
        std::fs::create_dir(&rootfs).unwrap();
        let tmpfs = mount_of("tmpfs", "tmpfs", "size=64k");
        let mut inner = mount_of("tmpfs", "tmpfs", "ro");
        inner.target = "/inner".to_owned();
        mount_all(&[tmpfs.clone(), inner.clone()], &rootfs).unwrap();
        assert_eq!(mounts_below(&rootfs).unwrap().len(), 2);
        assert_eq!(
            unmount_all(&rootfs, BUSY_LIMIT).unwrap(),
            Vec::<String>::new()
        );
        assert_eq!(mounts_below(&rootfs).unwrap().len(), 0);
        let wrong = mount_of("no-such-fs", "x", "");
        mount_all(&[tmpfs, inner, wrong], &rootfs).unwrap_err();
        assert_eq!(mounts_below(&rootfs).unwrap().len(), 0);
        // Twice is no error.
        unmount_all(&rootfs, BUSY_LIMIT).unwrap();
    }

    #[test]
    fn a_fuse_mount_is_made_by_its_helper() {
        let dir = tempfile::tempdir().unwrap();
        let mount = mount_of(
            "fuse3.fuse-overlayfs",
            "overlay",
            "lowerdir=/a:/b X-containerd.x=1",
        );
        let (program, arguments) = helper(&mount, dir.path()).unwrap();
        let root = dir.path().to_str().unwrap();
        let expected = [
            "overlay",
            root,
            "-o",
            "lowerdir=/a:/b",
            "-t",
            "fuse-overlayfs",
        ];
        assert_eq!(
            (program, arguments),
            ("mount.fuse3", expected.map(OsString::from).to_vec())
        );
        assert_eq!(
            helper(&mount_of("fuse.x", "y", ""), dir.path()).unwrap().0,
            "mount.fuse"
        );
        assert_eq!(helper(&mount_of("fuseblk", "y", ""), dir.path()), None);
    }

    #[test]
    fn owners_are_shifted_in_bind_mounts_and_layers() {
        use std::os::unix::fs::MetadataExt as _;
        if !may_mount() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (base, rootfs) = (dir.path().join("base"), dir.path().join("rootfs"));
        std::fs::create_dir(&base).unwrap();
        std::fs::create_dir(&rootfs).unwrap();
        mount_all(&[mount_of("tmpfs", "tmpfs", "")], &base).unwrap();
        let folder = |name: &str| {
            let path = base.join(name);
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join(format!("of-{name}")), "").unwrap();
            path.display().to_string()
        };
        let (one, two) = (folder("one"), folder("two"));
        let (upper, work) = (folder("upper"), folder("work"));
        std::fs::remove_file(base.join("work/of-work")).unwrap();
        let maps = "uidmap=0:100000:65536 gidmap=0:200000:65536";
        let owner = |name: &str| {
            let meta = std::fs::metadata(rootfs.join(name)).unwrap();
            (meta.uid(), meta.gid())
        };
        let bind = mount_of("bind", &one, &format!("rbind ro {maps}"));
        if let Err(error) = mount_all(&[bind], &rootfs) {
            unmount_all(&base, BUSY_LIMIT).unwrap();
            // Before Linux 6.3.
            eprintln!("skipped: {}", crate::fault::chain(&error));
            return;
        }
        let shifted = owner("of-one");
        let read_only = std::fs::write(rootfs.join("new"), "").is_err();
        unmount_all(&rootfs, BUSY_LIMIT).unwrap();
        let options = format!("lowerdir={one}:{two},upperdir={upper},workdir={work} {maps}");
        let options = options
            .replace(",upperdir", " upperdir")
            .replace(",workdir", " workdir");
        let mounted = mount_all(&[mount_of("overlay", "overlay", &options)], &rootfs);
        let owners = mounted
            .is_ok()
            .then(|| [owner("of-two"), owner("of-upper")]);
        unmount_all(&rootfs, BUSY_LIMIT).unwrap();
        let left = mounts_below(dir.path()).unwrap();
        unmount_all(&base, BUSY_LIMIT).unwrap();
        mounted.unwrap();
        assert_eq!((shifted, read_only), ((100_000, 200_000), true));
        // Only layers are shifted: what is above belongs to the container already.
        assert_eq!(owners.unwrap(), [(100_000, 200_000), (0, 0)]);
        assert_eq!(left, [std::fs::canonicalize(&base).unwrap()]);
        assert!(!dir.path().join(".shifted-layers").exists());
    }

    #[test]
    fn an_image_is_mounted_through_a_loop_device_that_frees_itself() {
        if !may_mount() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (image, rootfs) = (dir.path().join("image"), dir.path().join("rootfs"));
        std::fs::create_dir(&rootfs).unwrap();
        std::fs::File::create(&image)
            .unwrap()
            .set_len(8 << 20)
            .unwrap();
        let made = std::process::Command::new("/usr/sbin/mkfs.ext4")
            .arg("-q")
            .arg(&image)
            .status();
        if !made.is_ok_and(|status| status.success()) || !Path::new("/dev/loop-control").exists() {
            eprintln!("skipped: no mkfs.ext4 or no loop devices");
            return;
        }
        let users = |image: &Path| {
            std::fs::read_dir("/sys/block")
                .unwrap()
                .flatten()
                .any(|device| {
                    std::fs::read_to_string(device.path().join("loop/backing_file"))
                        .is_ok_and(|file| Path::new(file.trim()) == image)
                })
        };
        mount_all(
            &[mount_of("ext4", image.to_str().unwrap(), "loop")],
            &rootfs,
        )
        .unwrap();
        assert!(users(&image) && rootfs.join("lost+found").is_dir());
        std::fs::write(rootfs.join("file"), "kept").unwrap();
        unmount_all(&rootfs, BUSY_LIMIT).unwrap();
        mount_all(
            &[mount_of("ext4", image.to_str().unwrap(), "loop ro")],
            &rootfs,
        )
        .unwrap();
        assert_eq!(
            std::fs::read_to_string(rootfs.join("file")).unwrap(),
            "kept"
        );
        std::fs::write(rootfs.join("file"), "no").unwrap_err();
        unmount_all(&rootfs, BUSY_LIMIT).unwrap();
        let until = Instant::now() + Duration::from_secs(5);
        while users(&image) {
            assert!(Instant::now() < until, "the device keeps the image");
            std::thread::sleep(BUSY_PAUSE);
        }
    }

    #[test]
    fn a_busy_mount_is_detached_and_its_holder_named() {
        if !may_mount() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let rootfs = dir.path().join("rootfs");
        std::fs::create_dir(&rootfs).unwrap();
        mount_all(&[mount_of("tmpfs", "tmpfs", "")], &rootfs).unwrap();
        let _open = std::fs::File::create(rootfs.join("held")).unwrap();
        let detached = unmount_all(&rootfs, BUSY_LIMIT).unwrap();
        assert_eq!(detached.len(), 1);
        let needle = format!("{} (", std::process::id());
        assert!(
            detached.iter().any(|line| line.contains(&needle)),
            "{detached:?}"
        );
        assert_eq!(mounts_below(&rootfs).unwrap().len(), 0);
    }

    #[test]
    fn overlay_takes_more_layers_than_fit_in_a_page() {
        if !may_mount() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let rootfs = dir.path().join("rootfs");
        std::fs::create_dir(&rootfs).unwrap();
        // Overlay cannot lie on every file system; a tmpfs will do.
        let base = dir.path().join("layers");
        std::fs::create_dir(&base).unwrap();
        mount_all(&[mount_of("tmpfs", "tmpfs", "")], &base).unwrap();
        let layers: Vec<String> = (0..60)
            .map(|n| {
                let layer = base.join(format!("{n}-{}", "l".repeat(70)));
                std::fs::create_dir(&layer).unwrap();
                std::fs::write(layer.join(format!("file{n}")), "").unwrap();
                layer.to_str().unwrap().to_owned()
            })
            .collect();
        let option = format!("lowerdir={}", layers.join(":"));
        assert!(option.len() > 4096);
        let overlay = mount_of("overlay", "overlay", &option);
        let mounted = mount_all(&[overlay], &rootfs);
        let count = std::fs::read_dir(&rootfs).unwrap().count();
        unmount_all(&rootfs, BUSY_LIMIT).unwrap();
        unmount_all(&base, BUSY_LIMIT).unwrap();
        mounted.unwrap();
        assert_eq!(count, 60);
    }
}
