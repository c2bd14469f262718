//! A call at work as the slate has it, so that the next image can go on with it.

use std::path::PathBuf;
use std::sync::Arc;

use holdfast_record::{ContainerId, ExitStatus, Reason};
use serde::{Deserialize, Serialize};

use crate::reaper::{Child, Launch, ProcessRecord, Reaper, forget_end};
use crate::resume;
use crate::resume::descriptor::{Descriptor, Name};
use crate::resume::inherited::Inherited;
use crate::stdio::console::{ConsoleRecord, ConsoleSocket};

/// A runtime at work, as the slate has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(super) verb: String,
    pub(super) child: ProcessRecord,
    pub(super) log: PathBuf,
    /// When its time is over, milliseconds since 1970.
    pub(super) until: u64,
    /// Our end of the barrier.
    pub(super) socket: Option<Name>,
    pub(super) pid_file: PathBuf,
    /// The process it has made.
    pub(super) registered: Option<ProcessRecord>,
    /// Whether it knows that we know.
    pub(super) acknowledged: bool,
    pub(super) failed: Option<String>,
    #[serde(default)]
    pub(super) reason: Option<Box<Reason>>,
    pub(super) ended: Option<ExitStatus>,
    /// Where the terminal comes from.
    pub(crate) console: Option<ConsoleRecord>,
}

/// A job of the image before.
#[derive(Debug)]
pub(crate) struct RestoredJob {
    pub(super) key: String,
    pub(super) job: Job,
    pub(super) child: Option<Child>,
    pub(super) socket: Option<Descriptor>,
    pub(super) registered: Option<(u32, Option<Descriptor>)>,
    /// See [`Job`].
    pub(crate) console: Option<ConsoleSocket>,
    /// The terminal, if it has come.
    pub(crate) master: Option<Descriptor>,
    pub(super) launch: Option<Launch>,
    /// The process it has made is known to its owner.
    pub(super) owned: bool,
}

impl RestoredJob {
    /// The job under `key`, if the image before has begun it. `owned`: the process it has made is known to its
    /// owner already.
    pub(crate) fn take(
        key: &str,
        owned: bool,
        reaper: &Arc<Reaper>,
        inherited: &mut Inherited,
    ) -> Option<Self> {
        let job: Job = inherited.json(key)?;
        let master: Option<Name> = inherited.json(&format!("{key}#master"));
        let child = match job.ended {
            Some(_) => None,
            None => Some(reaper.watch_again(Arc::new(job.child.restore(inherited)), true)),
        };
        let mut descriptor = |name: Option<Name>| {
            name.and_then(|name| {
                inherited
                    .descriptor(name)
                    .inspect_err(|error| log::error!("{key}: {name:?}: {error}"))
                    .ok()
            })
        };
        let socket = descriptor(job.socket);
        let master = descriptor(master);
        let registered = match &job.registered {
            // Its descriptor came with the owner's own record.
            Some(process) if owned => Some((process.pid, None)),
            Some(process) => {
                let process = process.restore(inherited);
                Some(process.into_parts())
            }
            None => None,
        };
        let console = job
            .console
            .as_ref()
            .filter(|_| master.is_none())
            .and_then(|console| console.restore(inherited));
        // It names its descriptors again.
        resume::put_json(key, &job);
        if let Some(master) = &master {
            resume::put_json(&format!("{key}#master"), &master.name());
        }
        Some(Self {
            key: key.to_owned(),
            job,
            child,
            socket,
            registered,
            console,
            master,
            launch: Some(reaper.launch()),
            owned,
        })
    }
}

/// What is kept of a call while it goes on; nothing where no next image will ask.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) key: Option<String>,
    pub(super) job: Option<Job>,
}

impl Kept {
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Job)) {
        if let (Some(key), Some(job)) = (&self.key, &mut self.job) {
            change(job);
            resume::put_json(key, job);
        }
    }

    /// The runtime has ended.
    pub(super) fn ended(&mut self, pid: u32, status: ExitStatus) {
        let _step = resume::step();
        self.change(|job| job.ended = Some(status));
        forget_end(pid);
    }
}

/// Where a container's job lies; `what` is its verb, for an exec with the process' id.
pub(crate) fn job_key(container: &ContainerId, what: &str) -> String {
    format!("job/{container}/{what}")
}

pub(super) fn now_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}

/// What a verb's name is in this program.
pub(super) fn verb_of(text: &str) -> &'static str {
    ["create", "start", "exec", "delete", "checkpoint", "restore"]
        .into_iter()
        .find(|verb| *verb == text)
        .unwrap_or("runtime")
}
