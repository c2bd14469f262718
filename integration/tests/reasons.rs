//! `holdfast why`: whatever ended, a recorded reason says why.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::Command;
use std::time::Duration;

use holdfast_integration::containerd::{Containerd, peer};
use holdfast_integration::deadline::{self, eventually};
use holdfast_integration::leaks::is_alive;
use holdfast_integration::shim::Shim;
use holdfast_integration::{on_containerds, place, skip};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

on_containerds! {
    each_end_has_its_reason;
    want_of_memory_is_named;
    a_hook_that_fails_is_quoted;
    a_killed_shim_is_no_secret;
}

const LIMIT: Duration = Duration::from_secs(20);

/// What `holdfast why` answers once the record is there.
#[track_caller]
fn why(containerd: &Containerd, id: &str, code: &str) -> String {
    let until = std::time::Instant::now() + LIMIT;
    loop {
        let mut command = Command::new(place::built("holdfast"));
        command
            .args(["why", id])
            .env("HOLDFAST_LEDGER_DIR", containerd.path("ledger"));
        let said = deadline::run(&mut command, LIMIT);
        if said.status.success() && said.stdout.contains(code) {
            return said.stdout;
        }
        assert!(
            std::time::Instant::now() < until,
            "no record {code} of {id}: {said}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn each_end_has_its_reason(containerd: &Containerd) {
    if peer() {
        return skip("reasons", "containerd's own shim records none");
    }
    assert_eq!(
        containerd
            .run("own", &["--rm"], &["sh", "-c", "exit 3"])
            .code(),
        3
    );
    let said = why(containerd, "own", "HF101");
    assert!(said.contains("code 3"), "{said}");

    containerd.start_task("asked", &[], &["sleep", "600"]);
    containerd.end_task("asked");
    let said = why(containerd, "asked", "HF111");
    assert!(said.contains("SIGKILL"), "{said}");

    let pid = containerd.start_task("shot", &[], &["sleep", "600"]);
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    containerd.await_status("shot", "STOPPED");
    containerd.remove("shot");
    let said = why(containerd, "shot", "HF131");
    assert!(said.contains("SIGKILL"), "{said}");

    let crash = ["sh", "-c", "kill -SEGV $$; sleep 60"];
    containerd.start_task("box", &[], &["sleep", "600"]);
    assert_eq!(containerd.exec("box", "crash", &[], &crash).code(), 139);
    containerd.end_task("box");
    let said = why(containerd, "box", "crash");
    assert!(said.contains("SIGSEGV"), "{said}");

    let mut nobody = Command::new(place::built("holdfast"));
    nobody
        .args(["why", "nobody"])
        .env("HOLDFAST_LEDGER_DIR", containerd.path("ledger"));
    let said = deadline::run(&mut nobody, LIMIT);
    assert_ne!(said.code(), 0, "{said}");
}

fn want_of_memory_is_named(containerd: &Containerd) {
    if peer() {
        return skip("reasons", "containerd's own shim records none");
    }
    let limit = (24 << 20).to_string();
    let flags = ["--rm", "--memory-limit", &limit];
    assert_eq!(
        containerd
            .run("big", &flags, &["tail", "-n", "1", "/dev/zero"])
            .code(),
        137
    );
    let said = why(containerd, "big", "HF121");
    assert!(said.contains("memory"), "{said}");
}

fn a_hook_that_fails_is_quoted(containerd: &Containerd) {
    if peer() {
        return skip("reasons", "containerd's own shim records none");
    }
    let bundle = holdfast_integration::bundle::Bundle::new(
        &containerd.path("bundle"),
        "hooked",
        &containerd.namespace,
    );
    let rootfs = holdfast_integration::scratch::text(&bundle.path.join("rootfs"));
    let bundle = bundle.with(|spec| {
        // containerd copies the file into a bundle of its own.
        spec["root"]["path"] = rootfs.into();
        spec["hooks"] = serde_json::json!({"createRuntime": [
            {"path": "/bin/sh", "args": ["sh", "-c", "echo the-gpu-is-gone >&2; exit 9"]},
        ]});
    });
    bundle.write();
    let config = holdfast_integration::scratch::text(&bundle.path.join("config.json"));
    let words = [
        "run",
        "--runtime",
        &containerd.runtime_type,
        "--null-io",
        "--config",
        &config,
        "hooked",
    ];
    containerd.remember("hooked");
    let refused = containerd.ctr(&words);
    assert!(refused.failed().contains("the-gpu-is-gone"), "{refused}");
    let said = why(containerd, "hooked", "the-gpu-is-gone");
    assert!(
        said.contains("createRuntime") && said.contains("HF1"),
        "{said}"
    );
    let _ = containerd.ctr(&["containers", "delete", "hooked"]);
}

fn a_killed_shim_is_no_secret(containerd: &Containerd) {
    if peer() {
        return skip("reasons", "containerd's own shim records none");
    }
    let pid = containerd.start_task("box", &[], &["sleep", "600"]);
    let shim = Shim::of(containerd, "box").pid("box");
    kill(Pid::from_raw(shim), Signal::SIGKILL).unwrap();
    eventually("the container ends", LIMIT, || {
        (!is_alive(pid)).then_some(())
    });
    why(containerd, "box", "HF173");
    let _ = containerd.ctr(&["tasks", "delete", "--force", "box"]);
    containerd.ctr_ok(&["containers", "delete", "box"]);
    // The socket is the matter of another test.
    for left in containerd.left_behind() {
        if let Some(socket) = left.strip_prefix("socket ") {
            let _ = std::fs::remove_file(socket.split(' ').next().unwrap());
        }
    }
}
