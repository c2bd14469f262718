//! Signals to everything in a cgroup.
//!
//! Never freezes: a freezer that does not come back is how kill used to hang (runc#2753, #3759, #4481).

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::cgroup::Cgroup;
use crate::dir;
use crate::error::{Error, Holder, Result};
use crate::freezer::nap;
use crate::hierarchy::read_proc;
use crate::place::processes_below;
use crate::sys;

/// How often a process may be listed in the cgroup and be elsewhere by its own account (60 ms together).
const LOOKS: u8 = 12;

impl Cgroup {
    /// Sends a signal to every process of the cgroup and below.
    ///
    /// SIGKILL: by `cgroup.kill` where there is v2 (Linux 5.14; atomic, forks included), and process by process in v1;
    /// own and nested freezers are thawed after it, because a process frozen by v1 cannot die. Any other signal:
    /// process by process, each once, until no new ones appear. Processes are signalled through a pidfd after their
    /// membership was seen through it, so a reused pid is never hit.
    ///
    /// Returns when all have the signal, not when they have died. An empty or missing cgroup is no error.
    ///
    /// # Errors
    /// [`Error::Deadline`] when processes appear faster than they can be signalled; [`Error::Root`]; [`Error::Io`] when
    /// a signal is refused (EPERM, EINVAL), after all others have got it.
    pub fn signal_all(&self, signal: i32, deadline: Instant) -> Result<()> {
        self.refuse_root("kill")?;
        let kill = signal == libc::SIGKILL;
        if kill && self.kill_file()? && !self.is_v1() {
            return Ok(());
        }
        let result = self.signal_each(signal, deadline);
        if kill {
            let thawed = self.thaw_all();
            return result.and(thawed);
        }
        result
    }

    /// `cgroup.kill` of the v2 hierarchy; false where there is none.
    fn kill_file(&self) -> Result<bool> {
        let Some(place) = self.unified() else {
            return Ok(false);
        };
        match place.dir.try_write("cgroup.kill", "1") {
            Ok(()) => Ok(true),
            // Linux < 5.14, or the cgroup is gone: the loop finds out which.
            Err(error) if dir::gone(&error) => Ok(false),
            // A threaded cgroup.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
            Err(error) => Err(place.dir.refused("cgroup.kill", "1", error)),
        }
    }

    fn signal_each(&self, signal: i32, deadline: Instant) -> Result<()> {
        let Some(place) = self.reference() else {
            return Ok(());
        };
        let began = Instant::now();
        let mut done = HashSet::new();
        let mut refused = None;
        // Ended or moved away between two looks; it may not be so time and again.
        let mut pause = Duration::from_micros(100);
        let mut elsewhere: HashMap<i32, u8> = HashMap::new();
        loop {
            let fresh: Vec<i32> = processes_below(&place.dir)?
                .into_iter()
                .filter(|pid| !done.contains(pid))
                .collect();
            if fresh.is_empty() {
                return match refused {
                    None => Ok(()),
                    Some((pid, source)) => Err(Error::Io {
                        step: "signal a process of",
                        path: format!("{} (pid {pid})", place.dir.path().display()).into(),
                        source,
                    }),
                };
            }
            if Instant::now() >= deadline {
                return Err(Error::Deadline {
                    step: "kill",
                    path: place.dir.path().to_owned(),
                    waited: began.elapsed(),
                    holders: Holder::of_all(&fresh),
                });
            }
            let mut unclear = false;
            for pid in fresh {
                match self.signal_member(pid, signal) {
                    Ok(true) => {
                        done.insert(pid);
                    }
                    // Ended, and only the list does not know yet.
                    Ok(false) if matches!(Holder::of(pid).state, 'Z' | 'X' | '?') => {
                        done.insert(pid);
                    }
                    Ok(false) => {
                        unclear = true;
                        let tries = elsewhere.entry(pid).or_insert(0_u8);
                        *tries += 1;
                        if *tries > LOOKS {
                            done.insert(pid);
                            let text = "cgroup.procs lists it, but /proc/PID/cgroup does not agree";
                            refused = Some((pid, io::Error::other(text)));
                        }
                    }
                    Err(error) => {
                        done.insert(pid);
                        refused = Some((pid, error));
                    }
                }
            }
            if unclear {
                // A process on its way out has left its cgroup and is listed all the same, for a moment.
                nap(&mut pause, deadline);
            }
        }
    }

