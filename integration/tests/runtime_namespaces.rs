//! Namespaces: new ones, joined ones, shared ones; user namespaces; names of the host.

use std::fs;

use holdfast_integration::on_runtimes;
use holdfast_integration::scratch::Scratch;
use serde_json::json;

on_runtimes! {
    namespaces_are_new_or_shared_as_asked: holdfast runc crun;
    namespaces_of_another_container_are_joined: holdfast runc crun;
    a_joined_pid_namespace_shows_its_processes: holdfast runc crun;
    host_and_domain_name_are_set: holdfast crun;
    host_name_is_set: holdfast runc crun;
    a_user_namespace_maps_ids: holdfast runc crun;
    a_user_namespace_with_docker_s_profile: holdfast runc crun;
    exec_joins_the_user_namespace: holdfast runc crun;
    a_container_without_pid_namespace_is_killed_whole: holdfast runc crun;
    a_cgroup_namespace_hides_the_path: holdfast runc;
}

const KINDS: &[(&str, &str)] = &[
    ("pid", "pid"),
    ("network", "net"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("mount", "mnt"),
];

fn namespace(pid: i32, file: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{file}"))
        .unwrap()
        .to_string_lossy()
        .into_owned()
}

fn own(file: &str) -> String {
    fs::read_link(format!("/proc/self/ns/{file}"))
        .unwrap()
        .to_string_lossy()
        .into_owned()
}

fn namespaces_are_new_or_shared_as_asked(scratch: &Scratch) {
    let bundle = scratch.bundle("new").args(&["sleep", "600"]);
    let pid = scratch.start(&bundle);
    for (kind, file) in KINDS {
        assert_ne!(namespace(pid, file), own(file), "{kind}");
    }
    assert_eq!(namespace(pid, "user"), own("user"));
    scratch.end(&bundle);
    let shared = scratch.bundle("shared").args(&["sleep", "600"]);
    let shared = shared
        .without_namespace("network")
        .without_namespace("ipc")
        .without_namespace("uts");
    let shared = shared.with(|spec| {
        spec.as_object_mut().unwrap().remove("hostname");
        spec["mounts"]
            .as_array_mut()
            .unwrap()
            .retain(|m| m["type"] != "sysfs" && m["type"] != "mqueue");
    });
    let pid = scratch.start(&shared);
    for file in ["net", "ipc", "uts"] {
        assert_eq!(namespace(pid, file), own(file), "{file}");
    }
    scratch.end(&shared);
}

fn namespaces_of_another_container_are_joined(scratch: &Scratch) {
    let first = scratch.bundle("first").args(&["sleep", "600"]);
    let first_pid = scratch.start(&first);
    let mut second = scratch.bundle("second").args(&["sleep", "600"]);
    for (kind, file) in [("network", "net"), ("ipc", "ipc"), ("uts", "uts")] {
        second = second.namespace(kind, Some(&format!("/proc/{first_pid}/ns/{file}")));
    }
    second.spec.as_object_mut().unwrap().remove("hostname");
    let second_pid = scratch.start(&second);
    for file in ["net", "ipc", "uts"] {
        assert_eq!(
            namespace(second_pid, file),
            namespace(first_pid, file),
            "{file}"
        );
    }
    for file in ["pid", "mnt"] {
        assert_ne!(
            namespace(second_pid, file),
            namespace(first_pid, file),
            "{file}"
        );
    }
    assert_eq!(scratch.exec(&second, &["hostname"]).ok(), "testbox\n");
    scratch.end(&second);
    scratch.end(&first);
}

fn a_joined_pid_namespace_shows_its_processes(scratch: &Scratch) {
    let first = scratch.bundle("first").args(&["sleep", "600"]);
    let first_pid = scratch.start(&first);
    let second = scratch.bundle("second").args(&["sleep", "601"]);
    let second = second.namespace("pid", Some(&format!("/proc/{first_pid}/ns/pid")));
    let second_pid = scratch.start(&second);
    assert_eq!(namespace(second_pid, "pid"), namespace(first_pid, "pid"));
    let shown = scratch.exec(&second, &["ps", "-o", "args"]);
    assert!(
        shown.ok().contains("sleep 600") && shown.stdout.contains("sleep 601"),
        "{shown}"
    );
    scratch.end(&second);
    scratch.end(&first);
}

fn host_name_is_set(scratch: &Scratch) {
    assert_eq!(
        scratch
            .run(&scratch.bundle("name").args(&["hostname"]))
            .ok(),
        "testbox\n"
    );
}

fn host_and_domain_name_are_set(scratch: &Scratch) {
    let bundle = scratch
        .bundle("name")
        .script("hostname; cat /proc/sys/kernel/domainname");
    let bundle = bundle.with(|spec| spec["domainname"] = json!("example.test"));
    assert_eq!(scratch.run(&bundle).ok(), "testbox\nexample.test\n");
}

fn a_user_namespace_maps_ids(scratch: &Scratch) {
    let bundle = scratch.bundle("user").user_namespace(200_000);
    let bundle = bundle
        .script("id -u; cat /proc/self/uid_map /proc/self/gid_map; touch /tmp/made; sleep 600");
    let pid = scratch.start(&bundle);
    assert_ne!(namespace(pid, "user"), own("user"));
    let made = bundle.in_rootfs("tmp/made");
    holdfast_integration::deadline::eventually(
        "the file is made",
        std::time::Duration::from_secs(20),
        || made.exists().then_some(()),
    );
    let (shown, errors) = scratch.output(&bundle);
    let words: Vec<&str> = shown.split_whitespace().collect();
    assert_eq!(
        words,
        ["0", "0", "200000", "65536", "0", "200000", "65536"],
        "{shown}{errors}"
    );
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!(fs::metadata(made).unwrap().uid(), 200_000);
    assert_eq!(fs::metadata(format!("/proc/{pid}")).unwrap().uid(), 200_000);
    scratch.end(&bundle);
}

fn a_user_namespace_with_docker_s_profile(scratch: &Scratch) {
    let bundle = scratch
        .bundle("user")
        .user_namespace(200_000)
        .docker_seccomp();
    let bundle = bundle.script("grep -E '^(Seccomp:|CapEff)' /proc/self/status | tr '\\t\\n' '  '");
    let shown = scratch.run(&bundle);
    assert!(shown.ok().contains("Seccomp: 2"), "{shown}");
    assert!(shown.ok().contains("CapEff: 00000000a80425fb"), "{shown}");
}

fn exec_joins_the_user_namespace(scratch: &Scratch) {
    let bundle = scratch
        .bundle("user")
        .user_namespace(200_000)
        .args(&["sleep", "600"]);
    scratch.start(&bundle);
    let shown = scratch.exec(
        &bundle,
        &["sh", "-c", "id -u; cat /proc/self/uid_map; touch /tmp/made"],
    );
    let words: Vec<&str> = shown.ok().split_whitespace().collect();
    assert_eq!(words, ["0", "0", "200000", "65536"], "{shown}");
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!(
        fs::metadata(bundle.in_rootfs("tmp/made")).unwrap().uid(),
        200_000
    );
    scratch.end(&bundle);
}

fn a_container_without_pid_namespace_is_killed_whole(scratch: &Scratch) {
    let bundle = scratch.bundle("hostpid").without_namespace("pid");
    let bundle = bundle.script("sleep 612 & sleep 613 & touch /tmp/up; wait");
    let pid = scratch.start(&bundle);
    let up = bundle.in_rootfs("tmp/up");
    holdfast_integration::deadline::eventually(
        "it is up",
        std::time::Duration::from_secs(20),
        || up.exists().then_some(()),
    );
    // Killing by `--all`, or deleting by force, must reach what has no pid namespace to die with.
    scratch.call(&["kill", "--all", "hostpid", "KILL"]).ok();
    scratch.exit_of(pid);
    scratch.call(&["delete", "--force", "hostpid"]).ok();
}

fn a_cgroup_namespace_hides_the_path(scratch: &Scratch) {
    let bundle = scratch
        .bundle("cg")
        .args(&["cat", "/proc/self/cgroup"])
        .namespace("cgroup", None);
    let shown = scratch.run(&bundle);
    let pids = shown
        .ok()
        .lines()
        .find(|line| line.contains(":pids:") || line.starts_with("0::"));
    assert!(pids.unwrap().ends_with(":/"), "{shown}");
    assert!(!shown.stdout.contains(&scratch.cgroup), "{shown}");
}
