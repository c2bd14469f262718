//! `restore`: what criu is asked for, and what the restored container is.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::process::{Command, Stdio};

use holdfast_integration::runtime::Kind;
use holdfast_integration::scratch::{LIMIT, Scratch, text};
use holdfast_integration::{deadline, place, skip};
use serde_json::json;

use crate::fake::{Fake, asked, bundle, end, externals, restore_words, restored_pid, running};

pub(crate) fn a_restored_container_is_one_like_any_other(scratch: &Scratch) {
    let Some(fake) = Fake::new(scratch) else {
        return;
    };
    let images = fake.images(scratch);
    let bundle = bundle(scratch, "again");
    let pid = fake.restore(scratch, &bundle, &images, &[]);
    let state = scratch.state("again");
    assert_eq!(
        (&state["status"], &state["pid"]),
        (&json!("running"), &json!(pid))
    );
    assert!(
        scratch
            .call(&["ps", "--format", "json", "again"])
            .ok()
            .contains(&pid.to_string())
    );
    let cgroups = fake.said("restore")["cgroup"].as_str().unwrap().to_owned();
    let own = format!("/{}/again", scratch.cgroup);
    assert!(cgroups.contains(&own), "{cgroups}");
    // The same id a second time is refused, and harms nothing.
    let (refused, _) = fake.try_restore(scratch, &bundle, &images, &[]);
    refused.failed();
    scratch.call(&["pause", "again"]).ok();
    assert_eq!(scratch.state("again")["status"], "paused");
    scratch.call(&["resume", "again"]).ok();
    end(scratch, &bundle, pid);
}

pub(crate) fn a_restore_asks_for_what_was_asked_for(scratch: &Scratch) {
    let Some(fake) = Fake::new(scratch) else {
        return;
    };
    let images = fake.images(scratch);
    let bundle = bundle(scratch, "again");
    let more = [
        "--tcp-established",
        "--ext-unix-sk",
        "--shell-job",
        "--file-locks",
        "--auto-dedup",
        "--lazy-pages",
        "--manage-cgroups-mode",
        "strict",
        "--empty-ns",
        "network",
        "--lsm-profile",
        "apparmor:other",
        "--lsm-mount-context",
        "u:r:t:s0",
    ];
    let pid = fake.restore(scratch, &bundle, &images, &more);
    let said = fake.said("restore");
    let opts = &said["request"]["opts"];
    let expected = json!({
        "tcp_established": 1, "ext_unix_sk": 1, "shell_job": 1, "file_locks": 1, "auto_dedup": 1,
        "lazy_pages": 1, "orphan_pts_master": 1, "manage_cgroups_mode": 5, "empty_ns": 0x4000_0000,
        "rst_sibling": 1, "lsm_profile": "apparmor:other", "lsm_mount_context": "u:r:t:s0",
    });
    let mut asked = asked(opts.clone());
    if scratch.runtime.kind == Kind::Runc {
        // It reads the option, and forgets it.
        asked["manage_cgroups_mode"] = json!(5);
    }
    assert_eq!(asked, expected);
    assert_eq!(
        (&opts["evasive_devices"], &opts["notify_scripts"]),
        (&json!(1), &json!(1))
    );
    let externals = externals(opts);
    let volume = ("/volume".to_owned(), text(&scratch.path("volume")));
    assert!(externals.contains(&volume), "{externals:?}");
    let null = ("/dev/null".to_owned(), "/dev/null".to_owned());
    assert!(externals.contains(&null), "{externals:?}");
    // Every controller is restored below where the container is now.
    let own = format!("/{}/again", scratch.cgroup);
    let roots = opts["cg_root"].as_array().cloned().unwrap_or_default();
    // On v2 runc 1.1.5 leaves it to criu, which is in the cgroup itself.
    assert!(!roots.is_empty() || scratch.runtime.kind == Kind::Runc);
    let elsewhere = roots
        .iter()
        .filter(|root| !root["path"].as_str().unwrap().ends_with(&own));
    // runc 1.1.5 leaves hierarchies that it does not know alone.
    let allowed = if scratch.runtime.kind == Kind::Runc {
        2
    } else {
        0
    };
    assert!(elsewhere.count() <= allowed, "{roots:?}");
    end(scratch, &bundle, pid);
}

