//! containerd goes away and comes back; containers do not notice.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::time::Duration;

use holdfast_integration::containerd::{Containerd, peer};
use holdfast_integration::deadline::eventually;
use holdfast_integration::image;
use holdfast_integration::leaks::is_alive;
use holdfast_integration::scratch::text;
use holdfast_integration::shim::{Shim, kill_for_good};
use holdfast_integration::{on_containerds, skip};

on_containerds! {
    running_containers_live_on;
    an_exit_during_the_outage_keeps_its_code;
    fifty_exits_during_the_outage_keep_their_codes;
    a_killed_shim_leaves_nothing;
}

fn running_containers_live_on(containerd: &Containerd) {
    let pid = containerd.start_task("box", &[], &["sleep", "600"]);
    let shim = Shim::of(containerd, "box").pid("box");
    containerd.kill_daemon();
    assert!(is_alive(pid) && is_alive(shim));
    containerd.start_daemon();
    let task = containerd.task("box").expect("the task is known again");
    assert_eq!((task.pid, task.status.as_str()), (pid, "RUNNING"));
    assert_eq!(Shim::of(containerd, "box").pid("box"), shim);
    assert_eq!(
        containerd
            .exec("box", "x", &[], &["sh", "-c", "exit 4"])
            .code(),
        4
    );
    containerd.end_task("box");
}

fn an_exit_during_the_outage_keeps_its_code(containerd: &Containerd) {
    if peer() {
        return skip(
            "an_exit_during_the_outage",
            "containerd 2.1 takes its own shim for leaked then",
        );
    }
    let stop = containerd.path("stop");
    std::fs::create_dir(&stop).unwrap();
    let mount = format!("type=bind,src={},dst=/mnt,options=rbind:ro", stop.display());
    let script = "until test -e /mnt/now; do usleep 10000; done; exit 42";
    let pid = containerd.start_task("box", &["--mount", &mount], &["sh", "-c", script]);
    containerd.kill_daemon();
    std::fs::write(stop.join("now"), "").unwrap();
    eventually("the container ends", Duration::from_secs(20), || {
        (!is_alive(pid)).then_some(())
    });
    containerd.start_daemon();
    let task = containerd.task("box").expect("the task is known again");
    assert_eq!(task.status, "STOPPED");
    let deleted = containerd.ctr(&["tasks", "delete", "box"]);
    assert!(
        deleted.stderr.contains("42") || deleted.code() == 42,
        "{deleted}"
    );
    containerd.ctr_ok(&["containers", "delete", "box"]);
}

const FIFTY: i32 = 50;

/// Containers of one runtime that end with codes of their own when the fifo gets its writer.
fn waiting_containers(containerd: &Containerd, runtime: &str, prefix: &str) -> Vec<i32> {
    let shared = text(&containerd.path("shared"));
    let mount = format!("type=bind,src={shared},dst=/mnt,options=rbind:ro");
    let start = |code: i32| {
        let id = format!("{prefix}-{code}");
        containerd.remember(&id);
        let script = format!("read x </mnt/end; exit {code}");
        let args = ["run", "--detach", "--null-io", "--runtime", runtime];
        let more = ["--mount", &mount, image::NAME, &id, "sh", "-c", &script];
        containerd.ctr_ok(&[&args[..], &more].concat());
        containerd.task(&id).expect("the task is known").pid
    };
    let mut pids = vec![0; usize::try_from(FIFTY).unwrap()];
    std::thread::scope(|scope| {
        for (worker, pids) in pids.chunks_mut(13).enumerate() {
            let first = i32::try_from(worker * 13).unwrap();
            let start = &start;
            scope.spawn(move || {
                (first..)
                    .zip(pids)
                    .for_each(|(code, pid)| *pid = start(code))
            });
        }
    });
    pids
}

