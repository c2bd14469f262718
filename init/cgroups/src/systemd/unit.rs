//! Names of units and where systemd puts their cgroups.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The slice of containers whose cgroupsPath names none, as for runc.
const DEFAULT_SLICE: &str = "system.slice";
/// The same below a user's systemd, as for runc.
const DEFAULT_USER_SLICE: &str = "user.slice";
/// The prefix of scopes whose cgroupsPath is absent. runc's, because kubelet's, cAdvisor's and people's patterns for
/// stray scopes know that one.
const DEFAULT_PREFIX: &str = "runc";
/// systemd's limit for unit names (`UNIT_NAME_MAX`, terminating zero included).
const NAME_MAX: usize = 256;

/// A container's unit: a scope, or a slice when its name ends so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// The whole name: `cri-containerd-ID.scope`.
    name: String,
    /// The slice it is in: `kubepods-burstable-podUID.slice`.
    slice: String,
    /// The cgroup of the user's systemd that has the unit, below the root of the hierarchy; `None`: it is the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    manager: Option<PathBuf>,
}

impl Unit {
    /// A unit of the system's systemd, from `linux.cgroupsPath` of the form `slice:prefix:name`.
    ///
    /// The unit is `prefix-name.scope`, or `name` itself where that ends in `.slice`. An empty slice is `system.slice`;
    /// without a path the unit is `runc-ID.scope` there.
    ///
    /// # Errors
    /// [`Error::BadPath`] for any other form, and for names that systemd does not take.
    pub fn new(spec: Option<&Path>, id: &str) -> Result<Self> {
        Self::parse(spec, id, DEFAULT_SLICE)
    }

    /// A unit of a user's systemd, whose own cgroup is `manager` ([`super::Systemd::control_group`]). As [`Self::new`],
    /// but the empty slice is `user.slice`, a slice that user's systemd has of its own.
    ///
    /// # Errors
    /// As [`Self::new`]; also when `manager` is no absolute path.
    pub fn of_user(spec: Option<&Path>, id: &str, manager: &Path) -> Result<Self> {
        let below = manager.strip_prefix("/").ok().filter(|path| {
            path.components()
                .all(|part| matches!(part, Component::Normal(_)))
        });
        let Some(below) = below else {
            return Err(Error::BadPath {
                path: manager.display().to_string(),
                why: "is not where a user's systemd can have its cgroup",
            });
        };
        let mut this = Self::parse(spec, id, DEFAULT_USER_SLICE)?;
        this.manager = Some(below.to_owned());
        Ok(this)
    }

    fn parse(spec: Option<&Path>, id: &str, default_slice: &str) -> Result<Self> {
        let text = spec.map(|path| path.to_string_lossy().into_owned());
        let text = text.filter(|text| !text.is_empty());
        let whole = text.unwrap_or_else(|| format!(":{DEFAULT_PREFIX}:{id}"));
        let bad = |why| Error::BadPath {
            path: whole.clone(),
            why,
        };
        let mut parts = whole.split(':');
        let (Some(slice), Some(prefix), Some(name), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(bad(
                "has not the form slice:prefix:name, which the systemd cgroup driver (--systemd-cgroup) needs; without it the cgroupfs driver takes paths",
            ));
        };
        if name.is_empty() {
            return Err(bad("has an empty name behind the second colon"));
        }
        let slice = if slice.is_empty() {
            default_slice
        } else {
            slice
        };
        let unit = if name.ends_with(".slice") {
            expand(name).map_err(bad)?;
            name.to_owned()
        } else {
            format!("{prefix}-{name}.scope")
        };
        expand(slice).map_err(bad)?;
        if unit.len() >= NAME_MAX {
            return Err(bad("makes a unit name of more than 255 bytes"));
        }
        if !unit.bytes().all(valid) {
            return Err(bad(
                "holds a character that unit names cannot have (letters, digits and :-_.\\@ are allowed)",
            ));
        }
        Ok(Self {
            name: unit,
            slice: slice.to_owned(),
            manager: None,
        })
    }

    /// `cri-containerd-ID.scope`
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The slice it is put into.
    pub fn slice(&self) -> &str {
        &self.slice
    }

    /// True when it is a slice itself, which holds no process by systemd's hand.
    pub fn is_slice(&self) -> bool {
        self.name.ends_with(".slice")
    }

    /// True when a user's systemd has it, and not the system's.
    pub fn is_of_user(&self) -> bool {
        self.manager.is_some()
    }

    /// Its cgroup, below the root of each hierarchy.
    pub(crate) fn below(&self) -> PathBuf {
        let owner = if self.is_slice() {
            &self.name
        } else {
            &self.slice
        };
        // `new` has checked both.
        let mut path = self.manager.clone().unwrap_or_default();
        path.push(expand(owner).unwrap_or_default());
        if !self.is_slice() {
            path.push(&self.name);
        }
        path
    }
}

