//! containerd is stopped for longer than it is given for one event, while execs come and go.
//! Afterwards it must hear all of it, once and in order.

use std::time::{Duration, Instant};

use super::stage::Stopped;
use super::{Outcome, Seen, Stage, within};
use crate::events::{Event, Subscriber};
use crate::shim::Shim;

const EXECS: usize = 10;

/// Longer than one event may take; `HOLDFAST_LONG=1` makes it the minute of the incident.
fn outage() -> Duration {
    let long = std::env::var_os("HOLDFAST_LONG").is_some_and(|long| long == "1");
    Duration::from_secs(if long { 60 } else { 8 })
}

pub(super) fn visit(stage: &Stage) -> Outcome {
    let containerd = &stage.containerd;
    containerd.start_task("box", &[], &["sleep", "600"]);
    let shim = Shim::of(containerd, "box");
    let subscriber = Subscriber::new(containerd);
    let before = told(&subscriber.tasks()).len();
    let began = Instant::now();
    let stopped = Stopped::new(containerd.pid());
    for number in 0..EXECS {
        let exec = name(number);
        let refused = |refused: crate::shim::Refused| refused.message;
        shim.exec("box", &exec, &["true"]).map_err(refused)?;
        shim.start("box", &exec).map_err(refused)?;
        shim.wait("box", &exec).map_err(refused)?;
        shim.delete("box", &exec).map_err(refused)?;
    }
    let served = began.elapsed();
    std::thread::sleep(outage().saturating_sub(served));
    drop(stopped);

    let expected: Vec<(String, String)> = (0..EXECS)
        .flat_map(|number| {
            ["exec-added", "exec-started", "exit"]
                .map(|topic| (format!("/tasks/{topic}"), name(number)))
        })
        .collect();
    let seen = || told(&subscriber.tasks()).split_off(before);
    within(Duration::from_secs(12), || {
        (seen().len() >= expected.len()).then_some(())
    });
    let seen = seen();
    let missing = expected.iter().filter(|one| !seen.contains(one)).count();
    let twice = seen.len() + missing - expected.len();
    let order = if missing == 0 && twice == 0 && seen != expected {
        ", out of order"
    } else {
        ""
    };
    Ok(Seen {
        held: seen == expected,
        what: format!(
            "{EXECS} execs took {}; of {} events {missing} missing, {twice} twice{order}",
            super::seconds(served),
            expected.len(),
        ),
        said: stage.logged(&["containerd takes events again"]),
    })
}

fn name(number: usize) -> String {
    format!("exec-{number}")
}

/// Topic and exec of each event of an exec of `box`, in order.
fn told(events: &[Event]) -> Vec<(String, String)> {
    let of_box = events
        .iter()
        .filter(|event| event.text("container_id") == "box");
    of_box
        .map(|event| {
            let exec = match event.text("exec_id") {
                "" => event.text("id"),
                exec => exec,
            };
            (event.topic.clone(), exec.to_owned())
        })
        .collect()
}
