//! The ledger: one record for each end, on disk, bounded, outliving the pod and the boot.
//!
//! A directory of numbered segments, `ledger-00000000000000000001.jsonl` and so on. Each line is one record as JSON
//! whose first member is the CRC-32 of everything that follows it:
//!
//! ```text
//! {"crc":"0123abcd","v":1,"time":"2026-01-31T12:00:00.000000000Z","kind":"container",…}
//! ```
//!
//! So a person's `jq` reads it as well as [`Ledger::read`]. How many processes can write at once without any lock,
//! and what that costs, is in `docs/0001-ledger-without-locks.md`.
//!
//! Members and codes that a reader does not know are kept in [`Record::extra`] and [`Record::evidence`] and shown.

mod query;
mod write;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use query::{Page, Query, Selector};
pub(crate) use write::shorten;

use crate::exit::ExitStatus;
use crate::ids::{ContainerId, ExecId, Namespace};
use crate::process::ProcessIdentity;
use crate::reason::{CATALOGUE, Entry, Reason};
use crate::time::Timestamp;

/// Version of the records that this crate writes. Raised only when an old reader would be misled.
pub const VERSION: u32 = 1;

/// Where the ledger is when nothing else is said.
pub const DEFAULT_DIR: &str = "/var/lib/holdfast/ledger";

/// Overrides [`DEFAULT_DIR`]: a path.
pub const DIR_VARIABLE: &str = "HOLDFAST_LEDGER_DIR";

/// Annotations under which CRI tells the pod's name, namespace and uid.
pub const POD_ANNOTATIONS: [&str; 3] = [
    "io.kubernetes.cri.sandbox-name",
    "io.kubernetes.cri.sandbox-namespace",
    "io.kubernetes.cri.sandbox-uid",
];

/// Annotations under which a container's name is told: by containerd's CRI plugin, cri-o, and nerdctl.
pub const NAME_ANNOTATIONS: [&str; 3] = [
    "io.kubernetes.cri.container-name",
    "io.kubernetes.cri-o.ContainerName",
    "nerdctl/name",
];

/// What ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A container's init process, or the attempt to create it.
    Container,
    /// An exec process.
    Exec,
    /// A shim.
    Shim,
    /// An OCI hook.
    Hook,
    /// A run of the runtime.
    Runtime,
    /// The GPU stage of a create.
    Gpu,
    /// Something that a newer version records.
    #[serde(untagged)]
    Other(String),
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Container => "container",
            Self::Exec => "exec",
            Self::Shim => "shim",
            Self::Hook => "hook",
            Self::Runtime => "runtime",
            Self::Gpu => "gpu",
            Self::Other(name) => name,
        })
    }
}

/// The Kubernetes pod a container belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// Its uid.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

impl Pod {
    /// From a container's annotations as CRI sets them; `None` outside of Kubernetes.
    pub fn from_annotations<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Option<Self> {
        let [name, namespace, uid] = POD_ANNOTATIONS.map(|key| get(key).unwrap_or("").to_owned());
        (!name.is_empty()).then_some(Self {
            name,
            namespace,
            uid,
        })
    }
}

/// Something that happened on the way to the end, for the timeline of `holdfast why`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Happening {
    /// When.
    pub time: Timestamp,
    /// What, as a phrase without a full stop: `Kill request with SIGTERM`.
    pub text: String,
}

/// One end of one thing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`] of the writer.
    pub v: u32,
    /// When the end was seen.
    pub time: Timestamp,
    /// What ended.
    pub kind: Kind,
    /// The reason's stable code.
    pub code: String,
    /// The reason as the writer put it in words, for readers that do not know the code.
    pub summary: String,
    /// The reason's evidence as the writer knew it.
    #[serde(default)]
    pub evidence: Value,
    /// How the process ended; absent when no process ended or nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<ExitStatus>,
    /// The containerd namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The container's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The name that people use for the container: in its pod, or as the tool that made it calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The exec process' id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<String>,
    /// The process that ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessIdentity>,
    /// When the process was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// The pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// The incident, for internal errors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incident: Option<String>,
    /// What happened before, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timeline: Vec<Happening>,
    /// Program, version and pid of the writer: `holdfast 0.1.0 (pid 77)`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub writer: String,
    /// The kernel's boot id, so that pids of another boot are not mistaken.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub boot: String,
    /// Members of a newer version.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Record {
    /// A record of `reason`, seen at `time`.
    #[must_use]
    pub fn new(kind: Kind, reason: &Reason, time: Timestamp) -> Self {
        Self {
            v: VERSION,
            time,
            kind,
            code: reason.code().to_owned(),
            summary: reason.to_string(),
            evidence: evidence(reason),
            status: None,
            namespace: None,
            container: None,
            name: None,
            exec: None,
            process: None,
            started: None,
            pod: None,
            incident: reason.incident().map(str::to_owned),
            timeline: Vec::new(),
            writer: writer(),
            boot: boot_id().unwrap_or_default(),
            extra: Map::new(),
        }
    }

    /// Another reason in the place of the first, which was only likely.
    #[must_use]
    pub fn with_reason(mut self, reason: &Reason) -> Self {
        self.code = reason.code().to_owned();
        self.summary = reason.to_string();
        self.evidence = evidence(reason);
        self.incident = reason.incident().map(str::to_owned);
        self
    }

    /// The name that people use for the container.
    #[must_use]
    pub fn with_name(mut self, name: Option<String>) -> Self {
        self.name = name;
        self
    }

    /// Whose end it is.
    #[must_use]
    pub fn of_container(mut self, namespace: Option<&Namespace>, id: &ContainerId) -> Self {
        self.namespace = namespace.map(|namespace| namespace.as_str().to_owned());
        self.container = Some(id.as_str().to_owned());
        self
    }

    /// The exec process whose end it is.
    #[must_use]
    pub fn of_exec(mut self, id: &ExecId) -> Self {
        self.exec = Some(id.as_str().to_owned());
        self
    }

    /// The process that ended.
    #[must_use]
    pub fn with_process(mut self, process: ProcessIdentity) -> Self {
        self.process = Some(process);
        self
    }

    /// How it ended.
    #[must_use]
    pub fn with_status(mut self, status: ExitStatus) -> Self {
        self.status = Some(status);
        self
    }

    /// When it was started.
    #[must_use]
    pub fn with_start(mut self, started: Timestamp) -> Self {
        self.started = Some(started);
        self
    }

    /// The pod it belongs to.
    #[must_use]
    pub fn with_pod(mut self, pod: Option<Pod>) -> Self {
        self.pod = pod;
        self
    }

    /// What happened before, oldest first.
    #[must_use]
    pub fn with_timeline(mut self, timeline: Vec<Happening>) -> Self {
        self.timeline = timeline;
        self
    }

    /// The typed reason; `None` when a newer version wrote a code or evidence that this one cannot read.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        let mut object = Map::new();
        object.insert("code".into(), Value::String(self.code.clone()));
        if !self.evidence.is_null() {
            object.insert("evidence".into(), self.evidence.clone());
        }
        serde_json::from_value(Value::Object(object)).ok()
    }

    /// What is known of the reason's code; `None` for a code of a newer version.
    #[must_use]
    pub fn entry(&self) -> Option<&'static Entry> {
        CATALOGUE.into_iter().find(|entry| entry.code == self.code)
    }
}

