//! The owner of one container: the only one who changes it.
//!
//! An event loop over commands (from RPCs) and events (from the tasks it started and from
//! the reaper). It never waits for anything else. Start, Pause, Resume, Update, Checkpoint
//! and Delete of the container come one after the other; everything else goes at once.

mod change;
mod commands;
mod config;
mod create;
mod end;
pub(super) mod keep;
mod kill;
mod react;
mod tell;

pub(crate) use config::whose;

use std::collections::{BTreeMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use containerd_shim_protos::api::Mount;
use containerd_shim_protos::events::task as events;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::ttrpc::proto::Code;
use holdfast_cgroups::{Cgroup, When};
use holdfast_record::deadline::limit_from_env;
use holdfast_record::ledger::{Kind, Pod, Record};
use holdfast_record::logging::take_incident;
use holdfast_record::process::ProcessIdentity;
use holdfast_record::reason::{Rpc, TimedOut};
use holdfast_record::{ContainerId, ExecId, ExitStatus, Reason, Signal, Timestamp};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;

use super::journal::BundleJournal;
use super::launch::{self, Launcher};
use super::reason::{self, Asked, Case, Known};
use super::record::Entry;
use super::state::{Container, Ended, Exec, Init, Told};
use super::{
    CheckpointRequest, Command, CreateRequest, ProcessView, Remains, Reply, Shim, Status, View,
    remove, stuck,
};
use crate::event::{Event as Published, no_time, proto_time};
use crate::fault::{Fault, chain};
use crate::fault_point::fault_point;
use crate::look::describe;
use crate::options::Options;
use crate::publisher::{Publisher, SharedJournal, note};
use crate::reaper::{Child, Process, forget_end};
use crate::resume::request::RequestId;
use crate::resume::{self, image};
use crate::runtime::{Call, RestoredJob, Runtime};
use crate::stdio::logger::LoggerContext;
use crate::stdio::{ProcessIo, StdioPaths};
use crate::sys;
use crate::wire::server::contain;

/// Results that may wait for the owner.
const EVENTS: usize = 256;
/// Commands that may wait for another one of the container.
const MAX_PENDING: usize = 32;
/// How long init's exit waits for the exits of exec processes.
fn hold_limit() -> Duration {
    limit_from_env("HOLD", Duration::from_secs(10))
}
/// How long a stopped container may stay undeleted before its exit, though acknowledged, is told again; zero: never.
/// Every further time takes twice as long, up to [`ANNOUNCE_MAX`]. `docs/0008`.
fn announce_again_after() -> Duration {
    limit_from_env("ANNOUNCE", Duration::from_secs(300))
}
/// Longest pause between two announcements of the same exit.
const ANNOUNCE_MAX: Duration = Duration::from_secs(3600);
/// What is told of an exec process whose end nobody has seen: containerd's "unknown".
const UNSEEN: ExitStatus = ExitStatus::Exited(255);
/// How long a start of an exec process may go on after init has ended: it cannot succeed. Also
/// how long exec processes may take to end once they are killed for a delete.
const LAUNCH_LIMIT: Duration = Duration::from_secs(2);
/// Bound of the runtime's `start`.
fn start_limit() -> Duration {
    limit_from_env("START", Duration::from_secs(120))
}
/// Bound of the runtime's `checkpoint`: it writes all memory of the container.
fn checkpoint_limit() -> Duration {
    limit_from_env("CHECKPOINT", Duration::from_secs(300))
}
/// Bound of freezing and thawing.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);
/// Bound of the runtime's `update`: systemd may take its 20 s, and the kernel its time to reclaim.
const UPDATE_LIMIT: Duration = Duration::from_secs(60);
/// Bound of signalling a whole cgroup.
const KILL_ALL_LIMIT: Duration = Duration::from_secs(5);
/// An end this long after an OOM kill is not its consequence: the kill took another process.
const OOM_WINDOW: Duration = Duration::from_secs(2);
/// How long a created process that was killed may take to end.
const END_LIMIT: Duration = Duration::from_secs(10);

type P = Arc<Process>;

/// What the owner's helpers report.
#[derive(Debug)]
enum Event {
    InitRegistered(Child, oneshot::Sender<bool>),
    InitEnded(P, Ended),
    CreateDone(Result<(), Fault>),
    StartDone(Result<(), Fault>),
    PauseDone(Result<(), Fault>),
    ResumeDone(Result<(), Fault>),
    UpdateDone(Result<(), Fault>),
    DeleteDone(Result<Vec<String>, Fault>),
    DeleteOverdue,
    ExecRegistered(ExecId, Child, oneshot::Sender<bool>),
    ExecEnded(ExecId, P, Ended),
    ExecDone(ExecId, Result<(), Fault>),
    ExecCleared(ExecId),
    LaunchesOverdue,
    HoldExpired,
    OomSeen,
    /// The exit was told so long ago.
    Unclaimed(Duration),
}

impl Event {
    /// For messages.
    fn name(&self) -> &'static str {
        match self {
            Self::InitRegistered(..) => "init-registered",
            Self::InitEnded(..) => "init-ended",
            Self::CreateDone(_) => "create-done",
            Self::StartDone(_) => "start-done",
            Self::PauseDone(_) => "pause-done",
            Self::ResumeDone(_) => "resume-done",
            Self::UpdateDone(_) => "update-done",
            Self::DeleteDone(_) => "delete-done",
            Self::DeleteOverdue => "delete-overdue",
            Self::ExecRegistered(..) => "exec-registered",
            Self::ExecEnded(..) => "exec-ended",
            Self::ExecDone(..) => "exec-done",
            Self::ExecCleared(_) => "exec-cleared",
            Self::LaunchesOverdue => "launches-overdue",
            Self::HoldExpired => "hold-expired",
            Self::OomSeen => "oom-seen",
            Self::Unclaimed(_) => "unclaimed",
        }
    }
}

