//! Containers through containerd and `ctr`, as an operator runs them.

use std::io::Write as _;

use holdfast_integration::bundle::DOCKER_CAPABILITIES_MASK;
use holdfast_integration::containerd::Containerd;
use holdfast_integration::ctr::LIMIT;
use holdfast_integration::deadline::eventually;
use holdfast_integration::on_containerds;
use holdfast_integration::pty::Terminal;

on_containerds! {
    output_and_exit_code_arrive;
    a_killed_task_has_its_signal;
    exec_has_its_own_code_and_output;
    pause_stops_and_resume_goes_on;
    a_terminal_is_a_terminal;
    exec_on_a_terminal;
    attach_reaches_a_running_task;
    standard_input_arrives_and_ends;
    docker_s_seccomp_and_capabilities_hold_for_init_and_exec;
    a_program_that_is_not_there_is_named;
}

fn output_and_exit_code_arrive(containerd: &Containerd) {
    let ran = containerd.run(
        "plain",
        &["--rm"],
        &["sh", "-c", "echo out; echo err >&2; exit 42"],
    );
    assert_eq!(ran.code(), 42, "{ran}");
    assert_eq!(ran.stdout, "out\n", "{ran}");
    assert!(ran.stderr.contains("err\n"), "{ran}");
    let ran = containerd.run("good", &["--rm"], &["true"]);
    assert_eq!(ran.code(), 0, "{ran}");
}

fn a_killed_task_has_its_signal(containerd: &Containerd) {
    // KILL needs no handler; TERM ends a pid 1 only because the shell handles it.
    let script = "trap 'exit 143' TERM; echo ready; while :; do usleep 10000; done";
    for (signal, code) in [("SIGKILL", 137), ("SIGTERM", 143)] {
        let id = signal.to_lowercase();
        let mut client = containerd.spawn_run(&id, &["--rm"], &["sh", "-c", script], None);
        eventually("the shell is ready", LIMIT, || {
            client.output().contains("ready").then_some(())
        });
        containerd.ctr_ok(&["tasks", "kill", "--signal", signal, &id]);
        assert_eq!(client.code(), code, "{}", client.output());
    }
}

fn exec_has_its_own_code_and_output(containerd: &Containerd) {
    containerd.start_task("box", &[], &["sleep", "600"]);
    let ran = containerd.exec(
        "box",
        "one",
        &[],
        &["sh", "-c", "echo $$; echo bad >&2; exit 7"],
    );
    assert_eq!(ran.code(), 7, "{ran}");
    assert_ne!(ran.stdout.trim(), "1", "{ran}");
    assert!(ran.stderr.contains("bad"), "{ran}");
    let missing = containerd.exec("box", "two", &[], &["/no/such/program"]);
    assert!(
        missing.failed().contains("no such file or directory"),
        "{missing}"
    );
    let missing = containerd.exec("box", "three", &[], &["nosuchprogram"]);
    assert!(
        missing
            .failed()
            .contains("executable file not found in $PATH"),
        "{missing}"
    );
    let forbidden = containerd.exec("box", "four", &[], &["/etc/passwd"]);
    assert!(
        forbidden.failed().contains("permission denied"),
        "{forbidden}"
    );
    containerd.end_task("box");
}

fn pause_stops_and_resume_goes_on(containerd: &Containerd) {
    containerd.start_task(
        "box",
        &[],
        &["sh", "-c", "while :; do date +%N >/tmp/tick; done"],
    );
    containerd.ctr_ok(&["tasks", "pause", "box"]);
    assert_eq!(containerd.task("box").unwrap().status, "PAUSED");
    let tick =
        || std::fs::read_to_string(containerd.bundle("box").join("rootfs/tmp/tick")).unwrap();
    let before = tick();
    let refused = containerd.exec("box", "never", &[], &["true"]);
    assert!(refused.failed().contains("paused"), "{refused}");
    assert_eq!(tick(), before, "a paused container went on");
    containerd.ctr_ok(&["tasks", "resume", "box"]);
    assert_eq!(containerd.task("box").unwrap().status, "RUNNING");
    holdfast_integration::deadline::eventually(
        "the container goes on",
        holdfast_integration::ctr::LIMIT,
        || (tick() != before).then_some(()),
    );
    containerd.end_task("box");
}

