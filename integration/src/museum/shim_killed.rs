//! The shim is killed, and before it what would begin it anew. That this ends its container is known; but
//! afterwards somebody must be able to learn that the container's 137 came from there.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Outcome, Seen, Side, Stage, within};
use crate::containerd::Containerd;
use crate::events::Subscriber;
use crate::leaks::is_alive;
use crate::shim::{Shim, kill_for_good};
use crate::tracing::Traced;

const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn visit(stage: &Stage) -> Outcome {
    let containerd = &stage.containerd;
    let traced = traced(stage)?;
    end_one_as_usual(stage)?;
    let init = containerd.start_task("box", &[], &["sleep", "600"]);
    await_trace(stage, &traced);
    let subscriber = Subscriber::new(containerd);
    let shim = Shim::of(containerd, "box").pid("box");
    kill_for_good(shim);

    let code = within(PATIENCE, || {
        let events = subscriber.tasks();
        let exit = events
            .iter()
            .find(|event| event.topic == "/tasks/exit" && event.text("id") == "box")?;
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
    let traced = traced(stage)?;
    end_one_as_usual(stage)?;
    let init = containerd.start_task("box", &[], &["sleep", "600"]);
    await_trace(stage, &traced);
    let shim = Shim::of(containerd, "box").pid("box");
    containerd.kill_daemon();
    kill_for_good(shim);
    within(PATIENCE, || (!is_alive(shim)).then_some(())).ok_or("the shim does not end")?;
    containerd.start_daemon();
    let status = stage.status("box");
    Ok(judge(stage, init, &format!("status {status}"), true))
}

fn traced(stage: &Stage) -> Result<Traced, String> {
    Traced::new("museum", &stage.containerd).ok_or("tracefs cannot be mounted here".to_owned())
}

fn await_trace(stage: &Stage, traced: &Traced) {
    if stage.side == Side::Ours {
        traced.await_on();
    }
}

fn judge(stage: &Stage, init: i32, told: &str, is_told: bool) -> Seen {
    let ended = within(PATIENCE, || (!is_alive(init)).then_some(()));
    let said = stage.why("box");
    let of_record = said
        .as_ref()
        .is_some_and(|sentence| sentence.contains("The shim of container box"));
    // containerd logs the end of every shim, also of one that had nothing left to do. Only what
    // it says of this one alone can tell somebody what happened.
    let usual = about_shim(&stage.containerd, "usual");
    let box_alone: Vec<String> = about_shim(&stage.containerd, "box")
        .difference(&usual)
        .cloned()
        .collect();
    let container = if ended.is_some() {
        "ended"
    } else {
        "lives on alone"
    };
    let by_whom = said
        .as_ref()
        .is_some_and(|sentence| sentence.contains("was killed by pid"));
    let cause = match (of_record, box_alone.as_slice()) {
        (true, _) if by_whom => "a record says that its shim was killed, and by whom".to_owned(),
        (true, _) => "a record says that its shim was gone".to_owned(),
        (false, []) => "logged as any other end of a shim".to_owned(),
        (false, [first, ..]) => format!("logged: {}", stage.shortened(first)),
    };
    Seen {
        held: is_told && (of_record || !box_alone.is_empty()),
        what: format!("the container {container}, {told}; {cause}"),
        said,
    }
}

/// A container that ends as it should, and its shim after it: to compare with.
fn end_one_as_usual(stage: &Stage) -> Result<(), String> {
    stage.containerd.start_task("usual", &[], &["sleep", "600"]);
    stage.containerd.end_task("usual");
    let disconnected = || {
        let about = about_shim(&stage.containerd, "usual");
        about
            .iter()
            .any(|message| message.contains("disconnected"))
            .then_some(())
    };
    within(PATIENCE, disconnected).ok_or("containerd does not notice the end of a shim".to_owned())
}

/// What containerd logged about the shim of a container.
fn about_shim(containerd: &Containerd, id: &str) -> BTreeSet<String> {
    let [field, path] = [format!(" id={id} "), format!("/{id}\"")];
    let log = containerd.log();
    let lines = log
        .lines()
        .filter(|line| line.contains(&field) || line.contains(&path));
    lines
        .filter_map(|line| {
            let message = line.split_once("msg=\"")?.1.split('"').next()?;
            message.contains("shim").then(|| message.to_owned())
        })
        .collect()
}