/// The one operation of the container itself that is on its way.
#[derive(Debug)]
enum Underway {
    Start(Reply<u32>),
    Pause(Reply<()>),
    Resume(Reply<()>),
    /// Or a checkpoint: both change no state.
    Update(Reply<()>),
    Delete(Reply<Remains>),
}

/// What belongs to a process beside its state.
#[derive(Debug)]
struct Side {
    paths: Arc<StdioPaths>,
    io: Arc<ProcessIo>,
    exit: watch::Sender<Option<Ended>>,
    asked: Vec<Asked>,
    started: Option<Timestamp>,
    identity: Option<ProcessIdentity>,
}

impl Side {
    fn new(paths: StdioPaths) -> Self {
        Self {
            paths: Arc::new(paths),
            io: Arc::default(),
            exit: watch::Sender::new(None),
            asked: Vec::new(),
            started: None,
            identity: None,
        }
    }
}

#[derive(Debug)]
struct ExecSide {
    side: Side,
    spec: Vec<u8>,
    start: Option<Reply<u32>>,
    /// When the latest start began.
    began: Instant,
    /// Stops the runtime that starts it.
    launch: Option<AbortHandle>,
    delete: Option<Reply<Remains>>,
}

/// What the owner reads in the bundle's config.json, once.
#[derive(Debug, Default)]
struct Config {
    kill_all_on_exit: bool,
    pod: Option<Pod>,
    name: Option<String>,
    /// Kubernetes' termination log on the node.
    termination_log: Option<PathBuf>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Owner {
    shim: Arc<Shim>,
    id: ContainerId,
    bundle: PathBuf,
    mounts: Vec<Mount>,
    options: Options,
    runtime: Runtime,
    model: Container<P>,
    init: Side,
    execs: BTreeMap<ExecId, ExecSide>,
    show: watch::Sender<Option<Arc<View>>>,
    events: mpsc::Sender<Event>,
    inbox: mpsc::Receiver<Event>,
    created: Option<Reply<u32>>,
    began: Instant,
    underway: Option<Underway>,
    pending: VecDeque<Command>,
    /// A Delete that waits for init's end to be told.
    deferred_delete: Option<Reply<Remains>>,
    /// Why it could not be deleted when that was tried last.
    delete_failed: Option<String>,
    cgroup: Option<Arc<Cgroup>>,
    oom_before: u64,
    oom_told: u64,
    /// When the kernel was last seen to have killed for want of memory.
    oom_at: Option<Instant>,
    journal: Option<SharedJournal>,
    config: Config,
    holding: bool,
    /// Requests whose signal has been sent and that are not answered yet.
    killing: Vec<RequestId>,
    /// What of it lies on the slate, as a hash.
    kept: u64,
    /// Images that it is restored from.
    checkpoint: Option<PathBuf>,
}

impl Owner {
    /// An owner for a container that is yet to be created.
    pub(super) fn new(
        shim: Arc<Shim>,
        request: CreateRequest,
        show: watch::Sender<Option<Arc<View>>>,
    ) -> Self {
        let (events, inbox) = mpsc::channel(EVENTS);
        let CreateRequest {
            id,
            bundle,
            rootfs,
            stdio,
            options,
            checkpoint,
        } = request;
        Self {
            runtime: Runtime::new(&options, &shim.namespace, &id, &bundle),
            model: Container::new(id.to_string()),
            init: Side::new(stdio),
            execs: BTreeMap::new(),
            config: config::read_config(&bundle),
            mounts: rootfs,
            shim,
            id,
            bundle,
            options,
            show,
            events,
            inbox,
            created: None,
            began: Instant::now(),
            underway: None,
            pending: VecDeque::new(),
            deferred_delete: None,
            delete_failed: None,
            cgroup: None,
            oom_before: 0,
            oom_told: 0,
            oom_at: None,
            journal: None,
            holding: false,
            killing: Vec::new(),
            kept: 0,
            checkpoint,
        }
    }

