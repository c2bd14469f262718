//! Incident 3: a mount of the root file system could not be removed, because something on the host
//! still held it; the container could not be deleted, and the disk filled.
//!
//! A process of the host has its working directory in the container's root file system. Deleting
//! the task succeeds all the same, and nothing is left once the holder is gone.

use std::process::{Child, Command, Stdio};

use holdfast_integration::containerd::{Containerd, peer};
use holdfast_integration::leaks::mounts_under;
use holdfast_integration::{on_containerds, skip};

on_containerds! { a_held_root_does_not_stop_deletion; }

struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn a_held_root_does_not_stop_deletion(containerd: &Containerd) {
    if peer() {
        return skip(
            "i03_held_mount",
            "containerd's own shim fails with `failed rootfs umount`",
        );
    }
    containerd.start_task("box", &[], &["sleep", "600"]);
    let rootfs = containerd.bundle("box").join("rootfs");
    assert_eq!(
        mounts_under(&rootfs).len(),
        1,
        "{:?}",
        mounts_under(&rootfs)
    );
    let holder = Command::new("sleep")
        .arg("600")
        .current_dir(&rootfs)
        .stdin(Stdio::null())
        .spawn()
        .map(Holder)
        .expect("a process with its working directory in the root file system");

    containerd.end_task("box");
    assert!(
        mounts_under(&rootfs).is_empty(),
        "{:?}",
        mounts_under(&rootfs)
    );
    // Nothing of it is in the way of a namesake.
    containerd.start_task("box", &[], &["sleep", "600"]);
    containerd.end_task("box");
    drop(holder);
}
