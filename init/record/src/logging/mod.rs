//! Where the words of our processes go, so that none is lost and none makes a process wait.
//!
//! | what | where |
//! |---|---|
//! | raw writes to fd 2 (libc's aborts, a runtime's last words) | whatever [`stderr_to_journal`] found: journald's stream, a file, `/dev/kmsg` |
//! | `log::info!` and the like | fd 2 with a `<priority>` prefix, and containerd's `log` fifo once [`serve_fifo`] has been called |
//! | panics | one report to fd 2, one record to the ledger, and its fields to journald: [`report_panics`] |
//! | ends | [`publish`]: ledger, and journald's fields with MESSAGE_ID |
//!
//! Nothing here waits for a reader. fd 2 and the fifo are non-blocking; what does not fit is dropped and counted, and the
//! next line that fits says how many were lost. Only the report of a panic waits for room, for a second at most.

mod fifo;
mod journald;
mod logger;
mod panic;
mod stderr;

use std::path::PathBuf;

pub use journald::{journal_fields, publish, record_fields};
pub use logger::{dropped_lines, install, serve_fifo};
pub use panic::{report_panics, take_incident};
pub use stderr::{Sink, stderr_to_journal};

use crate::ledger::Ledger;

/// The sockets and files of this module; tests put their own in their place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// journald's stream socket, `sd_journal_stream_fd(3)`.
    pub stream: PathBuf,
    /// journald's datagram socket, `systemd.journal-fields(7)`.
    pub datagram: PathBuf,
    /// The kernel's log, `/dev/kmsg`.
    pub kmsg: PathBuf,
    /// The file for fd 2 where no journald runs.
    pub file: PathBuf,
}

/// Overrides the folder of journald's sockets: a path, for nodes whose containerd has a journal of its own
/// (`LogNamespace=` puts the sockets into `/run/systemd/journal.NAME`).
pub const JOURNALD_VARIABLE: &str = "HOLDFAST_JOURNALD";

impl Default for Places {
    /// The system's own, or journald's that [`JOURNALD_VARIABLE`] names, with the file `stderr.log` in the ledger's
    /// directory.
    fn default() -> Self {
        let journald = std::env::var_os(JOURNALD_VARIABLE)
            .filter(|folder| !folder.is_empty())
            .map_or_else(|| PathBuf::from("/run/systemd/journal"), PathBuf::from);
        Self {
            stream: journald.join("stdout"),
            datagram: journald.join("socket"),
            kmsg: "/dev/kmsg".into(),
            file: Ledger::from_env().dir().join("stderr.log"),
        }
    }
}

/// Priority of a line, as `syslog(3)` numbers it.
fn priority(level: log::Level) -> u8 {
    match level {
        log::Level::Error => 3,
        log::Level::Warn => 4,
        log::Level::Info => 6,
        log::Level::Debug | log::Level::Trace => 7,
    }
}
