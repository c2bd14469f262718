use proptest::prelude::*;

use super::*;

const WHOLE: &str = r#"
cdiVersion: "1.1.0"
kind: nvidia.com/gpu
annotations: {a: b}
containerEdits:
  env: [A=1]
devices:
- name: 0
  annotations: {c: d}
  containerEdits:
    deviceNodes:
    - {path: /dev/n, hostPath: /host/n, type: c, major: 195, minor: 0, fileMode: 0666, permissions: rw, uid: 1, gid: 2}
    netDevices: [{hostInterfaceName: eth9, name: ib0}]
    hooks:
    - {hookName: createContainer, path: /h, args: [h, x], env: [E=1], timeout: 10}
    mounts:
    - {hostPath: /a, containerPath: /b, options: [ro], type: bind}
    intelRdt: {closID: g, l3CacheSchema: "L3:0=f", memBwSchema: "MB:0=10", schemata: [x], enableMonitoring: true}
    additionalGids: [44]
"#;

fn with(version: &str, rest: &str) -> Result<Spec, SpecError> {
    parse(&format!("cdiVersion: \"{version}\"\n{rest}"))
}

fn device(version: &str, name: &str, edits: &str) -> Result<Spec, SpecError> {
    with(
        version,
        &format!("kind: a.b/c\ndevices:\n- {{name: \"{name}\", containerEdits: {edits}}}\n"),
    )
}

#[test]
fn every_field_is_read() {
    let spec = parse(WHOLE).unwrap();
    assert_eq!(spec.version, Version::V1_1);
    assert_eq!(spec.kind.to_string(), "nvidia.com/gpu");
    assert_eq!(spec.edits.env, ["A=1"]);
    let device = &spec.devices[0];
    assert_eq!(device.name, "0");
    let node = &device.edits.device_nodes[0];
    assert_eq!(node.file_mode, Some(0o666));
    assert_eq!((node.uid, node.gid), (Some(1), Some(2)));
    assert_eq!(device.edits.hooks[0].timeout, Some(10));
    assert_eq!(device.edits.mounts[0].kind, "bind");
    assert_eq!(
        device.edits.intel_rdt.as_ref().unwrap().schemata,
        Some(vec!["x".to_owned()])
    );
    assert_eq!(device.edits.additional_gids, [44]);
    assert_eq!(device.edits.net_devices[0].name, "ib0");
}

#[test]
fn names_of_fields_may_differ_in_case() {
    let text = WHOLE
        .replace("cdiVersion", "CDIVersion")
        .replace("hostPath", "HostPath");
    assert_eq!(parse(&text).unwrap(), parse(WHOLE).unwrap());
    let both = device("0.5.0", "x", "{ENV: [A=1], env: [B=1]}").unwrap();
    assert_eq!(both.devices[0].edits.env, ["B=1"]);
}

#[test]
fn a_bare_truth_value_is_text_where_text_is_wanted() {
    let spec = with(
        "0.5.0",
        "kind: a.b/c\ndevices:\n- {name: y, containerEdits: {env: [A=1]}}\n",
    )
    .unwrap();
    assert_eq!(spec.devices[0].name, "true");
}

