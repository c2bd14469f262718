//! Containers, their init process and their exec processes.
//!
//! One *owner task* per container ([`owner`]) holds the state machine ([`state`]) and is fed
//! through a bounded queue; nothing else changes a container. Long work (the runtime,
//! mounts, draining) runs in tasks of its own that report back to the owner, so Kill of one
//! process never waits for the start of another. What can be answered from what is known
//! ([`View`]) is answered without the owner: State, Wait, Pids, Connect, Stats.
//!
//! ```text
//! init     Creating ──create ok──> Created ──Start──> Starting ──ok──> Running <──> Paused
//!             │ failed                │ │                 │              │     (Pausing, Resuming)
//!             ▼                       │ └─end─┐   end: kept until        │ end       │ end
//!          Deleted                    │       │   the runtime answers    ▼           ▼
//!             ▲                       │       └──────────────────────> Ending  (exec exits are told first, ≤ 10 s)
//!             │                    Delete: killed                        ▼
//!             └────────ok── Deleting <──────────Delete─────────────── Stopped
//!
//! exec     Created ──Start──> Starting ──barrier──> Registered ──ok──> Running ──end──> Stopped
//!             ▲                   │                     │ end: kept until the runtime answers
//!             └──────failed───────┴─────────────────────┘ (start may be repeated)
//!          Created, Stopped ──Delete──> Deleting ──drained──> gone
//! ```
//!
//! | op \ state | created | running | paused | stopped | deleted |
//! |---|---|---|---|---|---|
//! | Start | runs | cannot start a running process | … paused process | … stopped process | … deleted process |
//! | Pause | cannot pause task in created state | pauses | cannot pause a paused container | … stopped container | … deleted process |
//! | Resume | cannot resume task in created state | cannot resume a running process | resumes | … stopped container | … deleted process |
//! | Update | applies | applies | applies | cannot update a stopped container | … deleted process |
//! | Checkpoint | cannot checkpoint a task in created state | the runtime's | the runtime's | cannot checkpoint a stopped container | … deleted process |
//! | Exec | known | known | cannot exec in a paused state | … stopped state | … deleted state |
//! | Kill | signal | signal | signal (SIGKILL thaws; what cannot die is named, `FAILED_PRECONDITION`) | `NOT_FOUND` process already finished | `NOT_FOUND` cannot kill a deleted process |
//! | Delete | kills, then deletes | cannot delete a running process | … paused process | deletes | `NOT_FOUND` cannot delete a deleted process |
//!
//! What comes from a checkpoint is `Stored` instead of created, images without a process, and Start
//! is `Restoring`, the runtime's `restore` (docs/0011).
//!
//! Order of every change: journal, view, event queue, reply.

pub(crate) mod journal;
pub(crate) mod launch;
pub(crate) mod node;
pub(crate) mod owner;
pub(crate) mod reason;
pub(crate) mod record;
pub(crate) mod remove;
pub(crate) mod scribe;
pub(crate) mod state;
mod stuck;
mod termination;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use containerd_shim_protos::api::Mount;
use containerd_shim_protos::shim::oci::CheckpointOptions;
use containerd_shim_protos::ttrpc::proto::Code;
use holdfast_cgroups::{Cgroup, Hierarchies};
use holdfast_record::{ContainerId, ExecId, Namespace};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use crate::fault::Fault;
use crate::options::Options;
use crate::publisher::Publisher;
use crate::reaper::{Process, Reaper};
use crate::resume::inherited::Inherited;
use crate::resume::request;
use crate::stdio::StdioPaths;
use scribe::Scribe;
use state::Ended;

/// Commands that may wait for one container's owner.
const QUEUE: usize = 64;

pub(crate) use crate::resume::request::Reply;

/// What all containers of this shim share.
#[derive(Debug)]
pub(crate) struct Shim {
    /// The containerd namespace.
    pub(crate) namespace: Namespace,
    /// Waits for children.
    pub(crate) reaper: Arc<Reaper>,
    /// Tells containerd.
    pub(crate) publisher: Arc<Publisher>,
    /// Writes the ledger.
    pub(crate) scribe: Arc<Scribe>,
    /// The cgroup file systems; none where they cannot be read.
    pub(crate) hierarchies: Option<Hierarchies>,
    containers: Mutex<HashMap<ContainerId, Handle>>,
    count: watch::Sender<usize>,
    /// The end has begun: nothing is created any more.
    closed: AtomicBool,
}

/// What containerd wants created.
#[derive(Debug, Clone)]
pub(crate) struct CreateRequest {
    /// The container.
    pub(crate) id: ContainerId,
    /// Its bundle.
    pub(crate) bundle: PathBuf,
    /// Mounts for the root file system; empty when somebody else has mounted it.
    pub(crate) rootfs: Vec<Mount>,
    /// Init's stdio.
    pub(crate) stdio: StdioPaths,
    /// The runtime's options.
    pub(crate) options: Options,
    /// Images of a checkpoint that it is to be restored from.
    pub(crate) checkpoint: Option<PathBuf>,
}

