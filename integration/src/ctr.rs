//! containerd's own client, as an operator would use it, with deadlines.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::containerd::Containerd;
use crate::deadline::{self, Finished};
use crate::image;
use crate::scratch::text;

/// How long one call of `ctr` may take.
pub const LIMIT: Duration = Duration::from_secs(60);

/// A `ctr` that runs beside the test; killed when dropped.
#[derive(Debug)]
pub struct Client {
    /// The process; its standard input is a pipe unless it has a terminal.
    pub child: Child,
    output: PathBuf,
}

impl Client {
    /// Waits for its end; its exit code.
    ///
    /// # Panics
    /// When it is not done within [`LIMIT`].
    #[track_caller]
    pub fn code(&mut self) -> i32 {
        let status = deadline::wait(&mut self.child, LIMIT);
        status
            .unwrap_or_else(|| panic!("ctr not done within {LIMIT:?}; it said: {}", self.output()))
            .code()
            .expect("ctr ends by itself")
    }

    /// What it wrote so far, when it has no terminal.
    #[must_use]
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap_or_default()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One line of `ctr tasks list`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// The container's id.
    pub id: String,
    /// Pid of init; 0 where containerd knows none.
    pub pid: i32,
    /// `RUNNING`, `STOPPED`, `PAUSED`, `CREATED`, `UNKNOWN`.
    pub status: String,
}

impl Containerd {
    /// A command line of `ctr` for this containerd and the test's namespace.
    #[must_use]
    pub fn ctr_command(&self, args: &[&str]) -> Command {
        let mut command = self.program("ctr");
        command
            .arg("--address")
            .arg(self.address())
            .args(["--namespace", &self.namespace]);
        command.args(args);
        command
    }

    /// Calls `ctr`.
    ///
    /// # Panics
    /// When it takes longer than [`LIMIT`].
    #[track_caller]
    pub fn ctr(&self, args: &[&str]) -> Finished {
        deadline::run(&mut self.ctr_command(args), LIMIT)
    }

