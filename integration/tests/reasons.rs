//! `holdfast why`: whatever ended, a recorded reason says why.

use std::process::Command;
use std::time::Duration;

use holdfast_integration::containerd::{Containerd, peer};
use holdfast_integration::deadline::{self, eventually};
use holdfast_integration::leaks::is_alive;
use holdfast_integration::shim::Shim;
use holdfast_integration::tracing::Traced;
use holdfast_integration::{on_containerds, place, skip};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

on_containerds! {
    each_end_has_its_reason;
    who_is_asked_to_end_and_does_is_told_as_such;
    it_is_found_by_whatever_it_is_called;
    want_of_memory_is_named;
    a_hook_that_fails_is_quoted;
    a_hook_that_hangs_has_a_code_of_its_own;
    a_refusal_says_how_its_reason_is_called;
    a_shim_that_was_killed_or_stopped_and_went_on_says_so;
    a_stranger_who_kills_is_named;
    a_child_without_memory_is_named;
    kubernetes_is_told_where_it_would_not_know;
}

const LIMIT: Duration = Duration::from_secs(20);

/// What `holdfast why` answers once the record is there.
#[track_caller]
fn why(containerd: &Containerd, id: &str, code: &str) -> String {
    let mut command = Command::new(place::built("holdfast"));
    command
        .args(["why", id])
        .env("HOLDFAST_LEDGER_DIR", containerd.path("ledger"));
    let mut last = None;
    let told = deadline::within(LIMIT, || {
        let said = last.insert(deadline::run(&mut command, LIMIT));
        (said.status.success() && said.stdout.contains(code)).then(|| said.stdout.clone())
    });
    told.unwrap_or_else(|| panic!("no record {code} of {id}: {}", last.unwrap()))
}

/// The latest record of `id` with `code`, as JSON.
#[track_caller]
fn record(containerd: &Containerd, id: &str, code: &str) -> Value {
    why(containerd, id, code);
    let mut command = Command::new(place::built("holdfast"));
    command
        .args(["why", "--json", id])
        .env("HOLDFAST_LEDGER_DIR", containerd.path("ledger"));
    let said = deadline::run(&mut command, LIMIT);
    let records: Vec<Value> = serde_json::from_str(&said.stdout).unwrap();
    let mut with_code = records.into_iter().rev();
    with_code.find(|record| record["code"] == code).unwrap()
}

