//! The state machine of one container: pure, without clock, process or socket.
//!
//! The owner task ([`super::owner`]) feeds it with what happened and does what it says.
//! `P` is what stands for a process; a value of it exists only in a state that has a
//! process, so a pid that is not there yet cannot be read. See the diagrams in [`super`].

mod change;
mod exec;

use std::collections::BTreeMap;

use holdfast_record::{ExecId, ExitStatus, Timestamp};
use serde::{Deserialize, Serialize};

/// How and when a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// What the kernel said.
    pub(crate) status: ExitStatus,
    /// When it was reaped.
    pub(crate) at: Timestamp,
}

/// The init process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Init<P> {
    /// The runtime is still at work; the process may exist already (`Some`), held at the barrier.
    Creating(Option<(P, Option<Ended>)>),
    /// Waits for Start.
    Created(P),
    /// Created from a checkpoint: its processes are images until Start.
    Stored,
    /// The runtime's `restore` runs, which is the start of what was stored; the process may exist
    /// already, and may have ended again.
    Restoring(Option<(P, Option<Ended>)>),
    /// The runtime's `start` runs; an end seen meanwhile is kept until it has answered.
    Starting(P, Option<Ended>),
    /// Runs.
    Running(P),
    /// Being frozen.
    Pausing(P),
    /// Frozen.
    Paused(P),
    /// Being thawed.
    Resuming(P),
    /// Reaped, but not told yet: exec processes have to be told first.
    Ending(P, Ended),
    /// Ended, and told.
    Stopped(P, Ended),
    /// Being deleted; without a process where none was ever made of the images.
    Deleting(Option<(P, Ended)>),
    /// Gone, or never came to be.
    Deleted,
}

/// An exec process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Exec<P> {
    /// Known, not started (or a start failed).
    Created,
    /// The runtime's `exec` runs, no process yet.
    Starting,
    /// As [`Exec::Starting`], and the process exists; it may have ended already.
    Registered(P, Option<Ended>),
    /// Runs.
    Running(P),
    /// Ended, and told.
    Stopped(P, Ended),
    /// Its remains are being cleared; holds what Delete answers.
    Deleting(Option<(P, Ended)>),
}

impl<P> Init<P> {
    /// The same state of what `f` makes of the process.
    pub(crate) fn map<Q>(&self, f: &mut impl FnMut(&P) -> Q) -> Init<Q> {
        match self {
            Self::Creating(made) => {
                Init::Creating(made.as_ref().map(|(process, ended)| (f(process), *ended)))
            }
            Self::Created(process) => Init::Created(f(process)),
            Self::Stored => Init::Stored,
            Self::Restoring(made) => {
                Init::Restoring(made.as_ref().map(|(process, ended)| (f(process), *ended)))
            }
            Self::Starting(process, ended) => Init::Starting(f(process), *ended),
            Self::Running(process) => Init::Running(f(process)),
            Self::Pausing(process) => Init::Pausing(f(process)),
            Self::Paused(process) => Init::Paused(f(process)),
            Self::Resuming(process) => Init::Resuming(f(process)),
            Self::Ending(process, ended) => Init::Ending(f(process), *ended),
            Self::Stopped(process, ended) => Init::Stopped(f(process), *ended),
            Self::Deleting(remains) => Init::Deleting(
                remains
                    .as_ref()
                    .map(|(process, ended)| (f(process), *ended)),
            ),
            Self::Deleted => Init::Deleted,
        }
    }

    /// The process, while there is one.
    pub(crate) fn process(&self) -> Option<&P> {
        match self {
            Self::Creating(made) | Self::Restoring(made) => {
                made.as_ref().map(|(process, _)| process)
            }
            Self::Deleting(remains) => remains.as_ref().map(|(process, _)| process),
            Self::Created(process)
            | Self::Starting(process, _)
            | Self::Running(process)
            | Self::Pausing(process)
            | Self::Paused(process)
            | Self::Resuming(process)
            | Self::Ending(process, _)
            | Self::Stopped(process, _) => Some(process),
            Self::Stored | Self::Deleted => None,
        }
    }

    /// Its end, told or not.
    pub(crate) fn ended(&self) -> Option<Ended> {
        match self {
            Self::Creating(made) | Self::Restoring(made) => {
                made.as_ref().and_then(|(_, ended)| *ended)
            }
            Self::Starting(_, ended) => *ended,
            Self::Ending(_, ended) | Self::Stopped(_, ended) => Some(*ended),
            Self::Deleting(remains) => remains.as_ref().map(|(_, ended)| *ended),
            Self::Created(_)
            | Self::Stored
            | Self::Running(_)
            | Self::Pausing(_)
            | Self::Paused(_)
            | Self::Resuming(_)
            | Self::Deleted => None,
        }
    }
}

