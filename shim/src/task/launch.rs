//! Making a process: the steps of Create and of the start of an exec process.

use std::ffi::OsString;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use containerd_shim_protos::api::Mount;
use holdfast_record::ExecId;
use holdfast_record::deadline::limit_from_env;

use crate::fault::{Fault, chain};
use crate::fault_point::fault_point;
use crate::look::describe;
use crate::options::Options;
use crate::reaper::{Child, Reaper};
use crate::resume::descriptor::Descriptor;
use crate::resume::image;
use crate::rootfs;
use crate::runtime::{Call, ChildStdio, RestoredJob, Runtime, kill_group};
use crate::stdio::console::ConsoleSocket;
use crate::stdio::logger::LoggerContext;
use crate::stdio::{self, Policy, ProcessIo, StdioPaths, StdioSetup};
use crate::sys::{self, ChildSetup};

/// Bound of the runtime's `create`, hooks and GPU stage included.
pub(super) fn create_limit() -> Duration {
    limit_from_env("CREATE", Duration::from_secs(240))
}

/// Bound of the runtime's `restore`: it reads all memory of the container.
fn restore_limit() -> Duration {
    limit_from_env("RESTORE", Duration::from_secs(300))
}

/// What containerd's own shim says before the runtime's words.
const RESTORE_FAILED: &str = "OCI runtime restore failed";

/// Bound of the runtime's `exec`.
pub(super) fn exec_limit() -> Duration {
    limit_from_env("EXEC", Duration::from_secs(60))
}

/// Most bytes of a mount helper's words that go into an error.
const MAX_WORDS: usize = 2048;

/// Bound of mounting the root file system.
fn mount_limit() -> Duration {
    limit_from_env("MOUNT", Duration::from_secs(60))
}

/// Everything a launch needs, owned, so that it runs in a task of its own.
#[derive(Debug)]
pub(super) struct Launcher {
    /// Waits for children.
    pub(super) reaper: Arc<Reaper>,
    /// The container's runtime.
    pub(super) runtime: Runtime,
    /// The bundle.
    pub(super) bundle: PathBuf,
    /// The options of Create.
    pub(super) options: Options,
    /// The process' stdio as given.
    pub(super) paths: Arc<StdioPaths>,
    /// For whom loggers run.
    pub(super) context: LoggerContext,
    /// The process' stdio as it will be.
    pub(super) io: Arc<ProcessIo>,
}

impl Launcher {
    /// Opens stdio or the console socket, and puts them into the call.
    async fn connect(&self, call: Call) -> Result<(Call, Option<ConsoleSocket>), Fault> {
        let failed = |error: &stdio::StdioError| Fault::chain("failed to prepare stdio", error);
        stdio::check(&self.paths).map_err(|error| Fault::invalid(chain(&error)))?;
        if self.paths.terminal {
            let console = ConsoleSocket::new()
                .map_err(|error| Fault::chain("failed to create console", &error))?;
            let mut call = call.arg("--console-socket").arg(console.path());
            call.console = Some(console.record());
            return Ok((call, Some(console)));
        }
        let child: ChildStdio = self
            .io
            .open(&self.paths, self.stdio_setup(), &self.context)
            .await
            .map_err(|error| failed(&error))?;
        fault_point(&format!("launch/{}/connected", call.verb));
        Ok((
            Call {
                stdio: child,
                io: Some(Arc::clone(&self.io)),
                ..call
            },
            None,
        ))
    }

    fn stdio_setup(&self) -> StdioSetup {
        StdioSetup {
            owner: (self.options.io_uid, self.options.io_gid),
            policy: Policy::chosen(&self.options.stdio_policy),
        }
    }

    async fn attach(&self, console: Option<ConsoleSocket>, job: &str) -> Result<(), Fault> {
        let Some(console) = console else {
            return Ok(());
        };
        let keep = |master: &Descriptor| self.runtime.keep_master(job, master);
        let master = console
            .receive(keep)
            .await
            .map_err(|error| Fault::chain("failed to retrieve console master", &error))?;
        self.attach_master(master, job).await
    }

