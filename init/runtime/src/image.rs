//! The image of `holdfast-init`, carried inside this binary.

use std::os::fd::OwnedFd;

use crate::error::{Doing, Result};
use crate::sys::fd;

/// Built by `build.rs`; static, without a C runtime.
static IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/holdfast-init"));

/// A sealed copy to execute. The container's `/proc/PID/exe` leads here and nowhere else
/// (CVE-2019-5736).
pub(crate) fn sealed() -> Result<OwnedFd> {
    fd::sealed(c"holdfast-init", IMAGE, true, false)
        .doing(|| "put holdfast-init into a sealed memfd".into())
}

/// Size of the image in bytes.
pub(crate) fn size() -> usize {
    IMAGE.len()
}
