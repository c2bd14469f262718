//! No step of the runtime waits for ever, and a runtime that is killed leaves nothing that
//! `delete --force` cannot remove.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::Stdio;
use std::time::{Duration, Instant};

use holdfast_integration::deadline;
use holdfast_integration::on_runtimes;
use holdfast_integration::scratch::{Scratch, text};

on_runtimes! {
    // runc and crun compile in the container's init or in themselves, without a limit.
    a_seccomp_profile_libseccomp_never_returns_from: holdfast;
}

/// Three small rules on which libseccomp 2.5.4 runs until somebody stops it. A later libseccomp
/// that compiles them makes this create succeed, which is fine, too: it must only end.
fn a_seccomp_profile_libseccomp_never_returns_from(scratch: &Scratch) {
    let rule = |args: serde_json::Value| serde_json::json!({"names": ["ioctl"], "action": "SCMP_ACT_ALLOW", "args": args});
    let masked = serde_json::json!([
        {"index": 2, "value": 2, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ"}
    ]);
    let lower = serde_json::json!([
        {"index": 0, "value": 0, "op": "SCMP_CMP_GT"},
        {"index": 1, "value": 1, "op": "SCMP_CMP_LT"}
    ]);
    let upper = serde_json::json!([
        {"index": 0, "value": 0, "op": "SCMP_CMP_GT"},
        {"index": 2, "value": 2, "op": "SCMP_CMP_LE"}
    ]);
    let profile = serde_json::json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [rule(masked), rule(lower), rule(upper)],
    });
    let bundle = scratch
        .bundle("endless")
        .with(|spec| spec["linux"]["seccomp"] = profile);
    bundle.write();
    let mut command = scratch.command(&["create", "--bundle", &text(&bundle.path), &bundle.id]);
    command.env("HOLDFAST_DEADLINE_SECCOMP", "1s");
    let finished = deadline::run(&mut command, Duration::from_secs(20));
    if finished.status.success() {
        println!("this libseccomp compiles the profile: nothing to bound");
        scratch.call(&["delete", "--force", &bundle.id]).ok();
    } else {
        assert!(
            finished
                .stderr
                .contains("libseccomp to compile the profile"),
            "{finished}"
        );
        assert!(finished.took < Duration::from_secs(10), "{finished}");
    }
    scratch.assert_nothing_left();
}
