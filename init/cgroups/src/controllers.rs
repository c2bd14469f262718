//! Switching controllers on along the path of a cgroup v2 cgroup (`cgroup.subtree_control`).
//!
//! Source: Documentation/admin-guide/cgroup-v2.rst, "Controlling Controllers".

use std::collections::BTreeSet;
use std::path::Path;

use oci_spec::runtime::LinuxResources;

use crate::dir::Dir;
use crate::error::{Error, Hint, Result};

/// Needed for every container, limits or not: what its memory, its processes and its input and output were is answered by
/// `events` and by the shim, and `memory.events` is the evidence of a death for want of memory. Not `cpu`: the time used is
/// in `cpu.stat` without it, and switched on it makes the scheduler weigh one level more (cgroup-v2.rst, "CPU").
const ACCOUNTING: [&str; 3] = ["io", "memory", "pids"];

/// The controllers without which a limit of `resources` cannot be set.
fn needed(resources: &LinuxResources) -> BTreeSet<String> {
    let mut needed = BTreeSet::new();
    let mut need = |name: &str| needed.insert(name.to_owned());
    // As in `apply`: 0 is not a limit.
    if let Some(memory) = resources.memory() {
        let limits = [memory.limit(), memory.reservation(), memory.swap()];
        if limits.into_iter().flatten().any(|limit| limit != 0) {
            need("memory");
        }
    }
    if let Some(cpu) = resources.cpu() {
        let numbers = [cpu.shares(), cpu.period(), cpu.burst()];
        if numbers.into_iter().flatten().any(|number| number != 0)
            || cpu.quota().is_some_and(|quota| quota != 0)
            || cpu.idle().is_some()
        {
            need("cpu");
        }
        let set = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        if set(cpu.cpus()) || set(cpu.mems()) {
            need("cpuset");
        }
    }
    if resources
        .pids()
        .as_ref()
        .is_some_and(|pids| pids.limit() != 0)
    {
        need("pids");
    }
    if let Some(io) = resources.block_io() {
        let throttles = [
            io.throttle_read_bps_device(),
            io.throttle_write_bps_device(),
            io.throttle_read_iops_device(),
            io.throttle_write_iops_device(),
        ];
        if io.weight().is_some_and(|weight| weight != 0)
            || io
                .weight_device()
                .as_ref()
                .is_some_and(|devices| !devices.is_empty())
            || throttles
                .into_iter()
                .flatten()
                .any(|devices| !devices.is_empty())
        {
            need("io");
        }
    }
    if resources
        .hugepage_limits()
        .as_ref()
        .is_some_and(|limits| !limits.is_empty())
    {
        need("hugetlb");
    }
    if resources
        .rdma()
        .as_ref()
        .is_some_and(|limits| !limits.is_empty())
    {
        need("rdma");
    }
    for file in resources
        .unified()
        .iter()
        .flat_map(|unified| unified.keys())
    {
        match file.split_once('.') {
            Some(("cgroup", _)) | None => {}
            Some((controller, _)) => {
                need(controller);
            }
        }
    }
    needed
}

/// As [`enable`], for limits that come later: what was not needed before may be needed now.
pub(crate) fn enable_more(
    leaf: &Dir,
    mount_point: &Path,
    resources: &LinuxResources,
) -> Result<()> {
    let explicit = needed(resources);
    if explicit.is_empty() {
        return Ok(());
    }
    switch_on(leaf, mount_point, &explicit, explicit.clone())
}

/// Makes the controllers of [`needed`] and [`ACCOUNTING`] available in `leaf`.
///
/// Costs one read where the parent has handed everything on already (kubelet's cgroups). Else it climbs until an
/// ancestor has what is missing, and writes downwards, each ancestor once.
pub(crate) fn enable(
    leaf: &Dir,
    mount_point: &Path,
    resources: Option<&LinuxResources>,
) -> Result<()> {
    let explicit = resources.map(needed).unwrap_or_default();
    let mut missing: BTreeSet<String> = ACCOUNTING.iter().map(|&c| c.to_owned()).collect();
    missing.extend(explicit.iter().cloned());
    switch_on(leaf, mount_point, &explicit, missing)
}

