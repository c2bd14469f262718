//! What the runtime records when no shim of ours does, and where its own words go when one does.

use std::fs::{self, File};
use std::time::Duration;

use holdfast_integration::bundle::Bundle;
use holdfast_integration::deadline::{self, Finished, eventually};
use holdfast_integration::on_runtimes;
use holdfast_integration::scratch::{Scratch, text};
use serde_json::{Value, json};

on_runtimes! {
    a_hook_that_fails_is_recorded_once: holdfast;
    a_poststop_hook_that_fails_is_recorded: holdfast;
    a_program_that_is_not_there_is_recorded: holdfast;
    run_by_a_shim_its_words_are_not_the_containers: holdfast;
}

const LIMIT: Duration = Duration::from_secs(30);

/// Every record of the test's ledger, oldest first.
fn records(scratch: &Scratch) -> Vec<Value> {
    let why = scratch.call(&["why", "--json"]);
    serde_json::from_str(&why.stdout).unwrap()
}

fn codes(scratch: &Scratch) -> Vec<String> {
    let records = records(scratch);
    let codes = records
        .iter()
        .map(|record| record["code"].as_str().unwrap().to_owned());
    codes.collect()
}

fn failing(stage: &str, bundle: Bundle) -> Bundle {
    let hook =
        json!({"path": "/bin/sh", "args": ["sh", "-c", "cat; echo no such gpu >&2; exit 9"]});
    bundle.with(|spec| {
        spec["hooks"][stage] = json!([hook]);
        spec["annotations"] = json!({
            "io.kubernetes.cri.sandbox-name": "train-0",
            "io.kubernetes.cri.container-name": "worker",
        });
    })
}

fn a_hook_that_fails_is_recorded_once(scratch: &Scratch) {
    let bundle = failing("createRuntime", scratch.bundle("box"));
    bundle.write();
    let (created, _) = scratch.try_create(&bundle, &[]);
    assert_ne!(created.code(), 0, "{created}");
    let records = records(scratch);
    assert_eq!(records.len(), 1, "{records:#?}");
    let record = &records[0];
    assert_eq!(record["code"], "HF141");
    assert_eq!(record["kind"], "container");
    assert_eq!(record["container"], "box");
    assert_eq!(record["name"], "worker");
    assert_eq!(record["pod"]["name"], "train-0");
    assert_eq!(record["evidence"]["stderr"], "no such gpu\n");
    // By the name that people use, too.
    let why = scratch.call(&["why", "worker"]);
    assert!(
        why.stdout
            .starts_with("Container box failed in createRuntime hook 1 of 1"),
        "{why}"
    );
}

fn a_poststop_hook_that_fails_is_recorded(scratch: &Scratch) {
    let bundle = failing("poststop", scratch.bundle("box").args(&["true"]));
    scratch.run(&bundle);
    let records = records(scratch);
    assert_eq!(codes(scratch), ["HF141"], "{records:#?}");
    assert_eq!(records[0]["kind"], "hook");
}

fn a_program_that_is_not_there_is_recorded(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["/no/such/program"]);
    let ran = scratch.run(&bundle);
    assert_ne!(ran.code(), 0, "{ran}");
    let codes = codes(scratch);
    assert_eq!(codes.len(), 1, "{codes:?}");
    assert!(codes[0].starts_with("HF15"), "{codes:?}");
    // Behind the text that docker and podman match on.
    let ending = format!("no such file or directory [{}]", codes[0]);
    assert!(ran.stderr.trim_end().ends_with(&ending), "{ran}");
    // What makes no sense ends nothing.
    let asked = scratch.call(&["state", "nobody"]);
    assert_ne!(asked.code(), 0);
    let started = scratch.call(&["start", "nobody"]);
    assert_ne!(started.code(), 0);
    assert!(!started.stderr.contains("[HF"), "{started}");
    assert_eq!(self::codes(scratch), codes);
}

/// `create` as a shim of ours calls it: fd 2 is the container's standard error.
fn create(scratch: &Scratch, bundle: &Bundle) -> (Finished, String) {
    bundle.write();
    let error = scratch.path("container.stderr");
    let pid_file = scratch.path("box.pid");
    let script = "error=$1; shift; exec \"$@\" >/dev/null 2>\"$error\"";
    let mut wrapped = std::process::Command::new("sh");
    wrapped.args(["-c", script, "sh"]).arg(&error);
    let command = scratch.command(&[
        "create",
        "--bundle",
        &text(&bundle.path),
        "--pid-file",
        &text(&pid_file),
        &bundle.id,
    ]);
    wrapped.arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        wrapped.env(key, value.unwrap_or_default());
    }
    wrapped.env("HOLDFAST_SHIM_NAMESPACE", "test");
    wrapped.env("HOLDFAST_JOURNALD", "/nonexistent");
    let finished = deadline::run(&mut wrapped, LIMIT);
    (finished, fs::read_to_string(error).unwrap())
}

fn run_by_a_shim_its_words_are_not_the_containers(scratch: &Scratch) {
    let words = || fs::read_to_string(scratch.path("ledger/stderr.log")).unwrap_or_default();
    let bundle = failing("createRuntime", scratch.bundle("box"));
    let (failed, heard) = create(scratch, &bundle);
    assert_ne!(failed.code(), 0, "{failed}");
    assert_eq!(heard, "", "that is the container's");
    assert!(words().contains("no such gpu"), "{}", words());
    assert!(codes(scratch).is_empty(), "the shim records it");

    // The container has what it was given.
    let script = "echo word of the container >&2; exec sleep 600";
    let bundle = scratch.bundle("again").args(&["sh", "-c", script]);
    let (created, _) = create(scratch, &bundle);
    assert_eq!(created.code(), 0, "{created}");
    let started = scratch.call(&["start", "again"]);
    assert_eq!(started.code(), 0, "{started}");
    eventually("the container's word", LIMIT, || {
        let heard = fs::read_to_string(scratch.path("container.stderr")).unwrap();
        (heard == "word of the container\n").then_some(())
    });
    drop(File::open(scratch.path("box.pid")).unwrap());
    scratch.call(&["delete", "--force", "again"]).ok();
}
