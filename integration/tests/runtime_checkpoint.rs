//! `checkpoint` and `restore`: what criu is asked for, and what becomes of its answers.
//!
//! The criu of these tests is a double (`src/bin/fake_criu`), because the real one does not work on
//! every kernel; the last test has the real one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use holdfast_integration::bundle::Bundle;
use holdfast_integration::deadline::{self, Finished, eventually};
use holdfast_integration::runtime::Kind;
use holdfast_integration::scratch::{LIMIT, Scratch, text};
use holdfast_integration::{on_runtimes, place, skip};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, recvmsg, send,
    socketpair,
};
use serde_json::{Value, json};

// crun 1.8.1 of Debian is built without criu.
on_runtimes! {
    a_dump_asks_for_what_was_asked_for: holdfast runc;
    nothing_is_asked_for_by_itself: holdfast runc;
    a_dumped_container_is_gone_unless_it_is_left_running: holdfast runc;
    a_pre_dump_tracks_memory: holdfast runc;
    what_criu_lacks_is_said: holdfast;
    a_restored_container_is_one_like_any_other: holdfast runc;
    a_restore_asks_for_what_was_asked_for: holdfast runc;
    pipes_are_replaced_by_those_of_the_caller: holdfast runc;
    nothing_is_mounted_on_the_host: holdfast;
    a_restored_process_is_registered_before_it_runs: holdfast;
    a_shim_that_refuses_gets_no_container: holdfast;
    a_failure_is_told_in_criu_s_words: holdfast runc;
    a_restore_that_fails_leaves_nothing: holdfast runc;
    a_silent_criu_holds_nobody: holdfast;
    options_that_cannot_be_are_refused: holdfast;
    without_criu_it_says_so: holdfast;
    the_real_criu: holdfast;
}

/// A double of criu in a folder of its own, which becomes the first of PATH.
struct Fake {
    dir: PathBuf,
}

impl Fake {
    fn new(scratch: &Scratch) -> Option<Self> {
        let program = Path::new(env!("CARGO_BIN_EXE_fake_criu"));
        if !program.exists() {
            skip(
                "runtime_checkpoint",
                "the double of criu is not on this machine",
            );
            return None;
        }
        let dir = scratch.path("criu");
        fs::create_dir(&dir).unwrap();
        symlink(program, dir.join("criu")).unwrap();
        Some(Self { dir })
    }

    /// See the table of `fake_criu`.
    fn set(&self, name: &str, content: &str) {
        fs::write(self.dir.join(name), content).unwrap();
    }

    fn said(&self, name: &str) -> Value {
        let text = fs::read(self.dir.join(format!("{name}.json")));
        serde_json::from_slice(&text.unwrap_or_else(|e| panic!("{name}: {e}"))).unwrap()
    }

    fn command(&self, scratch: &Scratch, words: &[&str]) -> Command {
        let mut command = scratch.command(words);
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{path}", text(&self.dir)));
        command.env("FAKE_CRIU_DIR", &self.dir);
        command
    }

    fn call(&self, scratch: &Scratch, words: &[&str]) -> Finished {
        deadline::run(&mut self.command(scratch, words), LIMIT)
    }

    /// Images as a dump leaves them.
    fn images(&self, scratch: &Scratch) -> PathBuf {
        let images = scratch.path("images");
        let bundle = running(scratch, "dumped");
        let words = [
            "checkpoint",
            "--image-path",
            &text(&images),
            "--leave-running",
            &bundle.id,
        ];
        self.call(scratch, &words).ok();
        scratch.end(&bundle);
        images
    }

    /// Restores detached, and returns the pid. The container keeps our streams: they are no pipes.
    fn restore(&self, scratch: &Scratch, bundle: &Bundle, images: &Path, more: &[&str]) -> i32 {
        let (done, pid) = self.try_restore(scratch, bundle, images, more);
        done.ok();
        pid.expect("a pid file")
    }

    fn try_restore(
        &self,
        scratch: &Scratch,
        bundle: &Bundle,
        images: &Path,
        more: &[&str],
    ) -> (Finished, Option<i32>) {
        bundle.write();
        let pid_file = scratch.path("restored.pid");
        let (path, images, file) = (text(&bundle.path), text(images), text(&pid_file));
        let work = text(&scratch.path("work"));
        let mut words = vec![
            "restore",
            "--detach",
            "--bundle",
            &path,
            "--image-path",
            &images,
            "--work-path",
            &work,
            "--pid-file",
            &file,
        ];
        words.extend(more);
        words.push(&bundle.id);
        let done = self.call(scratch, &words);
        let pid = fs::read_to_string(&pid_file);
        (done, pid.ok().map(|text| text.trim().parse().unwrap()))
    }
}

