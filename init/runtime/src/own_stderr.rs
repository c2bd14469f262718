//! fd 2 of ours, and that of the container.
//!
//! A shim gives `create` and `exec` the container's standard error as fd 2, because the container inherits it. What we, or
//! the C library beneath us, have to say about ourselves (a panic, `free(): invalid pointer`) is not the container's:
//! run by our shim, we lead fd 2 to journald at once and keep the container's for the container.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::OnceLock;

use holdfast_record::logging::{self, Places};

use crate::error::{Doing, Result};
use crate::sys::fd;

/// Above everything that `--preserve-fds` could mean.
const FLOOR: RawFd = 512;

static CONTAINERS: OnceLock<OwnedFd> = OnceLock::new();

/// Leads fd 2 away from the container's. Without room for one more descriptor it stays where it is.
pub(crate) fn lead_away() {
    let stderr = std::io::stderr();
    let Ok(kept) = copy(stderr.as_fd()) else {
        return;
    };
    if CONTAINERS.set(kept).is_ok() {
        // Whatever it found is better than the container's log.
        let _ = logging::stderr_to_journal("holdfast", &Places::default());
    }
}

/// fds 0 to 2 for a new process, if they are not ours any more.
///
/// # Errors
/// When no descriptor is left.
pub(crate) fn for_container() -> Result<Option<[OwnedFd; 3]>> {
    let Some(stderr) = CONTAINERS.get() else {
        return Ok(None);
    };
    let copy =
        |fd: BorrowedFd<'_>| copy(fd).doing(|| format!("copy descriptor {}", fd.as_raw_fd()));
    Ok(Some([
        copy(std::io::stdin().as_fd())?,
        copy(std::io::stdout().as_fd())?,
        copy(stderr.as_fd())?,
    ]))
}

/// A duplicate that nobody inherits by accident.
fn copy(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let copy = fd::inherited_above(fd, FLOOR)?;
    fd::adopt(fd::keep_open(copy))
}
