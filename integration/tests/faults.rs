//! The shim fails where a test wants it: built with its feature `fault-points` (`make test-faults`).

#[path = "faults/base.rs"]
mod base;
#[path = "faults/last_words.rs"]
mod last_words;
#[path = "faults/upgrades.rs"]
mod upgrades;
#[path = "faults/walks.rs"]
mod walks;

use std::thread;
use std::time::Duration;

use base::{Base, POD, SPACING, can_fail};
use holdfast_integration::containerd::Containerd;
use holdfast_integration::deadline::eventually;
use holdfast_integration::on_containerds;
use holdfast_integration::shim::{METHODS, Shim};
use upgrades::an_upgrade_that_cannot_go_on_comes_back;
use walks::a_walk_with_faults_ends_where_one_without_does;

on_containerds! {
    true_faults_and_stalls_are_survived_and_recorded;
    a_panic_in_any_call_is_that_calls_alone;
    a_panic_in_any_step_of_a_container_is_made_good;
    a_step_that_always_panics_costs_its_call_alone;
    a_walk_with_faults_ends_where_one_without_does;
    an_upgrade_that_cannot_go_on_comes_back;
}

fn true_faults_and_stalls_are_survived_and_recorded(containerd: &Containerd) {
    if !can_fail("true_faults_and_stalls_are_survived_and_recorded") {
        return;
    }
    let base = Base::start(containerd);
    for (how, code) in [
        ("fault", "HF172"),
        ("abort", "HF172"),
        ("overflow", "HF172"),
        ("stall", "HF174"),
    ] {
        let before = base.ledger().matches(code).count();
        base.order("rpc/State", how);
        // The call itself is answered: by the next image.
        let state = Shim::of(containerd, "base").state("base", "").expect(how);
        assert_eq!(state.pid.cast_signed(), base.pid, "{how}");
        base.happened();
        eventually("the incident is recorded", Duration::from_secs(20), || {
            (base.ledger().matches(code).count() > before).then_some(())
        });
        base.is_well();
        thread::sleep(SPACING);
    }
    // With the place, by name.
    assert!(base.ledger().contains("fault_point"), "{}", base.ledger());
    base.end();
}

fn a_panic_in_any_call_is_that_calls_alone(containerd: &Containerd) {
    if !can_fail("a_panic_in_any_call_is_that_calls_alone") {
        return;
    }
    let base = Base::start(containerd);
    let shim = Shim::of(containerd, "base");
    for method in METHODS {
        base.order(&format!("rpc/{method}"), "panic");
        let refused = shim
            .call_raw(method, Vec::new())
            .expect_err("the call panics");
        assert_eq!(refused.code, 13, "{method}: {refused:?}");
        assert!(
            refused.message.contains("incident"),
            "{method}: {refused:?}"
        );
        base.happened();
        base.is_well();
    }
    let code = containerd
        .exec("base", "x", &[], &["sh", "-c", "exit 3"])
        .code();
    assert_eq!(code, 3);
    base.end();
}

fn a_panic_in_any_step_of_a_container_is_made_good(containerd: &Containerd) {
    if !can_fail("a_panic_in_any_step_of_a_container_is_made_good") {
        return;
    }
    let base = Base::start(containerd);
    let steps = [
        "init-registered",
        "create-done",
        "start",
        "start-done",
        "exec",
        "start-exec",
        "exec-registered",
        "exec-done",
        "exec-ended",
        "delete-exec",
        "exec-cleared",
        "pause",
        "pause-done",
        "resume",
        "resume-done",
        "kill",
        "init-ended",
        "delete",
        "delete-done",
    ];
    let launches = ["create", "exec"].map(|verb| format!("launch/{verb}/connected"));
    let places = steps
        .iter()
        .flat_map(|step| ["before", "after"].map(|when| format!("owner/{step}/{when}")));
    for at in places.chain(launches) {
        thread::sleep(SPACING);
        base.order(&at, "panic");
        let mut client = containerd.spawn_run(
            "box",
            &[&POD[..], &["--rm"]].concat(),
            &[
                "sh",
                "-c",
                "trap 'exit 7' TERM; echo ready; while :; do usleep 10000; done",
            ],
            None,
        );
        eventually("the container runs", Duration::from_secs(30), || {
            client.output().contains("ready").then_some(())
        });
        let script = "echo x >> /tmp/left; exit 3";
        let done = containerd.exec("box", "x", &[], &["sh", "-c", script]);
        assert_eq!(done.code(), 3, "{at}: {done}");
        containerd.ctr_ok(&["tasks", "pause", "box"]);
        containerd.ctr_ok(&["tasks", "resume", "box"]);
        let left = containerd.file_of("box", "tmp/left");
        assert_eq!(left, "x\n", "{at}: not once");
        containerd.ctr_ok(&["tasks", "kill", "--signal", "SIGTERM", "box"]);
        let code = client.code();
        assert_eq!(code, 7, "{at}: {}", client.output());
        base.happened();
        base.is_well();
    }
    base.end();
}

fn a_step_that_always_panics_costs_its_call_alone(containerd: &Containerd) {
    if !can_fail("a_step_that_always_panics_costs_its_call_alone") {
        return;
    }
    let base = Base::start(containerd);
    containerd.start_task("box", &POD, &["sleep", "600"]);
    base.order("owner/pause/before", "panic again");
    let paused = containerd.ctr(&["tasks", "pause", "box"]);
    assert!(paused.stderr.contains("the shim failed inside"), "{paused}");
    std::fs::remove_file(base.file()).unwrap();
    base.is_well();
    thread::sleep(SPACING);
    let code = containerd
        .exec("box", "x", &[], &["sh", "-c", "exit 4"])
        .code();
    assert_eq!(code, 4);
    containerd.end_task("box");
    base.end();
}
