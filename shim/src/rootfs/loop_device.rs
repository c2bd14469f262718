//! File system images behind loop devices, for mounts with the option `loop`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use crate::sys;

/// Tries for a free device: others take them, too.
const TRIES: u32 = 32;

/// A loop device with an image. The kernel frees it when nobody has it open or mounted any more,
/// so it has to be kept until it is mounted, and nothing has to be undone.
#[derive(Debug)]
pub(super) struct LoopDevice {
    /// Its node.
    pub(super) path: PathBuf,
    _open: File,
}

/// Puts the image at `path` behind a free loop device.
///
/// # Errors
/// The image's or the device's; `EBUSY` when others took every device first.
pub(super) fn attach(image: &Path, read_only: bool) -> io::Result<LoopDevice> {
    let image = OpenOptions::new()
        .read(true)
        .write(!read_only)
        .open(image)?;
    let control = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/loop-control")?;
    for _ in 0..TRIES {
        let number = sys::free_loop_device(control.as_fd())?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(&path)?;
        match sys::configure_loop(device.as_fd(), image.as_fd(), read_only) {
            Ok(()) => {
                return Ok(LoopDevice {
                    path,
                    _open: device,
                });
            }
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}
