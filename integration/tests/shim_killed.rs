//! The shim is killed, by a stranger or for want of memory, with containerd there or away: what ended, why, and by whom
//! is recorded, and nothing is said of a container that is not known of it.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use holdfast_integration::containerd::{self, Containerd};
use holdfast_integration::deadline::{self, eventually};
use holdfast_integration::leaks::{self, is_alive};
use holdfast_integration::shim::{Shim, address_in, keeper_of};
use holdfast_integration::tracing::Traced;
use holdfast_integration::{on_containerds, place, skip};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

on_containerds! {
    a_stranger_who_kills_the_shim_is_named;
    it_is_known_of_a_time_without_containerd_too;
    what_had_ended_before_keeps_its_status;
    a_shim_without_memory_is_no_riddle;
}

const LIMIT: Duration = Duration::from_secs(30);
const POD: [&str; 6] = [
    "--annotation",
    "io.kubernetes.cri.sandbox-name=train-0",
    "--annotation",
    "io.kubernetes.cri.sandbox-namespace=ml",
    "--annotation",
    "io.kubernetes.cri.container-name=worker",
];

fn not_ours() -> bool {
    containerd::not_ours("shim_killed", "containerd's own shim records nothing")
}

/// Every record with `code`, once there is one.
#[track_caller]
fn record(containerd: &Containerd, code: &str) -> Value {
    eventually(code, LIMIT, || {
        let mut command = Command::new(place::built("holdfast"));
        command
            .args(["why", "--json"])
            .env("HOLDFAST_LEDGER_DIR", containerd.path("ledger"));
        let said = deadline::run(&mut command, LIMIT);
        let records: Vec<Value> = serde_json::from_str(&said.stdout).ok()?;
        records.into_iter().find(|record| record["code"] == code)
    })
}

/// Kills a shim with all that would go on in its place, by a program that is gone afterwards. Its pid.
fn kill_shim(containerd: &Containerd) -> i32 {
    let shim = Shim::of(containerd, "box").pid("box");
    // Not every machine has the program kill; the word is every shell's.
    let mut kill = Command::new("sh");
    kill.args(["-c", "kill -s KILL \"$@\"", "killer"]);
    let shims: Vec<i32> = containerd.shims().iter().map(|one| one.pid).collect();
    let keepers = shims.iter().filter_map(|shim| keeper_of(*shim));
    kill.args(
        keepers
            .chain(shims.iter().copied())
            .map(|pid| pid.to_string()),
    );
    deadline::run(&mut kill, LIMIT).ok();
    shim
}

/// What is left in containerd of a container whose shim is gone.
fn forget(containerd: &Containerd) {
    let _ = containerd.ctr(&["tasks", "delete", "--force", "box"]);
    containerd.ctr_ok(&["containers", "delete", "box"]);
    // The socket is the matter of another test.
    for left in containerd.left_behind() {
        if let Some(socket) = left.strip_prefix("socket ") {
            let _ = std::fs::remove_file(socket.split(' ').next().unwrap());
        }
    }
}

/// The record of a shim that a shell has killed while its container ran.
#[track_caller]
fn judge(record: &Value, shim: i32) {
    let evidence = &record["evidence"];
    assert_eq!(evidence["sender"]["comm"], "sh", "{record}");
    assert_eq!(evidence["shim_pid"], shim, "{record}");
    assert_eq!(record["process"]["pid"], shim, "{record}");
    assert_eq!(record["pod"]["name"], "train-0", "{record}");
    assert_eq!(record["name"], "worker", "{record}");
    let timeline = record["timeline"].to_string();
    assert!(
        timeline.contains("SIGKILL sent to the shim by pid"),
        "{record}"
    );
    let sentence = record["sentence"].as_str().unwrap();
    let whose = format!("The shim of container box (pid {shim}) was killed by pid ");
    assert!(sentence.starts_with(&whose), "{sentence}");
    assert!(
        sentence.contains("which ended the container, too"),
        "{sentence}"
    );
}

fn a_stranger_who_kills_the_shim_is_named(containerd: &Containerd) {
    if not_ours() {
        return;
    }
    let Some(traced) = Traced::new("shim_killed", containerd) else {
        return;
    };
    let pid = containerd.start_task("box", &POD, &["sleep", "600"]);
    traced.await_on();
    let shim = kill_shim(containerd);
    judge(&record(containerd, "HF173"), shim);
    eventually("the container ends", LIMIT, || {
        (!is_alive(pid)).then_some(())
    });
    forget(containerd);
    drop(traced);
}

fn it_is_known_of_a_time_without_containerd_too(containerd: &Containerd) {
    if not_ours() {
        return;
    }
    let Some(traced) = Traced::new("shim_killed", containerd) else {
        return;
    };
    let pid = containerd.start_task("box", &POD, &["sleep", "600"]);
    traced.await_on();
    containerd.kill_daemon();
    let shim = kill_shim(containerd);
    eventually("the shim is gone", LIMIT, || {
        (!is_alive(shim)).then_some(())
    });
    assert!(is_alive(pid), "nobody has asked for its end yet");
    containerd.start_daemon();
    judge(&record(containerd, "HF173"), shim);
    eventually("the container ends", LIMIT, || {
        (!is_alive(pid)).then_some(())
    });
    forget(containerd);
    drop(traced);
}

