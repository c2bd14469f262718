//! `mounts`, the root file system and what is masked.

use std::ffi::{CStr, CString};
use std::path::Path;

use holdfast_cgroups::{Cgroup, Hierarchies};
use holdfast_plan::{Step, TargetKind};
use oci_spec::runtime::Mount;

use super::Draft;
use super::cgroup_mounts;
use super::idmap::{self, Idmaps};
use super::options::{self, Options};
use crate::bundle::{Bundle, clean, cstring};
use crate::error::{Error, Result};

/// What cgroup mounts need to know.
pub(super) struct Cgroups<'a> {
    pub(super) hierarchies: &'a Hierarchies,
    pub(super) cgroup: Option<&'a Cgroup>,
    pub(super) namespace: bool,
}

/// The default of `rootfsPropagation`: nothing of the container reaches the host, unmounts on
/// the host reach the container (a container that pins them is incident 3).
const DEFAULT_PROPAGATION: u64 = libc::MS_SLAVE | libc::MS_REC;

/// `linux.rootfsPropagation` as flags; 0 when it is not given.
pub(super) fn root_propagation(word: Option<&str>) -> Result<u64> {
    match word {
        None | Some("") => Ok(0),
        Some(word) => options::propagation(word).ok_or_else(|| {
            Error::spec(
                "linux.rootfsPropagation",
                format!(
                    "{word:?} is not one of private, shared, slave, unbindable and their r-forms"
                ),
            )
        }),
    }
}

/// What becomes of the mounts that the container gets from the host.
fn inherited(root: u64) -> u64 {
    if root == 0 {
        DEFAULT_PROPAGATION
    } else if root & libc::MS_UNBINDABLE != 0 {
        // Unbindable would refuse the bind mounts of sources below the root itself; the tree
        // that becomes the root gets it at the end.
        libc::MS_PRIVATE | libc::MS_REC
    } else {
        root | libc::MS_REC
    }
}

/// The propagation of a volume before and after it is attached, 0 for no change.
///
/// Its tree is cloned in the host's mount namespace and so still shared with the host where the
/// host's mounts are, as systemd makes them: it gets what the volume asks for, and else what the
/// mounts of the container's namespace got, before anything can be mounted below it.
fn volume_propagation(root: u64, asked: u64) -> (u64, u64) {
    let inherited = inherited(root);
    if inherited & libc::MS_SHARED != 0 {
        // A shared parent shares what is attached to it.
        (0, asked)
    } else if asked & libc::MS_REC != 0 && asked & libc::MS_SHARED == 0 {
        (asked, 0)
    } else {
        (inherited, asked)
    }
}

/// Attaches the root file system. Afterwards all paths of steps are inside it.
pub(super) fn root(draft: &mut Draft, bundle: &Bundle, propagation: u64) -> Result<()> {
    let inherited = inherited(propagation);
    draft.push(
        Step::Propagation { flags: inherited },
        "set the propagation of inherited mounts",
    );
    let path = cstring("root.path", &bundle.rootfs)?;
    let tree = draft.tree(&path, true, true, || {
        format!("clone the mount of {}", bundle.rootfs.display())
    })?;
    draft.push(
        Step::AttachRoot {
            fd: tree.fd,
            path: &path,
            propagation: inherited,
        },
        format!("attach the root file system {}", bundle.rootfs.display()),
    );
    Ok(())
}

/// All entries of `mounts`, in their order.
pub(super) fn all(draft: &mut Draft, bundle: &Bundle, cgroups: &Cgroups<'_>) -> Result<()> {
    let mut idmaps = Idmaps::default();
    for (at, mount) in bundle.spec.mounts().iter().flatten().enumerate() {
        one(draft, bundle, cgroups, &mut idmaps, mount)
            .map_err(|error| in_mount(error, at, mount))?;
    }
    Ok(())
}

fn in_mount(error: Error, at: usize, mount: &Mount) -> Error {
    match error {
        Error::Spec { field, problem } => Error::Spec {
            field: format!("mounts[{at}] ({}): {field}", mount.destination().display()),
            problem,
        },
        Error::Unsupported { what } => Error::Unsupported {
            what: format!("{what} (mounts[{at}], {})", mount.destination().display()),
        },
        other => other,
    }
}

