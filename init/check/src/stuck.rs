//! Processes of containers that cannot go on.

use std::collections::BTreeMap;

use crate::Node;
use crate::proc::{Process, is_in_container};
use crate::report::{Finding, Level, Report};

pub(crate) fn look(node: &Node, processes: &BTreeMap<u32, Process>, report: &mut Report) {
    let asleep: Vec<&Process> = processes
        .values()
        .filter(|process| process.state == 'D' && is_in_container(process, processes))
        .collect();
    if !asleep.is_empty() {
        // Everybody who waits for a disk is in state D for a moment.
        std::thread::sleep(node.patience);
    }
    let (mut stuck, mut frozen) = (Vec::new(), Vec::new());
    for process in asleep {
        let still = process.again().filter(|again| again.state == 'D');
        let Some(process) = still else {
            continue;
        };
        let function = process.read_file("wchan").unwrap_or_default();
        let function = function.trim();
        let line = format!(
            "pid {} ({}), in kernel function {}",
            process.pid,
            process.comm,
            if function.is_empty() || function == "0" {
                "unknown"
            } else {
                function
            }
        );
        if is_frozen(node, &process) {
            frozen.push(line);
        } else {
            stuck.push(line);
        }
    }
    if stuck.is_empty() {
        report.fine("no process of a container is stuck in the kernel");
    } else {
        report.add(Finding {
            check: "stuck-processes",
            level: Level::Problem,
            what: format!("{} processes of containers are stuck in the kernel (state D)", stuck.len()),
            why: "No signal reaches them, SIGKILL neither: their pods stay in Terminating, and what they hold stays held.",
            todo: "The function tells what they wait for: a dead NFS or FUSE server, a disk, a driver. Repair that; else only \
                   a reboot helps."
                .to_owned(),
            evidence: stuck,
        });
    }
    if !frozen.is_empty() {
        report.add(Finding {
            check: "frozen-processes",
            level: Level::Note,
            what: format!("{} processes of containers are frozen", frozen.len()),
            why: "Their container is paused; a freeze that nobody takes back looks like a hang.",
            todo: "ctr tasks resume, if nobody paused it on purpose.".to_owned(),
            evidence: frozen,
        });
    }
}

/// Whether its cgroup is frozen: its state is D then on cgroup v1, in whatever function it slept before.
fn is_frozen(node: &Node, process: &Process) -> bool {
    let cgroups = process.read_file("cgroup").unwrap_or_default();
    cgroups.lines().any(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            return false;
        };
        let says = |file: &str, word: &str| {
            let text = node
                .read(&format!("/sys/fs/cgroup/{file}"))
                .unwrap_or_default();
            text.lines().any(|line| line == word)
        };
        if controllers == "freezer" {
            says(&format!("freezer{path}/freezer.state"), "FROZEN")
        } else {
            controllers.is_empty()
                && says(
                    &format!("{}/cgroup.events", path.trim_start_matches('/')),
                    "frozen 1",
                )
        }
    })
}
