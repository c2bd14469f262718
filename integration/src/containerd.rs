//! A private containerd: own root, state and sockets in a temporary folder, gone afterwards.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::scratch::text;
use crate::{deadline, image, leaks, place, tracing};

/// The versions of containerd the tests know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Debian bookworm's: task API v2, plain shim addresses, config version 2.
    V1_6,
    /// Debian forky's, unpacked by `make tools`: task API v3, config version 3.
    V2_1,
}

impl Version {
    /// The folder with its programs, or why it cannot be used here.
    fn programs(self) -> Result<PathBuf, String> {
        let folder = match self {
            Self::V1_6 => place::program("containerd")
                .and_then(|path| path.parent().map(Path::to_path_buf))
                .ok_or("containerd is not installed")?,
            Self::V2_1 => place::containerd_2_1(),
        };
        let program = folder.join("containerd");
        if !program.exists() {
            return Err(format!(
                "{} is not there: run `make tools`",
                program.display()
            ));
        }
        let said = deadline::run(
            Command::new(&program).arg("--version"),
            Duration::from_secs(10),
        );
        let wanted = match self {
            Self::V1_6 => " 1.6.",
            Self::V2_1 => " 2.1.",
        };
        if said.stdout.contains(wanted) {
            Ok(folder)
        } else {
            Err(format!(
                "{} is not{wanted}x but: {}",
                program.display(),
                said.stdout.trim()
            ))
        }
    }

    fn config_version(self) -> u8 {
        match self {
            Self::V1_6 => 2,
            Self::V2_1 => 3,
        }
    }
}

/// Runs a test with a private containerd, and afterwards looks for what it left.
///
/// # Panics
/// As the test does, and when something is left behind.
pub fn with(version: Version, test: &str, body: fn(&Containerd)) {
    if let Some(containerd) = Containerd::start(version, test, &Extra::default()) {
        body(&containerd);
        containerd.assert_nothing_left();
    }
}

/// What a test wants beside the plain configuration.
#[derive(Debug, Default, Clone)]
pub struct Extra {
    /// Files for `imports`, for example a drop-in as shipped.
    pub imports: Vec<PathBuf>,
    /// Keep the CRI plugin, which the plain configuration disables.
    pub cri: bool,
    /// Environment of containerd, and so of its shims.
    pub environment: Vec<(&'static str, String)>,
    /// Each daemon gets a mount namespace of its own, in which everything has this propagation: as
    /// a unit of systemd has it with `MountFlags=`. The words are those of unshare(1). The test's
    /// folder is a shared mount then, as everything is on a node with systemd.
    pub own_mounts: Option<&'static str>,
}

/// See the module.
#[derive(Debug)]
pub struct Containerd {
    /// Its version.
    pub version: Version,
    /// The containerd namespace of this test; also the parent of its cgroups.
    pub namespace: String,
    /// The runtime type of [`Containerd::run`] and the like.
    pub runtime_type: String,
    folder: TempDir,
    programs: PathBuf,
    extra: Extra,
    process: Mutex<Child>,
    ids: Mutex<BTreeSet<String>>,
}

/// Whether the tests drive containerd's own shim instead of ours.
#[must_use]
pub fn peer() -> bool {
    std::env::var("HOLDFAST_TEST_PEER").is_ok_and(|peer| peer == "runc")
}

/// Whether the peer is driven, which has not what the test is about; says so if it is.
#[must_use]
pub fn not_ours(test: &str, why: &str) -> bool {
    if peer() {
        crate::skip(test, why);
    }
    peer()
}

impl Containerd {
    /// Starts one and imports the image; `None`, with a word on the terminal, when this version
    /// is not to be had here.
    ///
    /// # Panics
    /// When it does not come up, or our own binaries were not built.
    #[must_use]
    pub fn start(version: Version, test: &str, extra: &Extra) -> Option<Self> {
        let possible = place::is_root().and_then(|()| image::busybox());
        let programs = match possible.and_then(|_| version.programs()) {
            Ok(programs) => programs,
            Err(why) => {
                crate::skip(test, &why);
                return None;
            }
        };
        leaks::keep_own_descriptors();
        let runtime_type = if peer() {
            "io.containerd.runc.v2"
        } else {
            let _ = place::built("holdfast");
            let _ = place::built("containerd-shim-holdfast-v2");
            "io.containerd.holdfast.v2"
        };
        let folder = tempfile::Builder::new()
            .prefix("holdfast-test-")
            .tempdir()
            .expect("folder");
        if extra.own_mounts.is_some() {
            share_mounts_of(folder.path());
        }
        write_config(version, folder.path(), extra);
        let process = spawn(&programs, folder.path(), extra);
        let containerd = Self {
            version,
            namespace: place::unique("holdfast-test"),
            runtime_type: runtime_type.to_owned(),
            folder,
            programs,
            extra: extra.clone(),
            process: Mutex::new(process),
            ids: Mutex::default(),
        };
        containerd.await_ready();
        let archive = image::write_archive(containerd.folder.path());
        containerd.ctr_ok(&["images", "import", &text(&archive)]);
        Some(containerd)
    }

