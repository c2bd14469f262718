//! An append-only file of typed entries that can be cut anywhere and still be read up to the cut.
//!
//! The shim writes each change here before it replies and before it publishes; a restarted shim and
//! `containerd-shim-holdfast-v2 delete` read it. Each entry is one frame:
//!
//! ```text
//! offset  size  field
//!      0     4  length of the payload, little endian, at most MAX_PAYLOAD
//!      4     4  CRC-32 of length, version and payload
//!      8     2  version of the payload's format, little endian
//!     10     n  payload: the entry as JSON
//! ```
//!
//! What can go wrong, and what is answered:
//!
//! | cause | answer |
//! |---|---|
//! | the writer died within a write, or the disk was full | [`End::Torn`]: all entries before it are good |
//! | bytes of zero after the last frame (preallocation, or a file system's crash) | [`End::Clean`] |
//! | a frame of another version | [`JournalError::Version`]: nothing is changed, the caller decides |
//! | a whole frame whose payload is no entry | [`JournalError::Payload`]: a bug, not a crash |
//!
//! A full disk is planned for: [`Journal::reserve`] takes the space beforehand, a failed write changes nothing, and
//! the next one is tried like the first.
//!
//! However long a journal is, it is read ([`Journal::scan`]) and made short ([`Journal::retain`]) entry by entry, in
//! the memory of one.
//!
//! The file is not synced. What was written is seen by every later reader of this boot, whatever became of the writer:
//! it is in the kernel's page cache. Only a crash of the kernel or of the power loses it, and with it the containers;
//! besides it lives on `/run`, which has no disk to sync to.

mod frame;
mod scan;

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::sys;
use frame::encode;
pub use scan::Scan;

/// Bytes before a frame's payload.
pub const HEADER: usize = 10;

/// Longest payload in bytes. A longer length field is taken for damage.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// How long the lock of a writer that is gone may linger.
const LOCK_LIMIT: Duration = Duration::from_millis(100);

/// Why a journal could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file could not be opened, read or written.
    #[error("cannot {action} the journal {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Another living process writes this journal.
    #[error("the journal {} is being written by another process: one shim owns it", .0.display())]
    InUse(PathBuf),
    /// The entry cannot be encoded, or is above [`MAX_PAYLOAD`].
    #[error("an entry of {len} bytes does not fit the journal {} (at most {MAX_PAYLOAD})", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The payload's length in bytes.
        len: usize,
    },
    /// The entry's type refused to be encoded.
    #[error("an entry cannot be encoded for the journal {}", path.display())]
    Encode {
        /// The file.
        path: PathBuf,
        /// What serde said.
        #[source]
        source: serde_json::Error,
    },
    /// A whole frame that was written by another version of Holdfast.
    #[error("the journal {} has format {found} at byte {at}, this program knows {known}: use the version that wrote it", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Byte offset of the frame.
        at: u64,
        /// The frame's version.
        found: u16,
        /// The reader's version.
        known: u16,
    },
    /// A whole frame of the right version that holds no entry.
    #[error("the journal {} holds something else than an entry at byte {at}", path.display())]
    Payload {
        /// The file.
        path: PathBuf,
        /// Byte offset of the frame.
        at: u64,
        /// What serde said.
        #[source]
        source: serde_json::Error,
    },
    /// An earlier write failed and could not be taken back; what is on disk is good up to that entry.
    #[error("the journal {} was damaged by an earlier failed write and takes no more entries", .0.display())]
    Broken(PathBuf),
}

/// How a replay came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Right after the last frame.
    Clean,
    /// Within a frame: the writer died there.
    Torn {
        /// Bytes that belong to no whole frame.
        lost: u64,
    },
}

/// What a journal holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay<E> {
    /// Every whole entry, oldest first.
    pub entries: Vec<E>,
    /// Length in bytes of the part that holds them.
    pub len: u64,
    /// What comes after them.
    pub end: End,
}

