//! The kernel: its version, and features that show in files.

use crate::Node;
use crate::report::{Finding, Level, Report};

/// What Linux must be for Holdfast at all: `mount_setattr`, `CLONE_INTO_CGROUP`, `close_range`.
const NEEDED: (u32, u32) = (5, 12);

/// Since when the kernel has it, and what is lost without.
const FEATURES: [((u32, u32), &str, &str); 4] = [
    (
        (5, 14),
        "cgroup.kill",
        "all processes of a container are killed one by one, which a fork bomb can outrun for a while (cgroup v2)",
    ),
    (
        (5, 19),
        "memory.peak",
        "the peak of memory is not known for a container that ran out of it (cgroup v2)",
    ),
    (
        (6, 3),
        "detached ID-mapped overlay mounts",
        "ID-mapped root file systems need a copy of the mapping for each layer",
    ),
    (
        (6, 9),
        "PIDFD_THREAD",
        "nothing today; the kernel is old enough to ask for its end of support",
    ),
];

pub(crate) fn look(node: &Node, report: &mut Report) {
    let release = node.read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    match version(release) {
        None => report.add(Finding {
            check: "kernel",
            level: Level::Warning,
            what: format!("the kernel's version {release:?} cannot be read"),
            why: "What the kernel lacks is told by its version.",
            todo: "Is /proc mounted?".to_owned(),
            evidence: Vec::new(),
        }),
        Some(has) if has < NEEDED => report.add(Finding {
            check: "kernel",
            level: Level::Problem,
            what: format!("Linux {release} is older than {}.{}", NEEDED.0, NEEDED.1),
            why: "Holdfast starts containers with clone3 into their cgroup and builds their mounts detached. A \
                  distribution may have brought these back to an older version; otherwise no container starts.",
            todo: format!(
                "Run `holdfast run` once with a small bundle to see; else upgrade to Linux {}.{} or newer.",
                NEEDED.0, NEEDED.1
            ),
            evidence: Vec::new(),
        }),
        Some(has) => {
            report.fine(format!("Linux {release} has what Holdfast needs"));
            let missing: Vec<String> = FEATURES
                .iter()
                .filter(|(since, _, _)| has < *since)
                .map(|((major, minor), name, lost)| {
                    format!("{name} (Linux {major}.{minor}): without it {lost}")
                })
                .collect();
            if !missing.is_empty() {
                report.add(Finding {
                    check: "kernel-features",
                    level: Level::Note,
                    what: format!("Linux {release} lacks {} of {} features", missing.len(), FEATURES.len()),
                    why: "Holdfast does without them, with what is lost named for each.",
                    todo: "Nothing, unless one of the losses matters to you.".to_owned(),
                    evidence: missing,
                });
            }
        }
    }
    file_systems(node, report);
    limits(node, report);
}

/// The two numbers a release begins with.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn file_systems(node: &Node, report: &mut Report) {
    let Some(known) = node.read("/proc/filesystems") else {
        return;
    };
    let has = |name: &str| known.split_whitespace().any(|word| word == name);
    if has("overlay") {
        report.fine("overlay is known to the kernel");
    } else {
        report.add(Finding {
            check: "overlay",
            level: Level::Warning,
            what: "the kernel does not know overlay, or its module is not loaded yet".to_owned(),
            why: "containerd's usual snapshotter needs it; without it images are copied whole.",
            todo: "modprobe overlay, and have it loaded at boot (modules-load.d).".to_owned(),
            evidence: Vec::new(),
        });
    }
    let actions = node.read("/proc/sys/kernel/seccomp/actions_avail");
    match actions {
        Some(actions) if actions.contains("user_notif") => {
            report.fine("seccomp filters with notification");
        }
        Some(_) | None => report.add(Finding {
            check: "seccomp",
            level: Level::Warning,
            what: "seccomp filters, or their notification, are not available".to_owned(),
            why: "A container with a seccomp profile cannot be created; Kubernetes asks for one by default.",
            todo: "Use a kernel with CONFIG_SECCOMP_FILTER.".to_owned(),
            evidence: Vec::new(),
        }),
    }
}

/// Limits that stop containers when they are reached.
fn limits(node: &Node, report: &mut Report) {
    let user = node.read("/proc/sys/user/max_user_namespaces");
    if user.is_some_and(|text| text.trim() == "0") {
        report.add(Finding {
            check: "user-namespaces",
            level: Level::Note,
            what: "user.max_user_namespaces is 0".to_owned(),
            why: "Pods with hostUsers: false cannot be created on this node.",
            todo: "sysctl user.max_user_namespaces=15000, if such pods are wanted.".to_owned(),
            evidence: Vec::new(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn releases_of_distributions() {
        assert_eq!(version("6.18.44-fc-v657"), Some((6, 18)));
        assert_eq!(version("5.14.0-427.el9.x86_64"), Some((5, 14)));
        assert_eq!(version("6.1+"), Some((6, 1)));
        assert_eq!(version(""), None);
        assert_eq!(version("six"), None);
    }
}
