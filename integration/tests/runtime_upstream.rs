//! Bugs that users of other runtimes met, one test each, named by the issue it was reported in.
//!
//! | reported | what happened | tried by |
//! |---|---|---|
//! | youki 3604 | propagation of a mount ignored | `runtime_mounts::propagation_of_a_mount_is_what_was_asked`, docker.rs, podman.rs |
//! | youki, none | `rootfsPropagation: rslave` refused | `runtime_mounts::propagation_of_the_root_is_what_was_asked` |
//! | youki, none | exec without seccomp | `runtime_exec::seccomp_and_capabilities_hold` |
//! | youki 2756 | exec outside of the user namespace | `runtime_namespaces::exec_joins_the_user_namespace` |
//! | youki 3409, 3572 | id-mapped mounts refused | runtime_idmap.rs |
//! | youki 3644 | a pids limit of 1 fails the create | here |
//! | youki 3434 | exec cannot drop capabilities | here |
//! | youki 3258, 607, 2826 | a scope that is there, or gone, or whose stop is not answered | `runtime_systemd::a_scope_is_not_shared_and_not_blocked`, `runtime_systemd::a_bus_that_never_answers`, init/cgroups `systemd/tests.rs` |
//! | youki 3342, 2528 | a container of containers: the systemd hierarchy | here |
//! | youki 3193 | podman with user namespaces cannot read the log | `podman::a_user_namespace` |
//! | youki 3298 | no rootless create | `runtime_rootless::the_whole_life_of_a_container` |
//! | youki 1640, 1817 | a failed run can be neither repeated nor deleted | here |
//! | youki 1543 | a second delete cannot delete the cgroup | here |
//! | youki 457, 461 | a small memory limit hangs | here |
//! | boxlite 349 | concurrent execs hold each other | here |
//! | youki 3504, boxlite 611 | messages of create in another order | here: hooks, a listener and a user namespace |
//! | youki, fixed after 0.7.0 | as above, with network devices | `runtime_net_devices::a_device_beside_hooks_a_listener_and_a_user_namespace` |
//! | youki 3432 | every exec adds mounts | here |
//! | runwasi 357, youki 2425 | undefined ground after clone | by construction: between clone and execve of `holdfast-init`, system calls only |
//! | youki 3011, 1601, 1637 | whose child init is | here |
//! | youki 1936 | descriptors leak | `runtime_activation::nothing_else_is_inherited`, `runtime_exec::no_descriptor_leaks_in` |
//! | youki 3597 | subtree_control of others is written | `runtime_cgroups::parents_of_somebody_else_stay_as_they_are` |
//! | youki 1105, 584 | docker's first run fails | `docker::docker` |
//! | youki 481 | anybody reads the state | here |
//! | youki 3621 | pivoting made the host's mounts slaves | here |

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;

use holdfast_integration::on_runtimes;
use holdfast_integration::scratch::{Scratch, text};
use serde_json::json;

on_runtimes! {
    youki_3644_a_pids_limit_of_one: holdfast runc crun;
    youki_3434_exec_without_any_capability: holdfast runc crun;
    youki_2528_every_hierarchy_has_the_container: holdfast runc crun;
    youki_1640_a_failed_run_leaves_the_id_free: holdfast runc crun;
    youki_1543_a_second_delete_is_content: holdfast runc crun;
    youki_457_a_small_memory_limit_hangs_nobody: holdfast runc crun;
    boxlite_349_concurrent_execs: holdfast runc crun;
    youki_3504_hooks_a_listener_and_a_user_namespace: holdfast runc crun;
    youki_3432_exec_adds_no_mounts: holdfast runc crun;
    youki_1637_init_is_a_child_of_the_caller_s_parent: holdfast runc crun;
    youki_481_the_state_is_nobody_else_s: holdfast;
    youki_3621_the_host_keeps_its_propagation: holdfast runc crun;
}

fn youki_3644_a_pids_limit_of_one(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["true"]).with(|spec| {
        spec["linux"]["resources"]["pids"] = json!({"limit": 1});
    });
    scratch.run(&bundle).ok();
}

fn youki_3434_exec_without_any_capability(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]).with(|spec| {
        spec["process"]["capabilities"] = json!({});
    });
    scratch.start(&bundle);
    let process = json!({
        "args": ["grep", "CapEff", "/proc/self/status"], "cwd": "/", "env": ["PATH=/bin"],
        "user": {"uid": 1000, "gid": 1000}, "capabilities": {}, "noNewPrivileges": true,
    });
    let said = scratch.exec_process(&bundle, &process);
    assert!(said.ok().trim().ends_with("0000000000000000"), "{said}");
    scratch.end(&bundle);
}

fn youki_2528_every_hierarchy_has_the_container(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["cat", "/proc/self/cgroup"]);
    let path = bundle.spec["linux"]["cgroupsPath"]
        .as_str()
        .unwrap()
        .to_owned();
    let seen = scratch.run(&bundle).ok().to_owned();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mounted = |controllers: &str| {
        let v1 = controllers
            .split(',')
            .any(|name| mounts.contains(&format!("/cgroup/{name} ")));
        v1 || controllers.starts_with("name=") && mounts.contains(controllers)
    };
    for line in seen.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, own) = (parts.next().unwrap(), parts.next().unwrap());
        if mounted(controllers) {
            assert_eq!(own, path, "{line}");
        }
    }
}

