//! The file system of containerd's state directory, where the bundles are, is full. What fails
//! must name that; kill and delete must work, for they are what makes space.

use std::fs::File;
use std::io::Write as _;
use std::time::Duration;

use nix::mount::{MsFlags, mount};

use super::{Outcome, Seen, Stage};

const PATIENCE: Duration = Duration::from_secs(12);

pub(super) fn visit(stage: &Stage) -> Outcome {
    let containerd = &stage.containerd;
    let tasks = containerd.path("state/io.containerd.runtime.v2.task");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(
        Some("museum"),
        &tasks,
        Some("tmpfs"),
        flags,
        Some("size=1m"),
    )
    .map_err(|e| format!("mount a small tmpfs: {e}"))?;
    containerd.start_task("box", &[], &["sleep", "600"]);
    let mut filler = File::create(tasks.join("filler")).map_err(|e| e.to_string())?;
    // Whole pages, so that the last one is taken too.
    while filler.write_all(&[b'x'; 4096]).is_ok() {}

    let exec = stage.exec("box", "full", &["true"], PATIENCE);
    let killed = stage.ctr(&["tasks", "kill", "--signal", "SIGKILL", "box"], PATIENCE);
    let stopped = super::within(PATIENCE, || {
        (stage.status("box") == "STOPPED").then_some(())
    });
    let removed = stage.ctr(&["tasks", "delete", "box"], PATIENCE);
    let known = stage.status("box");
    let named = exec.said.to_lowercase().contains("no space left");
    let cause = match (exec.code, named) {
        (Some(0), _) => "",
        (_, true) => ", naming it",
        (_, false) => ", without the cause",
    };
    let ended = killed.code == Some(0) && stopped.is_some() && known == "unknown to containerd";
    let rest = if ended {
        "kill and delete work".to_owned()
    } else {
        format!(
            "kill {}, delete {}, task {known}",
            killed.brief(),
            removed.brief()
        )
    };
    let quoted = if exec.code == Some(0) || named {
        String::new()
    } else {
        format!(" ({})", exec.said)
    };
    Ok(Seen {
        held: ended && (exec.code == Some(0) || named),
        what: format!("exec {}{cause}{quoted}; {rest}", exec.brief()),
        said: if exec.code == Some(0) {
            None
        } else {
            stage.refused(&exec.said)
        },
    })
}
