//! Why a hook counts as failed.

use std::io;
use std::time::Duration;

use holdfast_record::exit::ExitStatus;
use holdfast_record::process::Description;
use holdfast_record::reason::{HookPlace, Reason};

use super::Output;

/// Why a hook counts as failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its entry in the configuration cannot be used.
    #[error("{place}: {problem}")]
    Invalid {
        /// Which hook.
        place: HookPlace,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// It could not be started.
    #[error("{place}: cannot {doing}")]
    Start {
        /// Which hook.
        place: HookPlace,
        /// What was tried.
        doing: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// It ended with another code than 0, or by a signal.
    #[error("{place} failed: {status}{output}")]
    Failed {
        /// Which hook.
        place: HookPlace,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote.
        output: Box<Output>,
    },
    /// It was still running at its deadline and was killed.
    #[error("{place} did not finish within {} ms and was {}: {process}{output}",
        waited.as_millis(), if *.gone { "killed" } else { "sent SIGKILL, which it does not obey" })]
    TimedOut {
        /// Which hook.
        place: HookPlace,
        /// Its deadline.
        waited: Duration,
        /// The hook as it was then.
        process: Box<Description>,
        /// Whether it ended after that.
        gone: bool,
        /// What it wrote until then.
        output: Box<Output>,
    },
    /// The runtime cannot return to its own pid namespace; nothing more may be started by it.
    #[error("{place}: cannot return to the runtime's pid namespace")]
    Return {
        /// After which hook.
        place: HookPlace,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// For the ledger.
    #[must_use]
    pub fn reason(&self) -> Reason {
        let failed = |place: &HookPlace, text: String| Reason::HookFailed {
            hook: place.clone(),
            status: None,
            text,
            stdout: String::new(),
            stderr: String::new(),
        };
        match self {
            Self::Invalid { place, problem } => failed(place, problem.clone()),
            Self::Start {
                place,
                doing,
                source,
            } => failed(place, format!("cannot {doing}: {source}")),
            Self::Return { place, source } => failed(
                place,
                format!("cannot return to the runtime's pid namespace: {source}"),
            ),
            Self::Failed {
                place,
                status,
                output,
            } => Reason::HookFailed {
                hook: place.clone(),
                status: Some(*status),
                text: format!("ended with {status}"),
                stdout: output.stdout.clone(),
                stderr: output.stderr.clone(),
            },
            Self::TimedOut {
                place,
                waited,
                process,
                output,
                ..
            } => Reason::HookTimedOut {
                hook: place.clone(),
                waited: *waited,
                process: (**process).clone(),
                stdout: output.stdout.clone(),
                stderr: output.stderr.clone(),
            },
        }
    }
}