/// What containerd wants checkpointed, and how.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct CheckpointRequest {
    /// Where the image goes.
    pub(crate) path: String,
    /// The options.
    pub(crate) options: CheckpointOptions,
}

/// What Delete answers.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Remains {
    /// Pid the process had; 0 when it never ran.
    pub(crate) pid: u32,
    /// How it ended; none when it never ran.
    pub(crate) ended: Option<Ended>,
}

/// What a container's owner can be asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// Start init or an exec process; answers the pid.
    Start(Option<ExecId>, Reply<u32>),
    /// Make an exec process known; the bytes are its OCI process as JSON.
    Exec(ExecId, StdioPaths, Vec<u8>, Reply<()>),
    /// Signal a process, or all of the container.
    Kill {
        /// None: init.
        exec: Option<ExecId>,
        /// Any signal number.
        signal: i32,
        /// Every process of the cgroup.
        all: bool,
        /// Answered when sent.
        reply: Reply<()>,
    },
    /// Delete the container or an exec process.
    Delete(Option<ExecId>, Reply<Remains>),
    /// Freeze.
    Pause(Reply<()>),
    /// Thaw.
    Resume(Reply<()>),
    /// Change limits; the bytes are OCI LinuxResources as JSON.
    Update(Vec<u8>, Reply<()>),
    /// Checkpoint into a directory, with these arguments of the runtime.
    Checkpoint(CheckpointRequest, Reply<()>),
    /// Terminal size: rows, columns.
    Resize(Option<ExecId>, u16, u16, Reply<()>),
    /// Close stdin.
    CloseIo(Option<ExecId>, Reply<()>),
}

impl Command {
    /// For messages.
    fn name(&self) -> &'static str {
        match self {
            Self::Start(None, _) => "start",
            Self::Start(Some(_), _) => "start-exec",
            Self::Exec(..) => "exec",
            Self::Kill { .. } => "kill",
            Self::Delete(None, _) => "delete",
            Self::Delete(Some(_), _) => "delete-exec",
            Self::Pause(_) => "pause",
            Self::Resume(_) => "resume",
            Self::Update(..) => "update",
            Self::Checkpoint(..) => "checkpoint",
            Self::Resize(..) => "resize",
            Self::CloseIo(..) => "close-io",
        }
    }
}

/// containerd's task status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    /// 1.
    Created,
    /// 2.
    Running,
    /// 3.
    Stopped,
    /// 4.
    Paused,
    /// 5.
    Pausing,
}

/// One process as it is known.
#[derive(Debug, Clone)]
pub(crate) struct ProcessView {
    /// Its status.
    pub(crate) status: Status,
    /// The process, if there is or was one.
    pub(crate) process: Option<Arc<Process>>,
    /// How it ended, once told.
    pub(crate) ended: Option<Ended>,
    /// Resolves when it has ended; closed when it is deleted.
    pub(crate) exit: watch::Receiver<Option<Ended>>,
    /// Its stdio as given.
    pub(crate) stdio: Arc<StdioPaths>,
}

impl ProcessView {
    /// For the protobuf border, where 0 stands for "no process".
    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().map_or(0, |process| process.pid())
    }
}

/// A container as it is known: what State, Wait, Pids, Connect and Stats answer from.
#[derive(Debug, Clone)]
pub(crate) struct View {
    /// Its bundle.
    pub(crate) bundle: PathBuf,
    /// Init.
    pub(crate) init: ProcessView,
    /// Exec processes.
    pub(crate) execs: BTreeMap<ExecId, ProcessView>,
    /// Its cgroup, once it is created.
    pub(crate) cgroup: Option<Arc<Cgroup>>,
}

/// A way to reach a container's owner and to see what is known.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    commands: mpsc::Sender<Command>,
    /// None until the container is created.
    view: watch::Receiver<Option<Arc<View>>>,
}

impl Handle {
    /// What is known now.
    ///
    /// # Errors
    /// `NOT_FOUND` while the container is being created.
    pub(crate) fn view(&self) -> Result<Arc<View>, Fault> {
        self.view.borrow().clone().ok_or_else(Fault::no_container)
    }

    /// Asks the owner. The owner finishes what it has begun whether or not this is awaited.
    ///
    /// # Errors
    /// What the owner answers.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T, Fault> {
        if let Some(result) = request::rejoin().await {
            return result;
        }
        self.view()?;
        let (reply, answer) = Reply::channel();
        self.commands
            .send(command(reply))
            .await
            .map_err(|_| Fault::no_container())?;
        // Dropped without an answer: the step panicked, and was contained.
        answer.await.map_err(|_| {
            Fault::new(
                Code::INTERNAL,
                "the shim failed inside (panic contained, the container is untouched); see its log",
            )
        })?
    }
}

