//! A container on disk, and the status that follows from it.
//!
//! ```text
//! <root>/<id>/state.json    what was asked for; written before anything is made
//!             init          pid and start time of the init process; written once it exists
//!             seccomp.bpf   the compiled filter, for exec
//!             start.fifo    exists while the container waits for `start`
//!             result.fifo   where init reports a failed execve to `start`
//! ```
//! The status is never stored. It is read off the process (`init`: pid *and* start time, so
//! that a reused pid is never taken for ours), the fifo and the freezer: a file cannot say
//! "running" about a process that is gone.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use holdfast_cgroups::systemd::Unit;
use holdfast_cgroups::{Cgroup, FreezerState, SavedCgroup};
use holdfast_record::process::{ProcessIdentity, Stat};
use holdfast_record::{ContainerId, Timestamp};
use oci_spec::runtime::{Hooks, LinuxMemoryPolicy, LinuxNamespaceType, LinuxPersonality, Process};
use serde::{Deserialize, Serialize};

use crate::error::{Doing, Error, Result};
use crate::rdt::SavedRdt;
use crate::sys::clone;

const STATE: &str = "state.json";
const INIT: &str = "init";
const SECCOMP: &str = "seccomp.bpf";
const START: &str = "start.fifo";
const RESULT: &str = "result.fifo";
/// Format of `state.json`; a newer one is refused.
const VERSION: u32 = 1;

/// What `state.json` holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Saved {
    /// Format of this document.
    pub version: u32,
    /// `ociVersion` of the specification.
    pub oci_version: String,
    /// The container.
    pub id: ContainerId,
    /// Absolute path of the bundle.
    pub bundle: PathBuf,
    /// Absolute path of the root file system.
    pub rootfs: PathBuf,
    /// When `create` began.
    pub created: Timestamp,
    /// uid of whoever ran `create`.
    pub owner: u32,
    /// From the specification.
    #[serde(default)]
    pub annotations: HashMap<String, String>,
    /// Where its processes are.
    #[serde(default)]
    pub cgroup: Option<SavedCgroup>,
    /// The unit that systemd has made for it; absent with the cgroupfs driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<Unit>,
    /// Its place in resctrl.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intel_rdt: Option<SavedRdt>,
    /// Memory policy of the container's processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_policy: Option<LinuxMemoryPolicy>,
    /// Personality of the container's processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub personality: Option<LinuxPersonality>,
    /// It keeps the session keyring of whoever called `create` (`--no-new-keyring`).
    #[serde(default)]
    pub no_new_keyring: bool,
    /// The name of its own session keyring; without it the name is runc's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keyring: Option<String>,
    /// Namespaces that an exec process joins.
    pub namespaces: Vec<LinuxNamespaceType>,
    /// The container's own process: the template of `exec` without `--process`.
    pub process: Process,
    /// Hooks that run after create.
    #[serde(default)]
    pub hooks: Option<Hooks>,
    /// How the filter of `seccomp.bpf` is loaded; absent without a profile.
    #[serde(default)]
    pub seccomp: Option<SavedSeccomp>,
}

impl Saved {
    /// The name of the session keyring, when the container has its own.
    pub fn session_keyring(&self) -> Option<String> {
        match &self.keyring {
            Some(name) => Some(name.clone()),
            None => (!self.no_new_keyring).then(|| format!("_ses.{}", self.id)),
        }
    }
}

/// The parts of `linux.seccomp` that an exec needs beside the program.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedSeccomp {
    /// Flags of `seccomp(2)`.
    pub flags: u32,
    /// Agent that takes the listener, with its metadata.
    #[serde(default)]
    pub listener: Option<SavedListener>,
}

/// Where the listener of a notifying filter goes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedListener {
    /// Unix socket of the agent.
    pub path: PathBuf,
    /// Opaque to us.
    #[serde(default)]
    pub metadata: Option<String>,
}

/// What a container is doing (runtime-spec, `runtime.md#state`, plus `paused`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// `create` has not come to the process yet, or died before.
    Creating,
    /// Waiting for `start`.
    Created,
    /// The user's process runs.
    Running,
    /// Frozen.
    Paused,
    /// The init process has ended.
    Stopped,
}

impl Status {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }

    /// Whether there is an init process.
    pub fn has_process(self) -> bool {
        match self {
            Self::Created | Self::Running | Self::Paused => true,
            Self::Creating | Self::Stopped => false,
        }
    }
}

