//! No step of the runtime waits for ever, and a runtime that is killed leaves nothing that
//! `delete --force` cannot remove.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_integration::deadline::{self, Finished};
use holdfast_integration::scratch::{LIMIT, Scratch, text};
use holdfast_integration::user::User;
use holdfast_integration::{killer, on_runtimes, skip};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket,
};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use serde_json::json;

// A peer that waits for ever cannot be told from a slow one, so only ours is asked.
on_runtimes! {
    // runc and crun compile in the container's init or in themselves, without a limit.
    a_seccomp_profile_libseccomp_never_returns_from: holdfast;
    a_volume_on_a_file_system_that_does_not_answer: holdfast;
    a_mount_target_on_a_file_system_that_does_not_answer: holdfast;
    a_hook_and_its_children: holdfast;
    an_init_that_is_stopped_during_create: holdfast;
    an_init_that_is_stopped_at_start: holdfast;
    an_exec_into_a_frozen_container: holdfast;
    a_console_socket_that_nobody_accepts: holdfast;
    a_seccomp_agent_that_does_not_accept: holdfast;
    a_helper_for_id_maps_that_hangs: holdfast;
    a_pid_file_that_is_a_fifo: holdfast;
    a_log_that_is_a_fifo: holdfast;
    documents_that_do_not_arrive: holdfast;
    a_namespace_that_is_a_fifo: holdfast;
    a_delete_below_a_frozen_cgroup: holdfast;
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

/// A call with one deadline made short; it must end long before [`LIMIT`].
#[track_caller]
fn hurried(scratch: &Scratch, name: &str, words: &[&str]) -> Finished {
    let mut command = scratch.command(words);
    command.env(format!("HOLDFAST_DEADLINE_{name}"), "1s");
    deadline::run(&mut command, LIMIT)
}

/// Gave up on `what`, and told about process and wait.
#[track_caller]
fn assert_gave_up(finished: &Finished, what: &str) {
    assert_ne!(finished.code(), 0, "{finished}");
    for part in ["gave up after 1 s", what, "process ", " is "] {
        assert!(finished.stderr.contains(part), "no {part:?}: {finished}");
    }
}

/// A FUSE file system whose server never reads a request.
struct Silent {
    folder: PathBuf,
    _server: File,
}

impl Silent {
    fn new(scratch: &Scratch) -> Result<Self, String> {
        let folder = scratch.path("silent");
        fs::create_dir(&folder).unwrap();
        let server = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .map_err(|e| format!("/dev/fuse: {e}"))?;
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
            server.as_raw_fd()
        );
        mount(
            Some("silent"),
            &folder,
            Some("fuse"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .map_err(|e| format!("mount fuse: {e}"))?;
        Ok(Self {
            folder,
            _server: server,
        })
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        let _ = umount2(&self.folder, MntFlags::MNT_DETACH);
    }
}

fn bind_mount(source: &Path, target: &str) -> serde_json::Value {
    json!({"destination": target, "type": "bind", "source": text(source), "options": ["bind"]})
}

fn a_volume_on_a_file_system_that_does_not_answer(scratch: &Scratch) {
    let silent = match Silent::new(scratch) {
        Ok(silent) => silent,
        Err(why) => return holdfast_integration::skip("a_volume_on_a_file_system", &why),
    };
    let source = silent.folder.join("volume");
    let bundle = scratch.bundle("box").mount(bind_mount(&source, "/volume"));
    bundle.write();
    let words = ["create", "--bundle", &text(&bundle.path), "box"];
    let created = hurried(scratch, "PATH", &words);
    assert_gave_up(&created, &text(&source));
    drop(silent);
    scratch.assert_nothing_left();
}

/// Here it is init that waits, inside the container.
fn a_mount_target_on_a_file_system_that_does_not_answer(scratch: &Scratch) {
    let silent = match Silent::new(scratch) {
        Ok(silent) => silent,
        Err(why) => return holdfast_integration::skip("a_mount_target_on_a_file_system", &why),
    };
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    let bundle = scratch
        .bundle("box")
        .mount(bind_mount(&silent.folder, "/volume"))
        .mount(bind_mount(&source, "/volume/deep"));
    bundle.write();
    let words = ["create", "--bundle", &text(&bundle.path), "box"];
    let created = hurried(scratch, "CREATE", &words);
    assert_gave_up(&created, "create: waiting for the container to be ready");
    assert!(
        created.stderr.contains("command holdfast-init"),
        "{created}"
    );
    drop(silent);
    scratch.assert_nothing_left();
}

/// It is the whole process group that is ended.
fn a_hook_and_its_children(scratch: &Scratch) {
    let script = format!(
        "HOLDFAST_TEST_FOLDER={} sleep 600 & sleep 600",
        text(&scratch.path(""))
    );
    let hook = json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "timeout": 1}]);
    let bundle = scratch
        .bundle("box")
        .with(|spec| spec["hooks"] = json!({"createRuntime": hook}));
    bundle.write();
    let created = scratch.call(&["create", "--bundle", &text(&bundle.path), "box"]);
    assert_eq!(created.code(), 1, "{created}");
    for part in ["createRuntime hook 1 of 1", "within 1000 ms", "sleeping"] {
        assert!(created.stderr.contains(part), "no {part:?}: {created}");
    }
    scratch.assert_nothing_left();
}

