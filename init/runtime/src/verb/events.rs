//! `events`: what a container uses, once or at intervals, and its deaths for want of memory.
//!
//! One JSON object a line, in the form runc has given it (runc-events(8)): `type` is `stats` or `oom`. In the continuous
//! form the command ends with the container.

mod document;

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use holdfast_cgroups::{Cgroup, OomEvents};
use holdfast_record::ContainerId;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

use super::Context;
use crate::error::{Doing, Error, Result};
use crate::rdt::SavedRdt;
use crate::state::{Container, Status};

/// Prints the statistics once.
///
/// # Errors
/// [`Error::NotRunning`] when the container has ended; output that cannot be written.
pub fn once(context: &Context, id: &ContainerId) -> Result<()> {
    let container = running(context, id)?;
    let source = Source::of(&container)?;
    source.print_stats()
}

/// Prints the statistics every `interval` and out-of-memory events as they come, until the container has ended.
///
/// # Errors
/// As [`once`].
pub fn follow(context: &Context, id: &ContainerId, interval: Duration) -> Result<()> {
    let container = running(context, id)?;
    let source = Source::of(&container)?;
    let (_, init) = container.open_init()?;
    let oom = source.cgroup.oom_events()?;
    let mut kills = source.kills();
    let mut next = Instant::now() + interval;
    loop {
        let heard = wait(init.as_fd(), oom.as_ref(), next)?;
        if heard.oom && source.is_new_oom(oom.as_ref(), &mut kills) {
            source.print("oom", None)?;
        }
        if heard.ended {
            return Ok(());
        }
        if Instant::now() >= next {
            next += interval;
            match source.print_stats() {
                // It ended in this very moment; the next round sees it.
                Err(Error::NotRunning) => {}
                other => other?,
            }
        }
    }
}

fn running(context: &Context, id: &ContainerId) -> Result<Container> {
    let container = context.container(id)?;
    match container.status() {
        Status::Created | Status::Running | Status::Paused => Ok(container),
        Status::Creating | Status::Stopped => Err(Error::NotRunning),
    }
}

/// Where the events of one container come from.
struct Source<'a> {
    id: &'a ContainerId,
    cgroup: Cgroup,
    rdt: Option<&'a SavedRdt>,
}

impl<'a> Source<'a> {
    fn of(container: &'a Container) -> Result<Self> {
        Ok(Self {
            id: &container.saved.id,
            cgroup: container.cgroup().ok_or(Error::NotRunning)?,
            rdt: container.saved.intel_rdt.as_ref(),
        })
    }

    fn print_stats(&self) -> Result<()> {
        let gone = |error: holdfast_cgroups::Error| {
            if error.is_gone() {
                Error::NotRunning
            } else {
                error.into()
            }
        };
        let stats = self.cgroup.stats().map_err(gone)?;
        let details = self.cgroup.details().map_err(gone)?;
        let rdt = self.rdt.map_or_else(|| json!({}), SavedRdt::statistics);
        self.print("stats", Some(document::stats(&stats, &details, rdt)))
    }

    fn print(&self, kind: &str, data: Option<Value>) -> Result<()> {
        let mut event = json!({"type": kind, "id": self.id.as_str()});
        if let (Some(data), Some(event)) = (data, event.as_object_mut()) {
            event.insert("data".into(), data);
        }
        let mut out = std::io::stdout().lock();
        writeln!(out, "{event}")
            .and_then(|()| out.flush())
            .doing(|| "write to standard output".into())
    }

    /// Kills so far, in whatever cgroups are counted.
    fn kills(&self) -> u64 {
        let kills = self.cgroup.oom_kills().ok().flatten();
        kills.map_or(0, |kills| kills.total)
    }

    /// Takes the event and tells whether it is one to be told. On v1 the kernel announces the killer before it has killed,
    /// and announces the removal of the cgroup in the same way; on v2 it announces every change of `memory.events`.
    fn is_new_oom(&self, events: Option<&OomEvents>, kills: &mut u64) -> bool {
        let Some(events) = events else { return false };
        if events.acknowledge().is_err() {
            return false;
        }
        let now = self.kills();
        let more = now > *kills;
        *kills = now;
        match events {
            OomEvents::V1(_) => self.cgroup.oom_kills().is_ok(),
            OomEvents::V2(_) => more,
        }
    }
}

/// What ended a wait; nothing when its time was over.
struct Heard {
    oom: bool,
    ended: bool,
}

fn wait(init: BorrowedFd<'_>, oom: Option<&OomEvents>, until: Instant) -> Result<Heard> {
    let mut fds = vec![PollFd::new(init, PollFlags::POLLIN)];
    if let Some(oom) = oom {
        let flags = PollFlags::from_bits_truncate(oom.poll_events());
        fds.push(PollFd::new(oom.as_fd(), flags));
    }
    // Rounded up, so that the last millisecond is not spun through.
    let millis = (until - Instant::now()).as_nanos().div_ceil(1_000_000);
    let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(errno) => return Err(errno).doing(|| "wait for the container's events".into()),
    }
    let told = |at: usize| {
        fds.get(at)
            .and_then(|fd| fd.revents())
            .is_some_and(|events| !events.is_empty())
    };
    Ok(Heard {
        oom: told(1),
        ended: told(0),
    })
}
