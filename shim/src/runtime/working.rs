//! A runtime that works: its end, its deadline, and what is kept of it meanwhile.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use holdfast_record::barrier::{self, Frame};
use holdfast_record::{Deadline, ExitStatus};
use tokio::io::unix::AsyncFd;

use super::error::RuntimeError;
use super::job::{Kept, RestoredJob, now_ms, verb_of};
use crate::look::describe;
use crate::reaper::{Child, ProcessRecord};
use crate::resume::descriptor::Descriptor;
use crate::{resume, sys};

/// A runtime at work. Dropped before its end it is killed with all it started: the one who
/// waited for it has been given up.
#[derive(Debug)]
pub(super) struct Working {
    /// None: it had ended in the image before.
    pub(super) child: Option<Child>,
    pub(super) ended: Option<ExitStatus>,
    pub(super) kept: Kept,
}

/// The end of a runtime.
pub(super) async fn end_of(
    child: &mut Option<Child>,
    verb: &'static str,
) -> Result<ExitStatus, RuntimeError> {
    match child {
        // The reaper tells every end; a closed channel means that it was told before.
        Some(child) => (&mut child.ended)
            .await
            .map(|ended| ended.status)
            .map_err(|_| RuntimeError::GivenUp { verb }),
        None => Err(RuntimeError::GivenUp { verb }),
    }
}

impl Working {
    /// Of the image before.
    pub(super) fn again(restored: RestoredJob) -> (Self, Deadline) {
        let RestoredJob {
            key, job, child, ..
        } = restored;
        let verb = verb_of(&job.verb);
        let left = Duration::from_millis(job.until.saturating_sub(now_ms()));
        let working = Self {
            child,
            ended: job.ended,
            kept: Kept {
                key: Some(key),
                job: Some(job),
            },
        };
        (working, Deadline::after(left, verb))
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, |child| child.process.pid())
    }

    /// Its end.
    async fn end(&mut self, verb: &'static str) -> Result<ExitStatus, RuntimeError> {
        if let Some(status) = self.ended {
            return Ok(status);
        }
        let status = end_of(&mut self.child, verb).await?;
        Ok(self.has_ended(status))
    }

    pub(super) fn has_ended(&mut self, status: ExitStatus) -> ExitStatus {
        self.kept.ended(self.pid(), status);
        self.ended = Some(status);
        status
    }

    /// See [`receive`].
    pub(super) fn receive(
        &mut self,
        socket: std::os::fd::BorrowedFd<'_>,
        buffer: &mut [u8],
    ) -> io::Result<sys::Received> {
        receive(&mut self.kept, socket, buffer)
    }

    /// Keeps why it failed: its log is removed before its owner has made anything of it.
    pub(super) fn keep_words(&mut self, judged: &Result<(), RuntimeError>) {
        if let Err(error) = judged {
            let words = error.to_string();
            self.kept.change(|job| job.failed = Some(words));
        }
    }

    /// Lets the process run that the runtime has made; once.
    pub(super) fn acknowledge(&mut self, socket: &AsyncFd<Descriptor>, verb: &str) {
        let _step = resume::step();
        if self.kept.job.as_ref().is_some_and(|job| job.acknowledged) {
            return;
        }
        let sent = nix::sys::socket::send(
            socket.get_ref().as_raw_fd(),
            &[barrier::ACK],
            nix::sys::socket::MsgFlags::MSG_NOSIGNAL,
        );
        if let Err(errno) = sent {
            log::debug!("{verb}: the runtime ended at the barrier: {errno}");
        }
        self.kept.change(|job| job.acknowledged = true);
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        if self.ended.is_none()
            && let Some(child) = &self.child
        {
            kill_group(child);
        }
    }
}

/// Waits for the runtime's end; when the time is over it and its hooks are killed.
pub(super) async fn finish(
    working: &mut Working,
    deadline: &Deadline,
    verb: &'static str,
) -> Result<ExitStatus, RuntimeError> {
    match tokio::time::timeout(deadline.remaining(), working.end(verb)).await {
        Ok(status) => status,
        Err(_) => Err(overdue(working, deadline, verb).await),
    }
}

/// Kills a runtime whose time is over; the error says what it was doing.
pub(super) async fn overdue(
    working: &Working,
    deadline: &Deadline,
    verb: &'static str,
) -> RuntimeError {
    // Before it is killed; afterwards there is nothing to see.
    let state = describe(working.pid()).await;
    if let Some(child) = &working.child {
        kill_group(child);
    }
    RuntimeError::Deadline {
        verb,
        limit: deadline.limit(),
        state,
    }
}

/// Kills a child that leads a process group, with the group.
pub(crate) fn kill_group(child: &Child) {
    let _ = child.process.signal(libc::SIGKILL);
    if let Ok(pid) = i32::try_from(child.process.pid()) {
        let _ =
            nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
    }
}

/// Receives a frame; a process that comes with it is on the slate in the same step.
pub(super) fn receive(
    kept: &mut Kept,
    socket: std::os::fd::BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<sys::Received> {
    let _step = resume::step();
    let received = sys::receive_with_fd(socket, buffer)?;
    if let Ok(Frame::Registered { pid }) =
        Frame::decode(buffer.get(..received.len).unwrap_or_default())
    {
        let process = ProcessRecord::new(pid, received.fd.as_ref().map(Descriptor::name));
        kept.change(|job| job.registered = Some(process));
    }
    Ok(received)
}