fn youki_1640_a_failed_run_leaves_the_id_free(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["/nosuchprogram"]);
    scratch.run(&bundle).failed();
    scratch.call(&["state", "box"]).failed();
    scratch.run(&bundle.args(&["true"])).ok();
}

fn youki_1543_a_second_delete_is_content(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    let pid = scratch.start(&bundle);
    scratch.call(&["delete", "--force", "box"]).ok();
    scratch.call(&["delete", "--force", "box"]).ok();
    scratch.exit_of(pid);
}

fn youki_457_a_small_memory_limit_hangs_nobody(scratch: &Scratch) {
    for limit in [4 << 10, 256 << 10, 1 << 20] {
        let bundle = scratch
            .bundle(&format!("box-{limit}"))
            .args(&["true"])
            .with(|spec| {
                spec["linux"]["resources"]["memory"] = json!({"limit": limit, "swap": limit});
            });
        // Whether it can live with so little is the kernel's to say; that it comes to an end is ours.
        let _ = scratch.run(&bundle);
        // A runtime that was killed itself, inside the cgroup, could not clean up.
        let _ = scratch.call(&["delete", "--force", &bundle.id]);
    }
}

fn boxlite_349_concurrent_execs(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    scratch.start(&bundle);
    std::thread::scope(|scope| {
        for code in 1..=16 {
            let bundle = &bundle;
            scope.spawn(move || {
                let script = format!("exit {code}");
                let ran = scratch.exec(bundle, &["sh", "-c", &script]);
                assert_eq!(ran.status.code(), Some(code), "{ran}");
            });
        }
    });
    scratch.end(&bundle);
}

fn youki_3504_hooks_a_listener_and_a_user_namespace(scratch: &Scratch) {
    let socket = scratch.path("agent");
    // Connections wait in its backlog.
    let _agent = UnixListener::bind(&socket).unwrap();
    let seen = scratch.path("seen");
    let bundle = scratch.bundle("box").args(&["true"]).user_namespace(100_000).with(|spec| {
        let hook = json!([{"path": "/bin/sh", "args": ["sh", "-c", format!("echo x >>{}", text(&seen))]}]);
        spec["hooks"] = json!({"createRuntime": hook, "prestart": hook});
        spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": text(&socket),
            "syscalls": [{"names": ["acct"], "action": "SCMP_ACT_NOTIFY"}],
        });
    });
    scratch.run(&bundle).ok();
    assert_eq!(fs::read_to_string(&seen).unwrap(), "x\nx\n");
}

fn youki_3432_exec_adds_no_mounts(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    let pid = scratch.start(&bundle);
    let mounts = || {
        fs::read_to_string(format!("/proc/{pid}/mountinfo"))
            .unwrap()
            .lines()
            .count()
    };
    let before = mounts();
    for _ in 0..3 {
        scratch.exec(&bundle, &["true"]).ok();
    }
    assert_eq!(mounts(), before);
    scratch.end(&bundle);
}

fn youki_1637_init_is_a_child_of_the_caller_s_parent(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    let pid = scratch.start(&bundle);
    // The test is the subreaper that create's orphans come to.
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(
        status.contains(&format!("PPid:\t{}\n", std::process::id())),
        "{status}"
    );
    scratch.end(&bundle);
}

fn youki_481_the_state_is_nobody_else_s(scratch: &Scratch) {
    let bundle = scratch
        .bundle("box")
        .args(&["sleep", "600"])
        .docker_seccomp();
    scratch.create(&bundle);
    let readable = |path: &Path| path.symlink_metadata().unwrap().permissions().mode() & 0o077;
    let mut files = 0;
    for entry in fs::read_dir(scratch.root().join("box")).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(readable(&path), 0, "{}", path.display());
        files += 1;
    }
    assert!(files >= 4, "{files}");
    // It may be passed through, and not listed.
    assert_eq!(readable(&scratch.root().join("box")), 0o011);
    scratch.end(&bundle);
}

fn youki_3621_the_host_keeps_its_propagation(scratch: &Scratch) {
    // By mount id: what others mount and unmount meanwhile is not looked at.
    let propagation = || -> BTreeMap<String, String> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        mounts
            .lines()
            .map(|line| {
                let words: Vec<&str> = line.split(' ').collect();
                let fields = words.iter().skip(6).take_while(|word| **word != "-");
                let fields: Vec<&str> = fields.copied().collect();
                (format!("{} {}", words[0], words[4]), fields.join(" "))
            })
            .collect()
    };
    let before = propagation();
    for (name, kind) in [("a", "rslave"), ("b", "rprivate"), ("c", "rshared")] {
        let bundle = scratch.bundle(name).args(&["true"]).with(|spec| {
            spec["linux"]["rootfsPropagation"] = json!(kind);
        });
        // crun and runc cannot have all of them here; what they do to the host is what counts.
        let _ = scratch.run(&bundle);
        for (mount, now) in propagation() {
            if let Some(then) = before.get(&mount) {
                assert_eq!(&now, then, "{kind}: {mount}");
            }
        }
    }
}
