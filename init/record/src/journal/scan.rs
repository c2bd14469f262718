//! Reading entry by entry.

use std::fs::File;
use std::marker::PhantomData;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use serde::de::DeserializeOwned;

use super::frame::frame;
use super::{End, HEADER, JournalError, MAX_PAYLOAD, failed};

/// Bytes read at once.
const CHUNK: usize = 16 * 1024;

/// The entries of a journal from some byte on, oldest first. It ends at the end, at the first byte that belongs to no
/// whole frame, or with the first error.
#[derive(Debug)]
pub struct Scan<'a, E> {
    file: &'a File,
    path: &'a Path,
    version: u16,
    /// Where the next frame begins.
    at: u64,
    /// Nothing is read from here on.
    limit: u64,
    /// Bytes of the file from `at` on.
    ahead: Vec<u8>,
    over: bool,
    entries: PhantomData<fn() -> E>,
}

impl<'a, E> Scan<'a, E> {
    pub(super) fn new(file: &'a File, path: &'a Path, version: u16, at: u64, limit: u64) -> Self {
        Self {
            file,
            path,
            version,
            at,
            limit,
            ahead: Vec::new(),
            over: false,
            entries: PhantomData,
        }
    }

    /// Byte offset behind the last entry that was read.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.at
    }

    /// What comes after the last entry that was read.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn end(&self) -> Result<End, JournalError> {
        let mut chunk = [0; CHUNK];
        let (mut at, mut zeros) = (self.at, true);
        while at < self.limit {
            let read = self.read(&mut chunk, at)?;
            let Some(bytes) = chunk.get(..read).filter(|bytes| !bytes.is_empty()) else {
                break;
            };
            zeros &= bytes.iter().all(|byte| *byte == 0);
            at += read as u64;
        }
        Ok(if zeros {
            End::Clean
        } else {
            End::Torn { lost: at - self.at }
        })
    }

    fn read(&self, to: &mut [u8], at: u64) -> Result<usize, JournalError> {
        let room = usize::try_from(self.limit.saturating_sub(at)).unwrap_or(usize::MAX);
        let len = to.len().min(room);
        loop {
            match self.file.read_at(to.get_mut(..len).unwrap_or_default(), at) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                read => return read.map_err(|source| failed("read", self.path, source)),
            }
        }
    }

    /// Sees to it that `want` bytes are ahead; false when the file has no more.
    fn fill(&mut self, want: usize) -> Result<bool, JournalError> {
        while self.ahead.len() < want {
            let have = self.ahead.len();
            self.ahead.resize(want.max(have + CHUNK), 0);
            let mut ahead = std::mem::take(&mut self.ahead);
            let read = self.read(
                ahead.get_mut(have..).unwrap_or_default(),
                self.at + have as u64,
            );
            ahead.truncate(have + read.as_ref().copied().unwrap_or(0));
            self.ahead = ahead;
            if read? == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl<E: DeserializeOwned> Scan<'_, E> {
    fn entry(&mut self) -> Result<Option<E>, JournalError> {
        if !self.fill(HEADER)? {
            return Ok(None);
        }
        let size = self
            .ahead
            .first_chunk::<4>()
            .and_then(|size| usize::try_from(u32::from_le_bytes(*size)).ok())
            .filter(|size| *size <= MAX_PAYLOAD);
        let Some(size) = size else {
            return Ok(None);
        };
        if !self.fill(HEADER + size)? {
            return Ok(None);
        }
        let Some((found, payload)) = frame(&self.ahead) else {
            return Ok(None);
        };
        if found != self.version {
            return Err(JournalError::Version {
                path: self.path.to_owned(),
                at: self.at,
                found,
                known: self.version,
            });
        }
        let entry = serde_json::from_slice(payload).map_err(|source| JournalError::Payload {
            path: self.path.to_owned(),
            at: self.at,
            source,
        })?;
        self.ahead.drain(..HEADER + size);
        self.at += (HEADER + size) as u64;
        Ok(Some(entry))
    }
}

impl<E: DeserializeOwned> Iterator for Scan<'_, E> {
    type Item = Result<E, JournalError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let entry = self.entry().transpose();
        self.over = !matches!(entry, Some(Ok(_)));
        entry
    }
}
