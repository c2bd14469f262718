//! Incident 3 as a matrix: containerd lives in a mount namespace of its own (`MountFlags=` of its unit), is started again
//! into a new one while containers run, and a service of the node keeps a copy of the old one, perhaps with its working
//! directory in a container's root. When a container is gone, its root file system must be gone from every mount
//! namespace, and whoever keeps it alive nevertheless must be named.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use holdfast_integration::containerd::{Containerd, Extra, Version, peer};
use holdfast_integration::deadline::{eventually, within};
use holdfast_integration::leaks::is_alive;
use holdfast_integration::scratch::text;
use holdfast_integration::shim::{Shim, kill_for_good};
use holdfast_integration::{image, skip};

const LIMIT: Duration = Duration::from_secs(30);
const OURS: &str = "io.containerd.holdfast.v2";
const GO: &str = "io.containerd.runc.v2";

#[test]
fn slave_with_containerd_1_6() {
    matrix(Version::V1_6, "slave");
}

#[test]
fn slave_with_containerd_2_1() {
    matrix(Version::V2_1, "slave");
}

#[test]
fn private_with_containerd_2_1() {
    matrix(Version::V2_1, "private");
}

#[test]
fn shared_with_containerd_2_1() {
    matrix(Version::V2_1, "shared");
}

/// How a container comes to its end.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    /// Killed and deleted, as usual.
    Deleted,
    /// Its shim is killed; containerd cleans up.
    ShimKilled,
}

/// What a service of the node has of the shim's mount namespace.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Service {
    Nothing,
    /// A copy of it.
    Copy,
    /// And its working directory in the container's root.
    Inside,
}

/// A container of the matrix.
struct Cell {
    id: String,
    runtime: &'static str,
    end: End,
    service: Service,
    rootfs: PathBuf,
    /// Of the root file system.
    device: u64,
    shim: i32,
    process: Option<Child>,
}

impl Drop for Cell {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn start(containerd: &Containerd, runtime: &'static str, end: End, service: Service) -> Cell {
    let kind = if runtime == OURS { "ours" } else { "go" };
    let id = format!("{kind}-{end:?}-{service:?}").to_lowercase();
    containerd.remember(&id);
    let args = ["run", "--detach", "--null-io", "--runtime", runtime];
    containerd.ctr_ok(&[&args[..], &[image::NAME, &id, "sleep", "600"]].concat());
    let shim = Shim::of(containerd, &id).pid(&id);
    let rootfs = containerd.bundle(&id).join("rootfs");
    let seen_by_shim = format!("/proc/{shim}/root{}", text(&rootfs));
    let device = std::fs::metadata(seen_by_shim).unwrap().dev();
    let process = (service != Service::Nothing).then(|| {
        let folder = match service {
            Service::Inside => text(&rootfs),
            Service::Nothing | Service::Copy => "/".to_owned(),
        };
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--target", &shim.to_string()]);
        command.args(["unshare", "--mount", "--propagation", "private"]);
        let script = format!("cd {folder} && exec sleep 600");
        let process = command
            .args(["sh", "-c", &script])
            .stdin(Stdio::null())
            .spawn();
        let process = process.expect("start the service of the node");
        let pid = i32::try_from(process.id()).unwrap();
        eventually("the service has its copy", LIMIT, || {
            (name_of(pid) == "sleep").then_some(())
        });
        process
    });
    let cell = Cell {
        id,
        runtime,
        end,
        service,
        rootfs,
        device,
        shim,
        process,
    };
    assert!(!mounted(&cell.rootfs).is_empty(), "nothing is mounted");
    cell
}

fn name_of(pid: i32) -> String {
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    comm.trim().to_owned()
}

/// Mount namespaces in which something is mounted at a root file system, each by one process.
fn mounted(rootfs: &Path) -> Vec<(i32, String)> {
    let mut found = BTreeMap::new();
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    for pid in pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
        let Ok(namespace) = std::fs::read_link(format!("/proc/{pid}/ns/mnt")) else {
            continue;
        };
        let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        if mounts
            .lines()
            .any(|line| line.split(' ').nth(4) == Some(&text(rootfs)))
        {
            found.entry(namespace).or_insert((pid, name_of(pid)));
        }
    }
    found.into_values().collect()
}

/// Everything that the ledger says.
fn ledger(containerd: &Containerd) -> String {
    let files = std::fs::read_dir(containerd.path("ledger"))
        .into_iter()
        .flatten()
        .flatten();
    files
        .map(|file| {
            String::from_utf8_lossy(&std::fs::read(file.path()).unwrap_or_default()).into_owned()
        })
        .collect()
}

