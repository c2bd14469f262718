//! `make museum`: what broke containers elsewhere, side by side on containerd's own shim and ours.
//!
//! Words on the command line choose exhibits whose names contain one of them.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Instant;

use holdfast_integration::museum::{EXHIBITS, Verdict, print};

fn main() -> ExitCode {
    // A visit that fails by panicking is told in its row.
    std::panic::set_hook(Box::new(|_| {}));
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let began = Instant::now();
    let mut rows = Vec::new();
    for exhibit in EXHIBITS {
        if !wanted.is_empty()
            && !wanted
                .iter()
                .any(|word| exhibit.name.contains(word.as_str()))
        {
            continue;
        }
        print!("{} …", exhibit.name);
        let _ = std::io::stdout().flush();
        let row = exhibit.show();
        println!(" {:.0} s", row.took.as_secs_f64());
        rows.push(row);
    }
    println!("\n{}", print(&rows));
    println!("in {:.0} s", began.elapsed().as_secs_f64());
    let bad = |verdict| matches!(verdict, Verdict::Worse | Verdict::NotShown);
    if rows.is_empty() || rows.iter().any(|row| bad(row.verdict())) {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
