//! A container's journal: its history, and what containerd has yet to be told of it.
//!
//! Events leave in the order in which they came. Only the next few are in memory, the others are read back from the
//! file when their turn comes, so that an outage of containerd costs disk and not memory:
//!
//! ```text
//!            window (memory, ≤ WINDOW)        beyond (file only)
//!  front ──> [ 7 | 8 | 9 | … ]  <──refill───  … 71 72 73  <── queue
//! ```
//!
//! A file system that is full stops nothing: entries then wait in memory, in their order, and are written when it takes
//! them again. A little room is taken beforehand, so that the end of a container as a rule finds its place.
//!
//! The file lies in the bundle, which containerd removes right after Delete has been answered. What is not acknowledged
//! then goes with [`BundleJournal::leave`] to a folder of its own ([`crate::outbox`]), and is removed with the last
//! acknowledgement.

use std::collections::{HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::time::Instant;

use holdfast_record::ExecId;
use holdfast_record::journal::{Journal, JournalError, replay};

use super::record::Entry;
use crate::event::Encoded;
use crate::fault::chain;

/// The journal in the bundle.
pub(crate) const JOURNAL_FILE: &str = "holdfast.journal";
/// Version of [`Entry`].
const VERSION: u16 = 1;
/// Bytes at which a journal is made short for the first time.
const SHORTEN_AT: u64 = 128 * 1024;
/// Bytes that are taken from the file system beforehand: kill, OOM, exit and delete take less than half of it.
const AHEAD: u64 = 4096;
/// Events in memory per container.
const WINDOW: usize = 64;
/// Entries that may wait for a full file system before history (never an event) is forgotten.
const MAX_UNWRITTEN: usize = 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct BundleJournal {
    path: PathBuf,
    /// None while the file system does not take a new file.
    file: Option<Journal<Entry>>,
    /// Length in bytes at which it is made short again.
    shorten_at: u64,
    /// Bytes of the file that are ours already.
    reserved: u64,
    /// What the file system has not taken, oldest first.
    unwritten: VecDeque<Entry>,
    /// Since when it does not take anything.
    full_since: Option<Instant>,
    /// Number of the latest acknowledged event.
    acknowledged: Option<u64>,
    /// Number of the latest event.
    highest: Option<u64>,
    outbox: Outbox,
    /// It is not in the bundle any more, and nobody else will remove it.
    has_left: bool,
}

/// The events that are not acknowledged.
#[derive(Debug, Default)]
struct Outbox {
    window: VecDeque<(u64, Encoded)>,
    /// How many come after those of the window.
    beyond: u64,
    /// Number of the latest event that has been in the window.
    latest: Option<u64>,
    /// Byte of the file from which to read on.
    scanned: u64,
    /// There have been more than fit in the window: the file is long for their sake.
    was_long: bool,
}

impl BundleJournal {
    /// A new journal in `bundle`.
    pub(crate) fn create(bundle: &Path) -> Self {
        let path = bundle.join(JOURNAL_FILE);
        // One of an earlier attempt with the same bundle says nothing about this container.
        let _ = std::fs::remove_file(&path);
        let mut journal = Self::at(path, None);
        if let Err(error) = journal.file() {
            journal.complain(&error);
        }
        journal
    }

    /// The journal that an earlier image or a dead shim has left at `path`; `each` gets its entries.
    ///
    /// # Errors
    /// [`JournalError`]; [`JournalError::InUse`] while its shim lives.
    pub(crate) fn open(path: &Path, mut each: impl FnMut(Entry)) -> Result<Self, JournalError> {
        let (mut acknowledged, mut highest) = (None, None);
        let (file, _) = Journal::recover(path, VERSION, |entry| {
            match &entry {
                Entry::EventQueued { number, .. } => highest = highest.max(Some(*number)),
                Entry::EventAcknowledged { number } => {
                    acknowledged = acknowledged.max(Some(*number));
                }
                _ => {}
            }
            each(entry);
        })?;
        let mut beyond = 0;
        for entry in file.scan(0) {
            beyond += u64::from(
                matches!(entry?, Entry::EventQueued { number, .. } if Some(number) > acknowledged),
            );
        }
        let mut journal = Self::at(path.to_owned(), Some(file));
        journal.acknowledged = acknowledged;
        journal.highest = highest.max(acknowledged);
        journal.outbox.beyond = beyond;
        journal.has_left = path
            .file_name()
            .is_none_or(|name| name != std::ffi::OsStr::new(JOURNAL_FILE));
        Ok(journal)
    }

    fn at(path: PathBuf, file: Option<Journal<Entry>>) -> Self {
        Self {
            path,
            file,
            shorten_at: SHORTEN_AT,
            reserved: 0,
            unwritten: VecDeque::new(),
            full_since: None,
            acknowledged: None,
            highest: None,
            outbox: Outbox::default(),
            has_left: false,
        }
    }

    /// Where it lies.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    // --- history -----------------------------------------------------------------------

    /// Adds an entry. What the file system does not take waits in memory until it does.
    pub(crate) fn append(&mut self, entry: &Entry) {
        self.put(entry);
    }

    /// False when the entry is of a kind that no file will ever take.
    fn put(&mut self, entry: &Entry) -> bool {
        if self.unwritten.is_empty() || self.retry() {
            match self.write(entry) {
                Ok(()) => {
                    self.shorten();
                    return true;
                }
                Err(error @ (JournalError::TooLong { .. } | JournalError::Encode { .. })) => {
                    log::error!("{}", chain(&error));
                    return false;
                }
                Err(error) => self.complain(&error),
            }
        }
        self.unwritten.push_back(entry.clone());
        self.forget_history();
        true
    }

    fn file(&mut self) -> Result<&mut Journal<Entry>, JournalError> {
        let file = match self.file.take() {
            Some(file) => file,
            None => Journal::create(&self.path, VERSION)?,
        };
        let file = self.file.insert(file);
        if file.len() + AHEAD / 2 > self.reserved && file.reserve(AHEAD).is_ok() {
            self.reserved = file.len() + AHEAD;
        }
        Ok(file)
    }

    fn write(&mut self, entry: &Entry) -> Result<(), JournalError> {
        self.file()?.append(entry)
    }

    fn complain(&mut self, error: &JournalError) {
        if self.full_since.is_none() {
            self.full_since = Some(Instant::now());
            log::error!(
                "the journal takes nothing now: {}; kept in memory until it does",
                chain(error)
            );
        }
    }

    /// Whether something waits for the file system.
    pub(crate) fn is_behind(&self) -> bool {
        !self.unwritten.is_empty()
    }

    /// Writes what the file system has not taken; true when nothing is left.
    pub(crate) fn retry(&mut self) -> bool {
        let waiting = self.unwritten.len();
        while let Some(entry) = self.unwritten.pop_front() {
            if let Err(error) = self.write(&entry) {
                self.complain(&error);
                self.unwritten.push_front(entry);
                return false;
            }
        }
        if let Some(since) = self.full_since.take() {
            log::warn!(
                "the journal {} takes entries again: {waiting} had waited, for {:?}",
                self.path.display(),
                since.elapsed()
            );
        }
        true
    }

    /// Keeps memory bounded on a file system that stays full.
    fn forget_history(&mut self) {
        while self.unwritten.len() > MAX_UNWRITTEN
            && let Some(oldest) = self.unwritten.iter().position(is_history)
        {
            self.unwritten.remove(oldest);
        }
    }

    fn shorten(&mut self) {
        let acknowledged = self.acknowledged;
        let Some(file) = &mut self.file else {
            return;
        };
        if file.len() <= self.shorten_at {
            return;
        }
        let result = running(file)
            .and_then(|running| file.retain(|entry| is_of_use(entry, acknowledged, &running)));
        // Should everything still be of use, not again at the next entry.
        self.shorten_at = SHORTEN_AT.max(file.len() * 2);
        match result {
            Ok(()) => (self.reserved, self.outbox.scanned) = (0, 0),
            Err(error) => log::warn!("the journal stays long: {}", chain(&error)),
        }
    }

    // --- events ------------------------------------------------------------------------

    /// Puts an event behind all others; `number` is above all others'.
    pub(crate) fn queue(&mut self, number: u64, event: Encoded) {
        let entry = Entry::EventQueued { number, event };
        let kept = self.put(&entry);
        let Entry::EventQueued { number, event } = entry else {
            return;
        };
        self.highest = self.highest.max(Some(number));
        let outbox = &mut self.outbox;
        if outbox.beyond == 0 && outbox.window.len() < WINDOW {
            outbox.latest = Some(number);
            outbox.window.push_back((number, event));
        } else if kept {
            outbox.beyond += 1;
            outbox.was_long = true;
        } else {
            log::error!("a {} is dropped: it has no place", event.topic);
        }
    }

    /// The first event that is not acknowledged; none also while it cannot be read back.
    pub(crate) fn front(&mut self) -> Option<&(u64, Encoded)> {
        if self.outbox.window.is_empty() && self.outbox.beyond > 0 {
            self.refill();
        }
        self.outbox.window.front()
    }

    /// Events that are not acknowledged.
    pub(crate) fn waiting(&self) -> u64 {
        self.outbox.beyond + self.outbox.window.len() as u64
    }

    /// Number of the latest event, acknowledged or not.
    pub(crate) fn highest(&self) -> Option<u64> {
        self.highest
    }

    /// The first event is acknowledged.
    pub(crate) fn acknowledge(&mut self) {
        let Some((number, _)) = self.outbox.window.pop_front() else {
            return;
        };
        self.acknowledged = Some(number);
        if self.outbox.window.is_empty() {
            self.outbox.window.shrink_to_fit();
        }
        if self.has_left && self.waiting() == 0 {
            self.remove();
            return;
        }
        if self.waiting() == 0 && std::mem::take(&mut self.outbox.was_long) {
            self.shorten_at = SHORTEN_AT;
        }
        // One says it for all before it.
        self.unwritten.retain(|entry| match entry {
            Entry::EventQueued { number: queued, .. } => *queued > number,
            Entry::EventAcknowledged { .. } => false,
            _ => true,
        });
        self.append(&Entry::EventAcknowledged { number });
    }

    fn refill(&mut self) {
        let outbox = &mut self.outbox;
        let after = outbox.latest.max(self.acknowledged);
        let mut taken: Vec<(u64, Encoded)> = Vec::new();
        let mut readable = true;
        if let Some(file) = &self.file {
            let mut scan = file.scan(outbox.scanned);
            while taken.len() < WINDOW
                && let Some(entry) = scan.next()
            {
                match entry {
                    Ok(Entry::EventQueued { number, event }) if Some(number) > after => {
                        taken.push((number, event));
                    }
                    Ok(_) => {}
                    Err(error) => {
                        log::error!("events wait that cannot be read: {}", chain(&error));
                        readable = false;
                        break;
                    }
                }
            }
            outbox.scanned = scan.position();
        }
        for entry in &self.unwritten {
            if let Entry::EventQueued { number, event } = entry
                && Some(*number) > after
                && taken.len() < WINDOW
            {
                taken.push((*number, event.clone()));
            }
        }
        if taken.is_empty() && readable {
            log::error!("{} events are not in the journal any more", outbox.beyond);
            outbox.beyond = 0;
        }
        outbox.beyond = outbox.beyond.saturating_sub(taken.len() as u64);
        outbox.latest = taken.last().map(|(number, _)| *number).or(outbox.latest);
        outbox.window.extend(taken);
    }

    // --- after Delete ------------------------------------------------------------------

    /// Leaves the bundle for `path` if there is something to tell.
    ///
    /// # Errors
    /// [`JournalError`], or the folder's; it then stays where it is.
    pub(crate) fn leave(&mut self, path: &Path) -> Result<(), JournalError> {
        if self.waiting() == 0 || self.has_left {
            return Ok(());
        }
        let acknowledged = self.acknowledged;
        let file = self.file()?;
        file.move_to(path, |entry| {
            is_of_use(entry, acknowledged, &HashSet::new())
        })?;
        path.clone_into(&mut self.path);
        (self.reserved, self.outbox.scanned) = (0, 0);
        self.has_left = true;
        Ok(())
    }

    fn remove(&mut self) {
        self.unwritten.clear();
        if let Err(error) = std::fs::remove_file(&self.path) {
            log::warn!("remove {}: {error}", self.path.display());
        }
        // The folder goes with its last file.
        if let Some(folder) = self.path.parent() {
            let _ = std::fs::remove_dir(folder);
        }
        self.file = None;
    }
}

/// Whether an entry is neither an event nor a step of the container's own life.
fn is_history(entry: &Entry) -> bool {
    matches!(
        entry,
        Entry::ExecStarted { .. }
            | Entry::ExecExited { .. }
            | Entry::KillRequested { .. }
            | Entry::Paused
            | Entry::Resumed
    )
}

/// Exec processes that have started and not ended.
fn running(file: &Journal<Entry>) -> Result<HashSet<(ExecId, u32)>, JournalError> {
    let mut running = HashSet::new();
    for entry in file.scan(0) {
        match entry? {
            Entry::ExecStarted { exec, pid, .. } => {
                running.insert((exec, pid));
            }
            Entry::ExecExited { exec, pid, .. } => {
                running.remove(&(exec, pid));
            }
            _ => {}
        }
    }
    Ok(running)
}

/// All but what is told of exec processes that have ended (probes make thousands a day), and what is acknowledged.
fn is_of_use(entry: &Entry, acknowledged: Option<u64>, running: &HashSet<(ExecId, u32)>) -> bool {
    match entry {
        Entry::EventQueued { number, .. } => Some(*number) > acknowledged,
        Entry::ExecStarted { exec, pid, .. } => running.contains(&(exec.clone(), *pid)),
        Entry::EventAcknowledged { .. } | Entry::ExecExited { .. } => false,
        Entry::KillRequested { exec, .. } => exec.is_none(),
        Entry::Created { .. }
        | Entry::Started { .. }
        | Entry::Exited { .. }
        | Entry::Paused
        | Entry::Resumed
        | Entry::Deleted => true,
    }
}

/// Reads what a dead shim wrote at `path`; what cannot be read is logged and absent.
pub(crate) fn read(path: &Path) -> Vec<Entry> {
    if !path.exists() {
        return Vec::new();
    }
    match replay(path, VERSION) {
        Ok(replay) => replay.entries,
        Err(error) => {
            log::warn!("the journal of the dead shim: {}", chain(&error));
            Vec::new()
        }
    }
}

#[cfg(test)]
#[path = "journal_tests.rs"]
pub(crate) mod tests;