impl Shim {
    /// A shim without containers.
    pub(crate) fn new(
        namespace: Namespace,
        publisher: Arc<Publisher>,
        scribe: Arc<Scribe>,
    ) -> Self {
        let hierarchies = Hierarchies::detect()
            .inspect_err(|error| log::error!("no cgroups: {}", crate::fault::chain(error)))
            .ok();
        Self {
            namespace,
            reaper: Arc::default(),
            publisher,
            scribe,
            hierarchies,
            containers: Mutex::default(),
            count: watch::Sender::new(0),
            closed: AtomicBool::new(false),
        }
    }

    /// Whether the end has begun.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Refuses containers from now on, unless there are some; false then.
    pub(crate) fn close(&self) -> bool {
        let containers = self.containers();
        let close = containers.is_empty();
        if close {
            self.closed.store(true, Ordering::SeqCst);
        }
        close
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<ContainerId, Handle>> {
        // Every change is one insertion or removal, so a panic leaves nothing half done.
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A container by its id.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub(crate) fn container(&self, id: &str) -> Result<Handle, Fault> {
        let id = ContainerId::new(id).map_err(|_| Fault::no_container())?;
        self.containers()
            .get(&id)
            .cloned()
            .ok_or_else(Fault::no_container)
    }

    /// The containers' ids, also of those on their way.
    pub(crate) fn ids(&self) -> Vec<String> {
        let mut ids: Vec<String> = self.containers().keys().map(ToString::to_string).collect();
        ids.sort();
        ids
    }

    /// Number of containers, also of those on their way.
    pub(crate) fn count(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }

    /// Takes over the containers of the image before. They can be asked at once, and go on with
    /// [`Shim::begin`].
    pub(crate) fn restore(
        self: &Arc<Self>,
        inherited: &mut Inherited,
    ) -> Vec<(owner::keep::Restored, mpsc::Receiver<Command>)> {
        crate::stdio::number_after(inherited);
        self.reaper.restore(inherited);
        let mut all = Vec::new();
        for (id, record) in owner::keep::containers(inherited) {
            let (commands, queue) = mpsc::channel(QUEUE);
            let (show, view) = watch::channel(None);
            let restored =
                owner::Owner::restore(Arc::clone(self), id.clone(), &record, inherited, show);
            let Some(restored) = restored else {
                log::error!("{id} is lost: its record cannot be read");
                continue;
            };
            let mut containers = self.containers();
            containers.insert(id, Handle { commands, view });
            self.count.send_replace(containers.len());
            all.push((restored, queue));
        }
        all
    }

    /// Goes on with what the image before had begun; once what it left and nobody needs is closed.
    pub(crate) fn begin(
        self: &Arc<Self>,
        restored: Vec<(owner::keep::Restored, mpsc::Receiver<Command>)>,
    ) {
        for (mut restored, queue) in restored {
            restored.begin();
            let shim = Arc::clone(self);
            tokio::spawn(async move {
                let id = restored.id();
                request::all_heard().await;
                restored.run(queue).await;
                shim.forget(&id);
            });
        }
        self.reaper.restored();
    }

    fn forget(&self, id: &ContainerId) {
        let mut containers = self.containers();
        containers.remove(id);
        self.count.send_replace(containers.len());
    }

    /// Creates a container; its owner goes on even if this future is dropped.
    ///
    /// # Errors
    /// `ALREADY_EXISTS`, or what the creation answers.
    pub(crate) async fn create(self: &Arc<Self>, request: CreateRequest) -> Result<u32, Fault> {
        if let Some(result) = request::rejoin().await {
            return result;
        }
        let (reply, answer) = Reply::channel();
        let (commands, queue) = mpsc::channel(QUEUE);
        let (show, view) = watch::channel(None);
        {
            let mut containers = self.containers();
            if self.closed.load(Ordering::SeqCst) {
                return Err(Fault::new(
                    Code::UNAVAILABLE,
                    "the shim is ending: try again",
                ));
            }
            if containers.contains_key(&request.id) {
                return Err(state::Refusal::Exists(request.id.to_string()).into());
            }
            containers.insert(request.id.clone(), Handle { commands, view });
            self.count.send_replace(containers.len());
        }
        let shim = Arc::clone(self);
        tokio::spawn(async move {
            let id = request.id.clone();
            owner::Owner::new(Arc::clone(&shim), request, show)
                .run(queue, reply)
                .await;
            shim.forget(&id);
        });
        answer
            .await
            .map_err(|_| Fault::unknown("the container's owner failed; see the shim's log"))?
    }
}

#[cfg(test)]
mod tests;
