//! Terminals: a pair for programs that want one, and the socket on which a runtime hands over
//! the container's.

use std::fs::File;
use std::io::{ErrorKind, IoSliceMut, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// The master's side of a terminal and what came out of it so far.
#[derive(Debug)]
pub struct Terminal {
    master: File,
    seen: String,
}

impl Terminal {
    /// A new pair; the slave is for the program.
    ///
    /// # Panics
    /// When the kernel has none.
    #[must_use]
    pub fn pair() -> (Self, OwnedFd) {
        let pair = openpty(None, None).expect("openpty");
        (Self::of(pair.master), pair.slave)
    }

    /// Wraps a master that came from elsewhere.
    #[must_use]
    pub fn of(master: OwnedFd) -> Self {
        Self {
            master: File::from(master),
            seen: String::new(),
        }
    }

    /// Types something.
    ///
    /// # Panics
    /// When the terminal is gone.
    pub fn type_in(&mut self, text: &str) {
        use std::io::Write as _;
        self.master
            .write_all(text.as_bytes())
            .expect("write to the terminal");
    }

    /// Waits until the output since the last match holds `text`; returns it up to there.
    ///
    /// # Panics
    /// When it does not come within `limit`.
    #[track_caller]
    pub fn expect(&mut self, text: &str, limit: Duration) -> String {
        let until = Instant::now() + limit;
        loop {
            if let Some(at) = self.seen.find(text) {
                let rest = self.seen.split_off(at + text.len());
                return std::mem::replace(&mut self.seen, rest);
            }
            assert!(
                Instant::now() < until && self.read_more(until),
                "no {text:?} within {limit:?}; the terminal shows {:?}",
                self.seen
            );
        }
    }

    /// Everything until the other side is closed.
    ///
    /// # Panics
    /// When it stays open longer than `limit`.
    #[track_caller]
    pub fn rest(&mut self, limit: Duration) -> String {
        let until = Instant::now() + limit;
        while self.read_more(until) {
            assert!(
                Instant::now() < until,
                "terminal still open after {limit:?}"
            );
        }
        std::mem::take(&mut self.seen)
    }

    /// `false` at the end.
    fn read_more(&mut self, until: Instant) -> bool {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut interest = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
        if poll(&mut interest, timeout).expect("poll a terminal") == 0 {
            return true;
        }
        let mut buffer = [0; 4096];
        match self.master.read(&mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                self.seen
                    .push_str(&String::from_utf8_lossy(&buffer[..count]));
                true
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => true,
            // EIO: the last slave is closed.
            Err(_) => false,
        }
    }
}

/// A socket on which one descriptor is expected (`--console-socket`, `--pidfd-socket`).
#[derive(Debug)]
pub struct DescriptorSocket {
    listener: UnixListener,
    /// Where it listens.
    pub path: PathBuf,
}

impl DescriptorSocket {
    /// Listens at `path`.
    ///
    /// # Panics
    /// When it cannot be bound.
    #[must_use]
    pub fn listen(path: &Path) -> Self {
        let listener = UnixListener::bind(path).expect("bind");
        listener.set_nonblocking(true).expect("nonblocking");
        Self {
            listener,
            path: path.to_path_buf(),
        }
    }

    /// The descriptor that was sent.
    ///
    /// # Panics
    /// When none came within `limit`.
    #[must_use]
    #[track_caller]
    pub fn receive(&self, limit: Duration) -> OwnedFd {
        let stream = crate::deadline::eventually("a connection", limit, || {
            self.listener.accept().ok().map(|(stream, _)| stream)
        });
        stream.set_nonblocking(false).expect("blocking");
        stream.set_read_timeout(Some(limit)).expect("read timeout");
        let mut data = [0; 256];
        let mut slices = [IoSliceMut::new(&mut data)];
        let mut space = nix::cmsg_space!([i32; 1]);
        let message = recvmsg::<()>(
            stream.as_raw_fd(),
            &mut slices,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )
        .expect("a message");
        for control in message.cmsgs().expect("control messages") {
            if let ControlMessageOwned::ScmRights(descriptors) = control {
                return owned(descriptors[0]);
            }
        }
        panic!("a message without a descriptor");
    }
}

fn owned(number: i32) -> OwnedFd {
    sys::own(number)
}

mod sys {
    #![allow(unsafe_code)]
    use std::os::fd::{FromRawFd as _, OwnedFd};

    /// Takes over a descriptor that the kernel has just installed for this process.
    pub(super) fn own(number: i32) -> OwnedFd {
        // SAFETY: recvmsg put this number into our table a moment ago, and nobody else was told it.
        unsafe { OwnedFd::from_raw_fd(number) }
    }
}
