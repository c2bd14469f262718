//! `containerd-shim-holdfast-v2`: between containerd and the containers of one group.
//!
//! Where to begin: [`task`] (states and who changes them), [`service`] (the RPCs),
//! [`bootstrap`] (how it is started). Decisions are in `docs/`.

mod bootstrap;
mod cli;
mod copies;
mod delete;
mod ends;
mod event;
mod fault;
mod fault_point;
mod handover;
mod idle;
mod info;
mod keeper;
mod killer;
mod look;
mod options;
mod outbox;
mod publisher;
mod reaper;
mod resume;
mod rootfs;
mod runtime;
mod server;
mod service;
mod socket;
mod stats;
mod stdio;
mod sys;
mod task;
mod wire;

use std::process::ExitCode;

use cli::{Action, CommandLine};
use holdfast_record::logging::{self, Places, Sink};

fn main() -> ExitCode {
    let line = match CommandLine::parse(std::env::args().skip(1)) {
        Ok(line) => line,
        Err(error) => return fail(&error),
    };
    ends::report_panics(&line);
    let result: Result<(), Box<dyn std::error::Error>> = match line.action {
        Action::Version => {
            println!("containerd-shim-holdfast-v2:");
            println!("  Version:  {}", env!("CARGO_PKG_VERSION"));
            println!(
                "  Revision: {}",
                option_env!("HOLDFAST_REVISION").unwrap_or("unknown")
            );
            if cfg!(feature = "fault-points") {
                println!("  Fault points: for tests only");
            }
            return ExitCode::SUCCESS;
        }
        Action::CanResume(format) => {
            println!("{}", resume::upgrade::yes());
            return if format == resume::slate::FORMAT {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            };
        }
        Action::Info => info::print().map_err(Into::into),
        Action::Start => bootstrap::start(&line)
            .inspect_err(|error| ends::record_failed_start(&line, &fault::chain(error)))
            .map_err(Into::into),
        Action::Delete => {
            // containerd logs what delete prints on stderr; on start one byte would be too many.
            let installed = logging::install(
                server::IDENTIFIER,
                log::LevelFilter::Warn,
                Sink::Inherited,
                Places::default(),
                Vec::new(),
            );
            drop(installed);
            delete::delete(&line).map_err(Into::into)
        }
        Action::Publish => handover::publish(&line).map_err(Into::into),
        Action::Serve => server::run(&line).map_err(Into::into),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error.as_ref()),
    }
}

/// The one place where an error that ends the program is printed, with all its causes.
fn fail(error: &(dyn std::error::Error + 'static)) -> ExitCode {
    eprintln!("containerd-shim-holdfast-v2: {}", fault::chain(error));
    ExitCode::FAILURE
}
