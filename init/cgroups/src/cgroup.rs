//! A container's cgroup: one directory in every hierarchy.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

use crate::dir::{self, Dir};
use crate::error::{Error, Hint, Holder, Result};
use crate::hierarchy::{Hierarchies, Hierarchy, Kind, Layout, read_proc};
use crate::path::CgroupPath;
use crate::sys;
use crate::systemd::{self, Unit};
use crate::{controllers, remove};

/// A cgroup, in all hierarchies of the machine.
///
/// Nothing process-wide is touched by any method, every method that waits takes a deadline, and all methods are
/// usable from several threads. Directories are opened when first needed; [`Cgroup`] is cheap until then.
#[derive(Debug)]
pub struct Cgroup {
    pub(crate) nodes: Vec<Node>,
}

/// The cgroup in one hierarchy.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) hierarchy: Hierarchy,
    pub(crate) dir: Dir,
    /// Whether `create` made the directory (else it was there, empty).
    pub(crate) made: bool,
    /// How many of the directories directly above `create` had to make.
    pub(crate) made_parents: u16,
}

impl Node {
    pub(crate) fn new(hierarchy: &Hierarchy, path: PathBuf) -> Self {
        Self {
            hierarchy: hierarchy.clone(),
            dir: Dir::at(path),
            made: false,
            made_parents: 0,
        }
    }

    fn is_root(&self) -> bool {
        self.dir.path() == self.hierarchy.mount_point
    }
}

/// The place of a cgroup, for the runtime's state file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedCgroup {
    /// One entry for each hierarchy.
    pub places: Vec<SavedPlace>,
}

/// The place of a cgroup in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedPlace {
    /// Where the hierarchy is mounted.
    pub mount_point: PathBuf,
    /// Which cgroup the mount point shows ([`Hierarchy::mount_root`]).
    pub mount_root: PathBuf,
    /// Version and controllers.
    pub kind: Kind,
    /// The cgroup's directory, absolute.
    pub path: PathBuf,
    /// Whether `create` made it.
    pub made: bool,
    /// How many of the directories directly above it `create` made.
    #[serde(default)]
    pub made_parents: u16,
}

/// The directories that a path is below of, one for each hierarchy.
fn bases(hierarchies: &Hierarchies, path: &CgroupPath) -> Result<Vec<PathBuf>> {
    match path {
        CgroupPath::BelowRoot(_) => Ok(hierarchies
            .list()
            .iter()
            .map(|hierarchy| hierarchy.mount_point.clone())
            .collect()),
        CgroupPath::BelowOwn(_) => hierarchies.own_directories(),
    }
}

impl Cgroup {
    /// Makes the directories of a new container.
    ///
    /// v1: one in every hierarchy, named ones too; `cpuset.cpus` and `.mems` are inherited where they are empty.
    /// Pure v2: the controllers that `resources` needs, and those that count for the statistics (io, memory, pids),
    /// are switched on in the ancestors that lack them, one write each; an ancestor is touched only when something is
    /// missing below it. A limit whose controller cannot be switched on fails later, in [`Self::apply`], by name.
    ///
    /// An existing cgroup is taken over when it is empty and not frozen. When anything fails, the directories made so
    /// far are removed.
    ///
    /// # Errors
    /// [`Error::NotEmpty`], [`Error::Frozen`], or [`Error::Io`] with the directory.
    pub fn create(
        hierarchies: &Hierarchies,
        path: &CgroupPath,
        resources: Option<&LinuxResources>,
    ) -> Result<Self> {
        let bases = bases(hierarchies, path)?;
        let mut this = Self {
            nodes: Vec::with_capacity(bases.len()),
        };
        let result = hierarchies
            .list()
            .iter()
            .zip(&bases)
            .try_for_each(|(hierarchy, base)| {
                this.nodes
                    .push(Node::new(hierarchy, base.join(path.below())));
                match this.nodes.last_mut() {
                    Some(node) => {
                        node.make(base, path.below(), hierarchies.layout(), resources, None)
                    }
                    None => Ok(()),
                }
            });
        this.made(result)
    }

    fn made(self, result: Result<()>) -> Result<Self> {
        match result {
            Ok(()) => Ok(self),
            Err(error) => {
                for node in &self.nodes {
                    node.unmake();
                }
                Err(error)
            }
        }
    }

    /// Fails when somebody is in the cgroup of a unit, or below: starting the unit anew would end them. One that does not
    /// exist is vacant.
    ///
    /// # Errors
    /// [`Error::NotEmpty`].
    pub fn refuse_occupied(hierarchies: &Hierarchies, unit: &Unit) -> Result<()> {
        let cgroup = match Self::open(hierarchies, &CgroupPath::of_unit(unit)) {
            Ok(cgroup) => cgroup,
            Err(error) if error.is_gone() => return Ok(()),
            Err(error) => return Err(error),
        };
        for node in &cgroup.nodes {
            let pids = processes_below(&node.dir)?;
            if !pids.is_empty() {
                return Err(Error::NotEmpty {
                    path: node.dir.path().to_owned(),
                    holders: Holder::of_all(&pids),
                });
            }
        }
        Ok(())
    }