impl<P> Exec<P> {
    /// The same state of what `f` makes of the process.
    pub(crate) fn map<Q>(&self, f: &mut impl FnMut(&P) -> Q) -> Exec<Q> {
        match self {
            Self::Created => Exec::Created,
            Self::Starting => Exec::Starting,
            Self::Registered(process, ended) => Exec::Registered(f(process), *ended),
            Self::Running(process) => Exec::Running(f(process)),
            Self::Stopped(process, ended) => Exec::Stopped(f(process), *ended),
            Self::Deleting(remains) => Exec::Deleting(
                remains
                    .as_ref()
                    .map(|(process, ended)| (f(process), *ended)),
            ),
        }
    }
}

/// What is to be told to the world, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told<P> {
    /// The container exists.
    Created(P),
    /// The container exists as images.
    Stored,
    /// Init has been made of the images.
    Restored(P),
    /// Init runs.
    Started(P),
    /// An exec process is known.
    ExecAdded(ExecId),
    /// An exec process runs.
    ExecStarted(ExecId, P),
    /// An exec process ended.
    ExecExited(ExecId, P, Ended),
    /// Init ended: the container's last exit.
    Exited(P, Ended),
    /// All processes are frozen.
    Paused,
    /// All processes run again.
    Resumed,
    /// The container is gone; without a process if it never had one.
    Deleted(Option<(P, Ended)>),
}

