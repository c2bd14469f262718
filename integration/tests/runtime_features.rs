//! `features`: every claim is tried with a container that uses it. containerd, docker and the CRI
//! decide by this document, so what it says is a promise.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;

use holdfast_integration::bundle::Bundle;
use holdfast_integration::deadline::Finished;
use holdfast_integration::runtime::Kind;
use holdfast_integration::scratch::{Scratch, text};
use holdfast_integration::{on_runtimes, place, skip};
use serde_json::{Value, json};

// crun 1.8.1 has no such command.
on_runtimes! {
    every_claim_has_a_row: holdfast;
    versions: holdfast runc;
    hooks: holdfast runc;
    mount_options: holdfast runc;
    namespaces: holdfast runc;
    capabilities: holdfast runc;
    cgroups: holdfast runc;
    seccomp: holdfast runc;
    security_modules: holdfast runc;
    intel_rdt: holdfast;
    memory_policies: holdfast;
    mapped_mounts: holdfast;
    network_devices: holdfast;
    annotations: holdfast runc;
}

/// Every leaf of the document, and the test of this file that tries it.
const ROWS: &[(&str, &str)] = &[
    ("/ociVersionMin", "versions"),
    ("/ociVersionMax", "versions"),
    ("/hooks", "hooks"),
    ("/mountOptions", "mount_options"),
    ("/linux/namespaces", "namespaces"),
    ("/linux/capabilities", "capabilities"),
    ("/linux/cgroup/v1", "cgroups"),
    ("/linux/cgroup/v2", "cgroups"),
    ("/linux/cgroup/systemd", "cgroups"),
    ("/linux/cgroup/systemdUser", "cgroups"),
    ("/linux/cgroup/rdma", "cgroups"),
    ("/linux/seccomp/enabled", "seccomp"),
    ("/linux/seccomp/actions", "seccomp"),
    ("/linux/seccomp/operators", "seccomp"),
    ("/linux/seccomp/archs", "seccomp"),
    ("/linux/seccomp/knownFlags", "seccomp"),
    ("/linux/seccomp/supportedFlags", "seccomp"),
    ("/linux/apparmor/enabled", "security_modules"),
    ("/linux/selinux/enabled", "security_modules"),
    ("/linux/intelRdt/enabled", "intel_rdt"),
    ("/linux/intelRdt/schemata", "intel_rdt"),
    ("/linux/intelRdt/monitoring", "intel_rdt"),
    ("/linux/memoryPolicy/modes", "memory_policies"),
    ("/linux/memoryPolicy/flags", "memory_policies"),
    ("/linux/mountExtensions/idmap/enabled", "mapped_mounts"),
    ("/linux/netDevices/enabled", "network_devices"),
    ("/annotations", "annotations"),
    (
        "/potentiallyUnsafeConfigAnnotations",
        "runtime_checkpoint.rs, annotations",
    ),
];

fn features(scratch: &Scratch) -> Value {
    serde_json::from_str(scratch.call(&["features"]).ok()).unwrap()
}

fn list(document: &Value, path: &str) -> Vec<String> {
    let list = document
        .pointer(path)
        .unwrap_or_else(|| panic!("no {path}"));
    let words = list.as_array().unwrap().iter();
    words
        .map(|word| word.as_str().unwrap().to_owned())
        .collect()
}

fn leaves(value: &Value, at: &str, found: &mut BTreeSet<String>) {
    match value.as_object() {
        Some(object) if at != "/annotations" => {
            for (key, value) in object {
                leaves(value, &format!("{at}/{key}"), found);
            }
        }
        _ => {
            found.insert(at.to_owned());
        }
    }
}

fn every_claim_has_a_row(scratch: &Scratch) {
    let mut found = BTreeSet::new();
    leaves(&features(scratch), "", &mut found);
    let rows: BTreeSet<String> = ROWS.iter().map(|row| row.0.to_owned()).collect();
    assert_eq!(found, rows);
}

