//! The one closed list of reasons for which a container, an exec process, a hook, the runtime or the shim ends.
//!
//! A [`Reason`] is a stable code together with typed evidence. What does not depend on the occurrence
//! (title, meaning, advice, MESSAGE_ID) is in the [`CATALOGUE`], from which the manual page
//! `holdfast-reasons(7)` is made as well, so that page and program cannot disagree.
//!
//! On disk a reason is `{"code": "HF111", "evidence": {…}}`.

mod catalogue;
mod entry;
mod evidence;
mod man;
mod sentence;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use catalogue::CATALOGUE;
pub use entry::{Entry, Group, MessageId};
pub use evidence::{HookPlace, Oom, OomScope, Panicked, Rpc, Sender, TimedOut};
pub use man::man_page;

use crate::exit::{ExitStatus, Signal};
use crate::process::Description;
use crate::time::{Timestamp, millis, optional_millis};

/// Why something ended. The serde tag of each variant is its stable code.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "code", content = "evidence")]
pub enum Reason {
    /// HF101: called exit.
    #[serde(rename = "HF101")]
    Exited {
        /// With this code.
        code: u8,
    },
    /// HF102: a fatal signal for its own fault.
    #[serde(rename = "HF102")]
    Faulted {
        /// Which one.
        signal: Signal,
        /// Whether a core dump was written.
        core: bool,
    },
    /// HF103: an exec process that went down with its container.
    #[serde(rename = "HF103")]
    EndedWithContainer {
        /// The container's init process in the node's pid namespace.
        init_pid: u32,
        /// How that ended, where it is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        init_status: Option<ExitStatus>,
    },
    /// HF104: an exec process that its container's end did not end.
    #[serde(rename = "HF104")]
    OutlivedContainer {
        /// After how long the end of the container was told without it.
        #[serde(rename = "waited_ms", with = "millis")]
        waited: Duration,
        /// What is known of it.
        process: String,
    },
    /// HF111: by request.
    #[serde(rename = "HF111")]
    KilledByRequest {
        /// Which request.
        rpc: Rpc,
        /// The signal it carried.
        signal: Signal,
        /// When it came.
        requested_at: Timestamp,
        /// Time since the first polite signal (SIGTERM, the image's stop signal), if one came before.
        #[serde(
            rename = "grace_ms",
            with = "optional_millis",
            default,
            skip_serializing_if = "Option::is_none"
        )]
        grace: Option<Duration>,
    },
    /// HF112: exited, after somebody had asked for its end.
    #[serde(rename = "HF112")]
    ExitedOnRequest {
        /// With this code.
        code: u8,
        /// Which request.
        rpc: Rpc,
        /// The signal it carried.
        signal: Signal,
        /// When it came.
        requested_at: Timestamp,
        /// How long before the exit that was.
        #[serde(rename = "after_ms", with = "millis")]
        after: Duration,
    },
    /// HF121: the init process was chosen by the OOM killer.
    #[serde(rename = "HF121")]
    OomKilled(Oom),
    /// HF122: another process of the container was chosen by the OOM killer, and the container ended then.
    #[serde(rename = "HF122")]
    OomKilledChild(Oom),
    /// HF131: a signal of unknown request.
    #[serde(rename = "HF131")]
    SignalFromOutside {
        /// Which one.
        signal: Signal,
        /// Who sent it, where the kernel's tracepoint recorded it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sender: Option<Sender>,
        /// Why the sender is not known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sender_unknown_because: Option<String>,
    },
    /// HF141: a hook failed.
    #[serde(rename = "HF141")]
    HookFailed {
        /// Which one.
        hook: HookPlace,
        /// How it ended; absent when it could not be started.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        status: Option<ExitStatus>,
        /// What happened, in one sentence.
        text: String,
        /// Its standard output.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        stdout: String,
        /// Its standard error.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        stderr: String,
    },
    /// HF142: a hook did not finish in time.
    #[serde(rename = "HF142")]
    HookTimedOut {
        /// Which one.
        hook: HookPlace,
        /// After how long.
        #[serde(rename = "waited_ms", with = "millis")]
        waited: Duration,
        /// The hook as it was then.
        process: Description,
        /// Its standard output so far.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        stdout: String,
        /// Its standard error so far.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        stderr: String,
    },
    /// HF151: a step of create failed.
    #[serde(rename = "HF151")]
    CreateStepFailed {
        /// Which one.
        step: String,
        /// The whole chain of errors.
        text: String,
    },
    /// HF152: a step of create did not finish in time.
    #[serde(rename = "HF152")]
    CreateTimedOut(TimedOut),
    /// HF153: the program could not be run.
    #[serde(rename = "HF153")]
    StartFailed {
        /// The whole chain of errors.
        text: String,
    },
    /// HF154: an exec process could not be started.
    #[serde(rename = "HF154")]
    ExecFailed {
        /// The whole chain of errors.
        text: String,
    },
    /// HF155: a step of exec did not finish in time.
    #[serde(rename = "HF155")]
    ExecTimedOut(TimedOut),
    /// HF161: the runtime reported an error.
    #[serde(rename = "HF161")]
    RuntimeFailed {
        /// Which operation, as it follows "could not": `delete the container`.
        operation: String,
        /// How the runtime ended, where it is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        status: Option<ExitStatus>,
        /// What it reported.
        text: String,
    },
    /// HF162: the runtime was ended by a signal.
    #[serde(rename = "HF162")]
    RuntimeKilled {
        /// Which operation: `create`, `delete`, …
        operation: String,
        /// Which signal.
        signal: Signal,
    },
    /// HF163: the runtime panicked.
    #[serde(rename = "HF163")]
    RuntimePanicked(Panicked),
    /// HF164: something is left of a deleted container.
    #[serde(rename = "HF164")]
    CleanupIncomplete {
        /// Each thing left, with its holder where that is known.
        left: Vec<String>,
    },
    /// HF170: the shim's regular end.
    #[serde(rename = "HF170")]
    ShimFinished,
    /// HF171: a panic in the shim.
    #[serde(rename = "HF171")]
    ShimPanicked(Panicked),
    /// HF172: a fatal signal, after which the shim has gone on in a new image.
    #[serde(rename = "HF172")]
    ShimCrashed {
        /// The incident's id.
        incident: String,
        /// Which signal.
        signal: Signal,
        /// Who sent it, if it was no fault of the shim's own: `pid 99 (bash), command …`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sent_by: Option<String>,
        /// The stack, one frame a line.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        backtrace: String,
    },
    /// HF173: the shim was found gone by `delete`.
    #[serde(rename = "HF173")]
    ShimGone {
        /// Its pid, where it is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        shim_pid: Option<u32>,
        /// Whether the container had ended before, by the journal.
        container_had_ended: bool,
        /// Whether its init process was gone when the clean-up came, without anybody having seen its end.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        container_was_gone: bool,
        /// What the kernel and the files say of the shim's end, a sentence each.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        findings: Vec<String>,
        /// Who killed it, where the kernel's tracepoint recorded it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sender: Option<Sender>,
        /// What the kernel says of a lack of memory, if that was why.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        oom: Option<Oom>,
    },
    /// HF174: the shim's watchdog barked.
    #[serde(rename = "HF174")]
    ShimStalled {
        /// The incident's id.
        incident: String,
        /// For how long nothing moved.
        #[serde(rename = "stalled_ms", with = "millis")]
        stalled: Duration,
        /// Stacks or wait channels of its threads.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        threads: Vec<String>,
    },
    /// HF175: the shim was killed, and begun anew by its keeper.
    #[serde(rename = "HF175")]
    ShimKilled {
        /// The incident's id.
        incident: String,
        /// The pid that it had.
        shim_pid: u32,
        /// By which signal; none: it ended itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<Signal>,
        /// What the kernel says of its end, a sentence each.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        findings: Vec<String>,
        /// Who killed it, where the kernel's tracepoint recorded it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sender: Option<Sender>,
        /// What the kernel says of a lack of memory, if that was why.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        oom: Option<Oom>,
    },
    /// HF176: the shim was stopped, and continued by its keeper.
    #[serde(rename = "HF176")]
    ShimStopped {
        /// By which signal.
        signal: Signal,
        /// For how long.
        #[serde(rename = "waited_ms", with = "millis")]
        waited: Duration,
        /// What the kernel says of it, a sentence each.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        findings: Vec<String>,
        /// Who stopped it, where the kernel's tracepoint recorded it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sender: Option<Sender>,
    },
    /// HF181: a step of the GPU stage failed.
    #[serde(rename = "HF181")]
    GpuStageFailed {
        /// Which one.
        step: String,
        /// The whole chain of errors.
        text: String,
        /// Standard error of the program that the step ran.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        stderr: String,
    },
    /// HF182: a step of the GPU stage did not finish in time.
    #[serde(rename = "HF182")]
    GpuStageTimedOut(TimedOut),
    /// HF191: the node was being shut down.
    #[serde(rename = "HF191")]
    NodeShutdown {
        /// The signal that ended the process, if one did.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<Signal>,
        /// How the shutdown was recognised.
        seen_by: String,
    },
    /// HF199: the last resort.
    #[serde(rename = "HF199")]
    Unknown {
        /// Everything that was looked at, with what was found there.
        looked_at: Vec<String>,
    },
}

