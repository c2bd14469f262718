//! The owner of one container: the only one who changes it.
//!
//! An event loop over commands (from RPCs) and events (from the tasks it started and from
//! the reaper). It never waits for anything else. Start, Pause, Resume, Update, Checkpoint
//! and Delete of the container come one after the other; everything else goes at once.

use std::collections::{BTreeMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use containerd_shim_protos::api::Mount;
use containerd_shim_protos::events::task as events;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::ttrpc::proto::Code;
use holdfast_cgroups::{Cgroup, When};
use holdfast_record::ledger::{Kind, Pod, Record};
use holdfast_record::logging::take_incident;
use holdfast_record::process::{ProcessIdentity, describe};
use holdfast_record::reason::{Rpc, TimedOut};
use holdfast_record::{ContainerId, ExecId, ExitStatus, Reason, Signal, Timestamp};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;

use super::launch::Launcher;
use super::reason::{self, Asked, Known};
use super::record::{BundleJournal, Entry};
use super::state::{Container, Ended, Exec, Init, Told};
use super::{Command, CreateRequest, ProcessView, Remains, Reply, Shim, Status, View, remove};
use crate::fault::{Fault, chain};
use crate::options::Options;
use crate::publisher::{Event as Published, proto_time};
use crate::reaper::{Child, Process};
use crate::runtime::{Call, Runtime};
use crate::stdio::logger::LoggerContext;
use crate::stdio::{ProcessIo, StdioPaths};
use crate::sys;

/// Results that may wait for the owner.
const EVENTS: usize = 256;
/// Commands that may wait for another one of the container.
const MAX_PENDING: usize = 32;
/// How long init's exit waits for the exits of exec processes.
const HOLD_LIMIT: Duration = Duration::from_secs(10);
/// How long a start of an exec process may go on after init has ended: it cannot succeed.
const LAUNCH_LIMIT: Duration = Duration::from_secs(2);
/// Bound of the runtime's `start`.
const START_LIMIT: Duration = Duration::from_secs(120);
/// Bound of freezing and thawing.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);
/// Bound of signalling a whole cgroup.
const KILL_ALL_LIMIT: Duration = Duration::from_secs(5);
/// An end this long after an OOM kill is not its consequence: the kill took another process.
const OOM_WINDOW: Duration = Duration::from_secs(2);
/// How long a created process that was killed may take to end.
const END_LIMIT: Duration = Duration::from_secs(30);

type P = Arc<Process>;

/// What the owner's helpers report.
#[derive(Debug)]
enum Event {
    InitRegistered(Child, oneshot::Sender<bool>),
    InitEnded(Ended),
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
}

/// The one operation of the container itself that is on its way.
#[derive(Debug)]
enum Underway {
    Start(Reply<u32>),
    Pause(Reply<()>),
    Resume(Reply<()>),
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
    cgroup: Option<Arc<Cgroup>>,
    oom_before: u64,
    oom_told: u64,
    /// When the kernel was last seen to have killed for want of memory.
    oom_at: Option<Instant>,
    journal: Option<BundleJournal>,
    config: Config,
    holding: bool,
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
        } = request;
        Self {
            runtime: Runtime::new(&options, &shim.namespace, &id, &bundle),
            model: Container::new(id.to_string()),
            init: Side::new(stdio),
            execs: BTreeMap::new(),
            config: read_config(&bundle),
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
            cgroup: None,
            oom_before: 0,
            oom_told: 0,
            oom_at: None,
            journal: None,
            holding: false,
        }
    }

    /// Creates the container and looks after it until it is deleted.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>, created: Reply<u32>) {
        self.created = Some(created);
        self.begin_create();
        while !matches!(self.model.init(), Init::Deleted) {
            tokio::select! {
                biased;
                Some(event) = self.inbox.recv() => self.contained(|owner| owner.event(event)),
                Some(command) = commands.recv() => self.contained(|owner| owner.command(command)),
            }
            self.contained(Self::settle);
        }
        self.give_up_launches();
        log::debug!("{}: gone", self.id);
    }

    /// One step. A panic in it costs the call its answer and nothing else: every change of
    /// the model is one assignment, and the container goes on from the last one.
    fn contained(&mut self, step: impl FnOnce(&mut Self)) {
        let id = self.id.clone();
        if std::panic::catch_unwind(AssertUnwindSafe(|| step(self))).is_err() {
            let incident = take_incident().unwrap_or_default();
            log::error!("{id}: contained a panic in the container's owner, incident {incident}");
        }
    }

    /// Reports to the owner when `future` is done, whoever goes away meanwhile.
    fn later(&self, future: impl Future<Output = Event> + Send + 'static) -> AbortHandle {
        let events = self.events.clone();
        let task = tokio::spawn(async move {
            let event = future.await;
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

    // --- create ------------------------------------------------------------------------

    fn begin_create(&self) {
        let (launcher, mounts, events) = (
            self.launcher(&self.init),
            self.mounts.clone(),
            self.events.clone(),
        );
        self.later(async move {
            let register = |child| {
                let events = events.clone();
                async move {
                    let (stored, answer) = oneshot::channel();
                    let _ = events.send(Event::InitRegistered(child, stored)).await;
                    answer.await.unwrap_or(false)
                }
            };
            let written = launcher.options.write(&launcher.bundle).map_err(|error| {
                Fault::unknown(format!(
                    "write the options into {}: {error}",
                    launcher.bundle.display()
                ))
            });
            Event::CreateDone(match written {
                Ok(()) => launcher.create(mounts, register).await,
                Err(fault) => Err(fault),
            })
        });
    }

    fn create_done(&mut self, result: Result<(), Fault>) {
        let result = result.and_then(|()| self.model.create_done().map_err(Fault::from));
        match result {
            Ok(process) => {
                self.cgroup = self.find_cgroup(&process);
                self.oom_before = self.oom_kills();
                self.watch_oom();
                self.init.identity = ProcessIdentity::read(process.pid()).ok();
                self.journal = Some(BundleJournal::create(&self.bundle));
                self.settle();
                if let Some(reply) = self.created.take() {
                    let _ = reply.send(Ok(process.pid()));
                }
            }
            Err(fault) => {
                // A process that was made and whose container is not to be must not stay.
                if let Init::Creating(Some((process, None))) = self.model.init() {
                    let _ = process.signal(libc::SIGKILL);
                }
                self.model.create_failed();
                let reason = match fault.code {
                    Code::DEADLINE_EXCEEDED => {
                        Reason::CreateTimedOut(timed_out(&fault, self.began))
                    }
                    _ => Reason::CreateStepFailed {
                        step: "create".to_owned(),
                        text: fault.text.clone(),
                    },
                };
                self.record(Record::new(Kind::Container, &reason, Timestamp::now()));
                log::error!("{}: {}", self.id, fault.text);
                if let Some(reply) = self.created.take() {
                    let _ = reply.send(Err(fault));
                }
            }
        }
    }

    fn find_cgroup(&self, process: &P) -> Option<Arc<Cgroup>> {
        let pid = i32::try_from(process.pid()).ok()?;
        let hierarchies = self.shim.hierarchies.as_ref()?;
        Cgroup::of_process(hierarchies, pid)
            .inspect_err(|error| log::warn!("{}: no cgroup: {}", self.id, chain(error)))
            .ok()
            .map(Arc::new)
    }

    fn oom_kills(&self) -> u64 {
        self.cgroup
            .as_ref()
            .and_then(|cgroup| cgroup.oom_kills().ok().flatten())
            .map_or(0, |kills| kills.total)
    }

    fn watch_oom(&mut self) {
        self.oom_told = self.oom_before;
        let Some(Ok(Some(source))) = self.cgroup.as_ref().map(|cgroup| cgroup.oom_events()) else {
            return;
        };
        let Ok((source, interest)) = sys::watch_oom(source) else {
            return;
        };
        let events = self.events.clone();
        tokio::spawn(async move {
            loop {
                let gone = events.closed();
                let ready = tokio::select! {
                    ready = source.ready(interest) => ready,
                    () = gone => return,
                };
                let Ok(mut ready) = ready else { return };
                ready.clear_ready();
                let over = source.get_ref().0.acknowledge().is_err();
                if events.send(Event::OomSeen).await.is_err() || over {
                    return;
                }
            }
        });
    }

    fn tell_oom(&mut self) {
        let kills = self.oom_kills();
        if kills > self.oom_told && self.journal.is_some() {
            self.oom_told = kills;
            self.oom_at = Some(Instant::now());
            self.shim.publisher.publish(Published::Oom(events::TaskOOM {
                container_id: self.id.to_string(),
                ..events::TaskOOM::default()
            }));
        }
    }

    // --- events ------------------------------------------------------------------------

    fn event(&mut self, event: Event) {
        match event {
            Event::InitRegistered(child, stored) => {
                self.model.init_registered(child.process);
                self.watch_end(child.ended, Event::InitEnded);
                let _ = stored.send(true);
            }
            Event::InitEnded(ended) => {
                self.tell_oom();
                if self.config.kill_all_on_exit {
                    self.kill_rest();
                }
                self.model.init_ended(ended);
            }
            Event::CreateDone(result) => self.create_done(result),
            Event::StartDone(result) => self.start_done(result),
            Event::PauseDone(result) => {
                let done = self.model.pause_done(result.is_ok()).map_err(Fault::from);
                self.settle();
                if let Some(Underway::Pause(reply)) = self.underway.take() {
                    let _ = reply.send(result.and(done));
                }
            }
            Event::ResumeDone(result) => {
                let done = self.model.resume_done(result.is_ok()).map_err(Fault::from);
                self.settle();
                if let Some(Underway::Resume(reply)) = self.underway.take() {
                    let _ = reply.send(result.and(done));
                }
            }
            Event::UpdateDone(result) => {
                if let Some(Underway::Update(reply)) = self.underway.take() {
                    let _ = reply.send(result);
                }
            }
            Event::DeleteDone(result) => self.delete_done(result),
            Event::DeleteOverdue => {
                if let Some(reply) = self.deferred_delete.take() {
                    let state = match self.model.init() {
                        Init::Created(process) => describe(process.pid()).to_string(),
                        _ => "waiting for its exec processes".to_owned(),
                    };
                    let _ = reply.send(Err(Fault::deadline(format!(
                        "delete: the killed init process has not ended within {END_LIMIT:?}: {state}"
                    ))));
                }
            }
            Event::ExecRegistered(id, child, stored) => {
                let known = matches!(self.model.exec(&id), Some(Exec::Starting));
                if known {
                    let (process, exec) = (Arc::clone(&child.process), id.clone());
                    self.watch_end(child.ended, move |ended| {
                        Event::ExecEnded(exec, process, ended)
                    });
                    self.model.exec_registered(&id, child.process);
                } else {
                    let _ = child.process.signal(libc::SIGKILL);
                }
                let _ = stored.send(known);
            }
            Event::ExecEnded(id, process, ended) => {
                self.tell_oom();
                let current = match self.model.exec(&id) {
                    Some(Exec::Registered(current, _) | Exec::Running(current)) => {
                        Arc::ptr_eq(current, &process)
                    }
                    Some(
                        Exec::Created | Exec::Starting | Exec::Stopped(..) | Exec::Deleting(_),
                    )
                    | None => false,
                };
                if current {
                    self.model.exec_ended(&id, ended);
                }
            }
            Event::ExecDone(id, result) => {
                // Not of a launch that has been given up meanwhile.
                if self
                    .execs
                    .get(&id)
                    .is_some_and(|exec| exec.launch.is_some())
                {
                    self.exec_done(&id, result);
                }
            }
            Event::ExecCleared(id) => {
                self.model.exec_deleted(&id);
                let _ = std::fs::remove_file(super::launch::pid_file(&self.bundle, &id));
                if let Some(exec) = self.execs.remove(&id)
                    && let Some(reply) = exec.delete
                {
                    let ended = *exec.side.exit.borrow();
                    let pid = exec.side.identity.map_or(0, |identity| identity.pid);
                    let _ = reply.send(Ok(Remains { pid, ended }));
                }
            }
            Event::LaunchesOverdue => self.give_up_launches(),
            Event::HoldExpired => {
                if self.model.is_holding_exit() {
                    let late: Vec<String> = self
                        .model
                        .unfinished_execs()
                        .map(|(id, exec)| match exec {
                            Exec::Running(process) | Exec::Registered(process, _) => {
                                format!("{id} ({})", describe(process.pid()))
                            }
                            Exec::Starting => format!("{id} (its runtime has not answered)"),
                            Exec::Created | Exec::Stopped(..) | Exec::Deleting(_) => id.to_string(),
                        })
                        .collect();
                    log::warn!(
                        "{}: init's exit is told although exec processes have not ended within {HOLD_LIMIT:?}: {}",
                        self.id,
                        late.join("; ")
                    );
                    self.model.hold_expired();
                }
            }
            Event::OomSeen => self.tell_oom(),
        }
    }

    /// Ends starts of exec processes that go on although init has ended.
    fn give_up_launches(&mut self) {
        // By the launches and not by the model, which forgets its execs with the container.
        let late: Vec<ExecId> = self
            .execs
            .iter()
            .filter(|(_, exec)| exec.launch.is_some())
            .map(|(id, _)| id.clone())
            .collect();
        for id in late {
            log::warn!(
                "{}: giving up the start of exec {id}: init has ended",
                self.id
            );
            if let Some(launch) = self.execs.get_mut(&id).and_then(|exec| exec.launch.take()) {
                launch.abort();
            }
            let fault = Fault::new(
                Code::FAILED_PRECONDITION,
                format!(
                    "container {} init process is not running: failed precondition",
                    self.id
                ),
            );
            self.exec_done(&id, Err(fault));
        }
    }

    fn start_done(&mut self, result: Result<(), Fault>) {
        let pid = match self.model.init() {
            Init::Starting(process, _) => process.pid(),
            _ => 0,
        };
        if let Err(fault) = &result {
            let reason = Reason::StartFailed {
                text: fault.text.clone(),
            };
            self.record(Record::new(Kind::Container, &reason, Timestamp::now()));
        } else {
            self.init.started = Some(Timestamp::now());
        }
        self.model.start_done(result.is_ok());
        self.settle();
        if let Some(Underway::Start(reply)) = self.underway.take() {
            let _ = reply.send(result.map(|()| pid));
        }
    }

    fn exec_done(&mut self, id: &ExecId, result: Result<(), Fault>) {
        // A process whose start failed after it was made must not stay.
        if result.is_err()
            && let Some(Exec::Registered(process, None)) = self.model.exec(id)
        {
            let _ = process.signal(libc::SIGKILL);
        }
        let outcome = self
            .model
            .exec_start_done(id, result.is_ok())
            .map_err(Fault::from);
        // The runtime's error says more than the model's refusal.
        let outcome = result.and(outcome);
        if let Some(exec) = self.execs.get_mut(id) {
            match &outcome {
                Ok(process) => {
                    exec.side.started = Some(Timestamp::now());
                    exec.side.identity =
                        ProcessIdentity::read(process.pid())
                            .ok()
                            .or(Some(ProcessIdentity {
                                pid: process.pid(),
                                start_time: 0,
                            }));
                }
                Err(fault) => {
                    // Fresh ends for a start that is tried again.
                    exec.side.io = Arc::default();
                    let reason = match fault.code {
                        Code::DEADLINE_EXCEEDED => {
                            Reason::ExecTimedOut(timed_out(fault, exec.began))
                        }
                        _ => Reason::ExecFailed {
                            text: fault.text.clone(),
                        },
                    };
                    let record = Record::new(Kind::Exec, &reason, Timestamp::now()).of_exec(id);
                    self.record(record);
                }
            }
        }
        self.settle();
        let start = self.execs.get_mut(id).and_then(|exec| {
            exec.launch = None;
            exec.start.take()
        });
        if let Some(reply) = start {
            let _ = reply.send(outcome.map(|process| process.pid()));
        }
    }

    fn delete_done(&mut self, result: Result<Vec<String>, Fault>) {
        let remains = match self.model.init() {
            Init::Deleting(process, ended) => Remains {
                pid: process.pid(),
                ended: Some(*ended),
            },
            _ => Remains {
                pid: 0,
                ended: None,
            },
        };
        self.model.delete_done(result.is_ok());
        self.settle();
        let answer = match result {
            Ok(detached) => {
                if !detached.is_empty() {
                    let reason = Reason::CleanupIncomplete { left: detached };
                    self.record(Record::new(Kind::Container, &reason, Timestamp::now()));
                }
                Ok(remains)
            }
            Err(fault) => {
                log::error!("{}: {}", self.id, fault.text);
                Err(fault)
            }
        };
        if let Some(Underway::Delete(reply)) = self.underway.take() {
            let _ = reply.send(answer);
        }
    }

    /// Kills what is left in the cgroup when init has ended and shares its pid namespace.
    fn kill_rest(&self) {
        let Some(cgroup) = self.cgroup.clone() else {
            return;
        };
        let id = self.id.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = cgroup.signal_all(libc::SIGKILL, Instant::now() + KILL_ALL_LIMIT)
                && !error.is_gone()
            {
                log::warn!("{id}: kill the rest of the container: {}", chain(&error));
            }
        });
    }

    // --- commands ----------------------------------------------------------------------

    fn command(&mut self, command: Command) {
        match command {
            Command::Start(Some(id), reply) => self.start_exec(&id, reply),
            Command::Exec(id, paths, spec, reply) => {
                let result = self.model.exec_add(id.clone()).map_err(Fault::from);
                if result.is_ok() {
                    let exec = ExecSide {
                        side: Side::new(paths),
                        spec,
                        start: None,
                        began: Instant::now(),
                        launch: None,
                        delete: None,
                    };
                    self.execs.insert(id, exec);
                    self.settle();
                }
                let _ = reply.send(result);
            }
            Command::Kill {
                exec,
                signal,
                all,
                reply,
            } => self.kill(exec, signal, all, reply),
            Command::Delete(Some(id), reply) => self.delete_exec(&id, reply),
            Command::Resize(exec, rows, columns, reply) => {
                let _ = reply.send(self.resize(exec.as_ref(), rows, columns));
            }
            Command::CloseIo(exec, reply) => {
                let result = self.side(exec.as_ref()).map(|side| side.io.close_stdin());
                let _ = reply.send(result);
            }
            Command::Start(None, _)
            | Command::Delete(None, _)
            | Command::Pause(_)
            | Command::Resume(_)
            | Command::Update(..)
            | Command::Checkpoint(_) => {
                if self.pending.len() >= MAX_PENDING {
                    refuse(
                        command,
                        &Fault::new(
                            Code::RESOURCE_EXHAUSTED,
                            "too many operations wait for this container",
                        ),
                    );
                } else {
                    self.pending.push_back(command);
                    self.next_pending();
                }
            }
        }
    }

    /// Begins operations of the container until one is on its way.
    fn next_pending(&mut self) {
        while self.underway.is_none()
            && let Some(command) = self.pending.pop_front()
        {
            match command {
                Command::Start(None, reply) => self.start(reply),
                Command::Delete(None, reply) => self.delete(reply),
                Command::Pause(reply) => self.pause(reply),
                Command::Resume(reply) => self.resume(reply),
                Command::Update(resources, reply) => self.update(resources, reply),
                Command::Checkpoint(reply) => {
                    let result = self.model.may_checkpoint().map_err(Fault::from);
                    let _ = reply.send(result.and_then(|()| {
                        Err(Fault::unimplemented(
                            "checkpoint is not supported by this version of the shim",
                        ))
                    }));
                }
                other => self.command(other),
            }
        }
    }

    fn side(&self, exec: Option<&ExecId>) -> Result<&Side, Fault> {
        match exec {
            None => Ok(&self.init),
            Some(id) => self
                .execs
                .get(id)
                .map(|exec| &exec.side)
                .ok_or_else(|| Fault::not_found(&format!("process does not exist {id}"))),
        }
    }

    fn start(&mut self, reply: Reply<u32>) {
        if let Err(refusal) = self.model.begin_start() {
            let _ = reply.send(Err(refusal.into()));
            return;
        }
        self.underway = Some(Underway::Start(reply));
        let (runtime, reaper) = (self.runtime.clone(), Arc::clone(&self.shim.reaper));
        self.later(async move {
            let result = runtime.run(&reaper, Call::new("start", START_LIMIT)).await;
            Event::StartDone(result.map_err(|error| error.fault("OCI runtime start failed")))
        });
    }

    fn start_exec(&mut self, id: &ExecId, reply: Reply<u32>) {
        if let Err(refusal) = self.model.exec_begin_start(id) {
            let _ = reply.send(Err(refusal.into()));
            return;
        }
        let Some(exec) = self.execs.get_mut(id) else {
            let _ = reply.send(Err(Fault::not_found(&format!(
                "process does not exist {id}"
            ))));
            return;
        };
        exec.start = Some(reply);
        exec.began = Instant::now();
        let (spec, launcher) = (
            exec.spec.clone(),
            self.execs.get(id).map(|exec| self.launcher(&exec.side)),
        );
        let Some(launcher) = launcher else {
            return;
        };
        let (events, exec) = (self.events.clone(), id.clone());
        let launch = self.later(async move {
            let id = exec;
            let register = |child| {
                let (events, id) = (events.clone(), id.clone());
                async move {
                    let (stored, answer) = oneshot::channel();
                    let _ = events.send(Event::ExecRegistered(id, child, stored)).await;
                    answer.await.unwrap_or(false)
                }
            };
            let result = launcher.exec(&id, &spec, register).await;
            Event::ExecDone(id, result)
        });
        if let Some(exec) = self.execs.get_mut(id) {
            exec.launch = Some(launch);
        }
    }

    fn kill(&mut self, exec: Option<ExecId>, signal: i32, all: bool, reply: Reply<()>) {
        if !(0..=64).contains(&signal) {
            let _ = reply.send(Err(Fault::invalid(format!("signal {signal}"))));
            return;
        }
        let process = match self.target(exec.as_ref()) {
            Ok(process) => process,
            Err(fault) => {
                let _ = reply.send(Err(fault));
                return;
            }
        };
        let asked = Asked {
            rpc: Rpc::Kill,
            signal: Signal::new(signal),
            at: Timestamp::now(),
        };
        // Before the signal, so that the end it brings finds it; signal 0 ends nothing.
        if signal != 0 {
            let side = match &exec {
                Some(id) => self.execs.get_mut(id).map(|exec| &mut exec.side),
                None => Some(&mut self.init),
            };
            if let Some(side) = side {
                side.asked.push(asked);
                // The first (the polite one) and the latest are what a reason is made of.
                if side.asked.len() > 8 {
                    side.asked.remove(1);
                }
            }
            self.note(&Entry::KillRequested {
                exec: exec.clone(),
                signal,
                all,
                at: asked.at,
            });
        }
        if signal == libc::SIGKILL {
            self.thaw_for_kill();
        }
        match (all && exec.is_none(), self.cgroup.clone()) {
            (true, Some(cgroup)) => {
                tokio::task::spawn_blocking(move || {
                    let result = cgroup.signal_all(signal, Instant::now() + KILL_ALL_LIMIT);
                    let result = match result {
                        Err(error) if error.is_gone() => {
                            process.signal(signal).map_err(|error| kill_fault(&error))
                        }
                        other => {
                            other.map_err(|error| Fault::chain("unknown error after kill", &error))
                        }
                    };
                    let _ = reply.send(result);
                });
            }
            (_, _) => {
                let _ = reply.send(process.signal(signal).map_err(|error| kill_fault(&error)));
            }
        }
    }

    /// The process that Kill means.
    fn target(&self, exec: Option<&ExecId>) -> Result<P, Fault> {
        match exec {
            None => match self.model.init() {
                Init::Created(process)
                | Init::Starting(process, _)
                | Init::Running(process)
                | Init::Pausing(process)
                | Init::Paused(process)
                | Init::Resuming(process) => Ok(Arc::clone(process)),
                Init::Creating(_) => Err(Fault::no_container()),
                Init::Ending(..) | Init::Stopped(..) => Err(Fault::finished()),
                Init::Deleting(..) | Init::Deleted => {
                    Err(Fault::not_found("cannot kill a deleted process"))
                }
            },
            Some(id) => match self.model.exec(id) {
                Some(Exec::Running(process)) => Ok(Arc::clone(process)),
                Some(Exec::Created | Exec::Starting | Exec::Registered(..)) => Err(Fault::new(
                    Code::FAILED_PRECONDITION,
                    "process not created: failed precondition",
                )),
                Some(Exec::Stopped(..)) => Err(Fault::finished()),
                Some(Exec::Deleting(_)) | None => {
                    Err(Fault::not_found(&format!("process does not exist {id}")))
                }
            },
        }
    }

    /// A frozen process cannot die; who asks for its death does not want it kept.
    fn thaw_for_kill(&self) {
        if let (Init::Paused(_) | Init::Pausing(_), Some(cgroup)) =
            (self.model.init(), self.cgroup.clone())
        {
            let id = self.id.clone();
            tokio::task::spawn_blocking(move || {
                if let Err(error) = cgroup.thaw_all()
                    && !error.is_gone()
                {
                    log::warn!("{id}: thaw for SIGKILL: {}", chain(&error));
                }
            });
        }
    }

    fn resize(&self, exec: Option<&ExecId>, rows: u16, columns: u16) -> Result<(), Fault> {
        let side = self.side(exec)?;
        let stopped = match exec {
            None => matches!(
                self.model.init(),
                Init::Ending(..) | Init::Stopped(..) | Init::Deleting(..)
            ),
            Some(id) => matches!(
                self.model.exec(id),
                Some(Exec::Stopped(..) | Exec::Deleting(_))
            ),
        };
        if stopped {
            return Err(Fault::unknown("cannot resize a stopped container"));
        }
        side.io.resize(rows, columns).map_err(|error| {
            Fault::unknown(format!(
                "resize the terminal to {rows} x {columns}: {error}"
            ))
        })
    }

    fn pause(&mut self, reply: Reply<()>) {
        self.freeze(reply, true);
    }

    fn resume(&mut self, reply: Reply<()>) {
        self.freeze(reply, false);
    }

    fn freeze(&mut self, reply: Reply<()>, freeze: bool) {
        let begun = if freeze {
            self.model.begin_pause()
        } else {
            self.model.begin_resume()
        };
        if let Err(refusal) = begun {
            let _ = reply.send(Err(refusal.into()));
            return;
        }
        self.underway = Some(if freeze {
            Underway::Pause(reply)
        } else {
            Underway::Resume(reply)
        });
        let cgroup = self.cgroup.clone();
        let work = tokio::task::spawn_blocking(move || {
            let cgroup =
                cgroup.ok_or_else(|| Fault::unknown("the container has no cgroup to freeze"))?;
            let deadline = Instant::now() + FREEZE_LIMIT;
            let result = if freeze {
                cgroup.freeze(deadline)
            } else {
                cgroup.thaw(deadline)
            };
            let what = if freeze { "pause" } else { "resume" };
            result.map_err(|error| Fault::chain(what, &error))
        });
        self.later(async move {
            let result = work
                .await
                .unwrap_or_else(|panic| Err(Fault::unknown(panic.to_string())));
            if freeze {
                Event::PauseDone(result)
            } else {
                Event::ResumeDone(result)
            }
        });
    }

    fn update(&mut self, resources: Vec<u8>, reply: Reply<()>) {
        if let Err(refusal) = self.model.may_update() {
            let _ = reply.send(Err(refusal.into()));
            return;
        }
        let resources: oci_spec::runtime::LinuxResources = match serde_json::from_slice(&resources)
        {
            Ok(resources) => resources,
            Err(error) => {
                let _ = reply.send(Err(Fault::invalid(format!("resources: {error}"))));
                return;
            }
        };
        self.underway = Some(Underway::Update(reply));
        let cgroup = self.cgroup.clone();
        let work = tokio::task::spawn_blocking(move || {
            let cgroup =
                cgroup.ok_or_else(|| Fault::unknown("the container has no cgroup to update"))?;
            cgroup
                .apply(&resources, When::Update)
                .map_err(|error| Fault::chain("update", &error))
        });
        self.later(async move {
            Event::UpdateDone(
                work.await
                    .unwrap_or_else(|panic| Err(Fault::unknown(panic.to_string()))),
            )
        });
    }

    fn delete(&mut self, reply: Reply<Remains>) {
        match self.model.init() {
            // Never started: end it, and tell its true end before the delete.
            Init::Created(process) => {
                self.init.asked.push(Asked {
                    rpc: Rpc::Delete,
                    signal: Signal::KILL,
                    at: Timestamp::now(),
                });
                let _ = process.signal(libc::SIGKILL);
                self.defer_delete(reply);
            }
            Init::Ending(..) => self.defer_delete(reply),
            _ => self.delete_now(reply),
        }
    }

    fn defer_delete(&mut self, reply: Reply<Remains>) {
        if self.deferred_delete.is_some() {
            let _ = reply.send(Err(Fault::new(
                Code::UNAVAILABLE,
                "delete is still on its way: try again",
            )));
            return;
        }
        self.deferred_delete = Some(reply);
        self.later(async {
            tokio::time::sleep(END_LIMIT).await;
            Event::DeleteOverdue
        });
    }

    fn delete_now(&mut self, reply: Reply<Remains>) {
        if let Err(refusal) = self.model.begin_delete() {
            let _ = reply.send(Err(refusal.into()));
            return;
        }
        self.underway = Some(Underway::Delete(reply));
        let work = remove::container(
            Arc::clone(&self.shim.reaper),
            self.runtime.clone(),
            Arc::clone(&self.init.io),
            (!self.mounts.is_empty()).then(|| self.bundle.join("rootfs")),
        );
        self.later(async move { Event::DeleteDone(work.await) });
    }

    fn delete_exec(&mut self, id: &ExecId, reply: Reply<Remains>) {
        match self.model.exec_begin_delete(id) {
            Err(refusal) => {
                let _ = reply.send(Err(refusal.into()));
            }
            Ok(_) => {
                let Some(exec) = self.execs.get_mut(id) else {
                    let _ = reply.send(Err(Fault::not_found(&format!(
                        "process does not exist {id}"
                    ))));
                    return;
                };
                exec.delete = Some(reply);
                let (io, id) = (Arc::clone(&exec.side.io), id.clone());
                self.later(async move {
                    if !io.drain(remove::DRAIN_LIMIT).await {
                        log::warn!("delete of exec {id}: output was still held open {:?} after its end; closed it", remove::DRAIN_LIMIT);
                    }
                    Event::ExecCleared(id)
                });
            }
        }
    }

    // --- telling -----------------------------------------------------------------------

    /// Makes known what has changed: journal, view, events. Then goes on with what waited.
    fn settle(&mut self) {
        if self.model.is_holding_exit() && !std::mem::replace(&mut self.holding, true) {
            self.later(async {
                tokio::time::sleep(LAUNCH_LIMIT).await;
                Event::LaunchesOverdue
            });
            self.later(async {
                tokio::time::sleep(HOLD_LIMIT).await;
                Event::HoldExpired
            });
        }
        let told = self.model.take_told();
        for one in &told {
            self.note_told(one);
        }
        self.refresh_view();
        for one in told {
            self.tell(one);
        }
        if matches!(self.model.init(), Init::Stopped(..))
            && let Some(reply) = self.deferred_delete.take()
        {
            self.pending.push_front(Command::Delete(None, reply));
        }
        self.next_pending();
    }

    fn note(&mut self, entry: &Entry) {
        if let Some(journal) = &mut self.journal {
            journal.append(entry);
        }
    }

    fn note_told(&mut self, told: &Told<P>) {
        let at = Timestamp::now();
        let entry = match told {
            Told::Created(process) => Entry::Created {
                pid: process.pid(),
                shim: std::process::id(),
                at,
            },
            Told::Started(_) => Entry::Started { at },
            Told::ExecAdded(_) => return,
            Told::ExecStarted(id, process) => Entry::ExecStarted {
                exec: id.clone(),
                pid: process.pid(),
                at,
            },
            Told::ExecExited(id, process, ended) => Entry::ExecExited {
                exec: id.clone(),
                pid: process.pid(),
                status: ended.status,
                at: ended.at,
            },
            Told::Exited(process, ended) => Entry::Exited {
                pid: process.pid(),
                status: ended.status,
                at: ended.at,
            },
            Told::Paused => Entry::Paused,
            Told::Resumed => Entry::Resumed,
            Told::Deleted(..) => Entry::Deleted,
        };
        self.note(&entry);
    }

    fn tell(&mut self, told: Told<P>) {
        let container_id = self.id.to_string();
        let event = match told {
            Told::Created(process) => Published::Create(events::TaskCreate {
                container_id,
                bundle: self.bundle.display().to_string(),
                rootfs: self.mounts.clone(),
                io: MessageField::some(events::TaskIO {
                    stdin: self.init.paths.stdin.clone(),
                    stdout: self.init.paths.stdout.clone(),
                    stderr: self.init.paths.stderr.clone(),
                    terminal: self.init.paths.terminal,
                    ..events::TaskIO::default()
                }),
                pid: process.pid(),
                ..events::TaskCreate::default()
            }),
            Told::Started(process) => Published::Start(events::TaskStart {
                container_id,
                pid: process.pid(),
                ..events::TaskStart::default()
            }),
            Told::ExecAdded(id) => Published::ExecAdded(events::TaskExecAdded {
                container_id,
                exec_id: id.to_string(),
                ..events::TaskExecAdded::default()
            }),
            Told::ExecStarted(id, process) => Published::ExecStarted(events::TaskExecStarted {
                container_id,
                exec_id: id.to_string(),
                pid: process.pid(),
                ..events::TaskExecStarted::default()
            }),
            Told::ExecExited(id, process, ended) => {
                self.record_exec_end(&id, ended);
                if let Some(exec) = self.execs.get(&id) {
                    exec.side.exit.send_replace(Some(ended));
                }
                exit_event(container_id, id.to_string(), process.pid(), ended)
            }
            Told::Exited(process, ended) => {
                self.record_init_end(ended);
                self.init.exit.send_replace(Some(ended));
                exit_event(container_id.clone(), container_id, process.pid(), ended)
            }
            Told::Paused => Published::Paused(events::TaskPaused {
                container_id,
                ..events::TaskPaused::default()
            }),
            Told::Resumed => Published::Resumed(events::TaskResumed {
                container_id,
                ..events::TaskResumed::default()
            }),
            Told::Deleted(process, ended) => Published::Delete(events::TaskDelete {
                container_id,
                pid: process.pid(),
                exit_status: ended.status.shell_code(),
                exited_at: proto_time(ended.at),
                ..events::TaskDelete::default()
            }),
        };
        self.shim.publisher.publish(event);
    }

    fn record(&self, record: Record) {
        let record = record
            .of_container(Some(&self.shim.namespace), &self.id)
            .with_pod(self.config.pod.clone());
        self.shim.scribe.write(record);
    }

    /// What is known of an OOM kill that may have brought an end of now.
    fn oom(&self) -> Option<holdfast_record::reason::Oom> {
        self.oom_at.filter(|at| at.elapsed() < OOM_WINDOW)?;
        reason::oom_of(self.cgroup.as_ref()?, self.oom_before)
    }

    fn record_init_end(&self, ended: Ended) {
        let known = Known {
            asked: &self.init.asked,
            oom: if ended.status.success() {
                None
            } else {
                self.oom()
            },
            init: None,
            is_init: true,
        };
        let reason = reason::of_end(ended, known);
        log::info!(
            "{}: init ended: {} ({})",
            self.id,
            ended.status,
            reason.code()
        );
        self.record(end_record(Kind::Container, &reason, ended, &self.init));
    }

    fn record_exec_end(&self, id: &ExecId, ended: Ended) {
        let Some(exec) = self.execs.get(id) else {
            return;
        };
        let init = match self.model.init() {
            Init::Ending(process, init)
            | Init::Stopped(process, init)
            | Init::Deleting(process, init) => Some((process.pid(), Some(init.status))),
            // Init cannot be reaped before the last process of its pid namespace, so an exec
            // that goes down with it is seen first: look whether init is on its way.
            Init::Created(process) | Init::Starting(process, _) | Init::Running(process) => {
                (!self.init.asked.is_empty() || !is_alive(process))
                    .then(|| (process.pid(), None::<ExitStatus>))
            }
            Init::Creating(_)
            | Init::Pausing(_)
            | Init::Paused(_)
            | Init::Resuming(_)
            | Init::Deleted => None,
        };
        let known = Known {
            asked: &exec.side.asked,
            oom: if ended.status.success() {
                None
            } else {
                self.oom()
            },
            init,
            is_init: false,
        };
        let reason = reason::of_end(ended, known);
        self.record(end_record(Kind::Exec, &reason, ended, &exec.side).of_exec(id));
    }

    fn refresh_view(&self) {
        let (status, process, ended) = match self.model.init() {
            // Not there yet, or not any more.
            Init::Creating(_) | Init::Deleted => {
                self.show.send_replace(None);
                return;
            }
            Init::Created(process) | Init::Starting(process, _) => (Status::Created, process, None),
            Init::Running(process) | Init::Ending(process, _) => (Status::Running, process, None),
            Init::Pausing(process) => (Status::Pausing, process, None),
            Init::Paused(process) | Init::Resuming(process) => (Status::Paused, process, None),
            Init::Stopped(process, ended) | Init::Deleting(process, ended) => {
                (Status::Stopped, process, Some(*ended))
            }
        };
        let execs = self
            .model
            .execs()
            .iter()
            .filter_map(|(id, exec)| Some((id.clone(), self.exec_view(id, exec, status)?)))
            .collect();
        self.show.send_replace(Some(Arc::new(View {
            bundle: self.bundle.clone(),
            init: ProcessView {
                status,
                process: Some(Arc::clone(process)),
                ended,
                exit: self.init.exit.subscribe(),
                stdio: Arc::clone(&self.init.paths),
            },
            execs,
            cgroup: self.cgroup.clone(),
        })));
    }

    fn exec_view(&self, id: &ExecId, exec: &Exec<P>, container: Status) -> Option<ProcessView> {
        let side = &self.execs.get(id)?.side;
        let (status, process, ended) = match exec {
            Exec::Created | Exec::Starting | Exec::Registered(..) | Exec::Deleting(None) => {
                (Status::Created, None, None)
            }
            Exec::Running(process) => {
                // A frozen container's exec processes are as frozen as it is.
                let status = match container {
                    Status::Paused | Status::Pausing => container,
                    Status::Created | Status::Running | Status::Stopped => Status::Running,
                };
                (status, Some(Arc::clone(process)), None)
            }
            Exec::Stopped(process, ended) | Exec::Deleting(Some((process, ended))) => {
                (Status::Stopped, Some(Arc::clone(process)), Some(*ended))
            }
        };
        Some(ProcessView {
            status,
            process,
            ended,
            exit: side.exit.subscribe(),
            stdio: Arc::clone(&side.paths),
        })
    }
}

