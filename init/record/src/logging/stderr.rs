//! fd 2 of a long-lived process, from its first instruction on.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::Places;
use crate::sys;

/// The file is set aside as `….1` when it has this many bytes, so that both together stay bounded.
pub(super) const FILE_LIMIT: u64 = 1 << 20;

/// Where fd 2 leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sink {
    /// journald's stream.
    Journal,
    /// The file; errors are copied to `/dev/kmsg`.
    File,
    /// `/dev/kmsg` alone.
    Kmsg,
    /// What it was before: nothing else could be opened.
    Inherited,
}

/// Leads fd 2 to journald's stream as `identifier`, or to the best substitute there is, and says which.
///
/// Never fails and never waits. To be called before anything else, in a process whose parent gave it `/dev/null`.
/// Lines carry a `<priority>` prefix, `sd-daemon(3)`; a line without one counts as priority 6.
#[must_use]
pub fn stderr_to_journal(identifier: &str, places: &Places) -> Sink {
    let attempts: [(Sink, &dyn Fn() -> io::Result<OwnedFd>); 3] = [
        (Sink::Journal, &|| stream(&places.stream, identifier)),
        (Sink::File, &|| file(&places.file).map(OwnedFd::from)),
        (Sink::Kmsg, &|| kmsg(&places.kmsg).map(OwnedFd::from)),
    ];
    for (sink, open) in attempts {
        if let Ok(fd) = open()
            && sys::replace_stderr(fd.as_fd()).is_ok()
        {
            return sink;
        }
    }
    Sink::Inherited
}

/// Connects to journald's stream and says who we are: identifier, unit, priority, level prefix, and three
/// forwardings (syslog, kernel log, console), a line each; systemd's `src/journal/journald-stream.c`.
fn stream(path: &Path, identifier: &str) -> io::Result<OwnedFd> {
    let fd = sys::connect_stream(path)?;
    let identifier = identifier.replace(['\n', '\0'], " ");
    let header = format!("{identifier}\n\n6\n1\n0\n0\n0\n");
    let written = sys::send(fd.as_fd(), header.as_bytes())?;
    if written != header.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(fd)
}

/// Opens the file for appending, setting a full one aside first.
pub(super) fn file(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent()
        && !folder.is_dir()
    {
        std::fs::create_dir_all(folder)?;
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))?;
    }
    if std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.len() >= FILE_LIMIT) {
        let mut aside = path.as_os_str().to_owned();
        aside.push(".1");
        // Another process may have done it at this very moment; either way the name is free or short again.
        let _ = std::fs::rename(path, aside);
    }
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
}

/// Opens the kernel's log for writing.
pub(super) fn kmsg(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
}
