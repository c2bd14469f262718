//! What subscribers are told: every event of a life, once, in the guaranteed order.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use holdfast_integration::containerd::Containerd;
use holdfast_integration::events::{Event, Subscriber};
use holdfast_integration::on_containerds;

on_containerds! {
    a_life_is_told_in_order;
    short_lives_are_told_whole;
    want_of_memory_is_told_before_the_exit;
}

const LIMIT: Duration = Duration::from_secs(30);

fn topics<'a>(events: &'a [Event], id: &str) -> Vec<&'a str> {
    let of_it = events
        .iter()
        .filter(|event| event.text("container_id") == id);
    of_it
        .map(|event| event.topic.strip_prefix("/tasks/").unwrap())
        .collect()
}

fn is_deleted(events: &[Event], id: &str) -> bool {
    topics(events, id).contains(&"delete")
}

fn a_life_is_told_in_order(containerd: &Containerd) {
    let subscriber = Subscriber::new(containerd);
    let pid = u64::try_from(containerd.start_task("box", &[], &["sleep", "600"])).unwrap();
    assert_eq!(
        containerd
            .exec("box", "one", &[], &["sh", "-c", "exit 5"])
            .code(),
        5
    );
    containerd.ctr_ok(&["tasks", "pause", "box"]);
    containerd.ctr_ok(&["tasks", "resume", "box"]);
    containerd.end_task("box");
    let events = subscriber.until("the deletion", LIMIT, |events| is_deleted(events, "box"));
    let expected = [
        "create",
        "start",
        "exec-added",
        "exec-started",
        "exit",
        "paused",
        "resumed",
        "exit",
        "delete",
    ];
    // Deletion of an exec may be told or not.
    let told: Vec<&str> = topics(&events, "box");
    assert_eq!(told, expected, "{events:#?}");
    for event in &events {
        match event.topic.as_str() {
            "/tasks/create" | "/tasks/start" => assert_eq!(event.number("pid"), pid, "{event:?}"),
            "/tasks/exit" if event.text("id") == "box" => {
                assert_eq!(
                    (event.number("pid"), event.number("exit_status")),
                    (pid, 137)
                );
            }
            "/tasks/exit" => {
                assert_eq!(
                    (event.text("id"), event.number("exit_status")),
                    ("one", 5),
                    "{event:?}"
                );
            }
            "/tasks/delete" => {
                assert_eq!(
                    (event.number("pid"), event.number("exit_status")),
                    (pid, 137)
                );
            }
            _ => {}
        }
    }
}

fn short_lives_are_told_whole(containerd: &Containerd) {
    const LIVES: usize = 30;
    let subscriber = Subscriber::new(containerd);
    std::thread::scope(|scope| {
        for worker in 0..3 {
            scope.spawn(move || {
                for round in 0..LIVES / 3 {
                    let id = format!("box-{worker}-{round}");
                    assert_eq!(containerd.run(&id, &["--rm"], &["true"]).code(), 0);
                }
            });
        }
    });
    let events = subscriber.until("all deletions", LIMIT, |events| {
        events
            .iter()
            .filter(|event| event.topic == "/tasks/delete")
            .count()
            == LIVES
    });
    for worker in 0..3 {
        for round in 0..LIVES / 3 {
            let id = format!("box-{worker}-{round}");
            assert_eq!(
                topics(&events, &id),
                ["create", "start", "exit", "delete"],
                "{id}"
            );
        }
    }
}

fn want_of_memory_is_told_before_the_exit(containerd: &Containerd) {
    let subscriber = Subscriber::new(containerd);
    let limit = (24 << 20).to_string();
    let flags = ["--rm", "--memory-limit", &limit];
    let ran = containerd.run("big", &flags, &["tail", "-n", "1", "/dev/zero"]);
    assert_eq!(ran.code(), 137, "{ran}");
    let events = subscriber.until("the deletion", LIMIT, |events| is_deleted(events, "big"));
    let told = topics(&events, "big");
    let at = |topic: &str| told.iter().position(|seen| *seen == topic);
    assert!(at("oom").is_some(), "{told:?}");
    // containerd's own shim sends it outside of its queue: before or after, as it happens.
    if !holdfast_integration::containerd::peer() {
        assert!(at("oom") < at("exit"), "{told:?}");
    }
}
