//! `make bench`: side by side in one run, alternating, as medians with ratios.
//!
//! Absolute times are those of a noisy machine; the ratios of one run are what counts.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use holdfast_integration::bundle::Bundle;
use holdfast_integration::containerd::{Containerd, Extra, Version};
use holdfast_integration::runtime::{Kind, Runtime, with_hidden_hybrid};
use holdfast_integration::scratch::{Scratch, text};
use holdfast_integration::shim::Shim;
use holdfast_integration::{deadline, place};

const ROUNDS: usize = 40;
const EXECS: usize = 60;

fn main() {
    let rounds = std::env::args()
        .nth(1)
        .and_then(|word| word.parse().ok())
        .unwrap_or(ROUNDS);
    let runtimes = scratches();
    for docker in [true, false] {
        lives(&runtimes, docker, rounds);
    }
    first_creates(&runtimes, rounds);
    calls(&runtimes);
    for scratch in runtimes.values() {
        scratch.assert_nothing_left();
    }
    drop(runtimes);
    shims(rounds.min(EXECS) * EXECS / ROUNDS);
}

/// crun refuses a hybrid cgroup mount and is started where that is hidden. The others are not:
/// they do without, and see the machine as it is.
fn inside<T: Send>(scratch: &Scratch, work: impl FnOnce() -> T + Send) -> T {
    match scratch.runtime.kind {
        Kind::Crun => with_hidden_hybrid(work),
        Kind::Holdfast | Kind::Runc => work(),
    }
}

fn scratches() -> BTreeMap<&'static str, Scratch> {
    let mut found = BTreeMap::new();
    for name in ["holdfast", "runc", "crun"] {
        match Runtime::find(Kind::named(name)) {
            Ok(runtime) => {
                found.insert(name, Scratch::new(runtime.bare()));
            }
            Err(why) => println!("without {name}: {why}"),
        }
    }
    found
}

/// Durations of one quantity, one per round.
#[derive(Default)]
struct Series(Vec<Duration>);

impl Series {
    fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        sorted
            .get(sorted.len() / 2)
            .map_or(f64::NAN, |d| d.as_secs_f64() * 1000.0)
    }
}

fn timed(scratch: &Scratch, mut command: Command) -> Duration {
    // Errors of the runtimes are for whoever runs this.
    command.stdin(Stdio::null()).stdout(Stdio::null());

    let (status, took) = inside(scratch, || {
        let started = Instant::now();
        let status = command.status().expect("start");
        (status, started.elapsed())
    });
    assert!(status.success(), "{command:?}: {status}");
    took
}

fn lives(runtimes: &BTreeMap<&'static str, Scratch>, docker: bool, rounds: usize) {
    let with = if docker {
        "with docker's seccomp profile"
    } else {
        "without a seccomp profile"
    };
    println!("\n== create, start, delete of /bin/true, {with}: {rounds} rounds, alternating");
    let bundles: BTreeMap<_, _> = runtimes
        .iter()
        .map(|(name, scratch)| {
            let bundle = scratch.bundle(if docker { "docker" } else { "plain" });
            let bundle = if docker {
                bundle.docker_seccomp()
            } else {
                bundle
            };
            bundle.write();
            (*name, bundle)
        })
        .collect();
    let mut series: BTreeMap<(&str, &str), Series> = BTreeMap::new();
    // The first round warms caches and is not counted.
    for round in 0..=rounds {
        for (name, scratch) in runtimes {
            let bundle = &bundles[name];
            let pid_file = text(&scratch.path("bench.pid"));
            let path = text(&bundle.path);
            let id = bundle.id.as_str();
            let create = timed(
                scratch,
                scratch.command(&["create", "--bundle", &path, "--pid-file", &pid_file, id]),
            );
            let start = timed(scratch, scratch.command(&["start", id]));
            let pid: i32 = fs::read_to_string(&pid_file)
                .unwrap()
                .trim()
                .parse()
                .unwrap();
            assert_eq!(scratch.exit_of(pid), 0);
            let delete = timed(scratch, scratch.command(&["delete", id]));
            if round > 0 {
                for (step, took) in [
                    ("create", create),
                    ("start", start),
                    ("delete", delete),
                    ("create+start", create + start),
                    ("all", create + start + delete),
                ] {
                    series.entry((step, name)).or_default().0.push(took);
                }
            }
        }
    }
    print!("{:<14}", "median ms");
    for name in runtimes.keys() {
        print!("{name:>12}");
    }
    println!("   holdfast is to the others as");
    for step in ["create", "start", "delete", "create+start", "all"] {
        print!("{step:<14}");
        let median = |name: &str| series.get(&(step, name)).map(Series::median);
        for name in runtimes.keys() {
            print!("{:>12.2}", median(name).unwrap_or(f64::NAN));
        }
        print_ratios(&|name| median(name), &["runc", "crun"]);
    }
}