/// `kill` of this machine: a process that is gone when it has done its work.
fn shoot(pid: i32, signal: &str) {
    let mut kill = Command::new(place::program("kill").expect("kill"));
    kill.args(["-s", signal, &pid.to_string()]);
    deadline::run(&mut kill, LIMIT).ok();
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
    // Its shim's end is recorded, too, and not told to somebody who asks for the container's.
    let shim = eventually("the shim's own end", LIMIT, || {
        let mut command = Command::new(place::built("holdfast"));
        command
            .args(["why", "--json", "own"])
            .env("HOLDFAST_LEDGER_DIR", containerd.path("ledger"));
        let said = deadline::run(&mut command, LIMIT);
        let records: Vec<Value> = serde_json::from_str(&said.stdout).unwrap();
        records.into_iter().find(|record| record["code"] == "HF170")
    });
    assert_eq!(shim["kind"], "shim", "{shim}");
    let said = why(containerd, "own", "HF101");
    assert!(
        said.starts_with("Container own") && !said.contains("HF170"),
        "{said}"
    );

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
    // No tracefs here: that is said, and what to do.
    assert!(said.contains("mount -t tracefs"), "{said}");

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

/// What a pod that is deleted does.
fn who_is_asked_to_end_and_does_is_told_as_such(containerd: &Containerd) {
    if peer() {
        return skip("reasons", "containerd's own shim records none");
    }
    let script = "trap 'exit 5' TERM; touch /ready; while :; do sleep 0.1; done";
    let pid = containerd.start_task("box", &[], &["sh", "-c", script]);
    let ready = format!("/proc/{pid}/root/ready");
    eventually("it listens", LIMIT, || {
        std::path::Path::new(&ready).exists().then_some(())
    });
    containerd.ctr_ok(&["tasks", "kill", "--signal", "SIGTERM", "box"]);
    containerd.await_status("box", "STOPPED");
    containerd.remove("box");
    let record = record(containerd, "box", "HF112");
    assert_eq!(record["evidence"]["signal"], "SIGTERM", "{record}");
    assert_eq!(record["evidence"]["code"], 5, "{record}");
    let sentence = record["sentence"].as_str().unwrap();
    assert!(
        sentence.starts_with("Container box exited with code 5, ")
            && sentence.ends_with(" after it was asked to end: SIGTERM by a Kill request."),
        "{sentence}"
    );
}

fn it_is_found_by_whatever_it_is_called(containerd: &Containerd) {
    if peer() {
        return skip("reasons", "containerd's own shim records none");
    }
    let pod = [
        "--annotation",
        "io.kubernetes.cri.sandbox-name=train-0",
        "--annotation",
        "io.kubernetes.cri.sandbox-namespace=ml",
        "--annotation",
        "io.kubernetes.cri.sandbox-uid=0a1b2c3d",
        "--annotation",
        "io.kubernetes.cri.container-name=worker",
    ];
    let pid = containerd.start_task("8f3e2a91", &pod, &["sleep", "600"]);
    containerd.end_task("8f3e2a91");
    why(containerd, "8f3e2a91", "HF111");
    let ask = |words: &[&str]| {
        let mut command = Command::new(place::built("holdfast"));
        command
            .arg("why")
            .args(words)
            .env("HOLDFAST_LEDGER_DIR", containerd.path("ledger"));
        deadline::run(&mut command, LIMIT)
    };
    let sentence = "Container 8f3e2a91 was ended on request: SIGKILL by a Kill request.";
    let pid = pid.to_string();
    for name in [
        "8f3e2a91",
        "8f3",
        "worker",
        "train-0",
        "ml/train-0",
        "0a1b2c3d",
        &pid,
    ] {
        let said = ask(&[name]);
        assert!(said.ok().starts_with(sentence), "{name}: {said}");
    }
    assert_eq!(ask(&["other/train-0"]).code(), 1);
    assert!(ask(&["--last"]).ok().starts_with(sentence));
    assert!(ask(&["--since", "1h"]).ok().contains(sentence));
    let later = ask(&["--since", "2100-01-01"]);
    assert_eq!(later.code(), 1, "{later}");
    // Its shim is done as well by now, or will be: that is no news.
    let node = ask(&["--node"]);
    let lines: Vec<&str> = node.ok().lines().collect();
    assert_eq!(lines[0].trim(), "1  HF111  ended by request", "{node}");
    assert!(lines[1].ends_with(sentence) && lines.len() == 2, "{node}");
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
    let record = record(containerd, "big", "HF121");
    let oom = &record["evidence"];
    assert_eq!(oom["scope"], "cgroup", "{record}");
    let cgroup = oom["cgroup"].as_str().unwrap();
    assert!(cgroup.ends_with("/big"), "{record}");
    assert_eq!(oom["limit"], 24 << 20, "{record}");
    assert_eq!(oom["victim"], "tail", "{record}");
    assert_eq!(oom["victim_pid"], record["process"]["pid"], "{record}");
}

fn a_child_without_memory_is_named(containerd: &Containerd) {
    if peer() {
        return skip("reasons", "containerd's own shim records none");
    }
    let limit = (24 << 20).to_string();
    let flags = ["--rm", "--memory-limit", &limit];
    let script = "tail -n 1 /dev/zero; exit 7";
    let ran = containerd.run("big", &flags, &["sh", "-c", script]);
    assert_eq!(ran.code(), 7, "{ran}");
    let record = record(containerd, "big", "HF122");
    assert_eq!(record["evidence"]["victim"], "tail", "{record}");
    assert_ne!(record["evidence"]["victim_pid"], record["process"]["pid"]);
    assert_eq!(record["evidence"]["limit"], 24 << 20, "{record}");
    let sentence = record["sentence"].as_str().unwrap();
    for part in ["tail (pid ", "24.0 MiB"] {
        assert!(sentence.contains(part), "{sentence}");
    }
}

fn a_stranger_who_kills_is_named(containerd: &Containerd) {
    if peer() {
        return skip("reasons", "containerd's own shim records none");
    }
    let Some(traced) = Traced::new("reasons", containerd) else {
        return;
    };
    let pid = containerd.start_task("shot", &[], &["sleep", "600"]);
    traced.await_on();
    shoot(pid, "KILL");
    containerd.await_status("shot", "STOPPED");
    containerd.remove("shot");
    let record = record(containerd, "shot", "HF131");
    let sender = &record["evidence"]["sender"];
    assert_eq!(sender["comm"], "kill", "{record}");
    let command = sender["cmdline"].as_str().unwrap();
    assert!(command.contains("kill"), "{record}");
    // The thread of ours that started it, or ourselves.
    let parent = sender["parent"].as_str().unwrap();
    let parent = parent.split(' ').next().unwrap();
    let ours = format!("/proc/{}/task/{parent}", std::process::id());
    assert!(std::path::Path::new(&ours).exists(), "{record}");
    let timeline = record["timeline"].to_string();
    assert!(timeline.contains("SIGKILL sent by pid"), "{record}");

    // A fault signal that somebody sent is no fault of the program. (Init itself is deaf to it.)
    containerd.start_task("box", &[], &["sleep", "600"]);
    let shim = Shim::of(containerd, "box");
    shim.exec("box", "crashed", &["sleep", "600"]).unwrap();
    let pid = shim.start("box", "crashed").unwrap();
    shoot(i32::try_from(pid).unwrap(), "SEGV");
    why(containerd, "crashed", "HF131");
    let crash = ["sh", "-c", "kill -SEGV $$; sleep 60"];
    assert_eq!(containerd.exec("box", "crash", &[], &crash).code(), 139);
    why(containerd, "crash", "HF102");
    containerd.end_task("box");
    drop(traced);
}

fn kubernetes_is_told_where_it_would_not_know(containerd: &Containerd) {
    if peer() {
        return skip("reasons", "containerd's own shim writes no termination log");
    }
    let annotation = "io.kubernetes.container.terminationMessagePath=/dev/termination-log";
    let ended = |id: &str, script: &str, end: &dyn Fn(i32)| {
        let log = containerd.path(&format!("log-{id}"));
        std::fs::write(&log, "").unwrap();
        let source = holdfast_integration::scratch::text(&log);
        let mount = format!("type=bind,src={source},dst=/dev/termination-log,options=bind:rw");
        let flags = ["--annotation", annotation, "--mount", &mount];
        let pid = containerd.start_task(id, &flags, &["sh", "-c", script]);
        end(pid);
        containerd.await_status(id, "STOPPED");
        containerd.remove(id);
        log
    };
    let log = ended("silent", "sleep 600", &|pid| shoot(pid, "KILL"));
    eventually("the termination log is written", LIMIT, || {
        let text = std::fs::read_to_string(&log).unwrap();
        text.contains("Container silent was ended by SIGKILL")
            .then_some(())
    });
    let wrote = "echo my own word > /dev/termination-log; touch /ready; sleep 600";
    let log = ended("speaking", wrote, &|pid| {
        let ready = format!("/proc/{pid}/root/ready");
        eventually("it has written", LIMIT, || {
            std::path::Path::new(&ready).exists().then_some(())
        });
        shoot(pid, "KILL");
    });
    why(containerd, "speaking", "HF131");
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "my own word\n");
    let log = ended("own", "sleep 0.3; exit 3", &|_| ());
    why(containerd, "own", "HF101");
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "");
}

