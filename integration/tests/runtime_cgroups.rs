//! cgroups: where the container is put, its limits, devices, freezer, and that they are removed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use holdfast_integration::bundle::Bundle;
use holdfast_integration::runtime::Kind;
use holdfast_integration::scratch::Scratch;
use holdfast_integration::{on_runtimes, skip};
use serde_json::json;

on_runtimes! {
    init_and_exec_are_in_every_hierarchy: holdfast runc crun;
    limits_are_written: holdfast runc crun;
    a_process_limit_holds: holdfast runc crun;
    a_memory_limit_kills: holdfast runc crun;
    devices_that_are_not_allowed_are_refused: holdfast runc crun;
    cgroups_made_by_the_container_are_removed_too: holdfast runc;
    a_limit_that_is_no_good_is_named: holdfast runc;
    a_failed_create_leaves_no_cgroup: holdfast runc crun;
    parents_of_somebody_else_stay_as_they_are: holdfast runc;
    delete_by_force_ends_every_process_of_the_cgroup: holdfast runc crun;
    exec_into_a_container_that_divided_its_cgroup: holdfast runc crun;
    // runc switches on all there are.
    only_controllers_that_are_needed_are_switched_on: holdfast;
    exec_below_in_some_hierarchies: holdfast runc;
    exec_below_with_one_hierarchy: holdfast runc;
    // runc 1.1.5 does it with the systemd driver only.
    a_user_namespace_owns_its_cgroup_when_it_can_write_it: holdfast;
}

/// The container's cgroup of one controller: its v1 hierarchy, or v2's only one.
fn cgroup(bundle: &Bundle, controller: &str) -> PathBuf {
    let path = bundle.spec["linux"]["cgroupsPath"]
        .as_str()
        .unwrap()
        .trim_start_matches('/');
    let v1 = Path::new("/sys/fs/cgroup").join(controller);
    if v1.is_dir() {
        v1.join(path)
    } else {
        Path::new("/sys/fs/cgroup").join(path)
    }
}

fn is_v1(controller: &str) -> bool {
    Path::new("/sys/fs/cgroup").join(controller).is_dir()
}

/// Whether containers can be bound to processors: v1's hierarchy, or v2's controller.
fn has_cpuset() -> bool {
    is_v1("cpuset")
        || fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
            .is_ok_and(|list| list.split_whitespace().any(|c| c == "cpuset"))
}

fn init_and_exec_are_in_every_hierarchy(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    let pid = scratch.start(&bundle);
    let exec = scratch.exec(&bundle, &["cat", "/proc/self/cgroup"]);
    let of_init = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = bundle.spec["linux"]["cgroupsPath"].as_str().unwrap();
    if !is_v1("pids") {
        let line = format!("0::{path}");
        assert!(of_init.lines().any(|l| l == line), "{of_init}");
        assert!(exec.ok().lines().any(|l| l == line), "{exec}");
    }
    for controller in ["pids", "memory", "cpu", "devices", "freezer"] {
        if !is_v1(controller) {
            continue;
        }
        let line = |text: &str| {
            text.lines()
                .find(|l| {
                    l.split(':')
                        .nth(1)
                        .unwrap()
                        .split(',')
                        .any(|c| c == controller)
                })
                .unwrap()
                .rsplit(':')
                .next()
                .unwrap()
                .to_owned()
        };
        assert_eq!(line(&of_init), path, "{controller}: {of_init}");
        assert_eq!(line(exec.ok()), path, "{controller}: {exec}");
    }
    scratch.end(&bundle);
}

