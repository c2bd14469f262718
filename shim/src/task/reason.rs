//! Why a process ended: from what this shim knows, and from what the kernel recorded.
//!
//! The owner of the container gathers what it knows into a [`Case`] and goes on. The case is closed where waiting
//! harms nobody, on the thread that writes the ledger: only there the kernel's records are read.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use holdfast_cgroups::{Cgroup, Stats};
use holdfast_record::ledger::Happening;
use holdfast_record::reason::{Oom, OomScope, Rpc, Sender};
use holdfast_record::witness::{self, Sent, Witness};
use holdfast_record::{ExitStatus, Reason, Signal, Timestamp};

use super::state::Ended;
use serde::{Deserialize, Serialize};

/// How long systemd may take to say whether it is stopping the node.
const STATE_LIMIT: Duration = Duration::from_secs(1);

/// What says that the node is being shut down; none if nothing does.
fn node_is_stopping() -> Option<String> {
    let seen = witness::node_is_stopping(Path::new("/"));
    seen.or_else(|| {
        // It says so itself long before anything else shows.
        if !Path::new("/run/systemd/system").is_dir() {
            return None;
        }
        let systemd = holdfast_cgroups::systemd::Systemd::from_environment().ok()?;
        let state = systemd.state(Instant::now() + STATE_LIMIT).ok()?;
        (state == "stopping").then(|| "systemd is stopping it".to_owned())
    })
}

/// A Kill that was carried out.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Asked {
    /// Which RPC it came with.
    pub(crate) rpc: Rpc,
    /// The signal.
    pub(crate) signal: Signal,
    /// When.
    pub(crate) at: Timestamp,
}

/// What is known beside the exit status.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// The process, in the node's pid namespace.
    pub(crate) pid: u32,
    /// The requests that reached it, oldest first.
    pub(crate) asked: Vec<Asked>,
    /// OOM kills in the container's cgroup right before the end.
    pub(crate) oom: Option<Oom>,
    /// Init, if this is an exec process and init has ended already.
    pub(crate) init: Option<(u32, Option<ExitStatus>)>,
    /// Whether this is init.
    pub(crate) is_init: bool,
    /// Folders of the container's cgroup.
    pub(crate) cgroup: Vec<PathBuf>,
}

/// What the kernel recorded of it.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// The signal that ended it and its sender, or why that is not known.
    pub(crate) sent: Option<Result<Sent, String>>,
    /// What says that the node is being shut down.
    pub(crate) shutdown: Option<String>,
}

impl Seen {
    /// What says that an exit with `code` was an answer to the node's shutdown: pid 1 is known to have sent SIGTERM, or
    /// the code is no success.
    fn shutdown_obeyed(self, code: u8) -> Option<String> {
        let by_manager = matches!(&self.sent, Some(Ok(sent)) if sent.sender.pid == 1);
        self.shutdown.filter(|_| by_manager || code != 0)
    }
}

/// An end whose reason is yet to be found.
#[derive(Debug)]
pub(crate) struct Case {
    /// How it ended.
    pub(crate) ended: Ended,
    /// What the owner knows.
    pub(crate) known: Known,
}

impl Case {
    /// Whether the kernel has to be asked who sent the signal: nobody asked us for it.
    fn is_unexplained(&self) -> Option<Signal> {
        let signal = self.ended.status.signal()?;
        let asked = self.known.asked.iter().any(|asked| asked.signal == signal);
        (!asked).then_some(signal)
    }

    /// Whether it may have caught a signal of somebody else's and obeyed: it was init, and nobody asked us for its end.
    fn may_have_obeyed(&self) -> bool {
        self.known.is_init && self.known.asked.is_empty() && self.ended.status.signal().is_none()
    }

