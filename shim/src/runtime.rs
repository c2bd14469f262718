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
use crate::reaper::{AdoptError, Child, Launch, ProcessRecord, Reaper, forget_end};
use crate::resume::inherited::Inherited;
use crate::resume::{self, image};
use crate::stdio::console::{ConsoleRecord, ConsoleSocket};
use crate::sys::{self, ChildSetup};
use serde::{Deserialize, Serialize};
use std::fs::File;
use tokio::io::unix::AsyncFd;

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
    gpu_config: Option<PathBuf>,
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
    /// As what it is kept for the next image ([`job_key`]); none: it is done again by whoever needs it.
    pub(crate) kept: Option<String>,
    /// Where its terminal comes from, for the next image.
    pub(crate) console: Option<ConsoleRecord>,
}

impl Call {
    /// A call with nothing on stdio.
    pub(crate) fn new(verb: &'static str, limit: Duration) -> Self {
        Self {
            verb,
            arguments: Vec::new(),
            stdio: ChildStdio::default(),
            limit,
            kept: None,
            console: None,
        }
    }

    /// Keeps it for the next image.
    pub(crate) fn kept(mut self, what: impl Into<String>) -> Self {
        self.kept = Some(what.into());
        self
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

/// A runtime at work, as the slate has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Job {
    verb: String,
    child: ProcessRecord,
    log: PathBuf,
    /// When its time is over, milliseconds since 1970.
    until: u64,
    /// Our end of the barrier.
    socket: Option<i32>,
    pid_file: PathBuf,
    /// The process it has made.
    registered: Option<ProcessRecord>,
    /// Whether it knows that we know.
    acknowledged: bool,
    failed: Option<String>,
    #[serde(default)]
    reason: Option<Box<Reason>>,
    ended: Option<ExitStatus>,
    /// Where the terminal comes from.
    pub(crate) console: Option<ConsoleRecord>,
}

/// A job of the image before.
#[derive(Debug)]
pub(crate) struct RestoredJob {
    key: String,
    job: Job,
    child: Option<Child>,
    socket: Option<OwnedFd>,
    registered: Option<(u32, Option<OwnedFd>)>,
    /// See [`Job`].
    pub(crate) console: Option<ConsoleSocket>,
    /// The terminal, if it has come.
    pub(crate) master: Option<OwnedFd>,
    launch: Option<Launch>,
    /// The process it has made is known to its owner.
    owned: bool,
}

impl RestoredJob {
    /// The job under `key`, if the image before has begun it. `owned`: the process it has made is known to its
    /// owner already.
    pub(crate) fn take(
        key: &str,
        owned: bool,
        reaper: &Arc<Reaper>,
        inherited: &mut Inherited,
    ) -> Option<Self> {
        let job: Job = inherited.json(key)?;
        let master = inherited.bytes(&format!("{key}#master")).and_then(|bytes| {
            bytes
                .first_chunk::<4>()
                .map(|four| i32::from_le_bytes(*four))
        });
        let child = match job.ended {
            Some(_) => None,
            None => Some(reaper.watch_again(Arc::new(job.child.restore(inherited)), true)),
        };
        let mut descriptor = |number: Option<i32>| {
            number.and_then(|number| {
                inherited
                    .descriptor(number)
                    .inspect_err(|error| log::error!("{key}: descriptor {number}: {error}"))
                    .ok()
            })
        };
        let socket = descriptor(job.socket);
        let master = descriptor(master);
        let registered = match &job.registered {
            // Its descriptor came with the owner's own record.
            Some(process) if owned => Some((process.pid, None)),
            Some(process) => {
                let process = process.restore(inherited);
                Some(process.into_parts())
            }
            None => None,
        };
        let console = job
            .console
            .as_ref()
            .filter(|_| master.is_none())
            .and_then(|console| console.restore(inherited));
        Some(Self {
            key: key.to_owned(),
            job,
            child,
            socket,
            registered,
            console,
            master,
            launch: Some(reaper.launch()),
            owned,
        })
    }
}

/// What is kept of a call while it goes on; nothing where no next image will ask.
#[derive(Debug)]
struct Kept {
    key: Option<String>,
    job: Option<Job>,
}

impl Kept {
    fn change(&mut self, change: impl FnOnce(&mut Job)) {
        if let (Some(key), Some(job)) = (&self.key, &mut self.job) {
            change(job);
            resume::put_json(key, job);
        }
    }