fn running(scratch: &Scratch, name: &str) -> Bundle {
    fs::write(scratch.path("volume"), "x").unwrap();
    let bundle = bundle(scratch, name);
    scratch.start(&bundle);
    bundle
}

fn bundle(scratch: &Scratch, name: &str) -> Bundle {
    scratch.bundle(name).args(&["sleep", "600"]).mount(json!({
        "destination": "/volume", "type": "bind", "source": text(&scratch.path("volume")),
        "options": ["bind"],
    }))
}

fn end(scratch: &Scratch, bundle: &Bundle, pid: i32) {
    scratch.call(&["kill", &bundle.id, "KILL"]).ok();
    scratch.exit_of(pid);
    scratch.call(&["delete", &bundle.id]).ok();
}

/// The options of a request without those that say where things are.
fn asked(mut opts: Value) -> Value {
    let object = opts.as_object_mut().unwrap();
    for place in [
        "images_dir_fd",
        "work_dir_fd",
        "log_level",
        "pid",
        "root",
        "freeze_cgroup",
        "ext_mnt",
        "cg_root",
        "log_file",
        "config_file",
        "status_fd",
        "notify_scripts",
        "manage_cgroups",
        "evasive_devices",
        "inherit_fd",
    ] {
        object.remove(place);
    }
    // A flag that is off may be said or not.
    object.retain(|_, value| *value != json!(0));
    opts
}

fn externals(opts: &Value) -> Vec<(String, String)> {
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    let mut pairs: Vec<_> = opts["ext_mnt"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|pair| (word(&pair["key"]), word(&pair["val"])))
        .collect();
    pairs.sort();
    pairs
}

