//! The `log::Log` of our processes.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::fifo::Fifo;
use super::panic::is_reporting;
use super::stderr::{FILE_LIMIT, Sink, kmsg, stderr_to_journal};
use super::{Places, priority};
use crate::sys;

/// A journald that was lost is looked for again after this time.
const RECONNECT: Duration = Duration::from_secs(1);

static LOGGER: OnceLock<Logger> = OnceLock::new();
static DROPPED: AtomicU64 = AtomicU64::new(0);

struct Logger {
    identifier: String,
    places: Places,
    fields: Vec<(String, String)>,
    state: Mutex<State>,
}

struct State {
    sink: Sink,
    /// Bytes written to the file since it was opened.
    written: u64,
    /// Lines lost since the last one that got through.
    lost: u64,
    /// The last write ended within a line.
    torn: bool,
    reconnected: Option<Instant>,
    fifo: Option<(Fifo, PathBuf)>,
}

/// Makes fd 2 the destination of the `log` macros, up to `level`.
///
/// `sink` is what [`stderr_to_journal`] answered, or [`Sink::Inherited`] for a short-lived program whose fd 2 somebody
/// reads. `fields` (such as the container's id) are added to every line of containerd's fifo.
///
/// # Errors
/// When a logger has been installed before.
pub fn install(
    identifier: &str,
    level: log::LevelFilter,
    sink: Sink,
    places: Places,
    fields: Vec<(String, String)>,
) -> Result<(), log::SetLoggerError> {
    let logger = LOGGER.get_or_init(|| Logger {
        identifier: identifier.to_owned(),
        places,
        fields,
        state: Mutex::new(State {
            sink,
            written: 0,
            lost: 0,
            torn: false,
            reconnected: None,
            fifo: None,
        }),
    });
    log::set_logger(logger)?;
    log::set_max_level(level);
    Ok(())
}

/// From now on copies every line to containerd's `log` fifo at `path` as well, without ever waiting for its reader.
/// A second call replaces the first fifo.
///
/// # Errors
/// When `path` is no fifo or cannot be opened, or no logger is installed (`NotConnected`).
pub fn serve_fifo(path: &Path) -> io::Result<()> {
    let logger = LOGGER.get().ok_or(io::ErrorKind::NotConnected)?;
    let fifo = Fifo::open(path)?;
    logger.locked(|state| state.fifo = Some((fifo, path.to_owned())));
    Ok(())
}

/// How many lines did not fit fd 2 or the fifo in the life of this process.
#[must_use]
pub fn dropped_lines() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

impl Logger {
    /// A thread that panicked while it held the lock has left nothing half done that matters here.
    fn locked<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self, state: &mut State, level: log::Level, text: &str) {
        let mut bytes = Vec::with_capacity(text.len() + 16);
        if state.torn {
            bytes.push(b'\n');
        }
        if state.lost > 0 {
            let note = format!("{} lines did not fit and were dropped", state.lost);
            bytes.extend(self.lines(state.sink, log::Level::Warn, &note).into_bytes());
        }
        bytes.extend(self.lines(state.sink, level, text).into_bytes());
        let mut result = sys::write_stderr(&bytes);
        if matches!(&result, Err(error) if error.kind() == io::ErrorKind::BrokenPipe)
            && state.sink == Sink::Journal
            && state
                .reconnected
                .is_none_or(|last| last.elapsed() >= RECONNECT)
        {
            // journald was restarted without its stored connections.
            state.sink = stderr_to_journal(&self.identifier, &self.places);
            state.reconnected = Some(Instant::now());
            result = sys::write_stderr(&bytes);
        }
        match result {
            Ok(count) if count == bytes.len() => {
                state.lost = 0;
                state.torn = false;
                state.written += bytes.len() as u64;
            }
            result => {
                state.torn |= matches!(result, Ok(1..));
                state.lost += 1;
                DROPPED.fetch_add(1, Ordering::Relaxed);
            }
        }
        if state.sink == Sink::File {
            if level == log::Level::Error {
                self.copy_to_kmsg(text);
            }
            if state.written >= FILE_LIMIT {
                // Opening it anew sets a full file aside, and finds a journald that has come up since.
                state.sink = stderr_to_journal(&self.identifier, &self.places);
                state.written = 0;
            }
        }
    }

    /// Each line of `text` with what the sink needs in front of it.
    fn lines(&self, sink: Sink, level: log::Level, text: &str) -> String {
        let priority = priority(level);
        let mut lines = String::with_capacity(text.len() + 8);
        for line in text.lines() {
            match sink {
                Sink::Journal => lines.push_str(&format!("<{priority}>{line}\n")),
                Sink::File | Sink::Kmsg => lines.push_str(&format!(
                    "<{priority}>{}[{}]: {line}\n",
                    self.identifier,
                    std::process::id()
                )),
                Sink::Inherited => lines.push_str(&format!("{}: {line}\n", self.identifier)),
            }
        }
        lines
    }

    /// The kernel limits how much it takes from user space (`printk_devkmsg`), so only errors go there; a refusal is
    /// no loss, because the file has the line.
    fn copy_to_kmsg(&self, text: &str) {
        if let Ok(mut kernel) = kmsg(&self.places.kmsg) {
            for line in text.lines() {
                let line = format!("<3>{}[{}]: {line}\n", self.identifier, std::process::id());
                let _ = kernel.write(line.as_bytes());
            }
        }
    }
}

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = match record.level() {
            log::Level::Error | log::Level::Warn | log::Level::Info => record.args().to_string(),
            log::Level::Debug | log::Level::Trace => {
                format!("{}: {}", record.target(), record.args())
            }
        };
        let write = |state: &mut State| {
            self.write(state, record.level(), &text);
            if let Some((fifo, _)) = &mut state.fifo
                && !fifo.write(record.level(), &text, &self.fields)
            {
                DROPPED.fetch_add(1, Ordering::Relaxed);
            }
        };
        if !is_reporting() {
            self.locked(write);
            return;
        }
        // The panic that is being reported may have happened on this thread under the lock.
        match self.state.try_lock() {
            Ok(mut state) => write(&mut state),
            Err(TryLockError::Poisoned(state)) => write(&mut state.into_inner()),
            Err(TryLockError::WouldBlock) => {
                let lines = self.lines(Sink::Journal, record.level(), &text);
                if sys::write_stderr(lines.as_bytes()).is_err() {
                    DROPPED.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    fn flush(&self) {}
}
