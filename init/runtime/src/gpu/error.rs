//! Why a container does not get its GPUs.

use std::io;
use std::time::Duration;

use holdfast_gpu::class::Class;
use holdfast_gpu::{capabilities, config, image, legacy, modify, request};
use holdfast_record::exit::ExitStatus;
use holdfast_record::process::Description;
use holdfast_record::reason::{Reason, TimedOut};

use super::VARIABLE;
use crate::hooks::Output;

/// What the CLI is called in texts.
const CLI: &str = legacy::PROGRAM;

/// Why a container does not get its GPUs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The handler is unknown.
    #[error("{0:?} is no GPU handler (--gpu, {VARIABLE}): auto, legacy, cdi, jit-cdi and off are")]
    Handler(String),
    /// The configuration.
    #[error("the GPU configuration cannot be used")]
    Config(#[from] config::Error),
    /// A name that is no deviation.
    #[error(transparent)]
    AsOriginal(#[from] config::UnknownDeviation),
    /// `supported-driver-capabilities`.
    #[error("the GPU configuration cannot be used")]
    Supported(#[source] capabilities::Error),
    /// An entry of the environment, where the original's way is wanted.
    #[error(transparent)]
    Variable(#[from] image::InvalidVariable),
    /// What is asked for cannot be granted.
    #[error("the container's request cannot be granted")]
    Request(#[from] request::Error),
    /// The CLI is missing.
    #[error(transparent)]
    NotFound(#[from] legacy::NotFound),
    /// The specification cannot be changed as needed.
    #[error("the specification cannot be changed")]
    Modify(#[source] modify::Error),
    /// The changed specification is none.
    #[error("the changed specification cannot be read")]
    Spec(#[source] serde_json::Error),
    /// The CLI could not be started.
    #[error("{CLI}: cannot {doing}")]
    Start {
        /// What was tried.
        doing: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The CLI failed.
    #[error("{CLI}: {class}: it ended with {status}{}{output}; what to do: {advice}",
        if *.attempts > 1 { " in each of two attempts" } else { "" }, advice = .class.advice())]
    Failed {
        /// What its words mean.
        class: Class,
        /// How it ended.
        status: ExitStatus,
        /// How often it was called.
        attempts: u32,
        /// What it wrote.
        output: Box<Output>,
    },
    /// The CLI was still running at its deadline.
    #[error("{CLI} did not finish within {} ms and was {}: {process}{output}; what to do: run nvidia-smi on the node; \
        if it hangs as well, look for Xid messages in the kernel's log and take the node out of service",
        waited.as_millis(), if *.gone { "killed" } else { "sent SIGKILL, which it does not obey" })]
    TimedOut {
        /// Its deadline.
        waited: Duration,
        /// The CLI as it was then.
        process: Box<Description>,
        /// Whether it ended after that.
        gone: bool,
        /// What it wrote until then.
        output: Box<Output>,
    },
    /// The CLI says that all is well, and it is not.
    #[error("{CLI} succeeded, but the container has no {} of the GPUs that were asked for ({asked}); strict = false in \
        the table [holdfast] of config.toml lets it start nevertheless", .missing.join(", "))]
    Missing {
        /// The devices asked for.
        asked: String,
        /// Paths of missing nodes in the container, or what else is missing.
        missing: Vec<String>,
    },
}

impl Error {
    /// For the ledger.
    #[must_use]
    pub fn reason(&self) -> Reason {
        let step = match self {
            Self::TimedOut {
                waited, process, ..
            } => {
                return Reason::GpuStageTimedOut(TimedOut {
                    step: CLI.to_owned(),
                    waited: *waited,
                    process: Some((**process).clone()),
                });
            }
            Self::Handler(_) | Self::Config(_) | Self::AsOriginal(_) | Self::Supported(_) => {
                "configuration"
            }
            Self::Variable(_) | Self::Request(_) => "request",
            Self::NotFound(_) | Self::Start { .. } | Self::Failed { .. } => "legacy mode",
            Self::Modify(_) | Self::Spec(_) => "specification",
            Self::Missing { .. } => "check of the devices",
        };
        // What the CLI wrote is evidence of its own there, not part of the sentence.
        let (text, stderr) = match self {
            Self::Failed {
                class,
                status,
                output,
                ..
            } => (
                format!(
                    "{CLI}: {class}: it ended with {status}; what to do: {}",
                    class.advice()
                ),
                output.stderr.clone(),
            ),
            _ => (crate::error::chain(self), String::new()),
        };
        Reason::GpuStageFailed {
            step: step.to_owned(),
            text,
            stderr,
        }
    }
}
