//! The shims: one exec, memory, threads, under the same containerd.

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use super::Settings;
use super::series::Series;
use crate::containerd::{Containerd, Extra, Version};
use crate::shim::Shim;

/// Measures and prints.
pub(super) fn run(settings: &Settings) {
    let execs = settings.rounds * 3 / 2;
    let extra = Extra::default();
    let started = [Version::V2_1, Version::V1_6]
        .into_iter()
        .find_map(|version| Containerd::start(version, "bench of the shims", &extra));
    let Some(mut containerd) = started else {
        return println!("\nwithout shims: no containerd is to be had");
    };
    println!(
        "\n== shims under the same containerd ({:?}), one container each",
        containerd.version
    );
    let types = [
        ("holdfast", "io.containerd.holdfast.v2"),
        ("runc", "io.containerd.runc.v2"),
    ];
    let mut shims = Vec::new();
    for (name, runtime_type) in types {
        containerd.runtime_type = runtime_type.to_owned();
        containerd.start_task(name, &[], &["sleep", "6000"]);
        shims.push((name, Shim::of(&containerd, name)));
    }
    let mut latency: BTreeMap<&str, Series> = BTreeMap::new();
    let idle: BTreeMap<&str, Memory> = shims
        .iter()
        .map(|(name, shim)| (*name, memory(shim.pid(name))))
        .collect();
    for round in 0..=execs {
        for (name, shim) in &shims {
            let exec = format!("exec-{round}");
            let started = Instant::now();
            shim.exec(name, &exec, &["true"]).expect("Exec");
            shim.start(name, &exec).expect("Start");
            assert_eq!(shim.wait(name, &exec).expect("Wait"), 0);
            shim.delete(name, &exec).expect("Delete");
            if round > 0 {
                latency.entry(name).or_default().push(started.elapsed());
            }
        }
    }
    let after: BTreeMap<&str, Memory> = shims
        .iter()
        .map(|(name, shim)| (*name, memory(shim.pid(name))))
        .collect();
    println!(
        "{:<34}{:>12}{:>12}   ours to theirs",
        "", "holdfast", "runc-v2"
    );
    let row = |what: &str, value: &dyn Fn(&str) -> f64| {
        let (ours, theirs) = (value("holdfast"), value("runc"));
        println!(
            "{what:<34}{ours:>12.2}{theirs:>12.2}   {:.2}",
            ours / theirs
        );
    };
    row(&format!("exec of true, median ms of {execs}"), &|name| {
        latency[name].median()
    });
    for (when, measured) in [("idle", &idle), ("after the execs", &after)] {
        row(&format!("PSS KiB, {when}"), &|name| measured[name].pss);
        row(&format!("private KiB, {when}"), &|name| {
            measured[name].private
        });
        row(&format!("RSS KiB, {when}"), &|name| measured[name].rss);
        row(&format!("threads, {when}"), &|name| measured[name].threads);
    }
    for (name, _) in types {
        containerd.end_task(name);
    }
    containerd.assert_nothing_left();
}

struct Memory {
    pss: f64,
    private: f64,
    rss: f64,
    threads: f64,
}

fn memory(pid: i32) -> Memory {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps_rollup");
    let field = |name: &str| -> f64 {
        rollup
            .lines()
            .find_map(|line| {
                line.strip_prefix(name)?
                    .split_whitespace()
                    .next()?
                    .parse()
                    .ok()
            })
            .unwrap_or(f64::NAN)
    };
    let threads = fs::read_dir(format!("/proc/{pid}/task"))
        .expect("task")
        .count();
    Memory {
        pss: field("Pss:"),
        private: field("Private_Clean:") + field("Private_Dirty:"),
        rss: field("Rss:"),
        threads: f64::from(u32::try_from(threads).expect("few threads")),
    }
}