fn what_had_ended_before_keeps_its_status(containerd: &Containerd) {
    if not_ours() {
        return;
    }
    let script = "until test -e /now; do usleep 10000; done; exit 42";
    let pid = containerd.start_task("box", &POD, &["sh", "-c", script]);
    let now = format!("/proc/{pid}/root/now");
    containerd.kill_daemon();
    std::fs::write(now, "").unwrap();
    record(containerd, "HF101");
    let shim = kill_shim(containerd);
    eventually("the shim is gone", LIMIT, || {
        (!is_alive(shim)).then_some(())
    });
    containerd.start_daemon();
    let record = record(containerd, "HF173");
    assert_eq!(record["evidence"]["container_had_ended"], true, "{record}");
    assert_eq!(record["status"]["exited"], 42, "{record}");
    let timeline = record["timeline"].to_string();
    assert!(
        timeline.contains("the container had ended: exit code 42"),
        "{record}"
    );
    // No tracefs here: that is said, and nobody is accused.
    let findings = record["evidence"]["findings"].to_string();
    assert!(findings.contains("tracefs"), "{record}");
    let sentence = record["sentence"].as_str().unwrap();
    assert!(
        sentence.contains("who or what ended it is not known"),
        "{sentence}"
    );
    assert!(sentence.contains("had ended before"), "{sentence}");
    forget(containerd);
}

/// A cgroup for shims, in every hierarchy that can hold one.
struct ShimCgroup {
    path: String,
    folders: Vec<PathBuf>,
}

impl ShimCgroup {
    /// None, with a word on the terminal, where memory cannot be limited.
    fn new() -> Option<Self> {
        let path = format!("{}/shim", place::unique("holdfast-test-shims"));
        let mut folders = Vec::new();
        for hierarchy in leaks::hierarchies() {
            // A new one of cpuset can hold nobody.
            if hierarchy.ends_with("cpuset") {
                continue;
            }
            let folder = hierarchy.join(&path);
            std::fs::create_dir_all(&folder).unwrap();
            if hierarchy.join("cgroup.controllers").exists() {
                for parent in [&hierarchy, &folder.parent().unwrap().to_path_buf()] {
                    let _ = std::fs::write(parent.join("cgroup.subtree_control"), "+memory");
                }
            }
            folders.push(folder);
        }
        let made = Self {
            path: format!("/{path}"),
            folders,
        };
        if made.file("memory.limit_in_bytes", "memory.max").is_none() {
            skip("shim_killed", "no hierarchy limits memory here");
            return None;
        }
        Some(made)
    }

    /// The one of both files that is there, by its name in v1 and v2.
    fn file(&self, v1: &str, v2: &str) -> Option<PathBuf> {
        let of = |name: &str| {
            self.folders
                .iter()
                .map(|one| one.join(name))
                .find(|one| one.exists())
        };
        of(v1).or_else(|| of(v2))
    }

    /// Leaves as much as this beside what is in use.
    fn leave(&self, bytes: u64) {
        let usage = self
            .file("memory.usage_in_bytes", "memory.current")
            .unwrap();
        let usage: u64 = std::fs::read_to_string(usage)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let limit = self.file("memory.limit_in_bytes", "memory.max").unwrap();
        std::fs::write(limit, (usage + bytes).to_string()).unwrap();
    }
}

impl Drop for ShimCgroup {
    fn drop(&mut self) {
        for folder in &self.folders {
            // Whoever was in it may not be gone yet.
            leaks::remove_busy_folder(folder, Duration::from_secs(2));
            let _ = std::fs::remove_dir(folder.parent().unwrap());
        }
    }
}

fn a_shim_without_memory_is_no_riddle(containerd: &Containerd) {
    if not_ours() {
        return;
    }
    let Some(cgroup) = ShimCgroup::new() else {
        return;
    };
    let options = containerd.path("options.toml");
    std::fs::write(&options, format!("ShimCgroup = \"{}\"\n", cgroup.path)).unwrap();
    let options = options.to_str().unwrap();
    let flags = [&POD[..], &["--runtime-config-path", options]].concat();
    let pid = containerd.start_task("box", &flags, &["sleep", "600"]);
    let shim = Shim::of(containerd, "box").pid("box");
    // What would go on in its place.
    if let Some(keeper) = keeper_of(shim) {
        kill(Pid::from_raw(keeper), Signal::SIGKILL).unwrap();
    }
    cgroup.leave(1 << 20);
    // Requests that never come to their end: the shim keeps what it has of each.
    let (address, _) = address_in(&containerd.bundle("box"));
    let socket = address.trim_start_matches("unix://").to_owned();
    let half = vec![b'x'; 3 << 20];
    let mut clients = Vec::new();
    for _ in 0..16 {
        let Ok(mut client) = UnixStream::connect(&socket) else {
            break;
        };
        client
            .set_write_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let mut frame = (4u32 << 20).to_be_bytes().to_vec();
        frame.extend_from_slice(&[0, 0, 0, 1, 1, 0]);
        let _ = client
            .write_all(&frame)
            .and_then(|()| client.write_all(&half));
        clients.push(client);
    }
    let record = record(containerd, "HF173");
    assert!(!is_alive(shim));
    drop(clients);
    let oom = &record["evidence"]["oom"];
    assert_eq!(oom["victim_pid"], shim, "{record}");
    assert_eq!(oom["scope"], "cgroup", "{record}");
    let full = oom["cgroup"].as_str().unwrap();
    assert!(full.ends_with(&cgroup.path), "{record}");
    let sentence = record["sentence"].as_str().unwrap();
    assert!(
        sentence.contains("was killed by the kernel for want of memory: cgroup "),
        "{sentence}"
    );
    eventually("the container ends", LIMIT, || {
        (!is_alive(pid)).then_some(())
    });
    forget(containerd);
    drop(cgroup);
}
