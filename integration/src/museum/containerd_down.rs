//! Containers end while containerd is down. When it is back, each must be there with its code.

use std::fs;
use std::time::Duration;

use super::{Outcome, Seen, Stage, within};
use crate::leaks::is_alive;
use crate::scratch::text;

const CODES: [i32; 5] = [0, 1, 42, 43, 255];

pub(super) fn visit(stage: &Stage) -> Outcome {
    let containerd = &stage.containerd;
    let shared = containerd.path("shared");
    fs::create_dir(&shared).map_err(|e| e.to_string())?;
    let bind = format!("type=bind,src={},dst=/mnt,options=rbind:ro", text(&shared));
    let id = |code: i32| format!("box-{code}");
    let pids = CODES.map(|code| {
        let script = format!("until test -e /mnt/now; do usleep 20000; done; exit {code}");
        containerd.start_task(&id(code), &["--mount", &bind], &["sh", "-c", &script])
    });
    containerd.kill_daemon();
    fs::write(shared.join("now"), "").map_err(|e| e.to_string())?;
    within(Duration::from_secs(10), || {
        pids.iter().all(|pid| !is_alive(*pid)).then_some(())
    })
    .ok_or("the containers do not end")?;
    containerd.start_daemon();

    let mut lost = Vec::new();
    for code in CODES {
        let status = stage.status(&id(code));
        let deleted = stage.ctr(&["tasks", "delete", &id(code)], Duration::from_secs(10));
        // The client ends with 0 and warns of a task that did not, or ends as the task did.
        let told = deleted
            .said
            .rsplit(|letter: char| !letter.is_ascii_digit())
            .find_map(|word| word.parse().ok())
            .or(deleted.code);
        if status != "STOPPED" || told != Some(code) {
            lost.push(format!("{code}: {status}, delete {}", deleted.brief()));
        }
    }
    let kept = CODES.len() - lost.len();
    let first = lost
        .first()
        .map_or_else(String::new, |lost| format!(" ({lost})"));
    Ok(Seen {
        held: lost.is_empty(),
        what: format!("{kept} of {} exit codes kept{first}", CODES.len()),
        said: stage.why(&id(42)),
    })
}
