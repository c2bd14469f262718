//! Each reason as one sentence's predicate: it follows the name of what ended.

use std::fmt;

use super::{Oom, OomScope, Panicked, Reason, Sender, TimedOut};
use crate::exit::Signal;
use crate::time::human;

/// What the shim does after a fault: only the image that goes on writes these down.
const WENT_ON: &str = "; it went on in a new image, and its containers were not touched";

/// A predicate in the past tense without a full stop: `exited by itself with code 42`.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited { code } => {
                write!(f, "exited by itself with code {code}")?;
                write_shells_word(f, *code)
            }
            Self::Faulted { signal, core } => {
                let core = if *core { " and left a core dump" } else { "" };
                write!(
                    f,
                    "was ended by {signal}{core}: a fault of its own, as no other process is recorded as the sender"
                )
            }
            Self::EndedWithContainer {
                init_pid,
                init_status,
            } => {
                write!(
                    f,
                    "was killed along with its container, whose init process (pid {init_pid}) ended"
                )?;
                init_status.map_or(Ok(()), |status| write!(f, " with {status}"))
            }
            Self::OutlivedContainer { waited, process } => write!(
                f,
                "had not ended {} after the container's init process, whose exit was told without it: {process}",
                human(*waited)
            ),
            Self::KilledByRequest {
                rpc, signal, grace, ..
            } => {
                write!(f, "was ended on request: {signal} by {rpc}")?;
                grace.map_or(Ok(()), |grace| {
                    write!(f, ", {} after the first polite signal", human(grace))
                })
            }
            Self::ExitedOnRequest {
                code,
                rpc,
                signal,
                after,
                ..
            } => write!(
                f,
                "exited with code {code}, {} after it was asked to end: {signal} by {rpc}",
                human(*after)
            ),
            Self::OomKilled(oom) => {
                write!(f, "was killed by the kernel for want of memory")?;
                write_oom(f, oom)
            }
            Self::OomKilledChild(oom) => {
                write!(f, "ended after the kernel had killed ")?;
                match (&oom.victim, oom.victim_pid) {
                    (Some(name), Some(pid)) => write!(f, "{name} (pid {pid})")?,
                    (Some(name), None) => write!(f, "{name}")?,
                    (None, Some(pid)) => write!(f, "its process {pid}")?,
                    (None, None) => write!(f, "one of its processes")?,
                }
                write!(f, " for want of memory")?;
                write_oom(f, oom)
            }
            Self::SignalFromOutside { signal, sender, .. } => {
                write!(
                    f,
                    "was ended by {signal}, which nobody had requested through containerd"
                )?;
                match sender {
                    Some(sender) => write!(f, "; it was sent by {sender}"),
                    None => write!(f, "; the sender is not known"),
                }
            }
            Self::HookFailed { hook, text, .. } => write!(f, "failed in {hook}: {text}"),
            Self::HookTimedOut {
                hook,
                waited,
                process,
                ..
            } => write!(f, "gave up on {hook} after {}: {process}", human(*waited)),
            Self::CreateStepFailed { step, text } if step == text => {
                write!(f, "could not be created: {step}")
            }
            Self::CreateStepFailed { step, text } => {
                write!(f, "could not be created: {step}: {text}")
            }
            Self::CreateTimedOut(step) => {
                write!(f, "could not be created: ")?;
                write_timed_out(f, step)
            }
            Self::StartFailed { text } => write!(f, "could not be started: {text}"),
            Self::ExecFailed { text } => write!(f, "could not be started: {text}"),
            Self::ExecTimedOut(step) => {
                write!(f, "could not be started: ")?;
                write_timed_out(f, step)
            }
            Self::RuntimeFailed {
                operation,
                status,
                text,
            } => {
                write!(f, "failed because the runtime could not {operation}")?;
                if let Some(status) = status {
                    write!(f, " ({status})")?;
                }
                write!(f, ": {text}")
            }
            Self::RuntimeKilled { operation, signal } => {
                write!(
                    f,
                    "failed because the runtime was ended by {signal} during {operation}"
                )
            }
            Self::RuntimePanicked(panicked) => {
                write!(f, "failed because of an internal error of the runtime ")?;
                write_panic(f, panicked)
            }
            Self::CleanupIncomplete { left } => {
                write!(
                    f,
                    "was deleted, but not everything of it could be removed: {}",
                    left.join("; ")
                )
            }
            Self::ShimFinished => f.write_str("ended because its work was done"),
            Self::ShimPanicked(panicked) => {
                write!(f, "had an internal error ")?;
                write_panic(f, panicked)
            }
            Self::ShimCrashed {
                incident,
                signal,
                sent_by,
                ..
            } => {
                match sent_by {
                    Some(sender) => write!(f, "was hit by {signal}, sent by {sender}")?,
                    None => write!(f, "had a fault of its own, {signal}")?,
                }
                write!(f, " (incident {incident}){WENT_ON}")
            }
            Self::ShimGone {
                shim_pid,
                container_had_ended,
                container_was_gone,
                sender,
                oom,
                ..
            } => {
                if let Some(pid) = shim_pid {
                    write!(f, "(pid {pid}) ")?;
                }
                match (sender, oom) {
                    (Some(sender), _) => write!(f, "was killed by {sender}")?,
                    (None, Some(oom)) => {
                        write!(f, "was killed by the kernel for want of memory")?;
                        write_oom(f, oom)?;
                    }
                    (None, None) => write!(f, "was gone, and who or what ended it is not known")?,
                }
                f.write_str(match (container_had_ended, container_was_gone) {
                    (true, _) => "; the container had ended before, with the status that is told",
                    (false, true) => {
                        "; the container was gone, too, and nobody saw with which status"
                    }
                    (false, false) => {
                        "; containerd then asked for the clean-up, which ended the container, too"
                    }
                })
            }
            Self::ShimStalled {
                incident, stalled, ..
            } => {
                write!(
                    f,
                    "made no progress for {} (incident {incident}){WENT_ON}",
                    human(*stalled)
                )
            }
            Self::ShimKilled {
                incident,
                shim_pid,
                signal,
                sender,
                oom,
                ..
            } => {
                match (sender, oom, signal) {
                    (Some(sender), ..) => write!(f, "was killed by {sender}")?,
                    (None, Some(oom), _) => {
                        write!(f, "was killed by the kernel for want of memory")?;
                        write_oom(f, oom)?;
                    }
                    (None, None, Some(signal)) => write!(f, "was ended by {signal}")?,
                    (None, None, None) => write!(f, "ended itself")?,
                }
                write!(
                    f,
                    " (it was pid {shim_pid}) and was begun anew; its containers went on (incident {incident})"
                )
            }
            Self::ShimStopped {
                signal,
                waited,
                sender,
                ..
            } => {
                match sender {
                    Some(sender) => write!(f, "was stopped by {sender}")?,
                    None => write!(f, "was stopped by {signal}")?,
                }
                write!(f, "; after {} its keeper let it go on", human(*waited))
            }
            Self::GpuStageFailed { step, text, .. } => {
                write!(f, "could not be given its GPU: {step}: {text}")
            }
            Self::GpuStageTimedOut(step) => {
                write!(f, "could not be given its GPU: ")?;
                write_timed_out(f, step)
            }
            Self::NodeShutdown { seen_by, .. } => {
                write!(f, "ended because the node was being shut down ({seen_by})")
            }
            Self::Unknown { looked_at } => write!(
                f,
                "ended for a reason that could not be found (looked at: {})",
                looked_at.join("; ")
            ),
        }
    }
}

