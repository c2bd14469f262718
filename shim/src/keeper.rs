//! The shim's parent, which outlives it (`docs/0010-what-outlives-sigkill.md`): how `start` makes one.
//!
//! What the shim says to it is in [`crate::resume::link`]; what it says to the shim is heard in [`listen`].

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use holdfast_keeper::{GO, KEEPER_END, PROGRAM_VARIABLE, SHIM_END};
use holdfast_record::deadline::limit_from_env;
use holdfast_record::{ExitStatus, Signal, Timestamp};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};
use tokio::io::Interest;

use crate::reaper::Reaper;
use crate::resume;
use crate::resume::link::Said;
use crate::server::LISTENER_FD;
use crate::sys::{self, ChildEnd};

/// Tells the server that it has a keeper.
pub(crate) const KEPT_VARIABLE: &str = "HOLDFAST_SHIM_KEPT";
/// Tells the server why it has none.
pub(crate) const ALONE_VARIABLE: &str = "HOLDFAST_SHIM_ALONE";
/// What the kernel and people see as its name.
const NAME: &str = "holdfast-keeper";
/// Above the numbers that it is started with.
const ABOVE: RawFd = holdfast_keeper::FIRST;
/// Built by `build.rs`; static, without a C runtime.
static IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/holdfast-keeper"));

const _: () = assert!(LISTENER_FD == holdfast_keeper::LISTENER);

/// How long a shim that somebody has stopped (SIGSTOP) is left alone; zero: for ever.
fn stopped_limit() -> Duration {
    limit_from_env("STOPPED", Duration::from_secs(5))
}

/// A keeper that is to be started.
#[derive(Debug)]
pub(crate) struct Keeper {
    image: File,
    keepers_end: OwnedFd,
    shims_end: OwnedFd,
}

impl Keeper {
    /// Makes what it needs.
    ///
    /// # Errors
    /// The kernel's; `EACCES` where files in memory must not be executed.
    pub(crate) fn new() -> io::Result<Self> {
        let mut image = sys::executable_memory_file(c"holdfast-keeper")?;
        image.write_all(IMAGE)?;
        sys::seal(&image)?;
        // Out of the way of the numbers that the keeper is given.
        let image = sys::move_above(&image, ABOVE)?;
        let (keepers_end, shims_end) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        Ok(Self {
            image,
            keepers_end,
            shims_end,
        })
    }

    /// Executes it, and it the program with the arguments that follow.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(format!("/proc/self/fd/{}", self.image.as_raw_fd()));
        command
            .arg0(NAME)
            .env(PROGRAM_VARIABLE, program)
            .env(KEPT_VARIABLE, "1");
        command
    }

    /// The descriptors that it is started with.
    ///
    /// # Errors
    /// `EMFILE`.
    pub(crate) fn descriptors(&self, listener: OwnedFd) -> io::Result<Vec<(OwnedFd, RawFd)>> {
        Ok(vec![
            (listener, LISTENER_FD),
            (self.keepers_end.try_clone()?, KEEPER_END),
            (self.shims_end.try_clone()?, SHIM_END),
        ])
    }

    /// Lets it begin: it is where it belongs.
    ///
    /// # Errors
    /// `EPIPE` when it has ended.
    pub(crate) fn go(self) -> io::Result<()> {
        drop(self.keepers_end);
        let patience = u32::try_from(stopped_limit().as_millis()).unwrap_or(u32::MAX);
        let words: Vec<u8> = [GO, patience]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        send(self.shims_end.as_raw_fd(), &words, MsgFlags::MSG_NOSIGNAL)?;
        Ok(())
    }
}

/// We were stopped, and the keeper let us go on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stop {
    /// By which signal.
    pub(crate) signal: Signal,
    /// For how long.
    pub(crate) waited: Duration,
    /// Since when.
    pub(crate) since: Timestamp,
}

/// Hears what the keeper says, until it is gone.
pub(crate) async fn listen(line: OwnedFd, reaper: Arc<Reaper>, stopped: impl Fn(Stop)) {
    let limit = stopped_limit();
    let heard = tokio::select! {
        heard = hear(line, &reaper, stopped) => heard,
        () = resume::link::keep_taking(limit), if !limit.is_zero() => Ok(()),
    };
    let why = match heard {
        Ok(()) => io::Error::from(io::ErrorKind::BrokenPipe),
        Err(error) => error,
    };
    resume::lose_keeper(&why);
    reaper.keeper_is_gone();
}

async fn hear(line: OwnedFd, reaper: &Arc<Reaper>, stopped: impl Fn(Stop)) -> io::Result<()> {
    crate::stdio::set_nonblocking(&line)?;
    let line = sys::watch(line, Interest::READABLE)?;
    loop {
        let mut buffer = [0u8; 64];
        let received = line
            .async_io(Interest::READABLE, |line| {
                sys::receive_with_fd(line.as_fd(), &mut buffer)
            })
            .await?;
        if received.len == 0 {
            return Ok(());
        }
        match Said::parse(buffer.get(..received.len).unwrap_or_default()) {
            Some(Said::End(end)) => {
                // It asks for ends only, so there is no other code.
                if let Some(status) = ExitStatus::from_waitid(end.code, end.status) {
                    let at = Timestamp::new(end.seconds, end.nanos);
                    reaper.told(
                        ChildEnd {
                            pid: end.pid,
                            status,
                        },
                        at,
                    );
                }
            }
            Some(Said::Continued {
                signal,
                waited,
                since: (seconds, nanos),
            }) => stopped(Stop {
                signal: Signal::new(signal),
                waited,
                since: Timestamp::new(seconds, nanos),
            }),
            None => {}
        }
    }
}
