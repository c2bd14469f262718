//! The words and exit codes that containerd, docker, podman, cri-o and buildkit derive their own
//! from. Each row holds for runc too: it is the contract.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use holdfast_integration::on_runtimes;
use holdfast_integration::scratch::{Scratch, text};
use std::fs;

on_runtimes! {
    no_such_container: holdfast runc;
    an_ended_container: holdfast runc;
    a_running_container: holdfast runc;
    programs: holdfast runc;
    the_log_has_the_error_as_json: holdfast runc;
}

/// Calls the runtime, which must fail with this code and say this.
#[track_caller]
fn fails(scratch: &Scratch, words: &[&str], code: i32, told: &str) {
    let said = scratch.call(words);
    assert_eq!(said.code(), code, "{said}");
    assert!(said.failed().contains(told), "no {told:?}: {said}");
}

fn no_such_container(scratch: &Scratch) {
    let told = "container does not exist";
    for words in [
        &["state", "none"][..],
        &["start", "none"],
        &["kill", "none", "9"],
        &["delete", "none"],
        &["pause", "none"],
        &["resume", "none"],
        &["ps", "none"],
        &["update", "--pids-limit", "5", "none"],
    ] {
        fails(scratch, words, 1, told);
    }
    fails(scratch, &["exec", "none", "true"], 255, told);
    scratch.call(&["delete", "--force", "none"]).ok();
}

fn an_ended_container(scratch: &Scratch) {
    let bundle = scratch.bundle("ended").args(&["true"]);
    let pid = scratch.start(&bundle);
    scratch.exit_of(pid);
    fails(
        scratch,
        &["kill", "ended", "15"],
        1,
        "container not running",
    );
    fails(scratch, &["exec", "ended", "true"], 255, "stopped");
    fails(scratch, &["start", "ended"], 1, "stopped");
    scratch.call(&["delete", "ended"]).ok();
}

fn a_running_container(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    scratch.start(&bundle);
    let create = ["create", "--bundle", &text(&bundle.path), "box"];
    fails(
        scratch,
        &create,
        1,
        "container with given ID already exists",
    );
    fails(scratch, &["delete", "box"], 1, "running");
    scratch.end(&bundle);
}

fn programs(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    scratch.start(&bundle);
    for (program, told) in [
        (
            "nosuch",
            "exec: \\\"nosuch\\\": executable file not found in $PATH",
        ),
        ("/no/such", "no such file or directory"),
        ("/etc/passwd", "permission denied"),
    ] {
        let said = scratch.call(&["exec", "box", program]);
        assert_eq!(said.code(), 255, "{said}");
        // runc's standard error has its quotes quoted.
        let plain = |words: &str| words.replace('\\', "");
        assert!(plain(said.failed()).contains(&plain(told)), "{said}");
    }
    scratch.end(&bundle);
}

fn the_log_has_the_error_as_json(scratch: &Scratch) {
    let log = scratch.path("log.json");
    let words = [
        "--log",
        &text(&log),
        "--log-format",
        "json",
        "state",
        "none",
    ];
    assert_eq!(scratch.call(&words).code(), 1);
    let lines = fs::read_to_string(&log).unwrap();
    let last: serde_json::Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!(last["level"], "error");
    let told = last["msg"].as_str().unwrap();
    assert!(told.contains("container does not exist"), "{told}");
    assert!(last["time"].is_string());
}
