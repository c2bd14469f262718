//! The words and exit codes that containerd, docker, podman, cri-o and buildkit derive their own
//! from. Each row holds for runc too: it is the contract.

use holdfast_integration::on_runtimes;
use holdfast_integration::scratch::{Scratch, text};
use std::fs;

on_runtimes! {
    no_such_container: holdfast runc;
    an_ended_container: holdfast runc;
    a_running_container: holdfast runc;
    programs: holdfast runc;
    the_log_has_the_error_as_json: holdfast runc;
    the_list_is_cut_at_the_same_places: holdfast runc;
    signal_zero_asks: holdfast runc;
    capabilities_nobody_knows: holdfast runc;
    an_exec_in_a_cgroup_below: holdfast runc;
    preserved_and_ignored: holdfast runc;
    what_go_runc_calls: holdfast runc;
    a_foreground_run_as_buildkit_does: holdfast runc;
    a_kill_as_cri_o_does: holdfast runc;
}

/// Calls the runtime, which must fail with this code and say this.
#[track_caller]
fn fails(scratch: &Scratch, words: &[&str], code: i32, told: &str) {
    let said = scratch.call(words);
    assert_eq!(said.code(), code, "{said}");
    assert!(said.failed().contains(told), "no {told:?}: {said}");
}

fn no_such_container(scratch: &Scratch) {
    let told = "container does not exist";
    for words in [
        &["state", "none"][..],
        &["start", "none"],
        &["kill", "none", "9"],
        &["delete", "none"],
        &["pause", "none"],
        &["resume", "none"],
        &["ps", "none"],
        &["update", "--pids-limit", "5", "none"],
    ] {
        fails(scratch, words, 1, told);
    }
    fails(scratch, &["exec", "none", "true"], 255, told);
    scratch.call(&["delete", "--force", "none"]).ok();
}

fn an_ended_container(scratch: &Scratch) {
    let bundle = scratch.bundle("ended").args(&["true"]);
    let pid = scratch.start(&bundle);
    scratch.exit_of(pid);
    fails(
        scratch,
        &["kill", "ended", "15"],
        1,
        "container not running",
    );
    fails(scratch, &["exec", "ended", "true"], 255, "stopped");
    fails(scratch, &["start", "ended"], 1, "stopped");
    scratch.call(&["delete", "ended"]).ok();
}

fn a_running_container(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    scratch.start(&bundle);
    let create = ["create", "--bundle", &text(&bundle.path), "box"];
    fails(
        scratch,
        &create,
        1,
        "container with given ID already exists",
    );
    fails(scratch, &["delete", "box"], 1, "running");
    scratch.end(&bundle);
}

fn programs(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    scratch.start(&bundle);
    for (program, told) in [
        (
            "nosuch",
            "exec: \\\"nosuch\\\": executable file not found in $PATH",
        ),
        ("/no/such", "no such file or directory"),
        ("/etc/passwd", "permission denied"),
    ] {
        let said = scratch.call(&["exec", "box", program]);
        assert_eq!(said.code(), 255, "{said}");
        // runc's standard error has its quotes quoted.
        let plain = |words: &str| words.replace('\\', "");
        assert!(plain(said.failed()).contains(&plain(told)), "{said}");
    }
    scratch.end(&bundle);
}

fn the_log_has_the_error_as_json(scratch: &Scratch) {
    let log = scratch.path("log.json");
    let words = [
        "--log",
        &text(&log),
        "--log-format",
        "json",
        "state",
        "none",
    ];
    assert_eq!(scratch.call(&words).code(), 1);
    let lines = fs::read_to_string(&log).unwrap();
    let last: serde_json::Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!(last["level"], "error");
    let told = last["msg"].as_str().unwrap();
    assert!(told.contains("container does not exist"), "{told}");
    assert!(last["time"].is_string());
}

