//! What the kernel saw: who sent a signal, and whom it killed for want of memory.
//!
//! | question | where the kernel keeps the answer |
//! |---|---|
//! | who sent this signal | the tracepoint `signal:signal_generate`, in a trace instance of our own |
//! | what was that process, if it is gone | the tracepoints `task:task_newtask` and `sched:sched_process_exec`, in a second one |
//! | is the node being shut down | pid 1, `/run/nologin` |
//! | whom did the OOM killer choose, and which cgroup was full | the kernel's log, `/dev/kmsg`; else `oom:mark_victim` |
//!
//! Both instances are switched on by the first shim of a boot ([`Witness::set_up`]) and read only when a signal has
//! ended something that nobody asked us to end. What that costs, why there are two, and who removes them is in
//! `docs/0002-who-sent-the-signal.md`.
//!
//! Everything here may wait for the disk of another process' memory map for half a second at most, and for nothing else;
//! it is called where that harms nobody.

mod kmsg;
mod sender;
mod setup;
mod shutdown;
mod trace;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::exit::Signal;
use crate::reason::{Oom, OomScope, Sender};
use crate::sys;
use crate::time::Timestamp;

pub use kmsg::OomKill;
pub use shutdown::node_is_stopping;

/// Overrides where tracefs is looked for: a path, or `off` for no tracing at all.
pub const TRACEFS_VARIABLE: &str = "HOLDFAST_TRACEFS";

/// Overrides the instance's name, so that a test has one of its own.
pub const INSTANCE_VARIABLE: &str = "HOLDFAST_TRACE_INSTANCE";

/// Where tracefs is mounted: since Linux 4.1, and before.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// Name of the instance for signals; that for processes has `-processes` behind it.
const INSTANCE: &str = "holdfast";

/// Why nobody knows who sent a signal.
#[derive(Debug, thiserror::Error)]
pub enum Unwatched {
    /// There is no tracefs.
    #[error(
        "signals are not traced: no tracefs at {}; after `mount -t tracefs tracefs /sys/kernel/tracing` the next pod's shim begins", .0.display()
    )]
    NoTracefs(PathBuf),
    /// The operator does not want it.
    #[error("signals are not traced: {TRACEFS_VARIABLE}=off")]
    Off,
    /// A file of tracefs refused.
    #[error("signals are not traced: cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer. Part of the text, because the text alone is kept as evidence.
        source: io::Error,
    },
    /// The instance does not exist: no shim has made it since the boot, or somebody removed it.
    #[error("signals were not being traced: there is no trace instance {}", .0.display())]
    NotSetUp(PathBuf),
}

/// A signal as the kernel recorded it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// When.
    pub time: Timestamp,
    /// Which.
    pub signal: Signal,
    /// The process or thread it was for, in the node's pid namespace.
    pub target: u32,
    /// Whether the kernel itself sent it, on behalf of `sender`: the OOM killer, or the end of a pid namespace.
    pub by_kernel: bool,
    /// Who.
    pub sender: Sender,
}

/// Where the kernel's records are found. Holding one keeps nothing open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Witness {
    /// tracefs' mount point; none: not wanted.
    tracefs: Option<PathBuf>,
    name: String,
    kmsg: PathBuf,
}

impl Witness {
    /// The records below `tracefs` in the instances `name` and `name-processes`, and the log at `kmsg`.
    #[must_use]
    pub fn new(tracefs: Option<PathBuf>, name: &str, kmsg: PathBuf) -> Self {
        Self {
            tracefs,
            name: name.to_owned(),
            kmsg,
        }
    }

    /// Those of this node, as the environment says.
    #[must_use]
    pub fn from_env() -> Self {
        let tracefs = match std::env::var_os(TRACEFS_VARIABLE) {
            Some(off) if off == "off" => None,
            Some(path) if !path.is_empty() => Some(path.into()),
            Some(_) | None => Some(mounted()),
        };
        let name = std::env::var(INSTANCE_VARIABLE)
            .ok()
            .filter(|name| !name.is_empty() && !name.contains('/'))
            .unwrap_or_else(|| INSTANCE.to_owned());
        Self::new(tracefs, &name, "/dev/kmsg".into())
    }

    /// Where tracefs is looked for; none when it is not wanted.
    #[must_use]
    pub fn tracefs(&self) -> Option<&Path> {
        self.tracefs.as_deref()
    }

    /// The folder of the instance for signals; none when it is not wanted.
    #[must_use]
    pub fn instance(&self) -> Option<PathBuf> {
        Some(self.tracefs.as_ref()?.join("instances").join(&self.name))
    }