/// The directory of one container.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// Takes the id: exactly one caller succeeds.
    ///
    /// # Errors
    /// [`Error::Exists`] when it is taken.
    pub fn create(root: &Path, id: &ContainerId) -> Result<Self> {
        let path = root.join(id.as_str());
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o711);
        match builder.create(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // The root itself is made once per boot.
                fs::DirBuilder::new()
                    .mode(0o711)
                    .recursive(true)
                    .create(root)
                    .doing(|| format!("make the state root {}", root.display()))?;
                builder.create(&path)
            }
            other => other,
        }
        .map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => Error::Exists {
                id: id.to_string(),
                root: root.to_owned(),
            },
            _ => Error::Io {
                doing: format!("make the state directory {}", path.display()),
                source,
            },
        })?;
        Ok(Self { path })
    }

    /// An existing container's directory; nothing is read yet.
    pub fn of(root: &Path, id: &ContainerId) -> Self {
        Self {
            path: root.join(id.as_str()),
        }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes `state.json` whole or not at all.
    ///
    /// # Errors
    /// With the path and errno.
    pub fn save(&self, saved: &Saved) -> Result<()> {
        let path = self.path.join(STATE);
        let text = serde_json::to_vec(saved).map_err(|source| Error::Json {
            path: path.clone(),
            source,
        })?;
        write_whole(&path, &text, 0o600)
    }

    /// Reads `state.json`; `None` when create was killed before writing it.
    ///
    /// # Errors
    /// [`Error::NoContainer`] without the directory; [`Error::Json`] for a damaged file.
    pub fn load(&self, root: &Path, id: &ContainerId) -> Result<Option<Saved>> {
        let path = self.path.join(STATE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return if self.path.is_dir() {
                    Ok(None)
                } else {
                    Err(Error::NoContainer {
                        id: id.to_string(),
                        root: root.to_owned(),
                    })
                };
            }
            Err(source) => {
                return Err(Error::Io {
                    doing: format!("read {}", path.display()),
                    source,
                });
            }
        };
        let saved: Saved =
            serde_json::from_slice(&bytes).map_err(|source| Error::Json { path, source })?;
        if saved.version > VERSION {
            return Err(Error::Unsupported {
                what: format!("state format {} of container {id}", saved.version),
            });
        }
        Ok(Some(saved))
    }

    /// Records the init process.
    ///
    /// # Errors
    /// With the path and errno.
    pub fn save_init(&self, pid: i32, pidfd: BorrowedFd<'_>) -> Result<()> {
        let path = self.path.join(INIT);
        let identity = ProcessIdentity::read(pid.cast_unsigned())
            .doing(|| format!("read the start time of process {pid}"))?;
        // As long as the process is not reaped, its number cannot have been another's.
        clone::signal_pidfd(pidfd, 0).doing(|| format!("find process {pid}"))?;
        let text = format!("{} {}\n", identity.pid, identity.start_time);
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .doing(|| format!("write {}", path.display()))
    }

    /// The init process, when it was recorded; a torn record counts as none.
    pub fn init(&self) -> Option<ProcessIdentity> {
        let text = fs::read_to_string(self.path.join(INIT)).ok()?;
        let (pid, start_time) = text.strip_suffix('\n')?.split_once(' ')?;
        Some(ProcessIdentity {
            pid: pid.parse().ok()?,
            start_time: start_time.parse().ok()?,
        })
    }

    /// Keeps the compiled filter for exec.
    ///
    /// # Errors
    /// With the path and errno.
    pub fn save_filter(&self, program: &[u8]) -> Result<()> {
        let path = self.path.join(SECCOMP);
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(program))
            .doing(|| format!("write {}", path.display()))
    }

    /// The compiled filter.
    ///
    /// # Errors
    /// With the path and errno: an exec must never run without the filter it should have.
    pub fn filter(&self) -> Result<Vec<u8>> {
        let path = self.path.join(SECCOMP);
        fs::read(&path).doing(|| format!("read the container's seccomp filter {}", path.display()))
    }

    /// Path of the fifo that `start` writes to.
    pub fn start_fifo(&self) -> PathBuf {
        self.path.join(START)
    }

    /// Path of the fifo that init reports to.
    pub fn result_fifo(&self) -> PathBuf {
        self.path.join(RESULT)
    }

    /// Removes everything; fine when it is gone already.
    ///
    /// # Errors
    /// With the path and errno.
    pub fn remove(&self) -> Result<()> {
        for name in [START, RESULT, SECCOMP, INIT, STATE] {
            // What is missing needs no removal; what cannot be removed fails the rmdir below.
            let _ = fs::remove_file(self.path.join(name));
        }
        match fs::remove_dir(&self.path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            // A temporary file of a killed `save` is left.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                fs::remove_dir_all(&self.path)
                    .doing(|| format!("remove the state directory {}", self.path.display()))
            }
            Err(source) => Err(Error::Io {
                doing: format!("remove the state directory {}", self.path.display()),
                source,
            }),
        }
    }
}