/// Ends a container and removes it.
fn end(containerd: &Containerd, cell: &Cell) -> Outcome {
    match cell.end {
        End::Deleted => {
            containerd.ctr_ok(&["tasks", "kill", "--signal", "KILL", &cell.id]);
            eventually("the container stops", LIMIT, || {
                (containerd.task(&cell.id)?.status == "STOPPED").then_some(())
            });
            containerd.ctr(&["tasks", "delete", &cell.id]);
        }
        End::ShimKilled => {
            kill_for_good(cell.shim);
            eventually("containerd has cleaned up", LIMIT, || {
                let gone = containerd
                    .task(&cell.id)
                    .is_none_or(|task| task.status != "RUNNING");
                (gone && !is_alive(cell.shim)).then_some(())
            });
            let _ = containerd.ctr(&["tasks", "delete", "--force", &cell.id]);
        }
    }
    containerd.ctr_ok(&["containers", "delete", &cell.id]);
    // What still goes gets a moment.
    within(Duration::from_secs(3), || {
        mounted(&cell.rootfs).is_empty().then_some(())
    });
    let mut kept: Vec<String> = mounted(&cell.rootfs)
        .into_iter()
        .map(|(pid, name)| format!("process {pid} ({name}): mounted"))
        .collect();
    if let Some(process) = &cell.process
        && std::fs::metadata(format!("/proc/{}/cwd", process.id()))
            .is_ok_and(|cwd| cwd.dev() == cell.device)
    {
        kept.push(format!(
            "process {} (sleep): working directory",
            process.id()
        ));
    }
    let said = ledger(containerd);
    Outcome {
        named: kept.iter().all(|keeper| said.contains(keeper)),
        accused: said.contains(&format!("{} is in use", text(&cell.rootfs))),
        kept,
    }
}

/// What became of a root file system.
struct Outcome {
    /// Who keeps it.
    kept: Vec<String>,
    /// All of them are in the ledger.
    named: bool,
    /// Somebody is in the ledger.
    accused: bool,
}

fn matrix(version: Version, propagation: &'static str) {
    if peer() {
        return skip("mount_leaks", "both shims are in it anyway");
    }
    let extra = Extra {
        own_mounts: Some(propagation),
        ..Extra::default()
    };
    let Some(containerd) = Containerd::start(version, "mount_leaks", &extra) else {
        return;
    };
    let mut wrong = Vec::new();
    for restarted in [false, true] {
        // A neighbour's shim stays in the namespace, as those of a node's other pods do.
        let neighbour = start(&containerd, OURS, End::Deleted, Service::Nothing);
        let mut cells = Vec::new();
        for runtime in [OURS, GO] {
            for (end, service) in [
                (End::Deleted, Service::Copy),
                (End::Deleted, Service::Inside),
                (End::ShimKilled, Service::Nothing),
                (End::ShimKilled, Service::Copy),
                (End::ShimKilled, Service::Inside),
            ] {
                cells.push(start(&containerd, runtime, end, service));
            }
        }
        if restarted {
            containerd.kill_daemon();
            containerd.start_daemon();
        }
        for cell in &cells {
            let outcome = end(&containerd, cell);
            let what = format!(
                "{version:?} {propagation}, containerd {}, service {:?}, {:?}, {}: {}{}",
                if restarted { "restarted" } else { "stayed" },
                cell.service,
                cell.end,
                if cell.runtime == OURS {
                    "holdfast"
                } else {
                    "containerd's own shim"
                },
                if outcome.kept.is_empty() {
                    "nothing is left".to_owned()
                } else {
                    outcome.kept.join(", ")
                },
                if outcome.accused {
                    " (in the ledger)"
                } else {
                    ""
                },
            );
            println!("{what}");
            // Named where it is kept, and nobody is accused where it is not.
            if cell.runtime == OURS
                && (!outcome.named || outcome.accused == outcome.kept.is_empty())
            {
                wrong.push(what);
            }
        }
        drop(cells);
        assert!(
            end(&containerd, &neighbour).kept.is_empty(),
            "the neighbour's own"
        );
    }
    // containerd's own shim, killed, leaves its socket for its next namesake to remove.
    for left in containerd.left_behind() {
        if let Some(socket) = left
            .strip_prefix("socket ")
            .filter(|left| left.contains(" of go-"))
        {
            let _ = std::fs::remove_file(socket.split(' ').next().unwrap());
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    containerd.assert_nothing_left();
}
