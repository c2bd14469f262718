//! Paths of the host that a container's configuration names, on file systems that may not answer.
//!
//! A look-up on a network or FUSE file system whose server is gone can wait for ever, and not every
//! such wait ends for a signal. So what the kernel does not know by heart (`RESOLVE_CACHED`,
//! openat2(2)) is looked up by a child first, which can be given up.

use std::ffi::CStr;
use std::os::fd::AsFd;
use std::time::Duration;

use holdfast_record::Deadline;

use crate::error::{Doing, Result};
use crate::link::wait_readable;
use crate::sys::{clone, fd};

/// How long one look-up may take.
const LIMIT: Duration = Duration::from_secs(20);

/// Returns when `path` can be looked up without waiting, be it to find that there is nothing.
///
/// # Errors
/// [`crate::Error::Expired`], with the state of the child that waited.
pub(crate) fn reach(path: &CStr) -> Result<()> {
    if fd::is_cached(path) {
        return Ok(());
    }
    let shown = path.to_string_lossy();
    let deadline = Deadline::named(
        "path",
        LIMIT,
        format!("the file system of {shown} to answer"),
    );
    let child = clone::fork_for(|| {
        fd::look_up(path);
        0
    })
    .doing(|| format!("start the process that looks for {shown}"))?;
    let waited = wait_readable(&[child.pidfd.as_fd()], &deadline, child.pid);
    if waited.is_err() {
        // It may not even die: it has nothing of ours, and ends with the file system's wait.
        let _ = clone::signal_pidfd(child.pidfd.as_fd(), libc::SIGKILL);
    }
    let _ = clone::wait_pidfd(child.pidfd.as_fd(), waited.is_ok());
    waited
}
