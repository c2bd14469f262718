//! SIGKILL of the runtime at every system call it makes, over the whole of create, start, exec, run
//! and delete: `delete --force` removes whatever is left, and nothing else is.
//!
//! The test traces it and counts: the same places in every run, and every place.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use holdfast_integration::bundle::Bundle;
use holdfast_integration::killer::{End, kill_at, reap_contained};
use holdfast_integration::scratch::{LIMIT, Scratch, text};
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

/// No command makes as many system calls.
const MOST: usize = 3000;

/// How often a killed process may be waited for.
const GONE: Duration = Duration::from_secs(10);

/// Kills at 1, 1 + step, … until the runtime comes to its end; returns the number of places.
/// `before` prepares the machine, `after` puts it in order and checks it.
fn sweep(
    scratch: &Scratch,
    words: &[&str],
    step: usize,
    mut before: impl FnMut(),
    mut after: impl FnMut(usize),
) -> usize {
    for number in (1..MOST).step_by(step) {
        before();
        let end = kill_at(&mut scratch.command(words), number, LIMIT);
        reap_contained();
        after(number);
        if let End::Itself(code) = end {
            assert_eq!(code, 0, "{words:?} fails anyway");
            println!(
                "{words:?}: killed at {} places of {number}",
                number.div_ceil(step)
            );
            return number;
        }
    }
    panic!("{words:?}: more than {MOST} system calls");
}

/// `delete --force` succeeds, and nothing is left; processes are given a moment for their end.
#[track_caller]
fn clean_up(scratch: &Scratch, bundle: &Bundle, number: usize) {
    // The init of a pid namespace does not end before what died in it has been reaped, and that is
    // ours to do: also a hook whose parent has been killed.
    let done = AtomicBool::new(false);
    let deleted = std::thread::scope(|scope| {
        scope.spawn(|| {
            // Bounded, so that a delete that is too late can be told.
            let until = Instant::now() + 2 * LIMIT;
            while !done.load(Ordering::Relaxed) && Instant::now() < until {
                reap_contained();
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let deleted = scratch.call(&["delete", "--force", &bundle.id]);
        done.store(true, Ordering::Relaxed);
        deleted
    });
    assert!(deleted.status.success(), "killed at {number}: {deleted}");
    let until = Instant::now() + GONE;
    loop {
        reap_contained();
        let left = scratch.left_behind();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < until, "killed at {number}: {left:?}");
        std::thread::yield_now();
    }
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
