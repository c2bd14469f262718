//! Reading the ledger.

use std::io;
use std::path::Path;

use super::{LedgerError, Record, segments};
use crate::crc::crc32;
use crate::reason::Reason;
use crate::time::Timestamp;

/// Which records are wanted. The default wants all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Whose end.
    pub who: Option<Selector>,
    /// Only what belongs to this containerd namespace.
    pub namespace: Option<String>,
    /// Only ends at or after this time.
    pub since: Option<Timestamp>,
    /// Only the latest so many.
    pub last: Option<usize>,
    /// Without shims that ended because their work was done: there is one for each pod.
    pub quiet: bool,
}

/// Names something as a person does on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector(String);

impl Selector {
    /// A container or exec id or the beginning of one (at least 3 characters), a container's name, `NAMESPACE/POD`, a
    /// pod's name or uid, an incident, or a pid.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// As it was typed.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn names(&self, record: &Record) -> bool {
        let wanted = Some(self.0.as_str());
        let pod = record.pod.as_ref();
        record.container.as_deref() == wanted
            || record.exec.as_deref() == wanted
            || record.name.as_deref() == wanted
            || record.incident.as_deref() == wanted
            || pod.is_some_and(|pod| {
                pod.name == self.0
                    || pod.uid == self.0
                    || self.0.split_once('/').is_some_and(|(namespace, name)| {
                        pod.namespace == namespace && pod.name == name
                    })
            })
            || self
                .0
                .parse::<u32>()
                .is_ok_and(|pid| record.process.is_some_and(|process| process.pid == pid))
    }

    fn begins(&self, record: &Record) -> bool {
        self.0.len() >= 3
            && [&record.container, &record.exec, &record.incident]
                .into_iter()
                .flatten()
                .any(|id| id.starts_with(&self.0))
    }
}

/// What was read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// Oldest first.
    pub records: Vec<Record>,
    /// Lines that a crash, a full disk or a hand has damaged; they were skipped.
    pub damaged: usize,
}

pub(super) fn read(dir: &Path, query: &Query) -> Result<Page, LedgerError> {
    let mut page = Page::default();
    let mut exact = false;
    for (_, path) in segments(dir)? {
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            // Dropped between listing and reading.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => {
                return Err(LedgerError::Io {
                    action: "read",
                    path,
                    source,
                });
            }
        };
        for line in bytes.split(|byte| *byte == b'\n') {
            if line.is_empty() {
                continue;
            }
            let Some(record) = parse(line) else {
                page.damaged += 1;
                continue;
            };
            if query.since.is_some_and(|since| record.time < since)
                || query.namespace.is_some() && query.namespace != record.namespace
                || query.quiet && record.code == Reason::ShimFinished.code()
            {
                continue;
            }
            match &query.who {
                None => page.records.push(record),
                Some(who) if who.names(&record) => {
                    // A whole name is meant as such, even if it begins others.
                    if !exact {
                        page.records.clear();
                        exact = true;
                    }
                    page.records.push(record);
                }
                Some(who) if !exact && who.begins(&record) => page.records.push(record),
                Some(_) => {}
            }
        }
    }
    // Writers append in the order in which they come, which is nearly, not wholly, that of time.
    page.records.sort_by_key(|record| record.time);
    if let Some(last) = query.last {
        let surplus = page.records.len().saturating_sub(last);
        page.records.drain(..surplus);
    }
    Ok(page)
}

/// The record of one line, if its checksum is right.
fn parse(line: &[u8]) -> Option<Record> {
    let rest = line.strip_prefix(b"{\"crc\":\"")?;
    let (crc, rest) = rest.split_first_chunk::<8>()?;
    let body = rest.strip_prefix(b"\",")?;
    let crc = u32::from_str_radix(std::str::from_utf8(crc).ok()?, 16).ok()?;
    if crc32(&[body]) != crc {
        return None;
    }
    let mut object = Vec::with_capacity(body.len() + 1);
    object.push(b'{');
    object.extend_from_slice(body);
    serde_json::from_slice(&object).ok()
}
