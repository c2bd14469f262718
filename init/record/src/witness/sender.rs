//! What is to be said of a sender: from `/proc` while it lives, from the trace when it is gone.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use super::trace;
use crate::process::{ProcessIdentity, Stat};
use crate::reason::Sender;
use crate::sys;

/// A command line lies in the process' own memory, whose lock somebody may hold; no longer than this.
const PATIENCE: Duration = Duration::from_millis(500);
/// Longest command line, in characters.
const MAX_COMMAND: usize = 300;
/// Clock ticks of `/proc` in a second, `sysconf(_SC_CLK_TCK)`: 100 on every architecture we build for.
const TICKS: u64 = 100;

/// Describes the thread `tid`, called `task`, as it was when it sent a signal `at` that time since boot.
pub(super) fn describe(tid: u32, task: &str, at: Duration, processes: Option<&Path>) -> Sender {
    let mut sender = Sender {
        pid: tid,
        comm: (task != "<...>").then(|| task.to_owned()),
        cmdline: None,
        uid: None,
        parent: None,
        cgroup: None,
    };
    if is_still_there(tid, at) {
        from_proc(&mut sender);
    }
    if (sender.cmdline.is_none() || sender.parent.is_none())
        && let Some(trace) = processes
    {
        from_trace(&mut sender, trace, at);
    }
    sender
}

/// Whether the thread that has the number now was there at that time already.
fn is_still_there(tid: u32, at: Duration) -> bool {
    let Ok(identity) = ProcessIdentity::read(tid) else {
        return false;
    };
    let started = Duration::from_secs(identity.start_time / TICKS);
    // The trace's clock stops while the machine sleeps and that of /proc does not: then nothing is said too much.
    started <= at + sys::suspended()
}

fn from_proc(sender: &mut Sender) {
    let folder = PathBuf::from(format!("/proc/{}", sender.pid));
    let Ok(status) = fs::read_to_string(folder.join("status")) else {
        return;
    };
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.strip_prefix(':')?
            .split_whitespace()
            .next()?
            .parse::<u32>()
            .ok()
    };
    sender.uid = field("Uid");
    if let Some(parent) = field("PPid") {
        let name = match Stat::read(parent) {
            Ok(stat) => stat.comm,
            Err(_) if parent == 0 => "the kernel".to_owned(),
            Err(_) => "?".to_owned(),
        };
        sender.parent = Some(format!("{parent} ({name})"));
    }
    sender.cgroup = fs::read_to_string(folder.join("cgroup"))
        .ok()
        .and_then(|text| cgroup(&text));
    sender.cmdline = command(&folder.join("cmdline"));
    // A signal comes from a thread; people look for the process.
    if let Some(process) = field("Tgid") {
        sender.pid = process;
    }
}

/// The longest path of `/proc/PID/cgroup`: of the hierarchies it says the most.
fn cgroup(text: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .max_by_key(|path| path.len())
        .filter(|path| *path != "/")
        .map(str::to_owned)
}

fn command(path: &Path) -> Option<String> {
    let (tell, told) = mpsc::channel();
    let path = path.to_owned();
    std::thread::Builder::new()
        .spawn(move || {
            let _ = tell.send(fs::read(path));
        })
        .ok()?;
    let bytes = told.recv_timeout(PATIENCE).ok()?.ok()?;
    let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
    let text: String = text.trim().chars().take(MAX_COMMAND).collect();
    (!text.is_empty()).then_some(text)
}

/// The program it last became before `at`, and who made it.
fn from_trace(sender: &mut Sender, trace: &Path, at: Duration) {
    let (mut program, mut parent) = (None, None);
    let pid = sender.pid;
    // A trace that cannot be read leaves the sender with its name alone.
    let _ = trace::read(trace, |line| {
        if line.at > at {
            return;
        }
        if trace::made(&line, pid) {
            // An earlier process of that number is another one.
            parent = Some(format!("{} ({})", line.pid, line.task));
            program = None;
        }
        if let Some(file) = trace::program(&line, pid) {
            program = Some(file.to_owned());
        }
    });
    sender.cmdline = sender.cmdline.take().or(program);
    sender.parent = sender.parent.take().or(parent);
}