/// Runs a container that uses a claim.
fn attempt(scratch: &Scratch, change: impl FnOnce(&mut Value)) -> Finished {
    let bundle = scratch
        .bundle(&place::unique("claim"))
        .args(&["true"])
        .with(change);
    scratch.run(&bundle)
}

fn versions(scratch: &Scratch) {
    let document = features(scratch);
    for end in ["ociVersionMin", "ociVersionMax"] {
        let version = document[end].clone();
        attempt(scratch, |spec| spec["ociVersion"] = version).ok();
    }
    if scratch.runtime.kind == Kind::Holdfast {
        // runc 1.1.5 does not look at it.
        attempt(scratch, |spec| spec["ociVersion"] = json!("2.0.0")).failed();
    }
}

fn hooks(scratch: &Scratch) {
    for name in list(&features(scratch), "/hooks") {
        let seen = scratch.path(&name);
        // Of the image and in the container: there the file is in its root.
        let inside = name == "startContainer";
        let file = if inside {
            "/seen".to_owned()
        } else {
            text(&seen)
        };
        let bundle = scratch
            .bundle(&format!("hook-{name}"))
            .args(&["true"])
            .with(|spec| {
                spec["hooks"][&name] =
                    json!([{"path": "/bin/sh", "args": ["sh", "-c", format!("echo x >{file}")]}]);
            });
        scratch.run(&bundle).ok();
        let seen = if inside {
            bundle.in_rootfs("/seen")
        } else {
            seen
        };
        assert!(seen.exists(), "{name} has not run");
    }
}

/// Words that ask for more than one mount can show, or that the kernel of today refuses everybody.
const NOT_ALONE: &[(&str, &str)] = &[
    ("remount", "there is nothing to change yet"),
    ("idmap", "tried by mapped_mounts"),
    ("ridmap", "tried by mapped_mounts"),
    ("copy-symlink", "tried by runtime_mounts.rs"),
    ("src-nofollow", "tried by runtime_mounts.rs"),
    ("dest-nofollow", "tried by runtime_mounts.rs"),
    ("bind", "takes a folder, and the others a tmpfs"),
    ("rbind", "as bind"),
];

fn mount_options(scratch: &Scratch) {
    let words = list(&features(scratch), "/mountOptions");
    for word in &words {
        if NOT_ALONE.iter().any(|(name, _)| name == word) {
            continue;
        }
        if word == "defaults" && scratch.runtime.kind == Kind::Runc {
            // 1.1.5 says that it knows it, and hands it to the file system.
            continue;
        }
        let ran = attempt(scratch, |spec| {
            let mount =
                json!({"destination": "/m", "type": "tmpfs", "source": "tmpfs", "options": [word]});
            spec["mounts"].as_array_mut().unwrap().push(mount);
        });
        assert!(ran.status.success(), "{word}: {ran}");
    }
    for word in ["bind", "rbind"] {
        assert!(words.iter().any(|known| known == word));
        let source = text(&scratch.path(""));
        attempt(scratch, |spec| {
            let mount = json!({"destination": "/m", "source": source, "options": [word]});
            spec["mounts"].as_array_mut().unwrap().push(mount);
        })
        .ok();
    }
    // A word that nobody knows goes to the file system, which refuses it: so the rest of this says something.
    attempt(scratch, |spec| {
        let mount = json!({"destination": "/m", "type": "tmpfs", "source": "tmpfs", "options": ["nosuchword"]});
        spec["mounts"].as_array_mut().unwrap().push(mount);
    })
    .failed();
}

