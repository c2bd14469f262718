//! exec: the new process is in everything the container is in.

use std::fs;

use holdfast_integration::on_runtimes;
use holdfast_integration::pty::{DescriptorSocket, Terminal};
use holdfast_integration::scratch::{LIMIT, Scratch, text};
use serde_json::{Value, json};

on_runtimes! {
    it_joins_every_namespace: holdfast runc crun;
    seccomp_and_capabilities_hold: holdfast runc;
    exit_codes_and_signals_come_back: holdfast runc crun;
    flags_change_the_process: holdfast runc;
    a_detached_exec_leaves_a_pid_file: holdfast runc crun;
    a_program_that_is_not_there_is_named: holdfast runc;
    a_failed_exec_is_255: holdfast runc;
    a_terminal_is_handed_over: holdfast runc crun;
    an_exec_in_a_created_container_works: holdfast runc;
    standard_input_arrives: holdfast runc crun;
    no_descriptor_leaks_in: holdfast runc crun;
    // runc's foreground exec waits for the end of every process that holds its output.
    the_container_outlives_its_execs: holdfast crun;
    preserved_descriptors_arrive: holdfast runc;
}

fn process(args: &[&str]) -> Value {
    json!({"user": {"uid": 0, "gid": 0}, "args": args, "env": ["PATH=/bin"], "cwd": "/"})
}

fn it_joins_every_namespace(scratch: &Scratch) {
    let bundle = scratch
        .bundle("box")
        .args(&["sleep", "600"])
        .namespace("cgroup", None);
    let pid = scratch.start(&bundle);
    for file in ["pid", "net", "ipc", "uts", "mnt", "user", "cgroup"] {
        let inside = scratch.exec(&bundle, &["readlink", &format!("/proc/self/ns/{file}")]);
        let of_init = fs::read_link(format!("/proc/{pid}/ns/{file}")).unwrap();
        assert_eq!(inside.ok().trim(), of_init.to_string_lossy(), "{file}");
    }
    assert_eq!(scratch.exec(&bundle, &["hostname"]).ok(), "testbox\n");
    scratch.end(&bundle);
}

fn seccomp_and_capabilities_hold(scratch: &Scratch) {
    let bundle = scratch
        .bundle("box")
        .args(&["sleep", "600"])
        .docker_seccomp();
    scratch.start(&bundle);
    let show = "grep -E '^(Cap|Seccomp:|NoNewPrivs)' /proc/$0/status | tr '\\t\\n' '  '";
    let of_init = scratch.exec(&bundle, &["sh", "-c", show, "1"]);
    let of_exec = scratch.exec(&bundle, &["sh", "-c", show, "self"]);
    assert_eq!(of_exec.ok(), of_init.ok());
    assert!(of_exec.stdout.contains("Seccomp: 2"), "{of_exec}");
    assert!(
        of_exec.stdout.contains("CapEff: 00000000a80425fb"),
        "{of_exec}"
    );
    let refused = scratch.exec(&bundle, &["unshare", "-U", "true"]);
    assert_ne!(refused.code(), 0, "{refused}");
    scratch.end(&bundle);
}

fn exit_codes_and_signals_come_back(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    scratch.start(&bundle);
    assert_eq!(scratch.exec(&bundle, &["sh", "-c", "exit 42"]).code(), 42);
    assert_eq!(
        scratch.exec(&bundle, &["sh", "-c", "kill -9 $$"]).code(),
        137
    );
    assert_eq!(scratch.exec(&bundle, &["true"]).code(), 0);
    scratch.end(&bundle);
}

fn flags_change_the_process(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    scratch.start(&bundle);
    let words = [
        "exec",
        "--user",
        "1000:1001",
        "--cwd",
        "/tmp",
        "--env",
        "GREETING=hello",
        "box",
    ];
    let words: Vec<&str> = words
        .into_iter()
        .chain(["sh", "-c", "id -u; id -g; pwd; echo $GREETING"])
        .collect();
    assert_eq!(scratch.call(&words).ok(), "1000\n1001\n/tmp\nhello\n");
    let file = json!({
        "user": {"uid": 1000, "gid": 1000, "additionalGids": [2000]},
        "args": ["sh", "-c", "id -u; grep Groups /proc/self/status; echo $A"],
        "env": ["PATH=/bin", "A=1"], "cwd": "/home",
    });
    let shown = scratch.exec_process(&bundle, &file);
    let seen: Vec<&str> = shown.ok().split_whitespace().collect();
    assert_eq!(seen, ["1000", "Groups:", "2000", "1"], "{shown}");
    scratch.end(&bundle);
}