/// Scripts cut the table by position, and read the JSON by name.
fn the_list_is_cut_at_the_same_places(scratch: &Scratch) {
    let empty = scratch.call(&["list"]);
    assert_eq!(
        empty.ok().trim_end(),
        "ID          PID         STATUS      BUNDLE      CREATED     OWNER"
    );
    assert_eq!(
        scratch.call(&["list", "--format", "json"]).ok().trim_end(),
        "null"
    );
    assert_eq!(scratch.call(&["list", "-q"]).ok(), "");
    let bundle = scratch
        .bundle("a-name-of-some-length")
        .args(&["sleep", "600"]);
    let pid = scratch.start(&bundle).to_string();
    let table = scratch.call(&["list"]);
    let lines: Vec<&str> = table.ok().lines().collect();
    for (heading, cell) in [
        ("ID", "a-name-of-some-length"),
        ("PID", pid.as_str()),
        ("STATUS", "running"),
        ("BUNDLE", text(&bundle.path).as_str()),
        ("OWNER", "root"),
    ] {
        assert_eq!(
            lines[0].find(&format!(" {heading}")),
            lines[1].find(&format!(" {cell}")),
            "{table}"
        );
    }
    assert_eq!(
        lines[0].find("PID"),
        Some("a-name-of-some-length".len() + 3),
        "{table}"
    );
    assert_eq!(
        scratch.call(&["list", "-q"]).ok(),
        "a-name-of-some-length\n"
    );
    let said = scratch.call(&["list", "-f", "json"]);
    let list: serde_json::Value = serde_json::from_str(said.ok()).unwrap();
    for field in [
        "ociVersion",
        "id",
        "pid",
        "status",
        "bundle",
        "rootfs",
        "created",
        "owner",
    ] {
        assert!(list[0].get(field).is_some(), "no {field}: {said}");
    }
    fails(scratch, &["list", "-f", "xml"], 1, "invalid format option");
    fails(
        scratch,
        &["ps", "-f", "xml", &bundle.id],
        1,
        "invalid format option",
    );
    assert_eq!(
        scratch.call(&["ps", "-f", "json", &bundle.id]).ok(),
        format!("[{pid}]\n")
    );
    // ps(1) is not in the guest of test-v2.
    if holdfast_integration::place::program("ps").is_some() {
        let columns = scratch.call(&["ps", &bundle.id, "-o", "pid,comm"]);
        let words: Vec<&str> = columns.ok().split_whitespace().collect();
        assert_eq!(words, ["PID", "COMMAND", &pid, "sleep"]);
    }
    scratch.end(&bundle);
}

fn signal_zero_asks(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    let pid = scratch.start(&bundle);
    scratch.call(&["kill", "box", "0"]).ok();
    assert_eq!(scratch.state("box")["status"], "running");
    for signal in ["SIGNONE", "-1", "x"] {
        let said = scratch.call(&["kill", "box", signal]);
        assert_eq!(said.code(), 1, "{said}");
    }
    scratch.call(&["kill", "box", "KILL"]).ok();
    scratch.exit_of(pid);
    fails(scratch, &["kill", "box", "0"], 1, "container not running");
    scratch.call(&["delete", "box"]).ok();
}

/// Those of a newer kernel, or of a typing error: a warning and no failure.
fn capabilities_nobody_knows(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]).with(|spec| {
        let sets = &mut spec["process"]["capabilities"];
        sets["bounding"]
            .as_array_mut()
            .unwrap()
            .push("CAP_TIME_TRAVEL".into());
    });
    scratch.start(&bundle);
    let said = scratch.call(&["exec", "--cap", "CAP_TIME_TRAVEL", "box", "true"]);
    said.ok();
    assert!(said.stderr.contains("CAP_TIME_TRAVEL"), "{said}");
    scratch.end(&bundle);
}

fn an_exec_in_a_cgroup_below(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    scratch.start(&bundle);
    let mut made = Vec::new();
    for hierarchy in holdfast_integration::leaks::hierarchies() {
        let own = hierarchy.join(&scratch.cgroup).join("box");
        if own.is_dir() {
            let below = own.join("below");
            fs::create_dir(&below).unwrap();
            for file in ["cpuset.cpus", "cpuset.mems"] {
                // v1: a new cpuset is empty, and takes nobody.
                if let Ok(cpus) = fs::read(own.join(file)) {
                    let _ = fs::write(below.join(file), cpus);
                }
            }
            made.push(below);
        }
    }
    let look = [
        "exec",
        "--cgroup",
        "below",
        "box",
        "cat",
        "/proc/self/cgroup",
    ];
    let said = scratch.call(&look);
    let path = format!("/{}/box/below", scratch.cgroup);
    let inside = said
        .ok()
        .lines()
        .filter(|line| line.ends_with(&path))
        .count();
    assert_eq!(inside, made.len(), "{said}");
    let said = scratch.call(&["exec", "--cgroup", "missing", "box", "true"]);
    assert_eq!(said.code(), 255, "{said}");
    scratch.end(&bundle);
}

