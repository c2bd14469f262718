//! `make bench`: side by side in one run, alternating, as medians with ratios.
//!
//! `bench [ROUNDS] [SECTION…]`; the sections are those of [`SECTIONS`], all by default.
//! Absolute times are those of a noisy machine; the ratios of one run are what counts.

use std::process::ExitCode;

use holdfast_integration::bench::{SECTIONS, Settings};

fn main() -> ExitCode {
    let mut settings = Settings::default();
    let mut wanted: Vec<String> = Vec::new();
    for word in std::env::args().skip(1) {
        match word.parse() {
            Ok(rounds) => settings.rounds = rounds,
            Err(_) if SECTIONS.iter().any(|section| section.name == word) => wanted.push(word),
            Err(_) => {
                let names: Vec<&str> = SECTIONS.iter().map(|section| section.name).collect();
                println!(
                    "{word} is neither a number of rounds nor a section: {}",
                    names.join(", ")
                );
                return ExitCode::FAILURE;
            }
        }
    }
    for section in SECTIONS {
        if wanted.is_empty() || wanted.iter().any(|name| name == section.name) {
            (section.run)(&settings);
        }
    }
    ExitCode::SUCCESS
}
