//! One call of the runtime: verb, arguments, streams, limit.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crate::stdio::ProcessIo;
use crate::stdio::console::ConsoleRecord;

/// Descriptors for the runtime's stdin, stdout and stderr, which `create` and `exec` hand on.
#[derive(Debug, Default)]
pub(crate) struct ChildStdio {
    /// For descriptor 0; none: /dev/null.
    pub(crate) stdin: Option<OwnedFd>,
    /// For descriptor 1.
    pub(crate) stdout: Option<OwnedFd>,
    /// For descriptor 2.
    pub(crate) stderr: Option<OwnedFd>,
}

/// One call.
#[derive(Debug)]
pub(crate) struct Call {
    /// The verb, for errors.
    pub(crate) verb: &'static str,
    /// Its arguments, the container's id excluded.
    pub(crate) arguments: Vec<OsString>,
    /// What the process inherits.
    pub(crate) stdio: ChildStdio,
    /// Whose they are: until the runtime has them they are kept for the next image.
    pub(crate) io: Option<Arc<ProcessIo>>,
    /// How long it may take.
    pub(crate) limit: Duration,
    /// As what it is kept for the next image ([`job_key`]); none: it is done again by whoever needs it.
    pub(crate) kept: Option<String>,
    /// Where its terminal comes from, for the next image.
    pub(crate) console: Option<ConsoleRecord>,
}

impl Call {
    /// A call with nothing on stdio.
    pub(crate) fn new(verb: &'static str, limit: Duration) -> Self {
        Self {
            verb,
            arguments: Vec::new(),
            stdio: ChildStdio::default(),
            io: None,
            limit,
            kept: None,
            console: None,
        }
    }

    /// Keeps it for the next image.
    pub(crate) fn kept(mut self, what: impl Into<String>) -> Self {
        self.kept = Some(what.into());
        self
    }

    /// Adds an argument.
    pub(crate) fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }
}
