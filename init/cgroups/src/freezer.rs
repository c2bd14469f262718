//! Pause and resume.
//!
//! v1: Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst. v2: cgroup-v2.rst, `cgroup.freeze`.

use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use crate::cgroup::Cgroup;
use crate::dir::{self, Dir};
use crate::error::{Error, Holder, Result};
use crate::place::{Place, processes_below};
use crate::sys;

/// Whether the cgroup's processes may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreezerState {
    /// They run, or there is no freezer.
    Thawed,
    /// A freeze is under way and not all of them have stopped.
    Freezing,
    /// All of them have stopped.
    Frozen,
}

/// What freezes this cgroup.
enum Freezer<'a> {
    V1(&'a Place),
    V2(&'a Place),
}

impl Freezer<'_> {
    fn dir(&self) -> &Dir {
        match self {
            Self::V1(place) | Self::V2(place) => &place.dir,
        }
    }

    fn write(&self, frozen: bool) -> Result<()> {
        match (self, frozen) {
            (Self::V1(place), true) => place.dir.write("freezer.state", "FROZEN"),
            (Self::V1(place), false) => place.dir.write("freezer.state", "THAWED"),
            (Self::V2(place), true) => place.dir.write("cgroup.freeze", "1"),
            (Self::V2(place), false) => place.dir.write("cgroup.freeze", "0"),
        }
    }

    fn state(&self) -> Result<FreezerState> {
        match self {
            Self::V1(place) => Ok(match place.dir.read("freezer.state")?.trim() {
                "FROZEN" => FreezerState::Frozen,
                "FREEZING" => FreezerState::Freezing,
                _ => FreezerState::Thawed,
            }),
            Self::V2(place) => {
                let events = place.dir.read("cgroup.events")?;
                if event(&events, "frozen") == Some(1) {
                    return Ok(FreezerState::Frozen);
                }
                Ok(match place.dir.read("cgroup.freeze")?.trim() {
                    "1" => FreezerState::Freezing,
                    _ => FreezerState::Thawed,
                })
            }
        }
    }
}

/// The number behind a key of `cgroup.events`.
pub(crate) fn event(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        line.strip_prefix(key)?
            .strip_prefix(' ')?
            .trim()
            .parse()
            .ok()
    })
}

impl Cgroup {
    fn freezer(&self) -> Result<Freezer<'_>> {
        if let Some(place) = self.v1("freezer") {
            return Ok(Freezer::V1(place));
        }
        // Also in hybrid layouts whose v1 lacks the freezer: cgroup.freeze belongs to no controller.
        self.unified()
            .map(Freezer::V2)
            .ok_or_else(|| Error::NoController {
                field: "pause".into(),
                controller: "freezer".into(),
                place: "on this machine".into(),
            })
    }

    /// Whether the cgroup is frozen, by itself or by an ancestor.
    ///
    /// # Errors
    /// [`Error::Io`]; without any freezer the answer is [`FreezerState::Thawed`].
    pub fn freezer_state(&self) -> Result<FreezerState> {
        match self.freezer() {
            Ok(freezer) => freezer.state(),
            Err(Error::NoController { .. }) => Ok(FreezerState::Thawed),
            Err(error) => Err(error),
        }
    }

    /// Stops all processes of the cgroup and returns when they have stopped.
    ///
    /// When that cannot be had until `deadline` they are let run again.
    ///
    /// # Errors
    /// [`Error::Deadline`] with the processes that would not stop (state `D` first); [`Error::Root`].
    pub fn freeze(&self, deadline: Instant) -> Result<()> {
        self.refuse_root("freeze")?;
        let began = Instant::now();
        let freezer = self.freezer()?;
        let result = freezer.write(true).and_then(|()| match &freezer {
            Freezer::V1(place) => freeze_v1(place, deadline),
            Freezer::V2(place) => wait_event(&place.dir, "frozen", 1, deadline),
        });
        match result {
            Ok(true) => Ok(()),
            Ok(false) => {
                let holders = unstoppable(freezer.dir());
                freezer.write(false)?;
                Err(Error::Deadline {
                    step: "freeze",
                    path: freezer.dir().path().to_owned(),
                    waited: began.elapsed(),
                    holders,
                })
            }
            Err(error) => {
                // A half frozen container would hang for good; the first error is the one to tell.
                if let Err(again) = freezer.write(false) {
                    log::debug!("{again}, ignoring");
                }
                Err(error)
            }
        }
    }

    /// Lets the processes of the cgroup run and returns when the kernel says so.
    ///
    /// Cgroups further down that froze themselves stay frozen: see [`Self::thaw_all`].
    ///
    /// # Errors
    /// [`Error::Deadline`] when the cgroup is still frozen, which means that an ancestor is; [`Error::Root`].
    pub fn thaw(&self, deadline: Instant) -> Result<()> {
        self.refuse_root("thaw")?;
        let began = Instant::now();
        let freezer = self.freezer()?;
        freezer.write(false)?;
        let done = match &freezer {
            Freezer::V1(_) => {
                // A thaw is done when the write returns, unless an ancestor holds the cgroup.
                let mut pause = Duration::from_millis(1);
                loop {
                    if freezer.state()? == FreezerState::Thawed {
                        break true;
                    }
                    if !nap(&mut pause, deadline) {
                        break false;
                    }
                }
            }
            Freezer::V2(place) => wait_event(&place.dir, "frozen", 0, deadline)?,
        };
        if done {
            return Ok(());
        }
        Err(Error::Deadline {
            step: "thaw",
            path: freezer.dir().path().to_owned(),
            waited: began.elapsed(),
            holders: Vec::new(),
        })
    }

    /// Thaws the cgroup and every cgroup below it, in the v1 freezer and in v2, without waiting.
    ///
    /// A process in a frozen nested v1 freezer cannot even die: kill calls this after sending its signals.
    ///
    /// # Errors
    /// [`Error::Write`]; what is gone already is no error.
    pub fn thaw_all(&self) -> Result<()> {
        self.refuse_root("thaw")?;
        let freezers = self
            .v1("freezer")
            .into_iter()
            .map(|place| (place, "freezer.state", "THAWED"));
        let unified = self
            .unified()
            .into_iter()
            .map(|place| (place, "cgroup.freeze", "0"));
        for (place, file, value) in freezers.chain(unified) {
            let paths = match place.dir.walk() {
                Ok(paths) => paths,
                Err(error) if dir::gone(&error) => continue,
                Err(error) => return Err(Error::io("list", place.dir.path())(error)),
            };
            for path in paths {
                match Dir::at(path).write(file, value) {
                    Err(error) if !error.is_gone() => return Err(error),
                    Ok(()) | Err(_) => {}
                }
            }
        }
        Ok(())
    }
}

