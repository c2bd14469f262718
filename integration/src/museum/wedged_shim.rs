//! One shim of two is stopped, as by a debugger or a kernel bug. The list of tasks must still come
//! and must not hide its task.

use std::time::Duration;

use super::stage::Stopped;
use super::{Outcome, Seen, Stage, within};
use crate::shim::Shim;

const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn visit(stage: &Stage) -> Outcome {
    let containerd = &stage.containerd;
    containerd.start_task("wedged", &[], &["sleep", "600"]);
    containerd.start_task("other", &[], &["sleep", "600"]);
    let shim = Shim::of(containerd, "wedged").pid("wedged");
    let stopped = Stopped::new(shim);
    let mut client = containerd.spawn(&["tasks", "list"], None);
    let began = std::time::Instant::now();
    let answered = crate::deadline::wait(&mut client.child, PATIENCE);
    let took = super::seconds(began.elapsed());
    let list = client.output();
    let line = list.lines().find(|line| line.starts_with("wedged"));
    let killed = stage.ctr(
        &["tasks", "kill", "--signal", "SIGKILL", "wedged"],
        Duration::from_secs(6),
    );
    let in_list = match (answered, line) {
        (None, _) => format!("the list did not come for {took}"),
        (Some(_), None) => format!("the list came after {took} without the task"),
        (Some(_), Some(line)) => {
            let status = line.split_whitespace().last().unwrap_or_default();
            format!("the list came after {took}, the task as {status}")
        }
    };
    drop(stopped);
    let back = within(Duration::from_secs(5), || {
        (stage.status("wedged") != "unknown to containerd").then_some(())
    });
    let after = if back.is_some() {
        "known again"
    } else {
        "still unknown"
    };
    Ok(Seen {
        held: answered.is_some() && line.is_some() && killed.code.is_some(),
        what: format!("{in_list}; kill: {}; after SIGCONT {after}", killed.brief()),
        // The one who could speak is stopped; containerd answers in its place.
        said: None,
    })
}
