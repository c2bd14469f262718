//! The mount-leak incident: a daemon in a mount namespace of its own makes and removes mounts that the rest of the node
//! does not see, and other processes keep mounts of containers that are gone.

use std::collections::{BTreeMap, BTreeSet};

use crate::Node;
use crate::engine::daemons;
use crate::mountinfo::{self, Mount};
use crate::proc::{Process, named};
use crate::report::{Finding, Level, Report};

/// Where units are configured, the last word first.
const UNITS: [&str; 4] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

pub(crate) fn look(node: &Node, processes: &BTreeMap<u32, Process>, report: &mut Report) {
    let live_restore = has_live_restore(node);
    for daemon in ["containerd", "dockerd"] {
        private_namespace(node, daemon, processes, live_restore, report);
    }
    for (unit, daemon) in [("containerd", "containerd"), ("docker", "dockerd")] {
        unit_flags(node, unit, daemon, live_restore, report);
    }
    root_propagation(processes, report);
    leaked(node, processes, report);
}

/// docker's `live-restore`. containerd's containers always outlive it.
fn has_live_restore(node: &Node) -> bool {
    node.read("/etc/docker/daemon.json")
        .and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok())
        .is_some_and(|config| config["live-restore"] == true)
}

const WHY_PRIVATE: &str = "What the daemon mounts is not seen outside, and what is unmounted outside stays mounted inside. \
    Containers outlive the daemon; after its restart its new mount namespace does not have their mounts, so root file \
    systems stay busy, cannot be removed, and fill the disk.";

fn severity(daemon: &str, live_restore: bool) -> Level {
    // Containers of containerd outlive it always, those of docker with live-restore.
    if daemon == "containerd" || live_restore {
        Level::Problem
    } else {
        Level::Warning
    }
}

/// The node's mount namespace: that of pid 1, or our own where that cannot be seen.
fn host_namespace(node: &Node, processes: &BTreeMap<u32, Process>) -> Option<String> {
    processes
        .get(&1)
        .and_then(|init| init.link("ns/mnt"))
        .or_else(|| {
            let own = std::fs::read_link(node.path("/proc/self/ns/mnt")).ok()?;
            Some(own.to_string_lossy().into_owned())
        })
}

fn private_namespace(
    node: &Node,
    daemon: &str,
    processes: &BTreeMap<u32, Process>,
    live_restore: bool,
    report: &mut Report,
) {
    let Some(host) = host_namespace(node, processes) else {
        return;
    };
    for process in daemons(processes, daemon) {
        let Some(own) = process.link("ns/mnt") else {
            continue;
        };
        if own == host {
            report.fine(format!(
                "{daemon} (pid {}) is in the node's mount namespace",
                process.pid
            ));
            continue;
        }
        let root = mountinfo::parse(&process.read_file("mountinfo").unwrap_or_default())
            .into_iter()
            .find(|mount| mount.point == "/");
        let propagation = match &root {
            Some(root) if root.propagation.is_empty() => "private".to_owned(),
            Some(root) => root.propagation.join(" "),
            None => "unknown".to_owned(),
        };
        let mut evidence = vec![
            format!(
                "{daemon} is pid {}, in {own}; the node is in {host}",
                process.pid
            ),
            format!("propagation of its root: {propagation}"),
        ];
        if daemon == "dockerd" {
            evidence.push(format!("live-restore: {live_restore}"));
        }
        report.add(Finding {
            check: "private-mount-namespace",
            level: severity(daemon, live_restore),
            what: format!("{daemon} (pid {}) runs in a mount namespace of its own", process.pid),
            why: WHY_PRIVATE,
            todo: format!(
                "Remove MountFlags=, PrivateMounts=, PrivateTmp= and Protect…= from {daemon}'s unit and whatever else \
                 starts it with unshare; drain the node before the restart."
            ),
            evidence,
        });
    }
}

/// Whether mounts that are made on the node reach containers, and the other way round.
fn root_propagation(processes: &BTreeMap<u32, Process>, report: &mut Report) {
    let mounts = processes
        .get(&1)
        .and_then(|init| init.read_file("mountinfo"));
    let root = mountinfo::parse(&mounts.unwrap_or_default())
        .into_iter()
        .rfind(|mount| mount.point == "/");
    let Some(root) = root else {
        return;
    };
    if root
        .propagation
        .iter()
        .any(|one| one.starts_with("shared:"))
    {
        report.fine("the node's root is a shared mount");
        return;
    }
    report.add(Finding {
        check: "root-propagation",
        level: Level::Note,
        what: "the node's root is not a shared mount".to_owned(),
        why: "Volumes that a pod mounts for the node (CSI drivers, mountPropagation: Bidirectional) are not seen outside of it.",
        todo: "mount --make-rshared / early at boot; systemd does so.".to_owned(),
        evidence: Vec::new(),
    });
}