fn namespaces(scratch: &Scratch) {
    for name in list(&features(scratch), "/linux/namespaces") {
        let file = match name.as_str() {
            "mount" => "mnt",
            "network" => "net",
            other => other,
        };
        if !Path::new("/proc/self/ns").join(file).exists() {
            skip(
                "namespaces",
                &format!("this kernel has no {name} namespaces"),
            );
            continue;
        }
        let bundle = scratch
            .bundle(&format!("ns-{name}"))
            .args(&["readlink", &format!("/proc/self/ns/{file}")]);
        let bundle = if name == "user" {
            bundle.user_namespace(100_000)
        } else {
            bundle.namespace(&name, None)
        };
        let inside = scratch.run(&bundle).ok().trim().to_owned();
        let outside = text(&fs::read_link(format!("/proc/self/ns/{file}")).unwrap());
        assert!(inside.starts_with(file), "{inside}");
        assert_ne!(inside, outside, "{name}");
    }
}

fn capabilities(scratch: &Scratch) {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let own = status
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:\t"))
        .unwrap();
    let own = u64::from_str_radix(own, 16).unwrap();
    // By their numbers, as the kernel and `linux/capability.h` order them.
    for (number, name) in list(&features(scratch), "/linux/capabilities")
        .iter()
        .enumerate()
    {
        if own & 1 << number == 0 {
            skip("capabilities", &format!("{name} is not ours to give"));
            continue;
        }
        let bundle = scratch
            .bundle(&format!("cap-{number}"))
            .args(&["grep", "CapEff", "/proc/self/status"])
            .with(|spec| {
                for set in ["bounding", "effective", "permitted"] {
                    spec["process"]["capabilities"][set] = json!([name]);
                }
            });
        let said = scratch.run(&bundle).ok().trim().to_owned();
        assert!(
            said.ends_with(&format!("{:016x}", 1_u64 << number)),
            "{name}: {said}"
        );
    }
}

fn cgroups(scratch: &Scratch) {
    let cgroup = features(scratch)["linux"]["cgroup"].clone();
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    assert_eq!((&cgroup["v1"], &cgroup["v2"]), (&json!(true), &json!(true)));
    let bundle = scratch
        .bundle("limited")
        .args(&["sleep", "600"])
        .with(|spec| {
            spec["linux"]["resources"]["pids"] = json!({"limit": 17});
        });
    scratch.start(&bundle);
    let pids = if unified {
        "/sys/fs/cgroup"
    } else {
        "/sys/fs/cgroup/pids"
    };
    let own = bundle.spec["linux"]["cgroupsPath"].as_str().unwrap();
    let limit = fs::read_to_string(format!("{pids}{own}/pids.max")).unwrap();
    assert_eq!(limit.trim(), "17");
    scratch.end(&bundle);
    assert_eq!(cgroup["systemd"], true, "tried by runtime_systemd.rs");
    if scratch.runtime.kind == Kind::Holdfast {
        // Where the controller is not, that is said, and not that the runtime cannot.
        let rdma = Path::new("/sys/fs/cgroup/rdma").exists()
            || fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
                .is_ok_and(|list| list.contains("rdma"));
        let ran = attempt(scratch, |spec| {
            spec["linux"]["resources"]["rdma"] = json!({"mlx5_0": {"hcaHandles": 3}});
        });
        if !rdma {
            assert!(ran.failed().contains("\"rdma\" is not available"), "{ran}");
        }
    }
}

/// Architectures that put the high byte first.
const OTHER_BYTE_ORDER: &[&str] = &[
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
];

