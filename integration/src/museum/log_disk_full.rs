//! The file system of a container's log file is full. The container must not be stopped by that,
//! and must be heard again when there is space.

use std::fs::{self, File};
use std::time::Duration;

use nix::mount::{MsFlags, mount};

use super::{Outcome, Seen, Stage, within};
use crate::leaks::is_alive;
use crate::scratch::text;

pub(super) fn visit(stage: &Stage) -> Outcome {
    let disk = stage.containerd.path("disk");
    let shared = stage.containerd.path("shared");
    fs::create_dir(&disk).map_err(|e| e.to_string())?;
    fs::create_dir(&shared).map_err(|e| e.to_string())?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(
        Some("museum"),
        &disk,
        Some("tmpfs"),
        flags,
        Some("size=256k"),
    )
    .map_err(|e| format!("mount a small tmpfs: {e}"))?;

    let log = disk.join("log");
    let uri = format!("file://{}", log.display());
    let bind = format!("type=bind,src={},dst=/mnt,options=rbind:rw", text(&shared));
    let script = "head -c 2000000 /dev/zero; : >/mnt/written; \
        until test -e /mnt/space; do usleep 10000; done; \
        for i in 1 2 3 4 5; do echo heard-again; usleep 200000; done; : >/mnt/done; sleep 600";
    let flags = ["--log-uri", &uri, "--mount", &bind];
    let started = stage.run(
        "box",
        &flags,
        &["sh", "-c", script],
        Duration::from_secs(20),
    );
    if started.code != Some(0) {
        return Err(format!("ctr run {}: {}", started.brief(), started.said));
    }
    let until = |name: &str, limit| {
        let path = shared.join(name);
        within(Duration::from_secs(limit), || path.exists().then_some(())).is_some()
    };
    let went_on = until("written", 8);
    File::create(&log).map_err(|e| format!("make space: {e}"))?;
    fs::write(shared.join("space"), "").map_err(|e| e.to_string())?;
    let healed = until("done", 6);
    let written = fs::read(&log).unwrap_or_default();
    let written = String::from_utf8_lossy(&written);
    let heard = written.contains("heard-again");
    let marker = written
        .lines()
        .find(|line| line.contains("lost") || line.contains("dropped"));
    let alive = stage
        .containerd
        .task("box")
        .is_some_and(|task| is_alive(task.pid));
    let words = |yes: bool, one: &'static str, other: &'static str| if yes { one } else { other };
    Ok(Seen {
        held: alive && went_on && healed && heard,
        what: format!(
            "the container {}; with space again it {} and its output {}",
            words(went_on, "went on", "hung in write"),
            words(healed, "went on", "still hung"),
            words(heard, "was written", "was not written"),
        ),
        said: marker
            .map(|line| format!("log file: {}", line.trim_matches('\0')))
            .or_else(|| stage.logged(&["output is dropped", "No space left", "no space left"])),
    })
}
