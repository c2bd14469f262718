//! create, start, state, kill, delete, run, exec: a container's life through the runtime's CLI.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use holdfast_integration::on_runtimes;
use holdfast_integration::scratch::{Scratch, text};
use serde_json::json;

on_runtimes! {
    the_exit_code_is_the_process_s: holdfast runc crun;
    a_signal_gives_128_and_its_number: holdfast runc crun;
    the_states_come_in_order: holdfast runc crun;
}

fn the_exit_code_is_the_process_s(scratch: &Scratch) {
    for code in [0, 1, 42, 255] {
        let bundle = scratch
            .bundle(&format!("exit{code}"))
            .script(&format!("exit {code}"));
        let ran = scratch.run(&bundle);
        assert_eq!(ran.code(), code, "{ran}");
    }
}

fn a_signal_gives_128_and_its_number(scratch: &Scratch) {
    // The process is pid 1 of its namespace: only KILL and unblocked handlers end it from inside.
    let bundle = scratch.bundle("signal").args(&["sleep", "60"]);
    let pid = scratch.start(&bundle);
    scratch.call(&["kill", "signal", "9"]).ok();
    assert_eq!(scratch.exit_of(pid), 137);
    scratch.call(&["delete", "signal"]).ok();
}

fn the_states_come_in_order(scratch: &Scratch) {
    let bundle = scratch.bundle("life").args(&["sleep", "60"]);
    let pid = scratch.create(&bundle);
    let state = scratch.state("life");
    assert_eq!(state["id"], "life");
    assert_eq!(state["status"], "created");
    assert_eq!(state["pid"], json!(pid));
    assert_eq!(state["bundle"], json!(text(&bundle.path)));
    scratch.call(&["start", "life"]).ok();
    assert_eq!(scratch.state("life")["status"], "running");
    scratch.call(&["kill", "life", "KILL"]).ok();
    assert_eq!(scratch.exit_of(pid), 137);
    assert_eq!(scratch.state("life")["status"], "stopped");
    scratch.call(&["delete", "life"]).ok();
    scratch.call(&["state", "life"]).failed();
}
