//! The museum: what broke containers elsewhere, done again to containerd's own shim and to ours.
//!
//! Each exhibit is a file. It does the same to both sides, each under a containerd 2.1 of its own,
//! and tells what it saw; whether a side held is computed from that, never written down before.
//! Where nothing differs the exhibit stays as a guard, and the table says so.

mod background_child;
mod busy_rootfs;
mod containerd_down;
mod containerd_stopped;
mod hung_exec;
mod killed_by_stranger;
mod killed_mid_create;
mod log_disk_full;
mod logger_never_ready;
mod out_of_memory;
mod second_start;
mod shim_fails;
mod shim_killed;
mod shim_panics;
mod slow_kill;
mod stage;
mod stalled_reader;
mod state_dir_full;
mod table;
mod unkillable;
mod wedged_shim;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::deadline::within;

pub use stage::{Side, Stage};
pub use table::print;

/// What one side did.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Whether nothing was lost, blocked or left unexplained.
    pub held: bool,
    /// What was observed, in a few words.
    pub what: String,
    /// The sentence it gave as explanation, with where it was found.
    pub said: Option<String>,
}

/// What was seen, or why it could not be shown here.
pub type Outcome = Result<Seen, String>;

/// One exhibit.
#[derive(Clone, Copy)]
pub struct Exhibit {
    /// Its name, also for choosing it on the command line.
    pub name: &'static str,
    /// How long one side may take, clean-up excepted.
    pub limit: Duration,
    visit: fn(&Stage) -> Outcome,
}

impl std::fmt::Debug for Exhibit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// A line of the table.
#[derive(Debug)]
pub struct Row {
    /// Whose.
    pub name: &'static str,
    /// containerd's own shim with runc.
    pub theirs: Outcome,
    /// Ours.
    pub ours: Outcome,
    /// How long both took together.
    pub took: Duration,
}

/// What a row says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Ours held, theirs did not.
    Better,
    /// Both held: a guard.
    Guard,
    /// Neither held.
    Neither,
    /// Theirs held, ours did not.
    Worse,
    /// One of them could not be shown.
    NotShown,
}

impl Row {
    /// Computed from what was seen.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match (&self.theirs, &self.ours) {
            (Ok(theirs), Ok(ours)) => match (theirs.held, ours.held) {
                (false, true) => Verdict::Better,
                (true, true) => Verdict::Guard,
                (false, false) => Verdict::Neither,
                (true, false) => Verdict::Worse,
            },
            (Err(_), _) | (_, Err(_)) => Verdict::NotShown,
        }
    }
}

/// All exhibits, in the order of the table.
pub const EXHIBITS: &[Exhibit] = &[
    exhibit("hung exec withholds init's exit", 60, hung_exec::visit),
    exhibit("slow kill delays another's exec", 60, slow_kill::visit),
    exhibit("second start of a failed exec", 60, second_start::visit),
    exhibit(
        "second start of a running exec",
        60,
        second_start::visit_while_it_runs,
    ),
    exhibit("logger never ready", 90, logger_never_ready::visit),
    exhibit("log disk full", 60, log_disk_full::visit),
    exhibit("wedged shim", 60, wedged_shim::visit),
    exhibit("unkillable process", 60, unkillable::visit),
    exhibit("busy rootfs", 60, busy_rootfs::visit),
    exhibit("background child holds stdout", 60, background_child::visit),
    exhibit("state directory full", 60, state_dir_full::visit),
    exhibit("runtime killed mid-create", 60, killed_mid_create::visit),
    exhibit("containerd down across exits", 60, containerd_down::visit),
    exhibit("containerd stopped", 150, containerd_stopped::visit),
    exhibit("fifo reader stalled", 60, stalled_reader::visit),
    exhibit("a stranger's kill -9", 60, killed_by_stranger::visit),
    exhibit("no memory for init", 60, out_of_memory::init),
    exhibit("no memory for a child", 60, out_of_memory::child),
    exhibit("panic of the shim", 60, shim_panics::visit),
    exhibit(
        "panic of the shim, containerd down",
        60,
        shim_panics::visit_while_down,
    ),
    exhibit("SIGSEGV of the shim", 60, shim_fails::by_segv),
    exhibit(
        "SIGSEGV of the shim, containerd down",
        60,
        shim_fails::by_segv_while_down,
    ),
    exhibit("SIGABRT of the shim", 60, shim_fails::by_abort),
    exhibit(
        "SIGABRT of the shim, containerd down",
        60,
        shim_fails::by_abort_while_down,
    ),
    exhibit(
        "SIGSTOP of the shim, containerd down",
        90,
        shim_fails::stopped_while_down,
    ),
    exhibit("SIGSTOP of the shim", 60, shim_fails::stopped),
    exhibit("SIGKILL of the shim", 60, shim_fails::by_kill),
    exhibit(
        "SIGKILL of the shim, containerd down",
        60,
        shim_fails::by_kill_while_down,
    ),
    exhibit(
        "SIGKILL of the shim and what restarts it",
        60,
        shim_killed::visit,
    ),
    exhibit(
        "SIGKILL of both, containerd down",
        60,
        shim_killed::visit_while_down,
    ),
];

const fn exhibit(name: &'static str, seconds: u64, visit: fn(&Stage) -> Outcome) -> Exhibit {
    Exhibit {
        name,
        limit: Duration::from_secs(seconds),
        visit,
    }
}

impl Exhibit {
    /// Shows it on both sides at the same time.
    ///
    /// # Panics
    /// When a thread cannot be started.
    #[must_use]
    pub fn show(&self) -> Row {
        let began = Instant::now();
        let (theirs, ours) = thread::scope(|scope| {
            let theirs = scope.spawn(|| self.show_on(Side::Theirs));
            let ours = self.show_on(Side::Ours);
            (theirs.join().expect("panics are caught inside"), ours)
        });
        Row {
            name: self.name,
            theirs,
            ours,
            took: began.elapsed(),
        }
    }

    fn show_on(&self, side: Side) -> Outcome {
        let stage = catch_unwind(|| Stage::new(side)).map_err(|panic| said_by(&*panic))??;
        let stage = Arc::new(stage);
        let (tell, told) = mpsc::channel();
        let visit = self.visit;
        let own = Arc::clone(&stage);
        let visitor = thread::spawn(move || {
            // What a failed visit leaves half done goes with its stage.
            let outcome = catch_unwind(AssertUnwindSafe(|| visit(&own)))
                .unwrap_or_else(|panic| Err(said_by(&*panic)));
            drop(own);
            let _ = tell.send(outcome);
        });
        let outcome = told.recv_timeout(self.limit).unwrap_or_else(|_| {
            // Everything it could wait for ends with this, and then so does the visitor.
            stage.abandon();
            Err(format!("not done within {:?}", self.limit))
        });
        let _ = visitor.join();
        drop(stage);
        outcome
    }
}

/// A call that may find its shim gone: what it said then.
fn attempt<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| said_by(&*panic))
}

fn said_by(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without words").to_owned()
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
