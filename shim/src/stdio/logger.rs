//! `binary://` loggers: a program that reads a process' output.
//!
//! It gets stdout on descriptor 3, stderr on 4, and says on 5 that it is ready: by a byte, or
//! (version 1 only) by closing it. The process writes straight into the pipes; the shim does not
//! stand between.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_record::deadline::limit_from_env;
use holdfast_record::process::Stat;
use holdfast_record::{ContainerId, Namespace};
use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use tokio::io::Interest;
use tokio::task::JoinHandle;

use crate::reaper::{Child, ProcessRecord, Reaper};
use crate::resume::inherited::Inherited;
use crate::sys::{self, ChildSetup};

/// How long a logger may take to get ready.
fn ready_limit() -> Duration {
    limit_from_env("LOGGER", Duration::from_secs(10))
}
/// How long the last words of a logger that has ended may take to arrive.
const WORDS_LIMIT: Duration = Duration::from_millis(500);
/// Most bytes of a logger's stderr that are kept for an error.
const MAX_WORDS: usize = 4096;
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
    #[error("logger {program} ended before it was ready{words}")]
    Ended {
        /// The program.
        program: PathBuf,
        /// What it said on stderr.
        words: String,
    },
    /// Version 2 wants a byte.
    #[error("logger {program} closed descriptor 5 without the byte that binary-v2 wants{words}")]
    NoByte {
        /// The program.
        program: PathBuf,
        /// What it said on stderr.
        words: String,
    },
    /// It does nothing.
    #[error("logger {program} was not ready within {limit:?}{words}")]
    NotReady {
        /// The program.
        program: PathBuf,
        /// The deadline.
        limit: Duration,
        /// What it said on stderr.
        words: String,
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
        let (stderr_reader, stderr_writer) = pipe()?;
        super::set_nonblocking(&stderr_reader).map_err(failed("set up a pipe"))?;
        let mut words = Words::listen(stderr_reader, program.path.clone())
            .map_err(failed("watch its stderr"))?;
        let mut command = Command::new(&program.path);
        command
            .args(&program.arguments)
            .env_clear()
            .env("CONTAINER_ID", context.container.as_str())
            .env("CONTAINER_NAMESPACE", context.namespace.as_str())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::from(stderr_writer));
        let setup = ChildSetup {
            fds: vec![(read_out, 3), (read_err, 4), (tell_ready, 5)],
            parent_death_signal: None,
            own_group: true,
        };
        let child = context
            .reaper
            .spawn(command, setup)
            .map_err(failed("start"))?;
        let logger = Self { child: Some(child) };
        let ready = sys::watch(ready, Interest::READABLE).map_err(failed("watch a pipe"))?;
        let answer = ready.async_io(Interest::READABLE, |mut pipe| {
            use std::io::Read as _;
            pipe.read(&mut [0u8; 1])
        });
        let limit = ready_limit();
        let Ok(answer) = tokio::time::timeout(limit, answer).await else {
            return Err(LoggerError::NotReady {
                program: program.path,
                limit,
                words: words.so_far(),
            });
        };
        let read = answer.map_err(failed("wait for its readiness"))?;
        if read == 0 && logger.is_ending() {
            return Err(LoggerError::Ended {
                program: program.path,
                words: words.last().await,
            });
        }
        if read == 0 && program.needs_byte {
            return Err(LoggerError::NoByte {
                program: program.path,
                words: words.so_far(),
            });
        }
        Ok((logger, LoggerPipes { stdout, stderr }))
    }

    /// Whether the pipe ended because the program does: an ending process closes it before it can
    /// be waited for, so that it has not ended *yet* says nothing.
    fn is_ending(&self) -> bool {
        let Some(child) = &self.child else {
            return true;
        };
        let alive = Stat::read(child.process.pid()).is_ok_and(|stat| !stat.is_exiting());
        // Reaped, its pid could be another's by now; its pidfd could not.
        !alive || child.process.signal(0).is_err()
    }

    /// For the slate.
    pub(super) fn record(&self) -> Option<ProcessRecord> {
        self.child.as_ref().map(|child| child.process.record())
    }

    /// One of the image before.
    pub(super) fn restore(
        record: &ProcessRecord,
        reaper: &Arc<Reaper>,
        inherited: &mut Inherited,
    ) -> Self {
        let process = Arc::new(record.restore(inherited));
        Self {
            child: Some(reaper.watch_again(process, false)),
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
        signal_group(&child, Signal::SIGTERM);
        let Ok(event_loop) = tokio::runtime::Handle::try_current() else {
            return;
        };
        event_loop.spawn(async move {
            let mut child = child;
            if tokio::time::timeout(TERM_LIMIT, &mut child.ended)
                .await
                .is_err()
            {
                log::warn!(
                    "logger {} did not end by SIGTERM; killed",
                    child.process.pid()
                );
                signal_group(&child, Signal::SIGKILL);
            }
        });
    }
}

/// Signals a logger that has not been reaped, with what it started.
fn signal_group(child: &Child, signal: Signal) {
    let _ = child.process.signal(signal as i32);
    if let Ok(pid) = i32::try_from(child.process.pid()) {
        let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), signal);
    }
}

/// What a logger says on its stderr: into the shim's log, and the end of it kept for errors.
#[derive(Debug)]
struct Words {
    kept: Arc<Mutex<Vec<u8>>>,
    listening: JoinHandle<()>,
}

impl Words {
    fn listen(pipe: OwnedFd, program: PathBuf) -> io::Result<Self> {
        let pipe = sys::watch(pipe, Interest::READABLE)?;
        let kept = Arc::new(Mutex::new(Vec::new()));
        let keep = Arc::clone(&kept);
        // Ends with the last process that can write into the pipe.
        let listening = tokio::spawn(async move {
            loop {
                let mut buffer = [0u8; 1024];
                let read = pipe.async_io(Interest::READABLE, |mut pipe| {
                    use std::io::Read as _;
                    pipe.read(&mut buffer)
                });
                let Ok(size @ 1..) = read.await else { return };
                let said = buffer.get(..size).unwrap_or_default();
                log::warn!(
                    "logger {}: {}",
                    program.display(),
                    String::from_utf8_lossy(said).trim_end()
                );
                let mut kept = keep.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend_from_slice(said);
                let excess = kept.len().saturating_sub(MAX_WORDS);
                kept.drain(..excess);
            }
        });
        Ok(Self { kept, listening })
    }

    /// For the end of an error's text.
    fn so_far(&self) -> String {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&kept);
        if text.trim().is_empty() {
            "; it said nothing on stderr".to_owned()
        } else {
            format!("; it said: {}", text.trim())
        }
    }

    /// As [`Words::so_far`], of a logger that has ended.
    async fn last(&mut self) -> String {
        let _ = tokio::time::timeout(WORDS_LIMIT, &mut self.listening).await;
        self.so_far()
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
