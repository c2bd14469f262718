//! containerd stops, dies, or hangs while containers live and end: nothing of it is lost, nothing
//! changes its order, and who asks the shim meanwhile is answered.
//!
//! Outages are short here. With `HOLDFAST_LONG=1` they take as long as those that have been seen on nodes: a containerd
//! that is stopped or silent for a minute, or away for two.

use std::io::Read as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use holdfast_integration::containerd::{Containerd, peer};
use holdfast_integration::deadline::eventually;
use holdfast_integration::events::{Event, Subscriber};
use holdfast_integration::shim::{Shim, kill_for_good};
use holdfast_integration::{on_containerds, skip};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

on_containerds! {
    a_stopped_containerd_hears_everything_once_and_in_order;
    a_killed_containerd_hears_everything_when_it_is_back;
    an_outage_costs_disk_and_not_memory;
    a_containerd_that_accepts_and_says_nothing_hears_everything;
    what_a_killed_shim_had_to_tell_is_told;
    a_deletion_is_told_although_its_shim_is_killed_at_once;
}

const LIMIT: Duration = Duration::from_secs(30);
const EXECS: usize = 20;

/// How long an outage takes.
fn outage(short: u64, long: u64) -> Duration {
    let is_long = std::env::var("HOLDFAST_LONG").is_ok_and(|long| long == "1");
    Duration::from_secs(if is_long { long } else { short })
}

/// Lets an outage last until it has taken `whole`, and sees that the shim answers meanwhile.
fn last(began: Instant, whole: Duration, shim: &Shim) {
    while began.elapsed() < whole {
        let asked = Instant::now();
        assert_eq!(shim.state("box", "").unwrap().status.value(), 2);
        let took = asked.elapsed();
        assert!(took < Duration::from_secs(5), "State took {took:?}");
        // The outage is as long as it is; this only says how often the shim is asked.
        std::thread::sleep(Duration::from_millis(100));
    }
}

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
        last(stopped, outage(8, 60), &shim);
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
    let killed = Instant::now();
    execs_by_hand(&shim, 3, EXECS);
    last(killed, outage(1, 120), &shim);
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

/// The shim's own memory that is in use, in KiB.
fn memory(shim: &Shim) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", shim.pid("box"))).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    line.unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}

fn an_outage_costs_disk_and_not_memory(containerd: &Containerd) {
    if peer() {
        return skip("an_outage", "containerd's own shim drops events");
    }
    let execs = if outage(0, 1).is_zero() { 200 } else { 2000 };
    containerd.start_task("box", &[], &["sleep", "600"]);
    let shim = Shim::of(containerd, "box");
    let subscriber = Subscriber::new(containerd);
    // What a shim takes once it has done everything.
    execs_by_hand(&shim, 0, 50);
    let before = told(&subscriber.until("the first events", LIMIT, |events| {
        told(events).contains(&("/tasks/exit".to_owned(), "exec-49".to_owned()))
    }))
    .len();
    let usual = memory(&shim);
    let daemon = Pid::from_raw(containerd.pid());
    kill(daemon, Signal::SIGSTOP).unwrap();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        execs_by_hand(&shim, 50, execs);
        (
            memory(&shim),
            std::fs::metadata(containerd.bundle("box").join("holdfast.journal")),
        )
    }));
    kill(daemon, Signal::SIGCONT).unwrap();
    let (full, journal) = result.unwrap();
    let written = journal.unwrap().len() / 1024;
    println!(
        "{execs} execs without containerd: {usual} KiB, then {full} KiB; journal {written} KiB"
    );
    // A window of 64 events, and what an allocator does.
    assert!(full < usual + 512, "{usual} KiB, then {full} KiB");
    assert!(written > u64::try_from(execs).unwrap() / 2, "{written} KiB");
    let expected = of_execs(50..50 + execs);
    let events = subscriber.until("all events", 4 * LIMIT, |events| {
        told(events).len() >= before + expected.len()
    });
    assert_eq!(told(&events)[before..], expected);
    containerd.end_task("box");
}

