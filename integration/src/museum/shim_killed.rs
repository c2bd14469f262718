//! The shim is killed. That it ends its container is known; but afterwards somebody must be able
//! to learn that the container's 137 came from there.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Outcome, Seen, Stage, within};
use crate::events::Subscriber;
use crate::leaks::is_alive;
use crate::shim::Shim;

const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn visit(stage: &Stage) -> Outcome {
    let containerd = &stage.containerd;
    let init = containerd.start_task("box", &[], &["sleep", "600"]);
    let subscriber = Subscriber::new(containerd);
    let shim = Shim::of(containerd, "box").pid("box");
    kill(Pid::from_raw(shim), Signal::SIGKILL).map_err(|e| e.to_string())?;

    let code = within(PATIENCE, || {
        let events = subscriber.tasks();
        let exit = events.iter().find(|event| event.topic == "/tasks/exit")?;
        Some(exit.number("exit_status"))
    });
    let told = code.map_or("no exit told".to_owned(), |code| {
        format!("exit {code} told")
    });
    Ok(judge(stage, init, &told, code.is_some()))
}

/// The same while containerd is down: nobody sees it happen. What counts is what can be learned
/// when containerd is back.
pub(super) fn visit_while_down(stage: &Stage) -> Outcome {
    let containerd = &stage.containerd;
    let init = containerd.start_task("box", &[], &["sleep", "600"]);
    let shim = Shim::of(containerd, "box").pid("box");
    containerd.kill_daemon();
    kill(Pid::from_raw(shim), Signal::SIGKILL).map_err(|e| e.to_string())?;
    within(PATIENCE, || (!is_alive(shim)).then_some(())).ok_or("the shim does not end")?;
    containerd.start_daemon();
    let status = stage.status("box");
    Ok(judge(stage, init, &format!("status {status}"), true))
}

fn judge(stage: &Stage, init: i32, told: &str, is_told: bool) -> Seen {
    let ended = within(PATIENCE, || (!is_alive(init)).then_some(()));
    let said = stage.why("box");
    // Anything that was recorded counts, also what containerd logs about the shim's end.
    let signal = ["SIGKILL", "signal: killed", "signal 9"];
    let recorded = said
        .clone()
        .into_iter()
        .chain(stage.logged(&signal))
        .find(|text| text.contains("shim") && signal.iter().any(|word| text.contains(word)));
    let container = if ended.is_some() {
        "ended"
    } else {
        "lives on alone"
    };
    let cause = if recorded.is_some() {
        "that the shim was killed is recorded"
    } else {
        "nothing says that the shim was killed"
    };
    Seen {
        held: is_told && recorded.is_some(),
        what: format!("the container {container}, {told}; {cause}"),
        said,
    }
}
