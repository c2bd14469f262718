//! `config.json` and `process.json` as other runtimes read them.
//!
//! The types of oci-spec 0.10 are stricter than the specification in places; a document that they
//! refuse is looked at once more. Everyday documents never come this way.

use oci_spec::runtime::{Process, Spec};
use serde::de::DeserializeOwned;
use serde_json::{Error, Value, json};

/// What the specification calls a scheduler flag (`config.md`, Scheduler), and what oci-spec does.
const SCHEDULER_FLAGS: &[(&str, &str)] = &[
    ("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"),
    ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN"),
];

/// Reads `config.json`.
///
/// # Errors
/// Where in the document, and why.
pub fn spec(bytes: &[u8]) -> Result<Spec, Error> {
    read(bytes, |document| document.get_mut("process"))
}

/// Reads the document of `exec --process`.
///
/// # Errors
/// Where in the document, and why.
pub fn process(bytes: &[u8]) -> Result<Process, Error> {
    read(bytes, |document| Some(document))
}

fn read<T: DeserializeOwned>(
    bytes: &[u8],
    process: impl FnOnce(&mut Value) -> Option<&mut Value>,
) -> Result<T, Error> {
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
    #![allow(clippy::unwrap_used)]
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
    fn the_first_error_is_told() {
        let error = process(b"{\n\"cwd\": 7}").unwrap_err();
        assert_eq!(error.line(), 2, "{error}");
    }
}
