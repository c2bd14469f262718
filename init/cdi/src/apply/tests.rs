use proptest::prelude::*;

use super::*;
use crate::spec::parse;

fn edits(yaml: &str) -> ContainerEdits {
    let text =
        format!("cdiVersion: 1.1.0\nkind: a/b\ndevices:\n- name: x\n  containerEdits: {yaml}\n");
    parse(&text).unwrap().devices[0].edits.clone()
}

fn applied(yaml: &str, mut spec: Value) -> Value {
    apply(&edits(yaml), &mut spec).unwrap();
    spec
}

#[test]
fn env_is_appended_and_unique_among_the_edits() {
    let spec = applied(
        "{env: [A=1, B=2, A=3]}",
        json!({"process": {"env": ["A=0"]}}),
    );
    assert_eq!(spec, json!({"process": {"env": ["A=0", "A=3", "B=2"]}}));
}

#[test]
fn unknown_fields_survive() {
    let spec = applied("{env: [A=1]}", json!({"x-new": 1, "process": {"y": [2]}}));
    assert_eq!(
        spec,
        json!({"x-new": 1, "process": {"y": [2], "env": ["A=1"]}})
    );
}

#[test]
fn a_device_takes_what_is_open_from_the_host() {
    let spec = applied(
        "{deviceNodes: [{path: /dev/inside, hostPath: /dev/zero}]}",
        json!({}),
    );
    let device = &spec["linux"]["devices"][0];
    assert_eq!(device["path"], "/dev/inside");
    assert_eq!((&device["major"], &device["minor"]), (&json!(1), &json!(5)));
    assert_eq!(device["fileMode"], json!(0o666));
    assert_eq!(device["type"], "c");
    assert_eq!(device.get("uid"), None);
    assert_eq!(
        spec["linux"]["resources"]["devices"],
        json!([{"allow": true, "type": "c", "major": 1, "minor": 5, "access": "rwm"}])
    );
}

#[test]
fn a_device_of_the_same_path_is_replaced_and_owned_by_the_user() {
    let spec = applied(
        "{deviceNodes: [{path: /dev/n, type: c, major: 195, minor: 3, permissions: rw, gid: 44}]}",
        json!({
            "process": {"user": {"uid": 7, "gid": 8}},
            "linux": {"devices": [{"path": "/dev/n", "type": "b"}, {"path": "/dev/o"}]}
        }),
    );
    assert_eq!(
        spec["linux"]["devices"],
        json!([
            {"path": "/dev/o"},
            {"path": "/dev/n", "type": "c", "major": 195, "minor": 3, "uid": 7, "gid": 44}
        ])
    );
    assert_eq!(spec["linux"]["resources"]["devices"][0]["access"], "rw");
}

#[test]
fn a_missing_device_without_number_is_an_error() {
    let mut spec = json!({});
    let error = apply(&edits("{deviceNodes: [{path: /dev/not-there}]}"), &mut spec).unwrap_err();
    assert!(matches!(error, ApplyError::NoHostNode { .. }), "{error}");
    let error = apply(
        &edits("{deviceNodes: [{path: /dev/null, type: b}]}"),
        &mut spec,
    )
    .unwrap_err();
    assert!(
        matches!(error, ApplyError::TypeMismatch { found: 'c', .. }),
        "{error}"
    );
}

#[test]
fn a_pipe_gets_no_rule() {
    let spec = applied("{deviceNodes: [{path: /dev/p, type: p}]}", json!({}));
    assert_eq!(spec["linux"]["resources"], Value::Null);
}

#[test]
fn mounts_replace_and_are_sorted_by_depth() {
    let spec = applied(
        "{mounts: [{hostPath: /h, containerPath: /a/b}, {hostPath: /i, containerPath: /c}]}",
        json!({"mounts": [
            {"destination": "/x/y/z"}, {"destination": "/a/b", "source": "old"}, {"destination": "/proc"}
        ]}),
    );
    let order: Vec<_> = spec["mounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["destination"].as_str().unwrap())
        .collect();
    assert_eq!(order, ["/proc", "/c", "/a/b", "/x/y/z"]);
    assert_eq!(spec["mounts"][2]["source"], "/h");
}

#[test]
fn mounts_stay_as_they_are_without_mounts_in_the_edits() {
    let spec = applied(
        "{env: [A=1]}",
        json!({"mounts": [{"destination": "/x/y"}, {"destination": "/p"}]}),
    );
    assert_eq!(
        spec["mounts"],
        json!([{"destination": "/x/y"}, {"destination": "/p"}])
    );
}

#[test]
fn groups_hooks_rdt_and_interfaces() {
    let spec = applied(
        "{additionalGids: [44, 0, 44, 5], hooks: [{hookName: poststop, path: /h, args: [h], timeout: 3}], \
         intelRdt: {closID: g}, netDevices: [{hostInterfaceName: e, name: i}]}",
        json!({"process": {"user": {"additionalGids": [5]}}, "linux": {"intelRdt": {"closID": "old", "x": 1}}}),
    );
    assert_eq!(spec["process"]["user"]["additionalGids"], json!([5, 44]));
    assert_eq!(
        spec["hooks"],
        json!({"poststop": [{"path": "/h", "args": ["h"], "timeout": 3}]})
    );
    assert_eq!(spec["linux"]["intelRdt"], json!({"closID": "g"}));
    assert_eq!(spec["linux"]["netDevices"], json!({"e": {"name": "i"}}));
}

#[test]
fn a_specification_of_wrong_types_is_refused() {
    for spec in [
        json!([]),
        json!({"process": 1}),
        json!({"process": {"env": {}}}),
    ] {
        let mut spec = spec;
        assert!(apply(&edits("{env: [A=1]}"), &mut spec).is_err());
    }
}

#[test]
fn depth_is_that_of_the_cleaned_path() {
    for (path, slashes) in [
        ("/", 1),
        ("/a", 1),
        ("//a//b/", 2),
        ("/a/../b/./c", 2),
        ("a/b", 1),
        ("", 0),
        ("../a", 1),
        ("/..", 1),
    ] {
        assert_eq!(depth(path), slashes, "{path}");
    }
}

proptest! {
    #[test]
    fn mounts_come_out_parents_first(dests in prop::collection::vec("(/[a-c]{1,2}){1,4}", 0..8)) {
        let mut spec = json!({"mounts": dests.iter().map(|d| json!({"destination": d})).collect::<Vec<_>>()});
        apply(&edits("{mounts: [{hostPath: /h, containerPath: /a/b}]}"), &mut spec).unwrap();
        let list = spec["mounts"].as_array().unwrap();
        let depths: Vec<_> = list.iter().map(|m| depth(m["destination"].as_str().unwrap())).collect();
        prop_assert!(depths.is_sorted());
        prop_assert_eq!(list.iter().filter(|m| m["source"] == "/h").count(), 1);
    }
}
