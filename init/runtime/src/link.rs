//! The conversation with `holdfast-init`: reports in, the byte GO out, never without a deadline.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use holdfast_plan::Point;
use holdfast_plan::report::{Fault, GO, MAX_FRAME, Report};
use holdfast_record::Deadline;
use holdfast_record::process::{describe, state_in_words};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{Doing, Error, Result};
use crate::sys::{clone, fd};

/// What `holdfast-init` said.
#[derive(Debug)]
pub enum Said {
    /// It is at this point; it waits if the plan says so.
    Reached(Point),
    /// The listener of its seccomp filter.
    Listener(OwnedFd),
    /// It closed the socket: it became the user's program, or passed the gate, or died.
    Closed,
}

/// A new process and the socket to it.
#[derive(Debug)]
pub struct Link {
    /// In our pid namespace.
    pub pid: i32,
    /// The process, not its number.
    pub pidfd: OwnedFd,
    socket: OwnedFd,
    labels: Vec<String>,
    looked_up: Option<String>,
}

impl Link {
    /// `labels` are those of the plan the process executes.
    pub fn new(pid: i32, pidfd: OwnedFd, socket: OwnedFd, labels: Vec<String>) -> Self {
        Self {
            pid,
            pidfd,
            socket,
            labels,
            looked_up: None,
        }
    }

    /// Remembers the program's name, so that a failed look-up reads as users know it.
    #[must_use]
    pub fn for_program(mut self, name: impl Into<String>) -> Self {
        self.looked_up = Some(name.into());
        self
    }

    /// Lets the process pass the point it waits at (or will wait at).
    ///
    /// # Errors
    /// With errno; EPIPE means that it is gone, which [`Link::next`] explains better.
    pub fn go(&self) -> Result<()> {
        match fd::send(self.socket.as_fd(), &[GO]) {
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => Ok(()),
            other => other.doing(|| "let the init process go on".into()),
        }
    }

    /// The next report.
    ///
    /// # Errors
    /// The failed step in words; or the deadline, with what the process is doing instead.
    pub fn next(&mut self, deadline: &Deadline) -> Result<Said> {
        wait_readable(&[self.socket.as_fd()], deadline, self.pid)?;
        let mut buffer = [0; MAX_FRAME];
        let doing = || "hear from the init process".to_owned();
        let (len, passed) = match fd::receive_fd(self.socket.as_fd(), &mut buffer) {
            // It ended with data of ours unread. The kernel says so once, before it hands out
            // what the process had sent: its last report.
            Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => {
                fd::receive_fd(self.socket.as_fd(), &mut buffer).doing(doing)?
            }
            other => other.doing(doing)?,
        };
        if len == 0 {
            return Ok(Said::Closed);
        }
        let report =
            Report::read(buffer.get(..len).unwrap_or_default()).map_err(|_| Error::Step {
                doing: "understand the init process".into(),
                detail: "it sent something that is no report".into(),
                source: None,
            })?;
        match (report, passed) {
            (Report::Reached(point), _) => Ok(Said::Reached(point)),
            (Report::Listener, Some(listener)) => Ok(Said::Listener(listener)),
            (Report::Listener, None) => Err(Error::Step {
                doing: "receive the seccomp listener".into(),
                detail: "the message carried no descriptor".into(),
                source: None,
            }),
            (Report::Failed(fault), _) => {
                Err(explain(&fault, &self.labels, self.looked_up.as_deref()))
            }
        }
    }

    /// Waits until the process is at `point`; a listener on the way goes to `listener`.
    ///
    /// # Errors
    /// As [`Link::next`]; [`Error::InitDied`] when it ended instead.
    pub fn reach(
        &mut self,
        point: Point,
        deadline: &Deadline,
        mut listener: impl FnMut(i32, OwnedFd) -> Result<()>,
    ) -> Result<()> {
        loop {
            match self.next(deadline)? {
                Said::Reached(at) if at == point => return Ok(()),
                Said::Reached(at) => {
                    return Err(Error::Step {
                        doing: deadline.what().to_owned(),
                        detail: format!("it is at {at:?} and was expected at {point:?}"),
                        source: None,
                    });
                }
                Said::Listener(fd) => listener(self.pid, fd)?,
                Said::Closed => return Err(self.died(deadline)),
            }
        }
    }

    /// What the process itself said was wrong, if it said something. To be asked when another
    /// step failed: that can be the consequence of a process that has ended.
    pub fn last_words(&mut self) -> Option<Error> {
        let brief = Deadline::after(std::time::Duration::from_millis(100), "its last words");
        loop {
            match self.next(&brief) {
                Ok(Said::Reached(_) | Said::Listener(_)) => {}
                Ok(Said::Closed) | Err(Error::Expired { .. }) => return None,
                Err(error) => return Some(error),
            }
        }
    }

