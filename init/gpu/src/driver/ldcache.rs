//! `/etc/ld.so.cache`: what the dynamic linker knows of libraries.
//!
//! Source: glibc, `sysdeps/generic/dl-cache.h`, format "glibc-ld.so.cache1.1", alone or behind the old table of
//! "ld.so-1.7.0". All numbers are little-endian here; hosts with GPUs are.

use std::fs;
use std::path::{Path, PathBuf};

use crate::paths::join;

const OLD_MAGIC: &[u8] = b"ld.so-1.7.0\0";
const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
/// Bytes of the header of the format that counts.
const HEADER: usize = 48;
/// Bytes of one of its entries.
const ENTRY: usize = 24;
/// More than any system has.
const MAX_FILE: u64 = 64 << 20;
/// Links followed from one library.
const MAX_LINKS: usize = 16;

/// The libraries of 64-bit programs in the cache below `root`, each with all links on its way.
pub(super) fn libraries(root: &Path) -> Vec<PathBuf> {
    let path = root.join("etc/ld.so.cache");
    let small = fs::metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() <= MAX_FILE);
    let Some(bytes) = small.then(|| fs::read(&path).ok()).flatten() else {
        return Vec::new();
    };
    paths(&bytes)
        .unwrap_or_default()
        .into_iter()
        .flat_map(|value| chain(join(root.as_os_str(), value.as_ref())))
        .collect()
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// The paths of 64-bit libraries, each once; `None` when it is no such cache.
fn paths(bytes: &[u8]) -> Option<Vec<String>> {
    let table = if bytes.starts_with(OLD_MAGIC) {
        let entries = usize::try_from(word(bytes, OLD_MAGIC.len())?).ok()?;
        let end = entries.checked_mul(12)?.checked_add(OLD_MAGIC.len() + 4)?;
        bytes.get(end.checked_next_multiple_of(8)?..)?
    } else {
        bytes
    };
    if !table.starts_with(MAGIC) {
        return None;
    }
    let count = usize::try_from(word(table, MAGIC.len())?).ok()?;
    let mut found: Vec<String> = Vec::new();
    for i in 0..count {
        let at = i.checked_mul(ENTRY)?.checked_add(HEADER)?;
        let flags = word(table, at)?;
        let value = usize::try_from(word(table, at + 8)?).ok()?;
        // An ELF library, of x86-64, AArch64 or 64-bit POWER.
        if flags & 1 == 0 || !matches!(flags & 0xff00, 0x0300 | 0x0a00 | 0x0500) {
            continue;
        }
        let Some(text) = table
            .get(value..)
            .and_then(|rest| rest.split(|b| *b == 0).next())
        else {
            continue;
        };
        let text = String::from_utf8_lossy(text).into_owned();
        if !text.is_empty() && !found.contains(&text) {
            found.push(text);
        }
    }
    Some(found)
}

/// `path` and all it links to.
fn chain(path: PathBuf) -> Vec<PathBuf> {
    let mut out = vec![path];
    while let Some(last) = out.last().filter(|_| out.len() <= MAX_LINKS) {
        let Ok(target) = fs::read_link(last) else {
            break;
        };
        let dir = last.parent().unwrap_or(Path::new("/"));
        let next = if target.is_absolute() {
            target
        } else {
            join(dir.as_os_str(), target.as_os_str())
        };
        if out.contains(&next) {
            break;
        }
        out.push(next);
    }
    out.retain(|path| fs::symlink_metadata(path).is_ok());
    out
}

#[cfg(test)]
pub(super) mod tests {
    /// A cache with these entries: flags and path.
    pub(in super::super) fn made(entries: &[(u32, &str)], old_table: bool) -> Vec<u8> {
        let mut out = Vec::new();
        if old_table {
            out.extend(super::OLD_MAGIC);
            out.extend(1_u32.to_le_bytes());
            out.extend([0; 12]);
            while out.len() % 8 != 0 {
                out.push(0);
            }
        }
        let mut table = super::MAGIC.to_vec();
        table.extend(
            u32::try_from(entries.len())
                .unwrap_or_default()
                .to_le_bytes(),
        );
        table.resize(super::HEADER, 0);
        let mut texts = Vec::new();
        let base = super::HEADER + entries.len() * super::ENTRY;
        for (flags, path) in entries {
            let at = u32::try_from(base + texts.len()).unwrap_or_default();
            table.extend(flags.to_le_bytes());
            table.extend(at.to_le_bytes());
            table.extend(at.to_le_bytes());
            table.extend([0; 12]);
            texts.extend(path.bytes().chain([0]));
        }
        table.extend(texts);
        out.extend(table);
        out
    }
}