    /// A path in the test's folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Ends for which no reason was found: a last resort that no test may come to.
    fn unexplained(&self) -> Vec<String> {
        let Ok(segments) = fs::read_dir(self.path("ledger")) else {
            return Vec::new();
        };
        let text = segments
            .flatten()
            .filter_map(|segment| fs::read_to_string(segment.path()).ok());
        let lines: Vec<String> = text
            .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
            .collect();
        lines
            .into_iter()
            .filter(|line| line.contains("\"code\":\"HF199\""))
            .map(|line| format!("an end without a reason: {line}"))
            .collect()
    }

    /// The socket clients dial.
    #[must_use]
    pub fn address(&self) -> PathBuf {
        self.path("containerd.sock")
    }

    /// A program of this containerd's folder, `ctr` say.
    #[must_use]
    pub fn program(&self, name: &str) -> Command {
        Command::new(self.programs.join(name))
    }

    /// The bundle containerd made for a task.
    #[must_use]
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.path("state")
            .join("io.containerd.runtime.v2.task")
            .join(&self.namespace)
            .join(id)
    }

    /// A folder that containerd and its shims search first, for programs of a test's own. It is
    /// not there yet.
    #[must_use]
    pub fn programs_first(&self) -> PathBuf {
        self.path("programs")
    }

    /// A file of a running container. Whoever asks by an exec depends on ctr, which since containerd 1.7 takes no more
    /// output once it has the exit code (mended by containerd's pull request 13931).
    ///
    /// # Panics
    /// When there is no such file, or the container does not run.
    #[track_caller]
    #[must_use]
    pub fn file_of(&self, id: &str, path: &str) -> String {
        let pid = self.task(id).expect("a task").pid;
        let path = format!("/proc/{pid}/root/{path}");
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// What containerd logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("containerd.log")).unwrap_or_default()
    }

    /// The lines of its log that say that a shim has gone.
    #[must_use]
    pub fn log_of_shims(&self) -> Vec<String> {
        let log = self.log();
        log.lines()
            .filter(|line| line.contains("shim disconnected") || line.contains("cleaning up"))
            .map(str::to_owned)
            .collect()
    }

