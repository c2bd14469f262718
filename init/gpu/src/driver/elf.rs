//! The name a library gives itself (`DT_SONAME`).
//!
//! Source: the ELF specification and `elf(5)`. Only 64-bit little-endian files: those of the driver for the hosts we
//! run on.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const DT_STRTAB: u64 = 5;
const DT_SONAME: u64 = 14;
/// Program headers and dynamic entries looked at; real files have some tens.
const MAX_ENTRIES: u64 = 4096;

/// The library's own name; `None` when it gives itself none.
///
/// # Errors
/// When it cannot be read or is no ELF library.
pub fn soname(path: &Path) -> io::Result<Option<String>> {
    let file = File::open(path)?;
    Library { file: &file }.soname()
}

struct Library<'a> {
    file: &'a File,
}

fn bad() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "is no 64-bit ELF library")
}

impl Library<'_> {
    fn read<const N: usize>(&self, at: u64) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }

    fn u16(&self, at: u64) -> io::Result<u16> {
        self.read(at).map(u16::from_le_bytes)
    }

    fn u32(&self, at: u64) -> io::Result<u32> {
        self.read(at).map(u32::from_le_bytes)
    }

    fn u64(&self, at: u64) -> io::Result<u64> {
        self.read(at).map(u64::from_le_bytes)
    }

    fn soname(&self) -> io::Result<Option<String>> {
        if self.read::<6>(0)? != *b"\x7fELF\x02\x01" {
            return Err(bad());
        }
        let table = self.u64(0x20)?;
        let size = u64::from(self.u16(0x36)?);
        let count = u64::from(self.u16(0x38)?).min(MAX_ENTRIES);
        let mut loads = Vec::new();
        let mut dynamic = None;
        for i in 0..count {
            let at = i
                .checked_mul(size)
                .and_then(|o| table.checked_add(o))
                .ok_or_else(bad)?;
            let offset = self.u64(at + 8)?;
            let length = self.u64(at + 32)?;
            match self.u32(at)? {
                PT_LOAD => loads.push((self.u64(at + 16)?, offset, length)),
                PT_DYNAMIC => dynamic = Some((offset, length)),
                _ => {}
            }
        }
        let Some((at, length)) = dynamic else {
            return Ok(None);
        };
        let (mut strings, mut name) = (None, None);
        for i in 0..(length / 16).min(MAX_ENTRIES) {
            let entry = at.checked_add(i * 16).ok_or_else(bad)?;
            match self.u64(entry)? {
                0 => break,
                DT_STRTAB => strings = Some(self.u64(entry + 8)?),
                DT_SONAME => name = Some(self.u64(entry + 8)?),
                _ => {}
            }
        }
        let (Some(strings), Some(name)) = (strings, name) else {
            return Ok(None);
        };
        let address = strings.checked_add(name).ok_or_else(bad)?;
        let offset = loads
            .iter()
            .find(|(start, _, length)| address >= *start && address - start < *length)
            .and_then(|(start, offset, _)| offset.checked_add(address - start))
            .ok_or_else(bad)?;
        self.text(offset).map(Some)
    }

    /// A name, ended by zero; names of files have at most 255 bytes.
    fn text(&self, at: u64) -> io::Result<String> {
        let mut bytes = [0; 256];
        let length = self.file.read_at(&mut bytes, at)?;
        let end = bytes[..length]
            .iter()
            .position(|b| *b == 0)
            .ok_or_else(bad)?;
        Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }
}
