//! Terminals: the console socket, and the proxy for `run` and `exec` in the foreground.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use holdfast_record::deadline::limit_from_env;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect as connect_to, setsockopt, socket, sockopt,
};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::bundle::cstring;
use crate::error::{Doing, Error, Result};
use crate::sys::fd;

/// Longest path that fits into a socket address with its NUL.
const SUN_PATH: usize = 107;

/// How long a console or pidfd socket may take to accept: its backlog can be full, and whoever
/// should empty it gone.
const LIMIT: Duration = Duration::from_secs(10);

/// unix(7): connect waits for a place in the backlog as long as a send would.
fn limit_connect(stream: &OwnedFd, limit: Duration) -> nix::Result<()> {
    let limit = TimeVal::milliseconds(i64::try_from(limit.as_millis()).unwrap_or(i64::MAX).max(1));
    setsockopt(stream, sockopt::SendTimeout, &limit)
}

/// EAGAIN is what a blocking connect says when its time is up.
fn timed_out(errno: nix::errno::Errno) -> nix::errno::Errno {
    match errno {
        nix::errno::Errno::EAGAIN => nix::errno::Errno::ETIMEDOUT,
        other => other,
    }
}

/// Connects to the unix stream socket at `path`, however long the path is. The result is
/// inheritable: it is meant for `holdfast-init`.
///
/// # Errors
/// With the path and errno.
pub(crate) fn connect(path: &Path) -> Result<OwnedFd> {
    let doing = || format!("connect to the socket {}", path.display());
    let stream = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::empty(),
        None,
    )
    .doing(doing)?;
    let limit = limit_from_env("socket", LIMIT);
    let doing = || {
        format!(
            "connect to the socket {} (nobody accepts for {limit:?}?)",
            path.display()
        )
    };
    limit_connect(&stream, limit).doing(doing)?;
    if path.as_os_str().len() <= SUN_PATH {
        let address = UnixAddr::new(path).doing(doing)?;
        connect_to(stream.as_raw_fd(), &address)
            .map_err(timed_out)
            .doing(doing)?;
        return Ok(stream);
    }
    let handle = fd::open_inherited(&cstring("socket", path)?, libc::O_PATH | libc::O_CLOEXEC)
        .doing(doing)?;
    let short = format!("/proc/self/fd/{}", handle.as_raw_fd());
    let address = UnixAddr::new(short.as_str()).doing(doing)?;
    connect_to(stream.as_raw_fd(), &address)
        .map_err(timed_out)
        .doing(doing)?;
    Ok(stream)
}

/// The two ends of a console socket of our own: for init (inheritable), and for us.
///
/// # Errors
/// With errno.
pub(crate) fn console_pair() -> Result<(OwnedFd, OwnedFd)> {
    let (theirs, ours) = nix::sys::socket::socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::empty(),
    )
    .doing(|| "make the console socket".into())?;
    fcntl(ours.as_raw_fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
        .doing(|| "mark the console socket close-on-exec".into())?;
    Ok((theirs, ours))
}

/// Copies between our terminal and the container's until the container's side closes.
#[derive(Debug)]
pub(crate) struct Proxy {
    master: OwnedFd,
    saved: Option<Termios>,
}

impl Proxy {
    /// Takes the master that init sent and puts our own terminal, if there is one, into raw mode.
    pub(crate) fn take(console: &OwnedFd) -> Result<Self> {
        let mut name = [0; 64];
        let (_, master) = fd::receive_fd(console.as_fd(), &mut name)
            .doing(|| "receive the terminal from the init process".into())?;
        let master = master.ok_or_else(|| Error::Step {
            doing: "receive the terminal from the init process".into(),
            detail: "the message carried no descriptor".into(),
            source: None,
        })?;
        let stdin = io::stdin();
        let saved = tcgetattr(&stdin).ok();
        if let Some(saved) = &saved {
            let mut raw = saved.clone();
            cfmakeraw(&mut raw);
            tcsetattr(&stdin, SetArg::TCSANOW, &raw)
                .doing(|| "put the terminal into raw mode".into())?;
        }
        let this = Self { master, saved };
        this.resize();
        Ok(this)
    }

    /// Gives the container's terminal the size of ours.
    pub(crate) fn resize(&self) {
        if self.saved.is_some() {
            crate::sys::signals::copy_window_size(io::stdin().as_fd(), self.master.as_fd());
        }
    }

    /// Whether there is output to copy right now.
    pub(crate) fn readable(&self) -> bool {
        let mut polled = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
        poll(&mut polled, PollTimeout::ZERO).is_ok_and(|count| count > 0)
            && polled[0]
                .revents()
                .is_some_and(|events| events.contains(PollFlags::POLLIN))
    }

    /// Copies what is there, in both directions. `stdin_open` becomes false at the end of our
    /// input. Returns false when the container's side has closed.
    pub(crate) fn copy(&self, stdin_open: &mut bool, timeout: PollTimeout) -> Result<bool> {
        let stdin = io::stdin();
        let mut polled = vec![PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
        if *stdin_open {
            polled.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut polled, timeout) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => return Ok(true),
            Ok(_) => {}
            Err(errno) => return Err(errno).doing(|| "wait for the terminal".into()),
        }
        let ready = |at: usize| {
            polled
                .get(at)
                .and_then(|fd| fd.revents())
                .is_some_and(|events| !events.is_empty())
        };
        let mut buffer = [0; 8192];
        if ready(1) {
            let len = stdin.lock().read(&mut buffer).unwrap_or(0);
            if len == 0 {
                *stdin_open = false;
            } else {
                write_all(&self.master, &buffer[..len])?;
            }
        }
        if ready(0) {
            match nix::unistd::read(self.master.as_raw_fd(), &mut buffer) {
                // EIO: the last slave was closed.
                Ok(0) | Err(nix::errno::Errno::EIO) => return Ok(false),
                Ok(len) => {
                    let mut out = io::stdout().lock();
                    out.write_all(&buffer[..len])
                        .and_then(|()| out.flush())
                        .doing(|| "write to the terminal".into())?;
                }
                Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(errno).doing(|| "read the container's terminal".into()),
            }
        }
        Ok(true)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(saved) = &self.saved {
            // Nothing sensible can be done about a terminal that does not want to go back.
            let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, saved);
        }
    }
}

fn write_all(to: &OwnedFd, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(to, bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno).doing(|| "write to the container's terminal".into()),
        }
    }
    Ok(())
}
