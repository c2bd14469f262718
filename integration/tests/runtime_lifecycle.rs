//! create, start, state, kill, delete, run, exec: a container's life through the runtime's CLI.

use holdfast_integration::deadline::eventually;
use holdfast_integration::on_runtimes;
use holdfast_integration::scratch::{LIMIT, Scratch, text};
use serde_json::json;

on_runtimes! {
    the_exit_code_is_the_process_s: holdfast runc crun;
    a_signal_gives_128_and_its_number: holdfast runc crun;
    the_states_come_in_order: holdfast runc crun;
    a_finished_container_is_stopped: holdfast runc crun;
    run_detached_leaves_it_running: holdfast runc crun;
    delete_refuses_a_running_container_unless_forced: holdfast runc crun;
    a_created_container_can_be_killed_and_deleted: holdfast runc crun;
    kill_names_signals_as_people_do: holdfast runc crun;
    // crun 1.8.1 takes a word it does not know for 0.
    kill_refuses_what_is_no_signal: holdfast runc;
    kill_of_a_stopped_container_says_so: holdfast runc;
    ps_and_list_tell_what_is_there: holdfast runc crun;
    pause_freezes_and_resume_thaws: holdfast runc crun;
    a_paused_container_refuses_exec: holdfast runc crun;
    spec_writes_a_config_that_runs: holdfast runc crun;
    version_and_features_are_told: holdfast runc;
    errors_go_to_the_log_as_json: holdfast runc;
    standard_streams_pass_through: holdfast runc crun;
    two_hundred_lives_leave_nothing: holdfast;
}

fn the_exit_code_is_the_process_s(scratch: &Scratch) {
    for code in [0, 1, 42, 255] {
        let bundle = scratch
            .bundle(&format!("exit{code}"))
            .script(&format!("exit {code}"));
        let ran = scratch.run(&bundle);
        assert_eq!(ran.code(), code, "{ran}");
    }
}

fn a_signal_gives_128_and_its_number(scratch: &Scratch) {
    // The process is pid 1 of its namespace: only KILL and unblocked handlers end it from inside.
    let bundle = scratch.bundle("signal").args(&["sleep", "60"]);
    let pid = scratch.start(&bundle);
    scratch.call(&["kill", "signal", "9"]).ok();
    assert_eq!(scratch.exit_of(pid), 137);
    scratch.call(&["delete", "signal"]).ok();
}

fn the_states_come_in_order(scratch: &Scratch) {
    let bundle = scratch.bundle("life").args(&["sleep", "60"]);
    let pid = scratch.create(&bundle);
    let state = scratch.state("life");
    assert_eq!(state["id"], "life");
    assert_eq!(state["status"], "created");
    assert_eq!(state["pid"], json!(pid));
    assert_eq!(state["bundle"], json!(text(&bundle.path)));
    scratch.call(&["start", "life"]).ok();
    assert_eq!(scratch.state("life")["status"], "running");
    scratch.call(&["kill", "life", "KILL"]).ok();
    assert_eq!(scratch.exit_of(pid), 137);
    assert_eq!(scratch.state("life")["status"], "stopped");
    scratch.call(&["delete", "life"]).ok();
    scratch.call(&["state", "life"]).failed();
}

fn a_finished_container_is_stopped(scratch: &Scratch) {
    let bundle = scratch.bundle("done").script("exit 3");
    let pid = scratch.start(&bundle);
    assert_eq!(scratch.exit_of(pid), 3);
    assert_eq!(scratch.state("done")["status"], "stopped");
    let refused = scratch.call(&["exec", "done", "true"]);
    assert!(
        refused.failed().contains("stopped") || refused.stderr.contains("not running"),
        "{refused}"
    );
    scratch.call(&["delete", "done"]).ok();
}

fn run_detached_leaves_it_running(scratch: &Scratch) {
    let bundle = scratch.bundle("bg").args(&["sleep", "600"]);
    bundle.write();
    let pid_file = text(&scratch.path("pid"));
    scratch
        .call(&[
            "run",
            "--detach",
            "--bundle",
            &text(&bundle.path),
            "--pid-file",
            &pid_file,
            "bg",
        ])
        .ok();
    let pid: i32 = std::fs::read_to_string(pid_file)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert_eq!(scratch.state("bg")["status"], "running");
    scratch.call(&["kill", "bg", "KILL"]).ok();
    assert_eq!(scratch.exit_of(pid), 137);
    scratch.call(&["delete", "bg"]).ok();
}

