//! Where an exhibit is shown: a containerd of its own, with one of the two shims and a runtime
//! that fails on order.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::within;
use crate::containerd::{Containerd, Extra, Version};
use crate::fault::{self, Fault};
use crate::scratch::text;
use crate::{deadline, leaks, place};

/// Whose shim and runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// `containerd-shim-runc-v2` of the same containerd, with runc.
    Theirs,
    /// `containerd-shim-holdfast-v2` with `holdfast`.
    Ours,
}

/// See the module.
#[derive(Debug)]
pub struct Stage {
    /// Which side is shown.
    pub side: Side,
    /// Its containerd, whose runtime type is that side's.
    pub containerd: Containerd,
    orders: PathBuf,
}

/// What a client got.
#[derive(Debug)]
pub(super) struct Answer {
    /// Its exit code; `None` when it had to be killed.
    pub(super) code: Option<i32>,
    /// The last line of what it said.
    pub(super) said: String,
    /// Until its end, or until it was killed.
    pub(super) took: Duration,
}

impl Answer {
    /// "0 after 0.1 s", or that there was none.
    pub(super) fn brief(&self) -> String {
        let took = super::seconds(self.took);
        match self.code {
            Some(0) => format!("worked after {took}"),
            Some(code) => format!("failed with {code} after {took}"),
            None => format!("no answer for {took}"),
        }
    }
}

/// A daemon or shim stopped by SIGSTOP; goes on when this is dropped.
#[derive(Debug)]
pub(super) struct Stopped(Pid);

