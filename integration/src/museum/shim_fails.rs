//! The shim fails: a fault of its own code, or an assertion in a library that it uses. Does its container
//! live, is its exit code the true one, and can somebody learn what happened?

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::stage::Stopped;
use super::{Outcome, Seen, Stage, within};
use crate::ctr::Client;
use crate::leaks::is_alive;
use crate::shim::Shim;

const PATIENCE: Duration = Duration::from_secs(10);
/// A client that asks the shim of a container gives up after this.
const CALL: Duration = Duration::from_secs(8);

pub(super) fn by_segv(stage: &Stage) -> Outcome {
    visit(stage, Signal::SIGSEGV, false)
}

pub(super) fn by_abort(stage: &Stage) -> Outcome {
    visit(stage, Signal::SIGABRT, false)
}

pub(super) fn by_segv_while_down(stage: &Stage) -> Outcome {
    visit(stage, Signal::SIGSEGV, true)
}

pub(super) fn by_abort_while_down(stage: &Stage) -> Outcome {
    visit(stage, Signal::SIGABRT, true)
}

pub(super) fn by_kill(stage: &Stage) -> Outcome {
    visit(stage, Signal::SIGKILL, false)
}

pub(super) fn by_kill_while_down(stage: &Stage) -> Outcome {
    visit(stage, Signal::SIGKILL, true)
}

struct Box {
    client: Client,
    init: i32,
    shim: i32,
}

/// A container that ends with 42 when it is told to.
fn start(stage: &Stage) -> Result<Box, String> {
    let containerd = &stage.containerd;
    let script = "echo ready; until test -e /tmp/now; do usleep 10000; done; exit 42";
    let client = containerd.spawn_run("box", &[], &["sh", "-c", script], None);
    within(PATIENCE, || client.output().contains("ready").then_some(()))
        .ok_or("the container does not start")?;
    let init = containerd.task("box").ok_or("no task")?.pid;
    let shim = Shim::of(containerd, "box").pid("box");
    Ok(Box { client, init, shim })
}

fn visit(stage: &Stage, signal: Signal, down: bool) -> Outcome {
    let containerd = &stage.containerd;
    let Box {
        mut client,
        init,
        shim,
    } = start(stage)?;
    if down {
        containerd.kill_daemon();
    }
    kill(Pid::from_raw(shim), signal).map_err(|e| e.to_string())?;
    // Either it ends, or it has taken the signal and goes on.
    let ended = within(Duration::from_secs(2), || (!is_alive(shim)).then_some(()));
    if down {
        containerd.start_daemon();
    }
    let lives = within(Duration::from_secs(3), || (!is_alive(init)).then_some(())).is_none();
    let shim_is = match (ended.is_some(), signal) {
        (true, Signal::SIGKILL) if lives => "another shim went on",
        (true, _) => "the shim ended",
        (false, _) => "the shim went on",
    };
    if !lives {
        let status = stage.status("box");
        return Ok(Seen {
            held: false,
            what: format!("{shim_is}, and the container with it; status {status}"),
            said: stage.why("box"),
        });
    }
    let status = stage.status("box");
    let told = stage.exec("box", "end", &["touch", "/tmp/now"], CALL);
    // The client of `ctr run` does not outlive containerd.
    let code = if down {
        stage_code(stage)
    } else {
        crate::deadline::wait(&mut client.child, PATIENCE).and_then(|status| status.code())
    };
    let exit = code.map_or("no exit told".to_owned(), |code| {
        format!("exit {code} told")
    });
    let recorded = stage
        .logged(&["went on in a new image"])
        .or_else(|| stage.logged(&["panic", "fault"]));
    Ok(Seen {
        held: code == Some(42) && status == "RUNNING" && recorded.is_some(),
        what: format!(
            "{shim_is}, the container lived ({status}); exec {}; {exit}",
            told.brief()
        ),
        said: recorded,
    })
}

/// The exit code that `ctr tasks delete` tells: some versions end with it, others write it.
fn stage_code(stage: &Stage) -> Option<i32> {
    within(PATIENCE, || {
        (stage.status("box") == "STOPPED").then_some(())
    })?;
    let told = stage.ctr(&["tasks", "delete", "box"], CALL);
    let written = told.said.split(|c: char| !c.is_ascii_digit());
    if written.into_iter().any(|word| word == "42") {
        Some(42)
    } else {
        told.code
    }
}

/// The shim is stopped, and nobody continues it.
pub(super) fn stopped(stage: &Stage) -> Outcome {
    let Box { init, shim, .. } = start(stage)?;
    let stopped = Stopped::new(shim);
    let told = stage.exec("box", "x", &["true"], CALL);
    drop(stopped);
    let lives = is_alive(init);
    Ok(Seen {
        held: lives && told.code == Some(0),
        what: format!(
            "exec {}; the container {}",
            told.brief(),
            if lives { "lives" } else { "ended" }
        ),
        said: stage.logged(&["was stopped by"]),
    })
}

/// The shim is stopped while containerd comes back: nobody can speak for the container.
pub(super) fn stopped_while_down(stage: &Stage) -> Outcome {
    let containerd = &stage.containerd;
    let Box { init, shim, .. } = start(stage)?;
    containerd.kill_daemon();
    let stopped = Stopped::new(shim);
    containerd.start_daemon();
    let status = stage.status("box");
    drop(stopped);
    let back = within(PATIENCE, || {
        (stage.status("box") == "RUNNING").then_some("RUNNING")
    })
    .map_or_else(|| stage.status("box"), str::to_owned);
    let lives = is_alive(init);
    Ok(Seen {
        held: lives && back == "RUNNING",
        what: format!(
            "status {status} while it is stopped, {back} after SIGCONT; the container {}",
            if lives { "lives" } else { "ended" }
        ),
        said: (!lives).then(|| stage.why("box")).flatten(),
    })
}
