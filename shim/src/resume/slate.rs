//! A memory file that says, at any moment, what the next image of this process needs.
//!
//! ```text
//! 0      header: magic, format, where the records begin        (rewritten as one)
//! 1024   the report of the latest crash, written by the handler ([`super::sys`])
//! 4096…  records: magic, length, operations                    (appended, one pwrite(2) each)
//! ```
//!
//! An operation puts a value under a key or removes the key. What has grown long is written anew
//! behind the old records; then the header points there, and the old pages are given back. The file
//! is never mapped, so no stray pointer damages it, and pwrite(2) to a memory file is not torn by any
//! signal but SIGKILL: no checksums. What SIGKILL has torn is the last record, and shorter than it says.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::FileExt;

/// Version of the format: of this file, and of all that is put on it.
pub(crate) const FORMAT: u32 = 3;
/// Where the report of a crash lies.
pub(crate) const REPORT_AT: u64 = 1024;
const MAGIC: u32 = 0x6866_736c;
const RECORDS_AT: u64 = 4096;
const PAGE: u64 = 4096;
/// Bytes of records below which nothing is written anew.
const COMPACT_AT: u64 = 64 * 1024;
/// Length that stands for "remove".
const REMOVED: u32 = u32::MAX;

/// A slate that cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SlateError {
    /// The file.
    #[error("{step} the slate")]
    Io {
        /// What was tried.
        step: &'static str,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// Not one of ours.
    #[error("the descriptor holds no slate")]
    Foreign,
    /// Of another version.
    #[error("the slate has format {found}, this program reads {FORMAT}")]
    Format {
        /// The one found.
        found: u32,
    },
}

/// What is known of a value without reading it.
#[derive(Debug, Default)]
struct Live {
    len: usize,
    /// Descriptors that it names.
    names: Vec<RawFd>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Slate {
    file: File,
    start: u64,
    end: u64,
    live: HashMap<Box<str>, Live>,
    live_bytes: u64,
    /// How many keys name a descriptor.
    named: HashMap<RawFd, u32>,
    /// Descriptors that a key has begun or ceased to name since they were last asked for.
    changed: Vec<RawFd>,
    /// Operations of the step under way.
    pending: Vec<u8>,
}

fn cost(key: &str, len: usize) -> u64 {
    (key.len() + len + 6) as u64
}

fn encode(out: &mut Vec<u8>, key: &str, value: Option<&[u8]>) {
    let key_len = u16::try_from(key.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&key_len.to_le_bytes());
    out.extend_from_slice(
        key.as_bytes()
            .get(..usize::from(key_len))
            .unwrap_or_default(),
    );
    match value {
        Some(value) => {
            let len = u32::try_from(value.len()).unwrap_or(0);
            out.extend_from_slice(&len.to_le_bytes());
            out.extend_from_slice(value);
        }
        None => out.extend_from_slice(&REMOVED.to_le_bytes()),
    }
}

fn word(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (word, rest) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_le_bytes(*word), rest))
}

/// A key, its value if it has one now, and the operations after this one.
type Operation<'a> = (&'a str, Option<&'a [u8]>, &'a [u8]);

/// One operation of a record.
fn decode(bytes: &[u8]) -> Option<Operation<'_>> {
    let (len, rest) = bytes.split_first_chunk::<2>()?;
    let (key, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
    let key = std::str::from_utf8(key).ok()?;
    let (len, rest) = word(rest)?;
    if len == REMOVED {
        return Some((key, None, rest));
    }
    let (value, rest) = rest.split_at_checked(usize::try_from(len).ok()?)?;
    Some((key, Some(value), rest))
}

