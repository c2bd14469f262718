//! Plans as data: what a specification becomes, step by step.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;

use holdfast_cgroups::{Hierarchies, Hierarchy, Kind};
use serde_json::{Value, json};

use super::create::{Inputs, prepare};
use super::namespaces::Namespaces;
use crate::bundle::Bundle;

/// The labels of the plan of `spec`; none when this is not root, who alone may clone mounts.
fn labels(spec: &Value, hierarchies: &Hierarchies) -> Option<Vec<String>> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: cloning a mount needs root");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("rootfs")).unwrap();
    fs::write(folder.path().join("config.json"), spec.to_string()).unwrap();
    let bundle = Bundle::load(folder.path()).unwrap();
    let pure_v2 = hierarchies.list().iter().all(Hierarchy::is_v2);
    let namespaces = Namespaces::decide(bundle.namespaces(), pure_v2, false).unwrap();
    let fd = || OwnedFd::from(File::open("/dev/null").unwrap());
    let prepared = prepare(Inputs {
        bundle: &bundle,
        keyring: Some("_ses.box"),
        namespaces: &namespaces,
        hierarchies,
        cgroup: None,
        attached_late: false,
        filter: None,
        env: &[],
        gate: (fd(), fd()),
        console: None,
        preserve_fds: 0,
        no_pivot: false,
    })
    .unwrap();
    let own = folder.path().canonicalize().unwrap();
    Some(
        prepared
            .image
            .labels
            .iter()
            .map(|label| label.replace(&own.display().to_string(), "BUNDLE"))
            .collect(),
    )
}

fn spec() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "box",
        "process": {
            "cwd": "/work", "args": ["true"],
            "user": {"uid": 7, "gid": 8},
            "noNewPrivileges": true,
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "options": ["ro"]},
        ],
        "linux": {
            "namespaces": [
                {"type": "pid"}, {"type": "mount"}, {"type": "uts"}, {"type": "cgroup"}
            ],
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"],
            "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}],
        },
    })
}

#[test]
fn the_order_of_a_create_on_v2() {
    let Some(labels) = labels(&spec(), &Hierarchies::unified_at("/nowhere")) else {
        return;
    };
    let expected = "\
mark inherited descriptors close-on-exec
start a session
join a session keyring
set the hostname \"box\"
set the propagation of inherited mounts
attach the root file system BUNDLE/rootfs
mount proc on /proc, which must be a directory and not a symlink
mount cgroup2 on /sys/fs/cgroup
make the device /dev/null
make the device /dev/zero
make the device /dev/full
make the device /dev/random
make the device /dev/urandom
make the device /dev/tty
make the device /dev/fuse
link /dev/fd
link /dev/stdin
link /dev/stdout
link /dev/stderr
link /dev/core
link /dev/ptmx
make /proc/sys read-only
mask /proc/kcore
make the working directory /work
make the root read-only
pivot to the root file system
enter the working directory /work
own stdin, stdout and stderr
reduce the capability bounding set
become uid 7 gid 8
find the program
set capabilities
set no_new_privs
wait for the go-ahead
wait for start
execute the program";
    assert_eq!(labels.join("\n"), expected);
}

#[test]
fn on_v1_the_cgroup_namespace_is_made_by_init_and_each_hierarchy_is_mounted() {
    let hierarchy = |controllers: &[&str], point: &str| Hierarchy {
        mount_point: Path::new("/nowhere").join(point),
        mount_root: "/".into(),
        kind: Kind::V1 {
            controllers: controllers.iter().map(ToString::to_string).collect(),
            name: None,
        },
    };
    let hierarchies = Hierarchies::from_list(vec![
        hierarchy(&["memory"], "memory"),
        hierarchy(&["cpu", "cpuacct"], "cpu,cpuacct"),
    ])
    .unwrap();
    let Some(labels) = labels(&spec(), &hierarchies) else {
        return;
    };
    let cgroup: Vec<&str> = labels
        .iter()
        .map(String::as_str)
        .filter(|label| label.contains("cgroup"))
        .collect();
    assert_eq!(
        cgroup,
        [
            "make the cgroup namespace",
            "mount tmpfs on /sys/fs/cgroup",
            "mount cgroup on /sys/fs/cgroup/memory",
            "mount cgroup on /sys/fs/cgroup/cpu,cpuacct",
            "link /sys/fs/cgroup/cpu",
            "link /sys/fs/cgroup/cpuacct",
            "make the cgroup directory read-only",
        ]
    );
}
