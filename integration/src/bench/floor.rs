//! The floor under all runtimes: the same kernel work done by a hundred lines of C, and the mere
//! start of a program. What a runtime takes beyond it is its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Settings;
use super::lives::CASES;
use super::peers::{self, Peer};
use super::series::Series;
use crate::scratch::text;
use crate::{leaks, place};

/// Measures and prints.
pub(super) fn run(settings: &Settings) {
    println!(
        "\n== the floor: the same life in bare C, and the start of a program that does nothing; {} rounds",
        settings.rounds
    );
    let peers = peers::all();
    let Some(ours) = peers.iter().find(|peer| peer.name == "holdfast") else {
        return println!("without the floor: ours is missing");
    };
    let program = match bare(ours) {
        Ok(program) => program,
        Err(why) => return println!("without the floor: {why}"),
    };
    let bundle = ours.scratch.bundle("floor");
    let rootfs = text(&bundle.path.join("rootfs"));
    let cgroups = cgroups(&ours.scratch.cgroup);
    let true_bundles: BTreeMap<_, _> = peers
        .iter()
        .map(|peer| {
            let bundle = CASES[0].bundle(peer).args(&["true"]);
            bundle.write();
            (peer.name, bundle)
        })
        .collect();
    let mut series: BTreeMap<String, Series> = BTreeMap::new();
    for round in 0..=settings.rounds {
        let mut add = |what: String, took| {
            if round > 0 {
                series.entry(what).or_default().push(took);
            }
        };
        let mut command = Command::new(&program);
        command.arg(&rootfs).args(&cgroups);
        add("bare C: a whole life".to_owned(), peers::timed(command));
        let mut nothing = Command::new(&program);
        nothing.env_clear().arg("--nothing");
        add("bare C: its mere start".to_owned(), peers::timed(nothing));
        for peer in &peers {
            let bundle = &true_bundles[peer.name];
            let path = text(&bundle.path);
            let words = ["run", "--bundle", &path, &bundle.id];
            let took = peer.timed(peer.scratch.command(&words));
            add(format!("{}: run, docker's profile", peer.name), took);
        }
    }
    let floor = series["bare C: a whole life"].median();
    println!("{:<34}{:>12}{:>16}", "", "median ms", "to the floor");
    for (what, times) in &series {
        let median = times.median();
        println!("{what:<34}{median:>12.2}{:>16.2}", median / floor);
    }
}

/// The C program: beside the binaries under test where somebody put it, else compiled now.
fn bare(peer: &Peer) -> Result<PathBuf, String> {
    let ready = place::built_dir().join("bare");
    if ready.exists() {
        return Ok(ready);
    }
    let compiler = place::program("gcc").ok_or("gcc is not installed")?;
    let source = peer.scratch.path("bare.c");
    fs::write(&source, include_str!("bare.c")).map_err(|e| e.to_string())?;
    let program = peer.scratch.path("bare");
    let compiled = Command::new(compiler)
        .args(["-O2", "-static", "-o"])
        .arg(&program)
        .arg(&source)
        .status()
        .map_err(|e| e.to_string())?;
    compiled
        .success()
        .then_some(program)
        .ok_or_else(|| format!("gcc: {compiled}"))
}

/// A folder in every hierarchy the machine has, below the test's own cgroup.
fn cgroups(parent: &str) -> Vec<PathBuf> {
    leaks::hierarchies()
        .iter()
        .map(|hierarchy| {
            let parent: &Path = &hierarchy.join(parent);
            fs::create_dir_all(parent).expect("cgroup");
            // v1's cpuset takes nobody in before it is told processors and memory.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(inherited) = fs::read(hierarchy.join(file)) {
                    fs::write(parent.join(file), inherited).expect(file);
                    fs::write(parent.join("cgroup.clone_children"), "1").expect("clone_children");
                }
            }
            parent.join("bare")
        })
        .collect()
}
