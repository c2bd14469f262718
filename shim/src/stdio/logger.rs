//! `binary://` loggers: a program that reads a process' output.
//!
//! It gets stdout on descriptor 3, stderr on 4, and says on 5 that it is ready: by a byte, or
//! (version 1 only) by closing it. The process writes straight into the pipes; the shim does not
//! stand between.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use holdfast_record::{ContainerId, Namespace};
use nix::fcntl::OFlag;
use tokio::io::Interest;

use crate::reaper::{Child, Reaper};
use crate::sys::{self, ChildSetup};

/// How long a logger may take to get ready.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// From SIGTERM to SIGKILL.
const TERM_LIMIT: Duration = Duration::from_secs(12);

/// For whom a logger runs, and who waits for its end.
#[derive(Debug, Clone)]
pub(crate) struct LoggerContext {
    /// Waits for children.
    pub(crate) reaper: Arc<Reaper>,
    /// The containerd namespace.
    pub(crate) namespace: Namespace,
    /// The container.
    pub(crate) container: ContainerId,
}

/// A logger could not be put to work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoggerError {
    /// The URI.
    #[error("logger: {0:?} names no program; expected binary:///path/to/program?argument=value")]
    Uri(String),
    /// A system call.
    #[error("logger {program}: {step}")]
    Io {
        /// The program.
        program: PathBuf,
        /// What was tried.
        step: &'static str,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// It ended instead.
    #[error("logger {program} ended before it was ready; its words are in the shim's log")]
    Ended {
        /// The program.
        program: PathBuf,
    },
    /// It does nothing.
    #[error("logger {program} was not ready within {READY_LIMIT:?}")]
    NotReady {
        /// The program.
        program: PathBuf,
    },
}

/// A logger at work. Dropped, it is asked to end, and killed if it does not.
#[derive(Debug)]
pub(crate) struct Logger {
    child: Option<Child>,
}

/// The ends of the pipes for the process.
#[derive(Debug)]
pub(crate) struct LoggerPipes {
    /// For stdout.
    pub(crate) stdout: OwnedFd,
    /// For stderr.
    pub(crate) stderr: OwnedFd,
}

#[derive(Debug, PartialEq, Eq)]
struct Program {
    path: PathBuf,
    arguments: Vec<String>,
    needs_byte: bool,
}

/// Whether a stream is given to a logger.
pub(crate) fn is_logger(uri: &str) -> bool {
    uri.starts_with("binary://") || uri.starts_with("binary-v2://")
}

fn parse(uri: &str) -> Option<Program> {
    let (scheme, rest) = uri.split_once("://")?;
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let path = decode(path, false);
    if !path.starts_with('/') {
        return None;
    }
    let mut arguments = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        arguments.push(decode(key, true));
        arguments.push(decode(value, true));
    }
    Some(Program {
        path: path.into(),
        arguments,
        needs_byte: scheme == "binary-v2",
    })
}

/// Undoes URL encoding.
fn decode(text: &str, plus_is_space: bool) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let digits: Vec<u8> = bytes.by_ref().take(2).collect();
                let value = std::str::from_utf8(&digits)
                    .ok()
                    .and_then(|digits| u8::from_str_radix(digits, 16).ok());
                out.push(value.unwrap_or(b'?'));
            }
            b'+' if plus_is_space => out.push(b' '),
            other => out.push(other),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl Logger {
    /// Starts the logger that `uri` names and waits until it is ready.
    ///
    /// # Errors
    /// [`LoggerError`]; then it has been killed.
    pub(crate) async fn start(
        uri: &str,
        context: &LoggerContext,
        owner: (u32, u32),
    ) -> Result<(Self, LoggerPipes), LoggerError> {
        let program = parse(uri).ok_or_else(|| LoggerError::Uri(uri.to_owned()))?;
        let failed = |step: &'static str| {
            let program = program.path.clone();
            move |source: io::Error| LoggerError::Io {
                program,
                step,
                source,
            }
        };
        let pipe = || {
            nix::unistd::pipe2(OFlag::O_CLOEXEC)
                .map_err(|errno| failed("make a pipe")(errno.into()))
        };
        let (read_out, stdout) = pipe()?;
        let (read_err, stderr) = pipe()?;
        let (ready, tell_ready) = pipe()?;
        if owner != (0, 0) {
            for end in [&stdout, &stderr] {
                std::os::unix::fs::fchown(end, Some(owner.0), Some(owner.1))
                    .map_err(failed("give a pipe away"))?;
            }
        }
        super::set_nonblocking(&ready).map_err(failed("set up a pipe"))?;
        let mut command = Command::new(&program.path);
        command
            .args(&program.arguments)
            .env_clear()
            .env("CONTAINER_ID", context.container.as_str())
            .env("CONTAINER_NAMESPACE", context.namespace.as_str())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit());
        let setup = ChildSetup {
            fds: vec![(read_out, 3), (read_err, 4), (tell_ready, 5)],
            parent_death_signal: None,
            own_group: true,
        };
        let child = context
            .reaper
            .spawn(command, setup)
            .map_err(failed("start"))?;
        let mut logger = Self { child: Some(child) };
        let ready = sys::watch(ready, Interest::READABLE).map_err(failed("watch a pipe"))?;
        let answer = ready.async_io(Interest::READABLE, |mut pipe| {
            use std::io::Read as _;
            pipe.read(&mut [0u8; 1])
        });
        let read = tokio::time::timeout(READY_LIMIT, answer)
            .await
            .map_err(|_| LoggerError::NotReady {
                program: program.path.clone(),
            })?
            .map_err(failed("wait for its readiness"))?;
        context.reaper.sweep();
        if read == 0 && (program.needs_byte || logger.has_ended()) {
            return Err(LoggerError::Ended {
                program: program.path,
            });
        }
        Ok((logger, LoggerPipes { stdout, stderr }))
    }

    fn has_ended(&mut self) -> bool {
        match &mut self.child {
            Some(child) => child.ended.try_recv().is_ok(),
            None => true,
        }
    }

    /// Waits until it has read everything and ended.
    pub(crate) async fn finish(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = (&mut child.ended).await;
        }
        self.child = None;
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        let Some(child) = self.child.take() else {
            return;
        };
        let _ = child.process.signal(libc::SIGTERM);
        let Ok(event_loop) = tokio::runtime::Handle::try_current() else {
            return;
        };
        event_loop.spawn(async move {
            if tokio::time::timeout(TERM_LIMIT, child.ended).await.is_err() {
                log::warn!(
                    "logger {} did not end by SIGTERM; killed",
                    child.process.pid()
                );
                let _ = child.process.signal(libc::SIGKILL);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_uri_names_program_and_arguments() {
        let program = parse("binary:///usr/bin/log%20it?id=a%2Fb&x=1+2&flag").unwrap();
        assert_eq!(program.path.to_str(), Some("/usr/bin/log it"));
        assert_eq!(program.arguments, ["id", "a/b", "x", "1 2", "flag", ""]);
        assert!(!program.needs_byte);
        assert!(parse("binary-v2:///x").unwrap().needs_byte);
        assert_eq!(parse("binary://relative"), None);
        assert!(is_logger("binary-v2:///x") && !is_logger("file:///x"));
    }
}
