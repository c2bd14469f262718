//! What records and explains ends: journald, the signal trace, the ledger.

use holdfast_record::ledger::{Ledger, Query};
use holdfast_record::witness::Unwatched;
use nix::sys::statvfs::statvfs;

use crate::Node;
use crate::report::{Finding, Level, Report};

/// Less than this is too little for the ledger and its neighbours.
const LITTLE: u64 = 64 << 20;

pub(crate) fn look(node: &Node, report: &mut Report) {
    journald(node, report);
    trace(node, report);
    ledger(node, report);
}

fn journald(node: &Node, report: &mut Report) {
    let sockets = [&node.journald.stream, &node.journald.datagram];
    let missing: Vec<String> = sockets
        .into_iter()
        .filter(|path| !path.exists())
        .map(|path| format!("{} does not exist", path.display()))
        .collect();
    if missing.is_empty() {
        report.fine("journald takes our words");
        return;
    }
    report.add(Finding {
        check: "journald",
        level: Level::Note,
        what: "journald does not run here".to_owned(),
        why: "The words of shims go to the file stderr.log beside the ledger, and errors to the kernel's log, instead; \
              records are in the ledger alone.",
        todo: "Nothing, if this node has no systemd. Else: systemctl status systemd-journald.".to_owned(),
        evidence: missing,
    });
}

fn trace(node: &Node, report: &mut Report) {
    match node.witness.check() {
        Ok(()) => report.fine("the kernel records who sends signals"),
        Err(Unwatched::NotSetUp(_)) => {
            report.fine("tracefs is there; the first shim will have senders of signals recorded");
        }
        Err(error @ (Unwatched::NoTracefs(_) | Unwatched::Off | Unwatched::Io { .. })) => {
            report.add(Finding {
                check: "tracefs",
                level: Level::Warning,
                what: error.to_string(),
                why: "When somebody's kill -9 ends a container, nobody will be able to say whose it was.",
                todo: "mount -t tracefs tracefs /sys/kernel/tracing (systemd does so: systemctl status \
                       sys-kernel-tracing.mount). A kernel in lockdown does not allow it."
                    .to_owned(),
                evidence: Vec::new(),
            });
        }
    }
}

fn ledger(node: &Node, report: &mut Report) {
    // The folder itself is made with the first record; what holds it is there before.
    let place = node.ledger.ancestors().find(|path| path.is_dir());
    if let Some(place) = place
        && let Ok(space) = statvfs(place)
    {
        let free = space.blocks_available() * space.fragment_size();
        if free < LITTLE || space.files() > 0 && space.files_available() < 16 {
            report.add(Finding {
                check: "ledger-space",
                level: Level::Problem,
                what: format!(
                    "{} MiB and {} inodes are left for the ledger in {}",
                    free >> 20,
                    space.files_available(),
                    place.display()
                ),
                why: "Ends that cannot be recorded cannot be explained; journald still gets them where it runs.",
                todo: "Make room there; the ledger itself never takes more than 16 MiB.".to_owned(),
                evidence: Vec::new(),
            });
        } else {
            report.fine(format!("{} MiB are left for the ledger", free >> 20));
        }
    }
    match Ledger::new(&node.ledger).read(&Query::default()) {
        Ok(page) if page.damaged > 0 => report.add(Finding {
            check: "ledger",
            level: Level::Note,
            what: format!("{} of {} lines of the ledger are damaged", page.damaged, page.damaged + page.records.len()),
            why: "The disk was full, or the node lost its power, while they were written. The others are not affected.",
            todo: "Nothing; they go with their segment.".to_owned(),
            evidence: Vec::new(),
        }),
        Ok(page) => report.fine(format!("the ledger has {} records", page.records.len())),
        Err(error) => report.add(Finding {
            check: "ledger",
            level: Level::Warning,
            what: format!("{error}"),
            why: "`holdfast why` has nothing to tell.",
            todo: "holdfast check and why are for root; else look at the folder's permissions.".to_owned(),
            evidence: std::error::Error::source(&error).map(ToString::to_string).into_iter().collect(),
        }),
    }
}