fn evidence(reason: &Reason) -> Value {
    match serde_json::to_value(reason) {
        Ok(Value::Object(mut object)) => object.remove("evidence").unwrap_or(Value::Null),
        // A reason is plain data; should it ever fail to become JSON, its sentence is still recorded.
        Ok(_) | Err(_) => Value::Null,
    }
}

fn writer() -> String {
    let program = std::env::args_os()
        .next()
        .and_then(|path| Some(Path::new(&path).file_name()?.to_string_lossy().into_owned()))
        .unwrap_or_else(|| "?".to_owned());
    format!(
        "{program} {} (pid {})",
        env!("CARGO_PKG_VERSION"),
        std::process::id()
    )
}

fn boot_id() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned())
}

/// Why the ledger could not be used. The caller logs it and goes on: no end waits for its record.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// A file or the directory could not be opened, read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The record could not be made into one line.
    #[error("cannot encode a record for the ledger")]
    Encode(#[source] serde_json::Error),
    /// Only a part of the line was written: the disk is full. Readers skip and count it.
    #[error("only {written} of {len} bytes of a record were written to {}: the disk is full", path.display())]
    Short {
        /// Where.
        path: PathBuf,
        /// Bytes written.
        written: usize,
        /// Bytes of the line.
        len: usize,
    },
}

/// How much disk the ledger takes at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// A segment that has this many bytes is followed by a new one.
    pub segment: u64,
    /// All segments together, in bytes; beyond it the oldest is dropped.
    pub total: u64,
    /// The longest line in bytes; longer evidence is shortened, and says so.
    pub line: usize,
}

impl Default for Bounds {
    /// 1 MiB, 16 MiB, 128 KiB: roughly twenty thousand ordinary ends.
    fn default() -> Self {
        Self {
            segment: 1 << 20,
            total: 16 << 20,
            line: 128 << 10,
        }
    }
}

/// A ledger's directory. Holding one keeps nothing open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    dir: PathBuf,
    bounds: Bounds,
}

impl Ledger {
    /// The ledger in `dir`, which is made on the first append.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            bounds: Bounds::default(),
        }
    }

    /// The ledger of this node: `HOLDFAST_LEDGER_DIR`, else `/var/lib/holdfast/ledger`.
    #[must_use]
    pub fn from_env() -> Self {
        Self::new(
            std::env::var_os(DIR_VARIABLE)
                .filter(|dir| !dir.is_empty())
                .map_or_else(|| PathBuf::from(DEFAULT_DIR), PathBuf::from),
        )
    }

    /// The same ledger with other bounds.
    #[must_use]
    pub fn with_bounds(mut self, bounds: Bounds) -> Self {
        self.bounds = bounds;
        self
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Adds one record. Safe among any number of writing processes; never waits for one of them.
    ///
    /// It does wait for the disk: a program that serves requests calls it where that harms nobody.
    ///
    /// # Errors
    /// [`LedgerError`]; to be logged, never to be a reason for failing the operation at hand.
    pub fn append(&self, record: &Record) -> Result<(), LedgerError> {
        write::append(&self.dir, self.bounds, record)
    }

    /// Reads the records that `query` asks for, oldest first. A ledger that does not exist is empty.
    ///
    /// # Errors
    /// [`LedgerError::Io`] when the directory cannot be listed or a segment cannot be read.
    pub fn read(&self, query: &Query) -> Result<Page, LedgerError> {
        query::read(&self.dir, query)
    }
}

/// The segments of `dir`, lowest number first.
fn segments(dir: &Path) -> Result<Vec<(u64, PathBuf)>, LedgerError> {
    let failed = |source| LedgerError::Io {
        action: "list the ledger's directory",
        path: dir.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut segments = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix("ledger-")?.strip_suffix(".jsonl"))
            .and_then(|number| number.parse().ok());
        if let Some(number) = number {
            segments.push((number, entry.path()));
        }
    }
    segments.sort();
    Ok(segments)
}

#[cfg(test)]
mod tests;
