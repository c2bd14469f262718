//! What a shim says as it fails is in a real systemd-journald, with `debug` off, whatever becomes of containerd.

use std::thread;
use std::time::Duration;

use holdfast_integration::containerd::{Containerd, Extra, Version};
use holdfast_integration::deadline::eventually;
use holdfast_integration::journald::Journald;
use holdfast_integration::scratch::text;
use holdfast_integration::shim::Shim;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::base::{Base, SPACING, can_fail};

/// How it fails, what is then to be read, and the code of the record.
const FAILURES: [(&str, &str, &str); 5] = [
    ("panic", "on purpose, at rpc/State", "HF171"),
    ("twice", "the second panic, while the first one", "HF172"),
    ("abort", "went on in a new image", "HF172"),
    ("free", "free(): invalid pointer", "HF172"),
    ("overflow", "went on in a new image", "HF172"),
];

#[test]
fn last_words_are_in_journald_with_containerd_running_stopped_and_gone() {
    if !can_fail("last_words_are_in_journald") {
        return;
    }
    let Some(journald) = Journald::start("faults") else {
        return;
    };
    let extra = Extra {
        environment: vec![("HOLDFAST_JOURNALD", text(&journald.folder()))],
        ..Extra::default()
    };
    let Some(containerd) = Containerd::start(Version::V1_6, "faults", &extra) else {
        return;
    };
    let base = Base::start(&containerd);
    let shim = Shim::of(&containerd, "base");
    let daemon = Pid::from_raw(containerd.pid());
    let said = |words: &str| {
        let stream = journald.entries(&["SYSLOG_IDENTIFIER=containerd-shim-holdfast-v2"]);
        let mut texts = stream.iter().filter_map(|entry| entry["MESSAGE"].as_str());
        texts.by_ref().filter(|text| text.contains(words)).count()
    };
    let recorded = |code: &str| {
        let entries = journald.entries(&[
            "CONTAINER_ID=base",
            "+",
            "SYSLOG_IDENTIFIER=containerd-shim-holdfast-v2",
        ]);
        entries
            .iter()
            .filter(|entry| entry["REASON"] == code)
            .count()
    };
    let limit = Duration::from_secs(20);
    for state in ["running", "stopped", "gone"] {
        match state {
            "running" => {}
            "stopped" => kill(daemon, Signal::SIGSTOP).unwrap(),
            _ => {
                kill(daemon, Signal::SIGCONT).unwrap();
                containerd.kill_daemon();
            }
        }
        for (how, words, code) in FAILURES {
            thread::sleep(SPACING);
            let before = (said(words), recorded(code));
            base.order("rpc/State", how);
            // A panic is that call's answer; after the others the next image answers it.
            let answer = shim.state("base", "");
            assert_eq!(answer.is_err(), how == "panic", "{how}: {answer:?}");
            base.happened();
            eventually(&format!("{how} is told, containerd {state}"), limit, || {
                (said(words) > before.0 && recorded(code) > before.1).then_some(())
            });
            base.is_well();
        }
    }
    containerd.start_daemon();
    base.end();
}
