//! What an ordinary user, or root of a user namespace, goes without.

use std::path::Path;

use holdfast_cgroups::{Cgroup, When};
use oci_spec::runtime::LinuxResources;

use crate::error::{Error, Result};

/// Whether this process is root of the whole machine.
pub(crate) fn is_root_of_the_machine() -> bool {
    // user_namespaces(7): the initial namespace maps every id to itself.
    let first = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let words: Vec<&str> = first.split_whitespace().collect();
    nix::unistd::geteuid().is_root() && matches!(words[..], ["0", "0", "4294967295"])
}

/// Decides about a container whose cgroup could not be made: as runc, it runs in its caller's when
/// the caller has no right to cgroups and nothing depends on one of its own.
///
/// # Errors
/// The error itself, with what it is needed for.
pub(super) fn do_without_cgroup(
    error: holdfast_cgroups::Error,
    asked: Option<&Path>,
    resources: Option<&LinuxResources>,
) -> Result<()> {
    let refused = matches!(
        error.errno(),
        Some(libc::EACCES | libc::EPERM | libc::EROFS)
    );
    if !refused || is_root_of_the_machine() {
        return Err(error.into());
    }
    let told = crate::error::chain(&error);
    let needed = |by: &str| {
        Err(Error::Step {
            doing: "make the container's cgroup".into(),
            detail: format!("{told}; it is needed for {by}"),
            source: None,
        })
    };
    if let Some(path) = asked.filter(|path| !path.as_os_str().is_empty()) {
        return needed(&format!(
            "linux.cgroupsPath {:?}",
            path.display().to_string()
        ));
    }
    let mut limits = resources.cloned().unwrap_or_default();
    limits.set_devices(None);
    if limits != LinuxResources::default() {
        return needed("linux.resources");
    }
    log::warn!("rootless: the container has no cgroup of its own, as none could be made: {told}");
    Ok(())
}

/// The device rules of a new container. An ordinary user has no right to load the program that enforces them on
/// cgroup v2, and can go without, as with runc: the files in /dev let nobody do more than that user may.
///
/// # Errors
/// For root, whatever went wrong; for others whatever is not that right.
pub(super) fn restrict(cgroup: &Cgroup, devices: &LinuxResources) -> Result<()> {
    match cgroup.apply(devices, When::Create) {
        Err(error @ holdfast_cgroups::Error::Bpf { .. })
            if error.errno() == Some(libc::EPERM) && !is_root_of_the_machine() =>
        {
            log::debug!("rootless: {}, ignoring", crate::error::chain(&error));
            Ok(())
        }
        other => Ok(other?),
    }
}
