//! Whoever reads an exec's output has stopped reading. Other execs, and the signal that ends this
//! one, must not wait for it.

use std::fs::File;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;

use super::{Outcome, Seen, Stage, seconds, within};
use crate::scratch::text;
use crate::shim::{Refused, Shim};

const PROMPT: Duration = Duration::from_secs(5);

pub(super) fn visit(stage: &Stage) -> Outcome {
    let containerd = &stage.containerd;
    containerd.start_task("box", &[], &["sleep", "600"]);
    let shim = Shim::of(containerd, "box");
    let [fifo, errors] = ["stalled-out", "stalled-err"].map(|name| containerd.path(name));
    for path in [&fifo, &errors] {
        nix::unistd::mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|e| e.to_string())?;
    }
    let refused = |refused: Refused| refused.message;
    let args = ["head", "-c", "3000000", "/dev/zero"];
    shim.exec_with_streams("box", "stalled", &args, ["", &text(&fifo), &text(&errors)])
        .map_err(refused)?;
    // Open for reading both, but nothing is read.
    let opener = thread::spawn(move || Ok((File::open(fifo)?, File::open(errors)?)));
    shim.start("box", "stalled").map_err(refused)?;
    let opened: std::io::Result<(File, File)> =
        opener.join().map_err(|_| "the reader's thread failed")?;
    let readers = opened.map_err(|e| e.to_string())?;

    let began = Instant::now();
    for number in 0..5 {
        let exec = format!("other-{number}");
        shim.exec("box", &exec, &["true"]).map_err(refused)?;
        shim.start("box", &exec).map_err(refused)?;
        shim.wait("box", &exec).map_err(refused)?;
        shim.delete("box", &exec).map_err(refused)?;
    }
    let others = began.elapsed();
    // It cannot be done while nobody reads: the stall is real.
    let state = shim.state("box", "stalled").map_err(refused)?;
    if state.status.value() != 2 {
        return Err("the exec ended although nobody read its output".to_owned());
    }
    shim.kill("box", "stalled", 9).map_err(refused)?;
    let began = Instant::now();
    let ended = within(PROMPT, || {
        let state = shim.state("box", "stalled").ok()?;
        (state.status.value() == 3).then(|| began.elapsed())
    });
    drop(readers);
    let _ = shim.delete("box", "stalled");
    let end = ended.map_or("not told".to_owned(), |took| {
        format!("told after {}", seconds(took))
    });
    Ok(Seen {
        held: others < PROMPT && ended.is_some(),
        what: format!(
            "5 other execs in {}; the end of the stalled one {end}",
            seconds(others)
        ),
        said: stage.why("box"),
    })
}
