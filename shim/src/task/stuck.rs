//! Processes that SIGKILL does not end.
//!
//! A process in uninterruptible sleep (state D) dies only when the kernel lets go of it: a disk, a
//! dead NFS or FUSE server, a device driver, or a frozen cgroup of version 1. The last can be
//! mended from here, by thawing the container's cgroups; the rest can only be told, instead of a
//! success that is none. A process that is merely slow to end (much memory to give back) is not
//! in state D and not our business.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use containerd_shim_protos::ttrpc::proto::Code;
use holdfast_cgroups::Cgroup;
use holdfast_record::deadline::limit_from_env;

use crate::fault::{Fault, chain};
use crate::look;
use crate::reaper::Process;

/// How long a killed process is left alone before it is looked at.
const FIRST_LOOK: Duration = Duration::from_millis(100);
/// Pause between two looks; the kernel has no event for "still asleep".
const PAUSE: Duration = Duration::from_millis(100);
/// Most processes named.
const MAX_NAMED: usize = 4;
/// Bit of SIGKILL in the masks of `/proc/PID/status`.
const SIGKILL_BIT: u64 = 1 << (libc::SIGKILL - 1);

/// How long a killed process may stay in state D before Kill answers so.
fn kill_limit() -> Duration {
    limit_from_env("KILL", Duration::from_secs(2))
}

/// Sees whether `process`, which was sent SIGKILL, ends. Answers at once when it does, after a
/// tenth of a second when nothing is stuck, and within [`kill_limit`] otherwise.
///
/// # Errors
/// `FAILED_PRECONDITION` naming what cannot die.
pub(super) async fn after_kill(
    process: &Process,
    cgroup: Option<Arc<Cgroup>>,
) -> Result<(), Fault> {
    let until = Instant::now() + kill_limit();
    if process.ends_within(FIRST_LOOK).await {
        return Ok(());
    }
    let mut thawed = false;
    loop {
        let found = find(Some(process.pid()), cgroup.clone(), !thawed, until).await;
        thawed = true;
        if found.is_empty() {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(fault("kill", &found).await);
        }
        if process.ends_within(PAUSE).await {
            return Ok(());
        }
    }
}

/// The refusal of an operation that needs these processes gone; none when nothing is stuck.
pub(super) async fn refusal(
    what: &str,
    pid: Option<u32>,
    cgroup: Option<Arc<Cgroup>>,
) -> Option<Fault> {
    let found = find(pid, cgroup, true, Instant::now() + kill_limit()).await;
    if found.is_empty() {
        None
    } else {
        Some(fault(what, &found).await)
    }
}

async fn fault(what: &str, pids: &BTreeSet<u32>) -> Fault {
    let mut named = Vec::new();
    for pid in pids.iter().take(MAX_NAMED) {
        named.push(look::describe(*pid).await);
    }
    if pids.len() > MAX_NAMED {
        named.push(format!("{} more", pids.len() - MAX_NAMED));
    }
    let text = format!(
        "{what}: SIGKILL was sent and cannot end what sleeps uninterruptibly in the kernel \
         (a disk, a network file system, a driver, a frozen cgroup): {}: failed precondition",
        named.join("; ")
    );
    log::warn!("{text}");
    Fault::new(Code::FAILED_PRECONDITION, text)
}

/// Looks on a thread that may hang; one that does finds nothing.
async fn find(
    pid: Option<u32>,
    cgroup: Option<Arc<Cgroup>>,
    thaw: bool,
    until: Instant,
) -> BTreeSet<u32> {
    let look = tokio::task::spawn_blocking(move || {
        let mut pids: BTreeSet<u32> = cgroup
            .iter()
            .filter_map(|cgroup| cgroup.processes().ok())
            .flatten()
            .filter_map(|pid| u32::try_from(pid).ok())
            .chain(pid)
            .collect();
        pids.retain(|pid| is_stuck(*pid));
        if thaw
            && !pids.is_empty()
            && let Some(cgroup) = cgroup
            && let Err(error) = cgroup.thaw_all()
            && !error.is_gone()
        {
            log::warn!("thaw what cannot die: {}", chain(&error));
        }
        pids
    });
    let limit = until.saturating_duration_since(Instant::now()) + PAUSE;
    match tokio::time::timeout(limit, look).await {
        Ok(Ok(pids)) => pids,
        Ok(Err(_)) | Err(_) => BTreeSet::new(),
    }
}

/// Whether a thread of the process sleeps in state D with SIGKILL pending.
fn is_stuck(pid: u32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    threads.flatten().any(|thread| {
        std::fs::read_to_string(thread.path().join("status")).is_ok_and(|s| cannot_die(&s))
    })
}

fn cannot_die(status: &str) -> bool {
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
    };
    let killed = ["SigPnd", "ShdPnd"].into_iter().any(|name| {
        field(name)
            .and_then(|mask| u64::from_str_radix(mask, 16).ok())
            .is_some_and(|mask| mask & SIGKILL_BIT != 0)
    });
    killed && field("State").is_some_and(|state| state.starts_with('D'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_killed_process_in_state_d_cannot_die() {
        let status = |state: &str, own: &str, shared: &str| {
            format!("Name:\tx\nState:\t{state}\nSigPnd:\t{own}\nShdPnd:\t{shared}\n")
        };
        let (none, kill) = ("0000000000000000", "0000000000000100");
        assert!(cannot_die(&status("D (disk sleep)", kill, none)));
        assert!(cannot_die(&status("D (disk sleep)", none, kill)));
        assert!(!cannot_die(&status("D (disk sleep)", none, none)));
        assert!(!cannot_die(&status("S (sleeping)", kill, kill)));
        assert!(!cannot_die(&status(
            "D (disk sleep)",
            "0000000000004000",
            none
        )));
        assert!(!cannot_die(""));
        assert!(!is_stuck(std::process::id()));
    }
}
