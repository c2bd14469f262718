//! Sockets that nobody listens on, and shims that nobody speaks to any more.

use std::collections::{BTreeMap, BTreeSet};

use crate::Node;
use crate::engine::daemons;
use crate::proc::{Process, named};
use crate::report::{Finding, Level, Report};

/// Where every shim since containerd 1.4 has its socket.
const SOCKETS: &str = "/run/containerd/s";

pub(crate) fn look(node: &Node, processes: &BTreeMap<u32, Process>, report: &mut Report) {
    stale_sockets(node, report);
    orphans(processes, report);
}

fn stale_sockets(node: &Node, report: &mut Report) {
    let Some(table) = node.read("/proc/net/unix") else {
        return;
    };
    let bound: BTreeSet<&str> = table
        .lines()
        .filter_map(|line| line.split_ascii_whitespace().nth(7))
        .collect();
    let Ok(entries) = std::fs::read_dir(node.path(SOCKETS)) else {
        return;
    };
    let mut stale: Vec<String> = entries
        .flatten()
        .map(|entry| format!("{SOCKETS}/{}", entry.file_name().to_string_lossy()))
        .filter(|path| !bound.contains(path.as_str()))
        .collect();
    stale.sort();
    if stale.is_empty() {
        report.fine("every shim's socket has its listener");
        return;
    }
    report.add(Finding {
        check: "stale-sockets",
        level: Level::Note,
        what: format!("{} sockets of shims have no listener", stale.len()),
        why: "Their shims went without removing them, as a rule because they were killed. They hold no container, and a shim that is started for the same one takes its address over.",
        todo: format!("rm the named files in {SOCKETS}."),
        evidence: stale,
    });
}

fn orphans(processes: &BTreeMap<u32, Process>, report: &mut Report) {
    let shims: Vec<&Process> = processes
        .values()
        .filter(|process| process.is_shim())
        .collect();
    let orphaned: Vec<&Process> = shims
        .iter()
        .copied()
        .filter(|shim| {
            shim.link("cwd")
                .is_some_and(|cwd| cwd.ends_with(" (deleted)"))
        })
        .collect();
    if orphaned.is_empty() {
        if !shims.is_empty() {
            report.fine(format!("{} shims, each with its bundle", shims.len()));
        }
    } else {
        let evidence = orphaned
            .iter()
            .map(|shim| {
                let keeper = processes
                    .get(&shim.parent)
                    .filter(|parent| parent.is_keeper())
                    .map(|keeper| keeper.pid);
                let children: Vec<&Process> = processes
                    .values()
                    .filter(|process| process.pid != shim.pid)
                    .filter(|process| process.parent == shim.pid || Some(process.parent) == keeper)
                    .collect();
                let of = if children.is_empty() {
                    "no container".to_owned()
                } else {
                    named(children)
                };
                let bundle = shim.link("cwd").unwrap_or_default();
                format!(
                    "pid {} ({}) with {of}; its bundle was {bundle}",
                    shim.pid, shim.comm
                )
            })
            .collect();
        report.add(Finding {
            check: "orphaned-shims",
            level: Level::Problem,
            what: format!("{} shims have lost their bundle", orphaned.len()),
            why: "containerd does not know them any more: their containers run on, use memory and GPUs, and no pod owns them.",
            todo: "If the container is not wanted, kill the shim's children and then the shim; one whose parent is holdfast-keeper ends with that, killed before it.".to_owned(),
            evidence,
        });
    }
    if !shims.is_empty() && daemons(processes, "containerd").next().is_none() {
        report.add(Finding {
            check: "unsupervised-shims",
            level: Level::Warning,
            what: format!("{} shims run, and no containerd", shims.len()),
            why: "Their containers go on, but exits, probes and deletions wait until containerd is back.",
            todo: "Start containerd.".to_owned(),
            evidence: vec![named(shims)],
        });
    }
}
