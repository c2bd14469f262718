//! What a shim holds: memory, threads, descriptors.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use super::super::series::{Series, Table};
use super::{Side, of, speed};
use crate::bundle::Bundle;
use crate::containerd::Containerd;
use crate::shim::empty_options;

/// Containers of the pod that is compared with a single one.
const POD: usize = 10;
/// Execs after which a shim must hold what it held before; [`LONG`] asks for all.
const EXECS: usize = 2_000;
const ALL_EXECS: usize = 20_000;
const LONG: &str = "HOLDFAST_LONG";

/// KiB, as `smaps_rollup` has them, and two counts.
#[derive(Debug, Clone, Copy)]
struct Held {
    pss: f64,
    private: f64,
    dirty: f64,
    rss: f64,
    threads: f64,
    descriptors: f64,
}

impl Held {
    /// What a shim holds; its memory with that of its keeper, which nobody else has.
    fn by(pid: i32) -> Self {
        let own = Self::by_alone(pid);
        match crate::shim::keeper_of(pid).map(Self::by_alone) {
            Some(keeper) => Self {
                pss: own.pss + keeper.pss,
                private: own.private + keeper.private,
                dirty: own.dirty + keeper.dirty,
                rss: own.rss + keeper.rss,
                ..own
            },
            None => own,
        }
    }

    fn by_alone(pid: i32) -> Self {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps_rollup");
        let field = |name: &str| -> f64 {
            rollup
                .lines()
                .find_map(|line| {
                    let rest = line.strip_prefix(name)?;
                    rest.split_whitespace().next()?.parse().ok()
                })
                .unwrap_or(f64::NAN)
        };
        let entries = |folder: &str| {
            let entries = fs::read_dir(format!("/proc/{pid}/{folder}")).expect("proc");
            f64::from(u32::try_from(entries.count()).expect("few"))
        };
        Self {
            pss: field("Pss:"),
            private: field("Private_Clean:") + field("Private_Dirty:"),
            dirty: field("Private_Dirty:"),
            rss: field("Rss:"),
            threads: entries("task"),
            descriptors: entries("fd"),
        }
    }
}

type Value = fn(&Held) -> f64;

const LINES: [(&str, Value); 7] = [
    ("private KiB", |held| held.private),
    ("  of it dirty: lost to the node", |held| held.dirty),
    ("  of it pages of files", |held| held.private - held.dirty),
    ("PSS KiB", |held| held.pss),
    ("RSS KiB", |held| held.rss),
    ("threads", |held| held.threads),
    ("descriptors", |held| held.descriptors),
];

fn held(sides: &[Side]) -> Vec<(&'static str, Held)> {
    sides
        .iter()
        .map(|side| (side.name, Held::by(side.pid)))
        .collect()
}

fn print(table: &Table<'_>, when: &str, values: &[(&'static str, Held)]) {
    for (what, value) in LINES {
        table.row(&format!("{what}, {when}"), &|name| of(values, name, value));
    }
}

/// By then a shim that nobody asks is idle; ours sees that after two to four seconds.
const UNTIL_IDLE: Duration = Duration::from_secs(5);
/// Answers of each shim, before and after it was idle.
const ANSWERS: u32 = 8;

/// What the first question costs after a while without any, and what the next one does.
fn waking(table: &Table<'_>, sides: &[Side]) {
    let mut first: Vec<(&str, Series)> = Vec::new();
    let mut next: Vec<(&str, Series)> = Vec::new();
    for side in sides {
        first.push((side.name, Series::default()));
        next.push((side.name, Series::default()));
    }
    for _ in 0..ANSWERS {
        thread::sleep(UNTIL_IDLE);
        for (index, side) in sides.iter().enumerate() {
            for series in [&mut first, &mut next] {
                let began = Instant::now();
                side.shim.state(&side.id, "").expect("State");
                series[index].1.push(began.elapsed());
            }
        }
    }
    table.row("State, after 5 s without, ms", &|name| {
        of(&first, name, Series::median)
    });
    table.row("State, at once after it, ms", &|name| {
        of(&next, name, Series::median)
    });
}

/// Each alone on the node, then with a second shim of its kind: program text is private to the
/// only process that runs it.
pub(super) fn idle(table: &Table<'_>, containerd: &mut Containerd, sides: &[Side]) {
    waking(table, sides);
    print(table, "alone, just asked", &held(sides));
    thread::sleep(UNTIL_IDLE);
    print(table, "alone, idle", &held(sides));
    let more = Side::both(containerd, "two");
    thread::sleep(UNTIL_IDLE);
    print(table, "one of two", &held(sides));
    for side in &more {
        containerd.end_task(&side.id);
    }
}

/// How much nine more containers in the same shim cost.
pub(super) fn pod(table: &Table<'_>, containerd: &Containerd, sides: &[Side]) {
    let before = held(sides);
    let mut bundles: Vec<(usize, Bundle)> = Vec::new();
    for number in 1..POD {
        for (index, side) in sides.iter().enumerate() {
            let id = format!("pod-{}-{number}", side.name);
            let bundle = side.shim.bundle_by_hand(containerd, &id);
            bundle.write();
            side.shim.create(&bundle, empty_options()).expect("Create");
            side.shim.start(&id, "").expect("Start");
            bundles.push((index, bundle));
        }
    }
    let after = held(sides);
    table.row(&format!("private KiB more, pod of {POD}"), &|name| {
        Some(of(&after, name, |held| held.private)? - of(&before, name, |held| held.private)?)
    });
    for (index, bundle) in bundles {
        let shim = &sides[index].shim;
        shim.kill(&bundle.id, "", 9).expect("Kill");
        assert_eq!(shim.wait(&bundle.id, "").expect("Wait"), 137);
        shim.delete(&bundle.id, "").expect("Delete");
    }
}

/// What is held after very many execs: containerd's own shim gets a tenth of them, as it takes its
/// time.
pub(super) fn after_many_execs(table: &Table<'_>, sides: &[Side]) {
    let execs = if std::env::var_os(LONG).is_some_and(|long| long == "1") {
        ALL_EXECS
    } else {
        EXECS
    };
    let before = held(sides);
    for side in sides {
        let share = if side.name == "holdfast" {
            execs / 8
        } else {
            execs / 80
        };
        thread::scope(|scope| {
            for worker in 0..8 {
                scope.spawn(move || {
                    for number in 0..share {
                        let exec_id = format!("many-{worker}-{number}");
                        speed::exec(&side.shim, &side.id, &exec_id);
                    }
                });
            }
        });
    }
    let after = held(sides);
    for (what, value) in LINES {
        table.row(&format!("{what}, {execs} execs"), &|name| {
            of(&after, name, value)
        });
        table.row("    more than before", &|name| {
            Some(of(&after, name, value)? - of(&before, name, value)?)
        });
    }
}