    async fn attach_master(&self, master: Descriptor, job: &str) -> Result<(), Fault> {
        let attached = || self.runtime.forget_master(job);
        self.io
            .attach(
                &self.paths,
                master,
                self.stdio_setup(),
                &self.context,
                attached,
            )
            .await
            .map_err(|error| Fault::chain("failed to start console copy", &error))
    }

    /// Create, up to a process that waits for Start. What fails is undone.
    ///
    /// # Errors
    /// The step that failed.
    pub(super) async fn create<F>(
        &self,
        mounts: Vec<Mount>,
        register: impl Fn(Child) -> F,
    ) -> Result<(), Fault>
    where
        F: Future<Output = bool>,
    {
        let mounted = !mounts.is_empty();
        self.create_rootfs(mounts).await?;
        let result = self.create_process(register).await;
        if result.is_err() {
            // The runtime undoes its own failure; this is for one that was killed or that
            // failed after it had succeeded.
            self.undo(mounted).await;
        }
        result
    }

    /// The first step of a create, and all of it where a checkpoint is restored by Start.
    ///
    /// # Errors
    /// What could not be mounted; the rest is undone.
    pub(super) async fn create_rootfs(&self, mounts: Vec<Mount>) -> Result<(), Fault> {
        if mounts.is_empty() {
            return Ok(());
        }
        self.mount(mounts, &self.bundle.join("rootfs")).await
    }

    /// Mounts everything, in order; undone when one fails.
    async fn mount(&self, mounts: Vec<Mount>, rootfs: &Path) -> Result<(), Fault> {
        if mounts
            .iter()
            .all(|one| rootfs::helper(one, rootfs).is_none())
        {
            return mount(mounts, rootfs).await;
        }
        for one in mounts {
            let made = match rootfs::helper(&one, rootfs) {
                Some((program, arguments)) => {
                    mount_by_helper(&self.reaper, Path::new(program), arguments).await
                }
                None => mount(vec![one], rootfs).await,
            };
            if made.is_err() {
                unmount(rootfs).await;
                return made;
            }
        }
        Ok(())
    }

    async fn create_process<F>(&self, register: impl Fn(Child) -> F) -> Result<(), Fault>
    where
        F: Future<Output = bool>,
    {
        let mut call = Call::new("create", create_limit())
            .kept("create")
            .arg("--bundle")
            .arg(&self.bundle);
        if self.options.no_new_keyring {
            call = call.arg("--no-new-keyring");
        }
        if self.options.no_pivot_root {
            call = call.arg("--no-pivot");
        }
        let (call, console) = self.connect(call).await?;
        self.runtime
            .make(&self.reaper, call, &self.bundle.join("init.pid"), register)
            .await
            .map_err(|error| error.fault("OCI runtime create failed"))?;
        self.attach(console, "create").await
    }

    /// Makes the processes that a checkpoint holds. They run from the moment that `register` has
    /// answered; with a runtime that does not know the barrier, before.
    ///
    /// # Errors
    /// The step that failed. It can be tried again, but for stdio, which has to be fresh then.
    pub(super) async fn restore<F>(
        &self,
        images: &Path,
        register: impl Fn(Child) -> F,
    ) -> Result<(), Fault>
    where
        F: Future<Output = bool>,
    {
        let result = async {
            let work = match self.options.criu_work_path.as_str() {
                "" => self.bundle.join("work"),
                path => PathBuf::from(path),
            };
            let mut call = Call::new("restore", restore_limit())
                .kept("restore")
                .arg("--bundle")
                .arg(&self.bundle)
                .arg("--image-path")
                .arg(images)
                .arg("--work-path")
                .arg(work)
                .arg("--detach")
                .arg("--no-subreaper");
            if self.options.no_pivot_root {
                call = call.arg("--no-pivot");
            }
            let (call, console) = self.connect(call).await?;
            self.runtime
                .make(&self.reaper, call, &self.bundle.join("init.pid"), register)
                .await
                .map_err(|error| error.fault(RESTORE_FAILED))?;
            self.attach(console, "restore").await
        }
        .await;
        if result.is_err() {
            self.undo(false).await;
        }
        result
    }

