use serde_json::json;

use super::*;

fn written(text: &str, allow_unknown: bool) -> Result<Value, Error> {
    normalised(Path::new("/b/config.json"), text.as_bytes(), allow_unknown)
}

#[test]
fn what_is_never_left_out() {
    assert_eq!(written("{}", false).unwrap(), json!({"ociVersion": ""}));
    assert_eq!(
        written(r#"{"process": {}, "root": {}}"#, false).unwrap(),
        json!({"ociVersion": "", "process": {"user": {"uid": 0, "gid": 0}, "cwd": ""}, "root": {"path": ""}})
    );
}

#[test]
fn what_is_left_out() {
    let text = r#"{"ociVersion": "1", "mounts": [], "hooks": {"poststop": [{"path": "/b", "args": [], "timeout": 0}]},
        "root": {"path": "r", "readonly": false}, "linux": {"resources": {"memory": {"limit": 0}}, "sysctl": {}}}"#;
    assert_eq!(
        written(text, false).unwrap(),
        json!({"ociVersion": "1", "hooks": {"poststop": [{"path": "/b", "timeout": 0}]}, "root": {"path": "r"},
            "linux": {"resources": {"memory": {"limit": 0}}}})
    );
}

#[test]
fn unknown_fields_are_refused_or_dropped() {
    let text = r#"{"ociVersion": "1", "process": {"x": 1}}"#;
    let error = written(text, false).unwrap_err();
    assert!(
        matches!(&error, Error::Unknown { field, .. } if field == "process.x"),
        "{error}"
    );
    assert_eq!(
        written(text, true).unwrap()["process"],
        json!({"user": {"uid": 0, "gid": 0}, "cwd": ""})
    );
}

#[test]
fn names_in_any_case_and_null() {
    let text =
        r#"{"OCIversion": "1", "process": {"ARGS": ["a"], "env": null}, "linux": null} trailing"#;
    assert_eq!(
        written(text, false).unwrap(),
        json!({"ociVersion": "1", "process": {"user": {"uid": 0, "gid": 0}, "cwd": "", "args": ["a"]}})
    );
}

#[test]
fn types_are_checked() {
    for text in [
        "[]",
        r#"{"ociVersion": 1}"#,
        r#"{"process": {"args": "x"}}"#,
        r#"{"process": {"user": {"uid": -1}}}"#,
        r#"{"process": {"user": {"uid": 4294967296}}}"#,
        r#"{"process": {"oomScoreAdj": 1.5}}"#,
        r#"{"annotations": {"a": 1}}"#,
        r#"{"hooks": []}"#,
    ] {
        let error = written(text, true).unwrap_err();
        assert!(matches!(error, Error::Type { .. }), "{text}: {error}");
    }
    assert!(matches!(written("{nope", true), Err(Error::Json { .. })));
}

#[test]
fn large_numbers_stay_exact() {
    let text = r#"{"ociVersion": "1", "linux": {"seccomp": {"defaultAction": "A", "syscalls": [{"names": ["a"],
        "action": "B", "args": [{"index": 0, "value": 18446744073709551615, "op": "O"}]}]}}}"#;
    let written = written(text, false).unwrap();
    let value = written
        .pointer("/linux/seccomp/syscalls/0/args/0/value")
        .unwrap();
    assert_eq!(value.as_u64(), Some(u64::MAX));
}

#[test]
fn the_image_of_a_specification() {
    let spec = json!({
        "process": {"env": ["A=1", "BROKEN"], "capabilities": {"bounding": ["CAP_SYS_ADMIN"]}},
        "mounts": [{"source": "/dev/null", "destination": "/d"}, {"destination": "/e"}],
        "annotations": {"a": "b"}
    });
    assert!(image_of(&spec, false).is_err());
    let image = image_of(&spec, true).unwrap();
    assert_eq!(image.variable("A"), Some("1"));
    assert!(image.privileged);
    assert_eq!(image.mounts.len(), 2);
    assert_eq!(image.annotations["a"], "b");
}