fn limits_are_written(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]).with(|spec| {
        spec["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
        spec["linux"]["resources"]["pids"] = json!({"limit": 33});
        spec["linux"]["resources"]["cpu"] =
            json!({"shares": 512, "quota": 50_000, "period": 100_000});
        // User-mode Linux has one processor and no such controller.
        if has_cpuset() {
            spec["linux"]["resources"]["cpu"]["cpus"] = json!("0");
        }
    });
    scratch.start(&bundle);
    let read = |controller: &str, file: &str| {
        let path = cgroup(&bundle, controller).join(file);
        fs::read_to_string(&path)
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
            .trim()
            .to_owned()
    };
    if is_v1("memory") {
        assert_eq!(
            read("memory", "memory.limit_in_bytes"),
            (64 << 20).to_string()
        );
        assert_eq!(read("cpu", "cpu.shares"), "512");
        assert_eq!(read("cpu", "cpu.cfs_quota_us"), "50000");
        assert_eq!(read("cpu", "cpu.cfs_period_us"), "100000");
        assert_eq!(read("cpuset", "cpuset.cpus"), "0");
    } else {
        assert_eq!(read("memory", "memory.max"), (64 << 20).to_string());
        assert_eq!(read("cpu", "cpu.max"), "50000 100000");
        if has_cpuset() {
            assert_eq!(read("cpuset", "cpuset.cpus"), "0");
        }
    }
    assert_eq!(read("pids", "pids.max"), "33");
    scratch.end(&bundle);
}

fn a_process_limit_holds(scratch: &Scratch) {
    let bundle = scratch.bundle("pids").with(|spec| {
        spec["linux"]["resources"]["pids"] = json!({"limit": 5});
    });
    let ran = scratch.run(&bundle.script("for i in 1 2 3 4 5 6 7 8; do sleep 1 & done; wait"));
    assert!(
        ran.stderr.contains("Resource temporarily unavailable"),
        "{ran}"
    );
}

fn a_memory_limit_kills(scratch: &Scratch) {
    let bundle = scratch.bundle("memory").with(|spec| {
        spec["linux"]["resources"]["memory"] = json!({"limit": 24 << 20});
    });
    // Standard input for tail is endless and without lines: it keeps everything.
    let ran = scratch.run(&bundle.args(&["tail", "-n", "1", "/dev/zero"]));
    assert_eq!(ran.code(), 137, "{ran}");
}

fn devices_that_are_not_allowed_are_refused(scratch: &Scratch) {
    let bundle = scratch.bundle("devices").script(
        "mknod /tmp/kmsg c 1 11 && cat /tmp/kmsg; mknod /tmp/null c 1 3 && echo x >/tmp/null && echo fine",
    );
    let bundle = bundle.with(|spec| {
        // As docker has it: mknod of anything, use of little.
        spec["linux"]["resources"]["devices"] = json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "access": "m"},
            {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
        ]);
    });
    let ran = scratch.run(&bundle);
    assert_eq!(ran.stdout, "fine\n", "{ran}");
    assert!(ran.stderr.contains("Operation not permitted"), "{ran}");
}

fn cgroups_made_by_the_container_are_removed_too(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    scratch.start(&bundle);
    for controller in ["pids", "memory", "freezer"] {
        if is_v1(controller) {
            fs::create_dir_all(cgroup(&bundle, controller).join("inner/most")).unwrap();
        }
    }
    if !is_v1("pids") {
        fs::create_dir_all(cgroup(&bundle, "pids").join("inner/most")).unwrap();
    }
    scratch.end(&bundle);
    // That nothing of it is left is looked at after every test.
}

fn a_limit_that_is_no_good_is_named(scratch: &Scratch) {
    let bundle = scratch.bundle("bad").with(|spec| {
        spec["linux"]["resources"]["cpu"] = json!({"cpus": "0-999999"});
    });
    bundle.write();
    let (refused, _) = scratch.try_create(&bundle, &[]);
    assert!(refused.failed().contains("cpuset"), "{refused}");
}

fn a_failed_create_leaves_no_cgroup(scratch: &Scratch) {
    // Fails late, inside the container, when its cgroups exist already.
    let bundle = scratch.bundle("late").mount(json!({
        "destination": "/mnt", "type": "nosuchfs", "source": "nothing", "options": [],
    }));
    bundle.write();
    let (refused, _) = scratch.try_create(&bundle, &[]);
    refused.failed();
}