/// A container that exists: its directory, record and init process.
#[derive(Debug)]
pub struct Container {
    /// The directory.
    pub dir: StateDir,
    /// The record.
    pub saved: Saved,
    /// The init process as recorded, dead or alive.
    pub init: Option<ProcessIdentity>,
}

impl Container {
    /// Loads a container.
    ///
    /// # Errors
    /// [`Error::NoContainer`] also for a create that died before it wrote anything: there is
    /// nothing to act on (`delete --force` handles that case itself).
    pub fn load(root: &Path, id: &ContainerId) -> Result<Self> {
        let dir = StateDir::of(root, id);
        let Some(saved) = dir.load(root, id)? else {
            return Err(Error::NoContainer {
                id: id.to_string(),
                root: root.to_owned(),
            });
        };
        let init = dir.init();
        Ok(Self { dir, saved, init })
    }

    /// Whether the recorded init process still is that process and has not ended.
    pub fn alive(&self) -> bool {
        self.init.as_ref().is_some_and(|init| {
            Stat::read(init.pid).is_ok_and(|stat| {
                stat.start_time == init.start_time && !matches!(stat.state, 'Z' | 'X')
            })
        })
    }

    /// The init process when it is alive.
    ///
    /// # Errors
    /// [`Error::NotRunning`].
    pub fn live_init(&self) -> Result<i32> {
        match &self.init {
            Some(init) if self.alive() => Ok(init.pid.cast_signed()),
            _ => Err(Error::NotRunning),
        }
    }

    /// The init process, held: a pidfd that was opened before it was looked whether the number
    /// still is our process.
    ///
    /// # Errors
    /// [`Error::NotRunning`].
    pub fn open_init(&self) -> Result<(i32, OwnedFd)> {
        let pid = self
            .init
            .as_ref()
            .ok_or(Error::NotRunning)?
            .pid
            .cast_signed();
        let pidfd = match clone::open_pidfd(pid) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                return Err(Error::NotRunning);
            }
            other => other.doing(|| format!("open a pidfd of process {pid}"))?,
        };
        if self.alive() {
            Ok((pid, pidfd))
        } else {
            Err(Error::NotRunning)
        }
    }

    /// The status now.
    pub fn status(&self) -> Status {
        if self.init.is_none() {
            return Status::Creating;
        }
        if !self.alive() {
            return Status::Stopped;
        }
        self.status_alive()
    }

    /// The status of a container whose init process is known to be alive.
    pub fn status_alive(&self) -> Status {
        let frozen = || {
            let state = self.cgroup()?.freezer_state().ok()?;
            Some(match state {
                FreezerState::Frozen => true,
                FreezerState::Freezing | FreezerState::Thawed => false,
            })
        };
        if frozen().unwrap_or(false) {
            Status::Paused
        } else if self.dir.start_fifo().exists() {
            Status::Created
        } else {
            Status::Running
        }
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> Option<Cgroup> {
        self.saved.cgroup.as_ref().map(Cgroup::from_saved)
    }
}

/// Writes to a temporary name and renames: readers see the old file or the new one.
///
/// # Errors
/// With the path and errno; the temporary file is removed.
pub(crate) fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let write = || -> io::Result<()> {
        let mut file: File = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(bytes)?;
        fs::rename(&temporary, path)
    };
    write().map_err(|source| {
        let _ = fs::remove_file(&temporary);
        Error::Io {
            doing: format!("write {}", path.display()),
            source,
        }
    })
}

/// The record of a new container.
pub(crate) const fn version() -> u32 {
    VERSION
}
