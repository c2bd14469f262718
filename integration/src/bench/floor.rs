//! The floor under all runtimes: the same kernel work done by a hundred lines of C, and the mere
//! start of a program. What a runtime takes beyond it is its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Settings;
use super::calls;
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
    let bare = |words: &[&str]| {
        let mut command = Command::new(&program);
        command.env_clear().args(words);
        command
    };
    let life = |words: &[&str]| {
        let mut command = bare(words);
        command.args(&cgroups);
        command
    };
    let mut rows = vec![
        Row::new("bare C: its mere start", ours, || bare(&["--nothing"])),
        Row::new("bare C: a whole life", ours, || life(&[&rootfs])),
        Row::new("bare C: with an init to execute", ours, || {
            life(&["--twice", &rootfs])
        }),
    ];
    for peer in &peers {
        let bundle = CASES[0].bundle(peer).args(&["true"]);
        bundle.write();
        let path = text(&bundle.path);
        let what = format!("{}: run, docker's profile", peer.name);
        rows.push(Row::new(&what, peer, move || {
            let words = ["run", "--bundle", &path, &bundle.id];
            peer.scratch.command(&words)
        }));
    }
    for round in 0..=settings.rounds {
        for row in &mut rows {
            row.measure(round > 0);
        }
    }
    print_rows(&rows, prices(&bare(&["--prices"])));
}

/// What one of those compared does, and what it took.
struct Row<'a> {
    what: String,
    peer: &'a Peer,
    command: Box<dyn Fn() -> Command + 'a>,
    times: Series,
    faults: i64,
}

impl<'a> Row<'a> {
    fn new(what: &str, peer: &'a Peer, command: impl Fn() -> Command + 'a) -> Self {
        Self {
            what: what.to_owned(),
            peer,
            command: Box::new(command),
            times: Series::default(),
            faults: 0,
        }
    }

    /// The faults of the last round are those of all: they differ by a few.
    fn measure(&mut self, counts: bool) {
        let before = peers::children_faults();
        let took = self.peer.timed((self.command)());
        self.faults = peers::children_faults() - before;
        if counts {
            self.times.push(took);
        }
    }

    /// System calls of all of its processes.
    fn calls(&self) -> Option<u64> {
        let strace = place::program("strace")?;
        let log = self.peer.scratch.path("floor-calls");
        self.peer
            .timed(calls::under(&strace, &log, (self.command)()));
        Some(calls::read(&log).values().sum())
    }
}

/// What a system call, a page fault, and one in a program's file take here at least, in milliseconds.
fn prices(ask: &Command) -> Option<[f64; 3]> {
    let told = Command::new(ask.get_program())
        .args(ask.get_args())
        .output();
    let told = String::from_utf8(told.ok()?.stdout).ok()?;
    let numbers: Option<Vec<f64>> = told
        .split_whitespace()
        .map(|word| Some(word.parse::<f64>().ok()? / 1e6))
        .collect();
    numbers?.try_into().ok()
}

fn print_rows(rows: &[Row<'_>], prices: Option<[f64; 3]>) {
    let floor = rows[1].times.median();
    println!(
        "{:<34}{:>11}{:>14}{:>10}{:>14}{:>13}{:>13}",
        "", "median ms", "to the floor", "least ms", "system calls", "page faults", "of both, ms"
    );
    for row in rows {
        let median = row.times.median();
        let calls = row.calls();
        let said = |number: Option<String>| number.unwrap_or_else(|| "-".to_owned());
        let both = prices
            .zip(calls)
            .map(|([call, fault, _], calls)| call * calls as f64 + fault * row.faults as f64);
        println!(
            "{:<34}{median:>11.2}{:>14.2}{:>10.2}{:>14}{:>13}{:>13}",
            row.what,
            median / floor,
            row.times.least(),
            said(calls.map(|calls| calls.to_string())),
            row.faults,
            said(both.map(|both| format!("{both:.2}"))),
        );
    }
    if let Some([call, fault, of_file]) = prices.map(|prices| prices.map(|price| price * 1e3)) {
        println!(
            "least times: a system call {call:.2} us, a page fault {fault:.2} us, one in a program's file {of_file:.2} us"
        );
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
