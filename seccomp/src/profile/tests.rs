use oci_spec::runtime::{LinuxSeccompAction, LinuxSeccompFilterFlag};
use serde_json::{Value, json};

use super::machine::NATIVE;
use super::*;

fn seccomp(json: Value) -> LinuxSeccomp {
    serde_json::from_value(json).unwrap()
}

fn error(json: Value) -> String {
    Profile::new(&seccomp(json)).unwrap_err().to_string()
}

fn rule(rule: Value) -> Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]})
}

#[test]
fn the_profiles_mistakes_are_named() {
    let notify = |name: &str, path: Option<&str>| {
        json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "listenerPath": path,
            "syscalls": [{"names": ["read", name], "action": "SCMP_ACT_NOTIFY"}],
        })
    };
    let cases = [
        (
            json!({"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/a"}),
            "cannot be the default",
        ),
        (notify("write", Some("/a")), "cannot be used for write"),
        (notify("sendmsg", Some("/a")), "cannot be used for sendmsg"),
        (notify("getppid", None), "listenerPath is not set"),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "m"}),
            "listenerMetadata is set without",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}),
            "defaultErrnoRet 1 is given for SCMP_ACT_ALLOW",
        ),
        (
            rule(json!({"names": ["a"], "action": "SCMP_ACT_KILL", "errnoRet": 5})),
            "syscalls[0].errnoRet 5 is given for SCMP_ACT_KILL",
        ),
        (
            rule(json!({"names": ["a"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4095})),
            "4095, the largest possible value is 4094",
        ),
        (
            rule(json!({"names": ["a"], "action": "SCMP_ACT_TRACE", "errnoRet": 65536})),
            "65536, the largest possible value is 65535",
        ),
        (
            rule(json!({"names": [], "action": "SCMP_ACT_KILL"})),
            "syscalls[0].names is empty",
        ),
        (
            rule(json!({"names": ["a"], "action": "SCMP_ACT_KILL", "args": [
                {"index": 6, "value": 0, "op": "SCMP_CMP_EQ"},
            ]})),
            "index 6",
        ),
    ];
    for (json, text) in cases {
        let error = error(json);
        assert!(error.contains(text), "{error}");
    }
}

#[test]
fn write_may_be_allowed_or_denied_only_not_notified() {
    for action in ["SCMP_ACT_ALLOW", "SCMP_ACT_KILL", "SCMP_ACT_ERRNO"] {
        let seccomp = seccomp(rule(json!({"names": ["write"], "action": action})));
        assert!(Profile::new(&seccomp).is_ok());
    }
}

#[test]
fn the_native_architecture_comes_first_and_once() {
    let with = |architectures: Value| {
        let seccomp = seccomp(json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": architectures,
        }));
        Profile::new(&seccomp).unwrap().architectures().to_vec()
    };
    let other = Arch::ScmpArchMipsel;
    assert_eq!(with(Value::Null), [NATIVE]);
    assert_eq!(with(json!([NATIVE, "SCMP_ARCH_NATIVE"])), [NATIVE]);
    assert_eq!(with(json!([other, NATIVE, other])), [NATIVE, other]);
}

#[test]
fn one_argument_twice_is_or_and_different_ones_are_and() {
    let args = |first: u64, second: u64| {
        seccomp(rule(
            json!({"names": ["a"], "action": "SCMP_ACT_KILL", "args": [
                {"index": first, "value": 1, "op": "SCMP_CMP_EQ"},
                {"index": 3, "value": 2, "op": "SCMP_CMP_MASKED_EQ", "valueTwo": 4},
                {"index": second, "value": 3, "op": "SCMP_CMP_GT", "valueTwo": 9},
            ]}),
        ))
    };
    let lengths = |seccomp: &LinuxSeccomp| -> Vec<usize> {
        let profile = Profile::new(seccomp).unwrap();
        profile.rules().iter().map(|r| r.conditions.len()).collect()
    };
    assert_eq!(lengths(&args(0, 1)), [3]);
    assert_eq!(lengths(&args(0, 0)), [1, 1, 1]);

    let seccomp = args(0, 1);
    let profile = Profile::new(&seccomp).unwrap();
    let values: Vec<_> = profile.rules()[0]
        .conditions
        .iter()
        .map(|c| (c.index, c.value, c.value_two))
        .collect();
    assert_eq!(values, [(0, 1, 0), (3, 2, 4), (1, 3, 0)]);
}

#[test]
fn flags_follow_the_profile_and_the_kernels_rules() {
    let with = |flags: Value, action: &str| {
        let seccomp = seccomp(json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "listenerPath": "/agent",
            "flags": flags,
            "syscalls": [{"names": ["getppid"], "action": action}],
        }));
        let profile = Profile::new(&seccomp).unwrap();
        assert_eq!(profile.listener().is_some(), action == "SCMP_ACT_NOTIFY");
        profile.flags().bits()
    };
    assert_eq!(with(Value::Null, "SCMP_ACT_KILL"), 0b100);
    assert_eq!(with(json!([]), "SCMP_ACT_KILL"), 0);
    assert_eq!(with(Value::Null, "SCMP_ACT_NOTIFY"), 0b1100);
    let all = json!(FLAGS);
    assert_eq!(with(all.clone(), "SCMP_ACT_KILL"), 0b00_0111);
    assert_eq!(with(all, "SCMP_ACT_NOTIFY"), 0b11_1111);
}

#[test]
fn the_listener_is_kept_but_changes_no_program() {
    let with = |path: &str, metadata: &str| {
        seccomp(json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "listenerPath": path,
            "listenerMetadata": metadata,
            "syscalls": [{"names": ["getppid"], "action": "SCMP_ACT_NOTIFY"}],
        }))
    };
    let (first, second) = (with("/a", "1"), with("/b", "2"));
    let (first, second) = (
        Profile::new(&first).unwrap(),
        Profile::new(&second).unwrap(),
    );
    let listener = first.listener().unwrap();
    assert_eq!(listener.path, Path::new("/a"));
    assert_eq!(listener.metadata, Some("1"));
    assert_ne!(first, second);
    assert_eq!(first.canonical(), second.canonical());
    assert!(!first.canonical().is_empty());
}

#[test]
fn the_names_for_features_are_those_that_parse() {
    for name in ACTIONS {
        serde_json::from_value::<LinuxSeccompAction>(json!(name)).unwrap();
    }
    for name in OPERATORS {
        serde_json::from_value::<LinuxSeccompOperator>(json!(name)).unwrap();
    }
    for name in ARCHITECTURES {
        serde_json::from_value::<Arch>(json!(name)).unwrap();
    }
    for name in FLAGS {
        serde_json::from_value::<LinuxSeccompFilterFlag>(json!(name)).unwrap();
    }
}
