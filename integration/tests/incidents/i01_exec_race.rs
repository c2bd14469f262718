//! Incident 1: an exec was started while init's exit was being handled. The old shim panicked on
//! a process without a pid, the container died with 137, and nothing said why.
//!
//! 500 execs run against a container whose init is killed while half of them are under way.
//! Every exec that was started has its exit event, init's exit comes last, no shim dies.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use holdfast_integration::containerd::Containerd;
use holdfast_integration::events::{Event, Subscriber};
use holdfast_integration::on_containerds;
use holdfast_integration::shim::Shim;

on_containerds! { every_started_exec_has_its_exit; }

const EXECS: usize = 500;
const AT_ONCE: usize = 8;

fn every_started_exec_has_its_exit(containerd: &Containerd) {
    let subscriber = Subscriber::new(containerd);
    let init = containerd.start_task("race", &[], &["sleep", "600"]);
    let shim_pid = Shim::of(containerd, "race").pid("race");

    let next = AtomicUsize::new(0);
    let ended_by_kill = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                let shim = Shim::of(containerd, "race");
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= EXECS {
                        return;
                    }
                    if number == EXECS / 2 {
                        shim.kill("race", "", 9).expect("kill init");
                    }
                    let exec = format!("exec-{number}");
                    let started = shim
                        .exec("race", &exec, &["true"])
                        .and_then(|()| shim.start("race", &exec));
                    if started.is_err() {
                        // Init is on its way out: refused is right, dead would not be.
                        ended_by_kill.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });

    let events = subscriber.until("the exit of init", Duration::from_secs(60), |events| {
        events.iter().any(|event| is_exit_of(event, "race"))
    });
    assert!(
        ended_by_kill.load(Ordering::Relaxed) > 0,
        "init outlived all execs: no race was run"
    );
    assert!(
        Shim::of(containerd, "race").pid("race") == shim_pid,
        "the shim is not the one it was"
    );
    check_order(&events, u64::try_from(init).unwrap());
    assert_eq!(containerd.task("race").unwrap().status, "STOPPED");
    containerd.remove("race");

    // Nothing came after init's exit but its own deletion.
    let events = subscriber.until("the deletion", Duration::from_secs(30), |events| {
        events.iter().any(|event| event.topic == "/tasks/delete")
    });
    check_order(&events, u64::try_from(init).unwrap());
}

fn is_exit_of(event: &Event, id: &str) -> bool {
    event.topic == "/tasks/exit" && event.text("id") == id
}

fn check_order(events: &[Event], init: u64) {
    let mut started = BTreeMap::new();
    let mut exited = BTreeSet::new();
    let mut init_exited = false;
    for event in events {
        match event.topic.as_str() {
            "/tasks/exec-started" => {
                assert!(!init_exited, "an exec started after init's exit: {event:?}");
                assert_ne!(event.number("pid"), 0, "an exec without a pid: {event:?}");
                started.insert(event.text("exec_id").to_owned(), event.number("pid"));
            }
            "/tasks/exit" if event.text("id") == "race" => {
                assert!(!init_exited, "init exited twice");
                assert_eq!(event.number("pid"), init);
                assert_eq!(event.number("exit_status"), 137);
                init_exited = true;
            }
            "/tasks/exit" => {
                assert!(!init_exited, "an exec's exit after init's: {event:?}");
                let id = event.text("id").to_owned();
                let pid = started.get(&id);
                assert_eq!(
                    pid,
                    Some(&event.number("pid")),
                    "exit without start: {event:?}"
                );
                assert!(exited.insert(id), "a second exit: {event:?}");
            }
            _ => {}
        }
    }
    assert!(init_exited);
    let without: Vec<&String> = started.keys().filter(|id| !exited.contains(*id)).collect();
    assert!(without.is_empty(), "started but never exited: {without:?}");
    assert!(!started.is_empty(), "no exec was started at all");
}
