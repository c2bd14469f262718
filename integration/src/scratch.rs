//! The place of one test that drives a runtime directly: folder, cgroups, runtime root.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::bundle::Bundle;
use crate::deadline::{self, Finished};
use crate::runtime::{Kind, Runtime};
use crate::{leaks, place};

/// How long one call of a runtime may take. Ten times what a loaded machine needs.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Runs a test with the named runtime, and afterwards looks for what it left.
///
/// # Panics
/// As the test does, and when something is left behind.
pub fn with(runtime: &str, test: &str, body: fn(&Scratch)) {
    if let Err(why) = place::is_root().and_then(|()| crate::image::busybox()) {
        return crate::skip(test, &why);
    }
    match Runtime::find(Kind::named(runtime)) {
        Err(why) => crate::skip(test, &why),
        Ok(runtime) => {
            let scratch = Scratch::new(runtime);
            body(&scratch);
            scratch.assert_nothing_left();
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Scratch {
    /// The runtime under test.
    pub runtime: Runtime,
    /// Parent of all cgroups of this test, without leading slash.
    pub cgroup: String,
    folder: TempDir,
    started: Mutex<BTreeMap<String, i32>>,
}

impl Scratch {
    /// A fresh one.
    ///
    /// # Panics
    /// When the temporary folder cannot be made.
    #[must_use]
    pub fn new(runtime: Runtime) -> Self {
        leaks::keep_own_descriptors();
        // Containers outlive the `create` that made them; as subreaper their exit comes to us.
        nix::sys::prctl::set_child_subreaper(true).expect("become subreaper");
        let folder = tempfile::Builder::new()
            .prefix("holdfast-test-")
            .tempdir()
            .expect("folder");
        // Containers in user namespaces must be able to reach their root file system.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        fs::create_dir(folder.path().join("state")).expect("runtime root");
        Self {
            runtime,
            cgroup: place::unique("holdfast-test"),
            folder,
            started: Mutex::default(),
        }
    }

    /// A path in the test's folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The runtime's state folder (`--root`).
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.path("state")
    }

    /// A new bundle whose container is called `name`.
    #[must_use]
    pub fn bundle(&self, name: &str) -> Bundle {
        Bundle::new(&self.path(&format!("bundle-{name}")), name, &self.cgroup)
    }

    /// The runtime's command line with its global flags.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        self.command_at(&self.root(), args)
    }

    /// [`Scratch::command`] with a runtime root of its own, which knows nothing from before.
    #[must_use]
    pub fn command_at(&self, root: &Path, args: &[&str]) -> Command {
        let mut command = self.runtime.command();
        command.arg("--root").arg(root).args(args);
        // Found by the search for leaks, whatever becomes of the arguments.
        command.env("HOLDFAST_TEST_FOLDER", self.folder.path());
        command.env("HOLDFAST_LEDGER_DIR", self.path("ledger"));
        command
    }

    /// Calls the runtime to its end.
    ///
    /// # Panics
    /// When it takes longer than [`LIMIT`].
    #[track_caller]
    pub fn call(&self, args: &[&str]) -> Finished {
        deadline::run(&mut self.command(args), LIMIT)
    }

    /// `run` in the foreground, to the container's end.
    ///
    /// # Panics
    /// When it takes longer than [`LIMIT`].
    #[track_caller]
    pub fn run(&self, bundle: &Bundle) -> Finished {
        bundle.write();
        self.call(&["run", "--bundle", &text(&bundle.path), &bundle.id])
    }

    /// `create`, which must succeed. The container's output goes to files: [`Scratch::output`].
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn create(&self, bundle: &Bundle) -> i32 {
        bundle.write();
        let (created, pid) = self.try_create(bundle, &[]);
        assert!(
            created.status.success(),
            "{created}\n{}",
            self.output(bundle).1
        );
        pid.expect("a pid file")
    }

    /// `create` with more flags; the pid is that of the pid file, if one was written.
    ///
    /// # Panics
    /// When it takes longer than [`LIMIT`].
    #[track_caller]
    pub fn try_create(&self, bundle: &Bundle, flags: &[&str]) -> (Finished, Option<i32>) {
        let pid_file = self.path(&format!("{}.pid", bundle.id));
        let _ = fs::remove_file(&pid_file);
        let mut command = self.runtime.command();
        command.arg("--root").arg(self.root());
        command.args([
            "create",
            "--bundle",
            &text(&bundle.path),
            "--pid-file",
            &text(&pid_file),
        ]);
        command.args(flags).arg(&bundle.id);
        command.env("HOLDFAST_TEST_FOLDER", self.folder.path());
        command.env("HOLDFAST_LEDGER_DIR", self.path("ledger"));
        let finished = self.call_with_own_output(command, bundle);
        let pid = fs::read_to_string(&pid_file)
            .ok()
            .and_then(|text| text.trim().parse().ok());
        if let Some(pid) = pid {
            self.started
                .lock()
                .expect("pids")
                .insert(bundle.id.clone(), pid);
        }
        (finished, pid)
    }

    /// The container keeps the streams of `create`, so they are files of its own; what the
    /// runtime itself said on its standard error is in there too, and read back.
    #[track_caller]
    fn call_with_own_output(&self, mut command: Command, bundle: &Bundle) -> Finished {
        let (out, err) = self.output_files(bundle);
        let script = "out=$1 err=$2; shift 2; exec \"$@\" >\"$out\" 2>\"$err\"";
        let mut wrapped = Command::new("sh");
        wrapped.args(["-c", script, "sh"]).arg(&out).arg(&err);
        wrapped.arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            if let Some(value) = value {
                wrapped.env(key, value);
            }
        }
        command = wrapped;
        let mut finished = deadline::run(&mut command, LIMIT);
        finished.stderr = fs::read_to_string(err).unwrap_or_default();
        finished
    }

    fn output_files(&self, bundle: &Bundle) -> (PathBuf, PathBuf) {
        (
            self.path(&format!("{}.stdout", bundle.id)),
            self.path(&format!("{}.stderr", bundle.id)),
        )
    }

    /// What a container made by [`Scratch::create`] wrote so far: stdout, stderr.
    #[must_use]
    pub fn output(&self, bundle: &Bundle) -> (String, String) {
        let (out, err) = self.output_files(bundle);
        (
            fs::read_to_string(out).unwrap_or_default(),
            fs::read_to_string(err).unwrap_or_default(),
        )
    }

    /// `create` and `start`, both of which must succeed; the pid of init.
    ///
    /// # Panics
    /// When they fail.
    #[track_caller]
    pub fn start(&self, bundle: &Bundle) -> i32 {
        let pid = self.create(bundle);
        self.call(&["start", &bundle.id]).ok();
        pid
    }

    /// `exec` of a command in the foreground.
    ///
    /// # Panics
    /// When it takes longer than [`LIMIT`].
    #[track_caller]
    pub fn exec(&self, bundle: &Bundle, args: &[&str]) -> Finished {
        let words: Vec<&str> = ["exec", &bundle.id]
            .into_iter()
            .chain(args.iter().copied())
            .collect();
        self.call(&words)
    }

    /// `exec` of an OCI process.
    ///
    /// # Panics
    /// When it takes longer than [`LIMIT`].
    #[track_caller]
    pub fn exec_process(&self, bundle: &Bundle, process: &Value) -> Finished {
        let file = self.path(&format!("{}.process.json", place::unique(&bundle.id)));
        fs::write(&file, process.to_string()).expect("process.json");
        self.call(&["exec", "--process", &text(&file), &bundle.id])
    }

    /// What `state` says.
    ///
    /// # Panics
    /// When it fails or is no JSON.
    #[track_caller]
    pub fn state(&self, id: &str) -> Value {
        let said = self.call(&["state", id]);
        serde_json::from_str(said.ok()).unwrap_or_else(|e| panic!("{e}: {said}"))
    }

    /// The end of a container's init process, of which this process is the parent by now:
    /// exit code, or 128 + signal.
    ///
    /// # Panics
    /// When it does not come within [`LIMIT`].
    #[track_caller]
    pub fn exit_of(&self, pid: i32) -> i32 {
        let exit =
            deadline::eventually(&format!("exit of process {pid}"), LIMIT, || {
                match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
                    Ok(WaitStatus::Exited(_, code)) => Some(code),
                    Ok(WaitStatus::Signaled(_, signal, _)) => Some(128 + signal as i32),
                    Ok(_) => None,
                    Err(e) => panic!("wait for {pid}: {e}"),
                }
            });
        // Reaped: the number may be another thread's child from now on, which is not ours to
        // wait for at the end.
        self.started
            .lock()
            .expect("pids")
            .retain(|_, started| *started != pid);
        exit
    }

    /// Kills init, reaps it, deletes the container.
    ///
    /// # Panics
    /// When any of it fails.
    #[track_caller]
    pub fn end(&self, bundle: &Bundle) {
        self.call(&["kill", &bundle.id, "KILL"]).ok();
        let pid = self
            .started
            .lock()
            .expect("pids")
            .get(&bundle.id)
            .copied()
            .expect("started");
        self.exit_of(pid);
        self.call(&["delete", &bundle.id]).ok();
    }

    /// Starts the runtime and leaves it running, for races; it is killed at the latest by the
    /// test's end.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn spawn(&self, args: &[&str]) -> std::process::Child {
        let null = || Stdio::from(File::options().write(true).open("/dev/null").expect("null"));
        self.command(args)
            .stdin(Stdio::null())
            .stdout(null())
            .stderr(null())
            .spawn()
            .expect("spawn")
    }

    /// Everything that would be left if the test ended now.
    #[must_use]
    pub fn left_behind(&self) -> Vec<String> {
        let mut left = Vec::new();
        let folder = text(self.folder.path());
        for process in leaks::processes_mentioning(&folder) {
            left.push(format!("process {} ({})", process.pid, process.command));
        }
        for pid in leaks::cgroup_members(&self.cgroup) {
            left.push(format!("process {pid} in a cgroup of the test"));
        }
        for mount in leaks::mounts_under(self.folder.path()) {
            left.push(format!("mount {}", mount.display()));
        }
        for cgroup in leaks::cgroups_below(&self.cgroup) {
            left.push(format!("cgroup {}", cgroup.display()));
        }
        left.extend(leaks::states_in(&self.root()));
        left
    }

    /// Fails when anything is left behind, after a moment for what is still ending.
    ///
    /// # Panics
    /// Naming it.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        deadline::nothing_left("behind", Duration::from_secs(2), || self.left_behind());
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        leaks::remove_cgroups(&self.cgroup);
        for process in leaks::processes_mentioning(&text(self.folder.path())) {
            let _ = nix::sys::signal::kill(
                Pid::from_raw(process.pid),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
        for pid in self.started.lock().expect("pids").values() {
            let _ = waitpid(Pid::from_raw(*pid), Some(WaitPidFlag::WNOHANG));
        }
        leaks::unmount_under(self.folder.path());
    }
}

/// A path as text: those of the harness are.
///
/// # Panics
/// When it is not UTF-8.
#[must_use]
pub fn text(path: &Path) -> String {
    path.to_str()
        .expect("a path of the harness is UTF-8")
        .to_owned()
}
