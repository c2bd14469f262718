//! What can go wrong, told once.
//!
//! Every variant names what was attempted; the cause is its `source`, never repeated in its
//! own text. [`chain`] prints the whole at the boundary. Some texts are a contract:
//! containerd's and docker's shims match on them (`does not exist`, `container not running`,
//! `executable file not found in $PATH`); those variants say so.

use std::io;
use std::path::PathBuf;

pub use holdfast_record::chain;
use holdfast_record::ids::InvalidId;

/// Result of anything in the runtime.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure of the runtime.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line is wrong.
    #[error("{0} (see holdfast --help)")]
    Usage(String),
    /// Shims that stay as they are.
    #[error("{0}")]
    Shims(String),
    /// The specification asks for something impossible.
    #[error("invalid config.json: {field}: {problem}")]
    Spec {
        /// JSON path of the field.
        field: String,
        /// What is wrong with it and what would be right.
        problem: String,
    },
    /// A JSON document cannot be read.
    #[error("failed to read {path}")]
    Json {
        /// The document.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A system call on the host failed.
    #[error("failed to {doing}")]
    Io {
        /// Completes the sentence; names the object.
        doing: String,
        /// errno.
        source: io::Error,
    },
    /// An id that cannot be one.
    #[error("invalid container id")]
    Id(#[from] InvalidId),
    /// No such container. Contract: `does not exist`.
    #[error("container does not exist: no state of \"{id}\" in {root}")]
    NoContainer {
        /// The id asked for.
        id: String,
        /// Where its state would be.
        root: PathBuf,
    },
    /// The id is taken. Contract: `already exists`.
    #[error("container with given ID already exists: \"{id}\" in {root}")]
    Exists {
        /// The id asked for.
        id: String,
        /// Where its state is.
        root: PathBuf,
    },
    /// The init process has ended. Contract: `container not running`.
    #[error("container not running")]
    NotRunning,
    /// The operation does not fit the container's status.
    #[error("cannot {operation} a container that is {status}")]
    Status {
        /// The verb, with what it needs.
        operation: &'static str,
        /// The container's status.
        status: &'static str,
    },
    /// The program cannot be found or executed. Contract: docker and containerd derive exit
    /// codes 127 and 126 from these texts.
    #[error("exec: {0}")]
    Program(String),
    /// A step of `holdfast-init` failed.
    #[error("failed to {doing}{}", in_brackets(.detail))]
    Step {
        /// The step's label.
        doing: String,
        /// System call and object, as init reports them; empty when there is no more to say.
        detail: String,
        /// errno, when it was a system call.
        source: Option<io::Error>,
    },
    /// `holdfast-init` ended before it was told to.
    #[error(
        "the container's init process ended while {holdfast} was waiting for it to {doing}: {how}",
        holdfast = "holdfast"
    )]
    InitDied {
        /// The label of the wait.
        doing: String,
        /// What is known about its end.
        how: String,
    },
    /// A deadline passed.
    #[error("{waited}; process {pid} {process}")]
    Expired {
        /// The deadline's own words.
        waited: holdfast_record::Expired,
        /// The process that was waited for.
        pid: i32,
        /// Its state, wchan and command.
        process: String,
        /// The same for the records.
        seen: Box<holdfast_record::process::Description>,
    },
    /// The shim went away or refused while a process was being registered.
    #[error("the shim did not take the new process over, so it was killed")]
    Barrier {
        /// What the socket said.
        source: io::Error,
    },
    /// Control groups.
    #[error("cgroups")]
    Cgroup(#[from] holdfast_cgroups::Error),
    /// seccomp.
    #[error("seccomp")]
    Seccomp(#[from] holdfast_seccomp::Error),
    /// The GPU stage.
    #[error("failed to give the container its GPUs")]
    Gpu(#[from] crate::gpu::Error),
    /// Hooks.
    #[error("hooks")]
    Hook(#[from] crate::hooks::Error),
    /// criu, in its own words. Contract: `criu failed: type DUMP errno 0`.
    #[error("failed to {doing}: {text}")]
    Criu {
        /// What it was wanted for.
        doing: String,
        /// What it said.
        text: String,
    },
    /// User namespace mappings.
    #[error("failed to write the user namespace's {which} map: {detail}")]
    UserMap {
        /// uid or gid.
        which: &'static str,
        /// The map, and what was wrong with it.
        detail: String,
        /// errno.
        source: Option<io::Error>,
    },
    /// Asked for, but not built yet.
    #[error("{what} is not supported by this version of holdfast")]
    Unsupported {
        /// The feature and where it was asked for.
        what: String,
    },
}

fn in_brackets(detail: &str) -> String {
    if detail.is_empty() {
        String::new()
    } else {
        format!(" ({detail})")
    }
}

impl Error {
    /// Shorthand for [`Error::Spec`].
    pub fn spec(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Spec {
            field: field.into(),
            problem: problem.into(),
        }
    }
}

/// Names the attempt beside an errno.
pub trait Doing<T> {
    /// `what` completes "failed to …".
    ///
    /// # Errors
    /// The same error, as [`Error::Io`].
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io {
            doing: what(),
            source: source.into(),
        })
    }
}
