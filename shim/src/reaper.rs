//! The only place that waits for children.
//!
//! On SIGCHLD the reaper *peeks* (`waitid` with `WNOWAIT`) at whichever child has ended,
//! looks it up, and only then reaps it: through its pidfd if it is one of ours, by pid if
//! it is an orphan that was handed to us as subreaper. Why no end can be stolen or lost:
//!
//! * Nothing else in the shim waits, and all of this runs on the shim's one thread.
//! * A child that *we* start ([`Reaper::spawn`]) is registered before the thread returns to
//!   the event loop, so no sweep can come between.
//! * A container's process is started by the runtime, so it can end before we know it. While
//!   a [`Launch`] is open, ends of unknown children are therefore kept, and
//!   [`Launch::adopt`] looks there. With the barrier the process comes with a pidfd, and the
//!   pidfd decides: if it still can be waited for, that is the answer. Only if it cannot
//!   (`ECHILD`: we reaped it as unknown) the kept end with its pid is its own, since a pid
//!   is free for reuse only after that reaping and the process kept it until then.
//! * A foreign runtime tells just a pid, after the fact. `waitid(P_PID, WNOWAIT)` says
//!   whether it is our child still; if so it stays (nobody else can reap it) and its pidfd is
//!   opened. If not, the kept end is its own; to be wrong, the pid space would have to wrap
//!   around within one call of the runtime.
//!
//! Whatever is reaped is gone from the kernel, so its end is on the slate before.
//!
//! Children of a shim that was killed are the keeper's (`docs/0010-what-outlives-sigkill.md`): it waits for them and
//! tells their ends ([`Reaper::told`]), and reaps them when we say that we have it. Should the keeper be gone,
//! their pidfds still say that they have ended, and newer kernels how.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use holdfast_record::process::Stat;
use holdfast_record::{ExitStatus, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::resume::descriptor::{Descriptor, Name};
use crate::resume::inherited::Inherited;
use crate::resume::{self};

use crate::sys::{self, ChildEnd, ChildSetup, Children};
use crate::task::state::Ended;

/// Most ends of unknown children kept while launches are open.
const MAX_EARLY: usize = 4096;
/// How long the kernel may take until it can be asked how a process has ended that somebody else waits for.
const ASK_LIMIT: Duration = Duration::from_secs(2);
/// What is told of a process when nobody can say how it ended: containerd's "unknown".
const UNSEEN: ExitStatus = ExitStatus::Exited(255);

/// A process that cannot be mistaken for another one.
#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    /// None: it was reaped before we could hold on to it.
    pidfd: Option<Descriptor>,
}

/// A process as the slate has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ProcessRecord {
    /// Its pid.
    pub(crate) pid: u32,
    /// Its pidfd.
    fd: Option<Name>,
}

impl ProcessRecord {
    /// One that is not registered yet.
    pub(crate) fn new(pid: u32, fd: Option<Name>) -> Self {
        Self { pid, fd }
    }

    /// The process again, in the next image.
    pub(crate) fn restore(&self, inherited: &mut Inherited) -> Process {
        Process {
            pid: self.pid,
            pidfd: self.fd.and_then(|name| {
                inherited
                    .descriptor(name)
                    .inspect_err(|error| log::error!("pidfd of process {}: {error}", self.pid))
                    .ok()
            }),
        }
    }
}

impl Process {
    /// Its pid and its pidfd.
    pub(crate) fn into_parts(self) -> (u32, Option<Descriptor>) {
        (self.pid, self.pidfd)
    }

    /// For the slate.
    pub(crate) fn record(&self) -> ProcessRecord {
        ProcessRecord {
            pid: self.pid,
            fd: self.pidfd.as_ref().map(Descriptor::name),
        }
    }