#[test]
fn versions_and_what_they_need() {
    for (needed, name, edits) in [
        ("0.3.0", "x", "{env: [A=1]}"),
        (
            "0.4.0",
            "x",
            "{mounts: [{hostPath: /a, containerPath: /b, type: bind}]}",
        ),
        ("0.5.0", "0", "{env: [A=1]}"),
        ("0.5.0", "x", "{deviceNodes: [{path: /a, hostPath: /b}]}"),
        ("0.7.0", "x", "{additionalGids: [1]}"),
        ("0.7.0", "x", "{intelRdt: {closID: a}}"),
        ("1.1.0", "x", "{intelRdt: {enableMonitoring: true}}"),
        (
            "1.1.0",
            "x",
            "{netDevices: [{hostInterfaceName: a, name: b}]}",
        ),
    ] {
        for version in Version::ALL {
            let read = device(version.as_str(), name, edits);
            if version.as_str() < needed {
                assert!(
                    matches!(read, Err(SpecError::TooOld { .. })),
                    "{version} {edits}: {read:?}"
                );
            } else {
                assert!(read.is_ok(), "{version} {edits}: {read:?}");
            }
        }
    }
    assert!(matches!(
        device("9.0.0", "x", "{env: [A=1]}"),
        Err(SpecError::Version { .. })
    ));
    assert!(matches!(
        device("0.6", "x", "{env: [A=1]}"),
        Err(SpecError::Version { .. })
    ));
    assert!(device("v0.6.0", "x", "{env: [A=1]}").is_ok());
    let dotted = "kind: a.b/c.d\ndevices: [{name: x, containerEdits: {env: [A=1]}}]\n";
    assert!(matches!(
        with("0.5.0", dotted),
        Err(SpecError::TooOld { .. })
    ));
    assert!(with("0.6.0", dotted).is_ok());
}

#[test]
fn what_is_refused_and_where() {
    for (edits, said) in [
        ("{}", "would do nothing"),
        ("{env: [A]}", "containerEdits.env"),
        ("{env: [=x]}", "containerEdits.env"),
        ("{foo: 1}", "unknown field"),
        ("{deviceNodes: [{path: /a, x: 1}]}", "deviceNodes[0].x"),
        ("{deviceNodes: [{}]}", "path must not be empty"),
        ("{deviceNodes: [{path: /a, type: z}]}", "none of b, c, u, p"),
        (
            "{deviceNodes: [{path: /a, permissions: rx}]}",
            "letters other than",
        ),
        (
            "{deviceNodes: [{path: /a, major: x}]}",
            "must be an integer",
        ),
        (
            "{deviceNodes: [{path: /a, uid: -1}]}",
            "must be an integer in range",
        ),
        (
            "{mounts: [{hostPath: /a}]}",
            "containerPath must not be empty",
        ),
        (
            "{hooks: [{hookName: never, path: /a}]}",
            "no stage of hooks",
        ),
        ("{hooks: [{hookName: prestart}]}", "path must not be empty"),
        ("{intelRdt: {closID: a/b}}", "no folder's name"),
        (
            "{netDevices: [{hostInterfaceName: a, name: b}, {hostInterfaceName: a, name: c}]}",
            "there twice",
        ),
        ("[]", "must be an object"),
        ("{env: x}", "must be a list"),
    ] {
        let said_now = device("1.1.0", "x", edits).unwrap_err().to_string();
        assert!(said_now.contains(said), "{edits}: {said_now}");
    }
    for (rest, said) in [
        ("kind: a.b/c\n", "there is none"),
        (
            "kind: abc\ndevices: [{name: x, containerEdits: {env: [A=1]}}]\n",
            "vendor/class",
        ),
        (
            "kind: a/b\ndevices: [{name: x, containerEdits: {env: [A=1]}}, {name: x, containerEdits: {env: [A=1]}}]\n",
            "there twice",
        ),
        (
            "kind: a/b\nfoo: 1\ndevices: [{name: x, containerEdits: {env: [A=1]}}]\n",
            "unknown field",
        ),
        ("kind: [\n", "not YAML"),
    ] {
        let said_now = with("1.1.0", rest).unwrap_err().to_string();
        assert!(said_now.contains(said), "{rest}: {said_now}");
    }
    assert!(parse("").is_err());
    assert!(parse("[]").is_err());
}

proptest! {
    #[test]
    fn any_file_is_answered(text in "\\PC{0,200}") {
        let _ = parse(&text);
    }

    /// A whole file with a piece cut out or doubled: read or refused, never a panic.
    #[test]
    fn a_damaged_file_is_answered(start in 0_usize..700, length in 0_usize..60, twice: bool) {
        let start = start.min(WHOLE.len());
        let end = (start + length).min(WHOLE.len());
        let piece = if twice { &WHOLE[start..end] } else { "" };
        let text = format!("{}{piece}{piece}{}", &WHOLE[..start], &WHOLE[end..]);
        let _ = parse(&text);
    }
}
