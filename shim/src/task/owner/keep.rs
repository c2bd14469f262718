//! A container on the slate, and from the slate again.

use holdfast_cgroups::SavedCgroup;
use serde::{Deserialize, Serialize};

use super::*;
use crate::reaper::ProcessRecord;
use crate::resume::inherited::Inherited;
use crate::task::journal::JOURNAL_FILE;

/// Where the program of an exec process lies.
pub(super) fn spec_key(container: &ContainerId, exec: &ExecId) -> String {
    format!("spec/{container}/{exec}")
}

/// What never changes of a container.
#[derive(Debug, Serialize, Deserialize)]
struct BoxRecord {
    bundle: PathBuf,
    mounts: Vec<MountRecord>,
    options: Options,
    stdio: StdioPaths,
    /// Who asked for its creation.
    created: Option<RequestId>,
    /// Images that it is restored from.
    #[serde(default)]
    checkpoint: Option<PathBuf>,
}

#[derive(Debug, Serialize, Deserialize)]
struct MountRecord {
    kind: String,
    source: String,
    target: String,
    options: Vec<String>,
}

/// What changes.
#[derive(Debug, Serialize, Deserialize)]
struct StateRecord {
    init: Init<ProcessRecord>,
    side: SideRecord,
    execs: BTreeMap<ExecId, ExecRecord>,
    underway: Option<(UnderwayRecord, Option<RequestId>)>,
    cgroup: Option<SavedCgroup>,
    oom_before: u64,
    oom_told: u64,
    journal: bool,
    killing: Vec<RequestId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum UnderwayRecord {
    Start,
    Pause,
    Resume,
    Update,
    Delete,
}

#[derive(Debug, Serialize, Deserialize)]
struct SideRecord {
    io: u64,
    asked: Vec<Asked>,
    started: Option<Timestamp>,
    identity: Option<ProcessIdentity>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ExecRecord {
    state: Exec<ProcessRecord>,
    stdio: StdioPaths,
    side: SideRecord,
    start: Option<RequestId>,
    delete: Option<RequestId>,
}

impl SideRecord {
    fn of(side: &Side) -> Self {
        Self {
            io: side.io.number(),
            asked: side.asked.clone(),
            started: side.started,
            identity: side.identity,
        }
    }

    fn restore(
        self,
        stdio: StdioPaths,
        told: Option<Ended>,
        shim: &Shim,
        inherited: &mut Inherited,
    ) -> Side {
        Side {
            paths: Arc::new(stdio),
            io: Arc::new(ProcessIo::restore(self.io, &shim.reaper, inherited)),
            exit: watch::Sender::new(told),
            asked: self.asked,
            started: self.started,
            identity: self.identity,
        }
    }
}

/// What the image before had begun and this one goes on with.
#[derive(Debug, Default)]
struct Begun {
    /// There is a journal; it can be opened when the image before's is closed.
    journal: bool,
    create: Option<RestoredJob>,
    start: Option<RestoredJob>,
    restore: Option<RestoredJob>,
    delete: Option<RestoredJob>,
    checkpoint: Option<RestoredJob>,
    execs: BTreeMap<ExecId, RestoredJob>,
}

/// An owner that has been restored and does not run yet.
#[derive(Debug)]
pub(crate) struct Restored {
    owner: Owner,
    begun: Begun,
}

/// The containers that are on the slate.
pub(crate) fn containers(inherited: &mut Inherited) -> Vec<(ContainerId, Vec<u8>)> {
    inherited
        .all("box/")
        .into_iter()
        .filter_map(|(id, bytes)| Some((ContainerId::new(id).ok()?, bytes)))
        .collect()
}

impl Owner {
    fn box_key(&self) -> String {
        format!("box/{}", self.id)
    }

    fn state_key(&self) -> String {
        format!("state/{}", self.id)
    }