/// Runtimes may keep filters they have compiled: here every root is new, so none can.
fn first_creates(runtimes: &BTreeMap<&'static str, Scratch>, rounds: usize) {
    println!("\n== the first create in a new runtime root, with docker's profile: {rounds} rounds");
    let mut series: BTreeMap<&str, Series> = BTreeMap::new();
    let bundles: BTreeMap<_, _> = runtimes
        .iter()
        .map(|(name, scratch)| (*name, scratch.bundle("first").docker_seccomp()))
        .collect();
    bundles.values().for_each(Bundle::write);
    for round in 0..=rounds {
        for (name, scratch) in runtimes {
            let bundle = &bundles[name];
            let root = scratch.path(&format!("root-{round}"));
            let path = text(&bundle.path);
            let words = ["create", "--bundle", &path, &bundle.id];
            let took = timed(scratch, scratch.command_at(&root, &words));
            timed(
                scratch,
                scratch.command_at(&root, &["delete", "--force", &bundle.id]),
            );
            if round > 0 {
                series.entry(name).or_default().0.push(took);
            }
        }
    }
    print!("{:<14}", "median ms");
    for name in runtimes.keys() {
        print!("{:>15}", format!("{name} {:.1}", series[name].median()));
    }
    print_ratios(
        &|name| series.get(name).map(Series::median),
        &["runc", "crun"],
    );
}

fn print_ratios(value: &dyn Fn(&str) -> Option<f64>, others: &[&str]) {
    print!("  ");
    if let Some(ours) = value("holdfast") {
        for other in others {
            if let Some(theirs) = value(other) {
                print!(" {:.2} to {other}", ours / theirs);
            }
        }
    }
    println!();
}

fn calls(runtimes: &BTreeMap<&'static str, Scratch>) {
    let Some(strace) = place::program("strace") else {
        return println!("\nwithout system calls: strace is not installed");
    };
    println!("\n== system calls of `run` of /bin/true, all processes, one run each (strace -f -c)");
    println!("{:<34}{:>10}{:>10}{:>10}", "", "calls", "clones", "execs");
    for docker in [true, false] {
        for (name, scratch) in runtimes {
            let bundle = scratch.bundle(if docker {
                "calls-docker"
            } else {
                "calls-plain"
            });
            let bundle = if docker {
                bundle.docker_seccomp()
            } else {
                bundle
            };
            bundle.write();
            let counts = scratch.path("counts");
            let call = scratch.command(&["run", "--bundle", &text(&bundle.path), &bundle.id]);
            let mut traced = Command::new(&strace);
            traced
                .args(["-f", "-qq", "-c", "-U", "calls,name", "-o"])
                .arg(&counts)
                .arg("--");
            traced.arg(call.get_program()).args(call.get_args());
            for (key, value) in call.get_envs() {
                traced.env(key, value.unwrap_or_default());
            }
            inside(scratch, || {
                deadline::run(&mut traced, Duration::from_secs(60))
            })
            .ok();
            let counts = fs::read_to_string(counts).unwrap();
            let count = |wanted: &[&str]| -> u64 {
                counts
                    .lines()
                    .filter_map(|line| {
                        let mut words = line.split_whitespace();
                        let calls: u64 = words.next()?.parse().ok()?;
                        wanted.contains(&words.next()?).then_some(calls)
                    })
                    .sum()
            };
            let profile = if docker {
                "with the profile"
            } else {
                "without"
            };
            println!(
                "{:<34}{:>10}{:>10}{:>10}",
                format!("{name}, {profile}"),
                count(&["total"]),
                count(&["clone", "clone3", "fork", "vfork"]),
                count(&["execve", "execveat"]),
            );
        }
    }
}

fn shims(execs: usize) {
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
                latency.entry(name).or_default().0.push(started.elapsed());
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