    /// The pid of the daemon.
    ///
    /// # Panics
    /// Never in practice.
    #[must_use]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.process.lock().expect("process").id()).expect("a pid fits")
    }

    /// Ends the daemon alone, at once; its shims live on.
    ///
    /// # Panics
    /// When it does not end.
    pub fn kill_daemon(&self) {
        let mut process = self.process.lock().expect("process");
        process.kill().expect("kill containerd");
        process.wait().expect("wait for containerd");
    }

    /// Starts the daemon again.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start_daemon(&self) {
        let _ = fs::remove_file(self.address());
        *self.process.lock().expect("process") =
            spawn(&self.programs, self.folder.path(), &self.extra);
        self.await_ready();
    }

    /// Remembers a container id, so that its shim's socket is looked for at the end.
    ///
    /// # Panics
    /// Never in practice.
    pub fn remember(&self, id: &str) {
        self.ids.lock().expect("ids").insert(id.to_owned());
    }

    /// Shims of this test that are alive, by command line.
    #[must_use]
    pub fn shims(&self) -> Vec<leaks::Process> {
        let mut found = leaks::processes_mentioning(&text(self.folder.path()));
        found.retain(|process| {
            process.command.contains("containerd-shim-") && process.command.contains("-address")
        });
        found
    }

    fn await_ready(&self) {
        deadline::eventually("containerd answers", Duration::from_secs(30), || {
            let ended = self
                .process
                .lock()
                .expect("process")
                .try_wait()
                .expect("wait");
            assert!(
                ended.is_none(),
                "containerd ended: {ended:?}\n{}",
                self.log()
            );
            self.address().exists().then_some(())?;
            self.ctr(&["version"]).status.success().then_some(())
        });
    }

    fn shim_socket(&self, id: &str) -> PathBuf {
        // shim-contract a.5: the socket's name is a hash over address, namespace and group.
        let hashed = self.address().join(&self.namespace).join(id);
        Path::new("/run/containerd/s").join(image::digest(text(&hashed).as_bytes()))
    }

    fn runtime_state(&self) -> Vec<PathBuf> {
        ["/run/holdfast", "/run/containerd/runc"]
            .iter()
            .map(|root| Path::new(root).join(&self.namespace))
            .collect()
    }

    /// Everything of containers that would be left if the test ended now.
    #[must_use]
    pub fn left_behind(&self) -> Vec<String> {
        let mut left = Vec::new();
        for process in leaks::processes_mentioning(&text(self.folder.path())) {
            if process.pid != self.pid() {
                left.push(format!("process {} ({})", process.pid, process.command));
            }
        }
        for pid in leaks::cgroup_members(&self.namespace) {
            left.push(format!("process {pid} in a cgroup of the test"));
        }
        for mount in leaks::mounts_under(self.folder.path()) {
            if self.extra.own_mounts.is_some() && mount == self.folder.path() {
                continue;
            }
            left.push(format!("mount {}", mount.display()));
        }
        for cgroup in leaks::cgroups_below(&self.namespace) {
            left.push(format!("cgroup {}", cgroup.display()));
        }
        left.extend(self.unexplained());
        // What a shim had still to tell when its bundle went; the last acknowledgement removes it.
        for folder in entries(&self.folder.path().join("events")) {
            for file in entries(&folder) {
                left.push(format!("untold events in {}", file.display()));
            }
        }
        for id in self.ids.lock().expect("ids").iter() {
            let socket = self.shim_socket(id);
            if socket.exists() {
                left.push(format!("socket {} of {id}", socket.display()));
            }
            if self.bundle(id).exists() {
                left.push(format!("bundle {}", self.bundle(id).display()));
            }
        }
        for folder in self.runtime_state() {
            left.extend(leaks::states_in(&folder));
        }
        left
    }

    /// Fails when anything is left behind, after a moment for what is still ending.
    ///
    /// # Panics
    /// Naming it.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        deadline::nothing_left("behind", Duration::from_secs(5), || self.left_behind());
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let telling: Vec<&str> = log
                .lines()
                .filter(|line| {
                    ["level=error", "level=warn", "panic:", "fatal error:"]
                        .iter()
                        .any(|word| line.contains(word))
                })
                .collect();
            let from = telling.len().saturating_sub(30);
            eprintln!("containerd said:\n{}", telling[from..].join("\n"));
        }
        {
            let process = self
                .process
                .get_mut()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            let pid = i32::try_from(process.id()).expect("a pid fits");
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            if deadline::wait(process, Duration::from_secs(10)).is_none() {
                let _ = process.kill();
                let _ = process.wait();
            }
        }
        for process in leaks::processes_mentioning(&text(self.folder.path())) {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
        leaks::remove_cgroups(&self.namespace);
        leaks::unmount_under(self.folder.path());
        let ids = self
            .ids
            .get_mut()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone();
        for id in ids {
            let _ = fs::remove_file(self.shim_socket(&id));
        }
        for folder in self.runtime_state() {
            let _ = fs::remove_dir_all(folder);
        }
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect()
}