    /// Puts all of it on the slate, for the first time.
    pub(super) fn keep_all(&mut self) {
        if !resume::is_on() {
            return;
        }
        let record = BoxRecord {
            bundle: self.bundle.clone(),
            mounts: self
                .mounts
                .iter()
                .map(|mount| MountRecord {
                    kind: mount.type_.clone(),
                    source: mount.source.clone(),
                    target: mount.target.clone(),
                    options: mount.options.clone(),
                })
                .collect(),
            options: self.options.clone(),
            stdio: (*self.init.paths).clone(),
            created: self.created.as_ref().and_then(Reply::request),
            checkpoint: self.checkpoint.clone(),
        };
        resume::put_json(&self.box_key(), &record);
        self.keep();
    }

    /// Puts on the slate what has changed; takes it off when it is gone.
    pub(super) fn keep(&mut self) {
        if !resume::is_on() {
            return;
        }
        if matches!(self.model.init(), Init::Deleted) {
            resume::remove(&self.box_key());
            resume::remove(&self.state_key());
            resume::remove_all(&format!("spec/{}/", self.id));
            resume::remove_all(&format!("job/{}/", self.id));
            image::forgive(&format!("owner/{}/", self.id));
            image::forgive(&format!("task/{}", self.id));
            return;
        }
        let mut record = |process: &P| process.record();
        let state = StateRecord {
            init: self.model.init().map(&mut record),
            side: SideRecord::of(&self.init),
            execs: self
                .model
                .execs()
                .iter()
                .filter_map(|(id, exec)| {
                    let known = self.execs.get(id)?;
                    let kept = ExecRecord {
                        state: exec.map(&mut record),
                        stdio: (*known.side.paths).clone(),
                        side: SideRecord::of(&known.side),
                        start: known.start.as_ref().and_then(Reply::request),
                        delete: known.delete.as_ref().and_then(Reply::request),
                    };
                    Some((id.clone(), kept))
                })
                .collect(),
            underway: self.underway.as_ref().map(|underway| match underway {
                Underway::Start(reply) => (UnderwayRecord::Start, reply.request()),
                Underway::Pause(reply) => (UnderwayRecord::Pause, reply.request()),
                Underway::Resume(reply) => (UnderwayRecord::Resume, reply.request()),
                Underway::Update(reply) => (UnderwayRecord::Update, reply.request()),
                Underway::Delete(reply) => (UnderwayRecord::Delete, reply.request()),
            }),
            cgroup: self.cgroup.as_ref().map(|cgroup| cgroup.save()),
            oom_before: self.oom_before,
            oom_told: self.oom_told,
            journal: self.journal.is_some(),
            killing: self.killing.clone(),
        };
        resume::put_json_if_changed(&self.state_key(), &state, &mut self.kept);
    }

    /// A container of the image before.
    pub(crate) fn restore(
        shim: Arc<Shim>,
        id: ContainerId,
        record: &[u8],
        inherited: &mut Inherited,
        show: watch::Sender<Option<Arc<View>>>,
    ) -> Option<Restored> {
        let BoxRecord {
            bundle,
            mounts,
            options,
            stdio,
            created,
            checkpoint,
        } = serde_json::from_slice(record)
            .inspect_err(|error| log::error!("{id} cannot be read: {error}"))
            .ok()?;
        let state: StateRecord = inherited.json(&format!("state/{id}"))?;
        let rootfs = mounts
            .into_iter()
            .map(|mount| Mount {
                type_: mount.kind,
                source: mount.source,
                target: mount.target,
                options: mount.options,
                ..Mount::default()
            })
            .collect();
        let request = CreateRequest {
            id,
            bundle,
            rootfs,
            stdio: stdio.clone(),
            options,
            checkpoint,
        };
        let mut owner = Self::new(Arc::clone(&shim), request, show);
        let begun = owner.take_over(state, stdio, created, &shim, inherited);
        Some(Restored { owner, begun })
    }

