//! SIGKILL of the runtime at every system call it makes, over the whole of create, start, exec, run
//! and delete: `delete --force` removes whatever is left, and nothing else is.
//!
//! The test traces it and counts: the same places in every run, and every place. With the systemd driver: runtime_systemd.rs.

use std::fs;

use holdfast_integration::bundle::Bundle;
use holdfast_integration::killer::{self, GONE, reap_contained, sweep};
use holdfast_integration::scratch::{Scratch, text};
use holdfast_integration::{deadline, on_runtimes};

on_runtimes! {
    // runc and crun leave cgroups behind: seen with 1.1.5 and 1.8.1.
    a_killed_create: holdfast;
    a_killed_create_in_a_user_namespace_with_hooks: holdfast;
    a_killed_start: holdfast;
    a_killed_exec: holdfast;
    a_killed_run: holdfast;
    a_killed_delete: holdfast;
}

#[track_caller]
fn clean_up(scratch: &Scratch, bundle: &Bundle, number: usize) {
    killer::clean_up(scratch, &["delete", "--force", &bundle.id], number);
}

fn a_killed_create(scratch: &Scratch) {
    let bundle = scratch
        .bundle("box")
        .docker_seccomp()
        .args(&["sleep", "600"]);
    bundle.write();
    let pid_file = text(&scratch.path("pid"));
    let words = [
        "create",
        "--bundle",
        &text(&bundle.path),
        "--pid-file",
        &pid_file,
        "box",
    ];
    let places = sweep(
        scratch,
        &words,
        1,
        || {},
        |number| clean_up(scratch, &bundle, number),
    );
    assert!(places > 100, "only {places}: what was killed?");
}

/// With a process in between, one that waits for its id maps, and children that are hooks.
fn a_killed_create_in_a_user_namespace_with_hooks(scratch: &Scratch) {
    let hook = serde_json::json!([{"path": "/bin/true"}]);
    let bundle = scratch
        .bundle("box")
        .user_namespace(100_000)
        .args(&["sleep", "600"])
        .with(|spec| {
            spec["hooks"] = serde_json::json!({"createRuntime": hook, "createContainer": hook});
        });
    bundle.write();
    let words = ["create", "--bundle", &text(&bundle.path), "box"];
    sweep(
        scratch,
        &words,
        3,
        || {},
        |number| clean_up(scratch, &bundle, number),
    );
}

fn a_killed_start(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    let words = ["start", "box"];
    let create = || {
        scratch.create(&bundle);
    };
    sweep(scratch, &words, 1, create, |number| {
        clean_up(scratch, &bundle, number)
    });
}

/// The container and its other processes stay as they are.
fn a_killed_exec(scratch: &Scratch) {
    let bundle = scratch
        .bundle("box")
        .docker_seccomp()
        .args(&["sleep", "600"]);
    scratch.start(&bundle);
    let words = ["exec", "--detach", "box", "sh", "-c", "true"];
    sweep(
        scratch,
        &words,
        2,
        || {},
        |number| {
            assert_eq!(
                scratch.state("box")["status"],
                "running",
                "killed at {number}"
            );
            let alone = || {
                reap_contained();
                let seen = scratch.call(&["ps", "--format", "json", "box"]);
                let pids: Vec<i32> = serde_json::from_str(seen.ok()).unwrap();
                (pids.len() == 1).then_some(())
            };
            deadline::eventually("the end of what exec left in the container", GONE, alone);
        },
    );
    clean_up(scratch, &bundle, 0);
}

fn a_killed_run(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["true"]);
    bundle.write();
    let words = ["run", "--bundle", &text(&bundle.path), "box"];
    sweep(
        scratch,
        &words,
        3,
        || {},
        |number| clean_up(scratch, &bundle, number),
    );
}

fn a_killed_delete(scratch: &Scratch) {
    // Something to remove recursively, and to kill beside init.
    let bundle = scratch
        .bundle("box")
        .script("sleep 600 & exec sleep 600")
        .without_namespace("pid");
    let words = ["delete", "--force", "box"];
    let start = || {
        scratch.start(&bundle);
    };
    sweep(scratch, &words, 1, start, |number| {
        clean_up(scratch, &bundle, number);
        // Its name is free again.
        assert!(
            fs::metadata(scratch.root().join("box")).is_err(),
            "killed at {number}"
        );
    });
}
