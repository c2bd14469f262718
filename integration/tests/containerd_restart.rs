//! containerd goes away and comes back; containers do not notice.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use holdfast_integration::containerd::{Containerd, peer};
use holdfast_integration::deadline::eventually;
use holdfast_integration::leaks::is_alive;
use holdfast_integration::shim::Shim;
use holdfast_integration::{on_containerds, skip};

on_containerds! {
    running_containers_live_on;
    an_exit_during_the_outage_keeps_its_code;
    a_killed_shim_leaves_nothing;
}

fn running_containers_live_on(containerd: &Containerd) {
    let pid = containerd.start_task("box", &[], &["sleep", "600"]);
    let shim = Shim::of(containerd, "box").pid("box");
    containerd.kill_daemon();
    assert!(is_alive(pid) && is_alive(shim));
    containerd.start_daemon();
    let task = containerd.task("box").expect("the task is known again");
    assert_eq!((task.pid, task.status.as_str()), (pid, "RUNNING"));
    assert_eq!(Shim::of(containerd, "box").pid("box"), shim);
    assert_eq!(
        containerd
            .exec("box", "x", &[], &["sh", "-c", "exit 4"])
            .code(),
        4
    );
    containerd.end_task("box");
}

fn an_exit_during_the_outage_keeps_its_code(containerd: &Containerd) {
    if peer() {
        return skip(
            "an_exit_during_the_outage",
            "containerd 2.1 takes its own shim for leaked then",
        );
    }
    let stop = containerd.path("stop");
    std::fs::create_dir(&stop).unwrap();
    let mount = format!("type=bind,src={},dst=/mnt,options=rbind:ro", stop.display());
    let script = "until test -e /mnt/now; do usleep 10000; done; exit 42";
    let pid = containerd.start_task("box", &["--mount", &mount], &["sh", "-c", script]);
    containerd.kill_daemon();
    std::fs::write(stop.join("now"), "").unwrap();
    eventually("the container ends", Duration::from_secs(20), || {
        (!is_alive(pid)).then_some(())
    });
    containerd.start_daemon();
    let task = containerd.task("box").expect("the task is known again");
    assert_eq!(task.status, "STOPPED");
    let deleted = containerd.ctr(&["tasks", "delete", "box"]);
    assert!(
        deleted.stderr.contains("42") || deleted.code() == 42,
        "{deleted}"
    );
    containerd.ctr_ok(&["containers", "delete", "box"]);
}

fn a_killed_shim_leaves_nothing(containerd: &Containerd) {
    let pid = containerd.start_task("box", &[], &["sh", "-c", "sleep 600 & sleep 600"]);
    let shim = Shim::of(containerd, "box").pid("box");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(shim),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    eventually("the container ends", Duration::from_secs(20), || {
        (!is_alive(pid)).then_some(())
    });
    eventually("containerd has noticed", Duration::from_secs(20), || {
        containerd
            .task("box")
            .is_none_or(|task| task.status != "RUNNING")
            .then_some(())
    });
    let _ = containerd.ctr(&["tasks", "delete", "--force", "box"]);
    containerd.ctr_ok(&["containers", "delete", "box"]);
    if peer() {
        // containerd's own shim leaves its socket, for its next namesake to remove.
        for socket in containerd.left_behind() {
            let _ = std::fs::remove_file(socket.split(' ').nth(1).unwrap());
        }
    }
    containerd.assert_nothing_left();
}
