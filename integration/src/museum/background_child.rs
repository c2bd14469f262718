//! An exec ends and leaves a child that holds its standard output. The exec must return with its
//! code, not with the end of the child.

use std::time::Duration;

use super::{Outcome, Seen, Stage};

const PROMPT: Duration = Duration::from_secs(12);

pub(super) fn visit(stage: &Stage) -> Outcome {
    stage.containerd.start_task("box", &[], &["sleep", "600"]);
    let args = ["sh", "-c", "sleep 25 & echo said"];
    let exec = stage.exec("box", "parent", &args, Duration::from_secs(35));
    let arrived = if exec.said == "said" {
        "arrived"
    } else {
        "did not arrive"
    };
    Ok(Seen {
        held: exec.code == Some(0) && exec.took < PROMPT && exec.said == "said",
        what: format!(
            "an exec with a child of 25 s {}; its output {arrived}",
            exec.brief()
        ),
        said: stage.logged(&["held open", "still held"]),
    })
}