pub(crate) fn pipes_are_replaced_by_those_of_the_caller(scratch: &Scratch) {
    let Some(fake) = Fake::new(scratch) else {
        return;
    };
    let images = fake.images(scratch);
    let descriptors = json!(["/dev/null", "pipe:[4711]", "pipe:[4712]"]);
    fs::write(images.join("descriptors.json"), descriptors.to_string()).unwrap();
    let bundle = bundle(scratch, "again");
    let words = restore_words(scratch, &bundle, &images, &[]);
    let (out_reader, out_writer) = std::io::pipe().unwrap();
    let (err_reader, err_writer) = std::io::pipe().unwrap();
    let link = |fd: i32| fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
    let (out, err) = (link(out_reader.as_raw_fd()), link(err_reader.as_raw_fd()));
    let mut child = fake
        .command(scratch, &words)
        .stdin(Stdio::null())
        .stdout(out_writer)
        .stderr(err_writer)
        .spawn()
        .unwrap();
    let status = deadline::wait(&mut child, LIMIT).expect("restore --detach ends");
    assert!(status.success());
    let inherited = &fake.said("restore")["inherited"];
    assert_eq!(
        *inherited,
        json!([["pipe:[4711]", out], ["pipe:[4712]", err]])
    );
    let pid = restored_pid(scratch).expect("a pid file");
    end(scratch, &bundle, pid);
}

// runc binds the root file system in the host's mount namespace while criu works.
pub(crate) fn nothing_is_mounted_on_the_host(scratch: &Scratch) {
    let Some(fake) = Fake::new(scratch) else {
        return;
    };
    let images = fake.images(scratch);
    let bundle = bundle(scratch, "again");
    // A root file system in which the container has never been.
    fs::remove_dir(bundle.in_rootfs("/dev")).unwrap_or(());
    assert!(!bundle.in_rootfs("/volume").exists());
    let pid = fake.restore(scratch, &bundle, &images, &[]);
    let said = fake.said("restore");
    let ours = fs::read_link("/proc/self/ns/mnt").unwrap();
    assert_ne!(said["mounts"], text(&ours));
    assert_eq!(said["root_is_mounted"], json!(true));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&text(&bundle.path)), "{mounts}");
    assert!(bundle.in_rootfs("/volume").is_file() && bundle.in_rootfs("/dev").is_dir());
    assert!(
        !bundle.in_rootfs("/dev/pts").exists(),
        "it belongs into the tmpfs on /dev"
    );
    end(scratch, &bundle, pid);
}

pub(crate) fn a_restore_that_fails_leaves_nothing(scratch: &Scratch) {
    let Some(fake) = Fake::new(scratch) else {
        return;
    };
    let images = fake.images(scratch);
    fake.set("fail", "files: no such file");
    let bundle = bundle(scratch, "again");
    let (done, pid) = fake.try_restore(scratch, &bundle, &images, &[]);
    assert!(
        done.failed().contains("criu failed: type RESTORE errno 5"),
        "{done}"
    );
    assert_eq!(pid, None);
    scratch.call(&["state", "again"]).failed();
    let (done, _) = fake.try_restore(scratch, &bundle, &scratch.path("nowhere"), &[]);
    assert!(done.failed().contains("nowhere"), "{done}");
}

pub(crate) fn the_real_criu(scratch: &Scratch) {
    let Some(criu) = place::program("criu") else {
        return skip("the_real_criu", "criu is not installed");
    };
    let (bundle, pid) = running(scratch, "box");
    let images = scratch.path("images");
    let at = text(&images);
    let said = scratch.call(&["checkpoint", "--image-path", &at, "--shell-job", "box"]);
    let works = deadline::run(Command::new(&criu).arg("check"), LIMIT)
        .status
        .success();
    if !works {
        skip(
            "the_real_criu",
            "criu check fails here; that its error says so is tested",
        );
        let told = said.failed();
        assert!(told.contains("criu failed: type DUMP"), "{told}");
        assert!(told.contains(" does not work on Linux "), "{told}");
        assert!(told.contains("its own check fails: "), "{told}");
        assert_eq!(scratch.state("box")["status"], "running");
        return scratch.end(&bundle);
    }
    said.ok();
    scratch.exit_of(pid);
    let words = restore_words(scratch, &bundle, &images, &["--shell-job"]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    scratch.call(&words).ok();
    let pid = restored_pid(scratch).expect("a pid file");
    assert_eq!(scratch.state("box")["status"], "running");
    assert_eq!(scratch.exec(&bundle, &["cat", "/volume"]).ok().trim(), "x");
    end(scratch, &bundle, pid);
}
