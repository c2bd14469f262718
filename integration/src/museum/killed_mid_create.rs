//! The runtime is killed in the middle of create, as the OOM killer does. Nothing of the container
//! may be left, and its name must be free.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Outcome, Seen, Side, Stage, within};
use crate::fault::Fault;
use crate::leaks;

/// Every moment twice: the killer and the runtime race.
const ROUNDS: usize = 2;

pub(super) fn visit(stage: &Stage) -> Outcome {
    let containerd = &stage.containerd;
    let mut failed = 0;
    let mut last = String::new();
    let namespace = &containerd.namespace;
    let state = Path::new(match stage.side {
        Side::Theirs => "/run/containerd/runc",
        Side::Ours => "/run/holdfast",
    });
    let hierarchies = leaks::hierarchies();
    let hierarchy = hierarchies
        .iter()
        .find(|path| path.ends_with("pids"))
        .or(hierarchies.first())
        .ok_or("no cgroups here")?;
    let cgroup = hierarchy.join(namespace).join("box");
    // Before anything is done, with a state, with a cgroup, with a process in it.
    let moments = [
        PathBuf::from("/"),
        state.join(namespace).join("box"),
        cgroup.clone(),
        cgroup.join("cgroup.procs"),
    ];
    let all = moments.len() * ROUNDS;
    for moment in moments.iter().cycle().take(all) {
        stage.order("create", Fault::Die(moment.clone()));
        let answer = stage.run(
            "box",
            &["--null-io"],
            &["sleep", "600"],
            Duration::from_secs(15),
        );
        stage.call_off("create");
        if answer.code == Some(0) {
            containerd.end_task("box");
            continue;
        }
        failed += 1;
        last = answer.said;
        let deleted = stage.ctr(&["containers", "delete", "box"], Duration::from_secs(10));
        if deleted.code != Some(0) {
            last = deleted.said;
        }
    }
    if failed == 0 {
        return Err("create was always faster than its killer".to_owned());
    }
    // Sockets are another matter: a namesake takes them over.
    let left = || -> Vec<String> {
        let mut left = containerd.left_behind();
        left.retain(|one| !one.starts_with("socket "));
        left
    };
    let clean = within(Duration::from_secs(5), || left().is_empty().then_some(()));
    let left = left();
    let again = stage.run(
        "box",
        &["--null-io"],
        &["sleep", "600"],
        Duration::from_secs(15),
    );
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for one in &left {
        let kind = one.split(' ').next().unwrap_or_default();
        *kinds.entry(kind).or_default() += 1;
    }
    let kinds: Vec<String> = kinds
        .iter()
        .map(|(kind, count)| format!("{count} × {kind}"))
        .collect();
    let rest = if kinds.is_empty() {
        "nothing left".to_owned()
    } else {
        format!("left: {}", kinds.join(", "))
    };
    Ok(Seen {
        held: clean.is_some() && again.code == Some(0),
        what: format!(
            "{failed} of {all} creates killed, {rest}; the name again: {}",
            again.brief()
        ),
        said: stage.refused(&last),
    })
}
