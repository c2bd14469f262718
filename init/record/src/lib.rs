//! The records of Holdfast: who a thing is, how it ended, why, and where that is written down.
//!
//! This crate is the vocabulary that the shim, the runtime and the operator's commands share.
//! It knows no container technology: no namespaces, no cgroups, no ttrpc, and it pulls in no tokio.
//!
//! | module | what it holds |
//! |---|---|
//! | [`ids`] | validated names: container, exec process, containerd namespace |
//! | [`time`] | wall-clock instants as they are written and shown |
//! | [`exit`] | exit status of a process, and exit = (status, time, reason) |
//! | [`reason`] | the one closed list of reasons for an end, with stable codes |
//! | [`ledger`] | evidence on disk that outlives the pod and the boot |
//! | [`journal`] | the shim's append-only state, replayable after any cut |
//! | [`why`] | ledger records as text for a person |
//! | [`barrier`] | frames between shim and runtime: register before run |
//! | [`deadline`] | a wait's limit together with the name of what is awaited |
//! | [`process`] | a process that cannot be confused with a later owner of its pid |
//! | [`witness`] | who sent a signal and whom the OOM killer chose, as the kernel recorded it |
//! | [`logging`] | fd 2, `log`, panics and structured fields; nothing here ever blocks the caller |
//!
//! Two words that are easily confused: the *journal* of this crate is the shim's own state file;
//! systemd's is always called *journald*.

pub mod barrier;
mod chain;
pub mod crc;
pub mod deadline;
pub mod exit;
pub mod ids;
pub mod journal;
pub mod ledger;
pub mod logging;
pub mod process;
pub mod reason;
pub mod time;
pub mod why;
pub mod witness;

mod sys;
mod text;

pub use chain::chain;
pub use deadline::{Deadline, Expired};
pub use exit::{Exit, ExitStatus, Signal};
pub use ids::{ContainerId, ExecId, Namespace};
pub use reason::Reason;
pub use time::Timestamp;