fn one(
    draft: &mut Draft,
    bundle: &Bundle,
    cgroups: &Cgroups<'_>,
    idmaps: &mut Idmaps,
    mount: &Mount,
) -> Result<()> {
    let options = options::parse(mount.options().as_deref().unwrap_or_default());
    let target = target(mount)?;
    let typ = mount.typ().as_deref().unwrap_or_default();
    if options.bind.is_some() || typ == "bind" {
        check_proc(&target, mount, bundle)?;
        return bind(draft, bundle, idmaps, mount, &options, &target);
    }
    idmap::refuse(&options, mount)?;
    let options = if target.as_bytes() == DEV {
        writable(options)
    } else {
        options
    };
    if typ == "cgroup" || typ == "cgroup2" {
        return cgroup_mounts::push(draft, cgroups, &options, &target);
    }
    if typ.is_empty() {
        return Err(Error::spec(
            "type",
            "is needed when the mount is no bind mount",
        ));
    }
    let source = mount.source().as_deref().unwrap_or_else(|| Path::new(typ));
    let label = bundle.linux()?.mount_label().as_deref();
    let options = labelled(options, typ, label);
    if options.copy_up {
        if typ != "tmpfs" {
            return Err(Error::spec(
                "options: tmpcopyup",
                format!("is for tmpfs, not for {typ}"),
            ));
        }
        return copy_up(draft, source, options, &target);
    }
    file_system(draft, typ, source, &options, &target)?;
    if let (Some(label), "mqueue") = (label.filter(|label| !label.is_empty()), typ) {
        draft.push(
            Step::Label {
                target: &target,
                label: &cstring("linux.mountLabel", label)?,
            },
            format!("label {}", target.to_string_lossy()),
        );
    }
    Ok(())
}

/// With `linux.mountLabel`, where the type has room for one: the kernel's own file systems are labelled by the policy, and
/// message queues have no such option.
fn labelled(mut options: Options, typ: &str, label: Option<&str>) -> Options {
    let label = label.filter(|label| !label.is_empty());
    if let (Some(label), false) = (label, matches!(typ, "proc" | "sysfs" | "mqueue")) {
        // Quoted: a label has commas between its categories.
        options.data.push(format!("context=\"{label}\""));
    }
    options
}

/// A tmpfs that starts with the content of what it covers; read-only, if so, when it is copied.
fn copy_up(draft: &mut Draft, source: &Path, options: Options, target: &CString) -> Result<()> {
    let readonly = is_readonly(&options);
    let own_mode = options.data.iter().any(|word| word.starts_with("mode="));
    let shown = target.to_string_lossy();
    draft.push(
        Step::KeepBelow { path: target },
        format!("read {shown}, to be copied into a tmpfs"),
    );
    file_system(draft, "tmpfs", source, &writable(options), target)?;
    draft.push(
        Step::CopyUp {
            target,
            attributes: !own_mode,
        },
        format!("copy the content of {shown} into the tmpfs over it"),
    );
    if readonly {
        make_readonly(draft, target);
    }
    Ok(())
}

/// Files of procfs that lxcfs and the like may replace: they tell, and nothing is decided by them.
const REPLACEABLE: &[&str] = &[
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/sys/crypto/fips_enabled",
    "/proc/sys/kernel/ns_last_pid",
];

/// What is bound on `/proc` is a procfs, and into it nothing that a process would take for the
/// kernel's word (CVE-2019-16884, CVE-2019-19921). The rule of runc.
fn check_proc(target: &CStr, mount: &Mount, bundle: &Bundle) -> Result<()> {
    const PROC_MAGIC: i64 = 0x9fa0;
    let shown = target.to_string_lossy();
    if shown == "/proc" {
        let source = mount.source().as_deref().unwrap_or(Path::new(""));
        let is_proc = nix::sys::statfs::statfs(&bundle.path.join(source))
            .is_ok_and(|found| found.filesystem_type().0 == PROC_MAGIC);
        if !is_proc {
            return Err(Error::spec("destination", "/proc takes a procfs only"));
        }
    } else if shown.starts_with("/proc/") && !REPLACEABLE.contains(&shown.as_ref()) {
        return Err(Error::spec(
            "destination",
            format!("{shown} cannot be mounted because it is inside /proc"),
        ));
    }
    Ok(())
}

fn is_readonly(options: &Options) -> bool {
    options.flags & libc::MS_RDONLY != 0 || options.rec_attr_set & options::attr::RDONLY != 0
}

fn make_readonly(draft: &mut Draft, target: &CStr) {
    draft.push(
        Step::MountAttributes {
            target,
            attr_set: options::attr::RDONLY,
            attr_clr: 0,
            recursive: false,
        },
        format!("make {} read-only", target.to_string_lossy()),
    );
}

/// Where devices are made after the mounts, so that it becomes read-only last.
const DEV: &[u8] = b"/dev";

fn writable(options: Options) -> Options {
    Options {
        flags: options.flags & !libc::MS_RDONLY,
        rec_attr_set: options.rec_attr_set & !options::attr::RDONLY,
        ..options
    }
}

