//! A container's cgroup in one hierarchy: how its directory is made, entered and taken back.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;

use crate::dir::{self, Dir};
use crate::error::{Error, Hint, Holder, Result};
use crate::hierarchy::{Hierarchy, Kind, Layout};
use crate::sys;
use crate::{controllers, remove};

/// The cgroup in one hierarchy.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) hierarchy: Hierarchy,
    pub(crate) dir: Dir,
    /// Whether `create` made the directory (else it was there, empty).
    pub(crate) made: bool,
    /// How many of the directories directly above `create` had to make.
    pub(crate) made_parents: u16,
}

impl Place {
    pub(crate) fn new(hierarchy: &Hierarchy, path: PathBuf) -> Self {
        Self {
            hierarchy: hierarchy.clone(),
            dir: Dir::at(path),
            made: false,
            made_parents: 0,
        }
    }

    pub(crate) fn is_root(&self) -> bool {
        self.dir.path() == self.hierarchy.mount_point
    }
}

impl Place {
    pub(crate) fn attach(&self, pid: i32) -> Result<()> {
        let value = pid.to_string();
        self.dir
            .try_write("cgroup.procs", &value)
            .map_err(|source| Error::Write {
                hint: Hint(
                    match source.raw_os_error() {
                        Some(libc::EBUSY | libc::EOPNOTSUPP) => {
                            "cgroup v2 allows no process beside child cgroups that have controllers"
                        }
                        Some(libc::ENOSPC) => "cpuset.cpus or cpuset.mems is empty",
                        Some(libc::ESRCH) => "the process is gone",
                        _ => "",
                    }
                    .to_owned(),
                ),
                file: self.dir.path().join("cgroup.procs"),
                value,
                source,
            })
    }

    pub(crate) fn make(
        &mut self,
        base: &Path,
        below: &Path,
        layout: Layout,
        resources: Option<&LinuxResources>,
        occupant: Option<i32>,
    ) -> Result<()> {
        self.make_directory(base, below)?;
        if !self.made {
            self.refuse_occupied(occupant)?;
        }
        match (layout, &self.hierarchy.kind) {
            (Layout::Unified, _) => {
                controllers::enable(&self.dir, &self.hierarchy.mount_point, resources)
            }
            // The controllers that matter are on v1.
            (Layout::Hybrid | Layout::V1, Kind::V2) => Ok(()),
            (Layout::Hybrid | Layout::V1, Kind::V1 { .. }) => {
                if self.made && self.hierarchy.has("cpuset") {
                    inherit_cpuset(self.dir.path(), &self.hierarchy.mount_point)
                } else {
                    Ok(())
                }
            }
        }
    }

    fn make_directory(&mut self, base: &Path, below: &Path) -> Result<()> {
        let path = self.dir.path().to_owned();
        // Another container's removal may take an empty parent away between our steps: begin again.
        for _ in 0..16 {
            match sys::mkdir(&path) {
                Ok(()) => {
                    self.made = true;
                    return Ok(());
                }
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => return Ok(()),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(Error::io("create directory", path)(error)),
            }
            self.made_parents = 0;
            let mut parent = base.to_owned();
            for name in below.parent().into_iter().flat_map(Path::components) {
                parent.push(name);
                match sys::mkdir(&parent) {
                    Ok(()) => self.made_parents += 1,
                    Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                    Err(error)
                        if error.raw_os_error() == Some(libc::ENOENT)
                            && parent.parent() != Some(base) =>
                    {
                        break;
                    }
                    Err(error) => return Err(Error::io("create directory", parent)(error)),
                }
            }
        }
        Err(Error::io("create directory", path)(
            io::Error::from_raw_os_error(libc::ENOENT),
        ))
    }

    /// An existing cgroup may be taken over only when nobody but `occupant` is in it and its processes would run.
    fn refuse_occupied(&self, occupant: Option<i32>) -> Result<()> {
        let path = || self.dir.path().to_owned();
        let mut pids = processes_in(&self.dir)?;
        pids.retain(|&pid| Some(pid) != occupant);
        if !pids.is_empty() {
            return Err(Error::NotEmpty {
                path: path(),
                holders: Holder::of_all(&pids),
            });
        }
        let frozen = if self.hierarchy.is_v2() {
            self.dir
                .try_read("cgroup.freeze")
                .is_ok_and(|text| text.trim() == "1")
        } else {
            self.hierarchy.has("freezer")
                && self
                    .dir
                    .try_read("freezer.state")
                    .is_ok_and(|text| text.trim() != "THAWED")
        };
        if frozen {
            Err(Error::Frozen { path: path() })
        } else {
            Ok(())
        }
    }

    /// Takes back what `make` made; best effort, for the error path.
    pub(crate) fn unmake(&self) {
        if self.made
            && let Err(error) = sys::rmdir(self.dir.path())
        {
            log::warn!(
                "cgroup: remove {}: {error}, ignoring",
                self.dir.path().display()
            );
            return;
        }
        remove::made_parents(self);
    }
}

/// Copies `cpuset.cpus` and `.mems` from the parent into a directory where they are empty.
fn inherit_cpuset(path: &Path, mount_point: &Path) -> Result<()> {
    let Some(parent) = path.parent().filter(|_| path != mount_point) else {
        return Ok(());
    };
    let (child, parent) = (Dir::at(path.to_owned()), Dir::at(parent.to_owned()));
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let mut value = parent.read(file)?;
        if value.trim().is_empty() {
            inherit_cpuset(parent.path(), mount_point)?;
            value = parent.read(file)?;
        }
        child.write(file, value.trim())?;
    }
    Ok(())
}

/// The pids of `cgroup.procs` of one directory; none when it is gone.
pub(crate) fn processes_in(dir: &Dir) -> Result<Vec<i32>> {
    let text = dir
        .open("cgroup.procs", libc::O_RDONLY)
        .and_then(|fd| dir::read_records(fd.as_fd()));
    match text {
        Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
        Err(error) if dir::gone(&error) => Ok(Vec::new()),
        // A threaded cgroup of v2 lists threads only; its domain root, higher up, lists the processes.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(Vec::new()),
        Err(error) => Err(Error::io("read", dir.path().join("cgroup.procs"))(error)),
    }
}

/// The pids of a directory and all below.
pub(crate) fn processes_below(dir: &Dir) -> Result<Vec<i32>> {
    match dir.fd() {
        Ok(_) => {}
        Err(error) if error.is_gone() => return Ok(Vec::new()),
        Err(error) => return Err(error),
    }
    let mut pids = processes_in(dir)?;
    let below = match dir.walk() {
        Ok(below) => below,
        Err(error) if dir::gone(&error) => return Ok(pids),
        Err(error) => return Err(Error::io("list", dir.path())(error)),
    };
    for path in below.into_iter().skip(1) {
        pids.extend(processes_in(&Dir::at(path))?);
    }
    // A process that moved while we looked may have been seen twice.
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}