    /// Explains the end of the process as well as it can be.
    pub fn died(&self, deadline: &Deadline) -> Error {
        // It has closed its socket, so it is ending; give the kernel the moment it needs.
        let brief = Deadline::after(std::time::Duration::from_secs(1), "its end");
        let _ = wait_readable(&[self.pidfd.as_fd()], &brief, self.pid);
        let how = match clone::wait_pidfd(self.pidfd.as_fd(), false) {
            Some((libc::CLD_EXITED, code)) => format!("it exited with {code}"),
            Some((_, signal)) => format!(
                "it was killed by signal {signal}{}",
                if signal == libc::SIGKILL {
                    ", as the OOM killer does when the memory limit is too low"
                } else if signal == libc::SIGSYS {
                    ": its own seccomp filter forbids what every start needs (read, write, execve)"
                } else {
                    ""
                }
            ),
            None => "its parent, who can ask for the cause, is not us".into(),
        };
        Error::InitDied {
            doing: deadline.what().to_owned(),
            how,
        }
    }

    /// Kills the process and, when it is our child, reaps it.
    pub fn kill(&self) {
        // ESRCH: it has ended already.
        let _ = clone::signal_pidfd(self.pidfd.as_fd(), libc::SIGKILL);
        let brief = Deadline::after(std::time::Duration::from_secs(2), "its end");
        let _ = wait_readable(&[self.pidfd.as_fd()], &brief, self.pid);
        let _ = clone::wait_pidfd(self.pidfd.as_fd(), false);
    }
}

/// Waits until one of the descriptors is readable or hung up.
///
/// # Errors
/// [`Error::Expired`], describing process `pid`.
pub(crate) fn wait_readable(fds: &[BorrowedFd<'_>], deadline: &Deadline, pid: i32) -> Result<()> {
    let mut polled: Vec<PollFd<'_>> = fds
        .iter()
        .map(|fd| PollFd::new(*fd, PollFlags::POLLIN))
        .collect();
    loop {
        let timeout = PollTimeout::try_from(deadline.poll_timeout()).unwrap_or(PollTimeout::MAX);
        match poll(&mut polled, timeout) {
            Ok(0) if deadline.is_expired() => return Err(expired(deadline, pid)),
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(errno) => return Err(errno).doing(|| deadline.what().to_owned()),
        }
    }
}

/// The error of a wait that was given up: what the process does instead.
pub(crate) fn expired(deadline: &Deadline, pid: i32) -> Error {
    let seen = describe(pid.cast_unsigned());
    let mut process = String::new();
    let mut add = |text: String| {
        if !process.is_empty() {
            process.push_str(", ");
        }
        process.push_str(&text);
    };
    if let Some(state) = seen.state {
        add(format!("is {} ({state})", state_in_words(state)));
    }
    if let Some(wchan) = &seen.wchan {
        add(format!("in {wchan}"));
    }
    if let Some(comm) = &seen.comm {
        add(format!("command {comm}"));
    }
    if process.is_empty() {
        process.push_str("is gone");
    }
    Error::Expired {
        waited: deadline.expired(),
        pid,
        process,
        seen: Box::new(seen),
    }
}

/// Turns step number and errno into a sentence.
pub(crate) fn explain(fault: &Fault<'_>, labels: &[String], looked_up: Option<&str>) -> Error {
    let doing = labels
        .get(fault.step as usize)
        .cloned()
        .unwrap_or_else(|| "start holdfast-init".into());
    let detail = String::from_utf8_lossy(fault.detail).into_owned();
    if let Some(name) = looked_up
        && (doing == FIND_PROGRAM || doing == EXECUTE)
    {
        return Error::Program(program_text(name, fault.errno));
    }
    let source = (fault.errno != 0).then(|| std::io::Error::from_raw_os_error(fault.errno));
    Error::Step {
        doing,
        detail,
        source,
    }
}

/// Label of the step that looks the program up.
pub(crate) const FIND_PROGRAM: &str = "find the program";
/// Label of the last step.
pub(crate) const EXECUTE: &str = "execute the program";

/// The words of Go's os/exec: docker and containerd derive 127 and 126 from them.
fn program_text(name: &str, errno: i32) -> String {
    let reason = match errno {
        libc::ENOENT => "no such file or directory".to_owned(),
        libc::EACCES | libc::EPERM => "permission denied".to_owned(),
        libc::ENOEXEC => "exec format error".to_owned(),
        other => std::io::Error::from_raw_os_error(other).to_string(),
    };
    if errno == libc::ENOENT && !name.contains('/') {
        return format!("\"{name}\": executable file not found in $PATH");
    }
    if errno == libc::ENOENT {
        return format!("\"{name}\": stat {name}: {reason}");
    }
    format!("\"{name}\": {reason}")
}