fn delete_refuses_a_running_container_unless_forced(scratch: &Scratch) {
    let bundle = scratch.bundle("up").args(&["sleep", "600"]);
    let pid = scratch.start(&bundle);
    scratch.call(&["delete", "up"]).failed();
    assert_eq!(scratch.state("up")["status"], "running");
    scratch.call(&["delete", "--force", "up"]).ok();
    assert_eq!(scratch.exit_of(pid), 137);
}

fn a_created_container_can_be_killed_and_deleted(scratch: &Scratch) {
    let bundle = scratch.bundle("early").args(&["sleep", "600"]);
    let pid = scratch.create(&bundle);
    scratch.call(&["kill", "early", "KILL"]).ok();
    assert_eq!(scratch.exit_of(pid), 137);
    scratch.call(&["delete", "early"]).ok();
    // Delete of a created container that nobody killed is allowed as well.
    let bundle = scratch.bundle("early2").args(&["sleep", "600"]);
    scratch.create(&bundle);
    scratch.call(&["delete", "--force", "early2"]).ok();
}

fn kill_names_signals_as_people_do(scratch: &Scratch) {
    for (name, id) in [("TERM", "a"), ("SIGTERM", "b"), ("15", "c")] {
        let bundle = scratch
            .bundle(id)
            .script("trap 'exit 44' TERM; touch /tmp/up; while :; do usleep 10000; done");
        let pid = scratch.start(&bundle);
        let up = bundle.in_rootfs("tmp/up");
        eventually("the handler is set", LIMIT, || up.exists().then_some(()));
        scratch.call(&["kill", id, name]).ok();
        assert_eq!(scratch.exit_of(pid), 44, "{name}");
        scratch.call(&["delete", id]).ok();
    }
}

fn kill_refuses_what_is_no_signal(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    scratch.start(&bundle);
    scratch.call(&["kill", "box", "NOSUCHSIGNAL"]).failed();
    scratch.call(&["kill", "box", "-1"]).failed();
    scratch.end(&bundle);
}

fn kill_of_a_stopped_container_says_so(scratch: &Scratch) {
    let bundle = scratch.bundle("gone");
    let pid = scratch.start(&bundle);
    scratch.exit_of(pid);
    let refused = scratch.call(&["kill", "gone", "KILL"]);
    // containerd's shim takes exactly these words for "not found".
    let said = refused.failed();
    assert!(
        said.contains("container not running") || said.contains("process already finished"),
        "{refused}"
    );
    scratch.call(&["delete", "gone"]).ok();
}

fn ps_and_list_tell_what_is_there(scratch: &Scratch) {
    let bundle = scratch.bundle("one").script("sleep 600 & sleep 600");
    let pid = scratch.start(&bundle);
    let pids: Vec<i32> = eventually("the shell has its children", LIMIT, || {
        let said = scratch.call(&["ps", "--format", "json", "one"]);
        let pids: Vec<i32> =
            serde_json::from_str(said.ok()).unwrap_or_else(|e| panic!("{e}: {said}"));
        (pids.len() == 3 || pids.len() == 2 && pids.contains(&pid)).then_some(pids)
    });
    assert!(pids.contains(&pid), "{pids:?} lacks {pid}");
    let said = scratch.call(&["list", "--format", "json"]);
    let list: serde_json::Value = serde_json::from_str(said.ok()).unwrap();
    let ids: Vec<&str> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["one"]);
    assert_eq!(list[0]["pid"], json!(pid));
    assert_eq!(list[0]["status"], "running");
    let table = scratch.call(&["list"]);
    assert!(
        table.ok().contains("one") && table.stdout.contains("running"),
        "{table}"
    );
    assert_eq!(scratch.call(&["list", "--quiet"]).ok().trim(), "one");
    scratch.end(&bundle);
}

fn pause_freezes_and_resume_thaws(scratch: &Scratch) {
    let bundle = scratch
        .bundle("box")
        .script("while :; do date +%N >/tmp/tick; done");
    scratch.start(&bundle);
    let tick = || std::fs::read_to_string(bundle.in_rootfs("tmp/tick")).unwrap_or_default();
    eventually("it ticks", LIMIT, || (!tick().is_empty()).then_some(()));
    scratch.call(&["pause", "box"]).ok();
    assert_eq!(scratch.state("box")["status"], "paused");
    let before = tick();
    let _ = scratch.state("box");
    assert_eq!(tick(), before);
    scratch.call(&["resume", "box"]).ok();
    assert_eq!(scratch.state("box")["status"], "running");
    eventually("it goes on", LIMIT, || (tick() != before).then_some(()));
    scratch.end(&bundle);
}