fn seccomp(scratch: &Scratch) {
    let document = features(scratch);
    let base = "/linux/seccomp";
    assert_eq!(
        document.pointer(&format!("{base}/enabled")),
        Some(&json!(true))
    );
    let profile = |change: &dyn Fn(&mut Value)| {
        let mut profile = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["acct"], "action": "SCMP_ACT_ERRNO"}],
        });
        change(&mut profile);
        let ran = attempt(scratch, |spec| spec["linux"]["seccomp"] = profile.clone());
        assert!(ran.status.success(), "{profile}: {ran}");
    };
    let socket = scratch.path("agent");
    // Connections wait in its backlog: what is tried is that the listener is handed over.
    let _agent = UnixListener::bind(&socket).unwrap();
    for action in list(&document, &format!("{base}/actions")) {
        profile(&|profile| {
            profile["syscalls"][0]["action"] = json!(action);
            if action == "SCMP_ACT_NOTIFY" {
                profile["listenerPath"] = json!(text(&socket));
            }
        });
    }
    for operator in list(&document, &format!("{base}/operators")) {
        profile(&|profile| {
            let argument = json!({"index": 0, "value": 4095, "valueTwo": 15, "op": operator});
            profile["syscalls"][0]["args"] = json!([argument]);
        });
    }
    if scratch.runtime.kind == Kind::Runc {
        // 1.1.5 tells of no flags, and names architectures that it refuses here: those of the
        // other byte order.
        return;
    }
    for arch in list(&document, &format!("{base}/archs")) {
        if OTHER_BYTE_ORDER.contains(&arch.as_str()) && cfg!(target_endian = "little") {
            // libseccomp puts no filter together for both byte orders.
            continue;
        }
        profile(&|profile| profile["architectures"] = json!([arch]));
    }
    let known = list(&document, &format!("{base}/knownFlags"));
    for flag in list(&document, &format!("{base}/supportedFlags")) {
        assert!(known.contains(&flag), "{flag}");
        profile(&|profile| {
            profile["flags"] = json!([flag]);
            if flag == "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" {
                profile["syscalls"][0]["action"] = json!("SCMP_ACT_NOTIFY");
                profile["listenerPath"] = json!(text(&socket));
            }
        });
    }
}

fn security_modules(scratch: &Scratch) {
    let linux = features(scratch)["linux"].clone();
    assert_eq!(linux["apparmor"]["enabled"], true);
    assert_eq!(linux["selinux"]["enabled"], true);
    let apparmor = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    if apparmor.is_ok_and(|enabled| enabled.trim() == "Y") {
        attempt(scratch, |spec| {
            spec["process"]["apparmorProfile"] = json!("unconfined")
        })
        .ok();
    } else {
        skip(
            "security_modules",
            "this kernel has no AppArmor; that the error says so is tried",
        );
        let ran = attempt(scratch, |spec| {
            spec["process"]["apparmorProfile"] = json!("some")
        });
        // runc's words are "apparmor is not available".
        assert!(ran.failed().to_lowercase().contains("apparmor"), "{ran}");
    }
    if !Path::new("/sys/fs/selinux/enforce").exists() {
        skip(
            "security_modules",
            "this kernel has no SELinux; that the error says so is tried",
        );
        let label = "system_u:system_r:container_t:s0:c1,c2";
        let ran = attempt(scratch, |spec| {
            spec["process"]["selinuxLabel"] = json!(label)
        });
        assert!(ran.failed().to_lowercase().contains("selinux"), "{ran}");
        let ran = attempt(scratch, |spec| spec["linux"]["mountLabel"] = json!(label));
        // runc leaves it to the first mount to fail.
        ran.failed();
    }
}

fn intel_rdt(scratch: &Scratch) {
    let rdt = features(scratch)["linux"]["intelRdt"].clone();
    assert_eq!(
        rdt,
        json!({"enabled": true, "schemata": true, "monitoring": true})
    );
    if !Path::new("/sys/fs/resctrl/schemata").exists() {
        skip(
            "intel_rdt",
            "no resctrl file system here; that the error says so is tried",
        );
        for field in [
            json!({"schemata": ["L3:0=f"]}),
            json!({"enableMonitoring": true}),
            json!({"enableCMT": true}),
        ] {
            let ran = attempt(scratch, |spec| spec["linux"]["intelRdt"] = field);
            assert!(ran.failed().contains("resctrl"), "{ran}");
        }
    }
}

