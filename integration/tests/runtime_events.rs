//! `events`: statistics and out-of-memory events, in the form runc has given them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Stdio;

use holdfast_integration::bundle::Bundle;
use holdfast_integration::deadline::{self, eventually};
use holdfast_integration::on_runtimes;
use holdfast_integration::runtime::Kind;
use holdfast_integration::scratch::{LIMIT, Scratch};
use serde_json::{Value, json};

// crun 1.8.1 has no such command.
on_runtimes! {
    statistics_have_the_form_of_runc: holdfast runc;
    they_are_those_of_the_cgroup: holdfast runc;
    they_come_at_intervals_until_the_end: holdfast;
    a_death_for_want_of_memory_is_told: holdfast runc;
    an_ended_container_has_none: holdfast runc;
    intervals_are_durations: holdfast runc;
}

/// Every member of the document that runc 1.1.5 can write; on v2 it has no `percpu` lists. What
/// is 0 or empty runc leaves out; holdfast writes it.
const MEMBERS: &[&str] = &[
    "/cpu/usage/total",
    "/cpu/usage/kernel",
    "/cpu/usage/user",
    "/cpu/throttling",
    "/cpuset/cpus",
    "/cpuset/cpu_exclusive",
    "/cpuset/mems",
    "/cpuset/mem_hardwall",
    "/cpuset/mem_exclusive",
    "/cpuset/memory_migrate",
    "/cpuset/memory_spread_page",
    "/cpuset/memory_spread_slab",
    "/cpuset/memory_pressure",
    "/cpuset/sched_load_balance",
    "/cpuset/sched_relax_domain_level",
    "/memory/cache",
    "/memory/usage/limit",
    "/memory/usage/usage",
    "/memory/usage/max",
    "/memory/usage/failcnt",
    "/memory/swap/limit",
    "/memory/kernel/limit",
    "/memory/kernelTCP/limit",
    "/memory/raw",
    "/pids/current",
    "/blkio",
    "/hugetlb",
    "/intel_rdt",
    "/network_interfaces",
];

/// Those of [`MEMBERS`] that runc leaves out when they are zero.
const MAY_BE_ZERO: &[&str] = &[
    "/memory/cache",
    "/memory/usage/max",
    "/cpuset/cpus",
    "/cpuset/mems",
];

