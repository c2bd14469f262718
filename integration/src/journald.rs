//! systemd's own journald, as an instance beside whatever this machine has, with its files in memory.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::{deadline, place, skip};

const PROGRAM: &str = "/lib/systemd/systemd-journald";
const LIMIT: Duration = Duration::from_secs(30);

/// See the module. Ended, with what it left in `/run`, when dropped.
#[derive(Debug)]
pub struct Journald {
    process: Child,
    name: String,
}

impl Journald {
    /// Starts one; `None`, with a word on the terminal, where that cannot be done.
    ///
    /// # Panics
    /// When it starts and does not listen.
    #[must_use]
    pub fn start(test: &str) -> Option<Self> {
        if let Err(why) = place::is_root() {
            skip(test, &why);
            return None;
        }
        if !Path::new(PROGRAM).exists() || !Path::new("/run/systemd").is_dir() {
            skip(test, &format!("no {PROGRAM}"));
            return None;
        }
        let name = place::unique("holdfast-test");
        let script = format!(
            "mount -t tmpfs none /var/log && mkdir /var/log/journal && exec {PROGRAM} {name}"
        );
        let process = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("unshare");
        let mut journald = Self { process, name };
        let socket = journald.folder().join("socket");
        let is_there = deadline::eventually("journald listens or gives up", LIMIT, || {
            let ended = matches!(journald.process.try_wait(), Ok(Some(_)));
            (ended || socket.exists()).then_some(!ended)
        });
        if !is_there {
            skip(test, "systemd-journald does not run here");
            return None;
        }
        Some(journald)
    }

    /// Where its sockets are, for `HOLDFAST_JOURNALD`.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        PathBuf::from(format!("/run/systemd/journal.{}", self.name))
    }

    /// The entries that match, as journalctl gives them, once there are some.
    ///
    /// # Panics
    /// When there are none in time.
    #[must_use]
    #[track_caller]
    pub fn entries(&self, matches: &[&str]) -> Vec<Value> {
        let pid = self.process.id().to_string();
        let namespace = format!("--namespace={}", self.name);
        deadline::eventually(&format!("journald has {matches:?}"), LIMIT, || {
            let mut command = Command::new("nsenter");
            command.args(["-t", &pid, "-m", "journalctl", "-o", "json", "--no-pager"]);
            command.arg(&namespace).args(matches);
            let said = deadline::run(&mut command, LIMIT);
            let lines = said.stdout.lines();
            let entries: Vec<Value> = lines
                .filter_map(|line| serde_json::from_str(line).ok())
                .collect();
            (!entries.is_empty()).then_some(entries)
        })
    }
}

impl Drop for Journald {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(self.folder());
    }
}