fn memory_policies(scratch: &Scratch) {
    let document = features(scratch);
    let try_policy = |policy: Value| {
        let ran = attempt(scratch, |spec| {
            spec["linux"]["memoryPolicy"] = policy.clone()
        });
        if ran.stderr.contains("Function not implemented") {
            skip("memory_policies", "this kernel has no NUMA");
        } else {
            assert!(ran.status.success(), "{policy}: {ran}");
        }
    };
    for mode in list(&document, "/linux/memoryPolicy/modes") {
        let nodes = if mode == "MPOL_DEFAULT" || mode == "MPOL_LOCAL" {
            ""
        } else {
            "0"
        };
        if mode == "MPOL_WEIGHTED_INTERLEAVE"
            && !Path::new("/sys/kernel/mm/mempolicy/weighted_interleave").exists()
        {
            skip("memory_policies", "this kernel has no weighted interleave");
            continue;
        }
        try_policy(json!({"mode": mode, "nodes": nodes}));
    }
    for flag in list(&document, "/linux/memoryPolicy/flags") {
        try_policy(json!({"mode": "MPOL_BIND", "nodes": "0", "flags": [flag]}));
    }
    attempt(scratch, |spec| {
        spec["linux"]["memoryPolicy"] = json!({"mode": "MPOL_OTHER", "nodes": "0"})
    })
    .failed();
}

fn mapped(scratch: &Scratch, options: &Value) -> Finished {
    let folder = scratch.path("mapped");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("file"), "").unwrap();
    let map = json!([{"containerID": 0, "hostID": 5000, "size": 1000}]);
    let mount = json!({
        "destination": "/m", "type": "bind", "source": text(&folder), "options": options,
        "uidMappings": map, "gidMappings": map,
    });
    let bundle: Bundle = scratch
        .bundle(&place::unique("mapped"))
        .args(&["stat", "-c", "%u", "/m/file"])
        .mount(mount);
    scratch.run(&bundle)
}

fn mapped_mounts(scratch: &Scratch) {
    assert_eq!(
        features(scratch)["linux"]["mountExtensions"]["idmap"]["enabled"],
        true
    );
    for options in [
        json!(["bind"]),
        json!(["bind", "idmap"]),
        json!(["rbind", "ridmap"]),
    ] {
        let ran = mapped(scratch, &options);
        if ran.stderr.contains("Invalid argument") || ran.stderr.contains("not support") {
            skip(
                "mapped_mounts",
                "the file system of the tests has no id-mapped mounts",
            );
            return;
        }
        assert_eq!(ran.ok().trim(), "5000", "{options}");
    }
}

fn network_devices(scratch: &Scratch) {
    assert_eq!(features(scratch)["linux"]["netDevices"]["enabled"], true);
    // Moving one is tried by runtime_net_devices.rs, where the kernel has some to move.
    let ran = attempt(scratch, |spec| {
        spec["linux"]["netDevices"] = json!({"nosuch0": {"name": "eth0"}})
    });
    assert!(ran.failed().contains("nosuch0"), "{ran}");
}

fn annotations(scratch: &Scratch) {
    let document = features(scratch);
    let annotations = document["annotations"].as_object().unwrap();
    let libseccomp = &annotations["io.github.seccomp.libseccomp.version"];
    assert!(
        libseccomp.as_str().unwrap().starts_with("2."),
        "{libseccomp}"
    );
    let checkpoint = if scratch.runtime.kind == Kind::Holdfast {
        "io.holdfast.checkpoint.enabled"
    } else {
        "org.opencontainers.runc.checkpoint.enabled"
    };
    assert_eq!(annotations[checkpoint], "true");
    // How podman finds out, before it asks for a checkpoint.
    let help = scratch.call(&["checkpoint", "--help"]);
    assert!(help.ok().contains("--tcp-established"), "{help}");
    let said = scratch
        .call(&["restore", "--lsm-profile"])
        .failed()
        .to_owned();
    assert!(
        said.contains("requires an argument") || said.contains("flag needs an argument"),
        "{said}"
    );
}
