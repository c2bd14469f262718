//! The stuck-init incident: a user over `fs.pipe-user-pages-soft` gets pipes of two pages or one, and what is written into
//! them before anybody reads waits for ever.

use std::collections::{BTreeMap, BTreeSet};

use crate::Node;
use crate::proc::{Process, named};
use crate::report::{Finding, Level, Report};

/// The kernel's default: 64 MiB of pipes for each user.
const DEFAULT: u64 = 16384;
/// Pages of a new pipe.
const PAGES: u64 = 16;
/// Warn from this part of the limit on.
const NEAR_PERCENT: u64 = 75;

const WHY: &str = "Beyond the limit a user's new pipes hold one or two pages instead of sixteen. Programs that write more \
    before anybody reads then hang: older runc in `runc init`, log and health-check pipelines.";

pub(crate) fn look(node: &Node, processes: &BTreeMap<u32, Process>, report: &mut Report) {
    let Some(limit) = node
        .read("/proc/sys/fs/pipe-user-pages-soft")
        .and_then(|text| text.trim().parse::<u64>().ok())
    else {
        return;
    };
    if limit == 0 {
        report.fine("fs.pipe-user-pages-soft: no limit");
        return;
    }
    if limit < DEFAULT {
        report.add(Finding {
            check: "pipe-limit",
            level: Level::Warning,
            what: format!("fs.pipe-user-pages-soft is {limit}, below the kernel's default of {DEFAULT}"),
            why: WHY,
            todo: format!("sysctl fs.pipe-user-pages-soft={DEFAULT}, and look in /etc/sysctl.d for what lowered it."),
            evidence: Vec::new(),
        });
    }
    let users = usage(processes);
    let mut near = Vec::new();
    for (uid, (pipes, greatest)) in &users {
        let pages = pipes * PAGES;
        if pages * 100 >= limit * NEAR_PERCENT {
            near.push(format!(
                "uid {uid}: about {pages} of {limit} pages in {pipes} pipes; most in {}",
                named(greatest.iter().copied())
            ));
        }
    }
    if near.is_empty() {
        report.fine(format!("nobody is near fs.pipe-user-pages-soft ({limit})"));
        return;
    }
    report.add(Finding {
        check: "pipe-users",
        level: Level::Warning,
        what: format!("{} users are near or over fs.pipe-user-pages-soft ({limit})", near.len()),
        why: WHY,
        todo: "Find out why the named processes have so many pipes, or raise the limit. Holdfast itself fills no pipe that \
               nobody reads."
            .to_owned(),
        evidence: near,
    });
}

/// Of each user the number of pipes, and the three processes with most of them. An estimate: a pipe counts for the user
/// of whoever has it open, with the size of a new one.
fn usage(processes: &BTreeMap<u32, Process>) -> BTreeMap<u32, (u64, Vec<&Process>)> {
    let mut pipes: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
    let mut counts: BTreeMap<u32, Vec<(usize, &Process)>> = BTreeMap::new();
    for process in processes.values() {
        let own: BTreeSet<String> = process
            .descriptors()
            .into_iter()
            .filter(|target| target.starts_with("pipe:"))
            .collect();
        if own.is_empty() {
            continue;
        }
        let Some(uid) = process.uid() else {
            continue;
        };
        counts.entry(uid).or_default().push((own.len(), process));
        pipes.entry(uid).or_default().extend(own);
    }
    pipes
        .into_iter()
        .map(|(uid, pipes)| {
            let mut greatest = counts.remove(&uid).unwrap_or_default();
            greatest.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
            let greatest = greatest.into_iter().take(3).map(|(_, process)| process);
            (uid, (pipes.len() as u64, greatest.collect()))
        })
        .collect()
}