/// What the unit says, whether it runs or not.
fn unit_flags(node: &Node, unit: &str, daemon: &str, live_restore: bool, report: &mut Report) {
    let mut files = Vec::new();
    for folder in UNITS {
        let main = format!("{folder}/{unit}.service");
        if node.path(&main).is_file() {
            files.push(main);
        }
        let drop_ins = format!("{folder}/{unit}.service.d");
        if let Ok(entries) = std::fs::read_dir(node.path(&drop_ins)) {
            let names = entries.flatten().map(|entry| entry.file_name());
            files.extend(names.map(|name| format!("{drop_ins}/{}", name.to_string_lossy())));
        }
    }
    // Two of the folders are one where /lib is a link.
    let mut said = BTreeSet::new();
    let mut evidence = Vec::new();
    for file in files {
        for line in node.read(&file).unwrap_or_default().lines() {
            let line = line.trim();
            if is_private(line) && said.insert(line.to_owned()) {
                evidence.push(format!("{file}: {line}"));
            }
        }
    }
    if evidence.is_empty() {
        return;
    }
    report.add(Finding {
        check: "unit-mount-flags",
        level: severity(daemon, live_restore),
        what: format!("{unit}.service gives {daemon} a mount namespace of its own"),
        why: WHY_PRIVATE,
        todo: format!(
            "systemctl edit {unit}.service, clear these lines, drain the node, systemctl daemon-reload && systemctl \
             restart {unit}."
        ),
        evidence,
    });
}

/// Settings of `systemd.exec(5)` that make one, and that do not propagate back.
fn is_private(line: &str) -> bool {
    let Some((name, value)) = line.split_once('=') else {
        return false;
    };
    let value = value.trim();
    let on = |value: &str| matches!(value, "yes" | "true" | "on" | "1");
    match name.trim() {
        "MountFlags" => matches!(value, "slave" | "private"),
        "PrivateMounts"
        | "PrivateTmp"
        | "PrivateDevices"
        | "ProtectKernelTunables"
        | "ProtectKernelModules"
        | "ProtectControlGroups" => on(value),
        "ProtectHome" | "ProtectSystem" => {
            on(value) || matches!(value, "full" | "strict" | "read-only" | "tmpfs")
        }
        _ => false,
    }
}

/// Whether a mount point is a container's root file system, or in it, by the engines' customs.
fn is_containers(point: &str) -> bool {
    let inside = |from: &str, mark: &str| {
        point
            .split_once(from)
            .is_some_and(|(_, rest)| rest.split('/').any(|part| part == mark))
    };
    inside("/io.containerd.runtime.v2.task/", "rootfs")
        || inside("/io.containerd.runtime.v1.linux/", "rootfs")
        || inside("/docker/overlay2/", "merged")
        || inside("/containers/storage/overlay/", "merged")
}

/// Mounts of containers that the node has removed and somebody else still has.
fn leaked(node: &Node, processes: &BTreeMap<u32, Process>, report: &mut Report) {
    let mounts_of = |process: &Process| -> Vec<Mount> {
        mountinfo::parse(&process.read_file("mountinfo").unwrap_or_default())
    };
    let Some(init) = processes.get(&1) else {
        return;
    };
    let host = host_namespace(node, processes);
    let devices: BTreeSet<String> = mounts_of(init)
        .into_iter()
        .map(|mount| mount.device)
        .collect();
    // One reading for each namespace, however many processes it has.
    let mut namespaces: BTreeMap<String, Vec<&Process>> = BTreeMap::new();
    for process in processes.values() {
        if let Some(namespace) = process.link("ns/mnt")
            && Some(&namespace) != host.as_ref()
        {
            namespaces.entry(namespace).or_default().push(process);
        }
    }
    let mut evidence = Vec::new();
    for (namespace, holders) in &namespaces {
        let Some(first) = holders.first() else {
            continue;
        };
        let gone: Vec<Mount> = mounts_of(first)
            .into_iter()
            .filter(|mount| is_containers(&mount.point) && !devices.contains(&mount.device))
            .collect();
        for mount in gone {
            evidence.push(format!(
                "{} ({}, device {}) in {namespace}, held by {}",
                mount.point,
                mount.kind,
                mount.device,
                named(holders.iter().copied())
            ));
        }
    }
    if evidence.is_empty() {
        report.fine("no mount of a removed container lives on in another mount namespace");
        return;
    }
    report.add(Finding {
        check: "leaked-mounts",
        level: Level::Problem,
        what: format!(
            "{} mounts of containers that the node has removed live on in other processes' mount namespaces",
            evidence.len()
        ),
        why: "Their layers, volumes and devices stay in use: deletions fail with 'device or resource busy', disks fill, \
              block devices cannot be detached.",
        todo: "Restart the named processes, or unmount there: nsenter -t PID -m umount -l MOUNT. Then remove what gave them \
               copies: a private mount namespace with the node's root, or a hostPath without HostToContainer propagation."
            .to_owned(),
        evidence,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_make_a_namespace() {
        for line in [
            "MountFlags=slave",
            "MountFlags = private",
            "PrivateTmp=true",
            "ProtectSystem=full",
        ] {
            assert!(is_private(line), "{line}");
        }
        for line in [
            "MountFlags=shared",
            "MountFlags=",
            "PrivateTmp=no",
            "#MountFlags=slave",
            "ProtectSystem=no",
        ] {
            assert!(!is_private(line), "{line}");
        }
    }

    #[test]
    fn roots_of_containers() {
        assert!(is_containers(
            "/run/containerd/io.containerd.runtime.v2.task/k8s.io/1/rootfs"
        ));
        assert!(is_containers(
            "/run/containerd/io.containerd.runtime.v2.task/k8s.io/1/rootfs/proc"
        ));
        assert!(is_containers("/var/lib/docker/overlay2/abc/merged"));
        assert!(!is_containers(
            "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/1/shm"
        ));
        assert!(!is_containers("/home/docker/overlay2"));
    }
}
