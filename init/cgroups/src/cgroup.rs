//! A container's cgroup: one directory in every hierarchy.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

use crate::dir::Dir;
use crate::error::{Error, Holder, Result};
use crate::hierarchy::{Hierarchies, Hierarchy, Kind, read_proc};
use crate::path::CgroupPath;
use crate::place::{Place, processes_below};
use crate::systemd::{self, Unit};

/// A cgroup, in all hierarchies of the machine.
///
/// Nothing process-wide is touched by any method, every method that waits takes a deadline, and all methods are
/// usable from several threads. Directories are opened when first needed; [`Cgroup`] is cheap until then.
#[derive(Debug)]
pub struct Cgroup {
    pub(crate) places: Vec<Place>,
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
        Self::make(hierarchies, &bases, path, resources, None)
    }

    /// The directories, where they are not there yet; `occupant` may be in them already.
    fn make(
        hierarchies: &Hierarchies,
        bases: &[PathBuf],
        path: &CgroupPath,
        resources: Option<&LinuxResources>,
        occupant: Option<i32>,
    ) -> Result<Self> {
        let mut this = Self {
            places: Vec::with_capacity(bases.len()),
        };
        let layout = hierarchies.layout();
        let result = hierarchies
            .list()
            .iter()
            .zip(bases)
            .try_for_each(|(hierarchy, base)| {
                let mut place = Place::new(hierarchy, base.join(path.below()));
                let made = place.make(base, path.below(), layout, resources, occupant);
                this.places.push(place);
                made
            });
        this.made(result)
    }

    fn made(self, result: Result<()>) -> Result<Self> {
        match result {
            Ok(()) => Ok(self),
            Err(error) => {
                for place in &self.places {
                    place.unmake();
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
        for place in &cgroup.places {
            let pids = processes_below(&place.dir)?;
            if !pids.is_empty() {
                return Err(Error::NotEmpty {
                    path: place.dir.path().to_owned(),
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
        let this = Self::make(hierarchies, &bases, &path, resources, Some(pid))?;
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
        let places = hierarchies
            .list()
            .iter()
            .zip(&bases)
            .map(|(hierarchy, base)| Place::new(hierarchy, base.join(path.below())))
            .collect();
        Ok(Self { places }.save())
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
        let mut places = hierarchies
            .list()
            .iter()
            .zip(hierarchies.directories_in(&text))
            .filter_map(|(hierarchy, path)| Some(Place::new(hierarchy, path?)))
            .collect::<Vec<_>>();
        if places.is_empty() {
            return Err(Error::Gone {
                path: format!("the cgroup of process {pid}"),
            });
        }
        if !places.iter().all(Place::is_root) {
            places.retain(|place| !place.is_root());
        }
        Ok(Self { places })
    }

    /// An existing cgroup by its path; hierarchies without it are left out.
    ///
    /// # Errors
    /// [`Error::Gone`] when no hierarchy has it.
    pub fn open(hierarchies: &Hierarchies, path: &CgroupPath) -> Result<Self> {
        let mut places = Vec::new();
        for (hierarchy, base) in hierarchies.list().iter().zip(bases(hierarchies, path)?) {
            let place = Place::new(hierarchy, base.join(path.below()));
            match place.dir.fd() {
                Ok(_) => places.push(place),
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error),
            }
        }
        if places.is_empty() {
            return Err(Error::Gone {
                path: format!("/{}", path.below().display()),
            });
        }
        Ok(Self { places })
    }

    /// What [`Self::from_saved`] needs.
    pub fn save(&self) -> SavedCgroup {
        SavedCgroup {
            places: self
                .places
                .iter()
                .map(|place| SavedPlace {
                    mount_point: place.hierarchy.mount_point.clone(),
                    mount_root: place.hierarchy.mount_root.clone(),
                    kind: place.hierarchy.kind.clone(),
                    path: place.dir.path().to_owned(),
                    made: place.made,
                    made_parents: place.made_parents,
                })
                .collect(),
        }
    }

    /// The cgroup of a state file. Opens nothing.
    pub fn from_saved(saved: &SavedCgroup) -> Self {
        let places = saved
            .places
            .iter()
            .map(|saved| Place {
                hierarchy: Hierarchy {
                    mount_point: saved.mount_point.clone(),
                    mount_root: saved.mount_root.clone(),
                    kind: saved.kind.clone(),
                },
                dir: Dir::at(saved.path.clone()),
                made: saved.made,
                made_parents: saved.made_parents,
            })
            .collect();
        Self { places }
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
        self.places.iter().try_for_each(|place| place.attach(pid))
    }

    /// As [`Self::attach`], but for a process made by `CLONE_INTO_CGROUP` with [`Self::dir_fd`]: writes to the v1
    /// hierarchies only, so nothing at all on a pure v2 machine.
    ///
    /// # Errors
    /// As [`Self::attach`].
    pub fn attach_rest(&self, pid: i32) -> Result<()> {
        self.places
            .iter()
            .filter(|place| !place.hierarchy.is_v2())
            .try_for_each(|place| place.attach(pid))
    }

    /// The directory for `CLONE_INTO_CGROUP` (clone3(2)); `None` where there is no v2 hierarchy.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened.
    pub fn dir_fd(&self) -> Result<Option<BorrowedFd<'_>>> {
        self.unified().map(|place| place.dir.fd()).transpose()
    }

    /// Every directory of this cgroup, v1 first.
    pub fn directories(&self) -> impl Iterator<Item = &Path> {
        self.places.iter().map(|place| place.dir.path())
    }

    /// The pids of all processes in the cgroup and below, in no order. Zombies are not among them.
    ///
    /// # Errors
    /// [`Error::Io`]; a cgroup that is gone has no processes and is no error.
    pub fn processes(&self) -> Result<Vec<i32>> {
        match self.reference() {
            Some(place) => processes_below(&place.dir),
            None => Ok(Vec::new()),
        }
    }

    /// The v2 place, in unified and hybrid layouts.
    pub(crate) fn unified(&self) -> Option<&Place> {
        self.places.iter().find(|place| place.hierarchy.is_v2())
    }

    /// The v1 place with a controller.
    pub(crate) fn v1(&self, controller: &str) -> Option<&Place> {
        self.places
            .iter()
            .find(|place| place.hierarchy.has(controller))
    }

    /// True when there are v1 hierarchies: then the controllers are theirs.
    pub(crate) fn is_v1(&self) -> bool {
        self.places.iter().any(|place| !place.hierarchy.is_v2())
    }

    /// The hierarchy whose process list is asked: one that a container cannot be moved about in from inside by
    /// accident (systemd in a container splits name=systemd and v2 only).
    pub(crate) fn reference(&self) -> Option<&Place> {
        ["freezer", "devices", "pids", "memory"]
            .iter()
            .find_map(|controller| self.v1(controller))
            .or_else(|| self.places.iter().find(|place| !place.hierarchy.is_v2()))
            .or_else(|| self.unified())
    }

    /// Refuses a call that would hit the whole machine.
    pub(crate) fn refuse_root(&self, step: &'static str) -> Result<()> {
        match self.places.iter().find(|place| place.is_root()) {
            None => Ok(()),
            Some(place) => Err(Error::Root {
                step,
                path: place.dir.path().to_owned(),
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
