//! The shim is killed, and nobody but its log notices: its keeper begins it anew.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use holdfast_integration::containerd::{self, Containerd};
use holdfast_integration::deadline::eventually;
use holdfast_integration::flow::{Flow, terminal_goes_on};
use holdfast_integration::leaks::is_alive;
use holdfast_integration::on_containerds;
use holdfast_integration::shim::{self, Shim, parent_of};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

on_containerds! {
    a_wait_is_answered_by_the_next_shim;
    a_pod_survives_twenty_kills;
    output_and_input_lose_no_byte;
    a_terminal_goes_on;
    changes_under_way_are_done_once_or_refused;
    a_create_under_way_is_whole_or_nothing;
    an_exit_without_a_shim_is_told;
    a_loop_of_kills_degrades_and_does_not_spin;
    a_stopped_shim_goes_on;
    a_stopped_keeper_holds_nothing_up;
    without_its_keeper_the_shim_goes_on;
    nothing_is_left_of_a_shim_that_ended;
}

const LIMIT: Duration = Duration::from_secs(30);
/// Shims that live shorter are a loop, which is another matter.
const SPACING: Duration = Duration::from_millis(600);

fn not_ours(test: &str) -> bool {
    containerd::not_ours(test, "containerd's own shim dies of it")
}

fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("the process lives");
}

fn name(pid: i32) -> String {
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    comm.trim().to_owned()
}

fn shim_of(containerd: &Containerd, id: &str) -> i32 {
    Shim::of(containerd, id).pid(id)
}

fn keeper_of(shim: i32) -> i32 {
    shim::keeper_of(shim).expect("a keeper")
}

/// Kills the shim, and waits until the next one answers.
#[track_caller]
fn slay(containerd: &Containerd, id: &str) -> i32 {
    let before = shim_of(containerd, id);
    send(before, Signal::SIGKILL);
    let now = eventually("the next shim", LIMIT, || {
        let now = shim_of(containerd, id);
        (now != before).then_some(now)
    });
    assert!(!is_alive(before));
    now
}

fn a_wait_is_answered_by_the_next_shim(containerd: &Containerd) {
    if not_ours("a_wait_is_answered_by_the_next_shim") {
        return;
    }
    let mut client = containerd.spawn_until_told("box", LIMIT);
    let pid = containerd.task("box").expect("a task").pid;
    let keeper = keeper_of(shim_of(containerd, "box"));
    let command = std::fs::read_to_string(format!("/proc/{keeper}/cmdline")).unwrap();
    assert!(
        !command.contains("containerd-shim"),
        "`pkill -f containerd-shim` would take it along: {command}"
    );
    let next = slay(containerd, "box");
    assert_eq!(keeper_of(next), keeper);
    assert_eq!(parent_of(pid), keeper);
    assert_eq!(name(next), "containerd-shim");
    let task = containerd.task("box").expect("the task is known");
    assert_eq!((task.pid, task.status.as_str()), (pid, "RUNNING"));
    assert_eq!(containerd.log_of_shims(), Vec::<String>::new());
    containerd.tell_to_end("box");
    assert_eq!(client.code(), 42);
}

