//! `checkpoint`: what criu is asked for, and what is said when it does not do it.

use std::fs;
use std::path::Path;

use holdfast_integration::deadline;
use holdfast_integration::runtime::Kind;
use holdfast_integration::scratch::{LIMIT, Scratch, text};
use serde_json::json;

use crate::fake::{Fake, asked, externals, running};

pub(crate) fn a_dump_asks_for_what_was_asked_for(scratch: &Scratch) {
    let Some(fake) = Fake::new(scratch) else {
        return;
    };
    let (bundle, _) = running(scratch, "box");
    let work = text(&scratch.path("work"));
    let mut flags = vec![
        "--work-path",
        &work,
        "--leave-running",
        "--tcp-established",
        "--ext-unix-sk",
        "--shell-job",
        "--file-locks",
        "--auto-dedup",
        "--lazy-pages",
        "--page-server",
        "127.0.0.1:27",
        "--manage-cgroups-mode",
        "full",
        "--empty-ns",
        "network",
    ];
    let mut expected = json!({
        "leave_running": 1, "tcp_established": 1, "ext_unix_sk": 1, "shell_job": 1,
        "file_locks": 1, "auto_dedup": 1, "lazy_pages": 1, "orphan_pts_master": 1,
        "ps": {"address": "127.0.0.1", "port": 27}, "manage_cgroups_mode": 4,
        "empty_ns": 0x4000_0000,
    });
    if scratch.runtime.kind == Kind::Holdfast {
        // Of runc 1.2.
        flags.extend(["--tcp-skip-in-flight", "--link-remap"]);
        expected["tcp_skip_in_flight"] = json!(1);
        expected["link_remap"] = json!(1);
    }
    fake.checkpoint(scratch, "box", &scratch.path("images"), &flags)
        .ok();
    let request = fake.said("dump");
    assert_eq!(request["type"], 1);
    let opts = &request["opts"];
    assert_eq!(asked(opts.clone()), expected);
    let state = scratch.state(&bundle.id);
    assert_eq!(opts["pid"], state["pid"]);
    assert_eq!(
        opts["root"],
        text(&bundle.in_rootfs("")).trim_end_matches('/')
    );
    assert_eq!(opts["config_file"], "/etc/criu/runc.conf");
    let freezer = opts["freeze_cgroup"].as_str().unwrap();
    assert!(
        Path::new(freezer).is_dir() && freezer.ends_with("/box"),
        "{freezer}"
    );
    let externals = externals(opts);
    let of = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    assert!(
        externals.contains(&of("/volume", "/volume")),
        "{externals:?}"
    );
    assert!(
        externals.contains(&of("/proc/keys", "/dev/null")),
        "{externals:?}"
    );
    assert_eq!(state["status"], "running");
    assert!(Path::new(&work).join("dump.log").exists());
    scratch.end(&bundle);
}

/// The devices of the network namespace are not ours to write down: that it is empty is said always.
pub(crate) fn nothing_is_asked_for_by_itself(scratch: &Scratch) {
    let Some(fake) = Fake::new(scratch) else {
        return;
    };
    let (_, pid) = running(scratch, "box");
    let images = scratch.path("images");
    fake.checkpoint(scratch, "box", &images, &[]).ok();
    let mut opts = asked(fake.said("dump")["opts"].clone());
    // runc says what is criu's own default.
    opts.as_object_mut().unwrap().remove("manage_cgroups_mode");
    assert_eq!(
        opts,
        json!({"orphan_pts_master": 1, "empty_ns": 0x4000_0000})
    );
    let descriptors = fs::read_to_string(images.join("descriptors.json")).unwrap();
    let descriptors: Vec<String> = serde_json::from_str(&descriptors).unwrap();
    assert_eq!(descriptors.len(), 3);
    assert_eq!(scratch.exit_of(pid), 137);
}

pub(crate) fn a_dumped_container_is_gone_unless_it_is_left_running(scratch: &Scratch) {
    let Some(fake) = Fake::new(scratch) else {
        return;
    };
    let (_, pid) = running(scratch, "box");
    let images = scratch.path("images");
    fake.checkpoint(scratch, "box", &images, &["--leave-running"])
        .ok();
    assert_eq!(scratch.state("box")["status"], "running");
    fake.checkpoint(scratch, "box", &images, &[]).ok();
    let told = scratch.call(&["state", "box"]).failed().to_owned();
    assert!(told.contains("does not exist"), "{told}");
    assert_eq!(scratch.exit_of(pid), 137);
}