    fn take_over(
        &mut self,
        state: StateRecord,
        stdio: StdioPaths,
        created: Option<RequestId>,
        shim: &Shim,
        inherited: &mut Inherited,
    ) -> Begun {
        let mut begun = Begun::default();
        let mut process = |record: &ProcessRecord| Arc::new(record.restore(inherited));
        let init = state.init.map(&mut process);
        let mut execs = BTreeMap::new();
        for (id, record) in &state.execs {
            execs.insert(id.clone(), record.state.map(&mut process));
        }
        let told = match &init {
            Init::Stopped(_, ended) | Init::Deleting(Some((_, ended))) => Some(*ended),
            Init::Creating(_)
            | Init::Created(_)
            | Init::Stored
            | Init::Restoring(_)
            | Init::Deleting(None)
            | Init::Starting(..)
            | Init::Running(_)
            | Init::Pausing(_)
            | Init::Paused(_)
            | Init::Resuming(_)
            | Init::Ending(..)
            | Init::Deleted => None,
        };
        let mut job = |what: &str, owned: bool| {
            let key = crate::runtime::job_key(&self.id, what);
            RestoredJob::take(&key, owned, &shim.reaper, inherited)
        };
        begun.create = job("create", init.process().is_some());
        begun.start = job("start", true);
        begun.restore = job("restore", init.process().is_some());
        begun.delete = job("delete", true);
        begun.checkpoint = job("checkpoint", true);
        for (id, exec) in &execs {
            let owned = matches!(exec, Exec::Registered(..));
            if let Some(job) = job(&launch::exec_job(id), owned) {
                begun.execs.insert(id.clone(), job);
            }
        }
        self.init = state.side.restore(stdio, told, shim, inherited);
        for (id, record) in state.execs {
            let (told, starts, ends) = match execs.get(&id) {
                Some(Exec::Stopped(_, ended)) => (Some(*ended), false, false),
                Some(Exec::Deleting(remains)) => {
                    (remains.as_ref().map(|(_, ended)| *ended), false, true)
                }
                Some(Exec::Starting | Exec::Registered(..)) => (None, true, false),
                Some(Exec::Created | Exec::Running(_)) | None => (None, false, false),
            };
            let spec = inherited
                .bytes(&spec_key(&self.id, &id))
                .unwrap_or_default();
            let side = record.side.restore(record.stdio, told, shim, inherited);
            let exec = ExecSide {
                side,
                spec,
                start: starts.then(|| Reply::restored(record.start)),
                began: Instant::now(),
                launch: None,
                delete: ends.then(|| Reply::restored(record.delete)),
            };
            self.execs.insert(id, exec);
        }
        if matches!(init, Init::Creating(_)) {
            self.created = Some(Reply::restored(created));
        }
        self.underway = state.underway.and_then(|(what, request)| match what {
            UnderwayRecord::Start => Some(Underway::Start(Reply::restored(request))),
            UnderwayRecord::Pause => Some(Underway::Pause(Reply::restored(request))),
            UnderwayRecord::Resume => Some(Underway::Resume(Reply::restored(request))),
            UnderwayRecord::Delete => Some(Underway::Delete(Reply::restored(request))),
            // An update is done again by its request; it may be.
            UnderwayRecord::Update => begun
                .checkpoint
                .is_some()
                .then(|| Underway::Update(Reply::restored(request))),
        });
        self.model = Container::restore(self.id.to_string(), init, execs);
        self.cgroup = state
            .cgroup
            .map(|saved| Arc::new(Cgroup::from_saved(&saved)));
        self.watch_oom();
        self.oom_before = state.oom_before;
        self.oom_told = state.oom_told;
        self.killing = state.killing;
        begun.journal = state.journal;
        self.refresh_view();
        begun
    }

