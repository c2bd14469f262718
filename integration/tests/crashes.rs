//! The shim fails, and nobody but its log notices.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use holdfast_integration::containerd::{self, Containerd};
use holdfast_integration::deadline::eventually;
use holdfast_integration::flow::{Flow, terminal_goes_on};
use holdfast_integration::leaks::is_alive;
use holdfast_integration::on_containerds;
use holdfast_integration::shim::Shim;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

on_containerds! {
    a_wait_is_answered_by_the_next_image;
    every_fatal_signal_is_survived;
    output_and_input_lose_no_byte;
    a_terminal_goes_on;
    changes_under_way_are_done_once;
    twenty_containers_survive_a_hundred_crashes;
    a_loop_of_crashes_leaves_what_containers_need;
}

const CRASHES: [Signal; 5] = [
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGABRT,
    Signal::SIGILL,
    Signal::SIGFPE,
];

/// What tells one image of a process from the next: where the kernel put its stack.
fn image(pid: i32) -> Option<String> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let stack = maps.lines().find(|line| line.ends_with("[stack]"))?;
    Some(stack.split(' ').next()?.to_owned())
}

/// Sends a signal that ends the image, and waits until the next one is there.
#[track_caller]
fn crash(shim: i32, signal: Signal) {
    let before = image(shim).expect("the shim lives");
    kill(Pid::from_raw(shim), signal).expect("the shim lives");
    eventually("the next image", Duration::from_secs(20), || {
        let now = image(shim);
        assert!(is_alive(shim), "{signal} was the end of the shim");
        now.filter(|now| *now != before)
    });
}

fn not_ours(test: &str) -> bool {
    containerd::not_ours(test, "containerd's own shim dies of it")
}

fn a_wait_is_answered_by_the_next_image(containerd: &Containerd) {
    if not_ours("a_wait_is_answered_by_the_next_image") {
        return;
    }
    let mut client = containerd.spawn_until_told("box", LIMIT);
    let pid = containerd.task("box").expect("a task").pid;
    let shim = Shim::of(containerd, "box").pid("box");
    crash(shim, Signal::SIGSEGV);
    assert!(is_alive(pid));
    let task = containerd.task("box").expect("the task is known");
    assert_eq!((task.pid, task.status.as_str()), (pid, "RUNNING"));
    assert_eq!(Shim::of(containerd, "box").pid("box"), shim);
    // containerd logs the end of any shim, so this is asked for before.
    assert_eq!(containerd.log_of_shims(), Vec::<String>::new());
    containerd.tell_to_end("box");
    assert_eq!(client.code(), 42);
}

fn every_fatal_signal_is_survived(containerd: &Containerd) {
    if not_ours("every_fatal_signal_is_survived") {
        return;
    }
    let pid = containerd.start_task("box", &[], &["sleep", "600"]);
    let shim = Shim::of(containerd, "box").pid("box");
    for signal in CRASHES {
        crash(shim, signal);
        let code = containerd
            .exec("box", "x", &[], &["sh", "-c", "exit 3"])
            .code();
        assert_eq!(code, 3, "after {signal}");
        assert!(is_alive(pid));
        thread::sleep(SPACING);
    }
    containerd.end_task("box");
}

/// Images that live shorter are a loop, which is another matter.
const SPACING: Duration = Duration::from_millis(600);
const LIMIT: Duration = Duration::from_secs(30);

/// Ends images, one after the other, until told to stop; how many.
fn crash_on(shim: i32, stop: &AtomicBool) -> usize {
    let mut count = 0;
    while !stop.load(Ordering::SeqCst) {
        crash(shim, CRASHES[count % CRASHES.len()]);
        count += 1;
        thread::sleep(SPACING);
    }
    count
}

fn output_and_input_lose_no_byte(containerd: &Containerd) {
    if not_ours("output_and_input_lose_no_byte") {
        return;
    }
    let flow = Flow::start(containerd, "cat");
    let shim = Shim::of(containerd, "cat").pid("cat");
    for n in 0..12 {
        let before = flow.sent();
        crash(shim, CRASHES[n % CRASHES.len()]);
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
        crash(Shim::of(containerd, "tty").pid("tty"), Signal::SIGSEGV);
    });
}

/// Every process leaves a line; at the end each has left exactly one, and its exit code was the
/// right one.
fn changes_under_way_are_done_once(containerd: &Containerd) {
    if not_ours("changes_under_way_are_done_once") {
        return;
    }
    containerd.start_task("box", &[], &["sleep", "600"]);
    let shim = Shim::of(containerd, "box").pid("box");
    let stop = AtomicBool::new(false);
    let crashes = thread::scope(|scope| {
        let crashing = scope.spawn(|| crash_on(shim, &stop));
        let workers: Vec<_> = (0..3)
            .map(|worker| {
                scope.spawn(move || {
                    for n in 0..40 {
                        let script = format!("echo {worker}-{n} >> /tmp/left; exit {n}");
                        let name = format!("x-{worker}-{n}");
                        let done = containerd.exec("box", &name, &[], &["sh", "-c", &script]);
                        assert_eq!(done.code(), n, "{name}: {done}");
                    }
                })
            })
            .collect();
        let all: Vec<_> = workers
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect();
        stop.store(true, Ordering::SeqCst);
        let crashes = crashing.join().unwrap();
        assert!(all.iter().all(Result::is_ok), "a process was lost");
        crashes
    });
    assert!(crashes > 3, "{crashes} crashes are no test");
    let left = containerd.file_of("box", "tmp/left");
    let mut expected: Vec<String> = (0..3)
        .flat_map(|worker| (0..40).map(move |n| format!("{worker}-{n}")))
        .collect();
    expected.sort();
    let mut left: Vec<&str> = left.lines().collect();
    left.sort_unstable();
    assert_eq!(left, expected);
    assert_eq!(containerd.log_of_shims(), Vec::<String>::new());
    containerd.end_task("box");
}