/// Makes a file system on `/dev` read-only, when that was asked for: after the devices, the
/// terminal and the hooks.
pub(super) fn readonly_dev(draft: &mut Draft, bundle: &Bundle) -> Result<()> {
    let mut readonly = false;
    for mount in bundle.spec.mounts().iter().flatten() {
        if target(mount)?.as_bytes() != DEV {
            continue;
        }
        let options = options::parse(mount.options().as_deref().unwrap_or_default());
        // The last one covers those before it. A bind mount is read-only from the start.
        readonly = options.bind.is_none()
            && mount.typ().as_deref() != Some("bind")
            && is_readonly(&options);
    }
    if readonly {
        make_readonly(draft, c"/dev");
    }
    Ok(())
}

/// The target as the steps take it: absolute, lexically clean.
fn target(mount: &Mount) -> Result<CString> {
    cstring(
        "destination",
        clean(&Path::new("/").join(mount.destination())),
    )
}

pub(super) fn file_system(
    draft: &mut Draft,
    typ: &str,
    source: &Path,
    options: &Options,
    target: &CString,
) -> Result<()> {
    // The kernel's own file systems are only mounted on real directories of the root file
    // system, and /dev is where devices are made afterwards.
    let nofollow = matches!(typ, "proc" | "sysfs") || target.as_bytes() == b"/dev";
    draft.push(
        Step::MountFs {
            fstype: &cstring("type", typ)?,
            source: &cstring("source", source)?,
            target,
            flags: options.flags,
            propagation: options.propagation,
            data: &cstring("options", options.data.join(","))?,
            nofollow,
            attr_set: options.rec_attr_set,
            attr_clr: options.rec_attr_clr,
        },
        format!(
            "mount {typ} on {}{}",
            target.to_string_lossy(),
            if nofollow {
                ", which must be a directory and not a symlink"
            } else {
                ""
            }
        ),
    );
    Ok(())
}

fn bind(
    draft: &mut Draft,
    bundle: &Bundle,
    idmaps: &mut Idmaps,
    mount: &Mount,
    options: &Options,
    target: &CString,
) -> Result<()> {
    let source = mount
        .source()
        .as_ref()
        .ok_or_else(|| Error::spec("source", "is needed for a bind mount"))?;
    let source = bundle.path.join(source);
    if options.copy_symlink && (options.source_nofollow || options.target_nofollow) {
        return Err(Error::spec(
            "options",
            "copy-symlink makes a symlink anew, src-nofollow and dest-nofollow mount one: only one of them is possible",
        ));
    }
    if options.copy_symlink
        && let Ok(content) = std::fs::read_link(&source)
    {
        // runc has no such option; for crun's users it means just this.
        draft.push(
            Step::Symlink {
                content: &cstring("source", &content)?,
                path: target,
                replace: false,
            },
            format!("make the symlink {}", target.to_string_lossy()),
        );
        return Ok(());
    }
    // The bare type "bind" without the option means rbind, as runc takes it.
    let recursive = options.bind.unwrap_or(true);
    let nofollow = options.source_nofollow;
    let tree = draft.tree(&cstring("source", &source)?, recursive, nofollow, || {
        format!(
            "bind {} to {}",
            source.display(),
            mount.destination().display()
        )
    })?;
    idmaps.apply(bundle, options, mount, draft.made(tree), &source)?;
    let kind = if tree.is_directory {
        TargetKind::Directory
    } else {
        TargetKind::File
    };
    let root = root_propagation(bundle.linux()?.rootfs_propagation().as_deref())?;
    let (cut, propagation) = volume_propagation(root, options.propagation);
    draft.push(
        Step::MountTree {
            fd: tree.fd,
            target,
            kind,
            nofollow: options.target_nofollow,
            attr_set: options.attr_set,
            attr_clr: options.attr_clr,
            cut,
            propagation,
            rec_attr_set: options.rec_attr_set,
            rec_attr_clr: options.rec_attr_clr,
        },
        format!("bind {} to {}", source.display(), target.to_string_lossy()),
    );
    Ok(())
}

/// `maskedPaths` and `readonlyPaths`.
pub(super) fn covers(draft: &mut Draft, bundle: &Bundle) -> Result<()> {
    let linux = bundle.linux()?;
    for path in linux.readonly_paths().iter().flatten() {
        draft.push(
            Step::Readonly {
                path: &cstring("linux.readonlyPaths", clean(&Path::new("/").join(path)))?,
            },
            format!("make {path} read-only"),
        );
    }
    for path in linux.masked_paths().iter().flatten() {
        draft.push(
            Step::Mask {
                path: &cstring("linux.maskedPaths", clean(&Path::new("/").join(path)))?,
            },
            format!("mask {path}"),
        );
    }
    Ok(())
}