fn delete_by_force_ends_every_process_of_the_cgroup(scratch: &Scratch) {
    if scratch.runtime.kind == Kind::Runc && !is_v1("pids") {
        let why = "on v2 runc 1.1.5 says that it deleted, and may leave the cgroup";
        return holdfast_integration::skip("delete_by_force", why);
    }
    let bundle = scratch.bundle("box").without_namespace("pid");
    let bundle = bundle.script("sleep 600 & setsid sleep 600 & touch /tmp/up; wait");
    scratch.start(&bundle);
    let up = bundle.in_rootfs("tmp/up");
    holdfast_integration::deadline::eventually(
        "it is up",
        std::time::Duration::from_secs(20),
        || up.exists().then_some(()),
    );
    scratch.call(&["delete", "--force", "box"]).ok();
    assert!(!cgroup(&bundle, "pids").exists());
}

fn exec_into_a_container_that_divided_its_cgroup(scratch: &Scratch) {
    if is_v1("pids") {
        return holdfast_integration::skip("a_divided_cgroup", "needs cgroup v2");
    }
    // As systemd and docker do in a container: then no process may join the container's own.
    let script = "cd /sys/fs/cgroup && mkdir inner && echo $$ >inner/cgroup.procs && \
                  echo +pids >cgroup.subtree_control && touch /tmp/up && exec sleep 600";
    let bundle = scratch
        .bundle("box")
        .namespace("cgroup", None)
        .mount(json!({
            "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "rw"],
        }));
    let bundle = bundle.script(script);
    scratch.start(&bundle);
    let up = bundle.in_rootfs("tmp/up");
    holdfast_integration::deadline::eventually(
        "it is divided",
        std::time::Duration::from_secs(20),
        || up.exists().then_some(()),
    );
    let shown = scratch.exec(&bundle, &["cat", "/proc/self/cgroup"]);
    assert!(shown.ok().contains("/inner\n"), "{shown}");
    scratch.end(&bundle);
}

/// runtime-spec, config-linux.md, "Cgroup ownership".
fn a_user_namespace_owns_its_cgroup_when_it_can_write_it(scratch: &Scratch) {
    use std::os::unix::fs::MetadataExt as _;
    if is_v1("pids") {
        let why = "delegation is of cgroup v2 (make test-v2 boots a machine with it)";
        return holdfast_integration::skip("a_user_namespace_owns_its_cgroup", why);
    }
    for (name, access, owner) in [("writable", "rw", 100_000), ("readable", "ro", 0)] {
        let bundle = scratch
            .bundle(name)
            .args(&["sleep", "600"])
            .user_namespace(100_000)
            .namespace("cgroup", None)
            .mount(json!({
                "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                "options": ["nosuid", "noexec", "nodev", access],
            }));
        scratch.start(&bundle);
        let dir = cgroup(&bundle, "pids");
        let of = |file: &str| fs::metadata(dir.join(file)).unwrap().uid();
        assert_eq!((of("."), of("cgroup.procs")), (owner, owner), "{name}");
        // A limit stays the host's.
        assert_eq!(of("pids.max"), 0, "{name}");
        if owner != 0 {
            scratch
                .exec(&bundle, &["mkdir", "/sys/fs/cgroup/below"])
                .ok();
        }
        scratch.end(&bundle);
    }
}

