//! How a plan lies in memory.
//!
//! ```text
//! header  magic u32 | version u32 | steps u32 | scratch offset u32
//! step    tag u32   | body length u32 | body, padded to 8 bytes
//! …
//! scratch zero bytes, room for the argv and envp pointer arrays
//! ```
//! Every field of a body starts at a multiple of 8. Integers are little endian and 8
//! bytes wide. A string is its length (u32, without the NUL), 4 zero bytes, the bytes,
//! a NUL and padding: the kernel can be given a pointer into the plan as it is.

use core::ffi::CStr;

use crate::step::Step;

pub(crate) const MAGIC: u32 = u32::from_le_bytes(*b"HFPL");
pub(crate) const VERSION: u32 = 1;
/// Length of the header in bytes.
pub const HEADER: usize = 16;

/// Where a plan is written to: a buffer that grows.
pub trait Sink {
    /// Adds bytes at the end.
    fn append(&mut self, bytes: &[u8]);
}

/// The header of a plan with `steps` steps whose scratch area begins at `scratch`.
pub fn header(steps: u32, scratch: u32) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    for (at, word) in [MAGIC, VERSION, steps, scratch].into_iter().enumerate() {
        bytes[at * 4..at * 4 + 4].copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// The bytes are not a plan: truncated, of another version, or with a field that lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl core::fmt::Display for Malformed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("the plan is malformed")
    }
}

impl core::error::Error for Malformed {}

/// A read-only view of an encoded plan.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    body: &'a [u8],
    steps: u32,
    scratch: usize,
}

impl<'a> Plan<'a> {
    /// Checks the header and borrows the steps. The steps themselves are checked
    /// while they are read.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let word = |at: usize| -> Result<u32, Malformed> {
            let raw = bytes.get(at..at + 4).ok_or(Malformed)?;
            Ok(u32::from_le_bytes(raw.try_into().map_err(|_| Malformed)?))
        };
        if word(0)? != MAGIC || word(4)? != VERSION {
            return Err(Malformed);
        }
        let steps = word(8)?;
        let scratch = word(12)? as usize;
        let body = bytes.get(HEADER..scratch).ok_or(Malformed)?;
        // Pointers are written there.
        if !scratch.is_multiple_of(8) {
            return Err(Malformed);
        }
        Ok(Self {
            body,
            steps,
            scratch,
        })
    }

    /// Iterates over the steps, in the order of execution.
    pub fn steps(&self) -> Steps<'a> {
        Steps {
            reader: Reader { rest: self.body },
            left: self.steps,
        }
    }

    /// Byte offset of the scratch area from the start of the plan (multiple of 8).
    pub fn scratch_offset(&self) -> usize {
        self.scratch
    }
}

/// Iterator over the steps of a [`Plan`]; ends after the first malformed one.
#[derive(Debug, Clone)]
pub struct Steps<'a> {
    reader: Reader<'a>,
    left: u32,
}

impl<'a> Iterator for Steps<'a> {
    type Item = Result<Step<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let step = self.reader.step();
        if step.is_err() {
            self.left = 0;
        }
        Some(step)
    }
}

/// A list of NUL-terminated strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct List<'a> {
    bytes: &'a [u8],
    count: u32,
}

impl<'a> List<'a> {
    /// Number of strings.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there is no string.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The strings in order.
    pub fn iter(&self) -> impl Iterator<Item = &'a CStr> + use<'a> {
        let mut rest = self.bytes;
        (0..self.count).map_while(move |_| {
            let text = CStr::from_bytes_until_nul(rest).ok()?;
            rest = rest.get(text.count_bytes() + 1..)?;
            Some(text)
        })
    }
}

/// A list of 32-bit numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Words<'a> {
    bytes: &'a [u8],
}

impl<'a> Words<'a> {
    /// The little-endian bytes, 4 per number, aligned to 8: on a little-endian machine
    /// the kernel can read them as they are.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Number of words.
    pub fn len(&self) -> usize {
        self.bytes.len() / 4
    }

    /// Whether the list is empty.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    pub(crate) rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.rest.split_at_checked(len).ok_or(Malformed)?;
        self.rest = tail;
        Ok(head)
    }

    fn pair(&mut self) -> Result<(u32, usize), Malformed> {
        let raw = self.take(8)?;
        let a = u32::from_le_bytes(raw[..4].try_into().map_err(|_| Malformed)?);
        let b = u32::from_le_bytes(raw[4..].try_into().map_err(|_| Malformed)?);
        Ok((a, b as usize))
    }

    fn padded(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let bytes = self.take(len)?;
        self.take(padding(len))?;
        Ok(bytes)
    }

    fn step(&mut self) -> Result<Step<'a>, Malformed> {
        let (tag, len) = self.pair()?;
        let mut body = Reader {
            rest: self.take(len)?,
        };
        let step = Step::decode(tag, &mut body)?;
        // A body that is longer than its fields was written by somebody else.
        if body.rest.is_empty() {
            Ok(step)
        } else {
            Err(Malformed)
        }
    }
}