/// `--preserve-fds` and LISTEN_FDS of exec, `--ignore-paused`.
fn preserved_and_ignored(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    scratch.start(&bundle);
    let inner = scratch.command(&[
        "exec",
        "--preserve-fds",
        "1",
        "box",
        "cat",
        "/proc/self/fd/3",
    ]);
    let file = scratch.path("kept");
    fs::write(&file, "kept\n").unwrap();
    let mut command = std::process::Command::new("sh");
    command
        .args(["-c", "exec 3<$0; exec \"$@\"", &text(&file)])
        .arg(inner.get_program())
        .args(inner.get_args());
    let said =
        holdfast_integration::deadline::run(&mut command, holdfast_integration::scratch::LIMIT);
    assert_eq!(said.ok(), "kept\n");
    scratch.call(&["pause", "box"]).ok();
    assert_eq!(scratch.state("box")["status"], "paused");
    fails(scratch, &["exec", "box", "true"], 255, "paused");
    // It waits in the frozen cgroup, and goes on with it.
    std::thread::scope(|scope| {
        let words = ["exec", "--ignore-paused", "box", "echo", "thawed"];
        let waiting = scope.spawn(move || scratch.call(&words));
        holdfast_integration::deadline::eventually(
            "the exec in the cgroup",
            holdfast_integration::scratch::LIMIT,
            || {
                let seen = scratch.call(&["ps", "--format", "json", "box"]);
                let pids: Vec<i32> = serde_json::from_str(seen.ok()).unwrap();
                (pids.len() > 1).then_some(())
            },
        );
        scratch.call(&["resume", "box"]).ok();
        assert_eq!(waiting.join().unwrap().ok(), "thawed\n");
    });
    scratch.end(&bundle);
}

/// Every flag as go-runc (containerd's shim) writes it.
fn what_go_runc_calls(scratch: &Scratch) {
    let log = text(&scratch.path("log.json"));
    let global = [
        "--log",
        &log,
        "--log-format",
        "json",
        "--systemd-cgroup=false",
    ];
    let call = |words: &[&str]| scratch.call(&[&global[..], words].concat());
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    bundle.write();
    let pid_file = text(&scratch.path("pid"));
    let create = [
        "create",
        "--bundle",
        &text(&bundle.path),
        "--pid-file",
        &pid_file,
        "--no-new-keyring",
        "box",
    ];
    // The container keeps our streams: they are files here.
    call(&create).ok();
    let pid: i32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    call(&["start", "box"]).ok();
    assert!(call(&["state", "box"]).ok().contains("\"running\""));
    assert!(call(&["list", "--format=json"]).ok().starts_with('['));
    assert_eq!(
        call(&["ps", "--format", "json", "box"]).ok(),
        format!("[{pid}]\n")
    );
    let process = scratch.path("process.json");
    let document = serde_json::json!({
        "user": {"uid": 0, "gid": 0}, "args": ["true"], "env": ["PATH=/bin"], "cwd": "/",
    });
    fs::write(&process, document.to_string()).unwrap();
    let exec_pid = text(&scratch.path("exec-pid"));
    call(&[
        "exec",
        "--process",
        &text(&process),
        "--detach",
        "--pid-file",
        &exec_pid,
        "box",
    ])
    .ok();
    // Until it is reaped, init could not end.
    let exec: i32 = fs::read_to_string(&exec_pid).unwrap().parse().unwrap();
    assert_eq!(scratch.exit_of(exec), 0);
    call(&["pause", "box"]).ok();
    call(&["resume", "box"]).ok();
    let limits = scratch.path("limits.json");
    fs::write(&limits, r#"{"pids": {"limit": 50}}"#).unwrap();
    call(&["update", &format!("--resources={}", text(&limits)), "box"]).ok();
    let version = scratch.call(&["--version"]);
    let version = version.ok();
    assert!(
        version.contains(" version ") && version.contains("spec: 1."),
        "{version}"
    );
    call(&["kill", "--all", "box", "9"]).ok();
    scratch.exit_of(pid);
    fails(scratch, &["kill", "box", "9"], 1, "container not running");
    call(&["delete", "box"]).ok();
    call(&["delete", "--force", "box"]).ok();
}

/// In the foreground with `--keep`, the log beside the root; the container is there afterwards.
fn a_foreground_run_as_buildkit_does(scratch: &Scratch) {
    let log = text(&scratch.path("runc-log.json"));
    let bundle = scratch.bundle("box").script("echo built; exit 9");
    bundle.write();
    let folder = text(&bundle.path);
    let run = ["run", "--bundle", &folder, "--keep", "box"];
    let words = [&["--log", &log, "--log-format", "json"][..], &run].concat();
    let ran = scratch.call(&words);
    if ran.stderr.contains("flag provided but not defined") {
        // runc has --keep since 1.1.
        return;
    }
    assert_eq!((ran.code(), ran.stdout.as_str()), (9, "built\n"), "{ran}");
    assert_eq!(scratch.state("box")["status"], "stopped");
    scratch.call(&["delete", "box"]).ok();
}

/// Signals by name in every form, and to all processes.
fn a_kill_as_cri_o_does(scratch: &Scratch) {
    for signal in ["KILL", "SIGKILL", "9", "kill"] {
        let name = format!("box-{signal}");
        let bundle = scratch.bundle(&name).args(&["sleep", "600"]);
        let pid = scratch.start(&bundle);
        scratch.call(&["kill", &name, signal]).ok();
        assert_eq!(scratch.exit_of(pid), 137);
        scratch.call(&["delete", "--force", &name]).ok();
    }
}
