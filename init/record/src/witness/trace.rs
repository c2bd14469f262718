//! Lines of a `trace` file, `Documentation/trace/ftrace.rst`:
//!
//! ```text
//!             kill-14039   [000] d..1. 12102.289412: signal_generate: sig=9 errno=0 code=0 comm=sleep pid=14038 grp=1 res=0
//! ```
//!
//! Task, its thread's id, processor, flags, seconds since boot, event, and the event's own fields. A task's name may hold
//! spaces, dashes and brackets, so fields are taken from where no name can be.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::time::Duration;

use crate::exit::Signal;

/// siginfo's `si_code` of what the kernel itself sends, `sigaction(2)`.
const SI_KERNEL: i32 = 128;
/// The tracepoint's `res` for a signal that went to the process, `include/trace/events/signal.h`; 1 is ignored, 2
/// already pending, 3 and 4 lost details.
const RESULT_IGNORED: i32 = 1;
/// The longest line that is looked at.
const MAX_LINE: usize = 1024;

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line<'a> {
    /// Name of the task that was running.
    pub(super) task: &'a str,
    /// Its thread id.
    pub(super) pid: u32,
    /// Since boot.
    pub(super) at: Duration,
    /// Name of the tracepoint.
    pub(super) event: &'a str,
    /// Its fields.
    pub(super) fields: &'a str,
}

/// What `signal_generate` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Generated {
    pub(super) signal: Signal,
    pub(super) target: u32,
    pub(super) by_kernel: bool,
}

/// Calls `each` for every record of the file, oldest first.
pub(super) fn read(path: &Path, mut each: impl FnMut(Line<'_>)) -> io::Result<()> {
    let mut reader = BufReader::new(File::open(path)?);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        if reader.read_until(b'\n', &mut bytes)? == 0 {
            return Ok(());
        }
        bytes.truncate(MAX_LINE);
        let text = String::from_utf8_lossy(&bytes);
        if let Some(line) = line(&text) {
            each(line);
        }
    }
}

/// Reads one line; none for headings and for what another tool may have written there.
fn line(text: &str) -> Option<Line<'_>> {
    let text = text.trim_end();
    if text.starts_with('#') {
        return None;
    }
    let known = [
        "signal_generate",
        "mark_victim",
        "task_newtask",
        "sched_process_exec",
    ];
    // No name of a task is long enough to hold ": EVENT: ", which is 15 bytes and more.
    let (event, at) = known
        .iter()
        .find_map(|event| Some((event, text.find(&format!(": {event}: "))?)))?;
    let fields = text.get(at + event.len() + 4..)?;
    let (head, time) = last_word(text.get(..at)?)?;
    let (head, _flags) = last_word(head)?;
    let (mut task, _processor) = last_word(head)?;
    task = task.trim();
    if task.ends_with(')') {
        // The thread's group, where record-tgid is on.
        task = task.get(..task.rfind('(')?)?.trim_end();
    }
    let (task, pid) = task.rsplit_once('-')?;
    Some(Line {
        task,
        pid: pid.parse().ok()?,
        at: seconds(time)?,
        event,
        fields,
    })
}

fn last_word(text: &str) -> Option<(&str, &str)> {
    text.trim_end().rsplit_once(' ')
}

fn seconds(text: &str) -> Option<Duration> {
    let (whole, fraction) = text.split_once('.')?;
    let micros: u64 = fraction.parse().ok()?;
    Some(Duration::from_secs(whole.parse().ok()?) + Duration::from_micros(micros))
}

/// The number behind ` name=`, of the last such field: what a task's name could hold comes before it.
fn number<T: std::str::FromStr>(fields: &str, name: &str) -> Option<T> {
    let key = format!("{name}=");
    let at = fields
        .rmatch_indices(&key)
        .map(|(at, _)| at)
        .find(|at| *at == 0 || fields.as_bytes().get(at - 1) == Some(&b' '))?;
    let rest = fields.get(at + key.len()..)?;
    rest.split(' ').next()?.parse().ok()
}

/// The signal of a `signal_generate` that was not ignored.
pub(super) fn generated(line: &Line<'_>) -> Option<Generated> {
    if line.event != "signal_generate" {
        return None;
    }
    // These come before the target's name, the others after it.
    let (before, _) = line.fields.split_once(" comm=")?;
    if number(line.fields, "res") == Some(RESULT_IGNORED) {
        return None;
    }
    Some(Generated {
        signal: Signal::new(number(before, "sig")?),
        target: number(line.fields, "pid")?,
        by_kernel: number(before, "code") == Some(SI_KERNEL),
    })
}