    /// The cgroup of a unit that [`Systemd::start`](crate::systemd::Systemd::start) has just started with `pid` in it.
    ///
    /// systemd has made the directory in the v2 hierarchy, or in those v1 hierarchies it uses; in the others it is made
    /// here, and controllers that systemd does not know are switched on. Then `pid` is moved to wherever it is not yet.
    ///
    /// # Errors
    /// As [`Self::create`]; [`Error::NotEmpty`] when another process is in it; [`crate::systemd::Error::Elsewhere`] when
    /// no directory is there.
    pub fn adopt(
        hierarchies: &Hierarchies,
        unit: &Unit,
        resources: Option<&LinuxResources>,
        pid: i32,
    ) -> Result<Self> {
        let path = CgroupPath::of_unit(unit);
        let bases = bases(hierarchies, &path)?;
        let exists = |base: &PathBuf| base.join(path.below()).is_dir();
        if !bases.iter().any(exists) {
            let base = bases.last().map(|base| base.join(path.below()));
            return Err(Error::Systemd(systemd::Error::Elsewhere {
                unit: unit.name().to_owned(),
                path: base.unwrap_or_default().display().to_string(),
            }));
        }
        let mut this = Self {
            nodes: Vec::with_capacity(bases.len()),
        };
        let layout = hierarchies.layout();
        let result = hierarchies
            .list()
            .iter()
            .zip(&bases)
            .try_for_each(|(hierarchy, base)| {
                let mut node = Node::new(hierarchy, base.join(path.below()));
                let made = node.make(base, path.below(), layout, resources, Some(pid));
                this.nodes.push(node);
                made
            });
        let this = this.made(result)?;
        match this.attach(pid) {
            Ok(()) => Ok(this),
            Err(error) => this.made(Err(error)),
        }
    }

    /// Where [`Self::create`] will make the directories, to be written down before it does: a caller that is killed in
    /// between has then left a record of what to [`remove`](Self::remove). Makes nothing.
    ///
    /// # Errors
    /// [`Error::Io`] when the process's own cgroup, which a relative path starts from, cannot be read.
    pub fn intent(hierarchies: &Hierarchies, path: &CgroupPath) -> Result<SavedCgroup> {
        let bases = bases(hierarchies, path)?;
        let nodes = hierarchies
            .list()
            .iter()
            .zip(&bases)
            .map(|(hierarchy, base)| Node::new(hierarchy, base.join(path.below())))
            .collect();
        Ok(Self { nodes }.save())
    }

    /// The cgroup a process is in.
    ///
    /// Hierarchies that hold the process in their root are left out: another runtime did not put it there (runc before 1.2
    /// knows no `misc`), and a root is the machine's, not the container's. A process that is in the root of all of them
    /// gives the roots, where calls that would change or kill refuse to work. A container's init may have moved itself
    /// further down (systemd does): prefer [`Self::from_saved`] where the state file is at hand.
    ///
    /// # Errors
    /// [`Error::Io`] with ENOENT or ESRCH when there is no such process.
    pub fn of_process(hierarchies: &Hierarchies, pid: i32) -> Result<Self> {
        let text = read_proc(&format!("/proc/{pid}/cgroup"))?;
        let mut nodes = hierarchies
            .list()
            .iter()
            .zip(hierarchies.directories_in(&text))
            .filter_map(|(hierarchy, path)| Some(Node::new(hierarchy, path?)))
            .collect::<Vec<_>>();
        if nodes.is_empty() {
            return Err(Error::Gone {
                path: format!("the cgroup of process {pid}"),
            });
        }
        if !nodes.iter().all(Node::is_root) {
            nodes.retain(|node| !node.is_root());
        }
        Ok(Self { nodes })
    }