/// As the kubelet's slices: limits of the parent are not touched, and it is there afterwards. On v2
/// the controllers that the container needs may be handed down, no others.
fn parents_of_somebody_else_stay_as_they_are(scratch: &Scratch) {
    const KEPT: &[&str] = &[
        "cpu.max",
        "cpu.shares",
        "cpu.weight",
        "cpuset.cpus",
        "cpuset.mems",
        "devices.list",
        "freezer.state",
        "memory.limit_in_bytes",
        "memory.max",
        "memory.swappiness",
        "notify_on_release",
        "pids.max",
    ];
    let parent = format!("{}/kubepods/pod", scratch.cgroup);
    let folders: Vec<_> = holdfast_integration::leaks::hierarchies()
        .into_iter()
        .map(|hierarchy| {
            let folder = hierarchy.join(&parent);
            std::fs::create_dir_all(&folder).unwrap();
            // v1: a new cpuset is empty, and takes nobody.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let mut path = hierarchy.clone();
                for part in parent.split('/') {
                    let value = std::fs::read(path.join(file)).unwrap_or_default();
                    path.push(part);
                    let _ = std::fs::write(path.join(file), value);
                }
            }
            // v2: limits are there for controllers that were handed down.
            let mut path = hierarchy.clone();
            for part in parent.split('/') {
                let _ = std::fs::write(path.join("cgroup.subtree_control"), "+pids");
                path.push(part);
            }
            folder
        })
        .collect();
    let _ = std::fs::write(folders[0].join("pids.max"), "77");
    let seen = || -> Vec<(std::path::PathBuf, String)> {
        folders
            .iter()
            .flat_map(|folder| KEPT.iter().map(|file| folder.join(file)))
            .filter_map(|file| Some((file.clone(), std::fs::read_to_string(file).ok()?)))
            .collect()
    };
    let before = seen();
    assert!(!before.is_empty());
    let bundle = scratch.bundle("box").args(&["sleep", "600"]).with(|spec| {
        spec["linux"]["cgroupsPath"] = serde_json::json!(format!("/{parent}/box"));
        spec["linux"]["resources"]["pids"] = serde_json::json!({"limit": 30});
    });
    scratch.start(&bundle);
    // v2: files of controllers that are handed down by now come on top, with the kernel's defaults.
    let among = |now: Vec<_>| before.iter().all(|file| now.contains(file));
    assert!(
        among(seen()),
        "while it runs: {:?}, before: {before:?}",
        seen()
    );
    for folder in folders
        .iter()
        .filter(|_| scratch.runtime.kind == Kind::Holdfast)
    {
        let handed = std::fs::read_to_string(folder.join("cgroup.subtree_control"));
        for controller in handed.unwrap_or_default().split_whitespace() {
            assert!(
                ["pids", "cpu", "memory", "io"].contains(&controller),
                "not asked for: {controller}"
            );
        }
    }
    scratch.end(&bundle);
    assert!(
        among(seen()),
        "afterwards: {:?}, before: {before:?}",
        seen()
    );
    for folder in folders.iter().rev() {
        assert!(folder.is_dir(), "{} is gone", folder.display());
        std::fs::remove_dir(folder).unwrap();
        std::fs::remove_dir(folder.parent().unwrap()).unwrap();
    }
}

/// v2: what limits and statistics need, in directories of our own; what an update needs later.
fn only_controllers_that_are_needed_are_switched_on(scratch: &Scratch) {
    if is_v1("pids") {
        return skip(
            "only_controllers_that_are_needed",
            "this machine has cgroup v1",
        );
    }
    let bundle = scratch.bundle("box").args(&["sleep", "600"]).with(|spec| {
        spec["linux"]["resources"] = json!({"pids": {"limit": 50}});
    });
    scratch.start(&bundle);
    let own = cgroup(&bundle, "");
    let read = |path: PathBuf| fs::read_to_string(path).unwrap();
    let on = || read(own.join("cgroup.controllers")).trim().to_owned();
    assert_eq!(on(), "io memory pids");
    assert_eq!(read(own.join("pids.max")).trim(), "50");
    scratch.call(&["update", "--cpu-share", "512", "box"]).ok();
    assert_eq!(on(), "cpu io memory pids");
    assert_ne!(read(own.join("cpu.weight")).trim(), "100");
    assert_eq!(read(own.join("pids.max")).trim(), "50");
    scratch.end(&bundle);
}

