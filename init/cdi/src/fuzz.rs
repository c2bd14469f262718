//! What others write and this crate reads, as functions from bytes: each panics when the code behind it breaks a promise.
//! Tests run them over `fuzz/corpus`, cargo-fuzz over everything else. No promise is made for this module.
#![expect(clippy::panic, reason = "to panic is what a fuzz target is for")]

use serde_json::Value;

use crate::{ContainerEdits, QualifiedName, apply, parse};

/// A CDI file: what is accepted has devices with names, and keeps its checks.
///
/// # Panics
/// When an accepted file has a device that could not be asked for, or that does nothing.
pub fn file(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let Ok(spec) = parse(text) else { return };
    assert!(!spec.devices.is_empty(), "{spec:?}");
    for device in &spec.devices {
        let name = format!("{}={}", spec.kind, device.name);
        assert!(QualifiedName::parse(&name).is_ok(), "{name:?}");
        assert!(!device.edits.is_empty(), "{name:?}");
    }
}

/// A name: what is accepted reads back as itself.
///
/// # Panics
/// When it does not.
pub fn name(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Ok(name) = QualifiedName::parse(&text) {
        assert_eq!(name.to_string(), text);
    }
}

/// An OCI specification to which edits are applied: refused, or every edit is in it.
///
/// # Panics
/// When an edit is missing, or mounts are not in the order of their depth.
pub fn edits(input: &[u8]) {
    let Ok(mut spec) = serde_json::from_slice::<Value>(input) else {
        return;
    };
    let edits = sample();
    if apply(&edits, &mut spec).is_err() {
        return;
    }
    let list = |path: &str| spec.pointer(path).and_then(Value::as_array).cloned();
    let has = |path: &str, key: &str, value: &str| {
        list(path).is_some_and(|list| list.iter().any(|item| item[key] == value))
    };
    assert!(has("/linux/devices", "path", "/dev/fuzz"), "{spec}");
    assert!(has("/mounts", "destination", "/a/b"), "{spec}");
    assert!(has("/hooks/poststop", "path", "/h"), "{spec}");
    let env = list("/process/env").unwrap_or_default();
    assert!(env.iter().any(|entry| entry == "FUZZ=2"), "{spec}");
    let depths: Vec<usize> = list("/mounts")
        .unwrap_or_default()
        .iter()
        .map(|mount| crate::apply::depth(mount["destination"].as_str().unwrap_or_default()))
        .collect();
    assert!(depths.is_sorted(), "{spec}");
}

/// Edits of every kind.
fn sample() -> ContainerEdits {
    const FILE: &str = "cdiVersion: 1.1.0\nkind: a/b\ndevices:\n- name: x\n  containerEdits:\n    env: [FUZZ=1, FUZZ=2]\n    \
                        deviceNodes: [{path: /dev/fuzz, type: c, major: 1, minor: 5}]\n    \
                        mounts: [{hostPath: /h, containerPath: /a/b}]\n    \
                        hooks: [{hookName: poststop, path: /h}]\n    additionalGids: [7]\n    \
                        intelRdt: {closID: g}\n    netDevices: [{hostInterfaceName: e, name: i}]\n";
    match parse(FILE) {
        Ok(spec) => spec
            .devices
            .first()
            .map(|device| device.edits.clone())
            .unwrap_or_default(),
        Err(error) => panic!("{error}"),
    }
}

#[cfg(test)]
mod tests {
    use holdfast_corpus::{Shape, replay};

    const CRATE: &str = env!("CARGO_MANIFEST_DIR");

    #[test]
    fn file() {
        replay(CRATE, "file", Shape::Bytes, 4000, super::file);
    }

    #[test]
    fn name() {
        replay(CRATE, "name", Shape::Bytes, 2000, super::name);
    }

    #[test]
    fn edits() {
        replay(CRATE, "edits", Shape::Json, 4000, super::edits);
    }
}