    /// Creates the container and looks after it until it is deleted.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>, created: Reply<u32>) {
        {
            let _step = resume::step();
            self.created = Some(created);
            self.keep_all();
            self.begin_create();
        }
        self.look_after(&mut commands).await;
    }

    /// Looks after it until it is deleted.
    async fn look_after(mut self, commands: &mut mpsc::Receiver<Command>) {
        while !matches!(self.model.init(), Init::Deleted) {
            let (event, command) = tokio::select! {
                biased;
                Some(event) = self.inbox.recv() => (Some(event), None),
                Some(command) = commands.recv() => (None, Some(command)),
            };
            // All that one of them changes is on the slate at once.
            let _step = resume::step();
            if let Some(event) = event {
                self.contained(event.name(), |owner| owner.event(event));
            }
            if let Some(command) = command {
                self.contained(command.name(), |owner| owner.command(command));
            }
            self.contained("settle", Self::settle);
            self.keep();
        }
        self.give_up_launches();
        log::debug!("{}: gone", self.id);
    }

    /// One step. After a panic in it the next image of the shim takes the container from where it was before
    /// the step, and does it again. What panics once more costs the call its answer and nothing
    /// else: every change of the model is one assignment, and the container goes on from the last one.
    fn contained(&mut self, name: &str, step: impl FnOnce(&mut Self)) {
        let id = self.id.clone();
        let whole = AssertUnwindSafe(|| {
            fault_point(&format!("owner/{name}/before"));
            step(self);
            fault_point(&format!("owner/{name}/after"));
        });
        if std::panic::catch_unwind(whole).is_err() {
            let incident = take_incident().unwrap_or_default();
            log::error!("{id}: a panic in the container's owner ({name}), incident {incident}");
            image::retry_after_panic(&format!("owner/{id}/{name}"), &incident);
            log::error!("{id}: contained a panic in the container's owner, incident {incident}");
        }
    }

    /// Reports to the owner when `future` is done, whoever goes away meanwhile.
    fn later(&self, future: impl Future<Output = Event> + Send + 'static) -> AbortHandle {
        let events = self.events.clone();
        let id = self.id.clone();
        let task = tokio::spawn(async move {
            let event = match contain(future).await {
                Ok(event) => event,
                Err(panic) => {
                    let incident = take_incident().unwrap_or_default();
                    log::error!(
                        "{id}: a panic in a task of its owner, incident {incident}: {panic}"
                    );
                    image::retry_after_panic(&format!("task/{id}"), &incident);
                    return;
                }
            };
            // Err: the container is gone and with it the interest.
            let _ = events.send(event).await;
        });
        task.abort_handle()
    }

    fn launcher(&self, side: &Side) -> Launcher {
        Launcher {
            reaper: Arc::clone(&self.shim.reaper),
            runtime: self.runtime.clone(),
            bundle: self.bundle.clone(),
            options: self.options.clone(),
            paths: Arc::clone(&side.paths),
            io: Arc::clone(&side.io),
            context: LoggerContext {
                reaper: Arc::clone(&self.shim.reaper),
                namespace: self.shim.namespace.clone(),
                container: self.id.clone(),
            },
        }
    }

    fn watch_end(
        &self,
        ended: oneshot::Receiver<Ended>,
        event: impl FnOnce(Ended) -> Event + Send + 'static,
    ) {
        let events = self.events.clone();
        tokio::spawn(async move {
            if let Ok(ended) = ended.await {
                let _ = events.send(event(ended)).await;
            }
        });
    }
}

fn timed_out(fault: &Fault, began: Instant) -> TimedOut {
    TimedOut {
        step: fault.text.clone(),
        waited: began.elapsed(),
        process: None,
    }
}