impl Reason {
    /// What is the same for every occurrence of this reason.
    #[must_use]
    pub fn entry(&self) -> &'static Entry {
        match self {
            Self::Exited { .. } => &catalogue::EXITED,
            Self::Faulted { .. } => &catalogue::FAULTED,
            Self::EndedWithContainer { .. } => &catalogue::ENDED_WITH_CONTAINER,
            Self::OutlivedContainer { .. } => &catalogue::OUTLIVED_CONTAINER,
            Self::KilledByRequest { .. } => &catalogue::KILLED_BY_REQUEST,
            Self::ExitedOnRequest { .. } => &catalogue::EXITED_ON_REQUEST,
            Self::OomKilled(_) => &catalogue::OOM_KILLED,
            Self::OomKilledChild(_) => &catalogue::OOM_KILLED_CHILD,
            Self::SignalFromOutside { .. } => &catalogue::SIGNAL_FROM_OUTSIDE,
            Self::HookFailed { .. } => &catalogue::HOOK_FAILED,
            Self::HookTimedOut { .. } => &catalogue::HOOK_TIMED_OUT,
            Self::CreateStepFailed { .. } => &catalogue::CREATE_STEP_FAILED,
            Self::CreateTimedOut(_) => &catalogue::CREATE_TIMED_OUT,
            Self::StartFailed { .. } => &catalogue::START_FAILED,
            Self::ExecFailed { .. } => &catalogue::EXEC_FAILED,
            Self::ExecTimedOut(_) => &catalogue::EXEC_TIMED_OUT,
            Self::RuntimeFailed { .. } => &catalogue::RUNTIME_FAILED,
            Self::RuntimeKilled { .. } => &catalogue::RUNTIME_KILLED,
            Self::RuntimePanicked(_) => &catalogue::RUNTIME_PANICKED,
            Self::CleanupIncomplete { .. } => &catalogue::CLEANUP_INCOMPLETE,
            Self::ShimFinished => &catalogue::SHIM_FINISHED,
            Self::ShimPanicked(_) => &catalogue::SHIM_PANICKED,
            Self::ShimCrashed { .. } => &catalogue::SHIM_CRASHED,
            Self::ShimGone { .. } => &catalogue::SHIM_GONE,
            Self::ShimStalled { .. } => &catalogue::SHIM_STALLED,
            Self::ShimKilled { .. } => &catalogue::SHIM_KILLED,
            Self::ShimStopped { .. } => &catalogue::SHIM_STOPPED,
            Self::GpuStageFailed { .. } => &catalogue::GPU_STAGE_FAILED,
            Self::GpuStageTimedOut(_) => &catalogue::GPU_STAGE_TIMED_OUT,
            Self::NodeShutdown { .. } => &catalogue::NODE_SHUTDOWN,
            Self::Unknown { .. } => &catalogue::UNKNOWN,
        }
    }

    /// The stable code, `HF101` to `HF199`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.entry().code
    }

    /// The incident's id, for the reasons that are internal errors of Holdfast.
    #[must_use]
    pub fn incident(&self) -> Option<&str> {
        match self {
            Self::RuntimePanicked(panicked) | Self::ShimPanicked(panicked) => {
                Some(&panicked.incident)
            }
            Self::ShimCrashed { incident, .. }
            | Self::ShimStalled { incident, .. }
            | Self::ShimKilled { incident, .. } => Some(incident),
            Self::Exited { .. }
            | Self::Faulted { .. }
            | Self::EndedWithContainer { .. }
            | Self::OutlivedContainer { .. }
            | Self::KilledByRequest { .. }
            | Self::ExitedOnRequest { .. }
            | Self::OomKilled(_)
            | Self::OomKilledChild(_)
            | Self::SignalFromOutside { .. }
            | Self::HookFailed { .. }
            | Self::HookTimedOut { .. }
            | Self::CreateStepFailed { .. }
            | Self::CreateTimedOut(_)
            | Self::StartFailed { .. }
            | Self::ExecFailed { .. }
            | Self::ExecTimedOut(_)
            | Self::RuntimeFailed { .. }
            | Self::RuntimeKilled { .. }
            | Self::CleanupIncomplete { .. }
            | Self::ShimFinished
            | Self::ShimGone { .. }
            | Self::ShimStopped { .. }
            | Self::GpuStageFailed { .. }
            | Self::GpuStageTimedOut(_)
            | Self::NodeShutdown { .. }
            | Self::Unknown { .. } => None,
        }
    }

    /// The reason that an exit status alone proves: an exit code, or a signal that the kernel raises for a fault.
    /// `None` when the status is a signal that somebody must have sent.
    #[must_use]
    pub fn of_status(status: ExitStatus) -> Option<Self> {
        match status {
            ExitStatus::Exited(code) => Some(Self::Exited { code }),
            ExitStatus::Signaled { signal, core } if signal.is_fault() => {
                Some(Self::Faulted { signal, core })
            }
            ExitStatus::Signaled { .. } => None,
        }
    }
}

/// A fresh id for an incident: 16 hexadecimal digits from the kernel's random source, or from clock and pid without one.
#[must_use]
pub fn new_incident() -> String {
    let mut bytes = [0u8; 8];
    if crate::sys::random(&mut bytes).is_err() {
        let now = Timestamp::now();
        let mixed = now.seconds().unsigned_abs() << 30 ^ u64::from(now.nanos());
        bytes = (mixed ^ u64::from(std::process::id()) << 48).to_be_bytes();
    }
    format!("{:016x}", u64::from_be_bytes(bytes))
}

#[cfg(test)]
pub(crate) mod tests;
