//! runc's command line: the same flags, output and exit codes.
//!
//! | exit code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | failed; the reason is on standard error and in `--log` |
//! | 255 | `exec` failed before its program ran |
//! | other | `run` and `exec` in the foreground: the program's own, 128+n for signal n |

mod commands;
mod criu_flags;
mod duration;
mod global;
mod gpu_commands;
mod help;
mod log_file;
mod questions;
mod update_flags;

use std::ffi::OsString;
use std::process::ExitCode;

use crate::error::chain;

/// Parses, dispatches, reports.
pub fn main() -> ExitCode {
    crate::sys::signals::default_sigpipe();
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    if holdfast_gpu::hook::is_its_name(&name) {
        return holdfast_gpu::hook::main(arguments);
    }
    if holdfast_gpu::runtime::is_its_name(&name) {
        return holdfast_gpu::runtime::main(&name, arguments, |arguments| {
            dispatch(arguments.into_iter())
        });
    }
    dispatch(arguments)
}

fn dispatch(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    if crate::cause::shim_namespace().is_some() {
        crate::own_stderr::lead_away();
    }
    crate::cause::report_panics();
    let (outcome, exec) = commands::run(arguments);
    match outcome {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(255)),
        Err(error) => {
            let text = crate::cause::with_code(chain(&error));
            log::error!("{text}");
            // --log may be a file only the shim reads; a person looks at standard error.
            eprintln!("holdfast: {text}");
            ExitCode::from(if exec { 255 } else { 1 })
        }
    }
}
