//! Appending. No lock anywhere; `docs/0001-ledger-without-locks.md` argues why that is right.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Bounds, LedgerError, Record, segments};
use crate::crc::crc32;
use crate::text::{head, tail};

/// How often a segment may vanish under the writer's hands before it gives up. Each time means that the whole
/// ledger was rolled over between two system calls of ours.
const ATTEMPTS: usize = 8;

pub(super) fn append(dir: &Path, bounds: Bounds, record: &Record) -> Result<(), LedgerError> {
    let line = line(record, bounds.line)?;
    for _ in 0..ATTEMPTS {
        let (mut file, path) = open_last(dir, bounds)?;
        write_once(&mut file, &path, &line)?;
        if file.metadata().is_ok_and(|metadata| metadata.nlink() > 0) {
            return Ok(());
        }
    }
    Err(LedgerError::Io {
        action: "keep a segment of the ledger in",
        path: dir.to_owned(),
        source: io::ErrorKind::NotFound.into(),
    })
}

/// One write call, so that no other writer's line can come in between. It begins with a line feed: should the line
/// before it be torn, this one still stands on its own. Readers skip empty lines.
fn write_once(file: &mut File, path: &Path, line: &[u8]) -> Result<(), LedgerError> {
    let written = loop {
        match file.write(line) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other,
        }
    };
    match written {
        Ok(written) if written == line.len() => Ok(()),
        Ok(written) => Err(LedgerError::Short {
            path: path.to_owned(),
            written,
            len: line.len(),
        }),
        Err(source) => Err(LedgerError::Io {
            action: "write a record to",
            path: path.to_owned(),
            source,
        }),
    }
}

/// The segment to append to: the last one, or the one after it when that is full.
fn open_last(dir: &Path, bounds: Bounds) -> Result<(File, PathBuf), LedgerError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| LedgerError::Io {
            action,
            path,
            source,
        }
    };
    make_directory(dir).map_err(failed("make the ledger's directory", dir))?;
    let last = segments(dir)?.last().map_or(1, |(number, _)| *number);
    let path = segment_path(dir, last);
    let file = open_segment(&path).map_err(failed("open", &path))?;
    let size = file.metadata().map_err(failed("look at", &path))?.len();
    if size < bounds.segment {
        return Ok((file, path));
    }
    let path = segment_path(dir, last.saturating_add(1));
    let file = open_segment(&path).map_err(failed("open", &path))?;
    drop_oldest(dir, bounds)?;
    Ok((file, path))
}

fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("ledger-{number:020}.jsonl"))
}

fn make_directory(dir: &Path) -> io::Result<()> {
    // Only the last component is ours to restrict; the ones above follow the system's custom.
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

fn open_segment(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
}

/// Removes segments, oldest first, until the rest is within bounds. The last one stays in any case.
/// Two writers may do this at once: they take the same ones, and a segment that is gone is what both want.
fn drop_oldest(dir: &Path, bounds: Bounds) -> Result<(), LedgerError> {
    let segments = segments(dir)?;
    let sizes: Vec<u64> = segments
        .iter()
        .map(|(_, path)| std::fs::symlink_metadata(path).map_or(0, |metadata| metadata.len()))
        .collect();
    let mut total: u64 = sizes.iter().sum();
    // The new segment will grow to its full size before this is looked at again.
    let allowed = bounds.total.saturating_sub(bounds.segment);
    let keep = segments.len().saturating_sub(1);
    for ((_, path), size) in segments.iter().zip(sizes).take(keep) {
        if total <= allowed {
            break;
        }
        match std::fs::remove_file(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(LedgerError::Io {
                    action: "drop the oldest segment",
                    path: path.clone(),
                    source,
                });
            }
        }
        total -= size;
    }
    Ok(())
}

/// The record as one line with its checksum, at most `max` bytes long where shortening its texts can achieve that.
fn line(record: &Record, max: usize) -> Result<Vec<u8>, LedgerError> {
    let mut body = serde_json::to_vec(record).map_err(LedgerError::Encode)?;
    let mut limit = max / 2;
    while body.len() > max && limit >= 64 {
        let mut shorter = record.clone();
        shorten(&mut shorter.evidence, limit);
        shorten_text(&mut shorter.summary, limit);
        let latest = shorter.timeline.len().saturating_sub(limit / 16);
        shorter.timeline.drain(..latest);
        body = serde_json::to_vec(&shorter).map_err(LedgerError::Encode)?;
        limit /= 2;
    }
    // The body is an object and never empty: its first brace is replaced by the checksum's member.
    let rest = body.get(1..).unwrap_or_default();
    let mut line = format!("\n{{\"crc\":\"{:08x}\",", crc32(&[rest])).into_bytes();
    line.extend_from_slice(rest);
    line.push(b'\n');
    Ok(line)
}

/// Cuts every text and list within `value` down to `limit` bytes or elements.
pub(crate) fn shorten(value: &mut Value, limit: usize) {
    match value {
        Value::String(text) => shorten_text(text, limit),
        Value::Array(items) => {
            let all = items.len();
            if all > limit / 16 {
                items.truncate(limit / 16);
                items.push(Value::String(format!("… {} more", all - limit / 16)));
            }
            for item in items {
                shorten(item, limit);
            }
        }
        Value::Object(members) => {
            for (_, member) in members.iter_mut() {
                shorten(member, limit);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Keeps the beginning and the end, which are what explains a failure.
fn shorten_text(text: &mut String, limit: usize) {
    if text.len() <= limit {
        return;
    }
    let (start, end) = (head(text, limit / 2), tail(text, limit / 2));
    let left_out = text.len() - start.len() - end.len();
    *text = format!("{start}\n… {left_out} bytes left out …\n{end}");
}
