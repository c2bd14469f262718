//! What is kept of a container: the entries of its journal ([`super::journal`]).

use holdfast_record::{ExecId, ExitStatus, Timestamp};
use serde::{Deserialize, Serialize};

use crate::event::Encoded;

/// One change of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Entry {
    /// The container exists.
    Created {
        /// Init's pid; none while the container is a checkpoint's images.
        pid: Option<u32>,
        /// The shim's pid.
        shim: u32,
        /// The shim's start time, so that its pid cannot be taken for another's.
        #[serde(default)]
        shim_start: Option<u64>,
        /// When.
        at: Timestamp,
    },
    /// Init runs.
    Started {
        /// When.
        at: Timestamp,
    },
    /// A Kill request was carried out.
    KillRequested {
        /// None: init.
        exec: Option<ExecId>,
        /// The signal.
        signal: i32,
        /// Whether it went to every process.
        all: bool,
        /// When.
        at: Timestamp,
    },
    /// An exec process runs.
    ExecStarted {
        /// Which.
        exec: ExecId,
        /// Its pid.
        pid: u32,
        /// When.
        at: Timestamp,
    },
    /// An exec process ended.
    ExecExited {
        /// Which.
        exec: ExecId,
        /// Its pid.
        pid: u32,
        /// How.
        status: ExitStatus,
        /// When.
        at: Timestamp,
    },
    /// Init ended.
    Exited {
        /// Its pid.
        pid: u32,
        /// How.
        status: ExitStatus,
        /// When.
        at: Timestamp,
    },
    /// Frozen.
    Paused,
    /// Thawed.
    Resumed,
    /// The container is gone.
    Deleted,
    /// containerd has to be told.
    EventQueued {
        /// Its number, unique in the shim.
        number: u64,
        /// What is told.
        event: Encoded,
    },
    /// containerd has taken it.
    EventAcknowledged {
        /// Its number.
        number: u64,
    },
}