/// The process of a `mark_victim`.
pub(super) fn victim(line: &Line<'_>) -> Option<u32> {
    let first = line.fields.split(' ').next()?;
    (line.event == "mark_victim")
        .then(|| first.strip_prefix("pid=")?.parse().ok())
        .flatten()
}

/// The program of a `sched_process_exec` by the thread `pid`.
pub(super) fn program<'a>(line: &Line<'a>, pid: u32) -> Option<&'a str> {
    if line.event != "sched_process_exec" || line.pid != pid {
        return None;
    }
    let rest = line.fields.strip_prefix("filename=")?;
    Some(rest.rsplit_once(" pid=")?.0)
}

/// Whether this is the `task_newtask` that made `pid`; the line's task is its parent then.
pub(super) fn made(line: &Line<'_>, pid: u32) -> bool {
    line.event == "task_newtask" && line.fields.starts_with(&format!("pid={pid} "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_real_kernel() {
        let text = "            kill-14039   [000] d..1. 12102.289412: signal_generate: sig=9 errno=0 code=0 comm=sleep pid=14038 grp=1 res=0\n";
        let read = line(text).unwrap();
        assert_eq!((read.task, read.pid), ("kill", 14039));
        assert_eq!(read.at, Duration::from_micros(12_102_289_412));
        let sent = generated(&read).unwrap();
        assert_eq!(
            (sent.signal, sent.target, sent.by_kernel),
            (Signal::KILL, 14038, false)
        );
        let text = "            tail-77      [001] d.... 5.000001: signal_generate: sig=9 errno=0 code=128 comm=tail pid=78 grp=1 res=0";
        assert!(generated(&line(text).unwrap()).unwrap().by_kernel);
        let text = "            bash-14022   [000] ..... 12102.287050: task_newtask: pid=14038 comm=bash clone_flags=1200000 oom_score_adj=0";
        let read = line(text).unwrap();
        assert!(made(&read, 14038) && !made(&read, 1403));
        let text = "            kill-14039   [000] ..... 12102.288983: sched_process_exec: filename=/opt/my tools/kill pid=14039 old_pid=14039";
        let read = line(text).unwrap();
        assert_eq!(program(&read, 14039), Some("/opt/my tools/kill"));
        assert_eq!(program(&read, 14038), None);
        let text = "            tail-9       [000] ..... 1.5: mark_victim: pid=78 comm=tail total-vm=1kB anon-rss=1kB file-rss:0kB shmem-rss:0kB uid=0 pgtables=8kB oom_score_adj=0";
        assert_eq!(victim(&line(text).unwrap()), Some(78));
        let older = "            tail-9       [000] ....  1.5: mark_victim: pid=78";
        assert_eq!(victim(&line(older).unwrap()), Some(78));
    }

    #[test]
    fn names_that_look_like_fields_do_not_mislead() {
        // Both names are at their limit of 15 bytes.
        let text = "a-b [0] x: pid=-4242    (   4240) [003] d..1. 7.000000: signal_generate: sig=15 errno=0 code=0 comm= pid=1 res=1 pid=99 grp=1 res=0";
        let read = line(text).unwrap();
        assert_eq!((read.task, read.pid), ("a-b [0] x: pid=", 4242));
        let sent = generated(&read).unwrap();
        assert_eq!((sent.signal, sent.target), (Signal::TERM, 99));
    }

    #[test]
    fn what_was_ignored_and_what_is_no_record_is_left_out() {
        let text = "            kill-1   [000] d..1. 1.000000: signal_generate: sig=15 errno=0 code=0 comm=x pid=2 grp=1 res=1";
        assert_eq!(generated(&line(text).unwrap()), None);
        for text in [
            "",
            "# tracer: nop",
            "CPU:1 [LOST 5 EVENTS]",
            "x-1 [000] 1.0: other_event: pid=2",
            ": signal_generate: sig=9 comm=x pid=2",
            "x-y [000] d..1. 1.000000: signal_generate: sig=9 errno=0 code=0 comm=x pid=2 grp=1 res=0",
        ] {
            assert_eq!(line(text), None, "{text}");
        }
    }
}