    /// An existing cgroup by its path; hierarchies without it are left out.
    ///
    /// # Errors
    /// [`Error::Gone`] when no hierarchy has it.
    pub fn open(hierarchies: &Hierarchies, path: &CgroupPath) -> Result<Self> {
        let bases: Vec<PathBuf> = match path {
            CgroupPath::BelowRoot(_) => hierarchies
                .list()
                .iter()
                .map(|h| h.mount_point.clone())
                .collect(),
            CgroupPath::BelowOwn(_) => hierarchies.own_directories()?,
        };
        let mut nodes = Vec::new();
        for (hierarchy, base) in hierarchies.list().iter().zip(bases) {
            let node = Node::new(hierarchy, base.join(path.below()));
            match node.dir.fd() {
                Ok(_) => nodes.push(node),
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error),
            }
        }
        if nodes.is_empty() {
            return Err(Error::Gone {
                path: format!("/{}", path.below().display()),
            });
        }
        Ok(Self { nodes })
    }

    /// What [`Self::from_saved`] needs.
    pub fn save(&self) -> SavedCgroup {
        SavedCgroup {
            places: self
                .nodes
                .iter()
                .map(|node| SavedPlace {
                    mount_point: node.hierarchy.mount_point.clone(),
                    mount_root: node.hierarchy.mount_root.clone(),
                    kind: node.hierarchy.kind.clone(),
                    path: node.dir.path().to_owned(),
                    made: node.made,
                    made_parents: node.made_parents,
                })
                .collect(),
        }
    }

    /// The cgroup of a state file. Opens nothing.
    pub fn from_saved(saved: &SavedCgroup) -> Self {
        let nodes = saved
            .places
            .iter()
            .map(|place| Node {
                hierarchy: Hierarchy {
                    mount_point: place.mount_point.clone(),
                    mount_root: place.mount_root.clone(),
                    kind: place.kind.clone(),
                },
                dir: Dir::at(place.path.clone()),
                made: place.made,
                made_parents: place.made_parents,
            })
            .collect();
        Self { nodes }
    }

    /// Moves a process (all its threads) into the cgroup, in every hierarchy.
    ///
    /// The first write after a quiet moment waits for an RCU grace period (6 to 15 ms measured, each further one 5 us):
    /// a new process should rather come in by [`Self::entrance`] and [`Self::dir_fd`].
    ///
    /// # Errors
    /// [`Error::Write`]: ESRCH when the process is gone, EBUSY on v2 when the cgroup has handed controllers on to
    /// child cgroups (a container that runs systemd or docker; attach to [`Self::of_process`] of its init then),
    /// ENOSPC on v1 when `cpuset.cpus` or `.mems` is empty.
    pub fn attach(&self, pid: i32) -> Result<()> {
        self.nodes.iter().try_for_each(|node| node.attach(pid))
    }

    /// As [`Self::attach`], but for a process made by `CLONE_INTO_CGROUP` with [`Self::dir_fd`]: writes to the v1
    /// hierarchies only, so nothing at all on a pure v2 machine.
    ///
    /// # Errors
    /// As [`Self::attach`].
    pub fn attach_rest(&self, pid: i32) -> Result<()> {
        self.nodes
            .iter()
            .filter(|node| !node.hierarchy.is_v2())
            .try_for_each(|node| node.attach(pid))
    }

    /// The directory for `CLONE_INTO_CGROUP` (clone3(2)); `None` where there is no v2 hierarchy.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened.
    pub fn dir_fd(&self) -> Result<Option<BorrowedFd<'_>>> {
        self.unified().map(|node| node.dir.fd()).transpose()
    }

    /// Every directory of this cgroup, v1 first.
    pub fn directories(&self) -> impl Iterator<Item = &Path> {
        self.nodes.iter().map(|node| node.dir.path())
    }

    /// The pids of all processes in the cgroup and below, in no order. Zombies are not among them.
    ///
    /// # Errors
    /// [`Error::Io`]; a cgroup that is gone has no processes and is no error.
    pub fn processes(&self) -> Result<Vec<i32>> {
        match self.reference() {
            Some(node) => processes_below(&node.dir),
            None => Ok(Vec::new()),
        }
    }

    /// The v2 node, in unified and hybrid layouts.
    pub(crate) fn unified(&self) -> Option<&Node> {
        self.nodes.iter().find(|node| node.hierarchy.is_v2())
    }

    /// The v1 node with a controller.
    pub(crate) fn v1(&self, controller: &str) -> Option<&Node> {
        self.nodes
            .iter()
            .find(|node| node.hierarchy.has(controller))
    }

    /// True when there are v1 hierarchies: then the controllers are theirs.
    pub(crate) fn is_v1(&self) -> bool {
        self.nodes.iter().any(|node| !node.hierarchy.is_v2())
    }

    /// The hierarchy whose process list is asked: one that a container cannot be moved about in from inside by
    /// accident (systemd in a container splits name=systemd and v2 only).
    pub(crate) fn reference(&self) -> Option<&Node> {
        ["freezer", "devices", "pids", "memory"]
            .iter()
            .find_map(|controller| self.v1(controller))
            .or_else(|| self.nodes.iter().find(|node| !node.hierarchy.is_v2()))
            .or_else(|| self.unified())
    }

    /// Refuses a call that would hit the whole machine.
    pub(crate) fn refuse_root(&self, step: &'static str) -> Result<()> {
        match self.nodes.iter().find(|node| node.is_root()) {
            None => Ok(()),
            Some(node) => Err(Error::Root {
                step,
                path: node.dir.path().to_owned(),
            }),
        }
    }
}

/// Puts a process into an existing cgroup, in every hierarchy that has it (ShimCgroup of the runtime options, `exec
/// --cgroup`).
///
/// # Errors
/// [`Error::Gone`] when no hierarchy has the path; [`Error::Write`] when the kernel refuses.
pub fn join(hierarchies: &Hierarchies, path: &Path, pid: i32) -> Result<()> {
    Cgroup::open(hierarchies, &CgroupPath::below_root(path)?)?.attach(pid)
}

impl Node {
    fn attach(&self, pid: i32) -> Result<()> {
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

    fn make(
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
    fn unmake(&self) {
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
