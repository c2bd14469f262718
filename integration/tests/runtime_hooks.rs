//! OCI hooks: all six stages, where they run, what they are told, and what becomes of failures.

use std::fs;
use std::time::{Duration, Instant};

use holdfast_integration::bundle::Bundle;
use holdfast_integration::on_runtimes;
use holdfast_integration::scratch::{Scratch, text};
use serde_json::{Value, json};

on_runtimes! {
    // runc 1.1.5 runs poststart within create, crun 1.8.1 before the process has started.
    all_stages_run_in_order: holdfast;
    all_stages_run: runc crun;
    the_state_is_on_standard_input: holdfast crun;
    the_bundle_is_the_working_directory: holdfast crun;
    create_container_runs_in_the_container_s_namespaces: holdfast runc crun;
    a_failing_hook_says_what_it_said: holdfast;
    a_failing_hook_fails_create: holdfast runc crun;
    a_hook_past_its_timeout_is_ended: holdfast runc crun;
    // crun 1.8.1 is killed by SIGPIPE.
    a_hook_that_does_not_read_its_input_holds_nobody_up: holdfast;
    a_failing_poststop_does_not_stop_delete: holdfast runc crun;
    // runc 1.1.5 runs poststart within create, crun 1.8.1 goes on.
    a_failing_poststart_ends_the_container: holdfast;
}