    /// Calls `ctr`, which must succeed; its output.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn ctr_ok(&self, args: &[&str]) -> String {
        self.ctr(args).ok().to_owned()
    }

    /// The words of `ctr run` up to the process's arguments.
    #[must_use]
    pub fn run_words(&self, id: &str, flags: &[&str]) -> Vec<String> {
        self.remember(id);
        [
            "run",
            "--runtime",
            &self.runtime_type,
            "--fifo-dir",
            &text(&self.path("fifo")),
        ]
        .into_iter()
        .chain(flags.iter().copied())
        .chain([image::NAME, id])
        .map(str::to_owned)
        .collect()
    }

    /// `ctr run` to the container's end.
    ///
    /// # Panics
    /// When it takes longer than [`LIMIT`].
    #[track_caller]
    pub fn run(&self, id: &str, flags: &[&str], args: &[&str]) -> Finished {
        let words = self.run_words(id, flags);
        let words: Vec<&str> = words
            .iter()
            .map(String::as_str)
            .chain(args.iter().copied())
            .collect();
        self.ctr(&words)
    }

    /// `ctr run` in the background of the test, on a terminal or not.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn spawn_run(
        &self,
        id: &str,
        flags: &[&str],
        args: &[&str],
        terminal: Option<OwnedFd>,
    ) -> Client {
        let words = self.run_words(id, flags);
        let words: Vec<&str> = words
            .iter()
            .map(String::as_str)
            .chain(args.iter().copied())
            .collect();
        self.spawn(&words, terminal)
    }

    /// A container that runs, and ends with 42 when [`Containerd::tell_to_end`] says so.
    ///
    /// # Panics
    /// When it does not come up within `limit`.
    #[must_use]
    #[track_caller]
    pub fn spawn_until_told(&self, id: &str, limit: Duration) -> Client {
        let script = "echo ready; until test -e /tmp/now; do usleep 10000; done; exit 42";
        let client = self.spawn_run(id, &["--rm"], &["sh", "-c", script], None);
        deadline::eventually("the container runs", limit, || {
            client.output().contains("ready").then_some(())
        });
        client
    }

    /// Ends what [`Containerd::spawn_until_told`] started.
    ///
    /// # Panics
    /// When no exec can tell it.
    #[track_caller]
    pub fn tell_to_end(&self, id: &str) {
        let touched = self.exec(id, "tell", &[], &["touch", "/tmp/now"]);
        // What it tells may end the container, and that the exec, before `touch` has ended.
        assert!(matches!(touched.code(), 0 | 137), "{touched}");
    }

    /// Any `ctr` command in the background of the test, on a terminal or not.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn spawn(&self, words: &[&str], terminal: Option<OwnedFd>) -> Client {
        let output = self.path(&crate::place::unique("client"));
        let mut command = self.ctr_command(words);
        if let Some(slave) = terminal {
            let again = || Stdio::from(slave.try_clone().expect("dup"));
            command.stdin(again()).stdout(again()).stderr(again());
        } else {
            let file = File::create(&output).expect("file for output");
            command
                .stdin(Stdio::piped())
                .stdout(file.try_clone().expect("dup"))
                .stderr(file);
        }
        let child = command.spawn().expect("start ctr");
        Client { child, output }
    }

    /// `ctr run -d` with null stdio; the pid of init.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn start_task(&self, id: &str, flags: &[&str], args: &[&str]) -> i32 {
        let flags: Vec<&str> = ["-d", "--null-io"]
            .into_iter()
            .chain(flags.iter().copied())
            .collect();
        self.run(id, &flags, args).ok();
        self.task(id)
            .unwrap_or_else(|| panic!("no task {id} after ctr run -d"))
            .pid
    }

    /// `ctr tasks exec` to the process's end.
    ///
    /// # Panics
    /// When it takes longer than [`LIMIT`].
    #[track_caller]
    pub fn exec(&self, id: &str, exec_id: &str, flags: &[&str], args: &[&str]) -> Finished {
        let fifo = text(&self.path("fifo"));
        let words: Vec<&str> = ["tasks", "exec", "--fifo-dir", &fifo, "--exec-id", exec_id]
            .into_iter()
            .chain(flags.iter().copied())
            .chain([id])
            .chain(args.iter().copied())
            .collect();
        self.ctr(&words)
    }

    /// The tasks of the test's namespace.
    ///
    /// # Panics
    /// When they cannot be listed.
    #[must_use]
    #[track_caller]
    pub fn tasks(&self) -> Vec<Task> {
        self.ctr_ok(&["tasks", "list"])
            .lines()
            .skip(1)
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                Some(Task {
                    id: words.next()?.to_owned(),
                    pid: words.next()?.parse().ok()?,
                    status: words.next()?.to_owned(),
                })
            })
            .collect()
    }

    /// One task.
    ///
    /// # Panics
    /// When the tasks cannot be listed.
    #[must_use]
    #[track_caller]
    pub fn task(&self, id: &str) -> Option<Task> {
        self.tasks().into_iter().find(|task| task.id == id)
    }

    /// Waits until a task is in a state.
    ///
    /// # Panics
    /// When it does not get there within [`LIMIT`].
    #[track_caller]
    pub fn await_status(&self, id: &str, status: &str) {
        deadline::eventually(&format!("{id} is {status}"), LIMIT, || {
            (self.task(id)?.status == status).then_some(())
        });
    }

    /// Kills a task that must be there, removes it and its container.
    ///
    /// # Panics
    /// When any of it fails.
    #[track_caller]
    pub fn end_task(&self, id: &str) {
        self.ctr_ok(&["tasks", "kill", "--signal", "SIGKILL", id]);
        self.await_status(id, "STOPPED");
        self.remove(id);
    }

    /// Removes a stopped task and its container.
    ///
    /// # Panics
    /// When any of it fails.
    #[track_caller]
    pub fn remove(&self, id: &str) {
        // The code is that of the task.
        let removed = self.ctr(&["tasks", "delete", id]);
        assert!(
            self.task(id).is_none(),
            "task {id} is still there: {removed}"
        );
        self.ctr_ok(&["containers", "delete", id]);
    }
}
