//! Switching the tracing on and off. Nothing here is locked: everybody writes the same values in the same order, and
//! what says that all is done is written last.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use super::{Unwatched, Witness};

/// Every SIGKILL and SIGSTOP, and those other signals below 16 whose default is to end the process, if a process sent them: by
/// kill(2) (code 0), sigqueue(3) (-1) or tgkill(2) (-6). Timers, alarms, SIGCHLD, SIGPIPE of the kernel and what
/// language runtimes use among their own threads (SIGURG, SIGPROF, the real-time ones) are not recorded: those come
/// by the thousand.
const FILTER: &str = "sig==9||sig==19||(sig<16&&sig!=5&&(code==0||code==-1||code==-6))";

/// New processes, not new threads: CLONE_THREAD is 0x10000.
const NO_THREADS: &str = "!(clone_flags & 0x10000)";

/// KiB for each processor: some five hundred signals, or a hundred processes with their programs. The oldest give way.
const BUFFER: &str = "32";

/// The switch that is turned last: on, it says that all before it is done.
const SIGNALS: &str = "events/signal/signal_generate";

pub(super) fn set_up(witness: &Witness) -> Result<(), Unwatched> {
    let (Some(tracefs), Some(signals), Some(processes)) =
        (&witness.tracefs, witness.instance(), witness.processes())
    else {
        return Err(Unwatched::Off);
    };
    if !tracefs.join("instances").is_dir() {
        return Err(Unwatched::NoTracefs(tracefs.clone()));
    }
    if is_on(&signals) {
        return Ok(());
    }
    // The clock is that of CLOCK_MONOTONIC, so that times can be told; setting it empties the buffer.
    make(&processes)?;
    put(&processes, "trace_clock", "mono")?;
    put(&processes, "buffer_size_kb", BUFFER)?;
    put(&processes, "events/task/task_newtask/filter", NO_THREADS)?;
    put(&processes, "events/task/task_newtask/enable", "1")?;
    put(&processes, "events/sched/sched_process_exec/enable", "1")?;
    make(&signals)?;
    put(&signals, "trace_clock", "mono")?;
    put(&signals, "buffer_size_kb", BUFFER)?;
    put(&signals, "events/oom/mark_victim/enable", "1")?;
    put(&signals, &format!("{SIGNALS}/filter"), FILTER)?;
    put(&signals, &format!("{SIGNALS}/enable"), "1")
}

pub(super) fn check(witness: &Witness) -> Result<(), Unwatched> {
    let (Some(tracefs), Some(signals)) = (&witness.tracefs, witness.instance()) else {
        return Err(Unwatched::Off);
    };
    if !tracefs.join("instances").is_dir() {
        return Err(Unwatched::NoTracefs(tracefs.clone()));
    }
    if is_on(&signals) {
        Ok(())
    } else {
        Err(Unwatched::NotSetUp(signals))
    }
}

pub(super) fn remove(witness: &Witness) -> Result<(), Unwatched> {
    let folders = [witness.instance(), witness.processes()];
    for folder in folders.into_iter().flatten() {
        match fs::remove_dir(&folder) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(Unwatched::Io {
                    action: "remove",
                    path: folder,
                    source,
                });
            }
            _ => {}
        }
    }
    Ok(())
}

fn is_on(signals: &Path) -> bool {
    let says = |file: &str, text: &str| {
        read_once(&signals.join(SIGNALS).join(file)).is_ok_and(|read| read.trim() == text)
    };
    says("filter", FILTER) && says("enable", "1")
}

/// One read with a large buffer: the kernel gives a filter to the first read alone, cut to its size
/// (`event_filter_read` of `kernel/trace/trace_events.c`).
fn read_once(path: &Path) -> io::Result<String> {
    let mut buffer = [0; 4096];
    let size = fs::File::open(path)?.read(&mut buffer)?;
    Ok(String::from_utf8_lossy(buffer.get(..size).unwrap_or_default()).into_owned())
}

fn make(instance: &Path) -> Result<(), Unwatched> {
    match fs::create_dir(instance) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => Err(Unwatched::Io {
            action: "make",
            path: instance.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

fn put(instance: &Path, file: &str, text: &str) -> Result<(), Unwatched> {
    let path = instance.join(file);
    fs::write(&path, text).map_err(|source| Unwatched::Io {
        action: "write",
        path,
        source,
    })
}
