//! `holdfast-nvml LIBRARY`: asks NVML what GPUs there are and prints the answer as JSON.
//!
//! A program of its own, because
//! * NVML has to be loaded into a dynamically linked process, and `holdfast` is a static one;
//! * a call into the driver may never return. Then it is this process that hangs, under the deadline of the one that
//!   started it (`holdfast_gpu::nvml`, which also has the shape of the answer).
//!
//! `holdfast` carries this program in itself and starts it from memory; nothing has to be installed.
//! The exit code is 0 whenever there is an answer, also one that says why NVML does not work.

mod answer;
mod library;
mod sys;

use std::io::Write as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(library) = std::env::args_os().nth(1) else {
        eprintln!("usage: holdfast-nvml LIBRARY");
        return ExitCode::from(2);
    };
    let answer = answer::of(&library);
    match std::io::stdout().lock().write_all(answer.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("holdfast-nvml: the answer cannot be written: {error}");
            ExitCode::FAILURE
        }
    }
}