impl Slate {
    /// An empty one.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn create(file: File) -> io::Result<Self> {
        let mut slate = Self {
            file,
            start: RECORDS_AT,
            end: RECORDS_AT,
            live: HashMap::new(),
            live_bytes: 0,
            named: HashMap::new(),
            changed: Vec::new(),
            pending: Vec::new(),
        };
        slate.point_at(RECORDS_AT)?;
        Ok(slate)
    }

    /// Whether it is one that this program reads; where its records begin.
    ///
    /// # Errors
    /// [`SlateError`].
    pub(crate) fn check(file: &File) -> Result<u64, SlateError> {
        let failed = |step| move |source| SlateError::Io { step, source };
        let mut header = [0u8; 16];
        file.read_exact_at(&mut header, 0)
            .map_err(failed("read the header of"))?;
        let found = word(&header).and_then(|(magic, rest)| {
            let (format, rest) = word(rest)?;
            let start = u64::from_le_bytes(*rest.first_chunk::<8>()?);
            (magic == MAGIC).then_some((format, start))
        });
        let (format, start) = found.ok_or(SlateError::Foreign)?;
        if format != FORMAT {
            return Err(SlateError::Format { found: format });
        }
        Ok(start)
    }

    /// One that an earlier image wrote, with all that is on it.
    ///
    /// # Errors
    /// [`SlateError`]; nothing has been changed then.
    pub(crate) fn open(file: File) -> Result<(Self, BTreeMap<String, Vec<u8>>), SlateError> {
        let failed = |step| move |source| SlateError::Io { step, source };
        let start = Self::check(&file)?;
        let size = file.metadata().map_err(failed("look at"))?.len();
        let mut bytes = vec![0u8; usize::try_from(size.saturating_sub(start)).unwrap_or(0)];
        file.read_exact_at(&mut bytes, start)
            .map_err(failed("read"))?;
        let mut values = BTreeMap::new();
        let mut rest = bytes.as_slice();
        while let Some((magic, after)) = word(rest)
            && magic == MAGIC
            && let Some((len, after)) = word(after)
            && let Some((mut operations, after)) =
                after.split_at_checked(usize::try_from(len).unwrap_or(usize::MAX))
        {
            while let Some((key, value, others)) = decode(operations) {
                match value {
                    Some(value) => values.insert(key.to_owned(), value.to_vec()),
                    None => values.remove(key),
                };
                operations = others;
            }
            rest = after;
        }
        // Which descriptors they name is known again when they are put again.
        let live: HashMap<Box<str>, Live> = values
            .iter()
            .map(|(key, value)| {
                let live = Live {
                    len: value.len(),
                    names: Vec::new(),
                };
                (key.as_str().into(), live)
            })
            .collect();
        let end = start + (bytes.len() - rest.len()) as u64;
        // What a killed image has written of a record that it could not finish: nothing may follow it.
        file.set_len(end).map_err(failed("shorten"))?;
        let slate = Self {
            live_bytes: live.iter().map(|(key, live)| cost(key, live.len)).sum(),
            named: HashMap::new(),
            changed: Vec::new(),
            end,
            start,
            file,
            live,
            pending: Vec::new(),
        };
        Ok((slate, values))
    }

    /// The descriptor's number.
    pub(crate) fn number(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// The descriptor.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn point_at(&mut self, start: u64) -> io::Result<()> {
        let mut header = [0u8; 16];
        let parts = [
            &MAGIC.to_le_bytes()[..],
            &FORMAT.to_le_bytes(),
            &start.to_le_bytes(),
        ];
        for (to, from) in header.iter_mut().zip(parts.concat()) {
            *to = from;
        }
        self.file.write_all_at(&header, 0)?;
        self.start = start;
        Ok(())
    }

    /// Whether there is something under `key`.
    pub(crate) fn contains(&self, key: &str) -> bool {
        self.live.contains_key(key)
    }

    /// The keys that begin with `prefix`.
    pub(crate) fn keys(&self, prefix: &str) -> Vec<String> {
        self.live
            .keys()
            .filter(|key| key.starts_with(prefix))
            .map(ToString::to_string)
            .collect()
    }

    /// Whether a key names this descriptor.
    pub(crate) fn names(&self, descriptor: RawFd) -> bool {
        self.named.contains_key(&descriptor)
    }

    /// Every descriptor that a key names.
    pub(crate) fn all_named(&self) -> impl Iterator<Item = RawFd> {
        self.named.keys().copied()
    }

    /// The descriptors that a key has begun or ceased to name since the last call.
    pub(crate) fn take_changed(&mut self) -> Vec<RawFd> {
        std::mem::take(&mut self.changed)
    }

    /// Puts `value`, which names these descriptors, under `key` with the next [`Slate::commit`].
    pub(crate) fn put(&mut self, key: &str, value: &[u8], names: Vec<RawFd>) {
        encode(&mut self.pending, key, Some(value));
        self.live_bytes += cost(key, value.len());
        let before = self.live.get(key);
        for name in &names {
            *self.named.entry(*name).or_default() += 1;
            if before.is_none_or(|before| !before.names.contains(name)) {
                self.changed.push(*name);
            }
        }
        let live = Live {
            len: value.len(),
            names,
        };
        if let Some(old) = self.live.insert(key.into(), live) {
            self.forget(key, &old);
        }
    }

    /// Removes `key` with the next [`Slate::commit`].
    pub(crate) fn remove(&mut self, key: &str) {
        if let Some(old) = self.live.remove(key) {
            self.forget(key, &old);
            encode(&mut self.pending, key, None);
        }
    }

    fn forget(&mut self, key: &str, old: &Live) {
        self.live_bytes = self.live_bytes.saturating_sub(cost(key, old.len));
        for name in &old.names {
            if let Entry::Occupied(mut count) = self.named.entry(*name) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                    self.changed.push(*name);
                }
            }
        }
    }

    /// Puts a value at once, whatever the step under way comes to.
    ///
    /// # Errors
    /// As [`Slate::commit`].
    pub(crate) fn put_now(&mut self, key: &str, value: &[u8]) -> io::Result<()> {
        let step = std::mem::take(&mut self.pending);
        self.put(key, value, Vec::new());
        let done = self.commit();
        self.pending = step;
        done
    }

    /// Writes what has changed, as one.
    ///
    /// # Errors
    /// `ENOMEM` and the like: then the slate does not say any more what is true.
    pub(crate) fn commit(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let len = u32::try_from(self.pending.len()).map_err(io::Error::other)?;
        let mut record = Vec::with_capacity(self.pending.len() + 8);
        record.extend_from_slice(&MAGIC.to_le_bytes());
        record.extend_from_slice(&len.to_le_bytes());
        record.append(&mut self.pending);
        if self.pending.capacity() > 64 * 1024 {
            self.pending = Vec::new();
        }
        self.file.write_all_at(&record, self.end)?;
        self.end += record.len() as u64;
        let used = self.end - self.start;
        if used > COMPACT_AT && used > 3 * self.live_bytes {
            self.compact()?;
        }
        Ok(())
    }

    /// Writes all that lives behind the old records, points there, and gives the old ones back.
    fn compact(&mut self) -> io::Result<()> {
        let mut bytes = vec![0u8; usize::try_from(self.end - self.start).unwrap_or(0)];
        self.file.read_exact_at(&mut bytes, self.start)?;
        let mut values: HashMap<&str, &[u8]> = HashMap::new();
        let mut rest = bytes.as_slice();
        while let Some((_, after)) = word(rest)
            && let Some((len, after)) = word(after)
            && let Some((mut operations, after)) =
                after.split_at_checked(usize::try_from(len).unwrap_or(usize::MAX))
        {
            while let Some((key, value, others)) = decode(operations) {
                match value {
                    Some(value) => values.insert(key, value),
                    None => values.remove(key),
                };
                operations = others;
            }
            rest = after;
        }
        let mut operations = Vec::new();
        for (key, value) in values {
            encode(&mut operations, key, Some(value));
        }
        let len = u32::try_from(operations.len()).map_err(io::Error::other)?;
        let mut record = Vec::with_capacity(operations.len() + 8);
        record.extend_from_slice(&MAGIC.to_le_bytes());
        record.extend_from_slice(&len.to_le_bytes());
        record.append(&mut operations);
        let start = self.end.next_multiple_of(PAGE);
        self.file.write_all_at(&record, start)?;
        self.end = start + record.len() as u64;
        self.point_at(start)?;
        // Their pages; a file system that cannot do it keeps them, which does no harm.
        let hole = i64::try_from(start - RECORDS_AT).unwrap_or(0);
        let _ = nix::fcntl::fallocate(
            self.file.as_raw_fd(),
            nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE
                | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE,
            i64::try_from(RECORDS_AT).unwrap_or(0),
            hole,
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn again(slate: &Slate) -> BTreeMap<String, Vec<u8>> {
        Slate::open(slate.file.try_clone().unwrap()).unwrap().1
    }

    fn empty() -> Slate {
        Slate::create(crate::sys::memory_file(c"slate-test").unwrap()).unwrap()
    }

    #[test]
    fn another_format_is_refused_and_left_as_it_is() {
        let slate = empty();
        slate.file.write_all_at(&7u32.to_le_bytes(), 4).unwrap();
        assert!(matches!(
            Slate::open(slate.file.try_clone().unwrap()),
            Err(SlateError::Format { found: 7 })
        ));
        let other = crate::sys::memory_file(c"other").unwrap();
        assert!(matches!(Slate::open(other), Err(SlateError::Io { .. })));
    }

    #[test]
    fn what_is_not_committed_is_not_there() {
        let mut slate = empty();
        slate.put("a", b"1", vec![3]);
        slate.commit().unwrap();
        slate.put("a", b"2", Vec::new());
        slate.remove("a");
        assert_eq!(again(&slate).get("a").unwrap(), b"1");
        slate.commit().unwrap();
        assert!(again(&slate).is_empty());
    }

    #[test]
    fn a_descriptor_is_named_as_long_as_a_key_names_it() {
        let mut slate = empty();
        slate.put("a", b"", vec![7, 8]);
        slate.put("b", b"", vec![7]);
        slate.put("a", b"", vec![8, 9]);
        assert_eq!([7, 8, 9].map(|n| slate.names(n)), [true; 3]);
        slate.remove("b");
        slate.put("a", b"", vec![9]);
        assert_eq!([7, 8, 9].map(|n| slate.names(n)), [false, false, true]);
        slate.remove("a");
        assert!(slate.named.is_empty());
    }

    #[test]
    fn a_record_that_was_torn_is_as_if_it_had_not_been_begun() {
        let mut slate = empty();
        slate.put("a", b"1", Vec::new());
        slate.commit().unwrap();
        let whole = slate.end;
        slate.put("b", &[0x68; 9000], Vec::new());
        slate.commit().unwrap();
        slate.file.set_len(whole + 5000).unwrap();
        let (mut slate, values) = Slate::open(slate.file).unwrap();
        assert_eq!(values.keys().collect::<Vec<_>>(), ["a"]);
        slate.put("c", b"3", Vec::new());
        slate.commit().unwrap();
        assert_eq!(again(&slate).keys().collect::<Vec<_>>(), ["a", "c"]);
    }

    #[test]
    fn it_stays_short_however_often_it_is_written() {
        let mut slate = empty();
        for n in 0..20_000u32 {
            slate.put("state", &[0; 300], Vec::new());
            slate.put("number", &n.to_le_bytes(), Vec::new());
            slate.commit().unwrap();
        }
        assert_eq!(
            again(&slate).get("number").unwrap(),
            &19_999u32.to_le_bytes()
        );
        use std::os::unix::fs::MetadataExt as _;
        let pages = slate.file.metadata().unwrap().blocks() * 512;
        assert!(pages < 256 * 1024, "{pages}");
    }

    proptest! {
        #[test]
        fn a_reader_finds_what_was_committed_last(
            steps in proptest::collection::vec(
                proptest::collection::vec((0u8..6, proptest::option::of(0usize..9000)), 0..4),
                0..60,
            )
        ) {
            let mut slate = empty();
            let mut model = BTreeMap::new();
            for step in steps {
                for (key, value) in step {
                    let key = format!("k/{key}");
                    match value {
                        Some(len) => {
                            let value = vec![u8::try_from(len % 251).unwrap(); len];
                            slate.put(&key, &value, Vec::new());
                            model.insert(key, value);
                        }
                        None => {
                            slate.remove(&key);
                            model.remove(&key);
                        }
                    }
                }
                slate.commit().unwrap();
                prop_assert_eq!(&again(&slate), &model);
            }
            let (mut reopened, values) = Slate::open(slate.file.try_clone().unwrap()).unwrap();
            prop_assert_eq!(&values, &model);
            reopened.put("new", b"x", Vec::new());
            reopened.commit().unwrap();
            model.insert("new".to_owned(), b"x".to_vec());
            prop_assert_eq!(again(&reopened), model);
        }
    }
}