/// Waits for FROZEN, writing it again now and then: a process that forks at the wrong moment leaves the cgroup
/// FREEZING for good otherwise (runc#2105, #2774).
fn freeze_v1(place: &Place, deadline: Instant) -> Result<bool> {
    let mut pause = Duration::from_micros(20);
    for round in 1_u32.. {
        if place.dir.read("freezer.state")?.trim() == "FROZEN" {
            return Ok(true);
        }
        if round.is_multiple_of(32) {
            // Stuck: let them run for a moment, so that whatever holds a lock can let go of it.
            place.dir.write("freezer.state", "THAWED")?;
            pause = Duration::from_micros(20);
        }
        if !nap(&mut pause, deadline) {
            return Ok(false);
        }
        place.dir.write("freezer.state", "FROZEN")?;
    }
    Ok(false)
}

/// Sleeps for `pause` (doubled for the next time, 10 ms at most), not beyond the deadline; false when it is past.
/// v1 has no event for any of its states, so asking again is all one can do.
pub(crate) fn nap(pause: &mut Duration, deadline: Instant) -> bool {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return false;
    }
    thread::sleep((*pause).min(left));
    *pause = (*pause * 2).min(Duration::from_millis(10));
    true
}

/// Waits until `key` of `cgroup.events` is `value`, woken by the kernel; false when the deadline comes first.
pub(crate) fn wait_event(dir: &Dir, key: &str, value: u64, deadline: Instant) -> Result<bool> {
    const FILE: &str = "cgroup.events";
    let failed = || Error::io("read", dir.path().join(FILE));
    let fd = dir.open(FILE, libc::O_RDONLY).map_err(failed())?;
    loop {
        // The read arms the poll: a change after it is seen, so none can be lost in between.
        let text = dir::read_all(fd.as_fd()).map_err(failed())?;
        if event(&text, key) == Some(value) {
            return Ok(true);
        }
        if !sys::poll(fd.as_fd(), libc::POLLPRI, deadline).map_err(failed())? {
            return Ok(false);
        }
    }
}

/// Who keeps a cgroup from freezing: those in `D` if there are any, else those not yet stopped.
fn unstoppable(dir: &Dir) -> Vec<Holder> {
    let pids = processes_below(dir).unwrap_or_default();
    let mut all: Vec<Holder> = pids.into_iter().take(256).map(Holder::of).collect();
    if all
        .iter()
        .any(|holder| holder.state == 'D' && !frozen_wait(holder))
    {
        all.retain(|holder| holder.state == 'D' && !frozen_wait(holder));
    }
    all.truncate(Holder::MAX);
    all
}

/// A process the v1 freezer has stopped is in `D` too, but in the refrigerator.
fn frozen_wait(holder: &Holder) -> bool {
    holder.waiting_in.contains("refrigerator")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_by_key() {
        let text = "populated 1\nfrozen 0\n";
        assert_eq!(event(text, "populated"), Some(1));
        assert_eq!(event(text, "frozen"), Some(0));
        assert_eq!(event(text, "froze"), None);
    }

    #[test]
    fn a_nap_ends_with_the_deadline() {
        let deadline = Instant::now() + Duration::from_millis(5);
        let mut pause = Duration::from_secs(60);
        assert!(nap(&mut pause, deadline));
        assert!(!nap(&mut pause, deadline), "the deadline is past");
        assert_eq!(pause, Duration::from_millis(10));
    }
}