/// Containers of one pod write, and processes are started in them, while their shim is killed again and again.
fn a_pod_survives_twenty_kills(containerd: &Containerd) {
    const COUNT: usize = 4;
    const KILLS: usize = 20;
    if not_ours("a_pod_survives_twenty_kills") {
        return;
    }
    let pod = ["--annotation", "io.containerd.runc.v2.group=pod"];
    let names: Vec<String> = (0..COUNT).map(|n| format!("c{n}")).collect();
    let mut clients: Vec<_> = (0..COUNT)
        .map(|n| {
            let script = format!(
                "n=0; until test -e /tmp/stop; do echo $n; n=$((n+1)); usleep 20000; done; echo last $n; exit {n}"
            );
            let flags = [&pod[..], &["--rm"]].concat();
            containerd.spawn_run(&names[n], &flags, &["sh", "-c", &script], None)
        })
        .collect();
    for client in &clients {
        eventually("the container runs", LIMIT, || {
            client.output().contains("3\n").then_some(())
        });
    }
    let pids: Vec<i32> = names
        .iter()
        .map(|name| containerd.task(name).expect("a task").pid)
        .collect();
    for n in 0..KILLS {
        slay(containerd, &names[n % COUNT]);
        let code = i32::try_from(n).unwrap();
        let script = format!("exit {n}");
        let done = containerd.exec(
            &names[n % COUNT],
            &format!("x{n}"),
            &[],
            &["sh", "-c", &script],
        );
        assert_eq!(done.code(), code, "{done}");
        thread::sleep(SPACING);
    }
    for (name, pid) in names.iter().zip(&pids) {
        let task = containerd.task(name).expect("known");
        assert_eq!((task.pid, task.status.as_str()), (*pid, "RUNNING"));
    }
    assert_eq!(containerd.log_of_shims(), Vec::<String>::new());
    for (n, (name, client)) in names.iter().zip(&mut clients).enumerate() {
        let told = containerd.exec(name, "end", &[], &["touch", "/tmp/stop"]);
        // What it tells may end the container, and that the exec, before `touch` has ended.
        assert!(matches!(told.code(), 0 | 137), "{told}");
        assert_eq!(client.code(), i32::try_from(n).unwrap());
        let output = client.output();
        let lines: Vec<&str> = output.lines().collect();
        let (last, numbers) = lines.split_last().expect("output");
        assert_eq!(*last, format!("last {}", numbers.len()));
        let wrong = numbers
            .iter()
            .enumerate()
            .find(|(n, line)| **line != n.to_string());
        assert_eq!(wrong, None, "{name}");
    }
}

fn output_and_input_lose_no_byte(containerd: &Containerd) {
    if not_ours("output_and_input_lose_no_byte") {
        return;
    }
    let flow = Flow::start(containerd, "cat");
    for _ in 0..8 {
        let before = flow.sent();
        slay(containerd, "cat");
        flow.goes_on(before);
        thread::sleep(SPACING);
    }
    flow.finish();
}

fn a_terminal_goes_on(containerd: &Containerd) {
    if not_ours("a_terminal_goes_on") {
        return;
    }
    terminal_goes_on(containerd, SPACING, || {
        slay(containerd, "tty");
    });
}