/// Only whether it is in a loop decides what it serves, so it is sent in by one.
fn a_loop_of_crashes_leaves_what_containers_need(containerd: &Containerd) {
    if not_ours("a_loop_of_crashes_leaves_what_containers_need") {
        return;
    }
    let pid = containerd.start_task("box", &[], &["sleep", "600"]);
    let shim = Shim::of(containerd, "box").pid("box");
    let is_degraded = || {
        let refused = Shim::of(containerd, "box").exec("box", "", &["true"]);
        refused.is_err_and(|refused| refused.message.contains("fails again and again"))
    };
    // On a slow machine some of them live too long to count.
    let looped = (0..40).any(|_| {
        for _ in 0..4 {
            crash(shim, Signal::SIGSEGV);
        }
        is_degraded()
    });
    assert!(looped, "never degraded");
    let direct = Shim::of(containerd, "box");
    assert_eq!(direct.state("box", "").unwrap().pid.cast_signed(), pid);
    assert_eq!(direct.pids("box").unwrap(), [pid.cast_unsigned()]);
    assert!(is_alive(pid));
    direct.kill("box", "", 9).unwrap();
    assert_eq!(direct.wait("box", ""), Ok(137));
    containerd.await_status("box", "STOPPED");
    containerd.remove("box");
}

fn twenty_containers_survive_a_hundred_crashes(containerd: &Containerd) {
    const COUNT: usize = 20;
    const ENDS: usize = 100;
    if not_ours("twenty_containers_survive_a_hundred_crashes") {
        return;
    }
    let pod = ["--annotation", "io.containerd.runc.v2.group=pod"];
    let names: Vec<String> = (0..COUNT).map(|n| format!("c{n:02}")).collect();
    let mut clients: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(n, name)| {
            // Numbers, without end, until somebody says stop; then the last one is said again.
            let script = format!(
                "n=0; until test -e /tmp/stop; do echo $n; n=$((n+1)); usleep 20000; done; echo last $n; exit {n}"
            );
            containerd.spawn_run(name, &[&pod[..], &["--rm"]].concat(), &["sh", "-c", &script], None)
        })
        .collect();
    for client in &clients {
        eventually("the container runs", Duration::from_secs(60), || {
            client.output().contains("3\n").then_some(())
        });
    }
    let shim = Shim::of(containerd, &names[0]).pid(&names[0]);
    assert_eq!(Shim::of(containerd, &names[COUNT - 1]).pid(&names[0]), shim);
    let pids: Vec<i32> = names
        .iter()
        .map(|name| containerd.task(name).expect("a task").pid)
        .collect();
    let stop = AtomicBool::new(false);
    let execs = thread::scope(|scope| {
        let working = scope.spawn(|| {
            let mut count = 0;
            while !stop.load(Ordering::SeqCst) {
                let (name, code) = (&names[count % COUNT], i32::try_from(count % 100).unwrap());
                let id = format!("x{count}");
                let script = format!("exit {code}");
                let done = containerd.exec(name, &id, &[], &["sh", "-c", &script]);
                assert_eq!(done.code(), code, "{id}: {done}");
                count += 1;
            }
            count
        });
        for n in 0..ENDS {
            crash(shim, CRASHES[n % CRASHES.len()]);
            thread::sleep(SPACING);
        }
        stop.store(true, Ordering::SeqCst);
        working.join().unwrap()
    });
    println!("{execs} execs during {ENDS} crashes");
    assert!(execs > 10);
    for (name, pid) in names.iter().zip(&pids) {
        let task = containerd.task(name).expect("known");
        assert_eq!((task.pid, task.status.as_str()), (*pid, "RUNNING"));
    }
    assert_eq!(containerd.log_of_shims(), Vec::<String>::new());
    for (n, (name, client)) in names.iter().zip(&mut clients).enumerate() {
        let told = containerd.exec(name, "end", &[], &["touch", "/tmp/stop"]);
        // What it tells may end the container, and that the exec, before `touch` has ended.
        assert!(matches!(told.code(), 0 | 137), "{told}");
        if n % 4 == 0 {
            // Some end while there is no image to see it.
            thread::sleep(SPACING);
            crash(shim, Signal::SIGSEGV);
        }
        assert_eq!(client.code(), i32::try_from(n).unwrap(), "{name}");
        let output = client.output();
        let lines: Vec<&str> = output.lines().collect();
        let (last, numbers) = lines.split_last().expect("output");
        assert_eq!(*last, format!("last {}", numbers.len()));
        for (n, line) in numbers.iter().enumerate() {
            assert_eq!(*line, n.to_string(), "{name}");
        }
    }
}