    /// Its pid in our pid namespace.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal; never to another process that got the pid later.
    ///
    /// # Errors
    /// `ESRCH` once it was reaped.
    pub(crate) fn signal(&self, signal: i32) -> io::Result<()> {
        match &self.pidfd {
            Some(pidfd) => sys::pidfd_send_signal(pidfd.as_fd(), signal),
            None => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    }

    /// How it has ended, if somebody else has waited for it and the kernel still knows; see ioctl_pidfd(2).
    async fn status_of_the_reaped(&self) -> Option<ExitStatus> {
        let pidfd = self.pidfd.as_ref()?;
        let until = tokio::time::Instant::now() + ASK_LIMIT;
        while tokio::time::Instant::now() < until {
            match sys::pidfd_exit_status(pidfd.as_fd()) {
                Ok(Some(status)) => return Some(status),
                // Nobody has waited for it yet.
                Ok(None) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(_) => return None,
            }
        }
        None
    }

    /// Whether it ends within `limit`; true at once when it has.
    pub(crate) async fn ends_within(&self, limit: Duration) -> bool {
        let Some(pidfd) = &self.pidfd else {
            return true;
        };
        // A pidfd gets readable when the process has ended, and stays so; pidfd_open(2).
        let Ok(watched) = pidfd
            .try_clone()
            .and_then(|pidfd| sys::watch(pidfd, tokio::io::Interest::READABLE))
        else {
            return false;
        };
        tokio::time::timeout(limit, watched.readable())
            .await
            .is_ok()
    }
}

/// A registered child and the word of its end.
#[derive(Debug)]
pub(crate) struct Child {
    /// The process.
    pub(crate) process: Arc<Process>,
    /// Resolves when it was reaped.
    pub(crate) ended: oneshot::Receiver<Ended>,
}

#[derive(Debug)]
struct Watched {
    process: Arc<Process>,
    tell: oneshot::Sender<Ended>,
    /// Whether the next image has to know its end.
    kept: bool,
    /// Whether it is the keeper's child and not ours.
    keepers: bool,
}

#[derive(Debug, Default)]
struct Table {
    watched: HashMap<u32, Watched>,
    launches: usize,
    early: Vec<(u32, Ended)>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Reaper {
    table: Mutex<Table>,
}

/// A process could not be taken over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdoptError {
    /// The runtime named a process that is not our child.
    #[error("process {pid} is not a child of the shim (was its parent not the runtime?)")]
    NotOurs {
        /// The pid named.
        pid: u32,
    },
    /// Asking the kernel failed.
    #[error("wait for process {pid}")]
    Wait {
        /// The pid named.
        pid: u32,
        /// The errno.
        #[source]
        source: io::Error,
    },
}

impl Reaper {
    fn table(&self) -> MutexGuard<'_, Table> {
        // A panic while the table was held cannot leave it half changed: every change is one
        // insertion or removal.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a child and registers it. Its end is forgotten with this image.
    ///
    /// # Errors
    /// As [`Command::spawn`].
    pub(crate) fn spawn(&self, command: Command, setup: ChildSetup) -> io::Result<Child> {
        self.start(command, setup, false)
    }

    /// As [`Reaper::spawn`]; its end is kept for the next image until [`forget_end`].
    ///
    /// # Errors
    /// As [`Command::spawn`].
    pub(crate) fn spawn_kept(&self, command: Command, setup: ChildSetup) -> io::Result<Child> {
        self.start(command, setup, true)
    }

    fn start(&self, mut command: Command, setup: ChildSetup, kept: bool) -> io::Result<Child> {
        sys::prepare_child(&mut command, setup);
        let mut child = command.spawn()?;
        let pid = child.id();
        // Not reaped by anybody before the next sweep, so the pid is still its own.
        let pidfd = sys::pidfd_open(pid).inspect_err(|_| {
            let _ = child.kill();
        })?;
        Ok(self.watch(pid, pidfd.into(), kept))
    }

    fn watch(&self, pid: u32, pidfd: Descriptor, kept: bool) -> Child {
        let process = Arc::new(Process {
            pid,
            pidfd: Some(pidfd),
        });
        let (tell, ended) = oneshot::channel();
        let watched = Watched {
            process: Arc::clone(&process),
            tell,
            kept,
            keepers: false,
        };
        self.table().watched.insert(process.pid, watched);
        Child { process, ended }
    }

