//! Runs the OCI runtime as a short-lived child, with a deadline.
//!
//! `holdfast` is asked to register before it runs (the barrier of
//! [`holdfast_record::barrier`]); any other runtime names the pid in its pid file afterwards.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use holdfast_record::barrier::{self, Frame};
use holdfast_record::reason::TimedOut;
use holdfast_record::{ContainerId, Deadline, ExitStatus, Namespace, Reason, Signal};

use crate::fault::{Fault, chain};
use crate::look::describe;
use crate::options::Options;
use crate::reaper::{AdoptError, Child, Launch, Reaper};
use crate::sys::{self, ChildSetup};

/// Where `holdfast` keeps its state when the options say nothing.
const HOLDFAST_ROOT: &str = "/run/holdfast";
/// Where containerd has always let other runtimes keep theirs.
const FOREIGN_ROOT: &str = "/run/containerd/runc";
/// Number of the barrier's descriptor in the runtime.
const BARRIER_FD: i32 = 3;
/// Most bytes of the runtime's log that are looked at.
const MAX_LOG: u64 = 256 * 1024;

/// Whether the runtime speaks the barrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flavour {
    Holdfast,
    Foreign,
}

/// One container's OCI runtime.
#[derive(Debug, Clone)]
pub(crate) struct Runtime {
    binary: PathBuf,
    flavour: Flavour,
    root: PathBuf,
    systemd_cgroup: bool,
    /// What `holdfast create` is told about GPUs.
    gpu: Option<String>,
    bundle: PathBuf,
    namespace: String,
    id: ContainerId,
}

/// A call of the runtime that did not succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RuntimeError {
    /// It could not be started at all.
    #[error("run {binary}")]
    Spawn {
        /// The program.
        binary: PathBuf,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// It ran and failed.
    #[error("{text}")]
    Failed {
        /// Its own words.
        text: String,
        /// What it says for the records, if it is ours.
        reason: Option<Box<Reason>>,
    },
    /// It was ended by a signal before it could say anything.
    #[error("{binary}: {verb} was ended by {signal}")]
    Killed {
        /// The program.
        binary: PathBuf,
        /// `create`, `start`, …
        verb: &'static str,
        /// Which signal.
        signal: Signal,
    },
    /// It did not finish in time and was killed.
    #[error("{verb} did not finish within {limit:?} and was killed; it was {state}")]
    Deadline {
        /// `create`, `start`, …
        verb: &'static str,
        /// The deadline.
        limit: Duration,
        /// What it was doing.
        state: String,
    },
    /// It succeeded without telling which process it made.
    #[error("{verb}: the runtime told no pid in {path}")]
    NoPid {
        /// `create` or `exec`.
        verb: &'static str,
        /// The pid file.
        path: PathBuf,
        /// Why it could not be read.
        #[source]
        source: io::Error,
    },
    /// The process it made could not be taken over.
    #[error("{verb}: take over the process")]
    Adopt {
        /// `create` or `exec`.
        verb: &'static str,
        /// Why.
        #[source]
        source: AdoptError,
    },
    /// The barrier broke.
    #[error("{verb}: the barrier between shim and runtime")]
    Barrier {
        /// `create` or `exec`.
        verb: &'static str,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// The owner of the container gave up.
    #[error("{verb}: the container is going away")]
    GivenUp {
        /// `create` or `exec`.
        verb: &'static str,
    },
}

impl RuntimeError {
    /// As an RPC's answer, after containerd's words for the operation.
    pub(crate) fn fault(&self, what: &str) -> Fault {
        let text = format!("{what}: {}", chain(self));
        let mut fault = match self {
            Self::Deadline { .. } => Fault::deadline(text),
            Self::Spawn { .. }
            | Self::Failed { .. }
            | Self::Killed { .. }
            | Self::NoPid { .. }
            | Self::Adopt { .. }
            | Self::Barrier { .. }
            | Self::GivenUp { .. } => Fault::unknown(text),
        };
        fault.reason = self.reason();
        fault
    }

    /// For the records, where this says more than that the operation failed.
    fn reason(&self) -> Option<Box<Reason>> {
        match self {
            Self::Failed { reason, .. } => reason.clone(),
            Self::Killed { verb, signal, .. } => Some(Box::new(Reason::RuntimeKilled {
                operation: (*verb).to_owned(),
                signal: *signal,
            })),
            Self::Deadline { verb, limit, state } => {
                let timed_out = TimedOut {
                    step: format!("the runtime's {verb}, which was {state}"),
                    waited: *limit,
                    process: None,
                };
                Some(Box::new(match *verb {
                    "exec" => Reason::ExecTimedOut(timed_out),
                    _ => Reason::CreateTimedOut(timed_out),
                }))
            }
            Self::Spawn { .. }
            | Self::NoPid { .. }
            | Self::Adopt { .. }
            | Self::Barrier { .. }
            | Self::GivenUp { .. } => None,
        }
    }
}

/// Descriptors for the runtime's stdin, stdout and stderr, which `create` and `exec` hand on.
#[derive(Debug, Default)]
pub(crate) struct ChildStdio {
    /// For descriptor 0; none: /dev/null.
    pub(crate) stdin: Option<OwnedFd>,
    /// For descriptor 1.
    pub(crate) stdout: Option<OwnedFd>,
    /// For descriptor 2.
    pub(crate) stderr: Option<OwnedFd>,
}

/// One call.
#[derive(Debug)]
pub(crate) struct Call {
    /// The verb, for errors.
    pub(crate) verb: &'static str,
    /// Its arguments, the container's id excluded.
    pub(crate) arguments: Vec<OsString>,
    /// What the process inherits.
    pub(crate) stdio: ChildStdio,
    /// How long it may take.
    pub(crate) limit: Duration,
}

impl Call {
    /// A call with nothing on stdio.
    pub(crate) fn new(verb: &'static str, limit: Duration) -> Self {
        Self {
            verb,
            arguments: Vec::new(),
            stdio: ChildStdio::default(),
            limit,
        }
    }

    /// Adds an argument.
    pub(crate) fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }
}