/// Of the `missing` ones, `explicit` must be had; the others are left out where they cannot be.
fn switch_on(
    leaf: &Dir,
    mount_point: &Path,
    explicit: &BTreeSet<String>,
    mut missing: BTreeSet<String>,
) -> Result<()> {
    remove_available(leaf, &mut missing);
    // The ancestors to write to, from the leaf's parent upwards, each with what its children lack.
    let mut writes: Vec<(Dir, BTreeSet<String>)> = Vec::new();
    let mut path = leaf.path();
    while !missing.is_empty() && path != mount_point {
        let Some(parent) = path.parent() else { break };
        let dir = Dir::at(parent.to_owned());
        writes.push((dir, missing.clone()));
        if let Some((dir, _)) = writes.last() {
            remove_available(dir, &mut missing);
        }
        path = parent;
    }
    // What is still missing exists nowhere (not compiled in, or bound to a v1 hierarchy): `apply` says so by name
    // if a limit needs it.
    for (dir, wanted) in writes.iter().rev() {
        let plus: Vec<String> = wanted
            .difference(&missing)
            .map(|controller| format!("+{controller}"))
            .collect();
        if plus.is_empty() {
            continue;
        }
        let value = plus.join(" ");
        let Err(source) = dir.try_write("cgroup.subtree_control", &value) else {
            continue;
        };
        // Statistics alone are no reason to refuse a container: try again with what the limits need.
        let must: Vec<String> = wanted
            .intersection(explicit)
            .filter(|controller| !missing.contains(*controller))
            .map(|controller| format!("+{controller}"))
            .collect();
        if must.is_empty() {
            log::debug!(
                "cgroup: {value} in {}: {source}, ignoring",
                dir.path().display()
            );
            continue;
        }
        let source = if must.len() == plus.len() {
            source
        } else {
            match dir.try_write("cgroup.subtree_control", &must.join(" ")) {
                Ok(()) => continue,
                Err(source) => source,
            }
        };
        let hint = match source.raw_os_error() {
            Some(libc::EBUSY) => {
                "the cgroup has processes of its own, and cgroup v2 hands controllers on only from cgroups without; choose a cgroupsPath below a cgroup without processes"
            }
            Some(libc::EOPNOTSUPP) => "the cgroup is threaded",
            Some(libc::EACCES | libc::EPERM | libc::EROFS) => "the cgroup is not delegated to us",
            _ => "",
        };
        return Err(Error::Write {
            file: dir.path().join("cgroup.subtree_control"),
            value: must.join(" "),
            hint: Hint(hint.to_owned()),
            source,
        });
    }
    Ok(())
}