/// Where an exec with these options is, as `/proc/PID/cgroup` tells.
fn place_of_exec(scratch: &Scratch, options: &[&str]) -> BTreeMap<String, String> {
    let mut words = vec!["exec"];
    words.extend(options.iter().flat_map(|option| ["--cgroup", option]));
    words.extend(["box", "cat", "/proc/self/cgroup"]);
    let said = scratch.call(&words);
    let line = |line: &str| {
        let mut parts = line.splitn(3, ':').skip(1);
        let mut part = || parts.next().unwrap().to_owned();
        (part(), part())
    };
    said.ok().lines().map(line).collect()
}

/// `exec --cgroup CONTROLLER:PATH`, which only the old hierarchies have.
fn exec_below_in_some_hierarchies(scratch: &Scratch) {
    if !is_v1("pids") {
        return skip(
            "exec_below_in_some_hierarchies",
            "this machine has no cgroup v1",
        );
    }
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    scratch.start(&bundle);
    let own = format!("/{}/box", scratch.cgroup);
    for (controller, name) in [("pids", "sub"), ("freezer", "sub"), ("freezer", "other")] {
        fs::create_dir(cgroup(&bundle, controller).join(name)).unwrap();
    }
    let plain = place_of_exec(scratch, &[]);
    assert_eq!(plain["pids"], own);
    let differences = |options: &[&str]| {
        let mut found = place_of_exec(scratch, options);
        found.retain(|hierarchy, place| plain[hierarchy] != *place);
        found.into_iter().collect::<Vec<_>>()
    };
    let of = |controller: &str, below: &str| (controller.to_owned(), format!("{own}/{below}"));
    assert_eq!(differences(&["pids:/sub"]), [of("pids", "sub")]);
    let both = [of("freezer", "sub"), of("pids", "sub")];
    assert_eq!(differences(&["pids,freezer:sub"]), both);
    let apart = [of("freezer", "other"), of("pids", "sub")];
    assert_eq!(differences(&["freezer:other", "pids:sub"]), apart);
    assert_eq!(differences(&["/"]), []);
    assert_eq!(differences(&["pids:/"]), []);

    for (options, why) in [
        (
            &["pids:sub", "sub"][..],
            "CONTROLLER|missing <controller>: prefix",
        ),
        (&["pids:a:b"], "pids:a:b"),
        (&["nothing:/sub"], "unknown controller"),
        (&["pids:/../x"], "..|is not a sub cgroup path"),
        (&["pids:/missing"], "missing"),
        // In some hierarchies only: in the others it would be outside of its limits.
        (&["/sub"], "box/sub"),
    ] {
        let mut words = vec!["exec"];
        words.extend(options.iter().flat_map(|option| ["--cgroup", option]));
        words.extend(["box", "true"]);
        let said = scratch.call(&words);
        assert_eq!(said.code(), 255, "{options:?}: {said}");
        let named = why.split('|').any(|why| said.stderr.contains(why));
        assert!(named, "{options:?}: {said}");
    }
    scratch.end(&bundle);
}

/// On v2 there is nothing to choose between.
fn exec_below_with_one_hierarchy(scratch: &Scratch) {
    if is_v1("pids") {
        return skip(
            "exec_below_with_one_hierarchy",
            "this machine has cgroup v1",
        );
    }
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    scratch.start(&bundle);
    let sub = cgroup(&bundle, "").join("sub");
    fs::create_dir(&sub).unwrap();
    let said = scratch.call(&["exec", "--cgroup", "pids:/sub", "box", "true"]);
    assert_eq!(said.code(), 255, "{said}");
    assert!(said.stderr.contains("unknown controller"), "{said}");
    let place = place_of_exec(scratch, &["/sub"]);
    assert!(place[""].ends_with("/sub"), "{place:?}");
    scratch.end(&bundle);
}
