//! Incident 2: a container was gone, and its exit was not told; the pod hung in Terminating.
//!
//! One way there: a call of the runtime hangs (an exec into a container whose file system does not
//! answer), and everything else of the container, its exit too, waits behind it. Here the runtime
//! is a wrapper that hangs in `exec`. Init's exit must come all the same, and nobody else waits.

use std::time::{Duration, Instant};

use holdfast_integration::containerd::{Containerd, peer};
use holdfast_integration::deadline::eventually;
use holdfast_integration::leaks::processes_mentioning;
use holdfast_integration::scratch::text;
use holdfast_integration::shim::{Shim, runc_options};
use holdfast_integration::{on_containerds, place, skip};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

on_containerds! { a_hanging_exec_withholds_nothing; }

/// Longer than anybody may have to wait.
const HANG: Duration = Duration::from_secs(600);
/// The shim gives execs 10 s to end before it tells init's exit without them.
const PROMPT: Duration = Duration::from_secs(15);

fn a_hanging_exec_withholds_nothing(containerd: &Containerd) {
    if peer() {
        return skip(
            "i02_withheld_exit",
            "containerd's own shim tells the exit when the exec ends",
        );
    }
    let wrapper = containerd.path("hanging-runtime");
    let script = format!(
        "#!/bin/sh\nfor word; do [ \"$word\" != exec ] || exec sleep {}; done\nexec {} \"$@\"\n",
        HANG.as_secs(),
        text(&place::built("holdfast"))
    );
    place::write_program(&wrapper, &script);

    containerd.start_task("box", &[], &["sleep", "600"]);
    let shim = Shim::of(containerd, "box");
    let options = runc_options(&wrapper, &containerd.path("runtime-state"));
    shim.create_by_hand(containerd, "stuck", options);
    shim.exec("stuck", "hangs", &["true"]).unwrap();

    std::thread::scope(|scope| {
        let own = shim.clone();
        let exec = scope.spawn(move || own.start("stuck", "hangs"));
        // The wrapper is there: its process is the proof that the exec is under way.
        let hang = format!("sleep {}", HANG.as_secs());
        let folder = text(&containerd.path(""));
        let hanging = eventually("the exec hangs", PROMPT, || {
            let mut processes = processes_mentioning(&folder).into_iter();
            processes
                .find(|process| process.command.trim() == hang)
                .map(|process| process.pid)
        });

        let started = Instant::now();
        shim.state("stuck", "").unwrap();
        shim.pids("stuck").unwrap();
        shim.state("box", "").unwrap();
        assert!(
            started.elapsed() < Duration::from_secs(1),
            "State waited {:?}",
            started.elapsed()
        );

        let started = Instant::now();
        shim.kill("stuck", "", 9).unwrap();
        assert_eq!(shim.wait("stuck", "").unwrap(), 137);
        assert!(
            started.elapsed() < PROMPT,
            "init's exit came after {:?}",
            started.elapsed()
        );
        assert_eq!(shim.state("stuck", "").unwrap().status.value(), 3);

        // The shim may have given it up itself when init ended.
        let _ = kill(Pid::from_raw(hanging), Signal::SIGKILL);
        let answer = exec.join().unwrap();
        assert!(
            answer.is_err(),
            "an exec in a container that is gone: {answer:?}"
        );
    });
    let _ = shim.delete("stuck", "hangs");
    shim.delete("stuck", "").unwrap();
    containerd.end_task("box");
}