/// Takes from `missing` what `cgroup.controllers` of `dir` lists. A file that cannot be read lists nothing.
fn remove_available(dir: &Dir, missing: &mut BTreeSet<String>) {
    if let Ok(text) = dir.try_read("cgroup.controllers") {
        for controller in text.split_whitespace() {
            missing.remove(controller);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::PathBuf;

    /// A folder that looks like three levels of cgroup v2.
    fn tree(levels: [&str; 3]) -> (tempfile::TempDir, [PathBuf; 3]) {
        let root = tempfile::tempdir().unwrap();
        let paths = [
            root.path().to_owned(),
            root.path().join("a"),
            root.path().join("a/b"),
        ];
        for (path, controllers) in paths.iter().zip(levels) {
            fs::create_dir_all(path).unwrap();
            fs::write(path.join("cgroup.controllers"), controllers).unwrap();
            fs::write(path.join("cgroup.subtree_control"), "").unwrap();
        }
        (root, paths)
    }

    fn written(path: &Path) -> String {
        fs::read_to_string(path.join("cgroup.subtree_control")).unwrap()
    }

    fn resources(json: &str) -> LinuxResources {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn nothing_is_written_where_the_leaf_has_everything() {
        let (root, [_, a, b]) = tree(["", "", "io memory pids"]);
        enable(&Dir::at(b), root.path(), None).unwrap();
        assert_eq!(written(root.path()), "");
        assert_eq!(written(&a), "");
    }

    #[test]
    fn only_the_missing_controllers_are_written_and_only_where_missing() {
        let (root, [_, a, b]) = tree([
            "cpu cpuset io memory pids rdma",
            "cpu io memory pids",
            "pids",
        ]);
        enable(&Dir::at(b), root.path(), None).unwrap();
        assert_eq!(
            written(root.path()),
            "",
            "the root hands on all that accounting needs already"
        );
        assert_eq!(written(&a), "+io +memory", "nobody asked for cpu");
    }

    #[test]
    fn a_limit_reaches_up_to_the_ancestor_that_has_the_controller() {
        let (root, [_, a, b]) = tree([
            "cpu cpuset io memory pids hugetlb",
            "cpu io memory pids",
            "cpu io memory pids",
        ]);
        let limits = resources(
            r#"{"cpu":{"cpus":"0"},"unified":{"hugetlb.2MB.max":"0","cgroup.max.depth":"1"}}"#,
        );
        enable(&Dir::at(b), root.path(), Some(&limits)).unwrap();
        assert_eq!(written(root.path()), "+cpuset +hugetlb");
        assert_eq!(written(&a), "+cpuset +hugetlb");
    }

    #[test]
    fn a_controller_that_exists_nowhere_is_left_to_apply() {
        let (root, [_, a, b]) = tree(["cpu pids", "cpu pids", "cpu pids"]);
        enable(
            &Dir::at(b),
            root.path(),
            Some(&resources(r#"{"memory":{"limit":1}}"#)),
        )
        .unwrap();
        assert_eq!(written(root.path()), "");
        assert_eq!(written(&a), "");
    }

    #[test]
    fn an_unwritable_ancestor_fails_only_for_limits() {
        let (root, [_, a, b]) = tree(["cpu io memory pids", "cpu io memory pids", ""]);
        fs::remove_file(a.join("cgroup.subtree_control")).unwrap();
        enable(&Dir::at(b.clone()), root.path(), None).unwrap();
        let error = enable(
            &Dir::at(b),
            root.path(),
            Some(&resources(r#"{"memory":{"limit":1}}"#)),
        )
        .unwrap_err();
        assert!(error.to_string().contains("\"+memory\""), "{error}");
    }

    #[test]
    fn missing_accounting_above_does_not_keep_a_limit_from_below() {
        let (root, [_, a, b]) = tree(["cpu io memory pids", "memory", ""]);
        // The root hands nothing on: no io for anybody. The limit needs memory only, which is there.
        fs::remove_file(root.path().join("cgroup.subtree_control")).unwrap();
        enable(
            &Dir::at(b),
            root.path(),
            Some(&resources(r#"{"memory":{"limit":1}}"#)),
        )
        .unwrap();
        assert!(written(&a).contains("+memory"));
    }

    #[test]
    fn empty_sections_need_nothing() {
        let none = r#"{"memory":{},"cpu":{"shares":0},"pids":{"limit":0},"blockIO":{"weightDevice":[]},"hugepageLimits":[]}"#;
        assert!(needed(&resources(none)).is_empty());
        let all = r#"{"memory":{"swap":-1},"cpu":{"idle":0,"mems":"0"},"pids":{"limit":-1},"blockIO":{"weight":10},
            "hugepageLimits":[{"pageSize":"2MB","limit":1}],"rdma":{"a":{"hcaObjects":1}},"unified":{"misc.max":"x"}}"#;
        let all: Vec<String> = needed(&resources(all)).into_iter().collect();
        assert_eq!(
            all,
            [
                "cpu", "cpuset", "hugetlb", "io", "memory", "misc", "pids", "rdma"
            ]
        );
    }
}