fn timed_out(fault: &Fault, began: Instant) -> TimedOut {
    TimedOut {
        step: fault.text.clone(),
        waited: began.elapsed(),
        process: None,
    }
}

fn is_alive(process: &P) -> bool {
    ProcessIdentity::read(process.pid()).is_ok_and(|identity| identity.is_alive())
}

fn end_record(kind: Kind, reason: &Reason, ended: Ended, side: &Side) -> Record {
    let mut record = Record::new(kind, reason, ended.at).with_status(ended.status);
    if let Some(identity) = side.identity {
        record = record.with_process(identity);
    }
    if let Some(started) = side.started {
        record = record.with_start(started);
    }
    record
}

fn exit_event(container_id: String, id: String, pid: u32, ended: Ended) -> Published {
    Published::Exit(events::TaskExit {
        container_id,
        id,
        pid,
        exit_status: ended.status.shell_code(),
        exited_at: proto_time(ended.at),
        ..events::TaskExit::default()
    })
}

fn kill_fault(error: &std::io::Error) -> Fault {
    if error.raw_os_error() == Some(libc::ESRCH) {
        Fault::finished()
    } else {
        Fault::unknown(format!("unknown error after kill: {error}"))
    }
}

fn refuse(command: Command, fault: &Fault) {
    match command {
        Command::Start(_, reply) => drop(reply.send(Err(fault.clone()))),
        Command::Delete(_, reply) => drop(reply.send(Err(fault.clone()))),
        Command::Exec(_, _, _, reply)
        | Command::Kill { reply, .. }
        | Command::Pause(reply)
        | Command::Resume(reply)
        | Command::Update(_, reply)
        | Command::Checkpoint(reply)
        | Command::Resize(_, _, _, reply)
        | Command::CloseIo(_, reply) => drop(reply.send(Err(fault.clone()))),
    }
}

fn read_config(bundle: &std::path::Path) -> Config {
    #[derive(Default, serde::Deserialize)]
    struct Spec {
        #[serde(default)]
        annotations: BTreeMap<String, String>,
        #[serde(default)]
        linux: Linux,
    }
    #[derive(Default, serde::Deserialize)]
    struct Linux {
        #[serde(default)]
        namespaces: Vec<Namespace>,
    }
    #[derive(serde::Deserialize)]
    struct Namespace {
        r#type: String,
        #[serde(default)]
        path: String,
    }
    let spec: Option<Spec> = std::fs::read(bundle.join("config.json"))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let Some(spec) = spec else {
        // What cannot be read may share everything.
        return Config {
            kill_all_on_exit: true,
            pod: None,
        };
    };
    Config {
        kill_all_on_exit: !spec
            .linux
            .namespaces
            .iter()
            .any(|namespace| namespace.r#type == "pid" && namespace.path.is_empty()),
        pod: Pod::from_annotations(|key| spec.annotations.get(key).map(String::as_str)),
    }
}
