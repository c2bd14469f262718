//! An exec whose program does not exist is started, fails, and is started again, as a client that
//! retries does. The shim, and every container it has, must survive that.

use std::time::Duration;

use super::{Outcome, Seen, Stage, attempt, within};
use crate::leaks::is_alive;
use crate::shim::Shim;

pub(super) fn visit(stage: &Stage) -> Outcome {
    let init = stage.containerd.start_task("box", &[], &["sleep", "600"]);
    let shim = Shim::of(&stage.containerd, "box");
    let shim_pid = shim.pid("box");
    let registered = shim.exec("box", "bad", &["/no/such/program"]);
    registered.map_err(|refused| refused.message)?;
    if shim.start("box", "bad").is_ok() {
        return Err("a program that does not exist was started".to_owned());
    }
    let second = attempt(|| shim.start("box", "bad"));
    let died = within(Duration::from_secs(3), || {
        (!is_alive(shim_pid)).then_some(())
    })
    .is_some();
    let what = if died {
        let gone = within(Duration::from_secs(5), || (!is_alive(init)).then_some(()));
        let container = if gone.is_some() {
            "died with it"
        } else {
            "lives on alone"
        };
        let panic = stage.logged(&["panic:"]).unwrap_or_default();
        format!("the shim died of the second start, the container {container}; {panic}")
    } else {
        "the second start was refused; shim and container live".to_owned()
    };
    let said = match second {
        Ok(Err(refused)) => stage.refused(&refused.message),
        Ok(Ok(pid)) => return Err(format!("the second start started {pid}")),
        Err(_) => None,
    };
    Ok(Seen {
        held: !died && is_alive(init),
        what,
        said,
    })
}

/// An exec that runs is started once more, which is refused; then the container ends. Its exit must
/// be told, and the shim must live to tell it.
pub(super) fn visit_while_it_runs(stage: &Stage) -> Outcome {
    let init = stage.containerd.start_task("box", &[], &["sleep", "600"]);
    let shim = Shim::of(&stage.containerd, "box");
    let shim_pid = shim.pid("box");
    let begun = shim.exec("box", "busy", &["sleep", "600"]);
    begun
        .and_then(|()| shim.start("box", "busy"))
        .map_err(|refused| refused.message)?;
    let Err(second) = shim.start("box", "busy") else {
        return Err("an exec was started twice".to_owned());
    };
    let killed = attempt(|| shim.kill("box", "", 9));
    let ended = within(Duration::from_secs(5), || (!is_alive(init)).then_some(()));
    if killed.is_err() || ended.is_none() {
        return Err("the container could not be killed".to_owned());
    }
    let told = within(Duration::from_secs(5), || {
        let state = attempt(|| shim.state("box", "")).ok()?.ok()?;
        (state.exit_status == 137).then_some(())
    });
    let lives = is_alive(shim_pid);
    let what = if lives {
        let exit = if told.is_some() { "137" } else { "not told" };
        format!("the second start was refused; the container's exit: {exit}")
    } else {
        let panic = stage.logged(&["panic:"]).unwrap_or_default();
        format!("the shim died when the container ended; {panic}")
    };
    Ok(Seen {
        held: lives && told.is_some(),
        what,
        said: stage.refused(&second.message),
    })
}
