//! Id-mapped mounts: whose ids the files of a volume seem to have.
//!
//! The mapping is that of a user namespace (`mount_setattr(2)`, `MOUNT_ATTR_IDMAP`), set by the
//! parent on the detached tree: only there are the rights for it, and only a tree that nobody
//! has seen yet can be mapped. Mounts with equal mappings share one namespace.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType as Type, Mount};

use super::options::Options;
use crate::bundle::{Bundle, cstring, namespace};
use crate::error::{Doing, Error, Result};
use crate::sys::{fd, user_namespace};

/// The namespaces made for the mounts of one plan.
#[derive(Debug, Default)]
pub(super) struct Idmaps {
    made: Vec<Made>,
}

#[derive(Debug)]
struct Made {
    source: Source,
    namespace: OwnedFd,
}

/// Where the mapping comes from.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    /// Lines of `uid_map` and `gid_map`.
    Maps(String, String),
    /// The user namespace that the container joins.
    Joined(std::path::PathBuf),
}

/// Whether the mount is to be id-mapped, and if so with the mounts below it.
fn wanted(options: &Options, mount: &Mount) -> Option<bool> {
    let mapped = |list: &Option<Vec<LinuxIdMapping>>| list.as_ref().is_some_and(|l| !l.is_empty());
    let listed = mapped(mount.uid_mappings()) || mapped(mount.gid_mappings());
    options.idmap.or(listed.then_some(false))
}

/// Refuses an id-mapping on what is no bind mount.
pub(super) fn refuse(options: &Options, mount: &Mount) -> Result<()> {
    match wanted(options, mount) {
        None => Ok(()),
        Some(_) => Err(Error::spec(
            "uidMappings, gidMappings, options idmap and ridmap",
            "work on bind mounts only",
        )),
    }
}

impl Idmaps {
    /// Maps the ids of a detached tree, if the mount asks for it.
    pub(super) fn apply(
        &mut self,
        bundle: &Bundle,
        options: &Options,
        mount: &Mount,
        tree: Option<BorrowedFd<'_>>,
        source: &Path,
    ) -> Result<()> {
        let Some(recursive) = wanted(options, mount) else {
            return Ok(());
        };
        let tree = tree.ok_or_else(|| {
            Error::spec(
                "uidMappings, gidMappings, options idmap and ridmap",
                "need root: an ordinary user may not map the ids of a mount",
            )
        })?;
        let namespace = self.namespace(mapping(bundle, mount)?)?;
        user_namespace::map_ids(tree, namespace, recursive)
            .map_err(|error| explain(error, source, recursive))
    }

    fn namespace(&mut self, source: Source) -> Result<BorrowedFd<'_>> {
        let at = match self.made.iter().position(|made| made.source == source) {
            Some(at) => at,
            None => {
                let namespace = match &source {
                    Source::Maps(uids, gids) => {
                        user_namespace::with_maps(uids, gids).doing(|| {
                            format!(
                                "make a user namespace with the id mappings {:?} and {:?}",
                                uids.trim_end(),
                                gids.trim_end()
                            )
                        })?
                    }
                    Source::Joined(path) => {
                        let flags = libc::O_RDONLY | libc::O_CLOEXEC;
                        fd::open_inherited(&cstring("linux.namespaces", path)?, flags)
                            .doing(|| format!("open the user namespace {}", path.display()))?
                    }
                };
                self.made.push(Made { source, namespace });
                self.made.len() - 1
            }
        };
        Ok(self.made[at].namespace.as_fd())
    }
}

/// The mount's own mapping, else the container's.
fn mapping(bundle: &Bundle, mount: &Mount) -> Result<Source> {
    let uids = mount.uid_mappings().as_deref().unwrap_or_default();
    let gids = mount.gid_mappings().as_deref().unwrap_or_default();
    if uids.is_empty() != gids.is_empty() {
        return Err(Error::spec(
            "uidMappings, gidMappings",
            "belong together: one of them is missing",
        ));
    }
    if !uids.is_empty() {
        return Ok(Source::Maps(lines(uids), lines(gids)));
    }
    let linux = bundle.linux()?;
    match namespace(bundle.namespaces(), Type::User) {
        None => Err(Error::spec(
            "options: idmap",
            "needs uidMappings and gidMappings, or a container with a user namespace",
        )),
        Some(user) => match user.path() {
            Some(path) => Ok(Source::Joined(path.clone())),
            None => Ok(Source::Maps(
                lines(linux.uid_mappings().as_deref().unwrap_or_default()),
                lines(linux.gid_mappings().as_deref().unwrap_or_default()),
            )),
        },
    }
}

/// As user_namespaces(7) wants them: inside, outside, length.
fn lines(mappings: &[LinuxIdMapping]) -> String {
    mappings
        .iter()
        .map(|map| format!("{} {} {}\n", map.container_id(), map.host_id(), map.size()))
        .collect()
}

fn explain(source: io::Error, path: &Path, recursive: bool) -> Error {
    let below = if recursive {
        " or one mounted below it"
    } else {
        ""
    };
    let hint = match source.raw_os_error() {
        Some(libc::EINVAL) => {
            format!(": its file system{below} does not support id-mapped mounts in this kernel")
        }
        Some(libc::EPERM) => {
            format!(": it{below} is id-mapped already, or its file system belongs to others")
        }
        _ => String::new(),
    };
    Error::Io {
        doing: format!("map the ids of {}{hint}", path.display()),
        source,
    }
}
