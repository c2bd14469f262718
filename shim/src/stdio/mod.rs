//! A process' stdin, stdout and stderr.
//!
//! For fifos (what every client uses) the shim stands between: the process has pipes or a
//! terminal, the client has the fifos, and a task per stream copies on the event loop. The
//! shim keeps both ends of each fifo open, so a client that goes away neither kills the
//! process with SIGPIPE nor loses output; what it has not read waits in the fifo.
//!
//! | stream | given as | the process gets |
//! |---|---|---|
//! | any | empty | /dev/null |
//! | out, err | path of a fifo | pipe, copied |
//! | out, err | other path, `file://` | pipe, appended to the file |
//! | out, err | `binary://`, `binary-v2://` | pipe, read by that program (see [`logger`]) |
//! | all | terminal | a pty; its master is copied from and to the fifos |
//!
//! Nothing here holds back an exit: copying goes on after the process has ended until its
//! last writer is gone, and Delete waits a bounded time for that ([`ProcessIo::drain`]).

pub(crate) mod console;
mod copy;
mod error;
mod holders;
pub(crate) mod logger;
mod opening;
mod sink;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use crate::reaper::{ProcessRecord, Reaper};
use crate::resume;
use crate::resume::descriptor::{Descriptor, Name};
use crate::resume::inherited::Inherited;
use crate::runtime::ChildStdio;
use crate::sys;
use copy::{Pump, copy};
pub(crate) use error::StdioError;
use error::io_error;
use holders::{Held, inode};
use logger::{Logger, LoggerContext, is_logger};
pub(crate) use opening::{check, set_nonblocking};
use opening::{open, open_sink, pipe};
pub(crate) use sink::Policy;
use sink::{Sink, Source};

/// How a client wants a process' stdio, as it came with the RPC.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StdioPaths {
    /// stdin.
    pub(crate) stdin: String,
    /// stdout.
    pub(crate) stdout: String,
    /// stderr.
    pub(crate) stderr: String,
    /// Whether the process gets a terminal.
    pub(crate) terminal: bool,
}

/// How a process' stdio is to be set up, beside where it goes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct StdioSetup {
    /// User and group that own the pipes.
    pub(crate) owner: (u32, u32),
    /// For output that is not taken; none: files drop, everything else blocks.
    pub(crate) policy: Option<Policy>,
}

impl StdioSetup {
    fn policy_of(self, sink: &Sink) -> Policy {
        self.policy.unwrap_or(match sink {
            // A full disk is nobody's flow control.
            Sink::File(_) => Policy::drop(),
            Sink::Pipe(_) | Sink::Fifo { .. } | Sink::Nowhere => Policy::Block,
        })
    }
}

/// Places of the streams in a process' table.
const STDIN: usize = 0;
const STDOUT: usize = 1;
const STDERR: usize = 2;

fn name_of(stream: usize) -> &'static str {
    match stream {
        STDIN => "stdin",
        STDOUT => "stdout",
        _ => "stderr",
    }
}

/// The shim's side of one process' stdio. Dropping it closes everything.
#[derive(Debug)]
pub(crate) struct ProcessIo {
    /// Under which it lies on the slate.
    number: u64,
    inner: Mutex<Inner>,
}

/// A process' stdio as the slate has it.
#[derive(Debug, Default, Serialize, Deserialize)]
struct IoRecord {
    keepalive: Option<Name>,
    stdin_closed: bool,
    terminal: Option<Name>,
    output: Vec<u64>,
    input: Option<u64>,
    logger: Option<ProcessRecord>,
    pipes: Vec<u64>,
    theirs: [Option<Name>; 3],
}

/// The number of the latest one.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// Lets no number be given again that the image before has given.
pub(crate) fn number_after(inherited: &Inherited) {
    NUMBER.fetch_max(inherited.highest("io/"), Ordering::Relaxed);
    copy::number_after(inherited);
}

impl Default for ProcessIo {
    fn default() -> Self {
        Self {
            number: NUMBER.fetch_add(1, Ordering::Relaxed) + 1,
            inner: Mutex::default(),
        }
    }
}

