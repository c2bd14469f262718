//! `holdfast spec`: a config.json to begin with, the same as runc's.
//!
//! Scripts and tutorials edit runc's with `sed` and `jq`, so the content is the same to the last option; only the
//! version and the host name differ.

use serde_json::{Value, json};

/// What is written as `ociVersion`.
const OCI_VERSION: &str = crate::features::OCI_VERSION_MAX;

/// The document for root, or for a user with id `rootless` = (uid, gid) who maps himself to root in a user namespace.
#[must_use]
pub fn default_spec(rootless: Option<(u32, u32)>) -> Value {
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    let mut spec = json!({
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": true,
            "user": { "uid": 0, "gid": 0 },
            "args": ["sh"],
            "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "TERM=xterm",
            ],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
                "ambient": capabilities,
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "holdfast",
        "mounts": mounts(rootless.is_some()),
        "linux": {
            "maskedPaths": [
                "/proc/acpi",
                "/proc/asound",
                "/proc/kcore",
                "/proc/keys",
                "/proc/latency_stats",
                "/proc/timer_list",
                "/proc/timer_stats",
                "/proc/sched_debug",
                "/sys/firmware",
                "/proc/scsi",
            ],
            "readonlyPaths": [
                "/proc/bus",
                "/proc/fs",
                "/proc/irq",
                "/proc/sys",
                "/proc/sysrq-trigger",
            ],
        },
    });
    let mut types = vec!["pid", "network", "ipc", "uts", "mount"];
    // On cgroup v2 alone a container can have a view of its own.
    if std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        types.push("cgroup");
    }
    let linux = &mut spec["linux"];
    match rootless {
        None => linux["resources"] = json!({ "devices": [{ "allow": false, "access": "rwm" }] }),
        Some((uid, gid)) => {
            // A user may neither limit devices nor make a network of his own that reaches anything.
            types.retain(|typ| *typ != "network");
            types.push("user");
            linux["uidMappings"] = json!([{ "containerID": 0, "hostID": uid, "size": 1 }]);
            linux["gidMappings"] = json!([{ "containerID": 0, "hostID": gid, "size": 1 }]);
        }
    }
    linux["namespaces"] = types.iter().map(|typ| json!({ "type": typ })).collect();
    spec
}

fn mounts(rootless: bool) -> Value {
    let mount = |destination: &str, typ: &str, source: &str, options: &[&str]| {
        let mut mount = json!({ "destination": destination, "type": typ, "source": source });
        if !options.is_empty() {
            mount["options"] = json!(options);
        }
        mount
    };
    let pts = [
        "nosuid",
        "noexec",
        "newinstance",
        "ptmxmode=0666",
        "mode=0620",
        "gid=5",
    ];
    // Group 5 (tty) is not mapped for a user.
    let pts = if rootless { &pts[..5] } else { &pts[..] };
    let sys = if rootless {
        mount(
            "/sys",
            "none",
            "/sys",
            &["rbind", "nosuid", "noexec", "nodev", "ro"],
        )
    } else {
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", "ro"],
        )
    };
    json!([
        mount("/proc", "proc", "proc", &[]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"]
        ),
        mount("/dev/pts", "devpts", "devpts", pts),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]
        ),
        mount(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"]
        ),
        sys,
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", "ro"]
        ),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_runc(arguments: &[&str]) -> Option<Value> {
        let folder = tempfile::tempdir().unwrap();
        let run = std::process::Command::new("runc")
            .arg("spec")
            .args(arguments)
            .current_dir(folder.path())
            .status();
        if !run.is_ok_and(|status| status.success()) {
            println!("skipped: runc is not installed");
            return None;
        }
        let text = std::fs::read(folder.path().join("config.json")).unwrap();
        let mut spec: Value = serde_json::from_slice(&text).unwrap();
        spec["ociVersion"] = OCI_VERSION.into();
        spec["hostname"] = "holdfast".into();
        Some(spec)
    }

    #[test]
    fn it_is_what_runc_writes() {
        if let Some(theirs) = of_runc(&[]) {
            assert_eq!(default_spec(None), theirs);
        }
    }

    #[test]
    fn for_a_user_it_is_what_runc_writes() {
        let Some(theirs) = of_runc(&["--rootless"]) else {
            return;
        };
        let user = (
            nix::unistd::geteuid().as_raw(),
            nix::unistd::getegid().as_raw(),
        );
        assert_eq!(default_spec(Some(user)), theirs);
    }

    #[test]
    fn both_are_specifications() {
        for rootless in [None, Some((1000, 1000))] {
            let spec = default_spec(rootless);
            let read: oci_spec::runtime::Spec = serde_json::from_value(spec.clone()).unwrap();
            assert_eq!(read.process().as_ref().unwrap().terminal(), Some(true));
            let linux = read.linux().as_ref().unwrap();
            assert_eq!(linux.uid_mappings().is_some(), rootless.is_some());
        }
    }
}
