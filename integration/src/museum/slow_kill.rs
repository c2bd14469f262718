//! Two containers of one shim. One, which shares the other's pid namespace, ends; ending the rest
//! of it takes the runtime 4 s. An exec in the other must not wait for that.

use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Outcome, Seen, Stage, seconds};
use crate::fault::Fault;

const SLOW: Duration = Duration::from_secs(4);
const PROMPT: Duration = Duration::from_secs(2);

pub(super) fn visit(stage: &Stage) -> Outcome {
    let containerd = &stage.containerd;
    let pod = ["--annotation", "io.containerd.runc.v2.group=pod"];
    // The socket of a pod's shim has the pod's name.
    containerd.remember("pod");
    let keeper = containerd.start_task("keeper", &pod, &["sleep", "600"]);
    let join = format!("pid:/proc/{keeper}/ns/pid");
    let flags = [pod[0], pod[1], "--with-ns", &join];
    let guest = containerd.start_task("guest", &flags, &["sleep", "600"]);
    let usual = stage.exec("keeper", "usual", &["true"], SLOW * 3);

    stage.order("kill", Fault::Delay(SLOW));
    kill(Pid::from_raw(guest), Signal::SIGKILL).map_err(|e| e.to_string())?;
    // The exit has to reach the shim before the exec does, which neither shim announces before its
    // slow kill is over: a moment has to do.
    super::within(PROMPT, || (!crate::leaks::is_alive(guest)).then_some(()));
    thread::sleep(Duration::from_millis(100));
    let during = stage.exec("keeper", "during", &["true"], SLOW * 3);
    stage.call_off("kill");
    Ok(Seen {
        held: during.code == Some(0) && during.took < PROMPT,
        what: format!(
            "an exec {} while the other ends; before that {}",
            during.brief(),
            seconds(usual.took)
        ),
        said: stage.why("guest"),
    })
}
