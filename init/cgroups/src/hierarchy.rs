//! Which cgroup file systems this machine has, and where.
//!
//! Sources: cgroups(7), proc_pid_mountinfo(5), Documentation/admin-guide/cgroup-v2.rst ("Mounting").

use std::ffi::CString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::dir;
use crate::error::{Error, Result};
use crate::sys;

/// What kind of hierarchy is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// cgroup v1: one or more controllers, co-mounted (`cpu`, `cpuacct`); none when only named.
    V1 {
        /// The controllers, in the order of the kernel's list.
        controllers: Vec<String>,
        /// `name=` of the mount (`systemd`).
        name: Option<String>,
    },
    /// cgroup v2.
    V2,
}

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// The cgroup shown at the mount point, as /proc/PID/cgroup would name it; `/` outside of containers.
    pub mount_root: PathBuf,
    /// Version and controllers.
    pub kind: Kind,
}

impl Hierarchy {
    /// True when this v1 hierarchy carries the controller.
    pub fn has(&self, controller: &str) -> bool {
        match &self.kind {
            Kind::V1 { controllers, .. } => controllers.iter().any(|c| c == controller),
            Kind::V2 => false,
        }
    }

    /// True for the v2 hierarchy.
    pub fn is_v2(&self) -> bool {
        matches!(self.kind, Kind::V2)
    }

    /// The directory of a path that /proc/PID/cgroup gives for this hierarchy; `None` when the mount does not
    /// show that part of the tree.
    fn directory_of(&self, path: &Path) -> Option<PathBuf> {
        let below = path.strip_prefix(&self.mount_root).ok()?;
        if below
            .components()
            .any(|c| c == std::path::Component::ParentDir)
        {
            return None;
        }
        Some(if below.as_os_str().is_empty() {
            self.mount_point.clone()
        } else {
            self.mount_point.join(below)
        })
    }
}

/// How the hierarchies are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// One cgroup v2 mount with everything.
    Unified,
    /// cgroup v1 only.
    V1,
    /// v1 controllers, plus a v2 mount without controllers (or with the few that v1 left).
    Hybrid,
}

/// The hierarchies of this machine.
#[derive(Debug)]
pub struct Hierarchies {
    layout: Layout,
    list: Vec<Hierarchy>,
    /// /proc/self/cgroup, read with the detection (v1, hybrid) or when first needed (v2).
    own: OnceLock<String>,
}

const ROOT: &std::ffi::CStr = c"/sys/fs/cgroup";
const ROOT_PATH: &str = "/sys/fs/cgroup";

impl Hierarchies {
    /// Finds the hierarchies.
    ///
    /// One statfs(2) where /sys/fs/cgroup is cgroup2; else /proc/self/cgroup and /proc/self/mountinfo are read
    /// once, the latter only until every hierarchy of the former has been seen.
    ///
    /// # Errors
    /// [`Error::NotMounted`] when there is no hierarchy at all; [`Error::Io`] when /proc cannot be read.
    pub fn detect() -> Result<Self> {
        match sys::file_system_magic(ROOT) {
            Ok(sys::CGROUP2_MAGIC) => return Ok(Self::unified_at(ROOT_PATH)),
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(Error::io("statfs", ROOT_PATH)(error)),
        }
        let own = read_proc("/proc/self/cgroup")?;
        let list = read_mountinfo(&own)?;
        Self::of(list, Some(own))
    }

    /// A pure v2 layout at another mount point (a private mount, a test's folder).
    pub fn unified_at(mount_point: impl Into<PathBuf>) -> Self {
        Self {
            layout: Layout::Unified,
            list: vec![Hierarchy {
                mount_point: mount_point.into(),
                mount_root: "/".into(),
                kind: Kind::V2,
            }],
            own: OnceLock::new(),
        }
    }

    /// A layout made of the given hierarchies (private mounts, tests).
    ///
    /// # Errors
    /// [`Error::NotMounted`] when the list is empty.
    pub fn from_list(list: Vec<Hierarchy>) -> Result<Self> {
        Self::of(list, None)
    }

    fn of(list: Vec<Hierarchy>, own: Option<String>) -> Result<Self> {
        let v2 = list.iter().any(Hierarchy::is_v2);
        let v1 = list.iter().any(|h| !h.is_v2());
        let layout = match (v1, v2) {
            (true, true) => Layout::Hybrid,
            (true, false) => Layout::V1,
            (false, true) => Layout::Unified,
            (false, false) => {
                return Err(Error::NotMounted {
                    looked_at: "/sys/fs/cgroup and /proc/self/mountinfo",
                });
            }
        };
        let cell = OnceLock::new();
        if let Some(own) = own {
            // A new cell is empty, so this cannot fail.
            let _ = cell.set(own);
        }
        Ok(Self {
            layout,
            list,
            own: cell,
        })
    }

    /// The layout.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The hierarchies, v1 first in mount order, the v2 one last.
    pub fn list(&self) -> &[Hierarchy] {
        &self.list
    }