fn a_paused_container_refuses_exec(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    scratch.start(&bundle);
    scratch.call(&["pause", "box"]).ok();
    assert!(
        scratch
            .call(&["exec", "box", "true"])
            .failed()
            .contains("paused")
    );
    scratch.call(&["resume", "box"]).ok();
    scratch.call(&["exec", "box", "true"]).ok();
    scratch.end(&bundle);
}

fn spec_writes_a_config_that_runs(scratch: &Scratch) {
    let mut bundle = scratch.bundle("spec");
    scratch
        .call(&["spec", "--bundle", &text(&bundle.path)])
        .ok();
    let written = std::fs::read_to_string(bundle.path.join("config.json")).unwrap();
    bundle.spec = serde_json::from_str(&written).unwrap();
    assert_eq!(bundle.spec["process"]["args"], json!(["sh"]));
    let cgroup = json!(format!("/{}/spec", scratch.cgroup));
    let bundle = bundle.script("echo ran").with(|spec| {
        spec["process"]["terminal"] = false.into();
        spec["root"]["readonly"] = false.into();
        spec["linux"]["cgroupsPath"] = cgroup;
    });
    assert_eq!(scratch.run(&bundle).ok(), "ran\n");
    // It does not overwrite what is there.
    scratch
        .call(&["spec", "--bundle", &text(&bundle.path)])
        .failed();
}

fn version_and_features_are_told(scratch: &Scratch) {
    let version = scratch.call(&["--version"]);
    // containerd's go-runc reads these words.
    assert!(
        version.ok().lines().next().unwrap().contains(" version "),
        "{version}"
    );
    assert!(version.stdout.contains("spec: 1."), "{version}");
    let features = scratch.call(&["features"]);
    let features: serde_json::Value = serde_json::from_str(features.ok()).unwrap();
    for stage in [
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
        "poststart",
        "poststop",
    ] {
        assert!(
            features["hooks"]
                .as_array()
                .unwrap()
                .contains(&json!(stage)),
            "{stage}"
        );
    }
    assert!(
        features["mountOptions"]
            .as_array()
            .unwrap()
            .contains(&json!("rslave"))
    );
    assert!(
        features["linux"]["namespaces"]
            .as_array()
            .unwrap()
            .contains(&json!("user"))
    );
    assert_eq!(features["linux"]["seccomp"]["enabled"], json!(true));
}

fn errors_go_to_the_log_as_json(scratch: &Scratch) {
    let log = text(&scratch.path("log.json"));
    scratch
        .call(&["--log", &log, "--log-format", "json", "start", "nobody"])
        .failed();
    let written = std::fs::read_to_string(log).unwrap();
    let last: serde_json::Value = serde_json::from_str(written.lines().last().unwrap()).unwrap();
    assert_eq!(last["level"], "error", "{written}");
    assert!(
        last["msg"].as_str().unwrap().contains("does not exist"),
        "{written}"
    );
    assert!(last["time"].is_string(), "{written}");
}

fn standard_streams_pass_through(scratch: &Scratch) {
    let bundle = scratch.bundle("cat").script("cat; echo err >&2");
    bundle.write();
    let input = scratch.path("input");
    std::fs::write(&input, "x".repeat(200_000)).unwrap();
    let ran = holdfast_integration::deadline::run_with_stdin(
        &mut scratch.command(&["run", "--bundle", &text(&bundle.path), "cat"]),
        std::fs::File::open(input).unwrap().into(),
        LIMIT,
    );
    assert_eq!(ran.ok().len(), 200_000);
    assert_eq!(ran.stderr, "err\n");
}

fn two_hundred_lives_leave_nothing(scratch: &Scratch) {
    std::thread::scope(|scope| {
        for worker in 0..4 {
            scope.spawn(move || {
                let mut bundle = scratch.bundle(&format!("box-{worker}")).docker_seccomp();
                for round in 0..50 {
                    bundle.id = format!("box-{worker}-{round}");
                    let pid = scratch.create(&bundle);
                    scratch.call(&["start", &bundle.id]).ok();
                    assert_eq!(scratch.exit_of(pid), 0);
                    scratch.call(&["delete", &bundle.id]).ok();
                }
            });
        }
    });
}