    /// The keeper's child, whose end it will tell.
    fn await_keeper(&self, process: &Arc<Process>, tell: oneshot::Sender<Ended>, kept: bool) {
        let watched = Watched {
            process: Arc::clone(process),
            tell,
            kept,
            keepers: true,
        };
        self.table().watched.insert(process.pid, watched);
    }

    /// Takes over what the image before has reaped and not made anything of.
    pub(crate) fn restore(&self, inherited: &mut Inherited) {
        let mut table = self.table();
        for (pid, end) in inherited.all("end/") {
            match (pid.parse(), serde_json::from_slice(&end)) {
                (Ok(pid), Ok(ended)) => table.early.push((pid, ended)),
                (_, error) => log::error!("the end of process {pid} cannot be read: {error:?}"),
            }
        }
    }

    /// Forgets the ends that nobody has asked for after the restoration.
    pub(crate) fn restored(&self) {
        let mut table = self.table();
        if table.launches == 0 {
            for (pid, _) in std::mem::take(&mut table.early) {
                forget_end(pid);
            }
        }
    }

    /// Waits on for a child of the image before; `kept`: see [`Reaper::spawn_kept`].
    pub(crate) fn watch_again(self: &Arc<Self>, process: Arc<Process>, kept: bool) -> Child {
        let (tell, ended) = oneshot::channel();
        let mut table = self.table();
        if let Some(index) = table.early.iter().rposition(|(pid, _)| *pid == process.pid) {
            let (_, end) = table.early.remove(index);
            let _ = tell.send(end);
            return Child { process, ended };
        }
        let is_ours = process
            .pidfd
            .as_ref()
            .is_some_and(|pidfd| sys::wait_child(Children::Pidfd(pidfd.as_fd()), true).is_ok());
        if is_ours {
            let watched = Watched {
                process: Arc::clone(&process),
                tell,
                kept,
                keepers: false,
            };
            table.watched.insert(process.pid, watched);
        } else if kept || process.signal(0).is_ok() {
            drop(table);
            self.await_keeper(&process, tell, kept);
            if !resume::is_kept() || process.signal(0).is_err() {
                self.watch_by_pidfd(&process);
            }
        }
        // Else its end is of no use to anybody: the dropped sender says so.
        Child { process, ended }
    }

    /// The keeper is gone: nobody tells how its children end.
    pub(crate) fn keeper_is_gone(self: &Arc<Self>) {
        let left: Vec<Arc<Process>> = self
            .table()
            .watched
            .values()
            .filter(|watched| watched.keepers)
            .map(|watched| Arc::clone(&watched.process))
            .collect();
        for process in left {
            self.watch_by_pidfd(&process);
        }
    }

    /// Waits for the end of a process that is nobody's child who would tell.
    fn watch_by_pidfd(self: &Arc<Self>, process: &Arc<Process>) {
        let (reaper, process) = (Arc::clone(self), Arc::clone(process));
        tokio::spawn(async move {
            if !process.ends_within(Duration::MAX).await {
                log::error!("process {} cannot be watched", process.pid);
                return;
            }
            let at = Timestamp::now();
            let status = process.status_of_the_reaped().await.unwrap_or_else(|| {
                log::error!(
                    "process {} has ended while the shim had no keeper to wait for it, and this kernel does not say how: its exit is told as {UNSEEN}",
                    process.pid
                );
                UNSEEN
            });
            let _step = resume::step();
            reaper.note(process.pid, Ended { status, at });
        });
    }

    /// Opens the window in which ends of unknown children are kept.
    pub(crate) fn launch(self: &Arc<Self>) -> Launch {
        self.table().launches += 1;
        Launch {
            reaper: Arc::clone(self),
        }
    }

    /// Reaps every child that has ended. To be called on SIGCHLD.
    pub(crate) fn sweep(&self) {
        loop {
            let end = match sys::wait_child(Children::Any, true) {
                Ok(Some(end)) => end,
                Ok(None) => return,
                Err(error) => {
                    if error.raw_os_error() != Some(libc::ECHILD) {
                        log::error!("reap: waitid: {error}");
                    }
                    return;
                }
            };
            if !self.reap(end) {
                return;
            }
        }
    }

