//! Somebody on the node kills the container's process with `kill -9`: exit 137, and nobody has asked for it. What counts
//! is whether anybody can say afterwards who it was; the killer is gone by then.

use std::process::Command;
use std::time::Duration;

use super::{Outcome, Seen, Side, Stage, within};
use crate::events::Subscriber;
use crate::tracing::Traced;
use crate::{deadline, place};

const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn visit(stage: &Stage) -> Outcome {
    let containerd = &stage.containerd;
    let traced = Traced::new("museum", containerd).ok_or("tracefs cannot be mounted here")?;
    let pid = containerd.start_task("box", &[], &["sleep", "600"]);
    if stage.side == Side::Ours {
        traced.await_on();
    }
    let subscriber = Subscriber::new(containerd);
    let mut kill = Command::new(place::program("kill").ok_or("kill is not installed")?);
    kill.args(["-9", &pid.to_string()]);
    deadline::run(&mut kill, PATIENCE).ok();
    let code = within(PATIENCE, || {
        let events = subscriber.tasks();
        let exit = |event: &&crate::events::Event| {
            event.topic == "/tasks/exit" && event.text("id") == "box"
        };
        events
            .iter()
            .find(exit)
            .map(|exit| exit.number("exit_status"))
    });
    let said = stage.why("box");
    let names = said
        .as_ref()
        .is_some_and(|said| said.contains("(kill)") && said.contains("child of"));
    let told = code.map_or("no exit told".to_owned(), |code| {
        format!("exit {code} told")
    });
    let who = if names {
        "the killer named with command and parent, in ledger and journald"
    } else {
        "who it was is nowhere"
    };
    Ok(Seen {
        held: code == Some(137) && names,
        what: format!("the container ended, {told}; {who}"),
        said,
    })
}