/// How many of them are known as stopped, and are deleted with their codes.
fn kept(containerd: &Containerd, prefix: &str) -> Vec<i32> {
    (0..FIFTY)
        .filter(|code| {
            let id = format!("{prefix}-{code}");
            let known = containerd
                .task(&id)
                .is_some_and(|task| task.status == "STOPPED");
            let deleted = containerd.ctr(&["tasks", "delete", &id]);
            // The client ends with 0 and warns of a task that did not, or ends as the task did.
            let told = deleted
                .stderr
                .trim_end()
                .rsplit(' ')
                .next()
                .and_then(|word| {
                    word.trim_matches(|c: char| !c.is_ascii_digit())
                        .parse()
                        .ok()
                });
            known && told.unwrap_or(deleted.code()) == *code
        })
        .collect()
}

fn fifty_exits_during_the_outage_keep_their_codes(containerd: &Containerd) {
    let shared = containerd.path("shared");
    std::fs::create_dir(&shared).unwrap();
    let end = shared.join("end");
    nix::unistd::mkfifo(&end, nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
    let ours = waiting_containers(containerd, &containerd.runtime_type, "box");
    // Beside them containerd's own shim: nothing is asserted of it, what became of it is printed.
    let go = waiting_containers(containerd, "io.containerd.runc.v2", "go");
    containerd.kill_daemon();
    // Whoever reads comes to its end, also who comes late.
    let writer = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&end)
        .unwrap();
    for _ in 0..2 * FIFTY {
        writeln!(&writer).unwrap();
    }
    for pid in ours.iter().chain(&go) {
        eventually("the containers end", Duration::from_secs(60), || {
            (!is_alive(*pid)).then_some(())
        });
    }
    containerd.start_daemon();
    let all: Vec<i32> = (0..FIFTY).collect();
    let (ours, go) = (kept(containerd, "box"), kept(containerd, "go"));
    println!(
        "containerd {:?}: of {FIFTY} exit codes {} are kept by {}, {} by containerd's own shim",
        containerd.version,
        ours.len(),
        containerd.runtime_type,
        go.len()
    );
    for prefix in ["box", "go"] {
        for code in 0..FIFTY {
            let id = format!("{prefix}-{code}");
            let _ = containerd.ctr(&["tasks", "delete", "--force", &id]);
            let _ = containerd.ctr(&["containers", "delete", &id]);
        }
    }
    // containerd's own shim leaves its socket, for its next namesake to remove.
    for left in containerd.left_behind() {
        if let Some(socket) = left
            .strip_prefix("socket ")
            .filter(|left| left.contains(" of go-"))
        {
            let _ = std::fs::remove_file(socket.split(' ').next().unwrap());
        }
    }
    if !peer() {
        assert_eq!(ours, all);
    }
}

/// Nothing of any member of its pod; containerd's own shim is tried with one container.
fn a_killed_shim_leaves_nothing(containerd: &Containerd) {
    let names: &[&str] = if peer() { &["box"] } else { &["box", "b", "c"] };
    let pod = ["--annotation", "io.containerd.runc.v2.group=pod"];
    let pids: Vec<i32> = names
        .iter()
        .map(|name| containerd.start_task(name, &pod, &["sh", "-c", "sleep 600 & sleep 600"]))
        .collect();
    let shims: BTreeSet<i32> = names
        .iter()
        .map(|name| Shim::of(containerd, name).pid(name))
        .collect();
    assert_eq!(shims.len(), 1, "one shim for {names:?}");
    kill_for_good(*shims.first().expect("a shim"));
    for (name, pid) in names.iter().zip(pids) {
        eventually("the container ends", Duration::from_secs(20), || {
            (!is_alive(pid)).then_some(())
        });
        eventually("containerd has noticed", Duration::from_secs(20), || {
            containerd
                .task(name)
                .is_none_or(|task| task.status != "RUNNING")
                .then_some(())
        });
        let _ = containerd.ctr(&["tasks", "delete", "--force", name]);
        containerd.ctr_ok(&["containers", "delete", name]);
    }
    if peer() {
        // containerd's own shim leaves its socket, for its next namesake to remove.
        for socket in containerd.left_behind() {
            let _ = std::fs::remove_file(socket.split(' ').nth(1).unwrap());
        }
    }
    containerd.assert_nothing_left();
}