    /// Goes on with a restore of the image before.
    ///
    /// # Errors
    /// As [`Launcher::restore`].
    pub(super) async fn restore_on<F>(
        &self,
        job: RestoredJob,
        register: impl Fn(Child) -> F,
    ) -> Result<(), Fault>
    where
        F: Future<Output = bool>,
    {
        let result = self.make_on(job, "restore", RESTORE_FAILED, register).await;
        if result.is_err() {
            self.undo(false).await;
        }
        result
    }

    /// Goes on with a create of the image before.
    ///
    /// # Errors
    /// As [`Launcher::create`].
    pub(super) async fn create_on<F>(
        &self,
        job: RestoredJob,
        mounted: bool,
        register: impl Fn(Child) -> F,
    ) -> Result<(), Fault>
    where
        F: Future<Output = bool>,
    {
        let result = self
            .make_on(job, "create", "OCI runtime create failed", register)
            .await;
        if result.is_err() {
            self.undo(mounted).await;
        }
        result
    }

    /// Undoes what a create or a restore has left.
    pub(super) async fn undo(&self, mounted: bool) {
        let call = Call::new("delete", Duration::from_secs(30)).arg("--force");
        if let Err(error) = self.runtime.run(&self.reaper, call).await {
            log::debug!("undo create: {}", chain(&error));
        }
        if mounted {
            unmount(&self.bundle.join("rootfs")).await;
        }
    }

    async fn make_on<F>(
        &self,
        mut job: RestoredJob,
        what: &str,
        words: &str,
        register: impl Fn(Child) -> F,
    ) -> Result<(), Fault>
    where
        F: Future<Output = bool>,
    {
        let (console, master) = (job.console.take(), job.master.take());
        self.runtime
            .make_on(job, register)
            .await
            .map_err(|error| error.fault(words))?;
        match master {
            Some(master) => self.attach_master(master, what).await,
            // The image before has done it.
            None if self.io.has_terminal() => Ok(()),
            None => self.attach(console, what).await,
        }
    }

    /// Goes on with the start of an exec process of the image before.
    ///
    /// # Errors
    /// As [`Launcher::exec`].
    pub(super) async fn exec_on<F>(
        &self,
        id: &ExecId,
        job: RestoredJob,
        register: impl Fn(Child) -> F,
    ) -> Result<(), Fault>
    where
        F: Future<Output = bool>,
    {
        self.make_on(job, &exec_job(id), "OCI runtime exec failed", register)
            .await
    }

    /// Starts an exec process from its OCI process (JSON).
    ///
    /// # Errors
    /// The step that failed; a process that had been made is killed by the caller.
    pub(super) async fn exec<F>(
        &self,
        id: &ExecId,
        spec: &[u8],
        register: impl Fn(Child) -> F,
    ) -> Result<(), Fault>
    where
        F: Future<Output = bool>,
    {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let image = image::number();
        let file = self.bundle.join(format!("exec-{image}-{number}.json"));
        write_spec(&file, spec).map_err(|error| {
            Fault::unknown(format!(
                "failed to write the process of the exec to {}: {error}",
                file.display()
            ))
        })?;
        let result = async {
            let call = Call::new("exec", exec_limit())
                .kept(exec_job(id))
                .arg("--process")
                .arg(&file)
                .arg("--detach");
            let (call, console) = self.connect(call).await?;
            self.runtime
                .make(&self.reaper, call, &pid_file(&self.bundle, id), register)
                .await
                .map_err(|error| error.fault("OCI runtime exec failed"))?;
            self.attach(console, &exec_job(id)).await
        }
        .await;
        let _ = std::fs::remove_file(&file);
        result
    }
}