fn a_detached_exec_leaves_a_pid_file(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    scratch.start(&bundle);
    let file = scratch.path("process.json");
    fs::write(&file, process(&["sh", "-c", "exit 11"]).to_string()).unwrap();
    let pid_file = scratch.path("exec.pid");
    scratch
        .call(&[
            "exec",
            "--process",
            &text(&file),
            "--detach",
            "--pid-file",
            &text(&pid_file),
            "box",
        ])
        .ok();
    let pid: i32 = fs::read_to_string(pid_file)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert_eq!(scratch.exit_of(pid), 11);
    scratch.end(&bundle);
}

fn a_program_that_is_not_there_is_named(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    scratch.start(&bundle);
    for (program, telling) in [
        ("nosuchprogram", "executable file not found in $PATH"),
        ("/no/such/program", "no such file or directory"),
        ("/etc/passwd", "permission denied"),
    ] {
        for detached in [false, true] {
            let file = scratch.path("process.json");
            fs::write(&file, process(&[program]).to_string()).unwrap();
            let process = text(&file);
            let mut words = vec!["exec", "--process", &process];
            if detached {
                words.push("--detach");
            }
            words.push("box");
            let refused = scratch.call(&words);
            assert!(refused.failed().contains(telling), "{refused}");
            assert!(refused.stderr.contains(program), "{refused}");
        }
    }
    scratch.end(&bundle);
}

fn a_failed_exec_is_255(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    scratch.start(&bundle);
    assert_eq!(scratch.exec(&bundle, &["nosuchprogram"]).code(), 255);
    scratch.end(&bundle);
}

fn a_terminal_is_handed_over(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    scratch.start(&bundle);
    let file = scratch.path("process.json");
    let mut wanted = process(&["sh"]);
    wanted["terminal"] = true.into();
    fs::write(&file, wanted.to_string()).unwrap();
    let socket = DescriptorSocket::listen(&scratch.path("console.sock"));
    let pid_file = scratch.path("exec.pid");
    scratch
        .call(&[
            "exec",
            "--process",
            &text(&file),
            "--console-socket",
            &text(&socket.path),
            "--detach",
            "--pid-file",
            &text(&pid_file),
            "box",
        ])
        .ok();
    let mut terminal = Terminal::of(socket.receive(LIMIT));
    terminal.type_in("test -t 0 && tty && echo mark-$((40+2)); exit 8\n");
    let shown = terminal.expect("mark-42", LIMIT);
    assert!(shown.contains("/dev/"), "{shown}");
    let pid: i32 = fs::read_to_string(pid_file)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert_eq!(scratch.exit_of(pid), 8);
    scratch.end(&bundle);
}

fn an_exec_in_a_created_container_works(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    scratch.create(&bundle);
    assert_eq!(scratch.exec(&bundle, &["echo", "early"]).ok(), "early\n");
    scratch.call(&["start", "box"]).ok();
    scratch.end(&bundle);
}

fn standard_input_arrives(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    scratch.start(&bundle);
    let input = scratch.path("input");
    fs::write(&input, "x".repeat(200_000)).unwrap();
    let counted = holdfast_integration::deadline::run_with_stdin(
        &mut scratch.command(&["exec", "box", "wc", "-c"]),
        fs::File::open(input).unwrap().into(),
        LIMIT,
    );
    assert_eq!(counted.ok().trim(), "200000");
    scratch.end(&bundle);
}

fn no_descriptor_leaks_in(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    scratch.start(&bundle);
    let script = "for f in /proc/self/fd/*; do echo ${f##*/}=$(readlink $f); done";
    let shown = scratch.exec(&bundle, &["sh", "-c", script]);
    for line in shown.ok().lines() {
        let (number, target) = line.split_once('=').unwrap();
        let own = number.parse::<u32>().unwrap() <= 2
            || target.is_empty()
            || target.starts_with("/proc/");
        assert!(own, "{line} in {shown}");
    }
    scratch.end(&bundle);
}

fn preserved_descriptors_arrive(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    scratch.start(&bundle);
    fs::write(scratch.path("three"), "third\n").unwrap();
    let call = scratch.command(&["exec", "--preserve-fds", "1", "box", "sh", "-c", "cat <&3"]);
    let mut command = std::process::Command::new("sh");
    let script = format!("exec 3<{}; exec \"$@\"", text(&scratch.path("three")));
    command
        .args(["-c", &script, "sh"])
        .arg(call.get_program())
        .args(call.get_args());
    assert_eq!(
        holdfast_integration::deadline::run(&mut command, LIMIT).ok(),
        "third\n"
    );
    scratch.end(&bundle);
}

fn the_container_outlives_its_execs(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    let pid = scratch.start(&bundle);
    for _ in 0..20 {
        scratch
            .exec(&bundle, &["sh", "-c", "sleep 600 & exit 0"])
            .ok();
    }
    let state = scratch.state("box");
    assert_eq!(
        (state["status"].as_str(), state["pid"].as_i64()),
        (Some("running"), Some(pid.into()))
    );
    scratch.end(&bundle);
}