fn a_terminal_is_a_terminal(containerd: &Containerd) {
    let (mut terminal, slave) = Terminal::pair();
    let mut client = containerd.spawn_run("tty", &["--rm", "-t"], &["sh"], Some(slave));
    terminal.type_in("tty; echo mark-$((40+2))\n");
    let shown = terminal.expect("mark-42", LIMIT);
    assert!(
        shown.contains("/dev/pts/0") || shown.contains("/dev/console"),
        "{shown}"
    );
    terminal.type_in("exit 5\n");
    assert_eq!(client.code(), 5);
}

fn exec_on_a_terminal(containerd: &Containerd) {
    containerd.start_task("box", &[], &["sleep", "600"]);
    let (mut terminal, slave) = Terminal::pair();
    let fifo = holdfast_integration::scratch::text(&containerd.path("fifo"));
    let words = [
        "tasks",
        "exec",
        "--fifo-dir",
        &fifo,
        "-t",
        "--exec-id",
        "one",
        "box",
        "sh",
    ];
    let mut client = containerd.spawn(&words, Some(slave));
    terminal.type_in("stty size; test -t 0 && echo mark-$((40+2))\n");
    terminal.expect("mark-42", LIMIT);
    terminal.type_in("exit 6\n");
    assert_eq!(client.code(), 6);
    containerd.end_task("box");
}

fn attach_reaches_a_running_task(containerd: &Containerd) {
    let (mut first, slave) = Terminal::pair();
    let client = containerd.spawn_run("box", &["-t"], &["sh"], Some(slave));
    first.type_in("echo mark-$((40+1))\n");
    first.expect("mark-41", LIMIT);
    // The client goes, the task stays, and another client finds it.
    drop(client);
    assert_eq!(containerd.task("box").unwrap().status, "RUNNING");
    let (mut second, slave) = Terminal::pair();
    let mut client = containerd.spawn(&["tasks", "attach", "box"], Some(slave));
    second.type_in("echo mark-$((40+2))\n");
    second.expect("mark-42", LIMIT);
    second.type_in("exit 9\n");
    assert_eq!(client.code(), 9);
    if containerd.task("box").is_some() {
        let _ = containerd.ctr(&["tasks", "delete", "box"]);
    }
    containerd.ctr_ok(&["containers", "delete", "box"]);
}

fn standard_input_arrives_and_ends(containerd: &Containerd) {
    let mut client = containerd.spawn_run("cat", &["--rm"], &["sh", "-c", "wc -c; exit 3"], None);
    let mut input = client.child.stdin.take().unwrap();
    // More than a pipe holds.
    input.write_all(&vec![b'x'; 300_000]).unwrap();
    drop(input);
    assert_eq!(client.code(), 3, "{}", client.output());
    assert!(client.output().contains("300000"), "{}", client.output());
}

fn docker_s_seccomp_and_capabilities_hold_for_init_and_exec(containerd: &Containerd) {
    containerd.start_task("box", &["--seccomp"], &["sleep", "600"]);
    let show = "grep -E '^(Seccomp|CapBnd|CapEff|CapPrm|CapInh|NoNewPrivs):' /proc/$1/status";
    let of_exec = containerd.exec("box", "own", &[], &["sh", "-c", show, "sh", "self"]);
    let of_init = containerd.exec("box", "init", &[], &["sh", "-c", show, "sh", "1"]);
    for (who, shown) in [("init", of_init.ok()), ("exec", of_exec.ok())] {
        let field = |name: &str| {
            let line = shown
                .lines()
                .find(|line| line.starts_with(&format!("{name}:")));
            line.unwrap_or_else(|| panic!("{who}: no {name} in {shown}"))
                .split_whitespace()
                .last()
        };
        assert_eq!(field("Seccomp"), Some("2"), "{who}: {shown}");
        for set in ["CapBnd", "CapEff", "CapPrm"] {
            assert_eq!(field(set), Some(DOCKER_CAPABILITIES_MASK), "{who}: {shown}");
        }
        assert_eq!(field("NoNewPrivs"), Some("1"), "{who}: {shown}");
    }
    // In force, not only shown: mount needs CAP_SYS_ADMIN, and unshare is not in the profile.
    let refused = containerd.exec("box", "mount", &[], &["mount", "-t", "tmpfs", "x", "/mnt"]);
    assert_ne!(refused.code(), 0, "{refused}");
    containerd.end_task("box");
}

fn a_program_that_is_not_there_is_named(containerd: &Containerd) {
    let refused = containerd.run("none", &["--rm"], &["nosuchprogram"]);
    let said = refused.failed();
    assert!(said.contains("nosuchprogram"), "{said}");
    assert!(
        said.contains("executable file not found in $PATH"),
        "{said}"
    );
    assert!(containerd.tasks().is_empty(), "{:?}", containerd.tasks());
}
