//! Mounts of type `cgroup`: what the container sees of its cgroups.

use std::ffi::CString;
use std::path::Path;

use holdfast_cgroups::{Hierarchy, Kind, Layout};
use holdfast_plan::{Step, TargetKind};

use super::Draft;
use super::mounts::{Cgroups, file_system};
use super::options::{Options, attr};
use crate::bundle::cstring;
use crate::error::Result;

/// Pushes the steps for one `cgroup` mount.
pub(super) fn push(
    draft: &mut Draft,
    cgroups: &Cgroups<'_>,
    options: &Options,
    target: &CString,
) -> Result<()> {
    match cgroups.hierarchies.layout() {
        // A cgroup namespace that is not the container's gives no right to mount: the host's is
        // shown, as runc does.
        Layout::Unified if !cgroups.namespace && !nix::unistd::geteuid().is_root() => {
            bind(draft, Path::new("/sys/fs/cgroup"), options, target)
        }
        Layout::Unified => {
            let options = Options {
                data: Vec::new(),
                ..options.clone()
            };
            file_system(draft, "cgroup2", Path::new("cgroup"), &options, target)
        }
        Layout::V1 | Layout::Hybrid => v1(draft, cgroups, options, target),
    }
}

/// v1: a tmpfs with one directory per hierarchy, and symlinks for co-mounted controllers.
fn v1(draft: &mut Draft, cgroups: &Cgroups<'_>, options: &Options, target: &CString) -> Result<()> {
    let tmpfs = Options {
        flags: options.flags & !libc::MS_RDONLY,
        data: vec!["mode=755".into()],
        ..Options::default()
    };
    file_system(draft, "tmpfs", Path::new("tmpfs"), &tmpfs, target)?;
    for hierarchy in cgroups.hierarchies.list() {
        let Some(name) = hierarchy.mount_point.file_name() else {
            continue;
        };
        let below = Path::new(std::ffi::OsStr::from_bytes(target.as_bytes())).join(name);
        let below = cstring("destination", &below)?;
        if cgroups.namespace {
            let (typ, data) = kernel_options(hierarchy);
            let options = Options {
                flags: options.flags,
                data,
                ..Options::default()
            };
            file_system(draft, typ, Path::new("cgroup"), &options, &below)?;
        } else {
            bind_own(draft, cgroups, hierarchy, options, &below)?;
        }
        aliases(draft, hierarchy, target)?;
    }
    if options.flags & libc::MS_RDONLY != 0 {
        draft.push(
            Step::MountAttributes {
                target,
                attr_set: attr::RDONLY,
                attr_clr: 0,
                recursive: false,
            },
            "make the cgroup directory read-only",
        );
    }
    Ok(())
}

use std::os::unix::ffi::OsStrExt;

fn kernel_options(hierarchy: &Hierarchy) -> (&'static str, Vec<String>) {
    match &hierarchy.kind {
        Kind::V2 => ("cgroup2", Vec::new()),
        Kind::V1 { controllers, name } => {
            let mut data = controllers.clone();
            if let Some(name) = name {
                if data.is_empty() {
                    data.push("none".into());
                }
                data.push(format!("name={name}"));
            }
            ("cgroup", data)
        }
    }
}

/// Without a cgroup namespace the container sees its own directory and nothing above it.
fn bind_own(
    draft: &mut Draft,
    cgroups: &Cgroups<'_>,
    hierarchy: &Hierarchy,
    options: &Options,
    target: &CString,
) -> Result<()> {
    let own = cgroups.cgroup.and_then(|cgroup| {
        cgroup
            .directories()
            .find(|dir| dir.starts_with(&hierarchy.mount_point))
    });
    match own {
        Some(own) => bind(draft, own, options, target),
        None => Ok(()),
    }
}

fn bind(draft: &mut Draft, own: &Path, options: &Options, target: &CString) -> Result<()> {
    let tree = draft.tree(&cstring("cgroup", own)?, true, false, || {
        format!("bind the cgroup {}", own.display())
    })?;
    draft.push(
        Step::MountTree {
            fd: tree.fd,
            target,
            kind: TargetKind::Directory,
            nofollow: false,
            attr_set: options.attr_set,
            attr_clr: options.attr_clr,
            cut: libc::MS_PRIVATE | libc::MS_REC,
            propagation: 0,
            rec_attr_set: 0,
            rec_attr_clr: 0,
        },
        format!("bind the cgroup {}", own.display()),
    );
    Ok(())
}

/// `cpu -> cpu,cpuacct` and the like.
fn aliases(draft: &mut Draft, hierarchy: &Hierarchy, target: &CString) -> Result<()> {
    let Kind::V1 { controllers, .. } = &hierarchy.kind else {
        return Ok(());
    };
    let Some(name) = hierarchy.mount_point.file_name() else {
        return Ok(());
    };
    for controller in controllers.iter().filter(|c| name != c.as_str()) {
        let path = Path::new(std::ffi::OsStr::from_bytes(target.as_bytes())).join(controller);
        draft.push(
            Step::Symlink {
                content: &cstring("cgroup", name)?,
                path: &cstring("cgroup", &path)?,
                replace: false,
            },
            format!("link {}", path.display()),
        );
    }
    Ok(())
}
