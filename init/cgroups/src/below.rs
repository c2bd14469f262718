//! Cgroups below a container's own, for one of its processes (`exec --cgroup`).
//!
//! Source of the form: runc-exec(8), `--cgroup`.

use std::path::{Path, PathBuf};

use crate::cgroup::Cgroup;
use crate::error::{Error, Result};
use crate::hierarchy::{Hierarchy, Kind};
use crate::path::clean;
use crate::place::Place;

/// Where below the container's cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Below {
    /// `PATH`: the same in every hierarchy; `/` is the container's own cgroup.
    Everywhere(PathBuf),
    /// `CONTROLLER[,CONTROLLER...]:PATH`, any number of times: in the hierarchies of these controllers (v1), and the
    /// container's own in the others. `name=systemd` is a controller here, and the empty one is hybrid's v2 hierarchy.
    Of(Vec<(String, PathBuf)>),
}

impl Below {
    /// From the values of the option; `None` when it was not given.
    ///
    /// # Errors
    /// [`Error::BadPath`] for a path that leaves the container's cgroup, and for what is not of that form.
    pub fn parse(values: &[String]) -> Result<Option<Self>> {
        let mut of = Vec::new();
        for value in values {
            let bad = |why| Error::BadPath {
                path: value.clone(),
                why,
            };
            let mut parts = value.split(':');
            match (parts.next(), parts.next(), parts.next()) {
                (Some(path), None, _) if values.len() == 1 => {
                    return Ok(Some(Self::Everywhere(inside(value, path)?)));
                }
                (Some(_), None, _) => {
                    return Err(bad(
                        "has no CONTROLLER: before it, which each of several --cgroup needs",
                    ));
                }
                (Some(controllers), Some(path), None) => {
                    let path = inside(value, path)?;
                    of.extend(
                        controllers
                            .split(',')
                            .map(|controller| (controller.to_owned(), path.clone())),
                    );
                }
                (_, _, Some(_)) => {
                    return Err(bad("is neither PATH nor CONTROLLER[,CONTROLLER...]:PATH"));
                }
                (None, _, None) => {}
            }
        }
        Ok((!of.is_empty()).then_some(Self::Of(of)))
    }
}

/// A path that stays below; empty for `/`.
fn inside(value: &str, path: &str) -> Result<PathBuf> {
    let path = Path::new(path);
    if path.components().all(|part| {
        matches!(
            part,
            std::path::Component::RootDir | std::path::Component::CurDir
        )
    }) {
        return Ok(PathBuf::new());
    }
    clean(path).map_err(|error| match error {
        Error::BadPath { why, .. } => Error::BadPath {
            path: value.to_owned(),
            why,
        },
        other => other,
    })
}

impl Cgroup {
    /// The cgroup below this one in which a process is wanted. It must exist wherever it is asked for: in each other
    /// hierarchy the process would escape the limits that it is put there for.
    ///
    /// # Errors
    /// [`Error::NoHierarchy`] for a controller that this cgroup has no hierarchy of its own for; [`Error::BadPath`] for
    /// two places in one hierarchy; [`Error::Gone`] where there is no such cgroup.
    pub fn below(&self, below: &Below) -> Result<Self> {
        let mut places = Vec::with_capacity(self.places.len());
        if let Below::Of(list) = below
            && let Some((unknown, _)) = list.iter().find(|(name, _)| {
                !self
                    .places
                    .iter()
                    .any(|place| is_of(&place.hierarchy, name))
            })
        {
            return Err(Error::NoHierarchy {
                controller: unknown.clone(),
            });
        }
        for place in &self.places {
            let path = match below {
                Below::Everywhere(path) => Some(path),
                Below::Of(list) => {
                    let mut mine = list
                        .iter()
                        .filter(|(name, _)| is_of(&place.hierarchy, name))
                        .map(|(_, path)| path);
                    let first = mine.next();
                    if let Some(other) = mine.find(|other| Some(*other) != first) {
                        return Err(Error::BadPath {
                            path: other.display().to_string(),
                            why: "is the second place for controllers that have one hierarchy together",
                        });
                    }
                    first
                }
            };
            let own = place.dir.path();
            let there = match path {
                Some(path) if !path.as_os_str().is_empty() => own.join(path),
                Some(_) | None => own.to_owned(),
            };
            if there != own && !there.is_dir() {
                return Err(Error::Gone {
                    path: there.display().to_string(),
                });
            }
            places.push(Place::new(&place.hierarchy, there));
        }
        Ok(Self { places })
    }
}

