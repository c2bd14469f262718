//! Durations, medians, ratios, and the table they are printed in.

use std::time::Duration;

/// Durations of one quantity, one per round.
#[derive(Debug, Default)]
pub(super) struct Series(Vec<Duration>);

impl Series {
    pub(super) fn push(&mut self, took: Duration) {
        self.0.push(took);
    }

    /// In milliseconds; not a number when nothing was measured.
    pub(super) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        millis(sorted.get(sorted.len() / 2))
    }

    /// The shortest, which other load of the machine changes least, in milliseconds.
    pub(super) fn least(&self) -> f64 {
        millis(self.0.iter().min())
    }
}

fn millis(took: Option<&Duration>) -> f64 {
    took.map_or(f64::NAN, |took| took.as_secs_f64() * 1000.0)
}

/// Who is being compared, in the order of the columns; ours comes first.
#[derive(Debug)]
pub(super) struct Table<'a> {
    names: &'a [&'static str],
}

impl<'a> Table<'a> {
    /// Prints the head line.
    pub(super) fn new(what: &str, names: &'a [&'static str]) -> Self {
        print!("{what:<26}");
        for name in names {
            print!("{name:>12}");
        }
        println!("   ours to each of the others");
        Self { names }
    }

    /// Prints one line; who has no value shows `-`.
    pub(super) fn row(&self, what: &str, value: &dyn Fn(&str) -> Option<f64>) {
        print!("{what:<26}");
        for name in self.names {
            match value(name) {
                Some(number) if number >= 1000.0 => print!("{number:>12.0}"),
                Some(number) => print!("{number:>12.2}"),
                None => print!("{:>12}", "-"),
            }
        }
        print!("  ");
        let mut names = self.names.iter();
        if let Some(ours) = names.next().and_then(|name| value(name)) {
            for name in names {
                match value(name) {
                    // Of nothing, or less, nothing is a multiple.
                    Some(theirs) if theirs > 0.0 && ours >= 0.0 => print!(" {:.2}", ours / theirs),
                    Some(_) | None => print!(" -"),
                }
            }
        }
        println!();
    }
}
