//! `config.json`: read and checked before anything is made.

use std::ffi::{CString, OsStr};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use libcontainer::validator::Validator;
use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType, Process, Spec};

use crate::document;
use crate::error::{Doing, Error, Result};
use crate::gpu;

/// A bundle whose specification passed the checks.
#[derive(Debug)]
pub struct Bundle {
    /// Absolute path of the bundle.
    pub path: PathBuf,
    /// Absolute path of the root file system.
    pub rootfs: PathBuf,
    /// The specification.
    pub spec: Spec,
    /// What [`crate::gpu`] still has to do when the mounts are there.
    pub gpu: Option<gpu::Call>,
}

impl Bundle {
    /// Reads `config.json` of the bundle at `path`.
    ///
    /// # Errors
    /// Names the file and the place in it, or the field and what would be right.
    pub fn load(path: &Path) -> Result<Self> {
        let path =
            fs::canonicalize(path).doing(|| format!("find the bundle {}", path.display()))?;
        let config = path.join("config.json");
        let bytes = document::bytes(&config)?;
        let spec = document::spec(&bytes).map_err(|source| Error::Json {
            path: config,
            source,
        })?;
        Self::of(path, spec)
    }

    /// A bundle at the absolute `path` with this specification, as if read from `config.json`.
    ///
    /// # Errors
    /// The field and what would be right.
    pub fn of(path: PathBuf, spec: Spec) -> Result<Self> {
        let root = spec
            .root()
            .as_ref()
            .ok_or_else(|| Error::spec("root", "is missing"))?;
        let rootfs = clean(&path.join(root.path()));
        let this = Self {
            path,
            rootfs,
            spec,
            gpu: None,
        };
        this.check()?;
        Ok(this)
    }

    fn check(&self) -> Result<()> {
        check_version(self.spec.version())?;
        let meta = fs::symlink_metadata(&self.rootfs)
            .doing(|| format!("find the root file system {}", self.rootfs.display()))?;
        if meta.is_symlink() {
            return Err(Error::spec(
                "root.path",
                format!(
                    "{} is a symlink; give the directory itself",
                    self.rootfs.display()
                ),
            ));
        }
        if !meta.is_dir() {
            return Err(Error::spec(
                "root.path",
                format!("{} is not a directory", self.rootfs.display()),
            ));
        }
        check_process(self.process()?)?;
        check_namespaces(self.linux()?)?;
        self.check_mount_label()?;
        Validator::validate_spec(&self.spec)
            .map_err(|error| Error::spec("linux", crate::error::chain(&error)))
    }

    fn check_mount_label(&self) -> Result<()> {
        match self.linux()?.mount_label().as_deref() {
            Some(label) if !label.is_empty() && !selinux_enabled() => Err(Error::spec(
                "linux.mountLabel",
                format!("{label:?} cannot be applied: SELinux is not enabled in this kernel"),
            )),
            Some(_) | None => Ok(()),
        }
    }

    /// `process`.
    ///
    /// # Errors
    /// When it is missing.
    pub fn process(&self) -> Result<&Process> {
        self.spec
            .process()
            .as_ref()
            .ok_or_else(|| Error::spec("process", "is missing: there is nothing to run"))
    }

    /// `linux`.
    ///
    /// # Errors
    /// When it is missing.
    pub fn linux(&self) -> Result<&Linux> {
        self.spec
            .linux()
            .as_ref()
            .ok_or_else(|| Error::spec("linux", "is missing"))
    }

    /// The namespaces, as a slice.
    pub fn namespaces(&self) -> &[LinuxNamespace] {
        self.spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.namespaces().as_deref())
            .unwrap_or_default()
    }
}

/// Whether labels mean something to this kernel.
pub(crate) fn selinux_enabled() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

/// A namespace of this type, new or joined.
pub fn namespace(list: &[LinuxNamespace], typ: LinuxNamespaceType) -> Option<&LinuxNamespace> {
    list.iter().find(|namespace| namespace.typ() == typ)
}

/// Whether a namespace of this type is made for the container.
pub fn is_new(list: &[LinuxNamespace], typ: LinuxNamespaceType) -> bool {
    namespace(list, typ).is_some_and(|namespace| namespace.path().is_none())
}

