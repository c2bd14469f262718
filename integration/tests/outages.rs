//! containerd stops, dies, or hangs while containers live and end: nothing of it is lost, nothing
//! changes its order, and who asks the shim meanwhile is answered.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::{Duration, Instant};

use holdfast_integration::containerd::{Containerd, peer};
use holdfast_integration::deadline::eventually;
use holdfast_integration::events::{Event, Subscriber};
use holdfast_integration::shim::Shim;
use holdfast_integration::{on_containerds, skip};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

on_containerds! {
    a_stopped_containerd_hears_everything_once_and_in_order;
    a_killed_containerd_hears_everything_when_it_is_back;
    what_a_killed_shim_had_to_tell_is_told;
}

const LIMIT: Duration = Duration::from_secs(30);
const EXECS: usize = 20;

/// Runs execs by hand; none of the calls may wait for containerd.
fn execs_by_hand(shim: &Shim, from: usize, number: usize) {
    for exec in from..from + number {
        let began = Instant::now();
        let exec = format!("exec-{exec}");
        shim.exec("box", &exec, &["true"]).unwrap();
        shim.start("box", &exec).unwrap();
        assert_eq!(shim.wait("box", &exec).unwrap(), 0);
        shim.delete("box", &exec).unwrap();
        let took = began.elapsed();
        assert!(took < Duration::from_secs(5), "{exec} took {took:?}");
    }
}

/// Topic and id of each event of `box`, in order.
fn told(events: &[Event]) -> Vec<(String, String)> {
    events
        .iter()
        .filter(|event| event.text("container_id") == "box")
        .map(|event| {
            let exec = event.text("exec_id");
            let id = if exec.is_empty() {
                event.text("id")
            } else {
                exec
            };
            (event.topic.clone(), id.to_owned())
        })
        .collect()
}

fn of_execs(numbers: std::ops::Range<usize>) -> Vec<(String, String)> {
    numbers
        .flat_map(|exec| {
            ["exec-added", "exec-started", "exit"]
                .map(|topic| (format!("/tasks/{topic}"), format!("exec-{exec}")))
        })
        .collect()
}

fn a_stopped_containerd_hears_everything_once_and_in_order(containerd: &Containerd) {
    containerd.start_task("box", &[], &["sleep", "600"]);
    let shim = Shim::of(containerd, "box");
    let subscriber = Subscriber::new(containerd);
    let before = told(&subscriber.tasks()).len();
    let daemon = Pid::from_raw(containerd.pid());
    kill(daemon, Signal::SIGSTOP).unwrap();
    let stopped = Instant::now();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        execs_by_hand(&shim, 0, EXECS);
        // Longer than containerd is given for one event.
        while stopped.elapsed() < Duration::from_secs(8) {
            let began = Instant::now();
            assert_eq!(shim.state("box", "").unwrap().status.value(), 2);
            assert!(began.elapsed() < Duration::from_secs(1));
            std::thread::sleep(Duration::from_millis(100));
        }
    }));
    kill(daemon, Signal::SIGCONT).unwrap();
    result.unwrap();
    let expected = of_execs(0..EXECS);
    let events = subscriber.until("all events", LIMIT, |events| {
        told(events).len() >= before + expected.len()
    });
    if !peer() {
        assert_eq!(told(&events)[before..], expected);
    }
    containerd.end_task("box");
}

fn a_killed_containerd_hears_everything_when_it_is_back(containerd: &Containerd) {
    if peer() {
        return skip("a_killed_containerd", "containerd's own shim drops events");
    }
    containerd.start_task("box", &[], &["sleep", "600"]);
    let shim = Shim::of(containerd, "box");
    execs_by_hand(&shim, 0, 3);
    containerd.kill_daemon();
    execs_by_hand(&shim, 3, EXECS);
    containerd.start_daemon();
    // The subscriber comes when the shim may have begun, so what it sees is an end of it all.
    let subscriber = Subscriber::new(containerd);
    execs_by_hand(&shim, 3 + EXECS, 1);
    let events = subscriber.until("the last event", LIMIT, |events| {
        let last = ("/tasks/exit".to_owned(), format!("exec-{}", 3 + EXECS));
        told(events).contains(&last)
    });
    let all = of_execs(0..EXECS + 4);
    let seen = told(&events);
    assert_eq!(seen, all[all.len() - seen.len()..]);
    // And the journal, which outlives the shim, has them all as taken.
    let journal = containerd.bundle("box").join("holdfast.journal");
    eventually("every event is acknowledged", LIMIT, || {
        let text = String::from_utf8_lossy(&std::fs::read(&journal).ok()?).into_owned();
        let count = |name: &str| text.matches(name).count();
        // Compaction may have removed pairs, never one of a pair.
        (count("EventQueued") == count("EventAcknowledged")).then_some(())
    });
    containerd.end_task("box");
}

fn what_a_killed_shim_had_to_tell_is_told(containerd: &Containerd) {
    if peer() {
        return skip("a_killed_shim", "containerd's own shim loses its events");
    }
    containerd.start_task("box", &[], &["sleep", "600"]);
    let shim = Shim::of(containerd, "box");
    let subscriber = Subscriber::new(containerd);
    let before = told(&subscriber.tasks()).len();
    let daemon = Pid::from_raw(containerd.pid());
    kill(daemon, Signal::SIGSTOP).unwrap();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        execs_by_hand(&shim, 0, 5);
        kill(Pid::from_raw(shim.pid("box")), Signal::SIGKILL).unwrap();
    }));
    kill(daemon, Signal::SIGCONT).unwrap();
    result.unwrap();
    let expected = of_execs(0..5);
    let events = subscriber.until("all events", LIMIT, |events| {
        let seen = told(events);
        expected.iter().all(|one| seen.contains(one))
            && seen.contains(&("/tasks/exit".to_owned(), "box".to_owned()))
    });
    // The first may come twice: its acknowledgement found nobody.
    let mut seen = told(&events)[before..].to_vec();
    seen.dedup();
    seen.retain(|(_, id)| id != "box" && !id.is_empty());
    assert_eq!(seen, expected);
    let _ = containerd.ctr(&["tasks", "delete", "--force", "box"]);
    containerd.ctr_ok(&["containers", "delete", "box"]);
}
