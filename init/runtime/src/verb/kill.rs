//! `kill`: a signal to the init process, or to everything in the cgroup.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use holdfast_record::{ContainerId, Signal};

use super::Context;
use crate::error::{Doing, Error, Result};
use crate::sys::clone;

const LIMIT: Duration = Duration::from_secs(10);

/// Sends `signal`; `all` includes every process of the container.
///
/// # Errors
/// [`Error::NotRunning`] when the init process has ended.
pub fn kill(context: &Context, id: &ContainerId, signal: Signal, all: bool) -> Result<()> {
    let container = context.container(id)?;
    if all {
        // Also of a stopped container: without a pid namespace its children can outlive it.
        let cgroup = container.cgroup().ok_or(Error::NotRunning)?;
        return match cgroup.signal_all(signal.number(), Instant::now() + LIMIT) {
            Err(error) if error.is_gone() => Err(Error::NotRunning),
            other => Ok(other?),
        };
    }
    let (pid, pidfd) = container.open_init()?;
    match clone::signal_pidfd(pidfd.as_fd(), signal.number()) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Err(Error::NotRunning),
        other => other.doing(|| format!("send signal {} to process {pid}", signal.number())),
    }?;
    // A frozen process takes SIGKILL only once it is thawed (v1; v2 does it by itself).
    if signal.number() == libc::SIGKILL
        && let Some(cgroup) = container.cgroup()
        && let Err(error) = cgroup.thaw_all()
        && !error.is_gone()
    {
        log::warn!("kill: {}", crate::error::chain(&error));
    }
    Ok(())
}