impl Drop for ProcessIo {
    fn drop(&mut self) {
        resume::remove(&self.key());
    }
}

#[derive(Debug, Default)]
struct Inner {
    /// The shim's own writer of the stdin fifo: while it is open the process sees no EOF.
    stdin_keepalive: Option<Descriptor>,
    /// CloseIO came before the fifo was opened.
    stdin_closed: bool,
    terminal: Option<Descriptor>,
    output: Vec<JoinHandle<()>>,
    logger: Option<Logger>,
    /// Inodes of the pipes that the process writes into.
    pipes: Vec<u64>,
    input: Option<JoinHandle<()>>,
    /// The process' ends of its stdin, stdout and stderr, until a runtime has them. A client's fifo that is
    /// open is never opened anew: with the first close it is over for the client.
    theirs: [Option<Descriptor>; 3],
    /// Numbers of the streams.
    pumps: Vec<u64>,
    input_pump: Option<u64>,
}

impl Inner {
    fn copy_output(&mut self, pump: Pump) {
        self.pumps.push(pump.number());
        self.output.push(tokio::spawn(copy(pump)));
    }

    fn copy_input(&mut self, pump: Pump) {
        self.input_pump = Some(pump.number());
        self.input = Some(tokio::spawn(copy(pump)));
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for task in self.output.iter().chain(&self.input) {
            task.abort();
        }
    }
}

impl ProcessIo {
    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(&self) -> String {
        format!("io/{}", self.number)
    }

    /// Its number on the slate.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Puts what it holds on the slate.
    fn keep(&self, inner: &Inner) {
        if !resume::is_on() {
            return;
        }
        let record = IoRecord {
            keepalive: inner.stdin_keepalive.as_ref().map(Descriptor::name),
            stdin_closed: inner.stdin_closed,
            terminal: inner.terminal.as_ref().map(Descriptor::name),
            output: inner.pumps.clone(),
            input: inner.input_pump,
            logger: inner.logger.as_ref().and_then(Logger::record),
            pipes: inner.pipes.clone(),
            theirs: inner
                .theirs
                .each_ref()
                .map(|end| end.as_ref().map(Descriptor::name)),
        };
        resume::put_json(&self.key(), &record);
    }

    /// The stdio of a process of the image before; a fresh one if there is none of that number.
    pub(crate) fn restore(number: u64, reaper: &Arc<Reaper>, inherited: &mut Inherited) -> Self {
        let io = Self {
            number,
            inner: Mutex::default(),
        };
        let Some(record) = inherited.json::<IoRecord>(&io.key()) else {
            return io;
        };
        {
            let mut inner = io.inner();
            let mut take = |name: Option<Name>| {
                name.and_then(|name| {
                    inherited
                        .descriptor(name)
                        .inspect_err(|error| log::error!("{}: {name:?}: {error}", io.key()))
                        .ok()
                })
            };
            inner.stdin_keepalive = take(record.keepalive);
            inner.stdin_closed = record.stdin_closed;
            inner.terminal = take(record.terminal);
            inner.theirs = record.theirs.map(&mut take);
            inner.pipes = record.pipes;
            inner.logger = record
                .logger
                .map(|logger| Logger::restore(&logger, reaper, inherited));
            for pump in record.output {
                if let Some(pump) = Pump::restore(pump, inherited) {
                    inner.copy_output(pump);
                }
            }
            if let Some(pump) = record.input.and_then(|pump| Pump::restore(pump, inherited)) {
                inner.copy_input(pump);
            }
            io.keep(&inner);
        }
        io
    }

    /// CloseIO: gives up the shim's own writer of stdin. May come before the start.
    pub(crate) fn close_stdin(&self) {
        let _step = resume::step();
        let mut inner = self.inner();
        inner.stdin_closed = true;
        inner.stdin_keepalive = None;
        self.keep(&inner);
    }

