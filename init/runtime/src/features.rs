//! `holdfast features`: what this runtime can do, as the runtime-spec's `features.md` wants it told.
//!
//! It tells what is compiled in, not what the node offers, with one exception that the document itself makes:
//! `supportedFlags` of seccomp. A list says no more than what the code behind it does: mount options come from the
//! table that the plan reads, seccomp's names from the crate that compiles profiles, the hooks from [`HookStage`].
//!
//! The types of `oci_spec` are not used to write it, because they print what is unknown as `null`; a test reads the document with them.

use serde_json::{Value, json};

use crate::hooks::HookStage;
use crate::plan::options::known_words;
use crate::plan::placement;
use crate::sys::probe::knows_filter_flags;

/// Namespaces that can be made and joined.
const NAMESPACES: [&str; 8] = [
    "cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts",
];

/// Capabilities by their number in the kernel, `capabilities(7)`.
const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// Oldest version of the specification that is read.
pub const OCI_VERSION_MIN: &str = "1.0.0";

/// Latest version of the specification whose fields are either done or refused.
pub const OCI_VERSION_MAX: &str = "1.3.0";

/// The flags of `seccomp(2)` behind each name; a flag that is about a listener is known only together with one.
const FILTER_FLAGS: [(&str, libc::c_ulong); 4] = [
    ("SECCOMP_FILTER_FLAG_LOG", 1 << 1),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", 1 << 2),
    ("SECCOMP_FILTER_FLAG_TSYNC", 1),
    ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", 1 << 5 | 1 << 3),
];

/// Architectures that libseccomp learned later than the version which is needed, and the first that knows them.
const NEWER: [(&str, (u32, u32)); 1] = [("SCMP_ARCH_LOONGARCH64", (2, 6))];

/// The architectures whose names libseccomp, as it is linked in, knows.
fn architectures() -> Vec<&'static str> {
    let version = holdfast_seccomp::library_version();
    let mut numbers = version
        .split('.')
        .map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let known = |name: &&str| {
        let newer = NEWER.iter().find(|(newer, _)| newer == name);
        newer.is_none_or(|(_, first)| version >= *first)
    };
    holdfast_seccomp::ARCHITECTURES
        .into_iter()
        .filter(known)
        .collect()
}

/// The document.
#[must_use]
pub fn features() -> Value {
    let supported: Vec<&str> = FILTER_FLAGS
        .iter()
        .filter(|(_, flags)| knows_filter_flags(*flags))
        .map(|(name, _)| *name)
        .collect();
    json!({
        "ociVersionMin": OCI_VERSION_MIN,
        "ociVersionMax": OCI_VERSION_MAX,
        "hooks": HookStage::ALL.map(HookStage::name),
        "mountOptions": known_words(),
        "linux": {
            "namespaces": NAMESPACES,
            "capabilities": CAPABILITIES.as_slice(),
            "cgroup": {
                "v1": true,
                "v2": true,
                "systemd": true,
                "systemdUser": false,
                "rdma": true,
            },
            "seccomp": {
                "enabled": true,
                "actions": holdfast_seccomp::ACTIONS,
                "operators": holdfast_seccomp::OPERATORS,
                "archs": architectures(),
                "knownFlags": holdfast_seccomp::FLAGS,
                "supportedFlags": supported,
            },
            "apparmor": { "enabled": true },
            "selinux": { "enabled": true },
            "intelRdt": { "enabled": true, "schemata": true, "monitoring": true },
            "memoryPolicy": { "modes": placement::mode_names(), "flags": placement::flag_names() },
            "mountExtensions": { "idmap": { "enabled": true } },
            "netDevices": { "enabled": true },
        },
        "annotations": {
            "io.holdfast.version": env!("CARGO_PKG_VERSION"),
            "io.holdfast.checkpoint.enabled": "true",
            // The key that runc, crun and docker know.
            "io.github.seccomp.libseccomp.version": holdfast_seccomp::library_version(),
        },
        // It names a file with options for criu.
        "potentiallyUnsafeConfigAnnotations": ["org.criu.config"],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{Arch, Capability, Features};

    #[test]
    fn the_document_is_one_of_the_specification() {
        let document = features();
        let read: Features = serde_json::from_value(document.clone()).unwrap();
        let linux = read.linux().as_ref().unwrap();
        assert_eq!(linux.namespaces().as_ref().unwrap().len(), NAMESPACES.len());
        let seccomp = linux.seccomp().as_ref().unwrap();
        assert_eq!(seccomp.enabled(), &Some(true));
        assert_eq!(
            seccomp.actions().as_ref().unwrap().len(),
            holdfast_seccomp::ACTIONS.len()
        );
        let archs = seccomp.archs().as_ref().unwrap();
        assert!(archs.contains(&Arch::ScmpArchX86_64) && archs.len() > 10);
        assert!(!document.to_string().contains("null"));
    }

    #[test]
    fn capabilities_are_those_of_the_kernel_in_its_order() {
        for name in CAPABILITIES {
            let capability: Capability = name.trim_start_matches("CAP_").parse().unwrap();
            assert_eq!(serde_json::to_value(capability).unwrap(), name);
        }
        let last = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap();
        assert_eq!(
            last.trim().parse::<usize>().unwrap(),
            CAPABILITIES.len() - 1
        );
    }

    #[test]
    fn every_flag_that_is_known_is_probed_and_none_that_does_not_exist_is_found() {
        assert_eq!(FILTER_FLAGS.map(|(name, _)| name), holdfast_seccomp::FLAGS);
        assert!(
            knows_filter_flags(1 << 1),
            "SECCOMP_FILTER_FLAG_LOG is of Linux 4.14"
        );
        assert!(!knows_filter_flags(1 << 30));
    }

    /// What the neighbour says of the same kernel. Differences are to be known by name.
    #[test]
    fn runc_knows_no_more_than_what_is_listed_here() {
        let Ok(output) = std::process::Command::new("runc").arg("features").output() else {
            println!("skipped: runc is not installed");
            return;
        };
        if !output.status.success() {
            println!("skipped: this runc has no features command");
            return;
        }
        let theirs: Value = serde_json::from_slice(&output.stdout).unwrap();
        let ours = features();
        let missing = |path: &str| -> Vec<String> {
            let list =
                |document: &Value| document.pointer(path).unwrap().as_array().unwrap().clone();
            let ours = list(&ours);
            let missing = list(&theirs)
                .into_iter()
                .filter(|item| !ours.contains(item));
            missing
                .map(|item| item.as_str().unwrap().to_owned())
                .collect()
        };
        for path in [
            "/hooks",
            "/linux/namespaces",
            "/linux/capabilities",
            "/linux/seccomp/actions",
            "/linux/seccomp/operators",
            "/linux/seccomp/archs",
        ] {
            assert_eq!(missing(path), [""; 0], "{path}");
        }
        assert_eq!(missing("/mountOptions"), [""; 0]);
    }
}
