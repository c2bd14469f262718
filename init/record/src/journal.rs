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
//! A full disk is planned for: [`Journal::reserve`] takes the space beforehand.
//! The file is not synced: it lives on `/run` and dies with the boot, as the containers do.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::crc::crc32;
use crate::sys;

/// Bytes before a frame's payload.
pub const HEADER: usize = 10;

/// Longest payload in bytes. A longer length field is taken for damage.
pub const MAX_PAYLOAD: usize = 1 << 20;

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
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|source| failed("open", path, source))?;
        let mut journal = Self::own(file, path, version, 0)?;
        let replay = read_all::<E>(&mut journal.file, path, version)?;
        journal
            .file
            .set_len(replay.len)
            .map_err(|source| failed("cut", path, source))?;
        journal.len = replay.len;
        Ok((journal, replay))
    }

    fn own(file: File, path: &Path, version: u16, len: u64) -> Result<Self, JournalError> {
        let mine = sys::try_lock(file.as_fd()).map_err(|source| failed("lock", path, source))?;
        if !mine {
            return Err(JournalError::InUse(path.to_owned()));
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
        if self.broken {
            return Err(JournalError::Broken(self.path.clone()));
        }
        let frame = encode(entry, self.version, &self.path)?;
        let written = self
            .file
            .seek(SeekFrom::Start(self.len))
            .and_then(|_| self.file.write_all(&frame));
        match written {
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

    /// Replaces all entries by `entries` at once: a reader sees the old or the new ones, never a mixture.
    ///
    /// This is how a journal that has grown long is made short again.
    ///
    /// # Errors
    /// [`JournalError`]; the old journal is then still in force.
    pub fn rewrite<'a>(
        &mut self,
        entries: impl IntoIterator<Item = &'a E>,
    ) -> Result<(), JournalError>
    where
        E: 'a,
    {
        let mut bytes = Vec::new();
        for entry in entries {
            bytes.extend(encode(entry, self.version, &self.path)?);
        }
        let mut name = self.path.clone().into_os_string();
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
        let moved = fresh
            .file
            .write_all(&bytes)
            .and_then(|()| std::fs::rename(&temporary, &self.path));
        if let Err(source) = moved {
            // Its name is not looked at by any reader; the next rewrite removes it otherwise.
            let _ = std::fs::remove_file(&temporary);
            return Err(failed("replace", &self.path, source));
        }
        self.file = fresh.file;
        self.len = bytes.len() as u64;
        self.broken = false;
        Ok(())
    }
}

/// Reads a journal without changing or locking it. A missing file is an error (`NotFound`), an empty one is not.
///
/// # Errors
/// [`JournalError::Io`], [`JournalError::Version`], [`JournalError::Payload`].
pub fn replay<E: DeserializeOwned>(path: &Path, version: u16) -> Result<Replay<E>, JournalError> {
    let mut file = File::open(path).map_err(|source| failed("open", path, source))?;
    read_all(&mut file, path, version)
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> JournalError {
    JournalError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

fn encode<E: Serialize>(entry: &E, version: u16, path: &Path) -> Result<Vec<u8>, JournalError> {
    let payload = serde_json::to_vec(entry).map_err(|source| JournalError::Encode {
        path: path.to_owned(),
        source,
    })?;
    let too_long = || JournalError::TooLong {
        path: path.to_owned(),
        len: payload.len(),
    };
    if payload.len() > MAX_PAYLOAD {
        return Err(too_long());
    }
    let len = u32::try_from(payload.len())
        .map_err(|_| too_long())?
        .to_le_bytes();
    let version = version.to_le_bytes();
    let crc = crc32(&[&len, &version, &payload]).to_le_bytes();
    Ok([&len[..], &crc, &version, &payload].concat())
}

fn read_all<E: DeserializeOwned>(
    file: &mut File,
    path: &Path,
    version: u16,
) -> Result<Replay<E>, JournalError> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)
        .map_err(|source| failed("read", path, source))?;
    let mut entries = Vec::new();
    let mut at = 0;
    while let Some((found, payload)) = frame(&bytes[at..]) {
        if found != version {
            return Err(JournalError::Version {
                path: path.to_owned(),
                at: at as u64,
                found,
                known: version,
            });
        }
        let entry = serde_json::from_slice(payload).map_err(|source| JournalError::Payload {
            path: path.to_owned(),
            at: at as u64,
            source,
        })?;
        entries.push(entry);
        at += HEADER + payload.len();
    }
    let rest = &bytes[at..];
    let end = if rest.iter().all(|byte| *byte == 0) {
        End::Clean
    } else {
        End::Torn {
            lost: rest.len() as u64,
        }
    };
    Ok(Replay {
        entries,
        len: at as u64,
        end,
    })
}

/// The first frame of `bytes` as (version, payload), if it is whole.
fn frame(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let (version, rest) = rest.split_first_chunk::<2>()?;
    let size = usize::try_from(u32::from_le_bytes(*len)).ok()?;
    if size > MAX_PAYLOAD {
        return None;
    }
    let payload = rest.get(..size)?;
    (crc32(&[len, version, payload]) == u32::from_le_bytes(*crc))
        .then(|| (u16::from_le_bytes(*version), payload))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;

    #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
    enum Entry {
        Created { id: String, pid: u32 },
        Exited { status: i32 },
        Deleted,
    }

    fn entries() -> Vec<Entry> {
        vec![
            Entry::Created {
                id: "one".into(),
                pid: 77,
            },
            Entry::Exited { status: 9 },
            Entry::Deleted,
        ]
    }

    fn written(folder: &Path) -> PathBuf {
        let path = folder.join("journal");
        let mut journal = Journal::create(&path, 1).unwrap();
        for entry in entries() {
            journal.append(&entry).unwrap();
        }
        path
    }

    #[test]
    fn cut_at_every_byte_it_gives_the_entries_before_the_cut_and_takes_new_ones() {
        let folder = tempfile::tempdir().unwrap();
        let whole = std::fs::read(written(folder.path())).unwrap();
        let mut ends = vec![0];
        while let Some((_, payload)) = frame(&whole[*ends.last().unwrap()..]) {
            ends.push(ends.last().unwrap() + HEADER + payload.len());
        }
        assert_eq!(ends.len(), 4);
        for cut in 0..=whole.len() {
            let path = folder.path().join("cut");
            std::fs::write(&path, &whole[..cut]).unwrap();
            let good = ends.iter().filter(|end| **end > 0 && **end <= cut).count();
            let (mut journal, replay) = Journal::<Entry>::open(&path, 1).unwrap();
            assert_eq!(replay.entries, entries()[..good], "cut at {cut}");
            let clean = ends.contains(&cut) || whole[ends[good]..cut].iter().all(|b| *b == 0);
            assert_eq!(replay.end == End::Clean, clean, "cut at {cut}");
            journal.append(&Entry::Deleted).unwrap();
            let again = super::replay::<Entry>(&path, 1).unwrap();
            assert_eq!(again.end, End::Clean);
            assert_eq!(again.entries.len(), good + 1);
            assert_eq!(again.entries.last(), Some(&Entry::Deleted));
        }
    }

    #[test]
    fn any_flipped_bit_hides_only_what_comes_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path());
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            std::fs::write(&path, &damaged).unwrap();
            let replay = super::replay::<Entry>(&path, 1).unwrap();
            assert_eq!(replay.entries, entries()[..replay.entries.len()]);
            assert!(replay.entries.len() < 3, "byte {at} went unnoticed");
            assert!(replay.len <= at as u64);
        }
    }

    #[test]
    fn another_version_is_refused_before_anything_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path());
        let before = std::fs::read(&path).unwrap();
        let error = Journal::<Entry>::open(&path, 2).unwrap_err();
        assert!(matches!(
            error,
            JournalError::Version {
                found: 1,
                known: 2,
                at: 0,
                ..
            }
        ));
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }

    #[test]
    fn a_whole_frame_with_strange_content_is_not_taken_for_a_crash() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let mut journal = Journal::create(&path, 1).unwrap();
        journal.append(&"a string".to_owned()).unwrap();
        let error = super::replay::<Entry>(&path, 1).unwrap_err();
        assert!(matches!(error, JournalError::Payload { at: 0, .. }));
    }

    #[test]
    fn one_writer_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let journal = Journal::<Entry>::create(&path, 1).unwrap();
        assert!(matches!(
            Journal::<Entry>::open(&path, 1).unwrap_err(),
            JournalError::InUse(_)
        ));
        drop(journal);
        assert!(Journal::<Entry>::open(&path, 1).is_ok());
    }

    #[test]
    fn reserved_space_is_not_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let mut journal = Journal::create(&path, 1).unwrap();
        if let Err(JournalError::Io { source, .. }) = journal.reserve(65_536) {
            println!("skipped: this file system cannot preallocate: {source}");
            return;
        }
        journal.append(&Entry::Deleted).unwrap();
        let replay = super::replay::<Entry>(&path, 1).unwrap();
        assert_eq!((replay.entries.len(), replay.end), (1, End::Clean));
    }

    #[test]
    fn a_rewrite_leaves_exactly_the_new_entries_and_stays_writable() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path());
        std::fs::write(folder.path().join("journal.new"), b"left by a dead writer").unwrap();
        let (mut journal, _) = Journal::<Entry>::open(&path, 1).unwrap();
        journal.rewrite([&Entry::Exited { status: 3 }]).unwrap();
        journal.append(&Entry::Deleted).unwrap();
        let replay = super::replay::<Entry>(&path, 1).unwrap();
        assert_eq!(
            replay.entries,
            [Entry::Exited { status: 3 }, Entry::Deleted]
        );
        assert!(!folder.path().join("journal.new").exists());
        assert!(matches!(
            Journal::<Entry>::open(&path, 1).unwrap_err(),
            JournalError::InUse(_)
        ));
    }

    #[test]
    fn a_full_disk_leaves_the_journal_as_it_was() {
        let path = Path::new("/dev/full");
        let mut journal = Journal::<Entry> {
            file: OpenOptions::new().write(true).open(path).unwrap(),
            path: path.to_owned(),
            version: 1,
            len: 0,
            broken: false,
            entries: PhantomData,
        };
        let error = journal.append(&Entry::Deleted).unwrap_err();
        assert!(matches!(
            error,
            JournalError::Io {
                action: "write",
                ..
            }
        ));
        // A device cannot be cut, so the journal knows that it is not to be trusted any more.
        assert!(matches!(
            journal.append(&Entry::Deleted).unwrap_err(),
            JournalError::Broken(_)
        ));
    }

    proptest! {
        #[test]
        fn bytes_of_any_kind_never_do_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("journal");
            std::fs::write(&path, &bytes).unwrap();
            if let Ok(replay) = super::replay::<Entry>(&path, 1) {
                prop_assert!(replay.len <= bytes.len() as u64);
            }
        }
    }
}