    /// The runtime has ended.
    fn ended(&mut self, pid: u32, status: ExitStatus) {
        let _step = resume::step();
        self.change(|job| job.ended = Some(status));
        forget_end(pid);
    }
}

/// Where a container's job lies; `what` is its verb, for an exec with the process' id.
pub(crate) fn job_key(container: &ContainerId, what: &str) -> String {
    format!("job/{container}/{what}")
}

fn now_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}

/// What a verb's name is in this program.
fn verb_of(text: &str) -> &'static str {
    ["create", "start", "exec", "delete", "checkpoint"]
        .into_iter()
        .find(|verb| *verb == text)
        .unwrap_or("runtime")
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
            gpu_config: options.gpu_config().filter(|_| ours),
            bundle: bundle.to_owned(),
            namespace: namespace.to_string(),
            id: id.clone(),
            binary,
        }
    }

    /// A terminal has come for a job: in this step it is on the slate.
    pub(crate) fn keep_master(&self, what: &str, master: &OwnedFd) {
        let key = job_key(&self.id, what);
        if resume::has(&key) {
            resume::put(&format!("{key}#master"), &master.as_raw_fd().to_le_bytes());
        }
    }

    /// Forgets a job: somebody has made something of its end.
    pub(crate) fn forget(&self, what: &str) {
        let key = job_key(&self.id, what);
        resume::remove(&key);
        resume::remove(&format!("{key}#master"));
    }

    /// Whether what it restores waits for the shim's word: with any other runtime it would run
    /// before Start.
    pub(crate) fn stands_still_after_restore(&self) -> bool {
        self.flavour == Flavour::Holdfast
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
        if call.verb == "create" {
            for (flag, value) in [
                ("--gpu", self.gpu.as_ref().map(OsString::from)),
                ("--gpu-config", self.gpu_config.as_ref().map(OsString::from)),
            ] {
                if let Some(value) = value {
                    command.arg(flag).arg(value);
                }
            }
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
        let image = image::number();
        self.bundle
            .join(format!("{verb}-{image}-{number}.log.json"))
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
            let mut working = self.spawn(reaper, command, setup, &call, &log, None)?;
            let deadline = Deadline::after(call.limit, call.verb);
            let status = finish(&mut working, &deadline, call.verb).await?;
            let judged = self.judge(call.verb, status, &log, None, None);
            working.keep_words(&judged);
            judged
        }
        .await;
        let _ = std::fs::remove_file(&log);
        result
    }

    /// Goes on with a [`Runtime::run`] of the image before.
    ///
    /// # Errors
    /// As that.
    pub(crate) async fn run_on(&self, restored: RestoredJob) -> Result<(), RuntimeError> {
        let verb = verb_of(&restored.job.verb);
        let log = restored.job.log.clone();
        let (mut working, deadline) = Working::again(restored);
        let result = match finish(&mut working, &deadline, verb).await {
            Ok(status) => self.judge_again(&working, verb, status, &log),
            Err(error) => Err(error),
        };
        let _ = std::fs::remove_file(&log);
        result
    }

    /// Goes on with a [`Runtime::make`] of the image before.
    ///
    /// # Errors
    /// As that.
    pub(crate) async fn make_on<F>(
        &self,
        mut restored: RestoredJob,
        register: impl Fn(Child) -> F,
    ) -> Result<(), RuntimeError>
    where
        F: Future<Output = bool>,
    {
        let verb = verb_of(&restored.job.verb);
        let log = restored.job.log.clone();
        let pid_file = restored.job.pid_file.clone();
        let (socket, registered, launch, owned) = (
            restored.socket.take(),
            restored.registered.take(),
            restored.launch.take(),
            restored.owned,
        );
        let Some(launch) = launch else {
            return Err(RuntimeError::GivenUp { verb });
        };
        let (mut working, deadline) = Working::again(restored);
        let result = match socket {
            Some(socket) => {
                let at = Attending {
                    working,
                    socket,
                    launch: &launch,
                    verb,
                    log: &log,
                    deadline: &deadline,
                };
                self.attend(at, registered, &register).await
            }
            // All was said and done, but its owner had not made anything of it.
            None if owned => match finish(&mut working, &deadline, verb).await {
                Ok(status) => self.judge_again(&working, verb, status, &log),
                Err(error) => Err(error),
            },
            None => {
                self.await_pid_file(
                    working, &launch, verb, &log, &deadline, &pid_file, &register,
                )
                .await
            }
        };
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
                self.make_behind_barrier(
                    reaper, command, &launch, &call, pid_file, &log, &deadline, &register,
                )
                .await
            }
            Flavour::Foreign => {
                async {
                    let setup = ChildSetup {
                        parent_death_signal: Some(libc::SIGKILL),
                        own_group: true,
                        ..ChildSetup::default()
                    };
                    let working =
                        self.spawn(reaper, command, setup, &call, &log, Some((None, pid_file)))?;
                    self.await_pid_file(
                        working, &launch, verb, &log, &deadline, pid_file, &register,
                    )
                    .await
                }
                .await
            }
        };
        let _ = std::fs::remove_file(&log);
        result
    }

    /// The rest of `make` with a runtime that names the pid in a file.
    #[allow(clippy::too_many_arguments)] // one step of `make`, split for length only
    async fn await_pid_file<F>(
        &self,
        mut working: Working,
        launch: &Launch,
        verb: &'static str,
        log: &Path,
        deadline: &Deadline,
        pid_file: &Path,
        register: impl Fn(Child) -> F,
    ) -> Result<(), RuntimeError>
    where
        F: Future<Output = bool>,
    {
        let status = finish(&mut working, deadline, verb).await?;
        self.judge(verb, status, log, None, None)?;
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

    #[allow(clippy::too_many_arguments)] // one step of `make`, split for length only
    async fn make_behind_barrier<F>(
        &self,
        reaper: &Arc<Reaper>,
        mut command: Command,
        launch: &Launch,
        call: &Call,
        pid_file: &Path,
        log: &Path,
        deadline: &Deadline,
        register: impl Fn(Child) -> F,
    ) -> Result<(), RuntimeError>
    where
        F: Future<Output = bool>,
    {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
        let verb = call.verb;
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
        let barrier = Some((Some(ours.as_raw_fd()), pid_file));
        let working = self.spawn(reaper, command, setup, call, log, barrier)?;
        let at = Attending {
            working,
            socket: ours,
            launch,
            verb,
            log,
            deadline,
        };
        self.attend(at, None, &register).await
    }

    /// The shim's side of the barrier, to the end of the runtime. `early`: a process that it has
    /// registered in the image before, whose descriptor is none if the owner knows it already.
    async fn attend<F>(
        &self,
        at: Attending<'_>,
        early: Option<(u32, Option<OwnedFd>)>,
        register: &impl Fn(Child) -> F,
    ) -> Result<(), RuntimeError>
    where
        F: Future<Output = bool>,
    {
        let Attending {
            mut working,
            socket,
            launch,
            verb,
            log,
            deadline,
        } = at;
        let broken = |source: io::Error| RuntimeError::Barrier { verb, source };
        let socket = sys::watch(socket, tokio::io::Interest::READABLE).map_err(broken)?;
        let mut failed = working.kept.job.as_ref().and_then(|job| job.failed.clone());
        let mut registered = early.is_some();
        if let Some((pid, pidfd)) = early {
            if let Some(pidfd) = pidfd {
                let made = launch
                    .adopt(pid, Some(pidfd))
                    .map_err(|source| RuntimeError::Adopt { verb, source })?;
                if !register(made).await {
                    drop(socket);
                    let _ = finish(&mut working, deadline, verb).await;
                    return Err(RuntimeError::GivenUp { verb });
                }
            }
            working.acknowledge(&socket, verb);
        }
        let mut reason = working.kept.job.as_ref().and_then(|job| job.reason.clone());
        let mut ended = working.kept.job.as_ref().and_then(|job| job.ended);
        let mut buffer = vec![0u8; barrier::MAX_FRAME];
        loop {
            let received = if ended.is_some() {
                // All its frames are here; end of file may be long in coming if a child of
                // it holds the socket, too.
                working.receive(socket.get_ref().as_fd(), &mut buffer)
            } else {
                let kept = &mut working.kept;
                tokio::select! {
                    biased;
                    received = socket.async_io(tokio::io::Interest::READABLE, |fd| {
                        receive(kept, fd.as_fd(), &mut buffer)
                    }) => received,
                    () = tokio::time::sleep(deadline.remaining()) => {
                        return Err(overdue(&working, deadline, verb).await);
                    }
                    status = end_of(&mut working.child, verb) => {
                        ended = Some(working.has_ended(status?));
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
                    working.acknowledge(&socket, verb);
                }
                Ok(Frame::Failed { text }) => {
                    working.kept.change(|job| job.failed = Some(text.clone()));
                    failed = Some(text);
                }
                Ok(Frame::Reason(told)) => {
                    working.kept.change(|job| job.reason = Some(told.clone()));
                    reason = Some(told);
                }
                Err(error) => log::warn!("{verb}: a frame of the runtime: {error}"),
            }
        }
        let status = match ended {
            Some(status) => status,
            None => finish(&mut working, deadline, verb).await?,
        };
        let judged = self.judge(verb, status, log, failed, reason);
        working.keep_words(&judged);
        judged?;
        if registered {
            Ok(())
        } else {
            Err(RuntimeError::Failed {
                text: format!("{verb}: the runtime registered no process"),
                reason: None,
            })
        }
    }

    /// Starts a runtime; `make` is our end of the barrier, if there is one, and the pid file.
    fn spawn(
        &self,
        reaper: &Reaper,
        command: Command,
        setup: ChildSetup,
        call: &Call,
        log: &Path,
        make: Option<(Option<i32>, &Path)>,
    ) -> Result<Working, RuntimeError> {
        // A child that is started is on the slate in the same step.
        let _step = resume::step();
        let started = if call.kept.is_some() {
            reaper.spawn_kept(command, setup)
        } else {
            reaper.spawn(command, setup)
        };
        let child = started.map_err(|source| RuntimeError::Spawn {
            binary: self.binary.clone(),
            source,
        })?;
        let (socket, pid_file) = make.unzip();
        let mut kept = Kept {
            job: call.kept.as_ref().map(|_| Job {
                verb: call.verb.to_owned(),
                child: child.process.record(),
                log: log.to_owned(),
                until: now_ms() + u64::try_from(call.limit.as_millis()).unwrap_or(u64::MAX / 2),
                socket: socket.flatten(),
                pid_file: pid_file.map(Path::to_owned).unwrap_or_default(),
                registered: None,
                acknowledged: false,
                failed: None,
                reason: None,
                ended: None,
                console: call.console.clone(),
            }),
            key: call.kept.as_ref().map(|what| job_key(&self.id, what)),
        };
        kept.change(|_| {});
        Ok(Working {
            child: Some(child),
            ended: None,
            kept,
        })
    }

    /// As [`Runtime::judge`], with what the image before has heard.
    fn judge_again(
        &self,
        working: &Working,
        verb: &'static str,
        status: ExitStatus,
        log: &Path,
    ) -> Result<(), RuntimeError> {
        let (failed, reason) = working
            .kept
            .job
            .as_ref()
            .map_or((None, None), |job| (job.failed.clone(), job.reason.clone()));
        self.judge(verb, status, log, failed, reason)
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

/// What the shim's side of the barrier needs.
struct Attending<'a> {
    working: Working,
    socket: OwnedFd,
    launch: &'a Launch,
    verb: &'static str,
    log: &'a Path,
    deadline: &'a Deadline,
}

/// Receives a frame; a process that comes with it is on the slate in the same step.
fn receive(
    kept: &mut Kept,
    socket: std::os::fd::BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<sys::Received> {
    let _step = resume::step();
    let received = sys::receive_with_fd(socket, buffer)?;
    if let Ok(Frame::Registered { pid }) =
        Frame::decode(buffer.get(..received.len).unwrap_or_default())
    {
        let process = ProcessRecord::new(pid, received.fd.as_ref().map(AsRawFd::as_raw_fd));
        kept.change(|job| job.registered = Some(process));
    }
    Ok(received)
}

/// A runtime at work. Dropped before its end it is killed with all it started: the one who
/// waited for it has been given up.
#[derive(Debug)]
struct Working {
    /// None: it had ended in the image before.
    child: Option<Child>,
    ended: Option<ExitStatus>,
    kept: Kept,
}

/// The end of a runtime.
async fn end_of(child: &mut Option<Child>, verb: &'static str) -> Result<ExitStatus, RuntimeError> {
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
    fn again(restored: RestoredJob) -> (Self, Deadline) {
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

    fn pid(&self) -> u32 {
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

    fn has_ended(&mut self, status: ExitStatus) -> ExitStatus {
        self.kept.ended(self.pid(), status);
        self.ended = Some(status);
        status
    }

    /// See [`receive`].
    fn receive(
        &mut self,
        socket: std::os::fd::BorrowedFd<'_>,
        buffer: &mut [u8],
    ) -> io::Result<sys::Received> {
        receive(&mut self.kept, socket, buffer)
    }

    /// Keeps why it failed: its log is removed before its owner has made anything of it.
    fn keep_words(&mut self, judged: &Result<(), RuntimeError>) {
        if let Err(error) = judged {
            let words = error.to_string();
            self.kept.change(|job| job.failed = Some(words));
        }
    }

    /// Lets the process run that the runtime has made; once.
    fn acknowledge(&mut self, socket: &AsyncFd<File>, verb: &str) {
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