/// Makes a folder a mount that shares what is mounted in it with its copies.
fn share_mounts_of(folder: &Path) {
    let none = None::<&str>;
    mount(Some(folder), folder, none, MsFlags::MS_BIND, none).expect("bind the test's folder");
    mount(none, folder, none, MsFlags::MS_SHARED, none).expect("share the test's folder");
}

fn write_config(version: Version, folder: &Path, extra: &Extra) {
    let folder_text = text(folder);
    let mut disabled = vec![
        "io.containerd.snapshotter.v1.aufs",
        "io.containerd.snapshotter.v1.blockfile",
        "io.containerd.snapshotter.v1.btrfs",
        "io.containerd.snapshotter.v1.devmapper",
        "io.containerd.snapshotter.v1.zfs",
        "io.containerd.internal.v1.tracing",
        "io.containerd.tracing.processor.v1.otlp",
        "io.containerd.nri.v1.nri",
    ];
    if !extra.cri {
        disabled.push("io.containerd.grpc.v1.cri");
        if version == Version::V2_1 {
            disabled.extend([
                "io.containerd.cri.v1.images",
                "io.containerd.cri.v1.runtime",
            ]);
        }
    }
    let imports: Vec<String> = extra.imports.iter().map(|path| text(path)).collect();
    // The drop-in must come after the keys of the top level, the tables after it.
    let config = format!(
        "version = {version}\n\
         root = \"{folder_text}/root\"\n\
         state = \"{folder_text}/state\"\n\
         disabled_plugins = {disabled:?}\n\
         imports = {imports:?}\n\
         [grpc]\n  address = \"{folder_text}/containerd.sock\"\n\
         [ttrpc]\n  address = \"{folder_text}/containerd.sock.ttrpc\"\n\
         [debug]\n  level = \"info\"\n\
         [plugins.\"io.containerd.internal.v1.opt\"]\n  path = \"{folder_text}/opt\"\n",
        version = version.config_version(),
    );
    fs::write(folder.join("config.toml"), config).expect("config.toml");
}

fn spawn(programs: &Path, folder: &Path, extra: &Extra) -> Child {
    let log = File::options()
        .create(true)
        .append(true)
        .open(folder.join("containerd.log"))
        .expect("containerd.log");
    // A test's own, our binaries, this containerd's own shim, then the machine's.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = [
        folder.join("programs"),
        place::built_dir(),
        programs.to_path_buf(),
    ]
    .into_iter()
    .chain(std::env::split_paths(&path))
    .chain([PathBuf::from("/usr/sbin")]);
    let program = programs.join("containerd");
    let mut command = match extra.own_mounts {
        // It executes containerd: the pid stays.
        Some(propagation) => {
            let mut unshare = Command::new("unshare");
            unshare.args(["--mount", "--propagation", propagation]);
            unshare.arg(program);
            unshare
        }
        None => Command::new(program),
    };
    command
        .arg("--config")
        .arg(folder.join("config.toml"))
        .env("PATH", std::env::join_paths(path).expect("PATH"))
        .env("HOLDFAST_LEDGER_DIR", folder.join("ledger"))
        .env("HOLDFAST_EVENTS_DIR", folder.join("events"))
        .env("HOLDFAST_TRACEFS", folder.join(tracing::FOLDER))
        .env("HOLDFAST_TRACE_INSTANCE", tracing::instance(folder))
        .env("HOLDFAST_TEST_FOLDER", folder)
        .envs(extra.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("dup"))
        .stderr(log)
        .process_group(0)
        .spawn()
        .expect("start containerd")
}