    /// The directory of the calling process in each hierarchy, in the order of [`Self::list`].
    pub(crate) fn own_directories(&self) -> Result<Vec<PathBuf>> {
        let text = match self.own.get() {
            Some(text) => text,
            None => {
                let text = read_proc("/proc/self/cgroup")?;
                self.own.get_or_init(|| text)
            }
        };
        let found = self.directories_in(text);
        self.list
            .iter()
            .zip(found)
            .map(|(hierarchy, found)| {
                found.ok_or_else(|| Error::Gone {
                    path: format!("the own cgroup below {}", hierarchy.mount_point.display()),
                })
            })
            .collect()
    }

    /// The directories that the text of a /proc/PID/cgroup names, in the order of [`Self::list`].
    pub(crate) fn directories_in(&self, proc_cgroup: &str) -> Vec<Option<PathBuf>> {
        self.list
            .iter()
            .map(|hierarchy| {
                proc_cgroup
                    .lines()
                    .find_map(|line| line_of(line, &hierarchy.kind))
                    .and_then(|path| hierarchy.directory_of(path))
            })
            .collect()
    }
}

/// The path of a line of /proc/PID/cgroup (`4:memory:/a`, `9:name=systemd:/`, `0::/a`) if it is of that kind.
pub(crate) fn line_of<'a>(line: &'a str, kind: &Kind) -> Option<&'a Path> {
    let mut fields = line.splitn(3, ':');
    let (id, subsystems, path) = (fields.next()?, fields.next()?, fields.next()?);
    let mine = match kind {
        Kind::V2 => id == "0" && subsystems.is_empty(),
        Kind::V1 { controllers, name } => match controllers.first() {
            Some(first) => subsystems.split(',').any(|s| s == first),
            None => name
                .as_deref()
                .is_some_and(|name| subsystems.strip_prefix("name=") == Some(name)),
        },
    };
    // A cgroup removed under a zombie or an open fd.
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    mine.then(|| Path::new(path))
}

/// Reads a small file of /proc as text.
pub(crate) fn read_proc(path: &str) -> Result<String> {
    sys::open(None, Path::new(path), libc::O_RDONLY)
        .and_then(|fd| dir::read_all(fd.as_fd()))
        .map_err(Error::io("read", path))
}

/// The cgroup mounts of /proc/self/mountinfo, read until each hierarchy of /proc/self/cgroup has been seen at its usual
/// place. On a node with thousands of mounts that spares most of the file: cgroups are mounted early.
fn read_mountinfo(own: &str) -> Result<Vec<Hierarchy>> {
    const PATH: &str = "/proc/self/mountinfo";
    let expected = own.lines().count();
    let known: Vec<&str> = subsystems(own).collect();
    let read = || -> io::Result<Vec<Hierarchy>> {
        let fd = sys::open(None, Path::new(PATH), libc::O_RDONLY)?;
        let mut bytes: Vec<u8> = Vec::new();
        let mut chunk = [0_u8; 4096];
        let mut parsed = 0;
        let mut found: Vec<Hierarchy> = Vec::new();
        loop {
            let n = sys::read_at(fd.as_fd(), &mut chunk, bytes.len())?;
            bytes.extend_from_slice(chunk.get(..n).unwrap_or_default());
            let end = match bytes.iter().rposition(|&b| b == b'\n') {
                Some(last) => last + 1,
                None if n == 0 => return Ok(found),
                None => continue,
            };
            let fresh =
                String::from_utf8_lossy(bytes.get(parsed..end).unwrap_or_default()).into_owned();
            parsed = end;
            for hierarchy in fresh.lines().filter_map(|line| parse_mount(line, &known)) {
                add(&mut found, hierarchy);
            }
            let usual = found
                .iter()
                .filter(|h| h.mount_point.starts_with(ROOT_PATH))
                .count();
            if n == 0 || usual >= expected {
                return Ok(found);
            }
        }
    };
    let mut found = read().map_err(Error::io("read", PATH))?;
    // People cover the v2 mount of a hybrid node with a tmpfs for programs that do not expect
    // it; mountinfo is not read far enough to see that.
    found.retain(|h| !h.is_v2() || is_cgroup2(&h.mount_point));
    found.sort_by_key(Hierarchy::is_v2);
    Ok(found)
}

fn is_cgroup2(path: &Path) -> bool {
    CString::new(path.as_os_str().as_bytes()).is_ok_and(|path| {
        sys::file_system_magic(&path).is_ok_and(|magic| magic == sys::CGROUP2_MAGIC)
    })
}

/// The controllers that /proc/PID/cgroup names.
fn subsystems(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter_map(|line| line.split(':').nth(1))
        .flat_map(|names| names.split(','))
        .filter(|name| !name.is_empty() && !name.contains('='))
}

/// Keeps one mount of each hierarchy: the first below /sys/fs/cgroup, else the first at all.
fn add(found: &mut Vec<Hierarchy>, new: Hierarchy) {
    match found.iter_mut().find(|old| old.kind == new.kind) {
        None => found.push(new),
        Some(old) => {
            if !old.mount_point.starts_with(ROOT_PATH) && new.mount_point.starts_with(ROOT_PATH) {
                *old = new;
            }
        }
    }
}

