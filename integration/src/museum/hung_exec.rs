//! A call of the runtime for an exec hangs; then init dies. Its exit must be told all the same:
//! a pod whose container's exit is not told stays in Terminating.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Outcome, Seen, Stage, seconds, within};
use crate::events::Subscriber;
use crate::fault::Fault;

const PATIENCE: Duration = Duration::from_secs(15);

pub(super) fn visit(stage: &Stage) -> Outcome {
    let containerd = &stage.containerd;
    let pid = containerd.start_task("box", &[], &["sleep", "600"]);
    let subscriber = Subscriber::new(containerd);
    stage.order("exec", Fault::Hang);
    let words = ["tasks", "exec", "--exec-id", "hangs", "box", "true"];
    let _exec = containerd.spawn(&words, None);
    stage.await_hang();

    kill(Pid::from_raw(pid), Signal::SIGKILL).map_err(|e| e.to_string())?;
    let began = Instant::now();
    let told = within(PATIENCE, || {
        let events = subscriber.tasks();
        let exit = |event: &&crate::events::Event| {
            event.topic == "/tasks/exit" && event.text("id") == "box"
        };
        events.iter().find(exit).map(|_| began.elapsed())
    });
    let status = stage.status("box");
    let what = match told {
        Some(took) => format!("init's exit told after {}, status {status}", seconds(took)),
        None => format!(
            "init's exit not told for {}, status {status} for a dead process",
            seconds(PATIENCE)
        ),
    };
    Ok(Seen {
        held: told.is_some(),
        what,
        said: stage.why("box"),
    })
}
