//! Copies one stream on the event loop, without a thread and without memory while idle.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys;

/// Bytes moved at a time, on the stack: an idle stream holds no buffer.
const CHUNK: usize = 16 * 1024;

/// Where bytes come from.
#[derive(Debug)]
pub(super) struct Source(AsyncFd<File>);

impl Source {
    /// A non-blocking pipe, fifo or terminal.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        sys::watch(fd, Interest::READABLE).map(Self)
    }
}

/// Where bytes go.
#[derive(Debug)]
pub(super) enum Sink {
    /// A pipe or terminal.
    Pipe(AsyncFd<File>),
    /// A fifo, with the reader of ours that keeps it from breaking.
    Fifo {
        /// What is written to.
        writer: AsyncFd<File>,
        /// Only held.
        _keepalive: OwnedFd,
    },
    /// A regular file. Written on a thread of its own: its disk may hang, and the event loop
    /// must not.
    File(Arc<File>),
    /// Read and forgotten.
    Nowhere,
}

impl Sink {
    /// A non-blocking pipe or terminal.
    pub(super) fn pipe(fd: OwnedFd) -> io::Result<Self> {
        sys::watch(fd, Interest::WRITABLE).map(Self::Pipe)
    }

    /// A fifo; `keepalive` reads it, so that a client that leaves does not break it.
    pub(super) fn fifo(writer: OwnedFd, keepalive: OwnedFd) -> io::Result<Self> {
        let writer = sys::watch(writer, Interest::WRITABLE)?;
        Ok(Self::Fifo {
            writer,
            _keepalive: keepalive,
        })
    }

    /// Writes what can be written now; the number of bytes.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Pipe(fd) | Self::Fifo { writer: fd, .. } => match fd.get_ref().write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
                other => other,
            },
            Self::File(_) => Ok(0),
            Self::Nowhere => Ok(bytes.len()),
        }
    }

    /// Waits until more can be written, and writes it.
    async fn finish(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = match self {
                Self::Pipe(fd) | Self::Fifo { writer: fd, .. } => {
                    fd.async_io(Interest::WRITABLE, |mut file: &File| file.write(bytes))
                        .await?
                }
                Self::File(file) => {
                    let (file, owned) = (Arc::clone(file), bytes.to_vec());
                    tokio::task::spawn_blocking(move || (&*file).write_all(&owned))
                        .await
                        .map_err(io::Error::other)??;
                    bytes.len()
                }
                Self::Nowhere => bytes.len(),
            };
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Ok(())
    }
}

/// What one read brought.
enum Moved {
    End,
    All,
    /// Read, but not yet written.
    Left(Vec<u8>),
}

fn move_once(
    mut source: &File,
    sink: &mut Sink,
    broken: &mut Option<io::Error>,
) -> io::Result<Moved> {
    let mut buffer = [0u8; CHUNK];
    let read = match source.read(&mut buffer) {
        Ok(0) => return Ok(Moved::End),
        // The last process has closed its side of the terminal.
        Err(error) if error.raw_os_error() == Some(libc::EIO) => return Ok(Moved::End),
        Ok(read) => read,
        Err(error) => return Err(error),
    };
    let bytes = buffer.get(..read).unwrap_or_default();
    if broken.is_some() {
        return Ok(Moved::All);
    }
    match sink.write(bytes) {
        Ok(written) if written == read => Ok(Moved::All),
        Ok(written) => Ok(Moved::Left(
            bytes.get(written..).unwrap_or_default().to_vec(),
        )),
        Err(error) => {
            *broken = Some(error);
            Ok(Moved::All)
        }
    }
}

/// Copies until the end of `source`. A sink that breaks does not stop the reading: the
/// process must not block or die because its log cannot be written.
pub(super) async fn copy(stream: &'static str, source: Source, mut sink: Sink) {
    let mut broken = None;
    let mut told = false;
    loop {
        let moved = source
            .0
            .async_io(Interest::READABLE, |fd| {
                move_once(fd, &mut sink, &mut broken)
            })
            .await;
        match moved {
            Ok(Moved::End) => return,
            Ok(Moved::All) => {}
            Ok(Moved::Left(rest)) => {
                if let Err(error) = sink.finish(&rest).await {
                    broken = Some(error);
                }
            }
            Err(error) => {
                log::warn!("{stream}: reading stopped: {error}");
                return;
            }
        }
        if let (Some(error), false) = (&broken, told) {
            told = true;
            // EPIPE on stdin: the process has closed it or is gone, which is its right.
            if stream == "stdin" && error.raw_os_error() == Some(libc::EPIPE) {
                return;
            }
            log::warn!("{stream}: writing stopped, output is dropped from here on: {error}");
        }
        // One busy stream must not starve the rest of the thread.
        tokio::task::coop::consume_budget().await;
    }
}
