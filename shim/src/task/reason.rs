//! Why a process ended, from what this shim knows.

use holdfast_cgroups::{Cgroup, Stats};
use holdfast_record::reason::{Oom, OomScope, Rpc};
use holdfast_record::{ExitStatus, Reason, Signal, Timestamp};

use super::state::Ended;

/// A Kill that was carried out.
#[derive(Debug, Clone, Copy)]
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
pub(crate) struct Known<'a> {
    /// The requests that reached this process, oldest first.
    pub(crate) asked: &'a [Asked],
    /// OOM kills in the container's cgroup since it was created.
    pub(crate) oom: Option<Oom>,
    /// Init, if this is an exec process and init has ended already.
    pub(crate) init: Option<(u32, Option<ExitStatus>)>,
    /// Whether this is init.
    pub(crate) is_init: bool,
}

/// Why it ended.
pub(crate) fn of_end(ended: Ended, known: Known<'_>) -> Reason {
    let last = known.asked.last();
    let by_request = |signal: Signal| {
        let request = known
            .asked
            .iter()
            .rev()
            .find(|asked| asked.signal == signal)?;
        let first = known.asked.first().filter(|first| first.signal != signal);
        Some(Reason::KilledByRequest {
            rpc: request.rpc,
            signal,
            requested_at: request.at,
            grace: first.map(|first| request.at.since(first.at)),
        })
    };
    match ended.status {
        ExitStatus::Exited(code) => {
            // 128 + n after the request for signal n: the program caught it and obeyed.
            let obeyed = last.filter(|asked| i32::from(code) == 128 + asked.signal.number());
            match (obeyed, known.oom) {
                (Some(asked), _) => by_request(asked.signal).unwrap_or(Reason::Exited { code }),
                (None, Some(oom)) if known.is_init && code != 0 => Reason::OomKilledChild(oom),
                (None, _) => Reason::Exited { code },
            }
        }
        ExitStatus::Signaled { signal, core } => {
            if let Some(reason) = by_request(signal) {
                return reason;
            }
            if signal == Signal::KILL {
                if let Some(oom) = known.oom {
                    return Reason::OomKilled(oom);
                }
                if let Some((init_pid, init_status)) = known.init {
                    return Reason::EndedWithContainer {
                        init_pid,
                        init_status,
                    };
                }
            }
            if signal.is_fault() {
                return Reason::Faulted { signal, core };
            }
            Reason::SignalFromOutside {
                signal,
                sender: None,
                sender_unknown_because: Some(
                    "the kernel's signal tracepoint was not being read".to_owned(),
                ),
            }
        }
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
mod tests {
    use std::time::Duration;

    use super::*;

    fn ended(status: ExitStatus) -> Ended {
        Ended {
            status,
            at: Timestamp::new(100, 0),
        }
    }

    fn signaled(signal: Signal) -> Ended {
        ended(ExitStatus::Signaled {
            signal,
            core: false,
        })
    }

    #[test]
    fn each_kind_of_end_has_its_reason() {
        let asked = [
            Asked {
                rpc: Rpc::Kill,
                signal: Signal::TERM,
                at: Timestamp::new(90, 0),
            },
            Asked {
                rpc: Rpc::Kill,
                signal: Signal::KILL,
                at: Timestamp::new(100, 0),
            },
        ];
        let known = |asked| Known {
            asked,
            is_init: true,
            ..Known::default()
        };
        let code = |ended, known| of_end(ended, known).code();
        assert_eq!(code(ended(ExitStatus::Exited(3)), known(&[])), "HF101");
        assert_eq!(
            code(ended(ExitStatus::Exited(143)), known(&asked[..1])),
            "HF111"
        );
        assert_eq!(code(ended(ExitStatus::Exited(143)), known(&[])), "HF101");
        match of_end(signaled(Signal::KILL), known(&asked)) {
            Reason::KilledByRequest { grace, .. } => {
                assert_eq!(grace, Some(Duration::from_secs(10)))
            }
            other => assert_eq!(other.code(), "HF111"),
        }
        assert_eq!(code(signaled(Signal::KILL), known(&[])), "HF131");
        assert_eq!(
            code(signaled(Signal::new(libc::SIGSEGV)), known(&[])),
            "HF102"
        );
        let oom = || Some(Oom::default());
        assert_eq!(
            code(
                signaled(Signal::KILL),
                Known {
                    oom: oom(),
                    is_init: true,
                    ..Known::default()
                }
            ),
            "HF121"
        );
        assert_eq!(
            code(
                ended(ExitStatus::Exited(1)),
                Known {
                    oom: oom(),
                    is_init: true,
                    ..Known::default()
                }
            ),
            "HF122"
        );
        assert_eq!(
            code(
                ended(ExitStatus::Exited(0)),
                Known {
                    oom: oom(),
                    is_init: true,
                    ..Known::default()
                }
            ),
            "HF101"
        );
        let with = Known {
            init: Some((1, None)),
            ..Known::default()
        };
        assert_eq!(code(signaled(Signal::KILL), with), "HF103");
    }
}