pub(crate) const fn padding(len: usize) -> usize {
    (8 - len % 8) % 8
}

/// One field of a step: how it is written and read.
pub(crate) trait Field<'a>: Sized {
    fn put(&self, out: &mut dyn Sink);
    fn get(from: &mut Reader<'a>) -> Result<Self, Malformed>;
}

impl<'a> Field<'a> for u64 {
    fn put(&self, out: &mut dyn Sink) {
        out.append(&self.to_le_bytes());
    }
    fn get(from: &mut Reader<'a>) -> Result<Self, Malformed> {
        let raw = from.take(8)?;
        Ok(u64::from_le_bytes(raw.try_into().map_err(|_| Malformed)?))
    }
}

impl<'a> Field<'a> for u32 {
    fn put(&self, out: &mut dyn Sink) {
        u64::from(*self).put(out);
    }
    fn get(from: &mut Reader<'a>) -> Result<Self, Malformed> {
        u32::try_from(u64::get(from)?).map_err(|_| Malformed)
    }
}

impl<'a> Field<'a> for i32 {
    fn put(&self, out: &mut dyn Sink) {
        self.cast_unsigned().put(out);
    }
    fn get(from: &mut Reader<'a>) -> Result<Self, Malformed> {
        Ok(u32::get(from)?.cast_signed())
    }
}

impl<'a> Field<'a> for bool {
    fn put(&self, out: &mut dyn Sink) {
        u64::from(*self).put(out);
    }
    fn get(from: &mut Reader<'a>) -> Result<Self, Malformed> {
        match u64::get(from)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }
}

impl<'a> Field<'a> for &'a CStr {
    fn put(&self, out: &mut dyn Sink) {
        block(out, self.count_bytes(), self.to_bytes_with_nul());
    }
    fn get(from: &mut Reader<'a>) -> Result<Self, Malformed> {
        let (len, _) = from.pair()?;
        let len = (len as usize).checked_add(1).ok_or(Malformed)?;
        CStr::from_bytes_with_nul(from.padded(len)?).map_err(|_| Malformed)
    }
}

impl<'a> Field<'a> for &'a [u8] {
    fn put(&self, out: &mut dyn Sink) {
        block(out, self.len(), self);
    }
    fn get(from: &mut Reader<'a>) -> Result<Self, Malformed> {
        let (len, _) = from.pair()?;
        from.padded(len as usize)
    }
}

impl<'a> Field<'a> for Words<'a> {
    fn put(&self, out: &mut dyn Sink) {
        self.bytes.put(out);
    }
    fn get(from: &mut Reader<'a>) -> Result<Self, Malformed> {
        let bytes = <&[u8]>::get(from)?;
        if bytes.len().is_multiple_of(4) {
            Ok(Self { bytes })
        } else {
            Err(Malformed)
        }
    }
}

impl<'a> Field<'a> for List<'a> {
    fn put(&self, out: &mut dyn Sink) {
        self.count.put(out);
        self.bytes.put(out);
    }
    fn get(from: &mut Reader<'a>) -> Result<Self, Malformed> {
        let count = u32::get(from)?;
        let bytes = <&[u8]>::get(from)?;
        let list = Self { bytes, count };
        if list.iter().count() == list.len() {
            Ok(list)
        } else {
            Err(Malformed)
        }
    }
}

fn block(out: &mut dyn Sink, len: usize, bytes: &[u8]) {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the builder's callers are bounded by the size of config.json, far below 4 GiB"
    )]
    out.append(&(len as u32).to_le_bytes());
    out.append(&[0; 4]);
    out.append(bytes);
    out.append(&[0; 8][..padding(bytes.len())]);
}

impl<'a> List<'a> {
    /// Borrows `bytes`, which hold `count` strings, each with its NUL.
    ///
    /// # Errors
    /// [`Malformed`] when the count does not match.
    pub fn from_bytes(bytes: &'a [u8], count: u32) -> Result<Self, Malformed> {
        let list = Self { bytes, count };
        if list.iter().count() == list.len() {
            Ok(list)
        } else {
            Err(Malformed)
        }
    }
}

impl<'a> Words<'a> {
    /// Borrows little-endian 32-bit numbers.
    ///
    /// # Errors
    /// [`Malformed`] when the length is no multiple of 4.
    pub fn from_bytes(bytes: &'a [u8]) -> Result<Self, Malformed> {
        if bytes.len().is_multiple_of(4) {
            Ok(Self { bytes })
        } else {
            Err(Malformed)
        }
    }
}