/// As what the start of an exec process is kept; see [`crate::runtime::job_key`].
pub(super) fn exec_job(id: &ExecId) -> String {
    format!("exec/{id}")
}

/// Where the runtime writes an exec's pid; removed with the exec.
pub(super) fn pid_file(bundle: &Path, id: &ExecId) -> PathBuf {
    bundle.join(format!("{id}.pid"))
}

fn write_spec(path: &Path, spec: &[u8]) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?
        .write_all(spec)
}

/// Mounts on a thread of its own; one that comes too late undoes itself.
async fn mount(mounts: Vec<Mount>, rootfs: &Path) -> Result<(), Fault> {
    let given_up = Arc::new(AtomicBool::new(false));
    let (late, target) = (Arc::clone(&given_up), rootfs.to_owned());
    let work = tokio::task::spawn_blocking(move || {
        let result = rootfs::mount_all(&mounts, &target);
        if late.load(Ordering::SeqCst)
            && result.is_ok()
            && let Err(error) = rootfs::unmount_all(&target, rootfs::BUSY_LIMIT)
        {
            log::error!("undo a mount that came too late: {}", chain(&error));
        }
        result
    });
    match tokio::time::timeout(mount_limit(), work).await {
        Ok(Ok(result)) => {
            result.map_err(|error| Fault::chain("failed to mount rootfs component", &error))
        }
        Ok(Err(panic)) => Err(Fault::unknown(format!(
            "failed to mount rootfs component: {panic}"
        ))),
        Err(_) => {
            given_up.store(true, Ordering::SeqCst);
            Err(Fault::deadline(format!(
                "create: mounting {} did not finish within {:?}; a dead server behind it?",
                rootfs.display(),
                mount_limit()
            )))
        }
    }
}

/// Runs a mount helper to its end. What it leaves running, the file system's server, ends with
/// the mount.
pub(super) async fn mount_by_helper(
    reaper: &Reaper,
    program: &Path,
    arguments: Vec<OsString>,
) -> Result<(), Fault> {
    let failed = |what: &dyn std::fmt::Display| {
        Fault::unknown(format!(
            "failed to mount rootfs component: {}: {what}",
            program.display()
        ))
    };
    let words = sys::memory_file(c"holdfast-helper").map_err(|error| failed(&error))?;
    let stderr = words.try_clone().map_err(|error| failed(&error))?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::from(stderr));
    let setup = ChildSetup {
        own_group: true,
        ..ChildSetup::default()
    };
    let mut child = reaper
        .spawn(command, setup)
        .map_err(|error| failed(&format!("{error}; is it installed?")))?;
    let limit = mount_limit();
    let Ok(ended) = tokio::time::timeout(limit, &mut child.ended).await else {
        let state = describe(child.process.pid()).await;
        kill_group(&child);
        return Err(Fault::deadline(format!(
            "create: {} did not finish within {limit:?}: {state}",
            program.display()
        )));
    };
    match ended {
        Ok(ended) if ended.status.success() => Ok(()),
        Ok(ended) => {
            let mut said = vec![0; MAX_WORDS];
            let size = words.read_at(&mut said, 0).unwrap_or(0);
            let said = String::from_utf8_lossy(said.get(..size).unwrap_or_default()).into_owned();
            Err(failed(&format!("{}: {}", ended.status, said.trim())))
        }
        Err(_) => Err(failed(&"its end was not seen")),
    }
}

async fn unmount(rootfs: &Path) {
    let target = rootfs.to_owned();
    match tokio::task::spawn_blocking(move || rootfs::unmount_all(&target, rootfs::BUSY_LIMIT))
        .await
    {
        Ok(Ok(detached)) => detached.iter().for_each(|line| log::warn!("{line}")),
        Ok(Err(error)) => log::error!("undo create: {}", chain(&error)),
        Err(error) => log::error!("undo create: {error}"),
    }
}
