//! Kernel settings, changed for one test and put back.

use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A changed setting; dropping it, on a panic too, restores what was there.
#[derive(Debug)]
pub struct Changed {
    path: PathBuf,
    before: String,
    _alone: MutexGuard<'static, ()>,
}

/// Sets `name` (dots as in sysctl(8)) to `value` until the guard is dropped.
///
/// # Errors
/// The file's error, when it cannot be read or written here.
pub fn set(name: &str, value: &str) -> std::io::Result<Changed> {
    let alone = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let path = PathBuf::from("/proc/sys").join(name.replace('.', "/"));
    let before = fs::read_to_string(&path)?;
    fs::write(&path, value)?;
    Ok(Changed {
        path,
        before,
        _alone: alone,
    })
}

impl Drop for Changed {
    fn drop(&mut self) {
        if let Err(e) = fs::write(&self.path, self.before.trim()) {
            panic!(
                "{} is not restored to {}: {e}",
                self.path.display(),
                self.before.trim()
            );
        }
    }
}