fn is_of(hierarchy: &Hierarchy, name: &str) -> bool {
    match &hierarchy.kind {
        Kind::V2 => name.is_empty(),
        Kind::V1 {
            name: Some(named), ..
        } if name.strip_prefix("name=") == Some(named) => true,
        Kind::V1 { .. } => hierarchy.has(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hierarchy::Hierarchies;
    use crate::path::CgroupPath;

    fn parse(values: &[&str]) -> Result<Option<Below>> {
        Below::parse(&values.iter().map(|&v| v.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn both_forms_are_read() {
        assert_eq!(parse(&[]).unwrap(), None);
        for (value, path) in [("/a/b", "a/b"), ("a", "a"), ("/", ""), ("", ""), (".", "")] {
            let expected = Below::Everywhere(path.into());
            assert_eq!(parse(&[value]).unwrap(), Some(expected), "{value}");
        }
        let of = parse(&["cpu,cpuacct:/a", "name=systemd:b", ":c"]).unwrap();
        let expected = [
            ("cpu", "a"),
            ("cpuacct", "a"),
            ("name=systemd", "b"),
            ("", "c"),
        ];
        let expected = expected
            .iter()
            .map(|&(name, path)| (name.to_owned(), path.into()))
            .collect();
        assert_eq!(of, Some(Below::Of(expected)));
    }

    #[test]
    fn what_is_refused() {
        for (values, why) in [
            (&["cpu:a", "b"][..], "has no CONTROLLER:"),
            (&["a", "b"], "has no CONTROLLER:"),
            (&["cpu:a:b"], "neither"),
            (&["cpu:/../x"], "\"..\""),
            (&["../x"], "\"..\""),
            (&["a/cgroup.procs"], "cgroup."),
        ] {
            let error = parse(values).unwrap_err().to_string();
            assert!(error.contains(why), "{values:?}: {error}");
            assert!(
                error.contains(values[values.len() - 1]),
                "{values:?}: {error}"
            );
        }
    }

    /// Two hierarchies in a folder, the container's cgroup in both, and one below it in the first.
    fn folder() -> (tempfile::TempDir, Cgroup) {
        let folder = tempfile::tempdir().unwrap();
        let v1 = |point: &str, controllers: &[&str]| Hierarchy {
            mount_point: folder.path().join(point),
            mount_root: "/".into(),
            kind: Kind::V1 {
                controllers: controllers.iter().map(|&c| c.to_owned()).collect(),
                name: None,
            },
        };
        for path in ["cpu/box/sub", "pids/box", "unified/box/other"] {
            std::fs::create_dir_all(folder.path().join(path)).unwrap();
        }
        let unified = Hierarchy {
            mount_point: folder.path().join("unified"),
            mount_root: "/".into(),
            kind: Kind::V2,
        };
        let list = vec![
            v1("cpu", &["cpu", "cpuacct"]),
            v1("pids", &["pids"]),
            unified,
        ];
        let hierarchies = Hierarchies::from_list(list).unwrap();
        let own = Cgroup::open(&hierarchies, &CgroupPath::BelowRoot("box".into())).unwrap();
        (folder, own)
    }

    #[test]
    fn a_process_stays_in_the_container_s_cgroup_where_nothing_else_is_asked() {
        let (folder, own) = folder();
        let places = |values: &[&str]| {
            let below = own.below(&parse(values)?.unwrap())?;
            let relative = |path: &Path| {
                let path = path.strip_prefix(folder.path()).unwrap();
                path.display().to_string()
            };
            Ok::<_, Error>(below.directories().map(relative).collect::<Vec<_>>())
        };
        assert_eq!(
            places(&["cpu:/sub"]).unwrap(),
            ["cpu/box/sub", "pids/box", "unified/box"]
        );
        assert_eq!(
            places(&["cpu,cpuacct:sub", ":other"]).unwrap(),
            ["cpu/box/sub", "pids/box", "unified/box/other"]
        );
        assert_eq!(
            places(&["/"]).unwrap(),
            ["cpu/box", "pids/box", "unified/box"]
        );
        // Not in all of them.
        let error = places(&["sub"]).unwrap_err();
        assert!(
            error.is_gone() && error.to_string().contains("pids/box/sub"),
            "{error}"
        );
        let error = places(&["pids:sub"]).unwrap_err();
        assert!(error.is_gone(), "{error}");
        let error = places(&["cpu:sub", "cpuacct:/"]).unwrap_err();
        assert!(error.to_string().contains("second place"), "{error}");
        let error = places(&["bogus:sub"]).unwrap_err();
        assert!(matches!(&error, Error::NoHierarchy { controller } if controller == "bogus"));
    }
}