fn valid(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte)
}

/// `a-b.slice` lies in `a.slice`: the directories of a slice (systemd.slice(5)). `-.slice` is the root.
fn expand(slice: &str) -> std::result::Result<PathBuf, &'static str> {
    let Some(name) = slice.strip_suffix(".slice") else {
        return Err("names a slice that does not end in .slice");
    };
    if slice.len() >= NAME_MAX || !slice.bytes().all(valid) {
        return Err("names a slice that systemd does not take");
    }
    if name == "-" {
        return Ok(PathBuf::new());
    }
    let mut path = PathBuf::new();
    let mut so_far = String::new();
    for part in name.split('-') {
        if part.is_empty() {
            return Err("names a slice with an empty part (a dash at an end, or two in a row)");
        }
        if !so_far.is_empty() {
            so_far.push('-');
        }
        so_far.push_str(part);
        path.push(format!("{so_far}.slice"));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(spec: &str) -> Result<Unit> {
        Unit::new(Some(Path::new(spec)), "c1")
    }

    #[test]
    fn names_and_places() {
        for (spec, name, slice, path) in [
            (
                "kubepods-besteffort-pod1_2.slice:cri-containerd:abc",
                "cri-containerd-abc.scope",
                "kubepods-besteffort-pod1_2.slice",
                "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice/cri-containerd-abc.scope",
            ),
            (
                "system.slice:docker:1",
                "docker-1.scope",
                "system.slice",
                "system.slice/docker-1.scope",
            ),
            (
                ":x:1",
                "x-1.scope",
                "system.slice",
                "system.slice/x-1.scope",
            ),
            ("a.slice::1", "-1.scope", "a.slice", "a.slice/-1.scope"),
            ("-.slice:x:1", "x-1.scope", "-.slice", "x-1.scope"),
            (
                "a.slice:ignored:a-b.slice",
                "a-b.slice",
                "a.slice",
                "a.slice/a-b.slice",
            ),
            (
                "",
                "runc-c1.scope",
                "system.slice",
                "system.slice/runc-c1.scope",
            ),
        ] {
            let unit = unit(spec).unwrap();
            assert_eq!((unit.name(), unit.slice()), (name, slice), "{spec}");
            assert_eq!(unit.below(), Path::new(path), "{spec}");
            assert_eq!(unit.is_slice(), name.ends_with(".slice"));
        }
        assert_eq!(Unit::new(None, "c1").unwrap().name(), "runc-c1.scope");
    }

    #[test]
    fn units_of_a_user_are_below_his_systemd() {
        let manager = Path::new("/user.slice/user-1000.slice/user@1000.service");
        for (spec, path) in [
            (":libpod:c1", "user.slice/libpod-c1.scope"),
            ("", "user.slice/runc-c1.scope"),
            ("a-b.slice:x:1", "a.slice/a-b.slice/x-1.scope"),
            ("-.slice:x:1", "x-1.scope"),
        ] {
            let unit = Unit::of_user(Some(Path::new(spec)), "c1", manager).unwrap();
            let whole = Path::new("user.slice/user-1000.slice/user@1000.service").join(path);
            assert_eq!(unit.below(), whole, "{spec}");
            assert!(unit.is_of_user());
            let again: Unit = serde_json::from_str(&serde_json::to_string(&unit).unwrap()).unwrap();
            assert_eq!(again, unit);
        }
        for bad in ["", "relative", "/a/../b"] {
            let error = Unit::of_user(None, "c1", Path::new(bad)).unwrap_err();
            assert!(matches!(error, Error::BadPath { .. }), "{bad}: {error}");
        }
        // A record of before there were users'.
        let old: Unit = serde_json::from_str(r#"{"name":"a.scope","slice":"b.slice"}"#).unwrap();
        assert!(!old.is_of_user());
    }

    #[test]
    fn what_is_refused() {
        for (spec, why) in [
            ("/a/b", "slice:prefix:name"),
            ("a.slice:b", "slice:prefix:name"),
            ("a.slice:b:c:d", "slice:prefix:name"),
            ("a:b:c", "does not end in .slice"),
            ("a--b.slice:p:c", "empty part"),
            ("-a.slice:p:c", "empty part"),
            ("a-.slice:p:c", "empty part"),
            (".slice:p:c", "empty part"),
            ("../a.slice:p:c", "does not take"),
            ("a.slice:p:c/d", "character"),
            ("a.slice:p:a+b", "character"),
            ("a.slice:p:", "empty name"),
            (&format!("a.slice:p:{}", "x".repeat(250)), "255"),
        ] {
            let error = unit(spec).unwrap_err();
            assert!(error.to_string().contains(why), "{spec}: {error}");
        }
        assert!(unit(&format!("a.slice:p:{}", "x".repeat(247))).is_ok());
    }
}
