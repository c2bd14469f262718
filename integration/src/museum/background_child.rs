//! An exec ends and leaves a child that holds its standard output. Its exit must be told at once,
//! and its client must not wait for the end of the child.

use std::thread;
use std::time::{Duration, Instant};

use super::{Outcome, Seen, Stage, seconds, within};
use crate::events::Subscriber;

/// How long the child lives.
const CHILD: Duration = Duration::from_secs(25);
const PROMPT: Duration = Duration::from_secs(2);

pub(super) fn visit(stage: &Stage) -> Outcome {
    stage.containerd.start_task("box", &[], &["sleep", "600"]);
    let subscriber = Subscriber::new(&stage.containerd);
    let script = format!("sleep {} & echo said", CHILD.as_secs());
    let began = Instant::now();
    let (exec, told) = thread::scope(|scope| {
        let told = scope.spawn(|| {
            within(CHILD, || {
                let events = subscriber.tasks();
                let told = events
                    .iter()
                    .any(|event| event.topic == "/tasks/exit" && event.text("id") == "parent");
                told.then(|| began.elapsed())
            })
        });
        let exec = stage.exec("box", "parent", &["sh", "-c", &script], CHILD);
        (exec, told.join())
    });
    let told = told.map_err(|_| "the subscriber failed")?;
    let arrived = if exec.said == "said" {
        "arrived"
    } else {
        "did not arrive"
    };
    let exit = told.map_or("not told".to_owned(), |took| {
        format!("told after {}", seconds(took))
    });
    Ok(Seen {
        held: told.is_some_and(|took| took < PROMPT) && exec.code == Some(0) && exec.said == "said",
        what: format!(
            "exit {exit}; with a child of {} s the client {}; output {arrived}",
            CHILD.as_secs(),
            exec.brief()
        ),
        said: stage.logged(&["held open", "still held"]),
    })
}