    /// Who sent it the signal, or why that is not known.
    fn sender(&self, witness: &Witness, signal: Signal) -> Result<Sent, String> {
        let pid = self.known.pid;
        match witness.sender(pid, signal) {
            Ok(Some(sent)) => Ok(sent),
            Ok(None) => Err(format!(
                "the trace of signals holds no {signal} for process {pid}: it was sent before the tracing began, or \
                 so many came after it that its record is overwritten"
            )),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Finds the reason. May wait for the kernel's log and trace to be read, and for nothing else.
    pub(crate) fn close(mut self, witness: &Witness) -> (Reason, Vec<Happening>) {
        let mut seen = Seen::default();
        if let Some(signal) = self.is_unexplained() {
            seen.sent = Some(self.sender(witness, signal));
            seen.shutdown = node_is_stopping();
        } else if self.may_have_obeyed() {
            seen.shutdown = node_is_stopping();
            if seen.shutdown.is_some() {
                seen.sent = Some(self.sender(witness, Signal::TERM));
            }
        }
        let oom_at = self.look_for_oom(witness);
        let mut timeline: Vec<Happening> = self
            .known
            .asked
            .iter()
            .map(|asked| Happening {
                time: asked.at,
                text: format!("{} asked for by {}", asked.signal, asked.rpc),
            })
            .collect();
        if let Some(Ok(sent)) = &seen.sent {
            let by = if sent.by_kernel {
                "the kernel for "
            } else {
                ""
            };
            timeline.push(Happening {
                time: sent.time,
                text: format!("{} sent by {by}{}", sent.signal, sent.sender),
            });
        }
        if let Some((time, text)) = oom_at {
            timeline.push(Happening { time, text });
        }
        timeline.sort_by_key(|happening| happening.time);
        (of_end(self.ended, &self.known, seen), timeline)
    }

    /// Completes what the cgroup's counter says of an OOM kill by what the kernel's log says.
    fn look_for_oom(&mut self, witness: &Witness) -> Option<(Timestamp, String)> {
        // The whole log is read: not for each of the many that were killed because somebody asked.
        let is_riddle = self.is_unexplained() == Some(Signal::KILL);
        if self.known.oom.is_none() && !is_riddle {
            return None;
        }
        let counted = self.known.oom.is_some();
        let (pid, cgroup) = (self.known.pid, &self.known.cgroup);
        let kill = witness.oom_kill(|kill| {
            kill.victim_pid == pid || counted && cgroup.iter().any(|folder| kill.was_in(folder))
        });
        match kill {
            Ok(Some(kill)) => {
                let kills = self.known.oom.as_ref().and_then(|oom| oom.kills);
                self.known.oom = Some(kill.evidence(kills));
                // The log's clock may be a little ahead; nothing comes after the end.
                Some((
                    kill.time.min(self.ended.at),
                    format!(
                        "the kernel killed {} (pid {}) for want of memory",
                        kill.victim, kill.victim_pid
                    ),
                ))
            }
            Ok(None) | Err(_) => {
                if self.known.oom.is_none() && witness.was_oom_victim(pid).unwrap_or(false) {
                    self.known.oom = Some(Oom {
                        victim_pid: Some(pid),
                        ..Oom::default()
                    });
                }
                None
            }
        }
    }

    /// The reason as far as it can be told without the kernel's records.
    pub(crate) fn likely(&self) -> Reason {
        of_end(self.ended, &self.known, Seen::default())
    }
}

/// Why it ended.
pub(crate) fn of_end(ended: Ended, known: &Known, seen: Seen) -> Reason {
    match ended.status {
        ExitStatus::Exited(code) => {
            // 128 + n after the request for signal n: the program caught it and obeyed.
            let last = known.asked.last();
            let obeyed = last.filter(|asked| i32::from(code) == 128 + asked.signal.number());
            match (obeyed, &known.oom) {
                (Some(asked), _) => {
                    by_request(known, asked.signal).unwrap_or(Reason::Exited { code })
                }
                (None, Some(oom)) if known.is_init && code != 0 => {
                    Reason::OomKilledChild(oom.clone())
                }
                (None, _) => match seen.shutdown_obeyed(code) {
                    Some(seen_by) => Reason::NodeShutdown {
                        signal: None,
                        seen_by,
                    },
                    None => {
                        exit_on_request(known, code, ended.at).unwrap_or(Reason::Exited { code })
                    }
                },
            }
        }
        ExitStatus::Signaled { signal, core } => {
            by_request(known, signal).unwrap_or_else(|| of_signal(signal, core, known, seen))
        }
    }
}

/// After another signal than those that mean "end", an exit so soon is taken for its answer: images may name any signal
/// for that. Later, it has been a "reload".
const SOON: Duration = Duration::from_secs(60);

/// An exit after a request, by the latest one that may have been meant to bring it.
fn exit_on_request(known: &Known, code: u8, at: Timestamp) -> Option<Reason> {
    let request = known.asked.iter().rev().find(|asked| {
        let number = asked.signal.number();
        let after = at.since(asked.at);
        [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT].contains(&number)
            || ![libc::SIGSTOP, libc::SIGCONT].contains(&number) && after <= SOON
    })?;
    Some(Reason::ExitedOnRequest {
        code,
        rpc: request.rpc,
        signal: request.signal,
        requested_at: request.at,
        after: at.since(request.at),
    })
}

/// The request for `signal` that came last, if there was one.
fn by_request(known: &Known, signal: Signal) -> Option<Reason> {
    let mut latest = known.asked.iter().rev();
    let request = latest.find(|asked| asked.signal == signal)?;
    let first = known.asked.first().filter(|first| first.signal != signal);
    Some(Reason::KilledByRequest {
        rpc: request.rpc,
        signal,
        requested_at: request.at,
        grace: first.map(|first| request.at.since(first.at)),
    })
}

/// A signal that no request carried.
fn of_signal(signal: Signal, core: bool, known: &Known, seen: Seen) -> Reason {
    // Of the kernel's own signals the sender is only who ran at that moment.
    let (by_process, unknown_because) = match seen.sent {
        Some(Ok(sent)) if sent.by_kernel => (None, None),
        Some(Ok(sent)) => (Some(sent), None),
        Some(Err(because)) => (None, Some(because)),
        None => (None, None),
    };
    if let Some(sent) = &by_process
        && sent.sender.pid == std::process::id()
    {
        return by_ourselves(signal, known, sent);
    }
    if signal == Signal::KILL && by_process.is_none() {
        if let Some(oom) = &known.oom {
            return Reason::OomKilled(oom.clone());
        }
        if let Some((init_pid, init_status)) = known.init {
            return Reason::EndedWithContainer {
                init_pid,
                init_status,
            };
        }
    }
    let is_own = by_process
        .as_ref()
        .is_none_or(|sent| sent.sender.pid == known.pid);
    if signal.is_fault() && is_own {
        return Reason::Faulted { signal, core };
    }
    let sender = by_process.map(|sent| sent.sender);
    match seen.shutdown {
        // Somebody else's signal is that one's, whatever the node does.
        Some(seen_by) if sender.as_ref().is_none_or(|sender| sender.pid == 1) => {
            Reason::NodeShutdown {
                signal: Some(signal),
                seen_by,
            }
        }
        _ => outside(signal, sender, unknown_because),
    }
}

/// We sent it without a Kill request: to an exec process whose container has ended or is being deleted.
fn by_ourselves(signal: Signal, known: &Known, sent: &Sent) -> Reason {
    match known.init {
        Some((init_pid, init_status)) => Reason::EndedWithContainer {
            init_pid,
            init_status,
        },
        None => Reason::KilledByRequest {
            rpc: Rpc::Delete,
            signal,
            requested_at: sent.time,
            grace: None,
        },
    }
}

fn outside(signal: Signal, sender: Option<Sender>, because: Option<String>) -> Reason {
    Reason::SignalFromOutside {
        signal,
        sender_unknown_because: match (&sender, because) {
            (Some(_), _) => None,
            (None, Some(because)) => Some(because),
            (None, None) => Some(
                "the kernel sent it itself, and neither a lack of memory nor the end of the container was the cause"
                    .to_owned(),
            ),
        },
        sender,
    }
}

/// What the cgroup says of its OOM kills beyond `before`; none if there were none.
pub(crate) fn oom_of(cgroup: &Cgroup, before: u64) -> Option<Oom> {
    let kills = cgroup.oom_kills().ok()??.total;
    if kills <= before {
        return None;
    }
    let (limit, usage) = match cgroup.stats() {
        Ok(Stats::V1(stats)) => {
            let usage = stats.memory.and_then(|memory| memory.usage);
            (usage.map(|usage| usage.limit), usage.map(|usage| usage.max))
        }
        Ok(Stats::V2(stats)) => {
            let memory = stats.memory;
            (
                memory.as_ref().map(|m| m.usage_limit),
                memory.as_ref().map(|m| m.max_usage),
            )
        }
        Err(_) => (None, None),
    };
    Some(Oom {
        scope: OomScope::NotRecorded,
        cgroup: cgroup
            .directories()
            .next()
            .map(|path| path.display().to_string()),
        limit,
        usage,
        kills: Some(kills - before),
        ..Oom::default()
    })
}

#[cfg(test)]
mod tests;