/// What a code means that a shell, as init, has taken over from its last command: 137 is no SIGKILL for init.
fn write_shells_word(f: &mut fmt::Formatter<'_>, code: u8) -> fmt::Result {
    match code {
        126 => f.write_str(" (what a shell says of a command that it cannot run)"),
        127 => f.write_str(" (what a shell says of a command that it cannot find)"),
        129..=159 => write!(
            f,
            " (what a shell says of a command that was ended by {})",
            Signal::new(i32::from(code) - 128)
        ),
        0..=125 | 128 | 160..=u8::MAX => Ok(()),
    }
}

fn write_timed_out(f: &mut fmt::Formatter<'_>, step: &TimedOut) -> fmt::Result {
    write!(
        f,
        "gave up after {} waiting for {}",
        human(step.waited),
        step.step
    )?;
    match &step.process {
        Some(process) => write!(f, ": {process}"),
        None => Ok(()),
    }
}

fn write_panic(f: &mut fmt::Formatter<'_>, panicked: &Panicked) -> fmt::Result {
    write!(f, "(incident {}): {}", panicked.incident, panicked.message)
}

fn write_oom(f: &mut fmt::Formatter<'_>, oom: &Oom) -> fmt::Result {
    match (oom.scope, &oom.cgroup) {
        (OomScope::Cgroup, Some(cgroup)) => write!(f, ": cgroup {cgroup} was at its limit")?,
        (OomScope::Cgroup, None) => write!(f, ": its cgroup was at its limit")?,
        (OomScope::Node, _) => write!(f, ": the whole node had none left")?,
        (OomScope::NotRecorded, _) => {}
    }
    match oom.limit {
        Some(limit) if oom.scope == OomScope::Cgroup => write!(f, " of {}", bytes(limit)),
        _ => Ok(()),
    }
}

/// Bytes in the largest binary unit that leaves a number above 1: `512.0 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut unit = None;
    #[allow(clippy::cast_precision_loss, reason = "one decimal is shown")]
    let mut value = count as f64;
    for name in units {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = Some(name);
    }
    match unit {
        None => format!("{count} bytes"),
        Some(name) => format!("{value:.1} {name}"),
    }
}

impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {}", self.pid)?;
        if let Some(comm) = &self.comm {
            write!(f, " ({comm})")?;
        }
        if let Some(cmdline) = &self.cmdline {
            write!(f, ", command {cmdline:?}")?;
        }
        if let Some(uid) = self.uid {
            write!(f, ", uid {uid}")?;
        }
        if let Some(parent) = &self.parent {
            write!(f, ", child of {parent}")?;
        }
        Ok(())
    }
}
