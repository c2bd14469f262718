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
pub(crate) mod logger;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_record::deadline::limit_from_env;
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use crate::reaper::{ProcessRecord, Reaper};
use crate::resume::descriptor::{Descriptor, Name};
use crate::resume::inherited::Inherited;
use crate::resume::{self, Step};
use crate::runtime::ChildStdio;
use crate::sys;
pub(crate) use copy::Policy;
use copy::{Pump, Sink, Source, copy};
use logger::{Logger, LoggerContext, is_logger};

/// How long the search for who holds output open may take.
const LOOK_LIMIT: Duration = Duration::from_secs(2);
/// Most holders named.
const MAX_HOLDERS: usize = 8;
/// How long a fifo may lack its reader before the start fails.
fn reader_limit() -> Duration {
    limit_from_env("READER", Duration::from_secs(30))
}

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

/// Something outside the process had its output open when the time for it was over.
#[derive(Debug, thiserror::Error)]
#[error("output was still held open {limit:?} after the end, by {}; closed it", .by.join(", "))]
pub(crate) struct Held {
    limit: Duration,
    by: Vec<String>,
}

/// A stream could not be made ready.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StdioError {
    /// A system call.
    #[error("{stream}: {step} {path}")]
    Io {
        /// `stdin`, `stdout`, `stderr` or `terminal`.
        stream: &'static str,
        /// What was tried.
        step: &'static str,
        /// On which file.
        path: PathBuf,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// Nobody opened the other end.
    #[error("{stream}: nobody reads {path} after {limit:?}; does its client still run?")]
    NoReader {
        /// Which stream.
        stream: &'static str,
        /// The fifo.
        path: PathBuf,
        /// See [`reader_limit`].
        limit: Duration,
    },
    /// A scheme that is not served.
    #[error("{stream}: {uri} is not supported; use a fifo, file:// or binary://")]
    Scheme {
        /// Which stream.
        stream: &'static str,
        /// As given.
        uri: String,
    },
    /// A logger.
    #[error(transparent)]
    Logger(#[from] logger::LoggerError),
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

fn io_error(
    stream: &'static str,
    step: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> StdioError {
    let path = path.to_owned();
    move |source| StdioError::Io {
        stream,
        step,
        path,
        source,
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
            let look = tokio::task::spawn_blocking(move || writers_of(&pipes));
            let by = match tokio::time::timeout(LOOK_LIMIT, look).await {
                Ok(Ok(by)) if !by.is_empty() => by,
                Ok(_) | Err(_) => vec!["nobody who can be found".to_owned()],
            };
            Err(Held { limit, by })
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

/// Says now, and not at start, what cannot be served.
///
/// # Errors
/// [`StdioError::Scheme`].
pub(crate) fn check(paths: &StdioPaths) -> Result<(), StdioError> {
    for (stream, path) in [
        ("stdin", &paths.stdin),
        ("stdout", &paths.stdout),
        ("stderr", &paths.stderr),
    ] {
        let scheme = path.split_once("://").map(|(scheme, _)| scheme);
        let served = match scheme {
            None | Some("fifo") => true,
            Some("file") => stream != "stdin",
            // For stderr it is read as stdout's: both streams go to one program.
            Some("binary" | "binary-v2") => is_logger(&paths.stdout),
            Some(_) => false,
        };
        if !served {
            return Err(StdioError::Scheme {
                stream,
                uri: path.clone(),
            });
        }
    }
    Ok(())
}

fn open(path: &Path, mode: OFlag) -> io::Result<OwnedFd> {
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new()
        .read(mode != OFlag::O_WRONLY)
        .write(mode != OFlag::O_RDONLY)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map(OwnedFd::from)
}

/// What the output at `uri` goes to. It comes in the step in which it was opened: a client's fifo that is opened and
/// closed is over for the client.
async fn open_sink(stream: &'static str, uri: &str) -> Result<(Step, Sink), StdioError> {
    use std::os::unix::fs::FileTypeExt as _;
    if let Some(rest) = uri.strip_prefix("file://") {
        let path = Path::new(rest.split('?').next().unwrap_or(rest));
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(io_error(
                stream,
                "create the directory of",
                path,
            ))?;
        }
        return append(stream, path);
    }
    let path = Path::new(uri.strip_prefix("fifo://").unwrap_or(uri));
    let kind = std::fs::metadata(path)
        .map_err(io_error(stream, "look at", path))?
        .file_type();
    if !kind.is_fifo() {
        return append(stream, path);
    }
    // Clients open their end before they call, so this succeeds at once as a rule. The kernel
    // has no event for "a reader has come", so the rare late one is asked for.
    let limit = reader_limit();
    let deadline = tokio::time::Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    while tokio::time::Instant::now() < deadline {
        if let Some(opened) = try_open_fifo(stream, path)? {
            return Ok(opened);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    Err(StdioError::NoReader {
        stream,
        path: path.to_owned(),
        limit,
    })
}

/// None: nobody reads it yet.
fn try_open_fifo(stream: &'static str, path: &Path) -> Result<Option<(Step, Sink)>, StdioError> {
    let step = resume::step();
    let writer = match open(path, OFlag::O_WRONLY) {
        Ok(writer) => writer,
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(None),
        Err(error) => return Err(io_error(stream, "open for writing", path)(error)),
    };
    let keepalive = open(path, OFlag::O_RDONLY).map_err(io_error(stream, "keep open", path))?;
    let sink = Sink::fifo(writer, keepalive).map_err(io_error(stream, "watch", path))?;
    Ok(Some((step, sink)))
}

fn append(stream: &'static str, path: &Path) -> Result<(Step, Sink), StdioError> {
    let step = resume::step();
    let file = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .map_err(io_error(stream, "open for appending", path))?;
    Ok((step, Sink::File(Arc::new(file.into()))))
}

/// A pipe whose end for us does not block and whose other end belongs to the container's user.
fn pipe(stream: &'static str, owner: (u32, u32)) -> Result<(OwnedFd, OwnedFd), StdioError> {
    let failed = |step| io_error(stream, step, Path::new("a pipe"));
    let (reader, writer) =
        nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed("make")(errno.into()))?;
    let ours = if stream == "stdin" { &writer } else { &reader };
    set_nonblocking(ours).map_err(failed("set up"))?;
    if owner != (0, 0) {
        let theirs = if stream == "stdin" { &reader } else { &writer };
        std::os::unix::fs::fchown(theirs, Some(owner.0), Some(owner.1))
            .map_err(failed("give away"))?;
    }
    Ok((reader, writer))
}

fn inode(pipe: &OwnedFd) -> Option<u64> {
    nix::sys::stat::fstat(pipe.as_raw_fd())
        .ok()
        .map(|stat| stat.st_ino)
}

/// The processes, other than ours, that can write into one of these pipes.
fn writers_of(pipes: &[u64]) -> Vec<String> {
    use std::os::unix::fs::MetadataExt as _;
    let names: Vec<PathBuf> = pipes
        .iter()
        .map(|inode| PathBuf::from(format!("pipe:[{inode}]")))
        .collect();
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != std::process::id())
        .filter(|pid| {
            std::fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|files| {
                files.flatten().any(|file| {
                    // The link's permissions are the descriptor's: proc(5).
                    std::fs::read_link(file.path()).is_ok_and(|target| names.contains(&target))
                        && std::fs::symlink_metadata(file.path())
                            .is_ok_and(|link| link.mode() & 0o200 != 0)
                })
            })
        })
        .take(MAX_HOLDERS)
        .map(crate::look::brief)
        .collect()
}

pub(crate) fn set_nonblocking(fd: &impl AsRawFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd.as_raw_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_raw_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