impl Stopped {
    pub(super) fn new(pid: i32) -> Self {
        let pid = Pid::from_raw(pid);
        kill(pid, Signal::SIGSTOP).expect("SIGSTOP");
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

impl Stage {
    pub(super) fn new(side: Side) -> Result<Self, String> {
        let mut containerd = Containerd::start(Version::V2_1, "museum", &Extra::default())
            .ok_or("containerd 2.1 cannot be used here")?;
        let programs = containerd.programs_first();
        let orders = containerd.path("orders");
        fs::create_dir(&programs).expect("folder for programs");
        fs::create_dir(&orders).expect("folder for orders");
        match side {
            Side::Theirs => {
                containerd.runtime_type = "io.containerd.runc.v2".to_owned();
                let runc = place::program("runc").ok_or("runc is not installed")?;
                fault::write_wrapper(&programs.join("runc"), &[runc], &orders);
            }
            Side::Ours => {
                containerd.runtime_type = "io.containerd.holdfast.v2".to_owned();
                // Our shim takes the runtime that lies beside it.
                let shim = "containerd-shim-holdfast-v2";
                fs::copy(place::built(shim), programs.join(shim)).expect("copy the shim");
                let holdfast = place::built("holdfast");
                fault::write_wrapper(&programs.join("holdfast"), &[holdfast], &orders);
            }
        }
        Ok(Self {
            side,
            containerd,
            orders,
        })
    }

    /// Makes a verb of the runtime fail from now on.
    pub(super) fn order(&self, verb: &str, fault: Fault) {
        fault::order(&self.orders, verb, &fault);
    }

    /// Makes it work again.
    pub(super) fn call_off(&self, verb: &str) {
        fault::call_off(&self.orders, verb);
    }

    /// Waits until a call of the runtime hangs as ordered.
    pub(super) fn await_hang(&self) {
        let hang = format!("sleep {}", fault::HANG);
        let folder = text(&self.containerd.path(""));
        let limit = Duration::from_secs(20);
        deadline::eventually("the runtime hangs", limit, || {
            let processes = leaks::processes_mentioning(&folder);
            let found = processes.iter().any(|one| one.command.trim() == hang);
            found.then_some(())
        });
    }

    /// Calls `ctr`; a client that gets no answer is killed.
    pub(super) fn ctr(&self, words: &[&str], limit: Duration) -> Answer {
        let began = Instant::now();
        let mut client = self.containerd.spawn(words, None);
        drop(client.child.stdin.take());
        let ended = deadline::wait(&mut client.child, limit);
        let output = client.output();
        let said = output.lines().rfind(|line| !line.trim().is_empty());
        Answer {
            code: ended.map(|status| status.code().unwrap_or(-1)),
            said: said.unwrap_or_default().trim().to_owned(),
            took: began.elapsed(),
        }
    }

    /// `ctr tasks exec`.
    pub(super) fn exec(&self, id: &str, exec: &str, args: &[&str], limit: Duration) -> Answer {
        let fifo = text(&self.containerd.path("fifo"));
        let mut words = vec!["tasks", "exec", "--fifo-dir", &fifo, "--exec-id", exec, id];
        words.extend(args);
        self.ctr(&words, limit)
    }

    /// `ctr run -d`, with null stdio unless the flags say another.
    pub(super) fn run(&self, id: &str, flags: &[&str], args: &[&str], limit: Duration) -> Answer {
        let words = self.containerd.run_words(id, flags);
        let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
        words.insert(1, "-d");
        words.extend(args);
        self.ctr(&words, limit)
    }

    /// The status containerd gives for a task.
    pub(super) fn status(&self, id: &str) -> String {
        self.containerd
            .task(id)
            .map_or_else(|| "unknown to containerd".to_owned(), |task| task.status)
    }

    /// The sentence of `holdfast why`, once there is one; for their side there is none.
    pub(super) fn why(&self, id: &str) -> Option<String> {
        self.sentence(id, |text| {
            // Of what has not ended that is said first.
            text.lines()
                .find(|line| !line.trim().is_empty() && !line.contains(" has not ended: "))
                .map(str::to_owned)
        })
    }

    /// Its sentence for the record with a code.
    pub(super) fn why_code(&self, id: &str, code: &str) -> Option<String> {
        let reason = format!("  reason      {code} ");
        self.sentence(id, |text| {
            let lines: Vec<&str> = text.lines().collect();
            let at = lines.iter().position(|line| line.starts_with(&reason))?;
            // The sentence, an empty line, the facts.
            lines.get(at.checked_sub(2)?).map(|line| (*line).to_owned())
        })
    }

    fn sentence(&self, id: &str, choose: impl Fn(&str) -> Option<String>) -> Option<String> {
        if self.side == Side::Theirs {
            return None;
        }
        let ask = || {
            let mut command = Command::new(place::built("holdfast"));
            command
                .args(["why", id])
                .env("HOLDFAST_LEDGER_DIR", self.containerd.path("ledger"));
            let answer = deadline::run(&mut command, Duration::from_secs(10));
            choose(&answer.stdout).filter(|_| answer.status.success())
        };
        within(Duration::from_secs(3), ask).map(|sentence| format!("why: {}", sentence.trim()))
    }

    /// The first line of containerd's log, which has the shim's lines too, that contains one of
    /// the words.
    pub(super) fn logged(&self, any_of: &[&str]) -> Option<String> {
        let log = self.containerd.log();
        let line = log
            .lines()
            .find(|line| any_of.iter().any(|word| line.contains(word)))?;
        let message = line.split_once("msg=").map_or(line, |(_, rest)| rest);
        // Fields of the shim's line follow its text.
        let message = message.split("\" id=").next().unwrap_or(message);
        Some(format!(
            "log: {}",
            self.shortened(message.trim_matches(['"', '\\']))
        ))
    }

    /// The refusal of a call as an explanation.
    pub(super) fn refused(&self, said: &str) -> Option<String> {
        let said = said.trim_start_matches("ctr: ");
        (!said.is_empty()).then(|| format!("rpc: {}", self.shortened(said)))
    }

    /// Without the folder of this stage in its paths.
    pub(super) fn shortened(&self, text_with_paths: &str) -> String {
        text_with_paths
            .replace(text(&self.containerd.path("")).trim_end_matches('/'), "…")
            .replace(&self.containerd.namespace, "museum")
    }

    /// Ends everything, for an exhibit that is over its limit.
    pub(super) fn abandon(&self) {
        let folder = text(&self.containerd.path(""));
        for process in leaks::processes_mentioning(folder.trim_end_matches('/')) {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
        leaks::remove_cgroups(&self.containerd.namespace);
    }
}
