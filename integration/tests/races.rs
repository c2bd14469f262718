//! Many things at once, and nothing left afterwards.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use holdfast_integration::containerd::{Containerd, peer};
use holdfast_integration::leaks::descriptors;
use holdfast_integration::shim::Shim;
use holdfast_integration::{deadline, on_containerds};

on_containerds! {
    a_thousand_execs_race_with_questions_and_signals;
    two_hundred_containers_in_batches;
}

const EXECS: usize = 1000;
const AT_ONCE: usize = 8;

fn a_thousand_execs_race_with_questions_and_signals(containerd: &Containerd) {
    let init = u32::try_from(containerd.start_task("box", &[], &["sleep", "600"])).unwrap();
    let shim = Shim::of(containerd, "box");
    // What the shim holds once it has served each kind of call is what it may hold after a thousand.
    one_exec(&shim, "warm-up");
    shim.pids("box").expect("Pids");
    shim.state("box", "").expect("State");
    let shim_pid = shim.pid("box");
    let before = descriptors(shim_pid);

    let next = AtomicUsize::new(0);
    let (announce, announced) = mpsc::channel::<String>();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            let announce = announce.clone();
            let next = &next;
            scope.spawn(move || {
                let shim = Shim::of(containerd, "box");
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= EXECS {
                        return;
                    }
                    let exec = format!("exec-{number}");
                    // The asking thread may have failed: that is told by its own join.
                    let _ = announce.send(exec.clone());
                    one_exec(&shim, &exec);
                }
            });
        }
        drop(announce);
        // Asked once for each exec, not in a loop: on two cores that would leave the container
        // no time to run.
        scope.spawn(move || {
            let shim = Shim::of(containerd, "box");
            for exec in announced {
                let state = shim.state("box", "").expect("State of init");
                assert_eq!(state.pid, init);
                assert_eq!(state.status.value(), 2, "init is running");
                let pids = shim.pids("box").expect("Pids");
                assert!(pids.contains(&init), "{pids:?} lacks init {init}");
                assert!(!pids.contains(&0), "{pids:?}");
                if let Ok(state) = shim.state("box", &exec) {
                    // 1 created: no pid yet; 2 running: one.
                    assert!(state.status.value() != 2 || state.pid != 0, "{state:?}");
                }
                // Signal 0 asks only; the exec may be unknown, not started, or gone.
                let _ = shim.kill("box", &exec, 0);
            }
        });
    });

    assert_eq!(shim.pid("box"), shim_pid, "the shim is not the one it was");
    // Go closes pidfds when it collects garbage; ours closes what it no longer needs.
    let slack = if peer() { EXECS / 10 } else { 0 };
    let mut after = Vec::new();
    // The connections of the threads above close when the shim has read their end, which on a
    // machine with thirty others at work took more than ten seconds once.
    let closed = deadline::within(Duration::from_secs(90), || {
        after = descriptors(shim_pid);
        (after.len() <= before.len() + slack).then_some(())
    });
    assert!(
        closed.is_some(),
        "descriptors of the shim before: {before:?}\nafter: {after:?}"
    );
    containerd.end_task("box");
}

fn one_exec(shim: &Shim, exec: &str) {
    shim.exec("box", exec, &["true"]).expect("Exec");
    let pid = shim.start("box", exec).expect("Start");
    assert_ne!(pid, 0);
    assert_eq!(shim.wait("box", exec).expect("Wait"), 0, "{exec}");
    let deleted = shim.delete("box", exec).expect("Delete");
    assert_eq!(deleted.exit_status, 0);
    assert_eq!(deleted.pid, pid);
}

fn two_hundred_containers_in_batches(containerd: &Containerd) {
    const BATCH: usize = 10;
    for batch in 0..20 {
        std::thread::scope(|scope| {
            for member in 0..BATCH {
                scope.spawn(move || {
                    let code = i32::try_from(batch * BATCH + member).unwrap() % 100;
                    let id = format!("box-{batch}-{member}");
                    // To a file and not through ctr: it gives a fifo up that it has not opened
                    // when the container has ended, which on a loaded machine lost the output.
                    let log = containerd.path(&format!("{id}.log"));
                    let uri = format!("file://{}", log.display());
                    let ran = containerd.run(
                        &id,
                        &["--rm", "--log-uri", &uri],
                        &["sh", "-c", &format!("echo {id}; exit {code}")],
                    );
                    assert_eq!(ran.code(), code, "{ran}");
                    let written = std::fs::read_to_string(&log).unwrap();
                    assert_eq!(written.trim(), id, "{ran}");
                });
            }
        });
        assert!(containerd.tasks().is_empty(), "{:?}", containerd.tasks());
    }
}
