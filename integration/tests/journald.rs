//! What a real systemd-journald has of us, with `debug` off: the shim's words under its own name, and every end with its
//! fields; with containerd running, stopped and gone.

use std::time::Duration;

use holdfast_integration::containerd::{Containerd, Extra, Version, peer};
use holdfast_integration::deadline::eventually;
use holdfast_integration::journald::Journald;
use holdfast_integration::leaks::is_alive;
use holdfast_integration::scratch::text;
use holdfast_integration::skip;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The catalogue's MESSAGE_IDs of HF131 and HF101, which never change.
const OUTSIDE: &str = "MESSAGE_ID=cea35560bc801316c29c042af9563602";
const EXITED: &str = "MESSAGE_ID=55a185dc5d82197ee2c1146126eb12a0";

const LIMIT: Duration = Duration::from_secs(30);

fn shoot(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    eventually("it ends", LIMIT, || (!is_alive(pid)).then_some(()));
}

#[test]
fn a_real_journald_has_every_end_with_its_fields() {
    if peer() {
        return skip("journald", "containerd's own shim has no fields");
    }
    let Some(journald) = Journald::start("journald") else {
        return;
    };
    let extra = Extra {
        environment: vec![("HOLDFAST_JOURNALD", text(&journald.folder()))],
        ..Extra::default()
    };
    let Some(containerd) = Containerd::start(Version::V1_6, "journald", &extra) else {
        return;
    };
    let pod = [
        "--annotation",
        "io.kubernetes.cri.sandbox-name=train-0",
        "--annotation",
        "io.kubernetes.cri.sandbox-namespace=ml",
        "--annotation",
        "io.kubernetes.cri.sandbox-uid=u-1",
        "--annotation",
        "io.kubernetes.cri.container-name=worker",
    ];
    let running = containerd.start_task("running", &pod, &["sleep", "600"]);
    let stopped = containerd.start_task("stopped", &[], &["sleep", "600"]);
    let gone = containerd.start_task("gone", &[], &["sleep", "600"]);

    // The shim's own words, by its stream, under its name and with a priority.
    let stream = journald.entries(&["SYSLOG_IDENTIFIER=containerd-shim-holdfast-v2"]);
    let serving = stream.iter().find(|entry| {
        entry["MESSAGE"]
            .as_str()
            .is_some_and(|text| text.contains("serving"))
    });
    let serving = serving.expect("the shim's first words");
    assert_eq!(serving["_TRANSPORT"], "stdout", "{serving}");
    assert_eq!(serving["PRIORITY"], "6", "{serving}");

    // An exec, and an end while containerd runs.
    assert_eq!(
        containerd
            .exec("running", "probe", &[], &["sh", "-c", "exit 3"])
            .code(),
        3
    );
    let exec = &journald.entries(&[EXITED, "EXEC_ID=probe"])[0];
    assert_eq!(exec["CONTAINER_ID"], "running", "{exec}");
    assert_eq!(exec["EXIT_STATUS"], "3", "{exec}");
    shoot(running);
    let entry = &journald.entries(&[OUTSIDE, "CONTAINER_ID=running"])[0];
    for (field, value) in [
        ("REASON", "HF131"),
        ("KIND", "container"),
        ("CONTAINERD_NAMESPACE", containerd.namespace.as_str()),
        ("POD_NAME", "train-0"),
        ("POD_NAMESPACE", "ml"),
        ("POD_UID", "u-1"),
        ("EXIT_STATUS", "137"),
        ("PRIORITY", "3"),
        ("SYSLOG_IDENTIFIER", "holdfast"),
        ("_TRANSPORT", "journal"),
    ] {
        assert_eq!(entry[field], value, "{field} of {entry}");
    }
    let message = entry["MESSAGE"].as_str().unwrap();
    assert!(
        message.starts_with("Container running was ended by SIGKILL"),
        "{message}"
    );

    // Neither a containerd that is stopped nor one that is gone takes anything away.
    let daemon = Pid::from_raw(containerd.pid());
    kill(daemon, Signal::SIGSTOP).unwrap();
    shoot(stopped);
    let entry = journald.entries(&[OUTSIDE, "CONTAINER_ID=stopped"]);
    kill(daemon, Signal::SIGCONT).unwrap();
    assert_eq!(entry[0]["REASON"], "HF131");
    containerd.kill_daemon();
    shoot(gone);
    let entry = journald.entries(&[OUTSIDE, "CONTAINER_ID=gone"]);
    assert_eq!(entry[0]["REASON"], "HF131");
    containerd.start_daemon();
    for id in ["running", "stopped", "gone"] {
        containerd.await_status(id, "STOPPED");
        containerd.remove(id);
    }
    containerd.assert_nothing_left();
}