const STAGES: &[&str] = &[
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

/// A hook that reads its input, into `$state`, before it does anything: crun 1.8.1 is killed by
/// SIGPIPE otherwise.
fn hook(script: &str) -> Value {
    deaf_hook(&format!("state=$(cat); {script}"))
}

fn deaf_hook(script: &str) -> Value {
    json!({
        "path": "/bin/sh", "args": ["sh", "-c", script],
        "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
    })
}

fn with_hook(bundle: Bundle, stage: &str, hook: Value) -> Bundle {
    bundle.with(|spec| spec["hooks"][stage] = json!([hook]))
}

/// A bundle whose hooks write their stage's name to a file, and how to read that.
fn logging_bundle(scratch: &Scratch) -> (Bundle, impl Fn() -> String) {
    let log = scratch.path("log");
    fs::create_dir(&log).unwrap();
    let mut bundle = scratch.bundle("box").args(&["sleep", "600"]).mount(json!({
        // startContainer runs in the container's root, so its log has to be seen from there.
        "destination": text(&log), "type": "bind", "source": text(&log), "options": ["bind"],
    }));
    for stage in STAGES {
        bundle = with_hook(
            bundle,
            stage,
            hook(&format!("echo {stage} >>{}/log", text(&log))),
        );
    }
    (bundle, move || {
        fs::read_to_string(log.join("log"))
            .unwrap_or_default()
            .replace('\n', " ")
    })
}

fn all_stages_run_in_order(scratch: &Scratch) {
    let (bundle, so_far) = logging_bundle(scratch);
    scratch.create(&bundle);
    assert_eq!(so_far(), "prestart createRuntime createContainer ");
    scratch.call(&["start", "box"]).ok();
    assert_eq!(
        so_far(),
        "prestart createRuntime createContainer startContainer poststart "
    );
    scratch.end(&bundle);
    assert_eq!(
        so_far(),
        "prestart createRuntime createContainer startContainer poststart poststop "
    );
}

fn all_stages_run(scratch: &Scratch) {
    let (bundle, so_far) = logging_bundle(scratch);
    scratch.start(&bundle);
    scratch.end(&bundle);
    let log = so_far();
    let mut ran: Vec<&str> = log.split_whitespace().collect();
    ran.sort_unstable();
    let mut all = STAGES.to_vec();
    all.sort_unstable();
    assert_eq!(ran, all);
}

fn the_state_is_on_standard_input(scratch: &Scratch) {
    let seen = scratch.path("seen");
    let mut bundle = scratch.bundle("box").args(&["sleep", "600"]);
    bundle.spec["annotations"] = json!({"example.key": "value"});
    for stage in ["createRuntime", "poststart", "poststop"] {
        bundle = with_hook(
            bundle,
            stage,
            hook(&format!("echo \"$state\" >{}-{stage}", text(&seen))),
        );
    }
    let pid = scratch.start(&bundle);
    let state = |stage: &str| -> Value {
        serde_json::from_str(&fs::read_to_string(format!("{}-{stage}", text(&seen))).unwrap())
            .unwrap()
    };
    for (stage, statuses) in [
        ("createRuntime", &["creating", "created"][..]),
        ("poststart", &["running"]),
    ] {
        let state = state(stage);
        assert_eq!(state["id"], "box", "{stage}: {state}");
        assert_eq!(state["pid"], json!(pid), "{stage}: {state}");
        assert_eq!(
            state["bundle"],
            json!(text(&bundle.path)),
            "{stage}: {state}"
        );
        assert!(
            statuses.contains(&state["status"].as_str().unwrap()),
            "{stage}: {state}"
        );
        assert_eq!(
            state["annotations"]["example.key"], "value",
            "{stage}: {state}"
        );
        assert!(state["ociVersion"].is_string(), "{stage}: {state}");
    }
    scratch.end(&bundle);
    assert_eq!(state("poststop")["status"], "stopped");
}

fn the_bundle_is_the_working_directory(scratch: &Scratch) {
    let mut bundle = scratch.bundle("box").args(&["sleep", "600"]);
    for stage in ["prestart", "createRuntime", "poststart", "poststop"] {
        bundle = with_hook(
            bundle,
            stage,
            hook(&format!("pwd >{}-{stage}", text(&scratch.path("pwd")))),
        );
    }
    scratch.start(&bundle);
    scratch.end(&bundle);
    for stage in ["prestart", "createRuntime", "poststart", "poststop"] {
        let seen = fs::read_to_string(scratch.path(&format!("pwd-{stage}"))).unwrap();
        assert_eq!(seen.trim(), text(&bundle.path), "{stage}");
    }
}

fn create_container_runs_in_the_container_s_namespaces(scratch: &Scratch) {
    let file = text(&scratch.path("where"));
    let show = |stage: &str| {
        hook(&format!(
            "readlink /proc/self/ns/mnt /proc/self/ns/uts >{file}-{stage}"
        ))
    };
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    let bundle = with_hook(bundle, "createRuntime", show("runtime"));
    let bundle = with_hook(bundle, "createContainer", show("container"));
    scratch.create(&bundle);
    let seen = |stage: &str| fs::read_to_string(format!("{file}-{stage}")).unwrap();
    assert_ne!(
        seen("runtime").lines().next(),
        seen("container").lines().next(),
        "mount namespace"
    );
    assert_ne!(
        seen("runtime").lines().last(),
        seen("container").lines().last(),
        "uts namespace"
    );
    scratch.call(&["start", "box"]).ok();
    scratch.end(&bundle);
}

fn a_failing_hook_says_what_it_said(scratch: &Scratch) {
    for stage in ["prestart", "createRuntime", "createContainer"] {
        let bundle = scratch.bundle(stage);
        let bundle = with_hook(
            bundle,
            stage,
            hook("echo on-stdout; echo on-stderr >&2; exit 17"),
        );
        bundle.write();
        let (refused, _) = scratch.try_create(&bundle, &[]);
        let said = refused.failed();
        for word in ["on-stderr", "on-stdout", "17"] {
            assert!(said.contains(word), "{stage}: no {word} in {refused}");
        }
        assert!(
            said.to_lowercase().contains(&stage.to_lowercase()),
            "{refused}"
        );
        scratch.assert_nothing_left();
    }
}

fn a_failing_hook_fails_create(scratch: &Scratch) {
    for stage in ["prestart", "createRuntime", "createContainer"] {
        let bundle = with_hook(scratch.bundle(stage), stage, hook("exit 1"));
        bundle.write();
        let (refused, _) = scratch.try_create(&bundle, &[]);
        refused.failed();
        // Later stages have cleaned up too.
        scratch.assert_nothing_left();
    }
}

fn a_hook_past_its_timeout_is_ended(scratch: &Scratch) {
    let mut slow = hook("exec sleep 100");
    slow["timeout"] = json!(1);
    let bundle = with_hook(scratch.bundle("slow"), "createRuntime", slow);
    bundle.write();
    let started = Instant::now();
    let (refused, _) = scratch.try_create(&bundle, &[]);
    refused.failed();
    assert!(started.elapsed() < Duration::from_secs(10), "{refused}");
}

fn a_hook_that_does_not_read_its_input_holds_nobody_up(scratch: &Scratch) {
    // A state larger than any pipe holds.
    let mut bundle = scratch.bundle("box").args(&["sleep", "600"]);
    bundle.spec["annotations"] = json!({"big": "x".repeat(100_000)});
    let mut deaf = deaf_hook("exec <&-; exit 0");
    deaf["timeout"] = json!(10);
    let bundle = with_hook(bundle, "createRuntime", deaf);
    scratch.start(&bundle);
    scratch.end(&bundle);
}

fn a_failing_poststop_does_not_stop_delete(scratch: &Scratch) {
    let bundle = with_hook(
        scratch.bundle("box").args(&["sleep", "600"]),
        "poststop",
        hook("exit 1"),
    );
    let pid = scratch.start(&bundle);
    scratch.call(&["kill", "box", "KILL"]).ok();
    scratch.exit_of(pid);
    let _ = scratch.call(&["delete", "box"]);
    scratch.call(&["state", "box"]).failed();
}

fn a_failing_poststart_ends_the_container(scratch: &Scratch) {
    let bundle = with_hook(
        scratch.bundle("box").args(&["sleep", "600"]),
        "poststart",
        hook("echo no quota >&2; exit 3"),
    );
    let pid = scratch.create(&bundle);
    let refused = scratch.call(&["start", &bundle.id]);
    let said = refused.failed();
    assert!(
        said.contains("poststart") && said.contains("no quota"),
        "{refused}"
    );
    assert_eq!(scratch.exit_of(pid), 128 + 9);
    scratch.call(&["delete", &bundle.id]).ok();
}