/// Checks a process, of config.json or of `exec --process`.
///
/// # Errors
/// The field and what would be right.
pub fn check_process(process: &Process) -> Result<()> {
    match process.args().as_deref() {
        Some([first, ..]) if !first.is_empty() => {}
        _ => {
            return Err(Error::spec(
                "process.args",
                "needs at least the program's name",
            ));
        }
    }
    if !process.cwd().is_absolute() {
        return Err(Error::spec(
            "process.cwd",
            format!("must be absolute, not {:?}", process.cwd()),
        ));
    }
    Ok(())
}

fn check_version(version: &str) -> Result<()> {
    let major = version.split('.').next().unwrap_or_default();
    if major == "1" {
        return Ok(());
    }
    Err(Error::spec(
        "ociVersion",
        format!("{version:?} is not a version 1 of the runtime specification"),
    ))
}

fn check_namespaces(linux: &Linux) -> Result<()> {
    let list = linux.namespaces().as_deref().unwrap_or_default();
    for (at, entry) in list.iter().enumerate() {
        if list.iter().skip(at + 1).any(|n| n.typ() == entry.typ()) {
            return Err(Error::spec(
                "linux.namespaces",
                format!("{} is there twice", entry.typ()),
            ));
        }
        if let Some(path) = entry.path()
            && !path.is_absolute()
        {
            return Err(Error::spec(
                "linux.namespaces",
                format!("the path {path:?} of {} must be absolute", entry.typ()),
            ));
        }
    }
    check_time_offsets(linux, list)?;
    if linux.net_devices().as_ref().is_some_and(|d| !d.is_empty())
        && namespace(list, LinuxNamespaceType::Network).is_none()
    {
        return Err(Error::spec(
            "linux.netDevices",
            "need a network namespace in linux.namespaces",
        ));
    }
    if is_new(list, LinuxNamespaceType::User) {
        let mapped = |mappings: &Option<Vec<_>>| mappings.as_ref().is_some_and(|m| !m.is_empty());
        if !mapped(linux.uid_mappings()) || !mapped(linux.gid_mappings()) {
            return Err(Error::spec(
                "linux.uidMappings, linux.gidMappings",
                "a new user namespace needs both",
            ));
        }
    }
    Ok(())
}

fn check_time_offsets(linux: &Linux, list: &[LinuxNamespace]) -> Result<()> {
    let mut clocks = linux.time_offsets().iter().flatten().peekable();
    if clocks.peek().is_some() && !is_new(list, LinuxNamespaceType::Time) {
        return Err(Error::spec(
            "linux.timeOffsets",
            "need a new time namespace in linux.namespaces",
        ));
    }
    for (clock, offset) in clocks {
        if clock != "monotonic" && clock != "boottime" {
            return Err(Error::spec(
                "linux.timeOffsets",
                format!("{clock:?} is not a clock that has one: monotonic or boottime"),
            ));
        }
        if offset.nanosecs().is_some_and(|part| part >= 1_000_000_000) {
            return Err(Error::spec(
                format!("linux.timeOffsets.{clock}.nanosecs"),
                "is a second or more",
            ));
        }
    }
    Ok(())
}

/// A path without `.` and `..`, lexically; `..` of the root is the root.
pub fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                out.pop();
            }
            Component::RootDir | Component::Normal(_) | Component::Prefix(_) => {
                out.push(component);
            }
        }
    }
    out
}

/// A C string of a field's value.
///
/// # Errors
/// When the value contains a NUL byte.
pub fn cstring(field: &str, value: impl AsRef<OsStr>) -> Result<CString> {
    CString::new(value.as_ref().as_bytes()).map_err(|_| Error::spec(field, "contains a NUL byte"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clean_stays_inside() {
        let cases = [
            ("/a/./b/../c", "/a/c"),
            ("/../../etc", "/etc"),
            ("/a/b/../../../x", "/x"),
            ("/", "/"),
        ];
        for (path, expected) in cases {
            assert_eq!(clean(Path::new(path)), Path::new(expected), "{path}");
        }
    }

    #[test]
    fn other_major_versions_are_refused() {
        assert!(check_version("1.0.2-dev").is_ok());
        assert!(check_version("1.3.0").is_ok());
        assert!(check_version("2.0.0").is_err());
        assert!(check_version("").is_err());
    }
}