    /// Signals one process; false when it is not a member (any more).
    fn signal_member(&self, pid: i32, signal: i32) -> io::Result<bool> {
        let Some(pidfd) = self.pidfd_of_member(pid)? else {
            return Ok(false);
        };
        match sys::pidfd_send_signal(pidfd.as_fd(), signal) {
            // Ended in between: that is what most signals are for.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(true),
            other => other.map(|()| true),
        }
    }

    /// A pidfd of a process that is in the cgroup or below; `None` when it is gone or elsewhere.
    fn pidfd_of_member(&self, pid: i32) -> io::Result<Option<OwnedFd>> {
        // 0 stands for a process of a pid namespace the caller cannot see: there is no name to call it by.
        if pid <= 0 {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        let pidfd = match sys::pidfd_open(pid) {
            Ok(pidfd) => pidfd,
            // EINVAL: the pid was reused for a thread.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::EINVAL)) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        // Looked at after the pidfd exists: if the membership is right now, the pidfd is of that process or of one
        // that died in between, and a signal to the dead is lost, not misdirected.
        Ok(self.is_member(pid).then_some(pidfd))
    }

    /// Whether /proc/PID/cgroup puts the process into this cgroup or below it.
    fn is_member(&self, pid: i32) -> bool {
        let Ok(text) = read_proc(&format!("/proc/{pid}/cgroup")) else {
            return false;
        };
        let Some(place) = self.reference() else {
            return false;
        };
        let Ok(below) = place.dir.path().strip_prefix(&place.hierarchy.mount_point) else {
            return false;
        };
        let root = place.hierarchy.mount_root.join(below);
        text.lines()
            .filter_map(|line| crate::hierarchy::line_of(line, &place.hierarchy.kind))
            .any(|path| path.starts_with(&root))
    }

    /// Waits until no process is left in the cgroup or below.
    ///
    /// # Errors
    /// [`Error::Deadline`] with those that are left: a process in state `D` dies only when the kernel lets it.
    pub fn wait_empty(&self, deadline: Instant) -> Result<()> {
        let began = Instant::now();
        let Some(place) = self.reference() else {
            return Ok(());
        };
        let mut pause = Duration::from_micros(100);
        loop {
            let pids = processes_below(&place.dir)?;
            let Some(&first) = pids.first() else {
                return Ok(());
            };
            let in_time = match self.pidfd_of_member(first) {
                Ok(Some(pidfd)) => sys::poll(pidfd.as_fd(), libc::POLLIN, deadline)
                    .map_err(Error::io("poll a process of", place.dir.path()))?,
                // Left between the two looks, or cannot be named: look again a little later.
                Ok(None) | Err(_) => true,
            };
            // An ended process leaves the list a moment after its pidfd says so.
            if !in_time || !nap(&mut pause, deadline) {
                let pids = processes_below(&place.dir)?;
                if pids.is_empty() {
                    return Ok(());
                }
                return Err(Error::Deadline {
                    step: "end of the processes of",
                    path: place.dir.path().to_owned(),
                    waited: began.elapsed(),
                    holders: Holder::of_all(&pids),
                });
            }
        }
    }

    /// [`Self::kill_all`], then [`Self::remove`].
    ///
    /// # Errors
    /// As these.
    pub fn kill_and_remove(&self, deadline: Instant) -> Result<()> {
        self.kill_all(deadline)?;
        self.remove(deadline)
    }

    /// SIGKILL to everything in it, again while something is left, until all are dead.
    ///
    /// # Errors
    /// As [`Self::signal_all`] and [`Self::wait_empty`].
    pub fn kill_all(&self, deadline: Instant) -> Result<()> {
        loop {
            self.signal_all(libc::SIGKILL, deadline)?;
            // Once is enough but for the odd case: a freezer frozen again from inside, a pid reused by a fork while the
            // signals went out.
            let now = Instant::now();
            match self.wait_empty(deadline.min(now + Duration::from_secs(1))) {
                Ok(()) => return Ok(()),
                Err(Error::Deadline { .. }) if Instant::now() < deadline => {}
                Err(error) => return Err(error),
            }
        }
    }
}
