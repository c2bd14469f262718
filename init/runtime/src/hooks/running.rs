//! A host program inside our create, from its start to its end: read, watched, and killed with all it started.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use holdfast_record::deadline::Deadline;
use holdfast_record::exit::ExitStatus;

use super::output::{Output, Stream, read_some};
use crate::sys::clone;
use crate::sys::spawn::{Spawned, Step, kill_group, poll, refusal};

/// How long a killed program is waited for; one in state D may not die at all.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a wait is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// The program has ended.
    Ended(ExitStatus),
    /// The deadline came first.
    Expired,
    /// The process it works on ended first.
    WatchedEnded,
}

/// A program that has been started.
pub(crate) struct Running {
    child: Spawned,
    report: Vec<u8>,
    report_open: bool,
    stdout: Stream,
    stderr: Stream,
}

impl Running {
    /// `stdout` and `stderr` are the reading ends of the program's pipes.
    pub(crate) fn new(child: Spawned, stdout: OwnedFd, stderr: OwnedFd) -> Self {
        Self {
            child,
            report: Vec::new(),
            report_open: true,
            stdout: Stream::new(stdout),
            stderr: Stream::new(stderr),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        u32::try_from(self.child.pid).unwrap_or(0)
    }

    /// Reads and waits until the program has ended, and reads what is there then. `watched` is the pidfd of a process
    /// without which the program cannot succeed.
    pub(crate) fn wait(
        &mut self,
        deadline: &Deadline,
        watched: Option<BorrowedFd<'_>>,
    ) -> io::Result<Waited> {
        loop {
            let ready = poll(
                [
                    Some(self.child.pidfd.as_fd()),
                    self.report_open.then(|| self.child.report.as_fd()),
                    self.stdout.pollable(),
                    self.stderr.pollable(),
                    watched,
                ],
                deadline.poll_timeout(),
            )?;
            let [ended, report, stdout, stderr, watched_ended] = ready;
            // The order matters: what was written before the end is read after the end was seen.
            if ended {
                let status = clone::wait_pidfd(self.child.pidfd.as_fd(), false)
                    .and_then(|(code, status)| ExitStatus::from_waitid(code, status));
                self.read_report()?;
                self.stdout.drain()?;
                self.stderr.drain()?;
                return status
                    .map(Waited::Ended)
                    .ok_or_else(|| io::Error::other("its end was taken by another waiter"));
            }
            if report {
                self.read_report()?;
            }
            if stdout {
                self.stdout.read()?;
            }
            if stderr {
                self.stderr.read()?;
            }
            if watched_ended {
                return Ok(Waited::WatchedEnded);
            }
            if deadline.is_expired() {
                return Ok(Waited::Expired);
            }
        }
    }

    /// Kills its process group and waits a moment for its end; returns whether that was seen.
    pub(crate) fn kill(&mut self) -> bool {
        kill_group(&self.child);
        let deadline = Deadline::after(KILL_TIMEOUT, "the end of a killed program");
        matches!(self.wait(&deadline, None), Ok(Waited::Ended(_)))
    }

    /// The step before its first instruction that failed, once it has ended; `None` when it ran.
    pub(crate) fn refused(&self) -> Option<(Step, io::Error)> {
        if self.report.is_empty() {
            return None;
        }
        Some(refusal(&self.report).unwrap_or((Step::Execute, io::ErrorKind::UnexpectedEof.into())))
    }

    /// At most five bytes ever come, in one write.
    fn read_report(&mut self) -> io::Result<()> {
        let mut bytes = [0; 16];
        match read_some(&self.child.report, &mut bytes)? {
            Some(0) => self.report_open = false,
            Some(count) => self.report.extend_from_slice(&bytes[..count]),
            None => {}
        }
        Ok(())
    }

    pub(crate) fn output(&self) -> Box<Output> {
        Box::new(Output {
            stdout: self.stdout.text(),
            stderr: self.stderr.text(),
        })
    }
}