    /// Reaps one child that is known to have ended; false when that failed.
    fn reap(&self, end: ChildEnd) -> bool {
        let _step = resume::step();
        let process = self
            .table()
            .watched
            .get(&end.pid)
            .map(|watched| Arc::clone(&watched.process));
        let ended = Ended {
            status: end.status,
            at: Timestamp::now(),
        };
        self.note(end.pid, ended);
        let pidfd = process.as_ref().and_then(|process| process.pidfd.as_ref());
        let reaped = match pidfd {
            Some(pidfd) => sys::wait_child(Children::Pidfd(pidfd.as_fd()), false),
            None => sys::wait_child(Children::Pid(end.pid), false),
        };
        if let Err(error) = reaped {
            log::error!("reap: process {}: {error}", end.pid);
            return false;
        }
        true
    }

    /// The keeper says that a child of its has ended; it is reaped when this comes back.
    pub(crate) fn told(&self, end: ChildEnd, at: Timestamp) {
        let _step = resume::step();
        let status = end.status;
        self.note(end.pid, Ended { status, at });
        resume::reaped(end.pid);
    }

    /// Tells the end of a process to whoever waits for it, and puts it on the slate if the next image may have to.
    fn note(&self, pid: u32, ended: Ended) {
        let mut table = self.table();
        match table.watched.remove(&pid) {
            // Nobody listens any more: the launch of it was given up.
            Some(watched) => {
                if watched.tell.send(ended).is_ok() && watched.kept {
                    resume::put_json_now(&end_key(pid), &ended);
                }
            }
            None if table.launches > 0 => {
                if table.early.len() >= MAX_EARLY {
                    log::warn!("reap: over {MAX_EARLY} unknown children ended during one launch");
                    let (pid, _) = table.early.remove(0);
                    forget_end(pid);
                }
                resume::put_json_now(&end_key(pid), &ended);
                table.early.push((pid, ended));
            }
            None => log::debug!("reaped the orphan {pid} ({})", ended.status),
        }
    }
}

/// While this lives, ends of unknown children are kept.
#[derive(Debug)]
pub(crate) struct Launch {
    reaper: Arc<Reaper>,
}

impl Launch {
    /// Takes over a process that a runtime made for us.
    ///
    /// # Errors
    /// [`AdoptError`] when it is not our child.
    pub(crate) fn adopt(&self, pid: u32, pidfd: Option<Descriptor>) -> Result<Child, AdoptError> {
        let which = match &pidfd {
            Some(pidfd) => Children::Pidfd(pidfd.as_fd()),
            None => Children::Pid(pid),
        };
        match sys::wait_child(which, true) {
            Ok(_) => {
                let pidfd = match pidfd {
                    Some(pidfd) => pidfd,
                    None => {
                        let pidfd = sys::pidfd_open(pid);
                        pidfd
                            .map_err(|source| AdoptError::Wait { pid, source })?
                            .into()
                    }
                };
                let child = self.reaper.watch(pid, pidfd, true);
                // It may have ended before it was in the table, with its SIGCHLD spent.
                self.reaper.sweep();
                Ok(child)
            }
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => {
                match self.claim_early(pid, pidfd) {
                    Err(pidfd) => self.claim_keepers(pid, pidfd),
                    Ok(child) => Ok(child),
                }
            }
            Err(source) => Err(AdoptError::Wait { pid, source }),
        }
    }

    /// One that a runtime of the image before has made, after that was killed: the keeper's child.
    fn claim_keepers(&self, pid: u32, pidfd: Option<Descriptor>) -> Result<Child, AdoptError> {
        let pidfd = match pidfd {
            Some(pidfd) => Some(pidfd),
            None => sys::pidfd_open(pid).ok().map(Descriptor::from),
        };
        let process = Arc::new(Process { pid, pidfd });
        let keeper = nix::unistd::getppid().as_raw();
        // Asked after the pidfd was opened: what that names cannot be another process by now.
        let is_keepers = resume::is_kept()
            && Stat::read(pid).is_ok_and(|stat| i32::try_from(stat.parent) == Ok(keeper))
            && process.signal(0).is_ok();
        if !is_keepers {
            return Err(AdoptError::NotOurs { pid });
        }
        let (tell, ended) = oneshot::channel();
        self.reaper.await_keeper(&process, tell, true);
        Ok(Child { process, ended })
    }

