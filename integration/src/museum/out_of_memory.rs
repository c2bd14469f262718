//! The kernel's OOM killer takes the container's init process, or a child of it after which init gives up. What counts is
//! the true exit code, and for the child that somebody can say which process it was and what was full.

use std::time::Duration;

use super::{Outcome, Seen, Stage, within};
use crate::events::Subscriber;

const PATIENCE: Duration = Duration::from_secs(10);
const EATER: &str = "tail -n 1 /dev/zero";

pub(super) fn init(stage: &Stage) -> Outcome {
    show(stage, &format!("exec {EATER}"), 137, "tail")
}

pub(super) fn child(stage: &Stage) -> Outcome {
    show(stage, &format!("{EATER}; exit 7"), 7, "tail (pid ")
}

fn show(stage: &Stage, script: &str, expected: u64, victim: &str) -> Outcome {
    let containerd = &stage.containerd;
    let subscriber = Subscriber::new(containerd);
    let limit = (24 << 20).to_string();
    let flags = ["--null-io", "--memory-limit", &limit];
    stage.run("big", &flags, &["sh", "-c", script], PATIENCE);
    let code = within(PATIENCE, || {
        let events = subscriber.tasks();
        let exit = |event: &&crate::events::Event| {
            event.topic == "/tasks/exit" && event.text("id") == "big"
        };
        events
            .iter()
            .find(exit)
            .map(|exit| exit.number("exit_status"))
    });
    let is_told = subscriber
        .tasks()
        .iter()
        .any(|event| event.topic == "/tasks/oom");
    let said = stage.why("big");
    let is_named = said.as_ref().is_some_and(|said| {
        said.contains("24.0 MiB") && (expected == 137 || said.contains(victim))
    });
    let cause = match (is_named, is_told) {
        (true, _) => "the record names what was full and who was killed",
        (false, true) => "an OOM event, without a process or a limit",
        (false, false) => "no word of memory",
    };
    // An OOM event beside 137 is explanation enough when init itself was killed.
    let is_explained = is_named || (is_told && expected == 137);
    let told = code.map_or("no exit told".to_owned(), |code| {
        format!("exit {code} told")
    });
    Ok(Seen {
        held: code == Some(expected) && is_explained,
        what: format!("{told}; {cause}"),
        said,
    })
}
