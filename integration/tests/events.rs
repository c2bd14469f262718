//! What subscribers are told: every event of a life, once, in the guaranteed order.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use holdfast_integration::containerd::{Containerd, peer};
use holdfast_integration::deadline::{self, eventually};
use holdfast_integration::events::{Event, Subscriber};
use holdfast_integration::{leaks, on_containerds, place, skip};

on_containerds! {
    a_life_is_told_in_order;
    short_lives_are_told_whole;
    want_of_memory_is_told_before_the_exit;
    a_pods_want_of_memory_is_told_before_the_exit_and_named;
    the_nodes_want_of_memory_is_told_as_such;
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
    if !peer() {
        assert!(at("oom") < at("exit"), "{told:?}");
    }
}

/// A cgroup with a memory limit, as kubelet makes one for a pod; removed at the end.
struct Pod {
    folder: PathBuf,
    parent: PathBuf,
}

impl Pod {
    /// Below the test's own cgroup; none where this is not to be had.
    fn limited(namespace: &str, bytes: u64) -> Option<Self> {
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let is_v1 = v1.join("cgroup.procs").exists();
        let root = if is_v1 {
            v1
        } else {
            Path::new("/sys/fs/cgroup")
        };
        let parent = root.join(namespace);
        let folder = parent.join("pod");
        fs::create_dir_all(&folder).ok()?;
        let pod = Self { folder, parent };
        if is_v1 {
            fs::write(pod.folder.join("memory.limit_in_bytes"), bytes.to_string()).ok()?;
        } else {
            for above in [root, &pod.parent] {
                fs::write(above.join("cgroup.subtree_control"), "+memory").ok()?;
            }
            fs::write(pod.folder.join("memory.max"), bytes.to_string()).ok()?;
            // Else it is the swap that is eaten first, should there be any.
            let _ = fs::write(pod.folder.join("memory.swap.max"), "0");
        }
        Some(pod)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        for folder in [&self.folder, &self.parent] {
            leaks::remove_busy_folder(folder, LIMIT);
        }
    }
}

/// What is recorded of `big` under that code.
fn record_of(containerd: &Containerd, code: &str) -> serde_json::Value {
    let mut why = Command::new(place::built("holdfast"));
    why.args(["why", "--json", "big"]);
    why.env("HOLDFAST_LEDGER_DIR", containerd.path("ledger"));
    eventually("the record is written", LIMIT, || {
        let said = deadline::run(&mut why, LIMIT);
        let records: Vec<serde_json::Value> = serde_json::from_str(&said.stdout).ok()?;
        records.into_iter().find(|record| record["code"] == code)
    })
}

/// No limit is hit: the machine itself has no memory left. Only where the machine is there for it.
fn the_nodes_want_of_memory_is_told_as_such(containerd: &Containerd) {
    const TEST: &str = "the_nodes_want_of_memory";
    if peer() {
        return skip(TEST, "containerd's own shim records none");
    }
    if std::env::var_os("HOLDFAST_THROW_AWAY_MACHINE").is_none() {
        return skip(
            TEST,
            "it takes all memory; `make test-v2` has a machine for it",
        );
    }
    let subscriber = Subscriber::new(containerd);
    let ran = containerd.run("big", &["--rm"], &["tail", "-n", "1", "/dev/zero"]);
    assert_eq!(ran.code(), 137, "{ran}");
    told_before_the_exit(&subscriber);
    let record = record_of(containerd, "HF121");
    let oom = &record["evidence"];
    assert_eq!(oom["scope"], "node", "{record}");
    assert_eq!(oom["victim"], "tail", "{record}");
    let summary = record["summary"].as_str().unwrap_or_default();
    assert!(summary.contains("the whole node had none left"), "{record}");
}

/// The want of memory of the container "big".
#[track_caller]
fn told_before_the_exit(subscriber: &Subscriber) {
    let events = subscriber.until("the deletion", LIMIT, |events| is_deleted(events, "big"));
    let told = topics(&events, "big");
    let at = |topic: &str| told.iter().position(|seen| *seen == topic);
    assert!(at("oom").is_some() && at("oom") < at("exit"), "{told:?}");
}

fn a_pods_want_of_memory_is_told_before_the_exit_and_named(containerd: &Containerd) {
    const BYTES: u64 = 24 << 20;
    const TEST: &str = "a_pods_want_of_memory";
    if peer() {
        return skip(TEST, "containerd's own shim records none");
    }
    let Some(pod) = Pod::limited(&containerd.namespace, BYTES) else {
        return skip(TEST, "no cgroup with a memory limit can be made here");
    };
    let subscriber = Subscriber::new(containerd);
    let cgroup = format!("/{}/pod/big", containerd.namespace);
    let flags = ["--rm", "--cgroup", &cgroup];
    let ran = containerd.run("big", &flags, &["tail", "-n", "1", "/dev/zero"]);
    assert_eq!(ran.code(), 137, "{ran}");
    told_before_the_exit(&subscriber);
    let record = record_of(containerd, "HF121");
    // Not the container's own limit: it had none.
    let oom = &record["evidence"];
    let limited = oom["cgroup"].as_str().unwrap_or_default();
    assert!(limited.ends_with("/pod"), "{record}");
    assert_eq!(oom["scope"], "cgroup", "{record}");
    assert_eq!(oom["limit"], BYTES, "{record}");
    assert_eq!(oom["victim"], "tail", "{record}");
    drop(pod);
}
