//! A bug of the shim: a request makes it panic. To containerd's own shim that is an Update that says nothing to update; ours
//! answers it, and is made to panic by a fault point, which only a build for tests has (`make museum` makes one).

use std::time::Duration;

use containerd_shim_protos::api::{self, Empty};

use super::{Outcome, Seen, Side, Stage, within};
use crate::leaks::is_alive;
use crate::place;
use crate::shim::Shim;

const PATIENCE: Duration = Duration::from_secs(10);
const SHIM: &str = "containerd-shim-holdfast-v2";

pub(super) fn visit(stage: &Stage) -> Outcome {
    show(stage, false)
}

pub(super) fn visit_while_down(stage: &Stage) -> Outcome {
    show(stage, true)
}

fn show(stage: &Stage, down: bool) -> Outcome {
    let containerd = &stage.containerd;
    if stage.side == Side::Ours {
        let built = place::with_fault_points(SHIM)?;
        std::fs::copy(built, containerd.programs_first().join(SHIM)).map_err(|e| e.to_string())?;
    }
    let script = "until test -e /tmp/now; do usleep 10000; done; exit 42";
    let init = containerd.start_task("box", &[], &["sh", "-c", script]);
    let shim = Shim::of(containerd, "box").waiting(PATIENCE);
    let pid = shim.pid("box");
    if down {
        containerd.kill_daemon();
    }
    let mut update = api::UpdateTaskRequest::new();
    update.id = "box".to_owned();
    let update = || shim.call::<_, Empty>("Update", &update);
    if stage.side == Side::Ours {
        // What ends the other one.
        let _ = update();
        if !is_alive(pid) {
            return Err("an Update of nothing ends it: no fault is needed".to_owned());
        }
        let order = containerd.bundle("box").join("fault");
        std::fs::write(&order, "rpc/Update panic").map_err(|e| e.to_string())?;
    }
    // Of one that dies of it there is no answer, only the end of the connection.
    let refused = super::attempt(update);
    let ended = within(Duration::from_secs(2), || (!is_alive(pid)).then_some(()));
    if down {
        containerd.start_daemon();
    }
    let answer = match refused {
        Ok(Err(refused)) => format!("the call fails ({})", refused.code),
        Ok(Ok(_)) => "the call succeeds".to_owned(),
        Err(_) => "the call gets no answer".to_owned(),
    };
    let dies = within(Duration::from_secs(3), || (!is_alive(init)).then_some(())).is_some();
    if ended.is_some() || dies {
        let status = stage.status("box");
        return Ok(Seen {
            held: false,
            what: format!("{answer}, the shim ended, and the container with it; status {status}"),
            said: stage.logged(&["panic", "nil pointer"]),
        });
    }
    let status = stage.status("box");
    let told = stage.exec("box", "end", &["touch", "/tmp/now"], PATIENCE);
    let code = within(PATIENCE, || {
        shim.state("box", "")
            .ok()
            .filter(|now| now.status.value() == 3)
    })
    .map(|now| now.exit_status);
    let said = stage.why_code("box", "HF171");
    Ok(Seen {
        held: code == Some(42) && status == "RUNNING" && said.is_some(),
        what: format!(
            "{answer}, the container lived ({status}); exec {}; exit {} told",
            told.brief(),
            code.map_or("not".to_owned(), |code| code.to_string())
        ),
        said,
    })
}
