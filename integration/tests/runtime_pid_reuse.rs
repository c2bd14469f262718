//! The state on disk names a pid and when that process started. When the pid is another process's
//! by now, that one must not be signalled.
//!
//! A file of its own: the tests of one file run in parallel, and would take the pid away.

use std::sync::Mutex;

use holdfast_integration::on_runtimes;
use holdfast_integration::scratch::Scratch;

on_runtimes! { a_reused_pid_is_not_signalled: holdfast runc crun; }

static ALONE: Mutex<()> = Mutex::new(());

fn a_reused_pid_is_not_signalled(scratch: &Scratch) {
    let _alone = ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let bundle = scratch.bundle("old").args(&["sleep", "600"]);
    let pid = scratch.start(&bundle);
    scratch.call(&["kill", "old", "KILL"]).ok();
    assert_eq!(scratch.exit_of(pid), 137);
    // The kernel counts start times in hundredths of a second; without a hand on its counter of
    // pids, no number comes back as fast as here.
    std::thread::sleep(std::time::Duration::from_millis(50));
    // The kernel hands out pids in turn; this makes the next one ours, so that an innocent
    // process gets the number the container had.
    let Some(innocent) = spawn_with_pid(pid) else {
        scratch.call(&["delete", "--force", "old"]).ok();
        return holdfast_integration::skip("a_reused_pid", "the pid could not be had again");
    };
    let mut innocent = Innocent(innocent);
    let _ = scratch.call(&["kill", "old", "KILL"]);
    assert_eq!(scratch.state("old")["status"], "stopped");
    scratch.call(&["delete", "--force", "old"]).ok();
    assert!(
        innocent.0.try_wait().unwrap().is_none(),
        "an innocent process was killed"
    );
}

struct Innocent(std::process::Child);

impl Drop for Innocent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn spawn_with_pid(pid: i32) -> Option<std::process::Child> {
    for _ in 0..200 {
        std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).ok()?;
        let mut child = std::process::Command::new("sleep")
            .arg("600")
            .spawn()
            .ok()?;
        if i32::try_from(child.id()).unwrap() == pid {
            return Some(child);
        }
        // Another test forked in between.
        let _ = child.kill();
        let _ = child.wait();
    }
    None
}
