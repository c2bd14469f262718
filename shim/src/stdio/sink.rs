//! Where a stream comes from and goes to, and what becomes of output that is not taken.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use holdfast_record::deadline::limit_from_env;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::resume;
use crate::resume::descriptor::Descriptor;
use crate::sys;

/// How long a sink may take nothing before output is dropped.
fn patience() -> Duration {
    limit_from_env("SINK", Duration::from_secs(2))
}

/// What is on the slate of a stream; taken off with it.
#[derive(Debug)]
pub(super) struct Kept(pub(super) u64);

impl Kept {
    /// Of its record.
    pub(super) fn key(&self) -> String {
        format!("pump/{}", self.0)
    }

    /// Bytes that are read and not written.
    pub(super) fn left(&self, bytes: &[u8]) {
        if resume::is_on() {
            resume::put(&format!("left/{}", self.0), bytes);
        }
    }

    /// How many of those are written meanwhile.
    pub(super) fn sent(&self, bytes: usize) {
        if resume::is_on() {
            resume::put(&format!("sent/{}", self.0), &(bytes as u64).to_le_bytes());
        }
    }

    /// All of them are written, or given up.
    pub(super) fn done(&self) {
        if resume::is_on() {
            resume::remove(&format!("left/{}", self.0));
            resume::remove(&format!("sent/{}", self.0));
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let _step = resume::step();
        self.done();
        resume::remove(&self.key());
    }
}

/// Where bytes come from.
#[derive(Debug)]
pub(super) struct Source(pub(super) AsyncFd<Descriptor>);

impl Source {
    /// A non-blocking pipe, fifo or terminal.
    pub(super) fn new(fd: impl Into<Descriptor>) -> io::Result<Self> {
        sys::watch(fd, Interest::READABLE).map(Self)
    }
}

/// Where bytes go.
#[derive(Debug)]
pub(super) enum Sink {
    /// A pipe or terminal.
    Pipe(AsyncFd<Descriptor>),
    /// A fifo, with the reader of ours that keeps it from breaking.
    Fifo {
        /// What is written to.
        writer: AsyncFd<Descriptor>,
        /// Only held.
        _keepalive: Descriptor,
    },
    /// A regular file. Written on a thread of its own: its disk may hang, and the event loop
    /// must not.
    File(Arc<Descriptor>),
    /// Read and forgotten.
    Nowhere,
}

impl Sink {
    /// A non-blocking pipe or terminal.
    pub(super) fn pipe(fd: impl Into<Descriptor>) -> io::Result<Self> {
        sys::watch(fd, Interest::WRITABLE).map(Self::Pipe)
    }

    /// A fifo; `keepalive` reads it, so that a client that leaves does not break it.
    pub(super) fn fifo(
        writer: impl Into<Descriptor>,
        keepalive: impl Into<Descriptor>,
    ) -> io::Result<Self> {
        let writer = sys::watch(writer, Interest::WRITABLE)?;
        Ok(Self::Fifo {
            writer,
            _keepalive: keepalive.into(),
        })
    }
}

/// What becomes of output that its sink does not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    /// The process waits in write(2), as with a pipe of its own.
    Block,
    /// It goes on; what is dropped is counted, and a line in the output says so afterwards.
    Drop {
        /// How long the sink may take nothing before.
        after: Duration,
    },
}

impl Policy {
    /// Dropping after the usual time.
    pub(crate) fn drop() -> Self {
        Self::Drop { after: patience() }
    }

    /// How long the sink may take nothing.
    pub(super) fn patience(self) -> Duration {
        match self {
            Self::Block => patience(),
            Self::Drop { after } => after,
        }
    }

    /// What the options say, else what `HOLDFAST_STDIO_POLICY` says: `block` or `drop`; none
    /// when neither says it.
    pub(crate) fn chosen(option: &str) -> Option<Self> {
        let variable = std::env::var("HOLDFAST_STDIO_POLICY").unwrap_or_default();
        let word = if option.is_empty() { &variable } else { option };
        match word {
            "" => None,
            "block" => Some(Self::Block),
            "drop" => Some(Self::drop()),
            other => {
                log::warn!("stdio policy {other:?} is neither block nor drop: ignored");
                None
            }
        }
    }
}

/// One write into a file, on a thread of its own.
#[derive(Debug)]
pub(super) struct FileWrite {
    /// Whether the marker, if there was one, is written.
    pub(super) marked: bool,
    /// Bytes of the output that are written.
    pub(super) written: usize,
    /// Why not all of them.
    pub(super) error: Option<io::Error>,
}

/// Writes it all, or as much as goes, and says on the slate how much of the output that was.
pub(super) fn write_file(
    file: &Descriptor,
    marker: Option<String>,
    bytes: &[u8],
    pump: u64,
) -> FileWrite {
    // What is in the file is on the slate as written in the same step.
    let _step = resume::step();
    let done = write_all_of(file, marker, bytes);
    let kept = std::mem::ManuallyDrop::new(Kept(pump));
    kept.sent(done.written);
    done
}

fn write_all_of(mut file: &Descriptor, marker: Option<String>, bytes: &[u8]) -> FileWrite {
    let mut done = FileWrite {
        marked: false,
        written: 0,
        error: None,
    };
    if let Some(marker) = marker {
        if let Err(error) = file.write_all(marker.as_bytes()) {
            done.error = Some(error);
            return done;
        }
        done.marked = true;
    }
    while let Some(rest) = bytes.get(done.written..).filter(|rest| !rest.is_empty()) {
        match file.write(rest) {
            Ok(0) => done.error = Some(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                done.written += written;
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => done.error = Some(error),
        }
        break;
    }
    done
}