fn a_dump_asks_for_what_was_asked_for(scratch: &Scratch) {
    let Some(fake) = Fake::new(scratch) else {
        return;
    };
    let bundle = running(scratch, "box");
    let (images, work) = (text(&scratch.path("images")), text(&scratch.path("work")));
    let mut words = vec![
        "checkpoint",
        "--image-path",
        &images,
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
        words.extend(["--tcp-skip-in-flight", "--link-remap"]);
        expected["tcp_skip_in_flight"] = json!(1);
        expected["link_remap"] = json!(1);
    }
    words.push(&bundle.id);
    fake.call(scratch, &words).ok();
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
fn nothing_is_asked_for_by_itself(scratch: &Scratch) {
    let Some(fake) = Fake::new(scratch) else {
        return;
    };
    let bundle = running(scratch, "box");
    let pid = i32::try_from(scratch.state("box")["pid"].as_i64().unwrap()).unwrap();
    let images = text(&scratch.path("images"));
    fake.call(
        scratch,
        &["checkpoint", "--image-path", &images, &bundle.id],
    )
    .ok();
    let mut opts = asked(fake.said("dump")["opts"].clone());
    // runc says what is criu's own default.
    opts.as_object_mut().unwrap().remove("manage_cgroups_mode");
    assert_eq!(
        opts,
        json!({"orphan_pts_master": 1, "empty_ns": 0x4000_0000})
    );
    let descriptors = fs::read_to_string(Path::new(&images).join("descriptors.json")).unwrap();
    let descriptors: Vec<String> = serde_json::from_str(&descriptors).unwrap();
    assert_eq!(descriptors.len(), 3);
    assert_eq!(scratch.exit_of(pid), 137);
}

fn a_dumped_container_is_gone_unless_it_is_left_running(scratch: &Scratch) {
    let Some(fake) = Fake::new(scratch) else {
        return;
    };
    let bundle = running(scratch, "box");
    let pid = i32::try_from(scratch.state("box")["pid"].as_i64().unwrap()).unwrap();
    let images = text(&scratch.path("images"));
    let words = [
        "checkpoint",
        "--image-path",
        &images,
        "--leave-running",
        &bundle.id,
    ];
    fake.call(scratch, &words).ok();
    assert_eq!(scratch.state("box")["status"], "running");
    fake.call(
        scratch,
        &["checkpoint", "--image-path", &images, &bundle.id],
    )
    .ok();
    let told = scratch.call(&["state", "box"]).failed().to_owned();
    assert!(told.contains("does not exist"), "{told}");
    assert_eq!(scratch.exit_of(pid), 137);
}

fn a_pre_dump_tracks_memory(scratch: &Scratch) {
    let Some(fake) = Fake::new(scratch) else {
        return;
    };
    let bundle = running(scratch, "box");
    let (first, second) = (text(&scratch.path("first")), text(&scratch.path("second")));
    fake.call(
        scratch,
        &["checkpoint", "--pre-dump", "--image-path", &first, "box"],
    )
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
    let words = [
        "checkpoint",
        "--leave-running",
        "--image-path",
        &second,
        "--parent-path",
        "../first",
        "box",
    ];
    fake.call(scratch, &words).ok();
    let opts = &fake.said("dump")["opts"];
    assert_eq!(
        (&opts["parent_img"], &opts["track_mem"]),
        (&json!("../first"), &json!(1))
    );
    for wrong in [first.as_str(), "../nowhere"] {
        let words = [
            "checkpoint",
            "--image-path",
            &second,
            "--parent-path",
            wrong,
            "box",
        ];
        let told = fake.call(scratch, &words).failed().to_owned();
        assert!(
            told.contains("--parent-path") || told.contains("parent"),
            "{told}"
        );
    }
    scratch.end(&bundle);
}

fn what_criu_lacks_is_said(scratch: &Scratch) {
    let Some(fake) = Fake::new(scratch) else {
        return;
    };
    fake.set("no-features", "");
    let bundle = running(scratch, "box");
    let images = text(&scratch.path("images"));
    for (option, told) in [
        (
            "--pre-dump",
            "criu 3.17.1 has no tracking of changed memory",
        ),
        ("--lazy-pages", "criu 3.17.1 has no lazy pages"),
    ] {
        let said = fake.call(
            scratch,
            &["checkpoint", option, "--image-path", &images, "box"],
        );
        assert!(said.failed().contains(told), "{said}");
    }
    scratch.end(&bundle);
}

fn a_restored_container_is_one_like_any_other(scratch: &Scratch) {
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

fn a_restore_asks_for_what_was_asked_for(scratch: &Scratch) {
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

fn pipes_are_replaced_by_those_of_the_caller(scratch: &Scratch) {
    let Some(fake) = Fake::new(scratch) else {
        return;
    };
    let images = fake.images(scratch);
    let descriptors = json!(["/dev/null", "pipe:[4711]", "pipe:[4712]"]);
    fs::write(images.join("descriptors.json"), descriptors.to_string()).unwrap();
    let bundle = bundle(scratch, "again");
    bundle.write();
    let pid_file = scratch.path("restored.pid");
    let words = [
        "restore",
        "--detach",
        "--bundle",
        &text(&bundle.path),
        "--image-path",
        &text(&images),
        "--work-path",
        &text(&scratch.path("work")),
        "--pid-file",
        &text(&pid_file),
        "again",
    ];
    let (out_reader, out_writer) = std::io::pipe().unwrap();
    let (err_reader, err_writer) = std::io::pipe().unwrap();
    let link = |fd: i32| fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
    let (out, err) = (link(out_reader.as_raw_fd()), link(err_reader.as_raw_fd()));
    let mut child = fake
        .command(scratch, &words)
        .stdin(std::process::Stdio::null())
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
    let pid = fs::read_to_string(&pid_file)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    end(scratch, &bundle, pid);
}

// runc binds the root file system in the host's mount namespace while criu works.
fn nothing_is_mounted_on_the_host(scratch: &Scratch) {
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

/// Starts a restore as a shim does; the other end of its socket.
fn under_a_shim(
    fake: &Fake,
    scratch: &Scratch,
    bundle: &Bundle,
    images: &Path,
) -> (std::process::Child, OwnedFd) {
    bundle.write();
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .unwrap();
    let words = [
        "restore",
        "--detach",
        "--bundle",
        &text(&bundle.path),
        "--image-path",
        &text(images),
        "--work-path",
        &text(&scratch.path("work")),
        &bundle.id,
    ];
    fcntl(theirs.as_raw_fd(), FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let child = fake
        .command(scratch, &words)
        .env("HOLDFAST_BARRIER", theirs.as_raw_fd().to_string())
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    (child, ours)
}

/// The next frame and the descriptor with it.
fn frame(socket: &OwnedFd) -> (Vec<u8>, Option<i32>) {
    let mut buffer = vec![0; 32 << 10];
    let mut space = nix::cmsg_space!([i32; 1]);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )
    .unwrap();
    let fd = message.cmsgs().unwrap().find_map(|control| match control {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    let len = message.bytes;
    buffer.truncate(len);
    (buffer, fd)
}

fn registered(socket: &OwnedFd) -> i32 {
    let (bytes, pidfd) = frame(socket);
    assert_eq!((bytes[0], bytes.len()), (1, 5), "{bytes:?}");
    nix::unistd::close(pidfd.expect("a pidfd")).unwrap();
    i32::from_le_bytes(bytes[1..].try_into().unwrap())
}

fn command_of(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

fn a_restored_process_is_registered_before_it_runs(scratch: &Scratch) {
    let Some(fake) = Fake::new(scratch) else {
        return;
    };
    let images = fake.images(scratch);
    let bundle = bundle(scratch, "again");
    let (mut child, shim) = under_a_shim(&fake, scratch, &bundle, &images);
    let pid = registered(&shim);
    // It is still what criu made, and a child of the shim from the beginning.
    assert!(command_of(pid).contains("swrk"), "{}", command_of(pid));
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let parent = format!("PPid:\t{}\n", std::process::id());
    assert!(status.contains(&parent), "{status}");
    assert!(
        child.try_wait().unwrap().is_none(),
        "restore has not waited for the shim"
    );
    send(shim.as_raw_fd(), &[6], MsgFlags::empty()).unwrap();
    let ended = deadline::wait(&mut child, LIMIT).expect("restore ends");
    assert!(ended.success());
    eventually("it runs", LIMIT, || {
        command_of(pid).starts_with("/bin/sleep").then_some(())
    });
    assert_eq!(scratch.state("again")["pid"], pid);
    end(scratch, &bundle, pid);
}

fn a_shim_that_refuses_gets_no_container(scratch: &Scratch) {
    let Some(fake) = Fake::new(scratch) else {
        return;
    };
    let images = fake.images(scratch);
    let bundle = bundle(scratch, "again");
    let (mut child, shim) = under_a_shim(&fake, scratch, &bundle, &images);
    let pid = registered(&shim);
    drop(shim);
    let ended = deadline::wait(&mut child, LIMIT).expect("restore ends");
    assert!(!ended.success());
    scratch.exit_of(pid);
    scratch.call(&["state", "again"]).failed();
}

fn a_failure_is_told_in_criu_s_words(scratch: &Scratch) {
    let Some(fake) = Fake::new(scratch) else {
        return;
    };
    fake.set("fail", "mnt: no way to write this down");
    let bundle = running(scratch, "box");
    let images = text(&scratch.path("images"));
    let words = ["checkpoint", "--image-path", &images, "box"];
    let told = fake.call(scratch, &words).failed().to_owned();
    assert!(told.contains("criu failed: type DUMP errno 5"), "{told}");
    assert!(told.contains("dump.log"), "{told}");
    assert_eq!(scratch.state("box")["status"], "running");
    // runc leaves reading the log to its user.
    if scratch.runtime.kind == Kind::Holdfast {
        assert!(told.contains("mnt: no way to write this down"), "{told}");
        assert!(!told.contains("does not work on"), "{told}");
        fake.set("kernel", "");
        let told = fake.call(scratch, &words).failed().to_owned();
        let expected = "criu 3.17.1 does not work on Linux";
        assert!(
            told.contains(expected) && told.contains("this cannot work here"),
            "{told}"
        );
    }
    scratch.end(&bundle);
}

fn a_restore_that_fails_leaves_nothing(scratch: &Scratch) {
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

fn a_silent_criu_holds_nobody(scratch: &Scratch) {
    let Some(fake) = Fake::new(scratch) else {
        return;
    };
    let images = fake.images(scratch);
    fake.set("silent", "");
    let bundle = running(scratch, "box");
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

fn options_that_cannot_be_are_refused(scratch: &Scratch) {
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

fn without_criu_it_says_so(scratch: &Scratch) {
    let bundle = running(scratch, "box");
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

fn the_real_criu(scratch: &Scratch) {
    let Some(criu) = place::program("criu") else {
        return skip("the_real_criu", "criu is not installed");
    };
    let bundle = running(scratch, "box");
    let pid = i32::try_from(scratch.state("box")["pid"].as_i64().unwrap()).unwrap();
    let images = text(&scratch.path("images"));
    let said = scratch.call(&["checkpoint", "--image-path", &images, "--shell-job", "box"]);
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
    let pid_file = scratch.path("restored.pid");
    let words = [
        "restore",
        "--detach",
        "--shell-job",
        "--bundle",
        &text(&bundle.path),
        "--image-path",
        &images,
        "--pid-file",
        &text(&pid_file),
        "box",
    ];
    scratch.call(&words).ok();
    let pid = fs::read_to_string(&pid_file)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert_eq!(scratch.state("box")["status"], "running");
    assert_eq!(scratch.exec(&bundle, &["cat", "/volume"]).ok().trim(), "x");
    end(scratch, &bundle, pid);
}
