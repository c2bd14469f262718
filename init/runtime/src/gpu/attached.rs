//! Whether running containers may still open their GPUs.
//!
//! A device node in a container is of no use once the rule that allows it is gone from the cgroup: that is what a
//! `systemctl daemon-reload` does to rules that were written behind systemd's back, and the job inside sees "Unknown
//! Error" from NVML. Looked at is every process of the node whose root has GPU nodes, whoever made its container.
//!
//! The question is put to the kernel itself: a process joins the container's device cgroup and asks `faccessat(2)`,
//! which the device controller answers without the driver being called. It ends at once.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use holdfast_gpu::check::{Finding, Level};
use nix::unistd::{AccessFlags, access};

/// What the process that asks is called with; nothing a person types.
pub(crate) const PROBE: &str = "--probe";

/// A container with GPU nodes.
#[derive(Debug)]
struct Attached {
    /// The first of its processes.
    pid: i32,
    /// Its device cgroup.
    cgroup: PathBuf,
    /// The nodes, as this process sees them.
    nodes: Vec<PathBuf>,
}

/// What is found on this node.
pub(crate) fn check() -> Vec<Finding> {
    let containers = find();
    let mut bad = Vec::new();
    for container in &containers {
        match ask(container) {
            Ok(denied) if denied.is_empty() => {}
            Ok(denied) => bad.push(Finding::bad(
                "containers",
                Level::Failure,
                format!(
                    "the container of pid {} (cgroup {}) may no longer open {}",
                    container.pid,
                    container.cgroup.display(),
                    denied.join(", ")
                ),
                "its rules were taken away, by a reload of systemd most likely: start it anew, with device-rules = \
                 \"spec\" in [holdfast] of config.toml, or in a CDI mode",
            )),
            Err(why) => bad.push(Finding::bad(
                "containers",
                Level::Warning,
                format!("the rules of pid {} cannot be asked for: {why}", container.pid),
                "run this as root on the node, in its own namespaces",
            )),
        }
    }
    if bad.is_empty() {
        let text = format!(
            "{} running containers have GPUs and may use them",
            containers.len()
        );
        bad.push(Finding::ok("containers", text));
    }
    bad
}

/// One process of every mount namespace but ours that has GPU nodes.
fn find() -> Vec<Attached> {
    let own = fs::read_link("/proc/self/ns/mnt").unwrap_or_default();
    let mut found: BTreeMap<(PathBuf, PathBuf), Attached> = BTreeMap::new();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<i32> = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    for pid in pids {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let Ok(namespace) = fs::read_link(proc.join("ns/mnt")) else {
            continue;
        };
        if namespace == own {
            continue;
        }
        let Some(cgroup) = device_cgroup(&proc) else {
            continue;
        };
        let key = (namespace, cgroup.clone());
        if found.contains_key(&key) {
            continue;
        }
        let nodes = gpu_nodes(&proc.join("root/dev"));
        if !nodes.is_empty() {
            found.insert(key, Attached { pid, cgroup, nodes });
        }
    }
    found.into_values().collect()
}

/// `nvidiactl`, `nvidia0`, … Nodes that few programs open are left out.
fn gpu_nodes(dev: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dev).into_iter().flatten().flatten();
    let mut nodes: Vec<PathBuf> = entries
        .filter(|entry| {
            let name = entry.file_name();
            let rest = name.to_str().and_then(|name| name.strip_prefix("nvidia"));
            rest.is_some_and(|rest| {
                rest == "ctl" || (!rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
            }) && entry.file_type().is_ok_and(|kind| kind.is_char_device())
        })
        .map(|entry| entry.path())
        .collect();
    nodes.sort();
    nodes
}

/// The folder of the cgroup whose device rules hold for a process.
fn device_cgroup(proc: &Path) -> Option<PathBuf> {
    let text = fs::read_to_string(proc.join("cgroup")).ok()?;
    let mut unified = None;
    for line in text.lines() {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let path = path.trim_start_matches('/');
        if controllers.split(',').any(|one| one == "devices") {
            return Some(Path::new("/sys/fs/cgroup").join(controllers).join(path));
        }
        if controllers.is_empty() {
            unified = Some(Path::new("/sys/fs/cgroup").join(path));
        }
    }
    unified
}

/// The nodes that may not be opened there.
fn ask(container: &Attached) -> Result<Vec<String>, String> {
    let mut arguments: Vec<OsString> = vec!["gpu".into(), "check".into(), PROBE.into()];
    arguments.push(container.cgroup.join("cgroup.procs").into());
    arguments.extend(container.nodes.iter().map(OsString::from));
    let output = Command::new("/proc/self/exe")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(str::to_owned)
        .collect())
}

/// The process that asks: joins the cgroup behind `procs`, and prints the names of the nodes it may not open.
pub(crate) fn probe(procs: &Path, nodes: &[PathBuf]) -> Result<String, String> {
    let joined = fs::OpenOptions::new()
        .write(true)
        .open(procs)
        .and_then(|mut file| file.write_all(b"0"));
    joined.map_err(|error| format!("{}: {error}", procs.display()))?;
    let mut denied = String::new();
    for node in nodes {
        // Another error: it may have gone meanwhile, which is another question.
        let answer = access(node, AccessFlags::R_OK | AccessFlags::W_OK);
        if answer == Err(nix::errno::Errno::EPERM) {
            let name = node.file_name().unwrap_or_default().to_string_lossy();
            denied.push_str(&format!("/dev/{name}\n"));
        }
    }
    Ok(denied)
}
