//! A process of the container is in a frozen cgroup inside the container's own, where SIGKILL does
//! not reach it: as unkillable as one in D state. Either it ends, or it is said why it does not.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::{Outcome, Seen, Stage, within};
use crate::leaks::is_alive;

pub(super) fn visit(stage: &Stage) -> Outcome {
    let freezer = Path::new("/sys/fs/cgroup/freezer");
    if !freezer.exists() {
        return Err("no freezer of cgroup v1 here (v2's lets SIGKILL through)".to_owned());
    }
    let pid = stage.containerd.start_task("box", &[], &["sleep", "600"]);
    let nested = freezer
        .join(&stage.containerd.namespace)
        .join("box")
        .join("nested");
    let write = |name: &str, text: &str| {
        let path = nested.join(name);
        fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))
    };
    fs::create_dir(&nested).map_err(|e| format!("{}: {e}", nested.display()))?;
    write("cgroup.procs", &pid.to_string())?;
    write("freezer.state", "FROZEN")?;
    let state = nested.join("freezer.state");
    within(Duration::from_secs(5), || {
        (fs::read_to_string(&state).ok()?.trim() == "FROZEN").then_some(())
    })
    .ok_or("the nested cgroup does not freeze")?;

    let kill = ["tasks", "kill", "--signal", "SIGKILL", "box"];
    let killed = stage.ctr(&kill, Duration::from_secs(10));
    let gone = within(Duration::from_secs(5), || (!is_alive(pid)).then_some(()));
    let remove = ["tasks", "delete", "--force", "box"];
    let removed = stage.ctr(&remove, Duration::from_secs(12));
    let process = if gone.is_some() {
        "ended"
    } else {
        "is still there"
    };
    let named = [&killed, &removed]
        .iter()
        .any(|answer| answer.said.contains(&pid.to_string()));
    // A task removed after its end is told by the code of the task.
    let known = stage.status("box");
    Ok(Seen {
        held: (gone.is_some() && known == "unknown to containerd") || named,
        what: format!(
            "kill: {}, the process {process}; rm -f: {}, task {known}",
            killed.brief(),
            removed.brief(),
        ),
        said: if named {
            stage
                .refused(&killed.said)
                .or_else(|| stage.refused(&removed.said))
        } else {
            stage.why("box")
        },
    })
}