    /// Sets the size of the terminal; nothing to do without one.
    ///
    /// # Errors
    /// See ioctl_tty(2).
    pub(crate) fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        match &self.inner().terminal {
            Some(master) => sys::set_window_size(master.as_fd(), rows, columns),
            None => Ok(()),
        }
    }

    /// Waits until all output has been copied, at most `limit`, then closes everything.
    ///
    /// # Errors
    /// [`Held`] when something still held the output open, with its name.
    pub(crate) async fn drain(&self, limit: Duration) -> Result<(), Held> {
        let (output, mut logger, pipes) = {
            let mut inner = self.inner();
            (
                std::mem::take(&mut inner.output),
                inner.logger.take(),
                std::mem::take(&mut inner.pipes),
            )
        };
        let aborts: Vec<_> = output.iter().map(JoinHandle::abort_handle).collect();
        let all = async {
            for task in output {
                let _ = task.await;
            }
            if let Some(logger) = &mut logger {
                logger.finish().await;
            }
        };
        let result = if tokio::time::timeout(limit, all).await.is_ok() {
            Ok(())
        } else {
            Err(Held::of(pipes, limit).await)
        };
        for task in aborts {
            task.abort();
        }
        let _step = resume::step();
        let mut inner = self.inner();
        *inner = Inner::default();
        inner.stdin_closed = true;
        self.keep(&inner);
        result
    }

    /// The runtime has the process' ends now. In the step in which it was started.
    pub(crate) fn given(&self) {
        let mut inner = self.inner();
        inner.theirs = Default::default();
        self.keep(&inner);
    }

    /// Whether the terminal's master is here, and copied.
    pub(crate) fn has_terminal(&self) -> bool {
        self.inner().terminal.is_some()
    }

    fn has(&self, stream: usize) -> bool {
        self.inner().theirs.get(stream).is_some_and(Option::is_some)
    }

    /// Opens what the process of `paths` needs without a terminal, and starts copying. What the image
    /// before has opened is not opened again.
    ///
    /// # Errors
    /// [`StdioError`].
    pub(crate) async fn open(
        &self,
        paths: &StdioPaths,
        setup: StdioSetup,
        context: &LoggerContext,
    ) -> Result<ChildStdio, StdioError> {
        if !is_logger(&paths.stdin) {
            self.open_stdin(&paths.stdin, setup.owner)?;
        }
        if is_logger(&paths.stdout) {
            self.open_logger(&paths.stdout, setup.owner, context)
                .await?;
        } else {
            self.open_output(STDOUT, &paths.stdout, setup).await?;
            self.open_output(STDERR, &paths.stderr, setup).await?;
        }
        let inner = self.inner();
        let end = |stream: usize| {
            let end = inner.theirs.get(stream).and_then(Option::as_ref);
            let failed = io_error(name_of(stream), "duplicate", Path::new("a pipe"));
            end.map(|end| end.try_clone().map(OwnedFd::from))
                .transpose()
                .map_err(failed)
        };
        Ok(ChildStdio {
            stdin: end(STDIN)?,
            stdout: end(STDOUT)?,
            stderr: end(STDERR)?,
        })
    }

    async fn open_logger(
        &self,
        uri: &str,
        owner: (u32, u32),
        context: &LoggerContext,
    ) -> Result<(), StdioError> {
        if self.has(STDOUT) {
            return Ok(());
        }
        let (logger, pipes) = Logger::start(uri, context, owner).await?;
        let _step = resume::step();
        let mut inner = self.inner();
        inner.logger = Some(logger);
        inner.pipes = [&pipes.stdout, &pipes.stderr]
            .into_iter()
            .filter_map(inode)
            .collect();
        let [_, stdout, stderr] = &mut inner.theirs;
        *stdout = Some(pipes.stdout.into());
        *stderr = Some(pipes.stderr.into());
        self.keep(&inner);
        Ok(())
    }

    fn open_stdin(&self, path: &str, owner: (u32, u32)) -> Result<(), StdioError> {
        if path.is_empty() || self.has(STDIN) {
            return Ok(());
        }
        let _step = resume::step();
        let (process, ours) = pipe("stdin", owner)?;
        let fifo = self.stdin_fifo(path)?;
        let sink =
            Sink::pipe(ours).map_err(io_error("stdin", "watch the pipe of", Path::new(path)))?;
        let source = Source::new(fifo).map_err(io_error("stdin", "watch", Path::new(path)))?;
        let mut inner = self.inner();
        inner.copy_input(Pump::new("stdin", source, sink, Policy::Block));
        let [stdin, ..] = &mut inner.theirs;
        *stdin = Some(process.into());
        self.keep(&inner);
        Ok(())
    }

    /// The reading end of the stdin fifo; keeps a writer unless CloseIO has come already.
    fn stdin_fifo(&self, path: &str) -> Result<OwnedFd, StdioError> {
        let path = Path::new(path);
        let reader =
            open(path, OFlag::O_RDONLY).map_err(io_error("stdin", "open for reading", path))?;
        let keepalive =
            open(path, OFlag::O_WRONLY).map_err(io_error("stdin", "open for writing", path))?;
        let mut inner = self.inner();
        if !inner.stdin_closed {
            inner.stdin_keepalive = Some(keepalive.into());
            self.keep(&inner);
        }
        Ok(reader)
    }

    async fn open_output(
        &self,
        stream: usize,
        path: &str,
        setup: StdioSetup,
    ) -> Result<(), StdioError> {
        if path.is_empty() || self.has(stream) {
            return Ok(());
        }
        let name = name_of(stream);
        let (_step, sink) = open_sink(name, path).await?;
        let (ours, process) = pipe(name, setup.owner)?;
        let inode = inode(&ours);
        let source =
            Source::new(ours).map_err(io_error(name, "watch the pipe of", Path::new(path)))?;
        let policy = setup.policy_of(&sink);
        let mut inner = self.inner();
        inner.pipes.extend(inode);
        inner.copy_output(Pump::new(name, source, sink, policy));
        if let Some(end) = inner.theirs.get_mut(stream) {
            *end = Some(process.into());
        }
        self.keep(&inner);
        Ok(())
    }

    /// Connects a terminal's master to the fifos of `paths` and starts copying; `attached` is called in the
    /// step in which that is on the slate.
    ///
    /// # Errors
    /// [`StdioError`].
    pub(crate) async fn attach(
        &self,
        paths: &StdioPaths,
        master: Descriptor,
        setup: StdioSetup,
        context: &LoggerContext,
        attached: impl FnOnce(),
    ) -> Result<(), StdioError> {
        let terminal = Path::new("the terminal");
        let clone = |master: &Descriptor| {
            master
                .try_clone()
                .map_err(io_error("terminal", "duplicate", terminal))
        };
        set_nonblocking(&*master).map_err(io_error("terminal", "make non-blocking", terminal))?;
        // From the opening of a fifo, and the first byte that is read here, all has to be on the slate.
        let (_step, sink) = if paths.stdout.is_empty() {
            (resume::step(), Sink::Nowhere)
        } else if is_logger(&paths.stdout) {
            let (logger, pipes) = Logger::start(&paths.stdout, context, (0, 0)).await?;
            let step = resume::step();
            self.inner().logger = Some(logger);
            set_nonblocking(&pipes.stdout).map_err(io_error(
                "terminal",
                "set up the pipe of",
                terminal,
            ))?;
            let sink = Sink::pipe(pipes.stdout).map_err(io_error(
                "terminal",
                "watch the pipe of",
                terminal,
            ))?;
            (step, sink)
        } else {
            open_sink("stdout", &paths.stdout).await?
        };
        let source =
            Source::new(clone(&master)?).map_err(io_error("terminal", "watch", terminal))?;
        let policy = setup.policy_of(&sink);
        self.inner()
            .copy_output(Pump::new("terminal", source, sink, policy));
        if !paths.stdin.is_empty() && !is_logger(&paths.stdin) {
            let fifo = self.stdin_fifo(&paths.stdin)?;
            let path = Path::new(&paths.stdin);
            let source = Source::new(fifo).map_err(io_error("stdin", "watch", path))?;
            let sink =
                Sink::pipe(clone(&master)?).map_err(io_error("terminal", "watch", terminal))?;
            self.inner()
                .copy_input(Pump::new("stdin", source, sink, Policy::Block));
        }
        let mut inner = self.inner();
        inner.terminal = Some(master);
        self.keep(&inner);
        attached();
        Ok(())
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