/// Stands in for containerd's socket for events: takes every connection and every byte, and never
/// answers.
struct Silence {
    path: PathBuf,
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<usize>>,
}

impl Silence {
    fn at(path: PathBuf) -> Self {
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            let (mut open, mut heard) = (Vec::<UnixStream>::new(), 0);
            let mut bytes = [0; 4096];
            while !end.load(Ordering::Relaxed) {
                if let Ok((connection, _)) = listener.accept() {
                    connection.set_nonblocking(true).unwrap();
                    open.push(connection);
                }
                for connection in &mut open {
                    heard += connection.read(&mut bytes).unwrap_or(0);
                }
                // One thread for all connections, so it asks one after the other.
                std::thread::sleep(Duration::from_millis(5));
            }
            heard
        });
        Self {
            path,
            over,
            thread: Some(thread),
        }
    }

    /// Ends it; the bytes it has heard.
    fn end(mut self) -> usize {
        self.over.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = std::fs::remove_file(&self.path);
    }
}

fn a_containerd_that_accepts_and_says_nothing_hears_everything(containerd: &Containerd) {
    if peer() {
        return skip("a_silent_containerd", "containerd's own shim drops events");
    }
    containerd.start_task("box", &[], &["sleep", "600"]);
    let shim = Shim::of(containerd, "box");
    containerd.kill_daemon();
    let silence = Silence::at(containerd.path("containerd.sock.ttrpc"));
    let began = Instant::now();
    execs_by_hand(&shim, 0, EXECS);
    last(began, outage(8, 60), &shim);
    assert!(silence.end() > 0, "nobody came to tell anything");
    containerd.start_daemon();
    let subscriber = Subscriber::new(containerd);
    execs_by_hand(&shim, EXECS, 1);
    let events = subscriber.until("the last event", LIMIT, |events| {
        told(events).contains(&("/tasks/exit".to_owned(), format!("exec-{EXECS}")))
    });
    let all = of_execs(0..EXECS + 1);
    let seen = told(&events);
    assert_eq!(seen, all[all.len() - seen.len()..]);
    containerd.end_task("box");
}

/// The events of a container that containerd knows nothing of, so that it says nothing of it itself.
fn a_deletion_is_told_although_its_shim_is_killed_at_once(containerd: &Containerd) {
    if peer() {
        return skip("a_deletion", "containerd's own shim loses its events");
    }
    containerd.start_task("box", &[], &["sleep", "600"]);
    let shim = Shim::of(containerd, "box");
    let other = shim.create_by_hand(containerd, "other", Any::new());
    let subscriber = Subscriber::new(containerd);
    let daemon = Pid::from_raw(containerd.pid());
    kill(daemon, Signal::SIGSTOP).unwrap();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        shim.kill("other", "", 9).unwrap();
        assert_eq!(shim.wait("other", "").unwrap(), 137);
        shim.delete("other", "").unwrap();
        // As containerd does once Delete is answered.
        std::fs::remove_dir_all(&other.path).unwrap();
        kill_for_good(shim.pid("box"));
    }));
    kill(daemon, Signal::SIGCONT).unwrap();
    result.unwrap();
    let of_other = |events: &[Event]| -> Vec<String> {
        let of_it = events
            .iter()
            .filter(|event| event.text("container_id") == "other");
        let mut topics: Vec<String> = of_it.map(|event| event.topic.clone()).collect();
        // The first one may come twice: its acknowledgement found nobody.
        topics.dedup();
        topics
    };
    let expected = ["/tasks/exit", "/tasks/delete"];
    subscriber.until("the deletion", LIMIT, |events| {
        of_other(events).ends_with(&expected.map(str::to_owned))
    });
    let _ = containerd.ctr(&["tasks", "delete", "--force", "box"]);
    containerd.ctr_ok(&["containers", "delete", "box"]);
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
        kill_for_good(shim.pid("box"));
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