/// Why an operation cannot be done in this state, in containerd's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// The operation does not fit the state (code UNKNOWN).
    #[error("{0}")]
    State(&'static str),
    /// Nothing of that name (code `NOT_FOUND`).
    #[error("{0}: not found")]
    NotFound(String),
    /// The name is taken (code `ALREADY_EXISTS`).
    #[error("id {0}: already exists")]
    Exists(String),
    /// Something else has to be true first (code `FAILED_PRECONDITION`).
    #[error("{0}: failed precondition")]
    Precondition(String),
    /// Another operation of the same process is on its way (code UNAVAILABLE).
    #[error("{0} is still on its way: try again")]
    Busy(&'static str),
}

fn no_exec(id: &ExecId) -> Refusal {
    Refusal::NotFound(format!("process does not exist {id}"))
}

/// One container and its exec processes.
#[derive(Debug)]
pub(crate) struct Container<P> {
    id: String,
    init: Init<P>,
    execs: BTreeMap<ExecId, Exec<P>>,
    told: Vec<Told<P>>,
}

impl<P: Clone> Container<P> {
    /// A container whose create has just begun.
    pub(crate) fn new(id: String) -> Self {
        Self {
            id,
            init: Init::Creating(None),
            execs: BTreeMap::new(),
            told: Vec::new(),
        }
    }

    /// A container of the image before.
    pub(crate) fn restore(id: String, init: Init<P>, execs: BTreeMap<ExecId, Exec<P>>) -> Self {
        Self {
            id,
            init,
            execs,
            told: Vec::new(),
        }
    }

    /// The init process' state.
    pub(crate) fn init(&self) -> &Init<P> {
        &self.init
    }

    /// One exec process' state.
    pub(crate) fn exec(&self, id: &ExecId) -> Option<&Exec<P>> {
        self.execs.get(id)
    }

    /// All exec processes.
    pub(crate) fn execs(&self) -> &BTreeMap<ExecId, Exec<P>> {
        &self.execs
    }

    /// What has to be told since the last call.
    pub(crate) fn take_told(&mut self) -> Vec<Told<P>> {
        std::mem::take(&mut self.told)
    }

    /// Whether init was reaped and only waits for exec processes to be told first.
    pub(crate) fn is_holding_exit(&self) -> bool {
        matches!(self.init, Init::Ending(..))
    }

    // --- create ------------------------------------------------------------------------

    /// The runtime made the process; it is held until this has been recorded.
    pub(crate) fn init_registered(&mut self, process: P) {
        if let Init::Creating(slot @ None) | Init::Restoring(slot @ None) = &mut self.init {
            *slot = Some((process, None));
        }
    }

    /// All that a checkpoint's create does is done: the rest comes with Start.
    pub(crate) fn stored(&mut self) {
        if matches!(self.init, Init::Creating(None)) {
            self.told.push(Told::Stored);
            self.init = Init::Stored;
        }
    }

    /// The runtime's `create` succeeded.
    ///
    /// # Errors
    /// When no process was registered: the runtime is at fault.
    pub(crate) fn create_done(&mut self) -> Result<P, Refusal> {
        match std::mem::replace(&mut self.init, Init::Deleted) {
            Init::Creating(Some((process, ended))) => {
                self.told.push(Told::Created(process.clone()));
                self.init = Init::Created(process.clone());
                if let Some(ended) = ended {
                    self.init_ended(ended);
                }
                Ok(process)
            }
            Init::Creating(None) => Err(Refusal::State("the runtime made no process")),
            other => {
                self.init = other;
                Err(Refusal::State("the container has been created before"))
            }
        }
    }

    /// The runtime's `create` failed and was undone.
    pub(crate) fn create_failed(&mut self) {
        self.init = Init::Deleted;
    }

    // --- start -------------------------------------------------------------------------

    /// Start of init begins.
    ///
    /// # Errors
    /// [`Refusal`] by table b.1.
    pub(crate) fn begin_start(&mut self) -> Result<(), Refusal> {
        match &self.init {
            Init::Created(process) => {
                self.init = Init::Starting(process.clone(), None);
                Ok(())
            }
            Init::Stored => {
                self.init = Init::Restoring(None);
                Ok(())
            }
            Init::Creating(_) => Err(Refusal::Busy("create")),
            Init::Starting(..) | Init::Restoring(_) | Init::Running(_) => {
                Err(Refusal::State("cannot start a running process"))
            }
            Init::Pausing(_) | Init::Paused(_) | Init::Resuming(_) => {
                Err(Refusal::State("cannot start a paused process"))
            }
            Init::Ending(..) | Init::Stopped(..) => {
                Err(Refusal::State("cannot start a stopped process"))
            }
            Init::Deleting(_) | Init::Deleted => {
                Err(Refusal::State("cannot start a deleted process"))
            }
        }
    }

    /// The runtime's `start`, or `restore`, answered. After a failure the container is created
    /// still, or stopped if the attempt cost the process its life; of images there are still the
    /// images.
    ///
    /// # Errors
    /// Success without a process: the runtime is at fault.
    pub(crate) fn start_done(&mut self, success: bool) -> Result<(), Refusal> {
        let (process, ended) = match &self.init {
            Init::Starting(process, ended) => (process.clone(), *ended),
            Init::Restoring(Some((process, ended))) if success => {
                self.told.push(Told::Restored(process.clone()));
                (process.clone(), *ended)
            }
            // What never ran needs no exit: nobody was told of it.
            Init::Restoring(_) => {
                self.init = Init::Stored;
                return if success {
                    Err(Refusal::State("the runtime made no process"))
                } else {
                    Ok(())
                };
            }
            Init::Creating(_)
            | Init::Created(_)
            | Init::Stored
            | Init::Running(_)
            | Init::Pausing(_)
            | Init::Paused(_)
            | Init::Resuming(_)
            | Init::Ending(..)
            | Init::Stopped(..)
            | Init::Deleting(_)
            | Init::Deleted => return Ok(()),
        };
        self.init = if success {
            self.told.push(Told::Started(process.clone()));
            Init::Running(process)
        } else {
            Init::Created(process)
        };
        if let Some(ended) = ended {
            self.init_ended(ended);
        }
        Ok(())
    }

    // --- the end of init ---------------------------------------------------------------

    /// Init was reaped.
    pub(crate) fn init_ended(&mut self, ended: Ended) {
        match &mut self.init {
            Init::Creating(Some((_, slot)))
            | Init::Restoring(Some((_, slot)))
            | Init::Starting(_, slot) => *slot = Some(ended),
            Init::Created(process)
            | Init::Running(process)
            | Init::Pausing(process)
            | Init::Paused(process)
            | Init::Resuming(process) => {
                let process = process.clone();
                self.init = Init::Ending(process, ended);
                self.tell_exit_if_last();
            }
            // A process ends once; the reaper hands every end out once. What a failed restore has
            // made was told to nobody.
            Init::Creating(None)
            | Init::Stored
            | Init::Restoring(None)
            | Init::Ending(..)
            | Init::Stopped(..)
            | Init::Deleting(_)
            | Init::Deleted => {}
        }
    }

    /// Exec processes that took too long are not waited for any more.
    pub(crate) fn hold_expired(&mut self) {
        if let Init::Ending(process, ended) = &self.init {
            let (process, ended) = (process.clone(), *ended);
            self.told.push(Told::Exited(process.clone(), ended));
            self.init = Init::Stopped(process, ended);
        }
    }

    /// Exec processes whose end has to be told before init's.
    pub(crate) fn unfinished_execs(&self) -> impl Iterator<Item = (&ExecId, &Exec<P>)> {
        self.execs.iter().filter(|(_, exec)| {
            matches!(
                exec,
                Exec::Starting | Exec::Registered(..) | Exec::Running(_)
            )
        })
    }

    fn tell_exit_if_last(&mut self) {
        if self.unfinished_execs().next().is_none() {
            self.hold_expired();
        }
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