fn an_init_that_is_stopped_during_create(scratch: &Scratch) {
    let stop = "pid=$(sed 's/.*\"pid\": *\\([0-9]*\\).*/\\1/'); kill -STOP $pid";
    let hook =
        json!([{"path": "/bin/sh", "args": ["sh", "-c", stop], "env": ["PATH=/usr/bin:/bin"]}]);
    let bundle = scratch
        .bundle("box")
        .with(|spec| spec["hooks"] = json!({"createRuntime": hook}));
    bundle.write();
    let words = ["create", "--bundle", &text(&bundle.path), "box"];
    let created = hurried(scratch, "CREATE", &words);
    assert_gave_up(&created, "create: waiting for the container to be ready");
    assert!(created.stderr.contains("stopped (T)"), "{created}");
    scratch.assert_nothing_left();
}

fn an_init_that_is_stopped_at_start(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    let pid = scratch.create(&bundle);
    kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    let started = hurried(scratch, "START", &["start", "box"]);
    assert_gave_up(&started, "start: waiting for execve");
    assert!(started.stderr.contains("stopped (T)"), "{started}");
    scratch.call(&["delete", "--force", "box"]).ok();
    scratch.assert_nothing_left();
}

fn an_exec_into_a_frozen_container(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    scratch.start(&bundle);
    scratch.call(&["pause", "box"]).ok();
    let refused = scratch.call(&["exec", "box", "true"]);
    assert_eq!(refused.code(), 255, "{refused}");
    let words = ["exec", "--ignore-paused", "box", "true"];
    let given_up = hurried(scratch, "EXEC", &words);
    assert_gave_up(&given_up, "exec: waiting for execve");
    scratch.call(&["resume", "box"]).ok();
    deadline::eventually("the end of the exec that was given up", LIMIT, || {
        let seen = scratch.call(&["ps", "--format", "json", "box"]);
        let pids: Vec<i32> = serde_json::from_str(seen.ok()).unwrap();
        // Its zombie is ours: without a reaper init could not end.
        (pids.len() == 1).then(killer::reap_contained)
    });
    scratch.end(&bundle);
}

/// A socket that listens, whose queue is full, and from which nobody takes.
fn full_socket(place: &Path) -> Vec<OwnedFd> {
    let new =
        |flags| -> OwnedFd { socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap() };
    let listener = new(SockFlag::SOCK_CLOEXEC);
    let address = UnixAddr::new(place).unwrap();
    bind(listener.as_raw_fd(), &address).unwrap();
    listen(&listener, Backlog::new(0).unwrap()).unwrap();
    let mut held = vec![listener];
    loop {
        let client = new(SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC);
        let full = connect(client.as_raw_fd(), &address).is_err();
        held.push(client);
        if full {
            return held;
        }
    }
}