/// Every process leaves a line. One that was answered with its exit code has left exactly one, and one that was
/// refused at most one.
fn changes_under_way_are_done_once_or_refused(containerd: &Containerd) {
    const KILLS: usize = 6;
    /// Processes that one client starts at most.
    const MOST: i32 = 1000;
    if not_ours("changes_under_way_are_done_once_or_refused") {
        return;
    }
    containerd.start_task("box", &[], &["sleep", "600"]);
    let stop = AtomicBool::new(false);
    let answers = thread::scope(|scope| {
        let killing = scope.spawn(|| {
            for _ in 0..KILLS {
                slay(containerd, "box");
                thread::sleep(SPACING);
            }
            stop.store(true, Ordering::SeqCst);
        });
        let stop = &stop;
        let workers: Vec<_> = (0..3)
            .map(|worker| {
                scope.spawn(move || {
                    (0..MOST)
                        .take_while(|_| !stop.load(Ordering::SeqCst))
                        .map(|n| {
                            let right = 2 + n % 50;
                            let script = format!("echo {worker}-{n} >> /tmp/left; exit {right}");
                            let name = format!("x-{worker}-{n}");
                            let done = containerd.exec("box", &name, &[], &["sh", "-c", &script]);
                            let code = done.code();
                            // ctr's own exit code for an error is 1, and it says what was wrong.
                            let refused = code == 1 && done.to_string().contains("ctr: ");
                            assert!(code == right || refused, "{name}: {done}");
                            (format!("{worker}-{n}"), !refused)
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        let all: Vec<_> = workers
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect();
        killing.join().unwrap();
        all.into_iter()
            .flat_map(|one| one.expect("answers"))
            .collect::<Vec<_>>()
    });
    assert!(answers.len() > 10, "{answers:?} are no test");
    let left = containerd.file_of("box", "tmp/left");
    let lines: Vec<&str> = left.lines().collect();
    let refused = answers.iter().filter(|(_, done)| !done).count();
    println!("{refused} of {} refused", answers.len());
    for (line, done) in &answers {
        let times = lines.iter().filter(|left| *left == line).count();
        let right = if *done { times == 1 } else { times <= 1 };
        assert!(right, "{line} was done {times} times, answered: {done}");
    }
    assert_eq!(containerd.log_of_shims(), Vec::<String>::new());
    containerd.end_task("box");
}

/// The shim is killed at many moments of a create.
fn a_create_under_way_is_whole_or_nothing(containerd: &Containerd) {
    if not_ours("a_create_under_way_is_whole_or_nothing") {
        return;
    }
    let pod = ["--annotation", "io.containerd.runc.v2.group=pod"];
    containerd.start_task("first", &pod, &["sleep", "600"]);
    let (mut whole, mut refused) = (0, 0);
    for n in 0..8u64 {
        let shim = shim_of(containerd, "first");
        let id = format!("box{n}");
        let mut client = containerd.spawn_run(
            &id,
            &[&pod[..], &["--rm"]].concat(),
            &["sh", "-c", "echo here; exit 7"],
            None,
        );
        // Not until something is there: the moments in between are what is wanted.
        thread::sleep(Duration::from_millis(20 + 12 * n));
        let _ = kill(Pid::from_raw(shim), Signal::SIGKILL);
        match client.code() {
            7 => {
                assert_eq!(client.output(), "here\n", "{id}");
                whole += 1;
            }
            code => {
                assert_eq!(code, 1, "{id}");
                refused += 1;
                let _ = containerd.ctr(&["task", "delete", "--force", &id]);
                let _ = containerd.ctr(&["container", "delete", &id]);
            }
        }
        eventually("nothing is left of it", LIMIT, || {
            containerd.task(&id).is_none().then_some(())
        });
        thread::sleep(SPACING);
    }
    println!("{whole} whole, {refused} refused");
    assert_eq!(containerd.task("first").expect("known").status, "RUNNING");
    containerd.end_task("first");
}

/// The container ends while there is no shim to see it.
fn an_exit_without_a_shim_is_told(containerd: &Containerd) {
    if not_ours("an_exit_without_a_shim_is_told") {
        return;
    }
    let script = "trap 'exit 33' TERM; echo ready; while :; do usleep 10000; done";
    let mut client = containerd.spawn_run("box", &["--rm"], &["sh", "-c", script], None);
    eventually("the container runs", LIMIT, || {
        client.output().contains("ready").then_some(())
    });
    let pid = containerd.task("box").expect("a task").pid;
    let shim = shim_of(containerd, "box");
    // It ends meanwhile, and the shim cannot see it: it is stopped, and then killed.
    send(shim, Signal::SIGSTOP);
    send(pid, Signal::SIGTERM);
    eventually("the container ends", LIMIT, || {
        (!is_alive(pid)).then_some(())
    });
    send(shim, Signal::SIGKILL);
    assert_eq!(client.code(), 33);
}

fn a_loop_of_kills_degrades_and_does_not_spin(containerd: &Containerd) {
    if not_ours("a_loop_of_kills_degrades_and_does_not_spin") {
        return;
    }
    let mut client = containerd.spawn_run("box", &["--rm"], &["sleep", "600"], None);
    let pid = eventually("the container runs", LIMIT, || {
        let task = containerd.task("box")?;
        (task.status == "RUNNING").then_some(task.pid)
    });
    let keeper = keeper_of(shim_of(containerd, "box"));
    let child = || {
        let path = format!("/proc/{keeper}/task/{keeper}/children");
        let children = std::fs::read_to_string(path).unwrap_or_default();
        let mut pids = children
            .split_whitespace()
            .filter_map(|word| word.parse::<i32>().ok());
        pids.find(|child| *child != pid)
    };
    // As fast as they come.
    let mut kills = 0;
    let until = std::time::Instant::now() + Duration::from_secs(5);
    while std::time::Instant::now() < until {
        if let Some(shim) = child() {
            let _ = kill(Pid::from_raw(shim), Signal::SIGKILL);
            kills += 1;
        }
        thread::sleep(Duration::from_millis(2));
    }
    println!("{kills} kills in 5 s");
    assert!((4..200).contains(&kills), "{kills} kills");
    let direct = Shim::of(containerd, "box");
    assert_eq!(direct.state("box", "").unwrap().pid.cast_signed(), pid);
    assert!(is_alive(pid));
    direct.kill("box", "", 9).unwrap();
    // The client that has waited all the time.
    assert_eq!(client.code(), 137);
}

fn a_stopped_shim_goes_on(containerd: &Containerd) {
    if not_ours("a_stopped_shim_goes_on") {
        return;
    }
    let pid = containerd.start_task("box", &[], &["sleep", "600"]);
    let shim = shim_of(containerd, "box");
    send(shim, Signal::SIGSTOP);
    let done = containerd.exec("box", "x", &[], &["sh", "-c", "exit 3"]);
    assert_eq!(done.code(), 3, "{done}");
    assert_eq!(shim_of(containerd, "box"), shim);
    assert!(is_alive(pid));
    containerd.end_task("box");
}

/// What a stopped keeper holds, the other ends do not see closed: a client would wait for the end of output.
fn a_stopped_keeper_holds_nothing_up(containerd: &Containerd) {
    if not_ours("a_stopped_keeper_holds_nothing_up") {
        return;
    }
    let pid = containerd.start_task("box", &[], &["sleep", "600"]);
    let keeper = keeper_of(shim_of(containerd, "box"));
    send(keeper, Signal::SIGSTOP);
    let done = containerd.exec("box", "x", &[], &["sh", "-c", "echo here; exit 3"]);
    assert_eq!(done.code(), 3, "{done}");
    assert!(is_alive(pid));
    let next = slay(containerd, "box");
    assert_eq!(keeper_of(next), keeper);
    containerd.end_task("box");
}

fn without_its_keeper_the_shim_goes_on(containerd: &Containerd) {
    if not_ours("without_its_keeper_the_shim_goes_on") {
        return;
    }
    // One that is the keeper's child, and one that is the shim's.
    let pod = ["--annotation", "io.containerd.runc.v2.group=pod"];
    let script = "trap 'exit 21' TERM; echo ready; while :; do usleep 10000; done";
    let flags = [&pod[..], &["--rm"]].concat();
    let mut clients = Vec::new();
    for name in ["old", "new"] {
        let client = containerd.spawn_run(name, &flags, &["sh", "-c", script], None);
        eventually("the container runs", LIMIT, || {
            client.output().contains("ready").then_some(())
        });
        clients.push(client);
        if name == "old" {
            slay(containerd, "old");
        }
    }
    let shim = shim_of(containerd, "old");
    let keeper = keeper_of(shim);
    send(keeper, Signal::SIGKILL);
    eventually("the keeper ends", LIMIT, || {
        (!is_alive(keeper)).then_some(())
    });
    for name in ["old", "new"] {
        let done = containerd.exec(name, "x", &[], &["sh", "-c", "exit 3"]);
        assert_eq!(done.code(), 3, "{done}");
    }
    assert_eq!(shim_of(containerd, "new"), shim);
    for (name, mut client) in ["new", "old"].into_iter().zip(clients.into_iter().rev()) {
        send(containerd.task(name).expect("known").pid, Signal::SIGTERM);
        let code = client.code();
        // The kernel says it of processes that were reaped by others since Linux 6.15; else it is not known.
        assert!(code == 21 || name == "old" && code == 255, "{name}: {code}");
    }
}

fn nothing_is_left_of_a_shim_that_ended(containerd: &Containerd) {
    if not_ours("nothing_is_left_of_a_shim_that_ended") {
        return;
    }
    containerd.start_task("box", &[], &["sleep", "600"]);
    let shim = slay(containerd, "box");
    let keeper = keeper_of(shim);
    containerd.end_task("box");
    eventually("both end", LIMIT, || {
        (!is_alive(shim) && !is_alive(keeper)).then_some(())
    });
}