/// Parses one line, given the controllers there are: `36 31 0:33 ROOT POINT OPTIONS [TAGS] - TYPE SOURCE SUPER_OPTIONS`.
fn parse_mount(line: &str, known: &[&str]) -> Option<Hierarchy> {
    let (left, right) = line.split_once(" - ")?;
    let mut right = right.split(' ');
    let (fs_type, super_options) = (right.next()?, right.nth(1)?);
    let mut left = left.split(' ');
    let (root, point) = (left.nth(3)?, left.next()?);
    let kind = match fs_type {
        "cgroup2" => Kind::V2,
        "cgroup" => {
            let mut controllers = Vec::new();
            let mut name = None;
            for option in super_options.split(',') {
                // The rest are flags (rw, xattr, seclabel, ...).
                if known.contains(&option) {
                    controllers.push(option.to_owned());
                } else if let Some(value) = option.strip_prefix("name=") {
                    name = Some(value.to_owned());
                }
            }
            Kind::V1 { controllers, name }
        }
        _ => return None,
    };
    Some(Hierarchy {
        mount_point: unescape(point).into(),
        mount_root: unescape(root).into(),
        kind,
    })
}

/// mountinfo writes blanks, tabs, newlines and backslashes as three octal digits.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        let (before, tail) = rest.split_at(at);
        out.push_str(before);
        match tail
            .get(1..4)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok())
        {
            Some(byte) => {
                out.push(char::from(byte));
                rest = tail.get(4..).unwrap_or_default();
            }
            None => {
                out.push('\\');
                rest = tail.get(1..).unwrap_or_default();
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Option<Hierarchy> {
        let own = "5:memory:/a\n4:cpu,cpuacct:/\n1:name=systemd:/\n0::/\n";
        parse_mount(line, &subsystems(own).collect::<Vec<_>>())
    }

    #[test]
    fn mount_lines_are_understood() {
        let cpu = parse(
            "33 25 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,seclabel,cpu,cpuacct,release_agent=/x",
        )
        .unwrap();
        assert_eq!(
            cpu.kind,
            Kind::V1 {
                controllers: vec!["cpu".into(), "cpuacct".into()],
                name: None
            }
        );
        assert!(cpu.has("cpu") && cpu.has("cpuacct") && !cpu.has("memory"));
        let systemd = parse(
            "28 25 0:26 /docker/1 /sys/fs/cgroup/sy\\040stemd rw - cgroup cgroup rw,xattr,name=systemd",
        )
        .unwrap();
        assert_eq!(
            systemd.kind,
            Kind::V1 {
                controllers: vec![],
                name: Some("systemd".into())
            }
        );
        assert_eq!(systemd.mount_point, Path::new("/sys/fs/cgroup/sy stemd"));
        assert_eq!(
            systemd.directory_of(Path::new("/docker/1/a")).unwrap(),
            systemd.mount_point.join("a")
        );
        assert_eq!(
            systemd.directory_of(Path::new("/docker/1")).unwrap(),
            systemd.mount_point
        );
        assert_eq!(systemd.directory_of(Path::new("/other")), None);
        let v2 = parse("41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate");
        assert_eq!(v2.unwrap().kind, Kind::V2);
        assert!(parse("23 1 8:1 / / rw - ext4 /dev/sda1 rw").is_none());
        assert!(parse("garbage").is_none());
    }

    #[test]
    fn proc_cgroup_is_read_per_hierarchy() {
        let v1 = |point: &str, controllers: &[&str], name: Option<&str>| Hierarchy {
            mount_point: point.into(),
            mount_root: "/".into(),
            kind: Kind::V1 {
                controllers: controllers.iter().map(|&c| c.to_owned()).collect(),
                name: name.map(str::to_owned),
            },
        };
        let unified = Hierarchy {
            mount_point: "/u".into(),
            mount_root: "/".into(),
            kind: Kind::V2,
        };
        let all = Hierarchies::from_list(vec![
            v1("/cpu", &["cpu", "cpuacct"], None),
            v1("/mem", &["memory"], None),
            v1("/sd", &[], Some("systemd")),
            v1("/none", &["rdma"], None),
            unified,
        ])
        .unwrap();
        assert_eq!(all.layout(), Layout::Hybrid);
        let text = "5:memory:/kube/a:b\n4:cpu,cpuacct:/c\n1:name=systemd:/s\n0::/d (deleted)\n";
        let found: Vec<_> = all
            .directories_in(text)
            .into_iter()
            .map(|p| p.unwrap_or_default())
            .collect();
        assert_eq!(
            found,
            ["/cpu/c", "/mem/kube/a:b", "/sd/s", "", "/u/d"].map(PathBuf::from)
        );
    }

    #[test]
    fn this_machine_has_hierarchies() {
        let here = Hierarchies::detect().unwrap();
        assert!(!here.list().is_empty());
        for hierarchy in here.list() {
            assert!(
                hierarchy.mount_point.join("cgroup.procs").exists(),
                "{hierarchy:?}"
            );
        }
        assert_eq!(here.own_directories().unwrap().len(), here.list().len());
    }
}