fn a_console_socket_that_nobody_accepts(scratch: &Scratch) {
    let place = scratch.path("console");
    let _full = full_socket(&place);
    let bundle = scratch
        .bundle("box")
        .with(|spec| spec["process"]["terminal"] = json!(true));
    bundle.write();
    let words = [
        "create",
        "--bundle",
        &text(&bundle.path),
        "--console-socket",
        &text(&place),
        "box",
    ];
    let created = hurried(scratch, "SOCKET", &words);
    assert_eq!(created.code(), 1, "{created}");
    assert!(created.stderr.contains(&text(&place)), "{created}");
    assert!(created.stderr.contains("timed out"), "{created}");
    scratch.assert_nothing_left();
}

/// The agent's socket listens, its queue is full and nobody takes from it.
fn a_seccomp_agent_that_does_not_accept(scratch: &Scratch) {
    let path = scratch.path("agent");
    let full = full_socket(&path);
    let bundle = scratch.bundle("agent").docker_seccomp().with(|spec| {
        let profile = &mut spec["linux"]["seccomp"];
        profile["listenerPath"] = json!(text(&path));
        let rule = json!({"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"});
        profile["syscalls"].as_array_mut().unwrap().insert(0, rule);
    });
    bundle.write();
    let words = ["create", "--bundle", &text(&bundle.path), "agent"];
    let gave_up = hurried(scratch, "SOCKET", &words);
    let said = gave_up.failed();
    assert!(said.contains("hand the seccomp listener over"), "{gave_up}");
    assert!(said.contains(&text(&path)), "{gave_up}");
    drop(full);
    scratch.assert_nothing_left();
}

/// newuidmap asks a directory service that does not answer.
fn a_helper_for_id_maps_that_hangs(scratch: &Scratch) {
    let user = match User::new(&scratch.path("")) {
        Ok(user) => user,
        Err(why) => return skip("a_helper_for_id_maps_that_hangs", &why),
    };
    let helper = scratch.path("helpers/newuidmap");
    fs::create_dir(helper.parent().unwrap()).unwrap();
    fs::write(&helper, "#!/bin/sh\nexec sleep 600\n").unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let bundle = scratch
        .bundle("box")
        .without_namespace("network")
        .namespace("user", None)
        .with(|spec| {
            let map = json!([{"containerID": 0, "hostID": user.uid, "size": 1},
                             {"containerID": 1, "hostID": user.subordinate.0, "size": 9}]);
            spec["linux"]["uidMappings"] = map.clone();
            spec["linux"]["gidMappings"] = map;
            spec["linux"].as_object_mut().unwrap().remove("cgroupsPath");
            spec["linux"].as_object_mut().unwrap().remove("resources");
        });
    bundle.write();
    user.own(&bundle.path);
    let mut inner = scratch.runtime.command();
    inner.args(["run", "--bundle", &text(&bundle.path), "box"]);
    inner.env("HOLDFAST_TEST_FOLDER", scratch.path(""));
    inner.env("HOLDFAST_LEDGER_DIR", user.runtime_dir.join("ledger"));
    inner.env("HOLDFAST_DEADLINE_IDMAP", "1s");
    let path = format!("{}:/usr/bin:/bin", text(helper.parent().unwrap()));
    let gave_up = deadline::run(user.command(&inner).env("PATH", path), LIMIT);
    assert_gave_up(&gave_up, "create: waiting for newuidmap");
    assert!(gave_up.stderr.contains("command sleep"), "{gave_up}");
    // The helper, the container's process and its record are gone: `with` looks for processes.
    let left = fs::read_dir(user.runtime_dir.join("holdfast")).unwrap();
    let left: Vec<_> = left
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| !name.to_string_lossy().starts_with('.'))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    scratch.assert_nothing_left();
}