fn a_hook_that_fails_is_quoted(containerd: &Containerd) {
    if peer() {
        return skip("reasons", "containerd's own shim records none");
    }
    let refused = run_hooked(
        containerd,
        &["sh", "-c", "echo the-gpu-is-gone >&2; exit 9"],
    );
    assert!(refused.failed().contains("the-gpu-is-gone"), "{refused}");
    // What Kubernetes shows as the event of the failed create.
    assert!(refused.stderr.contains(" [HF141]"), "{refused}");
    let said = why(containerd, "hooked", "the-gpu-is-gone");
    assert!(
        said.contains("createRuntime") && said.contains("HF141"),
        "{said}"
    );
    let _ = containerd.ctr(&["containers", "delete", "hooked"]);
}

/// `ctr run` of a container with a createRuntime hook, which has two seconds.
fn run_hooked(containerd: &Containerd, hook: &[&str]) -> deadline::Finished {
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
            {"path": "/bin/sh", "args": hook, "timeout": 2},
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
    containerd.ctr(&words)
}

fn a_refusal_says_how_its_reason_is_called(containerd: &Containerd) {
    if peer() {
        return skip("reasons", "containerd's own shim records none");
    }
    // A program that is not there: clients look for the text, people for the code.
    let refused = containerd.run("nosuch", &["--rm"], &["nosuchprogram"]);
    let text = "exec: \"nosuchprogram\": executable file not found in $PATH [HF151]";
    assert!(refused.failed().contains(text), "{refused}");
    let said = why(containerd, "nosuch", "HF151");
    assert_eq!(
        said.lines()
            .next()
            .unwrap()
            .matches("nosuchprogram")
            .count(),
        1,
        "{said}"
    );
    containerd.start_task("box", &[], &["sleep", "600"]);
    let refused = containerd.exec("box", "bad", &[], &["nosuchprogram"]);
    let text = "executable file not found in $PATH [HF154]";
    assert!(refused.failed().contains(text), "{refused}");
    // Asked for a container that runs, its execs' ends are not taken for its own.
    let said = why(containerd, "box", "HF154");
    let exists = format!(
        "Container box exists in the containerd namespace {} and has not ended: it is running, ",
        containerd.namespace
    );
    assert!(said.starts_with(&exists), "{said}");
    containerd.end_task("box");
    let said = why(containerd, "box", "HF111");
    assert!(said.starts_with("Container box was ended"), "{said}");
    // Ids are unique in a containerd namespace only.
    let of = |namespace: &str| {
        let mut command = Command::new(place::built("holdfast"));
        command
            .args(["why", "--namespace", namespace, "box"])
            .env("HOLDFAST_LEDGER_DIR", containerd.path("ledger"));
        deadline::run(&mut command, LIMIT)
    };
    assert!(of(&containerd.namespace).ok().contains("HF111"));
    assert_eq!(of("elsewhere").code(), 1);
}

