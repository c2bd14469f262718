//! Measurements side by side with the peers: one file per question.

mod calls;
mod cost;
mod floor;
mod lives;
mod parallel;
mod peers;
mod series;
mod shims;

/// How much to measure.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Rounds that count, per case; everybody takes part in each of them.
    pub rounds: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { rounds: 40 }
    }
}

/// One question and its answer, printed.
#[derive(Debug)]
pub struct Section {
    /// The word that chooses it.
    pub name: &'static str,
    /// Measures and prints.
    pub run: fn(&Settings),
}

/// All of them, in the order in which they are printed.
pub const SECTIONS: &[Section] = &[
    Section {
        name: "lives",
        run: lives::run,
    },
    Section {
        name: "first",
        run: lives::run_first,
    },
    Section {
        name: "floor",
        run: floor::run,
    },
    Section {
        name: "parallel",
        run: parallel::run,
    },
    Section {
        name: "calls",
        run: calls::run,
    },
    Section {
        name: "cost",
        run: cost::run,
    },
    Section {
        name: "shims",
        run: shims::run,
    },
];
