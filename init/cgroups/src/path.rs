//! `linux.cgroupsPath` (runtime-spec, config-linux.md, "Cgroups Path").

use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};
use crate::systemd::Unit;

/// Who makes the cgroup. The caller decides (`--systemd-cgroup`, Options.systemd_cgroup).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Driver {
    /// Directories made in the cgroup file system.
    #[default]
    Cgroupfs,
    /// A scope made by systemd ([`crate::systemd`]); the directories in other hierarchies are made beside it.
    Systemd,
}

/// Where a container's cgroup is, in every hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CgroupPath {
    /// Below the root of each hierarchy; never empty, without a leading slash.
    BelowRoot(PathBuf),
    /// Below the cgroup of the calling process; never empty.
    BelowOwn(PathBuf),
}

impl CgroupPath {
    /// From `linux.cgroupsPath`; without one (or with an empty one) the path is `/DEFAULT_PARENT/ID` for cgroupfs, and
    /// what [`Unit::new`] says for systemd.
    ///
    /// # Errors
    /// [`Error::SystemdPath`] for `slice:prefix:name`; [`Error::BadPath`] for `..`, for the root itself, for a NUL
    /// or a newline, and for a name the kernel reserves for its own files (`cgroup.*`).
    pub fn new(
        spec: Option<&Path>,
        driver: Driver,
        default_parent: &str,
        id: &str,
    ) -> Result<Self> {
        match driver {
            Driver::Cgroupfs => {}
            Driver::Systemd => return Ok(Self::of_unit(&Unit::new(spec, id)?)),
        }
        match spec.filter(|path| !path.as_os_str().is_empty()) {
            None => {
                if id.is_empty() || id == "." || id == ".." || id.contains('/') {
                    return Err(Error::BadPath {
                        path: id.to_owned(),
                        why: "is not a container id that can name a directory",
                    });
                }
                Ok(Self::BelowRoot(clean(&Path::new(default_parent).join(id))?))
            }
            Some(path) => {
                let text = path.to_string_lossy();
                if !path.is_absolute() && text.split(':').count() == 3 && !text.contains('/') {
                    return Err(Error::SystemdPath {
                        path: text.into_owned(),
                    });
                }
                let below = clean(path)?;
                Ok(if path.is_absolute() {
                    Self::BelowRoot(below)
                } else {
                    Self::BelowOwn(below)
                })
            }
        }
    }

    /// A path below the root of each hierarchy, absolute or not (ShimCgroup, `exec --cgroup`).
    ///
    /// # Errors
    /// [`Error::BadPath`] as [`Self::new`].
    pub fn below_root(path: &Path) -> Result<Self> {
        Ok(Self::BelowRoot(clean(path)?))
    }

    /// Where systemd puts a unit.
    pub fn of_unit(unit: &Unit) -> Self {
        Self::BelowRoot(unit.below())
    }

    pub(crate) fn below(&self) -> &Path {
        match self {
            Self::BelowRoot(path) | Self::BelowOwn(path) => path,
        }
    }
}

/// Checks a path and takes `/` and `.` components away.
pub(crate) fn clean(path: &Path) -> Result<PathBuf> {
    let bad = |why| Error::BadPath {
        path: path.to_string_lossy().into_owned(),
        why,
    };
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => {
                let text = name.to_str().ok_or_else(|| bad("is not UTF-8"))?;
                if text.contains(['\n', '\0']) {
                    return Err(bad("holds a newline or a NUL"));
                }
                if text.starts_with("cgroup.") {
                    return Err(bad(
                        "has a component that begins with \"cgroup.\", which the kernel keeps for itself",
                    ));
                }
                out.push(name);
            }
            Component::ParentDir => return Err(bad("holds \"..\"")),
            Component::Prefix(_) => return Err(bad("is not a Unix path")),
        }
    }
    if out.as_os_str().is_empty() {
        return Err(bad(
            "names the root of the hierarchy, which belongs to the whole machine",
        ));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(spec: &str) -> Result<CgroupPath> {
        CgroupPath::new(Some(Path::new(spec)), Driver::Cgroupfs, "holdfast", "c1")
    }

    #[test]
    fn absolute_relative_and_default() {
        assert_eq!(
            new("/a//b/./c").unwrap(),
            CgroupPath::BelowRoot("a/b/c".into())
        );
        assert_eq!(new("a/b").unwrap(), CgroupPath::BelowOwn("a/b".into()));
        assert_eq!(
            new("").unwrap(),
            CgroupPath::BelowRoot("holdfast/c1".into())
        );
        // Colons alone do not make a systemd path.
        assert_eq!(
            new("/x/a:b:c").unwrap(),
            CgroupPath::BelowRoot("x/a:b:c".into())
        );
    }

    #[test]
    fn what_is_refused() {
        for bad in [
            "..",
            "/a/../b",
            "a/..",
            "/",
            "./",
            "/a\nb",
            "/cgroup.procs/x",
        ] {
            let error = new(bad).unwrap_err();
            assert!(matches!(error, Error::BadPath { .. }), "{bad}: {error}");
        }
        let error = new("system.slice:docker:1").unwrap_err();
        assert!(error.to_string().contains("--systemd-cgroup"), "{error}");
        let error = new(":cri-containerd:1").unwrap_err();
        assert!(matches!(error, Error::SystemdPath { .. }));
        assert!(CgroupPath::new(None, Driver::Cgroupfs, "holdfast", "../x").is_err());
    }
}