fn fifo(path: &Path) {
    mkfifo(path, Mode::from_bits_truncate(0o600)).unwrap();
}

/// It is replaced by the file, as every pid file is.
fn a_pid_file_that_is_a_fifo(scratch: &Scratch) {
    let place = scratch.path("pid");
    fifo(&place);
    let bundle = scratch.bundle("box").args(&["true"]);
    bundle.write();
    let place = text(&place);
    scratch
        .call(&[
            "run",
            "--bundle",
            &text(&bundle.path),
            "--pid-file",
            &place,
            "box",
        ])
        .ok();
    assert!(fs::read_to_string(&place).unwrap().parse::<u32>().is_ok());
}

/// Without a reader, and with one that does not read.
fn a_log_that_is_a_fifo(scratch: &Scratch) {
    let place = scratch.path("log");
    fifo(&place);
    let words = ["--log", &text(&place), "state", "none"];
    let said = scratch.call(&words);
    assert_eq!(said.code(), 1, "{said}");
    assert!(said.stderr.contains("does not exist"), "{said}");
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut reader = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(&place)
        .unwrap();
    while reader.write(&[b'x'; 4096]).is_ok() {}
    let said = scratch.call(&words);
    assert_eq!(said.code(), 1, "{said}");
    assert!(said.stderr.contains("does not exist"), "{said}");
}

fn documents_that_do_not_arrive(scratch: &Scratch) {
    let long = scratch.bundle("long").args(&["sleep", "600"]);
    scratch.start(&long);
    let bundle = scratch.bundle("box");
    let config = bundle.path.join("config.json");
    let process = scratch.path("process.json");
    fifo(&config);
    fifo(&process);
    let (folder, place) = (text(&bundle.path), text(&process));
    let create = ["create", "--bundle", &folder, "box"];
    let exec = ["exec", "--process", &place, "long"];
    // Nobody is there to write.
    assert_eq!(hurried(scratch, "DOCUMENT", &create).code(), 1);
    assert_eq!(hurried(scratch, "DOCUMENT", &exec).code(), 255);
    // Somebody is, and does not.
    let open = |path: &Path| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .unwrap()
    };
    let _writers = (open(&config), open(&process));
    assert_gave_up(&hurried(scratch, "DOCUMENT", &create), "config.json");
    assert_gave_up(&hurried(scratch, "DOCUMENT", &exec), "process.json");
    scratch.end(&long);
}

fn a_namespace_that_is_a_fifo(scratch: &Scratch) {
    let place = scratch.path("namespace");
    fifo(&place);
    for kind in ["network", "pid", "mount", "user"] {
        let name = format!("box-{kind}");
        let bundle = scratch.bundle(&name).namespace(kind, Some(&text(&place)));
        let ran = scratch.run(&bundle);
        assert_eq!(ran.code(), 1, "{kind}: {ran}");
        scratch.assert_nothing_left();
    }
}

/// On v1 nobody below a frozen cgroup dies; on v2 they do.
fn a_delete_below_a_frozen_cgroup(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    scratch.start(&bundle);
    let of = |controller: &str, file: &str| {
        Path::new("/sys/fs/cgroup")
            .join(controller)
            .join(&scratch.cgroup)
            .join(file)
    };
    let (file, frozen, thawed) = match of("freezer", "freezer.state") {
        v1 if v1.exists() => (v1, "FROZEN", "THAWED"),
        _ => (of("", "cgroup.freeze"), "1", "0"),
    };
    fs::write(&file, frozen).unwrap();
    let deleted = hurried(scratch, "DELETE", &["delete", "--force", "box"]);
    // After a delete that succeeded the folder is gone, too.
    if file.exists() {
        fs::write(&file, thawed).unwrap();
    }
    if frozen == "FROZEN" {
        assert_gave_up(&deleted, "delete: waiting for the init process to die");
    } else {
        deleted.ok();
    }
    scratch.call(&["delete", "--force", "box"]).ok();
}