/// An open journal of entries `E`; the only writer of its file.
#[derive(Debug)]
pub struct Journal<E> {
    file: File,
    path: PathBuf,
    version: u16,
    len: u64,
    broken: bool,
    entries: PhantomData<fn(&E)>,
}

impl<E: Serialize + DeserializeOwned> Journal<E> {
    /// Makes a new, empty journal; `version` is the format of `E`, to be raised with every change of it.
    ///
    /// # Errors
    /// [`JournalError::Io`] with `AlreadyExists` when there is one: open it instead.
    pub fn create(path: &Path, version: u16) -> Result<Self, JournalError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|source| failed("create", path, source))?;
        Self::own(file, path, version, 0)
    }

    /// Opens an existing journal, reads it, and cuts off a torn end so that new entries follow the last good one.
    ///
    /// # Errors
    /// As [`replay`], and [`JournalError::InUse`] while another process has it open for writing.
    pub fn open(path: &Path, version: u16) -> Result<(Self, Replay<E>), JournalError> {
        let mut entries = Vec::new();
        let (journal, end) = Self::recover(path, version, |entry| entries.push(entry))?;
        let len = journal.len;
        Ok((journal, Replay { entries, len, end }))
    }

    /// As [`Journal::open`], but hands each entry to `each` instead of keeping them all.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub fn recover(
        path: &Path,
        version: u16,
        mut each: impl FnMut(E),
    ) -> Result<(Self, End), JournalError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|source| failed("open", path, source))?;
        let mut journal = Self::own(file, path, version, 0)?;
        let mut scan = Scan::new(&journal.file, path, version, 0, u64::MAX);
        for entry in scan.by_ref() {
            each(entry?);
        }
        let (len, end) = (scan.position(), scan.end()?);
        journal
            .file
            .set_len(len)
            .map_err(|source| failed("cut", path, source))?;
        journal.len = len;
        Ok((journal, end))
    }

    fn own(file: File, path: &Path, version: u16, len: u64) -> Result<Self, JournalError> {
        // A child that a writer has forked holds the lock until it executes another program, and is_in_use for the time
        // of its question. Neither can be waited for other than by asking again.
        let until = Instant::now() + LOCK_LIMIT;
        while !sys::try_lock(file.as_fd()).map_err(|source| failed("lock", path, source))? {
            if Instant::now() >= until {
                return Err(JournalError::InUse(path.to_owned()));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(Self {
            file,
            path: path.to_owned(),
            version,
            len,
            broken: false,
            entries: PhantomData,
        })
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of whole frames.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing has been written yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes `bytes` beyond the present end from the file system, so that those cannot fail for want of space.
    ///
    /// # Errors
    /// [`JournalError::Io`], in particular `ENOSPC` and, where the file system cannot do it, `EOPNOTSUPP`.
    pub fn reserve(&self, bytes: u64) -> Result<(), JournalError> {
        sys::preallocate(self.file.as_fd(), self.len, bytes)
            .map_err(|source| failed("reserve space for", &self.path, source))
    }

    /// Adds one entry. When this returns `Ok`, any later reader on this boot sees it.
    ///
    /// # Errors
    /// On any error the journal holds what it held before; [`JournalError::Broken`] when even that could not be had.
    pub fn append(&mut self, entry: &E) -> Result<(), JournalError> {
        let frame = encode(entry, self.version, &self.path)?;
        // What an earlier failure left behind the last good entry may go now.
        if self.broken {
            self.broken = self.file.set_len(self.len).is_err();
        }
        if self.broken {
            return Err(JournalError::Broken(self.path.clone()));
        }
        match self.file.write_all_at(&frame, self.len) {
            Ok(()) => {
                self.len += frame.len() as u64;
                Ok(())
            }
            Err(source) => {
                // A half frame would hide every later one from the reader.
                self.broken = self.file.set_len(self.len).is_err();
                Err(failed("write", &self.path, source))
            }
        }
    }

    /// The entries from byte `from` on: 0, or what [`Scan::position`] has said since the latest [`Journal::retain`].
    #[must_use]
    pub fn scan(&self, from: u64) -> Scan<'_, E> {
        Scan::new(&self.file, &self.path, self.version, from, self.len)
    }

    /// Keeps the entries that `keep` wants: how a journal that has grown long is made short again.
    /// At once: a reader sees the old or the new ones, never a mixture.
    ///
    /// # Errors
    /// [`JournalError`]; the old journal is then still in force.
    pub fn retain(&mut self, keep: impl FnMut(&E) -> bool) -> Result<(), JournalError> {
        let path = self.path.clone();
        self.copy(&path, keep)
    }

    /// As [`Journal::retain`], and the journal lies at `path` from now on, be it on another file system. A journal
    /// that was there is replaced.
    ///
    /// # Errors
    /// [`JournalError`]; the journal is then where it was. That the old file cannot be removed is none.
    pub fn move_to(
        &mut self,
        path: &Path,
        keep: impl FnMut(&E) -> bool,
    ) -> Result<(), JournalError> {
        let old = self.path.clone();
        self.copy(path, keep)?;
        if old != path {
            // Both hold the same; the new one goes on.
            let _ = std::fs::remove_file(old);
        }
        Ok(())
    }

    fn copy(&mut self, path: &Path, mut keep: impl FnMut(&E) -> bool) -> Result<(), JournalError> {
        let mut name = path.to_owned().into_os_string();
        name.push(".new");
        let temporary = PathBuf::from(name);
        // Only the owner of the lock on the journal itself gets here, so a leftover is a dead writer's.
        match std::fs::remove_file(&temporary) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(failed("replace", &temporary, source));
            }
            _ => {}
        }
        let mut fresh = Self::create(&temporary, self.version)?;
        let moved = self.copy_entries(&mut fresh, &mut keep).and_then(|()| {
            std::fs::rename(&temporary, path).map_err(|source| failed("replace", path, source))
        });
        if let Err(error) = moved {
            // Its name is not looked at by any reader; the next attempt removes it otherwise.
            let _ = std::fs::remove_file(&temporary);
            return Err(error);
        }
        fresh.path = path.to_owned();
        *self = fresh;
        Ok(())
    }

    fn copy_entries(
        &self,
        fresh: &mut Self,
        keep: &mut impl FnMut(&E) -> bool,
    ) -> Result<(), JournalError> {
        let write = |source| failed("write", &fresh.path, source);
        let mut out = BufWriter::new(&fresh.file);
        let mut len = 0;
        for entry in self.scan(0) {
            let entry = entry?;
            if keep(&entry) {
                let frame = encode(&entry, self.version, &self.path)?;
                out.write_all(&frame).map_err(write)?;
                len += frame.len() as u64;
            }
        }
        out.flush().map_err(write)?;
        drop(out);
        fresh.len = len;
        Ok(())
    }
}

/// Reads a journal without changing or locking it. A missing file is an error (`NotFound`), an empty one is not.
///
/// # Errors
/// [`JournalError::Io`], [`JournalError::Version`], [`JournalError::Payload`].
pub fn replay<E: DeserializeOwned>(path: &Path, version: u16) -> Result<Replay<E>, JournalError> {
    let file = File::open(path).map_err(|source| failed("open", path, source))?;
    let mut scan = Scan::new(&file, path, version, 0, u64::MAX);
    let entries = scan.by_ref().collect::<Result<_, _>>()?;
    Ok(Replay {
        entries,
        len: scan.position(),
        end: scan.end()?,
    })
}

/// Whether a living process writes the journal at `path`, as [`Journal::open`] would find.
///
/// # Errors
/// [`JournalError::Io`].
pub fn is_in_use(path: &Path) -> Result<bool, JournalError> {
    let file = File::open(path).map_err(|source| failed("open", path, source))?;
    let free = sys::try_lock(file.as_fd()).map_err(|source| failed("lock", path, source))?;
    Ok(!free)
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> JournalError {
    JournalError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests;