/// The program that `name` means: `holdfast` beside the shim when empty.
pub(crate) fn find_binary(name: &str) -> PathBuf {
    if !name.is_empty() {
        return PathBuf::from(name);
    }
    if let Some(forced) = std::env::var_os("HOLDFAST_RUNTIME") {
        return PathBuf::from(forced);
    }
    std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.join("holdfast")))
        .filter(|beside| beside.is_file())
        .unwrap_or_else(|| PathBuf::from("holdfast"))
}

/// Program and arguments that delete a container by force, for the `delete` action.
pub(crate) fn delete_arguments(
    options: &Options,
    namespace: &Namespace,
    id: &ContainerId,
    bundle: &Path,
) -> (PathBuf, Vec<OsString>) {
    let runtime = Runtime::new(options, namespace, id, bundle);
    let mut call = Call::new("delete", Duration::ZERO).arg("--force");
    let command = runtime.command(&mut call, &bundle.join("log.json"));
    (
        runtime.binary.clone(),
        command.get_args().map(Into::into).collect(),
    )
}

impl Runtime {
    /// The runtime that `options` name, for one container.
    pub(crate) fn new(
        options: &Options,
        namespace: &Namespace,
        id: &ContainerId,
        bundle: &Path,
    ) -> Self {
        let (name, gpu) = options.binary_and_gpu();
        let binary = find_binary(name);
        let ours = binary
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("holdfast"));
        let root = match (options.root.as_str(), ours) {
            ("", true) => Path::new(HOLDFAST_ROOT),
            ("", false) => Path::new(FOREIGN_ROOT),
            (root, _) => Path::new(root),
        };
        Self {
            flavour: if ours {
                Flavour::Holdfast
            } else {
                Flavour::Foreign
            },
            root: root.join(namespace.as_str()),
            systemd_cgroup: options.systemd_cgroup,
            gpu: gpu.filter(|_| ours).map(str::to_owned),
            bundle: bundle.to_owned(),
            namespace: namespace.to_string(),
            id: id.clone(),
            binary,
        }
    }

    /// Whether it has the verb `checkpoint`.
    pub(crate) fn can_checkpoint(&self) -> bool {
        self.flavour == Flavour::Foreign
    }

    fn command(&self, call: &mut Call, log: &Path) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .arg("--root")
            .arg(&self.root)
            .arg("--log")
            .arg(log)
            .args(["--log-format", "json"]);
        if self.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        if let Some(gpu) = self.gpu.as_deref().filter(|_| call.verb == "create") {
            command.args(["--gpu", gpu]);
        }
        command
            .arg(call.verb)
            .args(&call.arguments)
            .arg(self.id.as_str());
        let stdio = |fd: Option<OwnedFd>| fd.map_or_else(Stdio::null, Stdio::from);
        let ChildStdio {
            stdin,
            stdout,
            stderr,
        } = std::mem::take(&mut call.stdio);
        command
            .stdin(stdio(stdin))
            .stdout(stdio(stdout))
            .stderr(stdio(stderr))
            .current_dir(&self.bundle)
            .env(barrier::NAMESPACE_ENV, &self.namespace)
            .env_remove("NOTIFY_SOCKET")
            .env_remove(barrier::ENV)
            .env_remove(crate::server::SOCKET_VARIABLE);
        command
    }

    /// A log of its own for each call, so that one call's error is never taken for another's.
    fn log_path(&self, verb: &str) -> PathBuf {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        self.bundle.join(format!("{verb}-{number}.log.json"))
    }

    /// Runs a verb that makes no process.
    ///
    /// # Errors
    /// [`RuntimeError`].
    pub(crate) async fn run(&self, reaper: &Reaper, mut call: Call) -> Result<(), RuntimeError> {
        let log = self.log_path(call.verb);
        let command = self.command(&mut call, &log);
        let setup = ChildSetup {
            parent_death_signal: Some(libc::SIGKILL),
            own_group: true,
            ..ChildSetup::default()
        };
        let result = async {
            let mut working = self.spawn(reaper, command, setup)?;
            let deadline = Deadline::after(call.limit, call.verb);
            let status = finish(&mut working, &deadline, call.verb).await?;
            self.judge(call.verb, status, &log, None, None)
        }
        .await;
        let _ = std::fs::remove_file(&log);
        result
    }

    /// Runs a verb that makes a process (`create`, `exec`). `register` is called with the
    /// process as soon as it is known, at the latest when the runtime has succeeded; with
    /// `holdfast` the process runs nothing before `register` is done.
    ///
    /// # Errors
    /// [`RuntimeError`]; what the runtime made is then gone or killed.
    pub(crate) async fn make<F>(
        &self,
        reaper: &Arc<Reaper>,
        mut call: Call,
        pid_file: &Path,
        register: impl Fn(Child) -> F,
    ) -> Result<(), RuntimeError>
    where
        F: Future<Output = bool>,
    {
        let verb = call.verb;
        let log = self.log_path(verb);
        call.arguments.push("--pid-file".into());
        call.arguments.push(pid_file.into());
        let command = self.command(&mut call, &log);
        let launch = reaper.launch();
        let deadline = Deadline::after(call.limit, verb);
        let result = match self.flavour {
            Flavour::Holdfast => {
                self.make_behind_barrier(reaper, command, &launch, verb, &log, &deadline, &register)
                    .await
            }
            Flavour::Foreign => {
                async {
                    let setup = ChildSetup {
                        parent_death_signal: Some(libc::SIGKILL),
                        own_group: true,
                        ..ChildSetup::default()
                    };
                    let mut working = self.spawn(reaper, command, setup)?;
                    let status = finish(&mut working, &deadline, verb).await?;
                    self.judge(verb, status, &log, None, None)?;
                    let pid = read_pid(pid_file).map_err(|source| RuntimeError::NoPid {
                        verb,
                        path: pid_file.to_owned(),
                        source,
                    })?;
                    let child = launch
                        .adopt(pid, None)
                        .map_err(|source| RuntimeError::Adopt { verb, source })?;
                    if register(child).await {
                        Ok(())
                    } else {
                        Err(RuntimeError::GivenUp { verb })
                    }
                }
                .await
            }
        };
        let _ = std::fs::remove_file(&log);
        result
    }

    #[allow(clippy::too_many_arguments)] // one step of `make`, split for length only
    async fn make_behind_barrier<F>(
        &self,
        reaper: &Arc<Reaper>,
        mut command: Command,
        launch: &Launch,
        verb: &'static str,
        log: &Path,
        deadline: &Deadline,
        register: impl Fn(Child) -> F,
    ) -> Result<(), RuntimeError>
    where
        F: Future<Output = bool>,
    {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
        let broken = |source: io::Error| RuntimeError::Barrier { verb, source };
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        )
        .map_err(|errno| broken(errno.into()))?;
        // Theirs blocks: the runtime waits for the answer.
        set_blocking(&theirs).map_err(broken)?;
        command.env(barrier::ENV, BARRIER_FD.to_string());
        let setup = ChildSetup {
            fds: vec![(theirs, BARRIER_FD)],
            parent_death_signal: Some(libc::SIGKILL),
            own_group: true,
        };
        let mut working = self.spawn(reaper, command, setup)?;
        let socket = sys::watch(ours, tokio::io::Interest::READABLE).map_err(broken)?;
        let mut failed = None;
        let mut reason = None;
        let mut ended = None;
        let mut registered = false;
        let mut buffer = vec![0u8; barrier::MAX_FRAME];
        loop {
            let received = if ended.is_some() {
                // All its frames are here; end of file may be long in coming if a child of
                // it holds the socket, too.
                sys::receive_with_fd(socket.get_ref().as_fd(), &mut buffer)
            } else {
                tokio::select! {
                    biased;
                    received = socket.async_io(tokio::io::Interest::READABLE, |fd| {
                        sys::receive_with_fd(fd.as_fd(), &mut buffer)
                    }) => received,
                    () = tokio::time::sleep(deadline.remaining()) => {
                        return Err(overdue(&working, deadline, verb).await);
                    }
                    status = working.end(verb) => {
                        ended = Some(status?);
                        continue;
                    }
                }
            };
            let received = match received {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // It ended without reading our answer. Said once; its frames come after.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => continue,
                Err(error) => return Err(broken(error)),
            };
            if received.len == 0 {
                break;
            }
            match Frame::decode(buffer.get(..received.len).unwrap_or_default()) {
                Ok(Frame::Registered { pid }) => {
                    let made = launch
                        .adopt(pid, received.fd)
                        .map_err(|source| RuntimeError::Adopt { verb, source })?;
                    if !register(made).await {
                        // Without the answer the runtime kills what it made.
                        drop(socket);
                        let _ = finish(&mut working, deadline, verb).await;
                        return Err(RuntimeError::GivenUp { verb });
                    }
                    registered = true;
                    let sent = nix::sys::socket::send(
                        socket.get_ref().as_raw_fd(),
                        &[barrier::ACK],
                        nix::sys::socket::MsgFlags::MSG_NOSIGNAL,
                    );
                    if let Err(errno) = sent {
                        log::debug!("{verb}: the runtime ended at the barrier: {errno}");
                    }
                }
                Ok(Frame::Failed { text }) => failed = Some(text),
                Ok(Frame::Reason(told)) => reason = Some(told),
                Err(error) => log::warn!("{verb}: a frame of the runtime: {error}"),
            }
        }
        let status = match ended {
            Some(status) => status,
            None => finish(&mut working, deadline, verb).await?,
        };
        self.judge(verb, status, log, failed, reason)?;
        if registered {
            Ok(())
        } else {
            Err(RuntimeError::Failed {
                text: format!("{verb}: the runtime registered no process"),
                reason: None,
            })
        }
    }

    fn spawn(
        &self,
        reaper: &Reaper,
        command: Command,
        setup: ChildSetup,
    ) -> Result<Working, RuntimeError> {
        let child = reaper
            .spawn(command, setup)
            .map_err(|source| RuntimeError::Spawn {
                binary: self.binary.clone(),
                source,
            })?;
        Ok(Working {
            child,
            ended: false,
        })
    }

    fn judge(
        &self,
        verb: &'static str,
        status: ExitStatus,
        log: &Path,
        failed: Option<String>,
        reason: Option<Box<Reason>>,
    ) -> Result<(), RuntimeError> {
        if status.success() {
            return Ok(());
        }
        let (logged, logged_reason) = last_error(log);
        let text = match (failed.or(logged), status.signal()) {
            (Some(text), _) => text,
            (None, Some(signal)) => {
                return Err(RuntimeError::Killed {
                    binary: self.binary.clone(),
                    verb,
                    signal,
                });
            }
            (None, None) => format!(
                "{} ended with {status} and gave no reason",
                self.binary.display()
            ),
        };
        Err(RuntimeError::Failed {
            text,
            reason: reason.or(logged_reason),
        })
    }
}

