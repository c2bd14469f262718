//! `config.json` and `process.json` as other runtimes read them.
//!
//! The types of oci-spec 0.10 are stricter than the specification in places; a document that they
//! refuse is looked at once more. Everyday documents never come this way.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use holdfast_record::Deadline;
use oci_spec::runtime::{Capability, Process, Spec};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::error::{Doing, Result};
use crate::link::wait_readable;

/// What the specification calls a scheduler flag (`config.md`, Scheduler), and what oci-spec does.
const SCHEDULER_FLAGS: &[(&str, &str)] = &[
    ("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"),
    ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN"),
];

/// How long a document that is no file (a pipe, a socket) may take to arrive.
const LIMIT: Duration = Duration::from_secs(10);

/// The content of a document. One that comes through a pipe, such as `/dev/stdin`, has a deadline.
///
/// # Errors
/// With the path and errno.
pub fn bytes(path: &Path) -> Result<Vec<u8>> {
    let doing = || format!("read {}", path.display());
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .doing(doing)?;
    let mut bytes = Vec::new();
    if file.metadata().doing(doing)?.is_file() {
        file.read_to_end(&mut bytes).doing(doing)?;
        return Ok(bytes);
    }
    let deadline = Deadline::named(
        "document",
        LIMIT,
        format!("the end of the document {}", path.display()),
    );
    let own = std::process::id().cast_signed();
    let mut part = [0; 4096];
    loop {
        wait_readable(&[file.as_fd()], &deadline, own)?;
        match file.read(&mut part) {
            Ok(0) => return Ok(bytes),
            Ok(len) => bytes.extend_from_slice(part.get(..len).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).doing(doing),
        }
    }
}

/// The content of a document that is a file; of nothing that might have to be waited for.
///
/// # Errors
/// errno; that it is none.
pub fn now(path: &Path) -> std::io::Result<Vec<u8>> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(ErrorKind::InvalidInput.into());
    }
    std::fs::read(path)
}

/// Reads `config.json`.
///
/// # Errors
/// Where in the document, and why.
pub fn spec(bytes: &[u8]) -> serde_json::Result<Spec> {
    if contains(bytes, br#""intelRdt""#) {
        let mut document: Value = serde_json::from_slice(bytes)?;
        rename_monitoring(&mut document);
        return read(document.to_string().as_bytes(), |document| {
            document.get_mut("process")
        });
    }
    read(bytes, |document| document.get_mut("process"))
}

fn contains(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|part| part == word)
}

/// Two names that oci-spec does not read, and would drop without a word: those of flags that ask
/// for monitoring in specifications before 1.3.
fn rename_monitoring(document: &mut Value) {
    let rdt = document
        .pointer_mut("/linux/intelRdt")
        .and_then(Value::as_object_mut);
    if let Some(rdt) = rdt {
        for (theirs, ours) in [("enableCMT", "enableCmt"), ("enableMBM", "enableMbm")] {
            if let Some(flag) = rdt.remove(theirs) {
                rdt.insert(ours.to_owned(), flag);
            }
        }
    }
}

/// Reads the document of `exec --process`.
///
/// # Errors
/// Where in the document, and why.
pub fn process(bytes: &[u8]) -> serde_json::Result<Process> {
    read(bytes, |document| Some(document))
}

fn read<T: DeserializeOwned>(
    bytes: &[u8],
    process: impl FnOnce(&mut Value) -> Option<&mut Value>,
) -> serde_json::Result<T> {
    serde_json::from_slice(bytes).or_else(|error| {
        let again = || {
            let mut document = serde_json::from_slice(bytes).ok()?;
            ease(process(&mut document)?)?;
            serde_json::from_value(document).ok()
        };
        // The first error has the line.
        again().ok_or(error)
    })
}

/// Brings a process into the form of oci-spec; none when it is no process.
fn ease(process: &mut Value) -> Option<()> {
    let process = process.as_object_mut()?;
    // Root, for whom it is missing: Go's zero value.
    process
        .entry("user")
        .or_insert_with(|| json!({"uid": 0, "gid": 0}));
    // Empty is "not given", as for every other text of the specification.
    if let Some(affinity) = process
        .get_mut("execCPUAffinity")
        .and_then(Value::as_object_mut)
    {
        affinity.retain(|_, cpus| *cpus != json!(""));
    }
    let sets = process
        .get_mut("capabilities")
        .and_then(Value::as_object_mut);
    for (set, names) in sets.into_iter().flatten() {
        // `config.md`, capabilities: a value that cannot be mapped is warned of, and no failure.
        let known = |name: &Value| {
            let known = serde_json::from_value::<Capability>(name.clone()).is_ok();
            if !known && name.is_string() {
                log::warn!("process.capabilities.{set}: ignoring the unknown {name}");
            }
            known || !name.is_string()
        };
        if let Some(names) = names.as_array_mut() {
            names.retain(known);
        }
    }
    let flags = process
        .get_mut("scheduler")
        .and_then(|scheduler| scheduler.get_mut("flags"))
        .and_then(Value::as_array_mut);
    for flag in flags.into_iter().flatten() {
        if let Some((_, ours)) = SCHEDULER_FLAGS.iter().find(|(name, _)| flag == name) {
            *flag = json!(ours);
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_specification_allows_is_read() {
        let document = br#"{"cwd": "/", "args": ["true"],
            "scheduler": {"policy": "SCHED_BATCH", "flags": ["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_DL_OVERRUN"]}}"#;
        let process = process(document).unwrap();
        assert_eq!(process.user().uid(), 0);
        let scheduler = process.scheduler().as_ref().unwrap();
        assert_eq!(scheduler.flags().as_ref().unwrap().len(), 2);
        let whole = format!(
            r#"{{"ociVersion": "1.2.0", "process": {}}}"#,
            std::str::from_utf8(document).unwrap()
        );
        assert!(spec(whole.as_bytes()).is_ok());
    }

    #[test]
    fn empty_affinities_are_none() {
        let document = br#"{"cwd": "/", "user": {"uid": 0, "gid": 0}, "execCPUAffinity": {"initial": "", "final": "0"}}"#;
        let process = process(document).unwrap();
        let affinity = process.exec_cpu_affinity().as_ref().unwrap();
        assert_eq!(affinity.initial(), &None);
        assert_eq!(affinity.cpu_affinity_final().as_deref(), Some("0"));
    }

    #[test]
    fn monitoring_has_the_specification_s_names() {
        let document = br#"{"ociVersion": "1.2.0", "linux": {"intelRdt": {"enableCMT": true, "enableMBM": true}}}"#;
        let spec = spec(document).unwrap();
        let rdt = spec.linux().as_ref().unwrap().intel_rdt().as_ref().unwrap();
        assert_eq!(
            (rdt.enable_cmt(), rdt.enable_mbm()),
            (&Some(true), &Some(true))
        );
    }

    #[test]
    fn capabilities_of_a_newer_kernel_are_left_out() {
        let document = br#"{"cwd": "/", "args": ["true"], "user": {"uid": 0, "gid": 0},
            "capabilities": {"bounding": ["CAP_KILL", "CAP_TIME_TRAVEL"]}}"#;
        let process = process(document).unwrap();
        let sets = process.capabilities().as_ref().unwrap();
        assert_eq!(sets.bounding().as_ref().unwrap().len(), 1);
    }

    #[test]
    fn the_first_error_is_told() {
        let error = process(b"{\n\"cwd\": 7}").unwrap_err();
        assert_eq!(error.line(), 2, "{error}");
    }
}