pub(crate) fn a_pre_dump_tracks_memory(scratch: &Scratch) {
    let Some(fake) = Fake::new(scratch) else {
        return;
    };
    let (bundle, _) = running(scratch, "box");
    let (first, second) = (scratch.path("first"), scratch.path("second"));
    fake.checkpoint(scratch, "box", &first, &["--pre-dump"])
        .ok();
    let request = fake.said("pre-dump");
    assert_eq!(request["type"], 4);
    if scratch.runtime.kind == Kind::Holdfast {
        // runc leaves it to criu, which does so by itself in a pre-dump.
        assert_eq!(request["opts"]["track_mem"], 1);
    }
    let features = &fake.said("features")["features"];
    assert_eq!(features["mem_track"], 1, "{features}");
    assert_eq!(scratch.state("box")["status"], "running");
    let flags = ["--leave-running", "--parent-path", "../first"];
    fake.checkpoint(scratch, "box", &second, &flags).ok();
    let opts = &fake.said("dump")["opts"];
    assert_eq!(
        (&opts["parent_img"], &opts["track_mem"]),
        (&json!("../first"), &json!(1))
    );
    for wrong in [text(&first).as_str(), "../nowhere"] {
        let flags = ["--parent-path", wrong];
        let told = fake.checkpoint(scratch, "box", &second, &flags);
        let told = told.failed();
        assert!(
            told.contains("--parent-path") || told.contains("parent"),
            "{told}"
        );
    }
    scratch.end(&bundle);
}

pub(crate) fn what_criu_lacks_is_said(scratch: &Scratch) {
    let Some(fake) = Fake::new(scratch) else {
        return;
    };
    fake.set("no-features", "");
    let (bundle, _) = running(scratch, "box");
    let images = scratch.path("images");
    for (option, told) in [
        (
            "--pre-dump",
            "criu 3.17.1 has no tracking of changed memory",
        ),
        ("--lazy-pages", "criu 3.17.1 has no lazy pages"),
    ] {
        let said = fake.checkpoint(scratch, "box", &images, &[option]);
        assert!(said.failed().contains(told), "{said}");
    }
    scratch.end(&bundle);
}

pub(crate) fn a_failure_is_told_in_criu_s_words(scratch: &Scratch) {
    let Some(fake) = Fake::new(scratch) else {
        return;
    };
    fake.set("fail", "mnt: no way to write this down");
    let (bundle, _) = running(scratch, "box");
    let images = scratch.path("images");
    let told = fake.checkpoint(scratch, "box", &images, &[]);
    let told = told.failed();
    assert!(told.contains("criu failed: type DUMP errno 5"), "{told}");
    assert!(told.contains("dump.log"), "{told}");
    assert_eq!(scratch.state("box")["status"], "running");
    // runc leaves reading the log to its user.
    if scratch.runtime.kind == Kind::Holdfast {
        assert!(told.contains("mnt: no way to write this down"), "{told}");
        assert!(!told.contains("does not work on"), "{told}");
        fake.set("kernel", "");
        let told = fake.checkpoint(scratch, "box", &images, &[]);
        let told = told.failed();
        let expected = "criu 3.17.1 does not work on Linux";
        assert!(
            told.contains(expected) && told.contains("this cannot work here"),
            "{told}"
        );
    }
    scratch.end(&bundle);
}

pub(crate) fn a_silent_criu_holds_nobody(scratch: &Scratch) {
    let Some(fake) = Fake::new(scratch) else {
        return;
    };
    let images = fake.images(scratch);
    fake.set("silent", "");
    let (bundle, _) = running(scratch, "box");
    let mut command = fake.command(
        scratch,
        &["checkpoint", "--image-path", &text(&images), "box"],
    );
    let told = deadline::run(command.env("HOLDFAST_DEADLINE_CHECKPOINT", "300ms"), LIMIT);
    assert!(
        told.failed().contains("checkpoint: waiting for criu"),
        "{told}"
    );
    assert_eq!(scratch.state("box")["status"], "running");
    scratch.end(&bundle);
}

pub(crate) fn options_that_cannot_be_are_refused(scratch: &Scratch) {
    let Some(fake) = Fake::new(scratch) else {
        return;
    };
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    scratch.create(&bundle);
    let told = fake
        .call(scratch, &["checkpoint", "box"])
        .failed()
        .to_owned();
    assert!(
        told.contains("cannot checkpoint a container that is created"),
        "{told}"
    );
    for wrong in [
        &["--manage-cgroups-mode", "loose"][..],
        &["--empty-ns", "pid"],
        &["--page-server", "here"],
        &["--status-fd", "99"],
    ] {
        let words = [&["checkpoint"], wrong, &["box"]].concat();
        let told = fake.call(scratch, &words).failed().to_owned();
        assert!(told.contains(wrong[0]), "{told}");
    }
    scratch.end(&bundle);
}

pub(crate) fn without_criu_it_says_so(scratch: &Scratch) {
    let (bundle, _) = running(scratch, "box");
    let told = scratch
        .call(&["--criu", "/nonexistent/criu", "checkpoint", "box"])
        .failed()
        .to_owned();
    assert!(
        told.contains("/nonexistent/criu") && told.contains("install criu"),
        "{told}"
    );
    scratch.end(&bundle);
}