fn a_hook_that_hangs_has_a_code_of_its_own(containerd: &Containerd) {
    if peer() {
        return skip("reasons", "containerd's own shim records none");
    }
    let refused = run_hooked(containerd, &["sh", "-c", "exec sleep 600"]);
    assert!(refused.failed().contains(" [HF142]"), "{refused}");
    let record = record(containerd, "hooked", "HF142");
    assert_eq!(
        record["evidence"]["hook"]["stage"], "createRuntime",
        "{record}"
    );
    let _ = containerd.ctr(&["containers", "delete", "hooked"]);
}

fn a_shim_that_was_killed_or_stopped_and_went_on_says_so(containerd: &Containerd) {
    if peer() {
        return skip("reasons", "containerd's own shim dies of it");
    }
    let Some(traced) = Traced::new("reasons", containerd) else {
        return;
    };
    let pid = containerd.start_task("box", &[], &["sleep", "600"]);
    traced.await_on();
    let shim = Shim::of(containerd, "box").pid("box");
    let ours = format!(" by pid {} ", std::process::id());
    // The container runs on, which is said before.
    let is_told = |said: &str, how: &str| {
        let begin = format!("The shim of container box was {how}");
        said.lines()
            .any(|line| line.starts_with(&begin) && line.contains(&ours))
    };
    kill(Pid::from_raw(shim), Signal::SIGKILL).unwrap();
    let said = why(containerd, "box", "HF175");
    assert!(is_told(&said, "killed"), "{said}");
    let shim = Shim::of(containerd, "box").pid("box");
    kill(Pid::from_raw(shim), Signal::SIGSTOP).unwrap();
    let said = why(containerd, "box", "HF176");
    assert!(is_told(&said, "stopped"), "{said}");
    assert!(is_alive(pid));
    drop(traced);
    containerd.end_task("box");
}
