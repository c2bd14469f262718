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
