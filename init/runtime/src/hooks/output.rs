//! What a hook writes, read while it runs and kept within bounds.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Bytes kept of the beginning, and again of the end, of each output stream.
pub const OUTPUT_LIMIT: usize = 16 << 10;

/// What a hook wrote: of each stream at most [`OUTPUT_LIMIT`] bytes of the beginning and as many of the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, text) in [("stderr", &self.stderr), ("stdout", &self.stdout)] {
            let text = text.trim_end();
            if !text.is_empty() {
                write!(f, "; {name}: {text}")?;
            }
        }
        Ok(())
    }
}

/// One output of a hook: the first and the last bytes.
pub(super) struct Stream {
    fd: Option<OwnedFd>,
    head: Vec<u8>,
    tail: Vec<u8>,
    total: usize,
}

impl Stream {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self {
            fd: Some(fd),
            head: Vec::new(),
            tail: Vec::new(),
            total: 0,
        }
    }

    pub(super) fn pollable(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    /// Reads once; returns how much came. At its end it is closed.
    pub(super) fn read(&mut self) -> io::Result<usize> {
        let Some(fd) = &self.fd else { return Ok(0) };
        let mut bytes = [0; 8192];
        match read_some(fd, &mut bytes)? {
            Some(0) => {
                self.fd = None;
                Ok(0)
            }
            Some(count) => {
                self.keep(&bytes[..count]);
                Ok(count)
            }
            None => Ok(0),
        }
    }

    /// Reads what is there, at most a large pipe's content: somebody may go on writing for ever.
    pub(super) fn drain(&mut self) -> io::Result<()> {
        const ENOUGH: usize = 1 << 20;
        let mut read = 0;
        while read < ENOUGH {
            match self.read()? {
                0 => break,
                count => read += count,
            }
        }
        Ok(())
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.total += bytes.len();
        let room = OUTPUT_LIMIT - self.head.len();
        let (head, rest) = bytes.split_at(room.min(bytes.len()));
        self.head.extend_from_slice(head);
        self.tail.extend_from_slice(rest);
        let surplus = self.tail.len().saturating_sub(OUTPUT_LIMIT);
        self.tail.drain(..surplus);
    }

    pub(super) fn text(&self) -> String {
        let left_out = self.total - self.head.len() - self.tail.len();
        let mut bytes = self.head.clone();
        if left_out > 0 {
            bytes.extend_from_slice(format!("\n… {left_out} bytes left out …\n").as_bytes());
        }
        bytes.extend_from_slice(&self.tail);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// `read(2)` of a non-blocking descriptor: `None` when nothing is there now.
pub(super) fn read_some(fd: &OwnedFd, bytes: &mut [u8]) -> io::Result<Option<usize>> {
    match nix::unistd::read(fd.as_raw_fd(), bytes) {
        Ok(count) => Ok(Some(count)),
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
