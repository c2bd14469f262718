//! What can be wrong with a stream.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::logger;

/// A stream could not be made ready.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StdioError {
    /// A system call.
    #[error("{stream}: {step} {path}")]
    Io {
        /// `stdin`, `stdout`, `stderr` or `terminal`.
        stream: &'static str,
        /// What was tried.
        step: &'static str,
        /// On which file.
        path: PathBuf,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// Nobody opened the other end.
    #[error("{stream}: nobody reads {path} after {limit:?}; does its client still run?")]
    NoReader {
        /// Which stream.
        stream: &'static str,
        /// The fifo.
        path: PathBuf,
        /// How long it was waited for.
        limit: Duration,
    },
    /// A scheme that is not served.
    #[error("{stream}: {uri} is not supported; use a fifo, file:// or binary://")]
    Scheme {
        /// Which stream.
        stream: &'static str,
        /// As given.
        uri: String,
    },
    /// A logger.
    #[error(transparent)]
    Logger(#[from] logger::LoggerError),
}

/// An errno with the stream, the step and the path.
pub(super) fn io_error(
    stream: &'static str,
    step: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> StdioError {
    let path = path.to_owned();
    move |source| StdioError::Io {
        stream,
        step,
        path,
        source,
    }
}
