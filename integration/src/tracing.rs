//! tracefs for the shims of one private containerd: a mount in its folder and trace instances of its own.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::containerd::Containerd;
use crate::{deadline, leaks, skip};

/// Folder of a private containerd at which its shims look for tracefs. Nothing is there unless a test asks.
pub(crate) const FOLDER: &str = "tracing";

/// See the module. Unmounts and removes the instances when dropped.
#[derive(Debug)]
pub struct Traced {
    folder: PathBuf,
    instance: String,
}

/// The name of a private containerd's trace instance, from that of its folder.
pub(crate) fn instance(folder: &std::path::Path) -> String {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    name.into_owned()
}

impl Traced {
    /// Mounts tracefs for the shims that `containerd` starts from now on. None, with a word on the terminal, where that
    /// cannot be had.
    ///
    /// # Panics
    /// When the folder cannot be made.
    #[must_use]
    pub fn new(test: &str, containerd: &Containerd) -> Option<Self> {
        let folder = containerd.path(FOLDER);
        std::fs::create_dir_all(&folder).expect("folder for tracefs");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tracefs", "tracefs"]).arg(&folder);
        let mounted = deadline::run(&mut mount, Duration::from_secs(10));
        if !mounted.status.success() {
            skip(test, &format!("tracefs: {}", mounted.stderr.trim()));
            return None;
        }
        Some(Self {
            folder,
            instance: instance(&containerd.path("")),
        })
    }

    /// Waits until a shim has switched the tracing on.
    ///
    /// # Panics
    /// When none does.
    pub fn await_on(&self) {
        let signals = self.folder.join("instances").join(&self.instance);
        let switch = signals.join("events/signal/signal_generate/enable");
        deadline::eventually("signals are traced", Duration::from_secs(20), || {
            let on = std::fs::read_to_string(&switch).is_ok_and(|text| text.trim() == "1");
            on.then_some(())
        });
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let instances = self.folder.join("instances");
        for name in [
            self.instance.clone(),
            format!("{}-processes", self.instance),
        ] {
            // EBUSY while a shim reads it; it was asked for its answer before.
            leaks::remove_busy_folder(&instances.join(&name), Duration::from_secs(1));
        }
        // A shim may be looking into it at this moment.
        deadline::within(Duration::from_secs(1), || {
            let mut unmount = Command::new("umount");
            unmount.arg(&self.folder);
            let done = deadline::run(&mut unmount, Duration::from_secs(10));
            (done.code() == 0).then_some(())
        });
    }
}
