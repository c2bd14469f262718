//! Time namespaces: offsets as asked, for init and for exec, and what cannot be is refused.

use std::fs;

use holdfast_integration::bundle::Bundle;
use holdfast_integration::on_runtimes;
use holdfast_integration::scratch::Scratch;
use serde_json::json;

// runc 1.1.5 does not know time namespaces; crun 1.8.1 knows them, but its own channel breaks
// ("write to sync socket: Broken pipe") or the offsets get lost on Linux 6.18.
on_runtimes! {
    a_new_time_namespace_has_the_offsets_asked_for: holdfast;
    exec_has_the_same_clocks: holdfast;
    offsets_inside_a_user_namespace: holdfast;
    a_time_namespace_without_offsets_is_a_new_one: holdfast;
    a_time_namespace_is_joined: holdfast;
    offsets_that_cannot_be_are_refused: holdfast;
}

const DAYS: u64 = 50 * 86400;

/// Seconds since boot as the host counts them.
fn uptime() -> u64 {
    seconds(&fs::read_to_string("/proc/uptime").unwrap())
}

fn seconds(text: &str) -> u64 {
    text.split('.').next().unwrap().trim().parse().unwrap()
}

fn shifted(scratch: &Scratch, name: &str) -> Bundle {
    scratch
        .bundle(name)
        .namespace("time", None)
        .with(|spec| {
            spec["linux"]["timeOffsets"] = json!({
                "boottime": {"secs": DAYS, "nanosecs": 7},
                "monotonic": {"secs": 1000},
            });
        })
        .args(&["sleep", "600"])
}

#[track_caller]
fn assert_shifted(seen: u64, before: u64) {
    assert!(
        (before + DAYS..=uptime() + DAYS + 1).contains(&seen),
        "{seen} was seen, {before} plus {DAYS} was to be expected"
    );
}

/// What the kernel's table says, one clock a line: name, seconds, nanoseconds.
fn table(text: &str) -> Vec<String> {
    let line = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    text.lines().map(line).collect()
}

fn a_new_time_namespace_has_the_offsets_asked_for(scratch: &Scratch) {
    let before = uptime();
    let bundle = shifted(scratch, "box").script("cat /proc/uptime /proc/self/timens_offsets");
    let ran = scratch.run(&bundle);
    let (first, rest) = ran.ok().split_once('\n').unwrap();
    assert_shifted(seconds(first), before);
    assert_eq!(table(rest), ["monotonic 1000 0", "boottime 4320000 7"]);
}

fn exec_has_the_same_clocks(scratch: &Scratch) {
    let before = uptime();
    let bundle = shifted(scratch, "box");
    let pid = scratch.start(&bundle);
    let seen = scratch.exec(&bundle, &["cat", "/proc/uptime"]);
    assert_shifted(seconds(seen.ok()), before);
    let init = fs::read_link(format!("/proc/{pid}/ns/time")).unwrap();
    let children = fs::read_link(format!("/proc/{pid}/ns/time_for_children")).unwrap();
    assert_eq!(init, children);
    let exec = scratch.exec(&bundle, &["readlink", "/proc/self/ns/time"]);
    assert_eq!(exec.ok().trim(), init.to_str().unwrap());
    scratch.end(&bundle);
}

fn offsets_inside_a_user_namespace(scratch: &Scratch) {
    let before = uptime();
    let bundle = shifted(scratch, "box").user_namespace(100_000);
    scratch.start(&bundle);
    let seen = scratch.exec(&bundle, &["cat", "/proc/uptime"]);
    assert_shifted(seconds(seen.ok()), before);
    scratch.end(&bundle);
}

fn a_time_namespace_without_offsets_is_a_new_one(scratch: &Scratch) {
    let bundle = scratch.bundle("box").namespace("time", None);
    let ran = scratch.run(&bundle.args(&["readlink", "/proc/self/ns/time"]));
    let own = fs::read_link("/proc/self/ns/time").unwrap();
    assert_ne!(ran.ok().trim(), own.to_str().unwrap());
}

fn a_time_namespace_is_joined(scratch: &Scratch) {
    let before = uptime();
    let first = shifted(scratch, "first");
    let pid = scratch.start(&first);
    let path = format!("/proc/{pid}/ns/time");
    let second = scratch.bundle("second").namespace("time", Some(&path));
    let ran = scratch.run(&second.args(&["cat", "/proc/uptime"]));
    assert_shifted(seconds(ran.ok()), before);
    scratch.end(&first);
}

fn offsets_that_cannot_be_are_refused(scratch: &Scratch) {
    let without = scratch
        .bundle("without")
        .with(|spec| spec["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1}}));
    let unknown = shifted(scratch, "unknown")
        .with(|spec| spec["linux"]["timeOffsets"] = json!({"realtime": {"secs": 1}}));
    // Before the machine's own boot: the kernel has the last word.
    let negative = shifted(scratch, "negative").with(|spec| {
        spec["linux"]["timeOffsets"] = json!({"boottime": {"secs": -4_000_000_000i64}})
    });
    for (bundle, words) in [
        (without, "linux.timeOffsets: need a new time namespace"),
        (unknown, "\"realtime\" is not a clock"),
        (negative, "boottime -4000000000 0"),
    ] {
        let ran = scratch.run(&bundle);
        assert_ne!(ran.code(), 0, "{ran}");
        assert!(ran.stderr.contains(words), "{ran}");
    }
}