    fn processes(&self) -> Option<PathBuf> {
        let name = format!("{}-processes", self.name);
        Some(self.tracefs.as_ref()?.join("instances").join(name))
    }

    /// Switches the tracing on, if it is not on already. Any number of processes may do this at once.
    ///
    /// # Errors
    /// [`Unwatched`]; to be logged and kept for the evidence, never to be a reason for failing anything.
    pub fn set_up(&self) -> Result<(), Unwatched> {
        setup::set_up(self)
    }

    /// Whether the tracing is on.
    ///
    /// # Errors
    /// [`Unwatched`] says why it is not.
    pub fn check(&self) -> Result<(), Unwatched> {
        setup::check(self)
    }

    /// Removes both instances. Only for tests and for taking Holdfast off a node: a shim that still runs does not
    /// switch them on again.
    ///
    /// # Errors
    /// [`Unwatched::Io`], in particular while somebody reads them.
    pub fn remove(&self) -> Result<(), Unwatched> {
        setup::remove(self)
    }

    /// The last `signal` that was sent to `pid`, with everything that can be said of its sender. `Ok(None)`: the trace
    /// holds none.
    ///
    /// # Errors
    /// [`Unwatched`].
    pub fn sender(&self, pid: u32, signal: Signal) -> Result<Option<Sent>, Unwatched> {
        let instance = self.instance().ok_or(Unwatched::Off)?;
        let mut last = None;
        trace::read(&instance.join("trace"), |line| {
            if let Some(generated) = trace::generated(&line)
                && generated.target == pid
                && generated.signal == signal
            {
                last = Some((line.task.to_owned(), line.pid, line.at, generated));
            }
        })
        .map_err(|error| self.unreadable(&instance, error))?;
        let Some((task, tid, at, generated)) = last else {
            return Ok(None);
        };
        let trace = self.processes().map(|folder| folder.join("trace"));
        Ok(Some(Sent {
            time: since_boot(at),
            signal,
            target: pid,
            by_kernel: generated.by_kernel,
            sender: sender::describe(tid, &task, at, trace.as_deref()),
        }))
    }

    /// The last OOM kill of which `wanted` is true, as the kernel's log has it.
    ///
    /// # Errors
    /// When the log cannot be read: no permission (`dmesg_restrict` inside of a container), no such file.
    pub fn oom_kill(&self, wanted: impl Fn(&OomKill) -> bool) -> io::Result<Option<OomKill>> {
        let mut last = None;
        kmsg::oom_kills(&self.kmsg, |kill| {
            if wanted(&kill) {
                last = Some(kill);
            }
        })?;
        Ok(last)
    }

    /// Whether the trace has an OOM kill of the process `pid`, for when the kernel's log cannot be read.
    ///
    /// # Errors
    /// [`Unwatched`].
    pub fn was_oom_victim(&self, pid: u32) -> Result<bool, Unwatched> {
        let instance = self.instance().ok_or(Unwatched::Off)?;
        let mut found = false;
        trace::read(&instance.join("trace"), |line| {
            found |= trace::victim(&line) == Some(pid);
        })
        .map_err(|error| self.unreadable(&instance, error))?;
        Ok(found)
    }

    fn unreadable(&self, instance: &Path, source: io::Error) -> Unwatched {
        let tracefs = self.tracefs.clone().unwrap_or_default();
        if source.kind() != io::ErrorKind::NotFound {
            Unwatched::Io {
                action: "read",
                path: instance.join("trace"),
                source,
            }
        } else if tracefs.join("instances").is_dir() {
            Unwatched::NotSetUp(instance.to_owned())
        } else {
            Unwatched::NoTracefs(tracefs)
        }
    }
}

impl OomKill {
    /// As evidence; `kills` is what the cgroup counted.
    #[must_use]
    pub fn evidence(&self, kills: Option<u64>) -> Oom {
        Oom {
            scope: match &self.cgroup {
                Some(_) => OomScope::Cgroup,
                None => OomScope::Node,
            },
            cgroup: self.cgroup.clone(),
            limit: self.limit,
            usage: self.usage,
            kills,
            victim_pid: Some(self.victim_pid),
            victim: Some(self.victim.clone()),
        }
    }
}

/// The first mount point that has instances; the customary one when none has.
fn mounted() -> PathBuf {
    let has = TRACEFS
        .into_iter()
        .find(|path| Path::new(path).join("instances").is_dir());
    PathBuf::from(has.unwrap_or(TRACEFS[0]))
}

/// A time of the trace or of the kernel's log (since boot) by the wall clock.
fn since_boot(at: Duration) -> Timestamp {
    Timestamp::now().before(sys::monotonic().saturating_sub(at))
}

#[cfg(test)]
mod tests;
