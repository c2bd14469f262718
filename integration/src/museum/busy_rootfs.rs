//! A process of the host has its working directory in the container's root file system. The task
//! must be deleted all the same, and its holder named.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{Outcome, Seen, Stage};
use crate::leaks::mounts_under;

struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) fn visit(stage: &Stage) -> Outcome {
    let containerd = &stage.containerd;
    containerd.start_task("box", &[], &["sleep", "600"]);
    let rootfs = containerd.bundle("box").join("rootfs");
    let holder = Command::new("sleep")
        .arg("600")
        .current_dir(&rootfs)
        .stdin(Stdio::null())
        .spawn()
        .map(Holder)
        .map_err(|e| format!("a process in {}: {e}", rootfs.display()))?;

    containerd.ctr_ok(&["tasks", "kill", "--signal", "SIGKILL", "box"]);
    containerd.await_status("box", "STOPPED");
    let task = stage.ctr(&["tasks", "delete", "box"], Duration::from_secs(20));
    let container = stage.ctr(&["containers", "delete", "box"], Duration::from_secs(20));
    let mounts = mounts_under(&rootfs).len();
    let known = stage.status("box");
    // As a word: the digits alone are also in times and digests.
    let pid = holder.0.id();
    let named = stage.logged(&[&format!(" {pid} "), &format!("pid={pid} ")]);
    let holder_named = if named.is_some() {
        "named"
    } else {
        "not named"
    };
    Ok(Seen {
        held: known == "unknown to containerd" && container.code == Some(0) && mounts == 0,
        what: format!(
            "task delete {}, container delete {}, {mounts} mounts left, holder {holder_named}",
            // Its code is that of the task, 137.
            if known == "unknown to containerd" {
                "worked".to_owned()
            } else {
                task.brief()
            },
            container.brief(),
        ),
        said: named,
    })
}