    /// Goes on with what was begun.
    fn take_up(&mut self, mut begun: Begun) {
        if begun.journal {
            let path = self.bundle.join(JOURNAL_FILE);
            let mut known_as = None;
            let opened = BundleJournal::open(&path, |entry| {
                if let Entry::Created { shim, .. } = entry {
                    known_as = Some(shim);
                }
            });
            match opened {
                Ok(mut journal) => {
                    if known_as != Some(std::process::id()) {
                        // The shim that it names was killed; `delete` must not take us for gone.
                        let pid = self.model.init().process().map(|process| process.pid());
                        journal.append(&tell::created_entry(pid, Timestamp::now()));
                    }
                    let journal = Arc::new(Mutex::new(journal));
                    self.shim.publisher.resume(&journal);
                    self.journal = Some(journal);
                }
                Err(error) => {
                    log::error!("{}: {}", self.id, chain(&error));
                    self.journal = Some(Arc::new(Mutex::new(BundleJournal::create(&self.bundle))));
                }
            }
        }
        let live = |ended: &Option<Ended>| ended.is_none();
        let (reaper, init) = (Arc::clone(&self.shim.reaper), self.model.init().clone());
        if let Some(process) = init.process()
            && live(&init.ended())
        {
            let child = reaper.watch_again(Arc::clone(process), true);
            let process = Arc::clone(process);
            self.watch_end(child.ended, |ended| Event::InitEnded(process, ended));
        }
        let execs: Vec<(ExecId, Exec<P>)> = self
            .model
            .execs()
            .iter()
            .map(|(id, exec)| (id.clone(), exec.clone()))
            .collect();
        for (id, exec) in execs {
            match exec {
                Exec::Running(process) | Exec::Registered(process, None) => {
                    let child = reaper.watch_again(Arc::clone(&process), true);
                    let exec = id.clone();
                    self.watch_end(child.ended, move |ended| {
                        Event::ExecEnded(exec, process, ended)
                    });
                }
                Exec::Created
                | Exec::Starting
                | Exec::Registered(_, Some(_))
                | Exec::Stopped(..)
                | Exec::Deleting(_) => {}
            }
            match self.model.exec(&id) {
                Some(Exec::Starting | Exec::Registered(..)) => {
                    let job = begun.execs.remove(&id);
                    self.run_exec(&id, job);
                }
                Some(Exec::Deleting(_)) => self.clear_exec(&id),
                Some(Exec::Created | Exec::Running(_) | Exec::Stopped(..)) | None => {}
            }
        }
        if matches!(init, Init::Stopped(..)) {
            self.announce_again_in(announce_again_after());
        }
        match init {
            Init::Creating(_) => {
                let job = begun.create.take();
                self.go_on_creating(job);
            }
            Init::Starting(..) => self.run_start(begun.start.take()),
            Init::Restoring(_) => {
                let job = begun.restore.take();
                if job.is_none() {
                    self.init.io = Arc::default();
                }
                self.run_restore(self.checkpoint.clone().unwrap_or_default(), job);
            }
            Init::Pausing(_) => self.run_freeze(true),
            Init::Resuming(_) => self.run_freeze(false),
            Init::Deleting(_) => self.run_delete(begun.delete.take()),
            Init::Ending(..) | Init::Stopped(..) => {
                if self.config.kill_all_on_exit {
                    self.kill_rest();
                }
            }
            Init::Created(_)
            | Init::Stored
            | Init::Running(_)
            | Init::Paused(_)
            | Init::Deleted => {}
        }
        if let Some(job) = begun.checkpoint.take() {
            self.run_checkpoint(Err(job));
        }
    }
}

impl Restored {
    /// Looks after the container until it is deleted.
    pub(crate) async fn run(self, mut commands: mpsc::Receiver<Command>) {
        self.owner.look_after(&mut commands).await;
    }

    /// The container's id.
    pub(crate) fn id(&self) -> ContainerId {
        self.owner.id.clone()
    }

    /// Goes on with what was begun; on the event loop.
    pub(crate) fn begin(&mut self) {
        let _step = resume::step();
        let begun = std::mem::take(&mut self.begun);
        self.owner.take_up(begun);
        self.owner.settle();
        self.owner.keep();
    }
}
