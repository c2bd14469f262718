//! *Register before run*: handing a new process to the shim that started us, and telling other callers of it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use holdfast_record::Deadline;
use holdfast_record::barrier::{ACK, ENV, Frame};

use crate::cause::{self, Operation};
use crate::error::{Doing, Error, Result, chain};
use crate::link::wait_readable;
use crate::state::write_whole;
use crate::sys::fd;
use crate::terminal;

/// Hands the process over as the caller asked for: `--pidfd-socket`, `--pid-file`.
///
/// # Errors
/// With the path. A socket that nobody accepts on has a deadline.
pub(crate) fn tell_caller(
    pid: i32,
    pidfd: BorrowedFd<'_>,
    pidfd_socket: Option<&Path>,
    pid_file: Option<&Path>,
) -> Result<()> {
    if let Some(path) = pidfd_socket {
        let socket = terminal::connect(path)?;
        fd::send_fd(socket.as_fd(), b"pidfd", pidfd)
            .doing(|| format!("send the pidfd to {}", path.display()))?;
    }
    if let Some(path) = pid_file {
        write_whole(path, pid.to_string().as_bytes(), 0o644)?;
    }
    Ok(())
}

/// The inherited socket to the shim, when a shim started us.
#[derive(Debug)]
pub(crate) struct Shim {
    socket: OwnedFd,
}

impl Shim {
    /// Takes the socket named in the environment.
    ///
    /// # Errors
    /// When the variable names no open descriptor: a container without a keeper must not start.
    pub(crate) fn from_environment() -> Result<Option<Self>> {
        let Some(value) = std::env::var_os(ENV) else {
            return Ok(None);
        };
        let number = value.to_str().and_then(|text| text.parse().ok());
        let socket = number
            .ok_or_else(|| std::io::Error::from_raw_os_error(libc::EINVAL))
            .and_then(fd::adopt);
        match socket {
            Ok(socket) => Ok(Some(Self { socket })),
            Err(source) => Err(Error::Io {
                doing: format!("use the descriptor in {ENV}={}", value.display()),
                source,
            }),
        }
    }

    /// Announces the process; the answer is awaited by [`Shim::confirm`], so that both sides
    /// work meanwhile.
    pub(crate) fn announce(&self, pid: i32, pidfd: BorrowedFd<'_>) -> Result<()> {
        let frame = Frame::Registered {
            pid: pid.cast_unsigned(),
        };
        fd::send_fd(self.socket.as_fd(), &frame.encode(), pidfd)
            .map_err(|source| Error::Barrier { source })
    }

    /// Waits until the shim has stored the process.
    pub(crate) fn confirm(&self, pid: i32, deadline: &Deadline) -> Result<()> {
        wait_readable(&[self.socket.as_fd()], deadline, pid)?;
        let mut answer = [0; 1];
        match fd::receive_fd(self.socket.as_fd(), &mut answer) {
            Ok((1, _)) if answer[0] == ACK => Ok(()),
            Ok(_) => Err(Error::Barrier {
                source: std::io::Error::other("end of file instead of an answer"),
            }),
            Err(source) => Err(Error::Barrier { source }),
        }
    }

    /// Tells the shim why nothing came of it.
    pub(crate) fn failed(&self, error: &Error, operation: Operation) {
        let reason = Frame::Reason(Box::new(cause::reason(error, operation)));
        let failed = Frame::Failed { text: chain(error) };
        for frame in [reason, failed] {
            // A shim that is gone reads nothing; the log and the exit code remain.
            let _ = fd::send(self.socket.as_fd(), &frame.encode());
        }
    }
}