    fn claim_early(
        &self,
        pid: u32,
        pidfd: Option<Descriptor>,
    ) -> Result<Child, Option<Descriptor>> {
        let mut table = self.reaper.table();
        let Some(index) = table.early.iter().rposition(|(early, _)| *early == pid) else {
            return Err(pidfd);
        };
        let (_, end) = table.early.remove(index);
        drop(table);
        let (tell, ended) = oneshot::channel();
        let _ = tell.send(end);
        Ok(Child {
            process: Arc::new(Process { pid, pidfd }),
            ended,
        })
    }
}

impl Drop for Launch {
    fn drop(&mut self) {
        let mut table = self.reaper.table();
        table.launches -= 1;
        if table.launches == 0 {
            let _step = resume::step();
            for (pid, _) in std::mem::take(&mut table.early) {
                forget_end(pid);
            }
        }
    }
}

fn end_key(pid: u32) -> String {
    format!("end/{pid}")
}

/// Somebody has made something of this end, and that is on the slate.
pub(crate) fn forget_end(pid: u32) {
    if resume::is_on() {
        resume::remove(&end_key(pid));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::zombie_processes)]
    use super::*;
    use holdfast_record::ExitStatus;

    // One test for all: sweeps reap every child of the test process, so two such tests
    // must not run side by side in one process. It runs itself in a process of its own.
    #[test]
    fn ends_reach_their_owner_also_when_they_come_before_the_registration() {
        const CHILD: &str = "HOLDFAST_TEST_REAPER";
        if std::env::var_os(CHILD).is_none() {
            let status = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "reaper::tests::ends_reach_their_owner_also_when_they_come_before_the_registration"])
                .env(CHILD, "1")
                .status()
                .unwrap();
            assert!(status.success());
            return;
        }
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        let reaper = Arc::new(Reaper::default());
        let shell = |script: &str| {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", script]);
            command
        };
        let wait_for = |receiver: &mut oneshot::Receiver<Ended>| {
            let start = std::time::Instant::now();
            loop {
                reaper.sweep();
                if let Ok(ended) = receiver.try_recv() {
                    return ended.status;
                }
                assert!(start.elapsed().as_secs() < 10, "no end");
                std::thread::yield_now();
            }
        };
        let mut child = reaper
            .spawn(shell("exit 3"), ChildSetup::default())
            .unwrap();
        assert_eq!(wait_for(&mut child.ended), ExitStatus::Exited(3));
        assert_eq!(
            child.process.signal(9).unwrap_err().raw_os_error(),
            Some(libc::ESRCH)
        );

        // Unknown, ended and reaped before it is adopted: with a pid alone, and with a pidfd.
        for with_pidfd in [false, true] {
            let launch = reaper.launch();
            let orphan = shell("exit 9").spawn().unwrap();
            let pidfd = with_pidfd.then(|| sys::pidfd_open(orphan.id()).unwrap());
            let start = std::time::Instant::now();
            while reaper.table().early.is_empty() {
                reaper.sweep();
                assert!(start.elapsed().as_secs() < 10, "the orphan was not reaped");
            }
            let mut adopted = launch
                .adopt(orphan.id(), pidfd.map(Descriptor::from))
                .unwrap();
            assert_eq!(
                adopted.ended.try_recv().unwrap().status,
                ExitStatus::Exited(9)
            );
            assert_eq!(
                adopted.process.signal(9).unwrap_err().raw_os_error(),
                Some(libc::ESRCH)
            );
            assert!(matches!(
                launch.adopt(1, None),
                Err(AdoptError::NotOurs { pid: 1 })
            ));
        }

        // Adopted alive, or as a zombie that no sweep has seen.
        let launch = reaper.launch();
        let living = shell("read x; exit 4")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut adopted = launch.adopt(living.id(), None).unwrap();
        drop(living.stdin);
        assert_eq!(wait_for(&mut adopted.ended), ExitStatus::Exited(4));
        assert!(reaper.table().watched.is_empty());
    }
}
