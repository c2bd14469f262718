//! The few arguments that the wrapper looks at, by the original's rules.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// A flag's name without its dashes, and the value behind `=`; `None` when it is no flag.
pub(super) fn flag(argument: &OsStr) -> Option<(&[u8], Option<&OsStr>)> {
    let bytes = argument.as_bytes();
    let (head, value) = match bytes.iter().position(|byte| *byte == b'=') {
        Some(at) => (&bytes[..at], Some(OsStr::from_bytes(&bytes[at + 1..]))),
        None => (bytes, None),
    };
    let dashes = head.iter().take_while(|byte| **byte == b'-').count();
    (dashes > 0).then(|| (&head[dashes..], value))
}

fn is_bundle(name: &[u8]) -> bool {
    matches!(name, b"b" | b"bundle")
}

/// Whether any argument is `create`, other than as the value of `--bundle`.
pub(super) fn has_create(arguments: &[OsString]) -> bool {
    let mut is_value = false;
    for argument in arguments {
        let names_bundle =
            matches!(flag(argument), Some((name, None)) if is_bundle(name)) && !is_value;
        if names_bundle {
            is_value = true;
            continue;
        }
        if !is_value && argument == "create" {
            return true;
        }
        is_value = false;
    }
    false
}

/// The bundle: the last one given, or nothing for the working directory. `None`: a flag without a value.
pub(super) fn bundle(arguments: &[OsString]) -> Option<OsString> {
    let mut bundle = OsString::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match flag(argument) {
            Some((name, value)) if is_bundle(name) => {
                bundle = match value {
                    Some(value) => value.to_owned(),
                    None => rest.next()?.clone(),
                };
            }
            Some(_) | None => {}
        }
    }
    Some(bundle)
}

/// Whether any argument is `--version`.
pub(super) fn has_version(arguments: &[OsString]) -> bool {
    arguments
        .iter()
        .any(|argument| matches!(flag(argument), Some((b"version", _))))
}

/// The values of `--log` and `--log-format`, the last ones given.
pub(super) fn log(arguments: &[OsString]) -> (Option<OsString>, Option<OsString>) {
    let (mut file, mut format) = (None, None);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let (slot, value) = match flag(argument) {
            Some((b"log", value)) => (&mut file, value),
            Some((b"log-format", value)) => (&mut format, value),
            Some(_) | None => continue,
        };
        let value = value.map(OsStr::to_owned).or_else(|| rest.next().cloned());
        if value.is_some() {
            *slot = value;
        }
    }
    (file, format)
}
