//! Which cgroups the node has, and whether everybody agrees on who makes them.

use std::collections::BTreeMap;

use crate::proc::Process;
use crate::report::{Finding, Level, Report};
use crate::{Node, engine, mountinfo};

/// How the hierarchies are mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Unified,
    Hybrid,
    Legacy,
    None,
}

pub(crate) fn look(node: &Node, processes: &BTreeMap<u32, Process>, report: &mut Report) {
    let mounts = mountinfo::parse(&node.read("/proc/1/mountinfo").unwrap_or_default());
    let v2 = mounts.iter().any(|mount| mount.kind == "cgroup2");
    let v1 = mounts.iter().any(|mount| mount.kind == "cgroup");
    let mode = match (v1, v2) {
        (false, true) => Mode::Unified,
        (true, true) => Mode::Hybrid,
        (true, false) => Mode::Legacy,
        (false, false) => Mode::None,
    };
    let systemd = node.path("/run/systemd/system").is_dir();
    let driver = if systemd { "systemd" } else { "cgroupfs" };
    match mode {
        Mode::Unified => report.fine(format!("cgroup v2; the driver to use is {driver}")),
        Mode::Hybrid | Mode::Legacy => report.add(Finding {
            check: "cgroup-mode",
            level: Level::Note,
            what: format!(
                "cgroups are {}; the driver to use is {driver}",
                if mode == Mode::Hybrid { "v1 with v2 beside it (hybrid)" } else { "v1" }
            ),
            why: "v1 kills a container's processes one by one, freezes in a way that can hang, and has no peak of memory; \
                  Kubernetes no longer develops for it.",
            todo: "Boot with systemd.unified_cgroup_hierarchy=1 when the node is next renewed.".to_owned(),
            evidence: Vec::new(),
        }),
        Mode::None => report.add(Finding {
            check: "cgroup-mode",
            level: Level::Problem,
            what: "no cgroup file system is mounted".to_owned(),
            why: "No container can be created.",
            todo: "mount -t cgroup2 none /sys/fs/cgroup".to_owned(),
            evidence: Vec::new(),
        }),
    }
    drivers(node, processes, systemd, report);
}

/// The kubelet's driver and containerd's must be the same, and systemd's where systemd runs.
fn drivers(node: &Node, processes: &BTreeMap<u32, Process>, systemd: bool, report: &mut Report) {
    let kubelet = node.read("/var/lib/kubelet/config.yaml").and_then(|text| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("cgroupDriver:"))?;
        Some(line.trim().trim_matches(['"', '\'']).to_owned())
    });
    let runtimes = engine::runtimes(node, processes);
    let mut disagreeing = Vec::new();
    for runtime in &runtimes {
        let containerds = if runtime.systemd_cgroup {
            "systemd"
        } else {
            "cgroupfs"
        };
        if kubelet
            .as_deref()
            .is_some_and(|kubelet| kubelet != containerds)
        {
            disagreeing.push(format!(
                "runtime {} of containerd: {containerds}",
                runtime.name
            ));
        } else if kubelet.is_none() && systemd && !runtime.systemd_cgroup {
            disagreeing.push(format!(
                "runtime {} of containerd: cgroupfs, although systemd manages the cgroups",
                runtime.name
            ));
        }
    }
    if disagreeing.is_empty() {
        return;
    }
    if let Some(kubelet) = &kubelet {
        disagreeing.insert(0, format!("kubelet: {kubelet}"));
    }
    report.add(Finding {
        check: "cgroup-driver",
        level: if kubelet.is_some() { Level::Problem } else { Level::Warning },
        what: "not everybody uses the same cgroup driver".to_owned(),
        why: "Two managers of one tree undo each other's limits; after systemctl daemon-reload containers lose devices \
              (GPUs) and limits.",
        todo: "Set SystemdCgroup = true in the runtime's options of containerd, and cgroupDriver: systemd for the kubelet."
            .to_owned(),
        evidence: disagreeing,
    });
}
