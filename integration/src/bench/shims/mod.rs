//! The shims side by side, under the same containerd: ours with our runtime, containerd's own with
//! runc. One file per question.

mod exits;
mod memory;
mod speed;

use super::Settings;
use super::series::Table;
use crate::containerd::{Containerd, Extra, Version};
use crate::shim::Shim;

/// The heads of the columns; ours comes first.
const NAMES: [&str; 2] = ["holdfast", "runc-v2"];

/// The runtime types behind [`NAMES`].
const TYPES: [&str; 2] = ["io.containerd.holdfast.v2", "io.containerd.runc.v2"];

/// A shim with one container of containerd's in it.
#[derive(Debug)]
struct Side {
    name: &'static str,
    runtime_type: &'static str,
    /// The container.
    id: String,
    shim: Shim,
    /// The shim's, asked for once: a question wakes it.
    pid: i32,
}

impl Side {
    /// Both, each with a container whose name begins with `stem`.
    fn both(containerd: &mut Containerd, stem: &str) -> Vec<Self> {
        NAMES
            .into_iter()
            .zip(TYPES)
            .map(|(name, runtime_type)| {
                let id = format!("{stem}-{name}");
                containerd.runtime_type = runtime_type.to_owned();
                containerd.start_task(&id, &[], &["sleep", "6000"]);
                let shim = Shim::of(containerd, &id);
                Self {
                    name,
                    runtime_type,
                    pid: shim.pid(&id),
                    shim,
                    id,
                }
            })
            .collect()
    }
}

/// Measures and prints.
pub(super) fn run(settings: &Settings) {
    let extra = Extra::default();
    let started = [Version::V2_1, Version::V1_6]
        .into_iter()
        .find_map(|version| Containerd::start(version, "bench of the shims", &extra));
    let Some(mut containerd) = started else {
        return println!("\nwithout shims: no containerd is to be had");
    };
    println!(
        "\n== shims under the same containerd ({:?}), a container each; {} rounds, alternating",
        containerd.version, settings.rounds
    );
    let table = Table::new("", &NAMES);
    let sides = Side::both(&mut containerd, "one");
    memory::idle(&table, &mut containerd, &sides);
    speed::run(&table, settings, &mut containerd, &sides);
    exits::run(&table, settings, &mut containerd, &sides);
    memory::pod(&table, &containerd, &sides);
    memory::after_many_execs(&table, &sides);
    for side in &sides {
        containerd.end_task(&side.id);
    }
    containerd.assert_nothing_left();
}

/// Looks a side's value up for a line of the table.
fn of<T>(values: &[(&'static str, T)], name: &str, value: impl Fn(&T) -> f64) -> Option<f64> {
    values
        .iter()
        .find(|(side, _)| *side == name)
        .map(|(_, found)| value(found))
}
