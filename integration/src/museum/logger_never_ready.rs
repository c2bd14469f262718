//! A `binary://` logger that is started and never says that it is ready. Creating the container
//! must fail in a bounded time, and leave nothing.

use std::time::Duration;

use super::{Outcome, Seen, Stage, within};
use crate::leaks::processes_mentioning;
use crate::place;
use crate::scratch::text;

const PATIENCE: Duration = Duration::from_secs(40);

pub(super) fn visit(stage: &Stage) -> Outcome {
    let logger = stage.containerd.path("logger");
    // One process that waits for ever, and names itself in its command line.
    let script = "#!/bin/sh\n\
        echo 'cannot reach the log server' >&2\n\
        mkfifo \"$0.fifo\"\n\
        exec 9<>\"$0.fifo\"\n\
        read never <&9\n";
    place::write_program(&logger, script);

    let uri = format!("binary://{}", logger.display());
    let created = stage.run("box", &["--log-uri", &uri], &["true"], PATIENCE);
    let left = || {
        let loggers = processes_mentioning(&text(&logger)).into_iter();
        // ctr has the path on its command line too, but has ended.
        let loggers = loggers.filter(|one| one.command.starts_with("/bin/sh "));
        (loggers.count(), stage.containerd.shims().len())
    };
    let clean = within(Duration::from_secs(3), || (left() == (0, 0)).then_some(()));
    let (loggers, shims) = left();
    Ok(Seen {
        held: created.code.is_some_and(|code| code != 0) && clean.is_some(),
        what: format!(
            "ctr run: {}; left: {loggers} loggers, {shims} shims",
            created.brief()
        ),
        said: stage.refused(&created.said),
    })
}
