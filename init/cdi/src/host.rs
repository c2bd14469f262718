//! Device nodes of the host.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::{fs, io};

use thiserror::Error;

/// What the host says of a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostNode {
    /// `b`, `c` or `p`.
    pub kind: char,
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// Permission bits with set-id and sticky.
    pub mode: u32,
    /// Group.
    pub gid: u32,
}

/// Why the host has no such node.
#[derive(Debug, Error)]
pub enum HostNodeError {
    /// It cannot be looked at.
    #[error("cannot look at the device node")]
    Stat(#[source] io::Error),
    /// It is something else.
    #[error("is no device node")]
    NotADevice,
}

/// Looks at a device node of the host. Links are not followed: what is mounted is the node.
///
/// # Errors
/// When there is none at this path.
pub fn host_node(path: &Path) -> Result<HostNode, HostNodeError> {
    let meta = fs::symlink_metadata(path).map_err(HostNodeError::Stat)?;
    let kind = meta.file_type();
    let kind = if kind.is_block_device() {
        'b'
    } else if kind.is_char_device() {
        'c'
    } else if kind.is_fifo() {
        'p'
    } else {
        return Err(HostNodeError::NotADevice);
    };
    Ok(HostNode {
        kind,
        major: i64::from(libc::major(meta.rdev())),
        minor: i64::from(libc::minor(meta.rdev())),
        mode: meta.mode() & 0o7777,
        gid: meta.gid(),
    })
}
