//! How fast: whole lives, execs one after the other and eight at once.

use std::thread;
use std::time::{Duration, Instant};

use super::super::Settings;
use super::super::series::{Series, Table};
use super::{Side, of};
use crate::containerd::Containerd;
use crate::shim::{Shim, empty_options, keeper_of};

/// Execs at once.
const WIDTH: usize = 8;
/// Execs of each of them, per round.
const EACH: usize = 8;

pub(super) fn run(
    table: &Table<'_>,
    settings: &Settings,
    containerd: &mut Containerd,
    sides: &[Side],
) {
    let mut lives: Vec<(&str, Series)> = Vec::new();
    let mut commands: Vec<(&str, Series)> = Vec::new();
    let mut execs: Vec<(&str, Series)> = Vec::new();
    let mut rates: Vec<(&str, f64)> = Vec::new();
    let mut costs: Vec<(&str, Cost)> = Vec::new();
    for side in sides {
        lives.push((side.name, Series::default()));
        commands.push((side.name, Series::default()));
        execs.push((side.name, Series::default()));
        rates.push((side.name, 0.0));
        costs.push((side.name, Cost::default()));
    }
    for round in 0..=settings.rounds {
        for (index, side) in sides.iter().enumerate() {
            let life = life(containerd, side, round);
            let command = command(containerd, side, round);
            let one = exec(&side.shim, &side.id, &format!("exec-{round}"));
            if round > 0 {
                lives[index].1.push(life);
                commands[index].1.push(command);
                execs[index].1.push(one);
            }
            if round % 8 == 1 {
                let before = Cost::of(side);
                rates[index].1 = rates[index].1.max(rate(side, round));
                costs[index].1.add(Cost::of(side), before);
            }
        }
    }
    table.row("life in a shim, ms", &|name| {
        of(&lives, name, Series::median)
    });
    table.row("`ctr run --rm true`, ms", &|name| {
        of(&commands, name, Series::median)
    });
    table.row("exec of true, ms", &|name| of(&execs, name, Series::median));
    table.row("8 at once, execs per s", &|name| {
        of(&rates, name, |rate| *rate)
    });
    // On so many processors as there are, these are what the rate above is made of.
    table.row("  CPU ms of each: shim", &|name| {
        of(&costs, name, |cost| cost.per_exec(cost.shim))
    });
    table.row("  runtime and process", &|name| {
        of(&costs, name, |cost| cost.per_exec(cost.children))
    });
    table.row("  keeper", &|name| {
        of(&costs, name, |cost| cost.per_exec(cost.keeper))
    });
}

/// Processor time, in ticks of the kernel's clock.
#[derive(Debug, Default, Clone, Copy)]
struct Cost {
    shim: u64,
    /// Those that the shim has waited for, with all of theirs.
    children: u64,
    keeper: u64,
    execs: usize,
}

impl Cost {
    /// So far.
    fn of(side: &Side) -> Self {
        // proc_pid_stat(5): utime and stime are fields 14 and 15, those of children 16 and 17; the name is the second.
        let ticks = |pid: i32| -> [u64; 4] {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
            let (_, rest) = stat.rsplit_once(") ").expect("a line of /proc");
            let fields: Vec<&str> = rest.split(' ').collect();
            [14, 15, 16, 17].map(|field| fields[field - 3].parse().expect("a number"))
        };
        let shim = side.shim.pid(&side.id);
        let [user, system, of_children, in_kernel] = ticks(shim);
        let keeper = keeper_of(shim).map_or(0, |pid| ticks(pid)[..2].iter().sum());
        Self {
            shim: user + system,
            children: of_children + in_kernel,
            keeper,
            execs: 0,
        }
    }

    fn add(&mut self, after: Self, before: Self) {
        self.shim += after.shim - before.shim;
        self.children += after.children - before.children;
        self.keeper += after.keeper - before.keeper;
        self.execs += WIDTH * EACH;
    }

    fn per_exec(&self, ticks: u64) -> f64 {
        let a_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK);
        let a_second = a_second.ok().flatten().unwrap_or(100);
        ticks as f64 * 1000.0 / a_second as f64 / self.execs as f64
    }
}

/// Create, start, exit and delete of a short container over the shim's API.
fn life(containerd: &Containerd, side: &Side, round: usize) -> Duration {
    let id = format!("life-{}-{round}", side.name);
    let bundle = side.shim.bundle_by_hand(containerd, &id).args(&["true"]);
    bundle.write();
    let began = Instant::now();
    side.shim.create(&bundle, empty_options()).expect("Create");
    side.shim.start(&id, "").expect("Start");
    assert_eq!(side.shim.wait(&id, "").expect("Wait"), 0);
    side.shim.delete(&id, "").expect("Delete");
    began.elapsed()
}

/// The same as a client sees it: snapshot, shim and clean-up included.
fn command(containerd: &mut Containerd, side: &Side, round: usize) -> Duration {
    side.runtime_type.clone_into(&mut containerd.runtime_type);
    let id = format!("client-{}-{round}", side.name);
    let began = Instant::now();
    containerd.run(&id, &["--rm", "--null-io"], &["true"]).ok();
    began.elapsed()
}

/// One whole cycle.
pub(super) fn exec(shim: &Shim, id: &str, exec_id: &str) -> Duration {
    let began = Instant::now();
    shim.exec(id, exec_id, &["true"]).expect("Exec");
    shim.start(id, exec_id).expect("Start");
    assert_eq!(shim.wait(id, exec_id).expect("Wait"), 0);
    shim.delete(id, exec_id).expect("Delete");
    began.elapsed()
}

fn rate(side: &Side, round: usize) -> f64 {
    let began = Instant::now();
    thread::scope(|scope| {
        for worker in 0..WIDTH {
            scope.spawn(move || {
                for number in 0..EACH {
                    exec(
                        &side.shim,
                        &side.id,
                        &format!("rate-{round}-{worker}-{number}"),
                    );
                }
            });
        }
    });
    let execs = (WIDTH * EACH) as f64;
    execs / began.elapsed().as_secs_f64()
}
