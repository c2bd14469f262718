//! Why a call of the runtime did not succeed.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use holdfast_record::reason::TimedOut;
use holdfast_record::{Reason, Signal};

use crate::fault::{Fault, chain};
use crate::reaper::AdoptError;

/// A call of the runtime that did not succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RuntimeError {
    /// It could not be started at all.
    #[error("run {binary}")]
    Spawn {
        /// The program.
        binary: PathBuf,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// It ran and failed.
    #[error("{text}")]
    Failed {
        /// Its own words.
        text: String,
        /// What it says for the records, if it is ours.
        reason: Option<Box<Reason>>,
    },
    /// It was ended by a signal before it could say anything.
    #[error("{binary}: {verb} was ended by {signal}")]
    Killed {
        /// The program.
        binary: PathBuf,
        /// `create`, `start`, …
        verb: &'static str,
        /// Which signal.
        signal: Signal,
    },
    /// It did not finish in time and was killed.
    #[error("{verb} did not finish within {limit:?} and was killed; it was {state}")]
    Deadline {
        /// `create`, `start`, …
        verb: &'static str,
        /// The deadline.
        limit: Duration,
        /// What it was doing.
        state: String,
    },
    /// It succeeded without telling which process it made.
    #[error("{verb}: the runtime told no pid in {path}")]
    NoPid {
        /// `create` or `exec`.
        verb: &'static str,
        /// The pid file.
        path: PathBuf,
        /// Why it could not be read.
        #[source]
        source: io::Error,
    },
    /// The process it made could not be taken over.
    #[error("{verb}: take over the process")]
    Adopt {
        /// `create` or `exec`.
        verb: &'static str,
        /// Why.
        #[source]
        source: AdoptError,
    },
    /// The barrier broke.
    #[error("{verb}: the barrier between shim and runtime")]
    Barrier {
        /// `create` or `exec`.
        verb: &'static str,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// The owner of the container gave up.
    #[error("{verb}: the container is going away")]
    GivenUp {
        /// `create` or `exec`.
        verb: &'static str,
    },
}

impl RuntimeError {
    /// As an RPC's answer, after containerd's words for the operation.
    pub(crate) fn fault(&self, what: &str) -> Fault {
        let text = format!("{what}: {}", chain(self));
        let mut fault = match self {
            Self::Deadline { .. } => Fault::deadline(text),
            Self::Spawn { .. }
            | Self::Failed { .. }
            | Self::Killed { .. }
            | Self::NoPid { .. }
            | Self::Adopt { .. }
            | Self::Barrier { .. }
            | Self::GivenUp { .. } => Fault::unknown(text),
        };
        fault.reason = self.reason();
        fault
    }

    /// For the records, where this says more than that the operation failed.
    fn reason(&self) -> Option<Box<Reason>> {
        match self {
            Self::Failed { reason, .. } => reason.clone(),
            Self::Killed { verb, signal, .. } => Some(Box::new(Reason::RuntimeKilled {
                operation: (*verb).to_owned(),
                signal: *signal,
            })),
            Self::Deadline { verb, limit, state } => {
                let timed_out = TimedOut {
                    step: format!("the runtime's {verb}, which was {state}"),
                    waited: *limit,
                    process: None,
                };
                match *verb {
                    "exec" => Some(Box::new(Reason::ExecTimedOut(timed_out))),
                    "create" | "start" | "restore" => {
                        Some(Box::new(Reason::CreateTimedOut(timed_out)))
                    }
                    // delete, update, checkpoint: nothing was to be created.
                    _ => None,
                }
            }
            Self::Spawn { .. }
            | Self::NoPid { .. }
            | Self::Adopt { .. }
            | Self::Barrier { .. }
            | Self::GivenUp { .. } => None,
        }
    }
}