fn set_blocking(fd: &OwnedFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(fd.as_raw_fd(), FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok(())
}

/// A runtime at work. Dropped before its end it is killed with all it started: the one who
/// waited for it has been given up.
#[derive(Debug)]
struct Working {
    child: Child,
    ended: bool,
}

impl Working {
    /// Its end.
    async fn end(&mut self, verb: &'static str) -> Result<ExitStatus, RuntimeError> {
        // The reaper tells every end; a closed channel means that it was told before.
        let ended = (&mut self.child.ended)
            .await
            .map_err(|_| RuntimeError::GivenUp { verb })?;
        self.ended = true;
        Ok(ended.status)
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        if !self.ended {
            kill_group(&self.child);
        }
    }
}

/// Waits for the runtime's end; when the time is over it and its hooks are killed.
async fn finish(
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
async fn overdue(working: &Working, deadline: &Deadline, verb: &'static str) -> RuntimeError {
    // Before it is killed; afterwards there is nothing to see.
    let state = describe(working.child.process.pid()).await;
    kill_group(&working.child);
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

fn read_pid(path: &Path) -> io::Result<u32> {
    std::fs::read_to_string(path)?
        .trim()
        .parse()
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

/// The message of the last entry with level `error`, as runc and crun write them, and the last reason, as `holdfast`
/// adds it.
fn last_error(log: &Path) -> (Option<String>, Option<Box<Reason>>) {
    use io::Read as _;
    #[derive(serde::Deserialize)]
    struct Entry {
        #[serde(default)]
        level: String,
        #[serde(default)]
        msg: String,
        #[serde(default)]
        reason: Option<serde_json::Value>,
    }
    let mut text = String::new();
    let read =
        std::fs::File::open(log).and_then(|file| file.take(MAX_LOG).read_to_string(&mut text));
    if read.is_err() {
        return (None, None);
    }
    let (mut error, mut reason) = (None, None);
    for line in text.lines() {
        let Ok(entry) = serde_json::from_str::<Entry>(line) else {
            continue;
        };
        if entry.level == "error" && !entry.msg.is_empty() {
            error = Some(entry.msg);
        }
        // One that a newer runtime has invented is none for us.
        reason = entry
            .reason
            .and_then(|reason| serde_json::from_value(reason).ok())
            .map(Box::new)
            .or(reason);
    }
    (error, reason)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_last_error_of_the_log_is_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log.json");
        assert_eq!(last_error(&log), (None, None));
        std::fs::write(
            &log,
            "{\"level\":\"error\",\"msg\":\"first\"}\nnoise\n{\"level\":\"error\",\"msg\":\"second\"}\n{\"level\":\"info\",\"msg\":\"x\"}\n\
             {\"level\":\"warning\",\"msg\":\"\",\"reason\":{\"code\":\"HF101\",\"evidence\":{\"code\":7}}}\n\
             {\"level\":\"warning\",\"msg\":\"\",\"reason\":{\"code\":\"HF999\"}}\n",
        )
        .unwrap();
        let (error, reason) = last_error(&log);
        assert_eq!(error.as_deref(), Some("second"));
        assert_eq!(reason, Some(Box::new(Reason::Exited { code: 7 })));
    }
}
