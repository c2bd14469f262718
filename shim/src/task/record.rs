//! What is kept of a container: the journal in its bundle.

use std::collections::BTreeSet;
use std::path::Path;

use holdfast_record::journal::{Journal, replay};
use holdfast_record::{ExecId, ExitStatus, Timestamp};
use serde::{Deserialize, Serialize};

use crate::publisher::Encoded;

/// The journal in the bundle.
pub(crate) const JOURNAL_FILE: &str = "holdfast.journal";
/// Version of [`Entry`].
const VERSION: u16 = 1;
/// Bytes at which a journal is made short for the first time.
const SHORTEN_AT: u64 = 128 * 1024;

/// One change of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Entry {
    /// The container exists.
    Created {
        /// Init's pid.
        pid: u32,
        /// The shim's pid.
        shim: u32,
        /// The shim's start time, so that its pid cannot be taken for another's.
        #[serde(default)]
        shim_start: Option<u64>,
        /// When.
        at: Timestamp,
    },
    /// Init runs.
    Started {
        /// When.
        at: Timestamp,
    },
    /// A Kill request was carried out.
    KillRequested {
        /// None: init.
        exec: Option<ExecId>,
        /// The signal.
        signal: i32,
        /// Whether it went to every process.
        all: bool,
        /// When.
        at: Timestamp,
    },
    /// An exec process runs.
    ExecStarted {
        /// Which.
        exec: ExecId,
        /// Its pid.
        pid: u32,
        /// When.
        at: Timestamp,
    },
    /// An exec process ended.
    ExecExited {
        /// Which.
        exec: ExecId,
        /// Its pid.
        pid: u32,
        /// How.
        status: ExitStatus,
        /// When.
        at: Timestamp,
    },
    /// Init ended.
    Exited {
        /// Its pid.
        pid: u32,
        /// How.
        status: ExitStatus,
        /// When.
        at: Timestamp,
    },
    /// Frozen.
    Paused,
    /// Thawed.
    Resumed,
    /// The container is gone.
    Deleted,
    /// containerd has to be told.
    EventQueued {
        /// Its number, unique in the shim.
        number: u64,
        /// What is told.
        event: Encoded,
    },
    /// containerd has taken it.
    EventAcknowledged {
        /// Its number.
        number: u64,
    },
}

/// A container's journal. A disk that cannot take it is logged and nothing more: the
/// container is worth more than its history.
#[derive(Debug)]
pub(crate) struct BundleJournal {
    journal: Option<Journal<Entry>>,
    /// Length in bytes at which it is made short again.
    shorten_at: u64,
}

impl BundleJournal {
    /// A new journal in `bundle`.
    pub(crate) fn create(bundle: &Path) -> Self {
        let path = bundle.join(JOURNAL_FILE);
        // One of an earlier attempt with the same bundle says nothing about this container.
        let _ = std::fs::remove_file(&path);
        Self {
            journal: Journal::create(&path, VERSION)
                .inspect_err(|error| log::error!("no journal: {}", crate::fault::chain(error)))
                .ok(),
            shorten_at: SHORTEN_AT,
        }
    }

    /// Adds an entry.
    pub(crate) fn append(&mut self, entry: &Entry) {
        let Some(journal) = &mut self.journal else {
            return;
        };
        let mut result = journal.append(entry);
        if result.is_ok() && journal.len() > self.shorten_at {
            result = replay(journal.path(), VERSION).and_then(|replay| {
                let mut of_use = still_of_use(replay.entries).into_iter().peekable();
                journal.retain(|entry| of_use.next_if_eq(entry).is_some())
            });
            // Should everything still be of use, not again at the next entry.
            self.shorten_at = SHORTEN_AT.max(journal.len() * 2);
        }
        if let Err(error) = result {
            log::error!("the journal takes no more: {}", crate::fault::chain(&error));
            self.journal = None;
        }
    }
}

fn acknowledged(entries: &[Entry]) -> BTreeSet<u64> {
    entries
        .iter()
        .filter_map(|entry| match entry {
            Entry::EventAcknowledged { number } => Some(*number),
            _ => None,
        })
        .collect()
}

/// The events that containerd has not taken, in their order.
pub(crate) fn unacknowledged(entries: &[Entry]) -> Vec<Encoded> {
    let acknowledged = acknowledged(entries);
    entries
        .iter()
        .filter_map(|entry| match entry {
            Entry::EventQueued { number, event } if !acknowledged.contains(number) => {
                Some(event.clone())
            }
            _ => None,
        })
        .collect()
}

/// All but what is told of exec processes that have ended: probes make thousands a day.
fn still_of_use(entries: Vec<Entry>) -> Vec<Entry> {
    let ended: BTreeSet<(ExecId, u32)> = entries
        .iter()
        .filter_map(|entry| match entry {
            Entry::ExecExited { exec, pid, .. } => Some((exec.clone(), *pid)),
            _ => None,
        })
        .collect();
    let acknowledged = acknowledged(&entries);
    entries
        .into_iter()
        .filter(|entry| match entry {
            Entry::EventQueued { number, .. } => !acknowledged.contains(number),
            Entry::EventAcknowledged { .. } => false,
            Entry::ExecStarted { exec, pid, .. } => !ended.contains(&(exec.clone(), *pid)),
            Entry::ExecExited { .. } => false,
            Entry::KillRequested { exec, .. } => exec.is_none(),
            Entry::Created { .. }
            | Entry::Started { .. }
            | Entry::Exited { .. }
            | Entry::Paused
            | Entry::Resumed
            | Entry::Deleted => true,
        })
        .collect()
}

/// Reads what a dead shim wrote; what cannot be read is logged and absent.
pub(crate) fn read(bundle: &Path) -> Vec<Entry> {
    let path = bundle.join(JOURNAL_FILE);
    if !path.exists() {
        return Vec::new();
    }
    match replay(&path, VERSION) {
        Ok(replay) => replay.entries,
        Err(error) => {
            log::warn!(
                "the journal of the dead shim: {}",
                crate::fault::chain(&error)
            );
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_journal_stays_short_and_keeps_what_counts() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = BundleJournal::create(dir.path());
        let at = Timestamp::new(1, 2);
        let created = Entry::Created {
            pid: 1,
            shim: 2,
            shim_start: None,
            at,
        };
        let running = Entry::ExecStarted {
            exec: ExecId::new("stays").unwrap(),
            pid: 3,
            at,
        };
        journal.append(&created);
        journal.append(&running);
        for n in 0..5000u32 {
            let exec = ExecId::new(format!("probe-{n}")).unwrap();
            journal.append(&Entry::ExecStarted {
                exec: exec.clone(),
                pid: n,
                at,
            });
            journal.append(&Entry::ExecExited {
                exec,
                pid: n,
                status: ExitStatus::Exited(0),
                at,
            });
        }
        let size = std::fs::metadata(dir.path().join(JOURNAL_FILE))
            .unwrap()
            .len();
        assert!(size <= 2 * SHORTEN_AT, "{size}");
        let entries = read(dir.path());
        assert_eq!(entries.first(), Some(&created));
        assert!(entries.contains(&running));
        assert!(matches!(
            entries.last(),
            Some(Entry::ExecExited { pid: 4999, .. })
        ));
    }
}
