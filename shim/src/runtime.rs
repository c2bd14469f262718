//! Runs the OCI runtime as a short-lived child, with a deadline.
//!
//! `holdfast` is asked to register before it runs (the barrier of
//! [`holdfast_record::barrier`]); any other runtime names the pid in its pid file afterwards.

mod call;
mod error;
mod job;
mod registering;
mod said;
mod working;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use holdfast_record::barrier;
use holdfast_record::{ContainerId, Deadline, ExitStatus, Namespace, Reason};

use crate::options::Options;
use crate::reaper::{Child, Launch, Reaper};
use crate::resume::descriptor::{Descriptor, Name};
use crate::resume::{self, image};
use crate::sys::ChildSetup;
use job::{Job, Kept, now_ms, verb_of};
use registering::Attending;
use said::{last_error, read_pid};
use working::{Working, finish};

pub(crate) use call::{Call, ChildStdio};
pub(crate) use error::RuntimeError;
pub(crate) use job::{RestoredJob, job_key};
pub(crate) use working::kill_group;

/// Where `holdfast` keeps its state when the options say nothing.
const HOLDFAST_ROOT: &str = "/run/holdfast";
/// Where containerd has always let other runtimes keep theirs.
const FOREIGN_ROOT: &str = "/run/containerd/runc";

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
            gpu_config: options.gpu_config().filter(|_| ours),
            bundle: bundle.to_owned(),
            namespace: namespace.to_string(),
            id: id.clone(),
            binary,
        }
    }

    /// A terminal has come for a job: in this step it is on the slate.
    pub(crate) fn keep_master(&self, what: &str, master: &Descriptor) {
        let key = job_key(&self.id, what);
        if resume::has(&key) {
            resume::put_json(&format!("{key}#master"), &master.name());
        }
    }

    /// A job's terminal is connected: in this step it is on the slate as part of the process' stdio.
    pub(crate) fn forget_master(&self, what: &str) {
        resume::remove(&format!("{}#master", job_key(&self.id, what)));
    }

    /// Forgets a job: somebody has made something of its end.
    pub(crate) fn forget(&self, what: &str) {
        let key = job_key(&self.id, what);
        resume::remove(&key);
        resume::remove(&format!("{key}#master"));
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

    /// Runs a verb that makes a process (`create`, `exec`, `restore`). `register` is called with the
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
    #[expect(
        clippy::too_many_arguments,
        reason = "one step of `make`, split for length only"
    )]
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

    /// Starts a runtime; `make` is our end of the barrier, if there is one, and the pid file.
    fn spawn(
        &self,
        reaper: &Reaper,
        command: Command,
        setup: ChildSetup,
        call: &Call,
        log: &Path,
        make: Option<(Option<Name>, &Path)>,
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
        if let Some(io) = &call.io {
            io.given();
        }
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