fn is_v1() -> bool {
    !Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

fn running(scratch: &Scratch) -> Bundle {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    scratch.start(&bundle);
    bundle
}

fn statistics(scratch: &Scratch, bundle: &Bundle) -> Value {
    let said = scratch.call(&["events", "--stats", &bundle.id]);
    let event: Value = serde_json::from_str(said.ok()).unwrap();
    assert_eq!(event["type"], "stats");
    assert_eq!(event["id"], bundle.id.as_str());
    event["data"].clone()
}

fn statistics_have_the_form_of_runc(scratch: &Scratch) {
    let bundle = running(scratch);
    let data = statistics(scratch, &bundle);
    for path in MEMBERS {
        let optional = scratch.runtime.kind == Kind::Runc && MAY_BE_ZERO.contains(path);
        assert!(optional || data.pointer(path).is_some(), "{path} in {data}");
    }
    // Nothing has a member that the other kind of reader would not know.
    let known: BTreeSet<&str> = [
        "cpu",
        "cpuset",
        "memory",
        "pids",
        "blkio",
        "hugetlb",
        "intel_rdt",
        "network_interfaces",
    ]
    .into();
    let members: BTreeSet<&str> = data
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(members, known);
    if is_v1() {
        for list in ["percpu", "percpu_kernel", "percpu_user"] {
            let values = data["cpu"]["usage"][list].as_array().unwrap();
            assert_eq!(values.len(), cpus(), "{list}");
        }
    }
    scratch.end(&bundle);
}

/// How many CPUs the accounting of v1 counts: the possible ones.
fn cpus() -> usize {
    let text = fs::read_to_string("/sys/fs/cgroup/cpuacct/cpuacct.usage_percpu").unwrap();
    text.split_whitespace().count()
}

fn they_are_those_of_the_cgroup(scratch: &Scratch) {
    // Some kernels count whole ticks only (User-Mode Linux): it uses some.
    let busy = scratch.bundle("box").script("while :; do :; done");
    let bundle = busy.with(|spec| {
        spec["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
        spec["linux"]["resources"]["pids"] = json!({"limit": 17});
    });
    scratch.start(&bundle);
    let data = statistics(scratch, &bundle);
    assert_eq!(data["memory"]["usage"]["limit"], 64 << 20);
    assert!(data["memory"]["usage"]["usage"].as_u64().unwrap() > 0);
    assert_eq!(data["pids"], json!({"current": 1, "limit": 17}));
    let raw = data["memory"]["raw"].as_object().unwrap();
    assert!(
        raw.contains_key("pgfault") && raw.contains_key("active_anon"),
        "{raw:?}"
    );
    deadline::eventually("time used", LIMIT, || {
        let data = statistics(scratch, &bundle);
        (data["cpu"]["usage"]["total"].as_u64().unwrap() > 0).then_some(())
    });
    scratch.end(&bundle);
}

/// Follows the events into a file.
fn follow(
    scratch: &Scratch,
    bundle: &Bundle,
    interval: &str,
) -> (std::process::Child, std::path::PathBuf) {
    let file = scratch.path("events");
    let child = scratch
        .command(&["events", "--interval", interval, &bundle.id])
        .stdin(Stdio::null())
        .stdout(fs::File::create(&file).unwrap())
        .spawn()
        .unwrap();
    (child, file)
}

fn types(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap();
    // The last line may be half written.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole
        .lines()
        .map(|line| {
            let event: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
            event["type"].as_str().unwrap().to_owned()
        })
        .collect()
}

// runc does not end by itself when the container does, only when its cgroup is removed.
fn they_come_at_intervals_until_the_end(scratch: &Scratch) {
    let bundle = running(scratch);
    let (mut child, file) = follow(scratch, &bundle, "50ms");
    eventually("three statistics", LIMIT, || {
        (types(&file).len() >= 3).then_some(())
    });
    scratch.end(&bundle);
    let status = deadline::wait(&mut child, LIMIT).expect("the end of events");
    assert!(status.success(), "{status}");
    assert!(types(&file).iter().all(|kind| kind == "stats"));
}

fn a_death_for_want_of_memory_is_told(scratch: &Scratch) {
    // A line without end is kept in memory; what takes the memory is not the init process.
    let bundle = scratch
        .bundle("box")
        .script("mkfifo /go; read x </go; head -c 256m /dev/zero | tail -n 1 >/dev/null; sleep 600")
        .with(|spec| {
            spec["linux"]["resources"]["memory"] = json!({"limit": 32 << 20, "swap": 32 << 20});
        });
    let pid = scratch.start(&bundle);
    let go = bundle.in_rootfs("/go");
    eventually("the fifo", LIMIT, || go.exists().then_some(()));
    let (mut child, file) = follow(scratch, &bundle, "100ms");
    // Its first statistics come after it has registered for the events.
    eventually("it watches", LIMIT, || {
        (!types(&file).is_empty()).then_some(())
    });
    fs::write(&go, "go\n").unwrap();
    eventually("an oom event", LIMIT, || {
        types(&file).contains(&"oom".to_owned()).then_some(())
    });
    // Whom the kernel chooses next, while the memory of the first is not free yet, may be init.
    scratch.call(&["delete", "--force", &bundle.id]).ok();
    scratch.exit_of(pid);
    let ended = deadline::wait(&mut child, LIMIT);
    assert!(ended.is_some(), "events goes on without a container");
}

fn an_ended_container_has_none(scratch: &Scratch) {
    let bundle = scratch.bundle("ended").args(&["true"]);
    let pid = scratch.start(&bundle);
    scratch.exit_of(pid);
    for words in [&["events", "--stats", "ended"][..], &["events", "ended"]] {
        let told = scratch.call(words).failed().to_owned();
        assert!(told.contains("not running"), "{told}");
    }
    scratch.call(&["delete", &bundle.id]).ok();
}

fn intervals_are_durations(scratch: &Scratch) {
    let bundle = running(scratch);
    for wrong in ["0s", "-1s", "soon"] {
        scratch
            .call(&["events", "--interval", wrong, &bundle.id])
            .failed();
    }
    scratch.end(&bundle);
}
