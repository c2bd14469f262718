use std::os::unix::fs::symlink;

use super::*;

/// A folder that looks like a node.
struct Tree {
    folder: tempfile::TempDir,
}

const HOST: &str = "mnt:[4026531840]";
const HOST_MOUNTS: &str = "1 0 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n\
    2 1 0:30 / /sys/fs/cgroup rw shared:2 - cgroup2 cgroup2 rw\n";

impl Tree {
    /// A node with nothing to complain about.
    fn healthy() -> Self {
        let tree = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        tree.put("proc/sys/kernel/osrelease", "6.12.1\n");
        tree.put("proc/filesystems", "nodev\toverlay\nnodev\tcgroup2\n");
        tree.put(
            "proc/sys/kernel/seccomp/actions_avail",
            "kill errno user_notif allow\n",
        );
        tree.put("proc/sys/fs/pipe-user-pages-soft", "16384\n");
        tree.put(
            "proc/net/unix",
            "Num RefCount Protocol Flags Type St Inode Path\n",
        );
        tree.put("run/systemd/system/x", "");
        tree.put("run/systemd/journal/stdout", "");
        tree.put("run/systemd/journal/socket", "");
        tree.put("sys/kernel/tracing/instances/x", "");
        tree.put("var/lib/holdfast/ledger/x", "");
        tree.put(
            "etc/containerd/config.toml",
            "version = 2\nimports = [\"conf.d/*.toml\"]\n",
        );
        tree.put(
            "etc/containerd/conf.d/holdfast.toml",
            "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.holdfast]\n\
             runtime_type = \"io.containerd.holdfast.v2\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.holdfast.options]\n\
             SystemdCgroup = true\n",
        );
        tree.process(1, "systemd", 'S', 0, HOST, HOST_MOUNTS);
        tree.process(50, "containerd", 'S', 1, HOST, HOST_MOUNTS);
        tree.process(60, "containerd-shim", 'S', 1, HOST, HOST_MOUNTS);
        tree.process(
            61,
            "train",
            'S',
            60,
            "mnt:[7]",
            "9 0 0:77 / / rw - overlay o rw\n",
        );
        tree
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn link(&self, path: &str, target: &str) {
        let path = self.folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _ = std::fs::remove_file(&path);
        symlink(target, path).unwrap();
    }

    fn process(&self, pid: u32, comm: &str, state: char, parent: u32, ns: &str, mounts: &str) {
        self.put(
            &format!("proc/{pid}/stat"),
            &format!("{pid} ({comm}) {state} {parent} 0 0\n"),
        );
        self.put(
            &format!("proc/{pid}/status"),
            "Name:\tx\nUid:\t7\t7\t7\t7\n",
        );
        self.put(&format!("proc/{pid}/mountinfo"), mounts);
        self.put(
            &format!("proc/{pid}/cmdline"),
            &format!("/usr/bin/{comm}\0"),
        );
        self.link(&format!("proc/{pid}/ns/mnt"), ns);
        self.link(&format!("proc/{pid}/cwd"), "/run/bundle");
    }

    fn report(&self) -> Report {
        examine(&Node::at(self.folder.path()))
    }

    /// The finding `check`, which must be there.
    #[track_caller]
    fn finding(&self, check: &str) -> Finding {
        let report = self.report();
        let mut findings = report.findings.into_iter();
        findings
            .find(|finding| finding.check == check)
            .unwrap_or_else(|| panic!("no finding {check}"))
    }
}

#[test]
fn nothing_is_found_on_a_node_that_is_in_order() {
    let report = Tree::healthy().report();
    assert_eq!(report.findings, []);
    assert!(report.in_order.len() >= 10, "{:?}", report.in_order);
    assert_eq!((report.worst(), report.exit_code()), (None, 0));
    assert!(report.text().contains("0 problems, 0 warnings, 0 notes"));
}

#[test]
fn an_old_kernel_is_a_problem_and_a_newish_one_names_its_losses() {
    let tree = Tree::healthy();
    tree.put("proc/sys/kernel/osrelease", "5.4.0-generic\n");
    assert_eq!(tree.finding("kernel").level, Level::Problem);
    tree.put("proc/sys/kernel/osrelease", "5.15.0\n");
    let finding = tree.finding("kernel-features");
    assert_eq!(finding.level, Level::Note);
    assert!(
        finding
            .evidence
            .iter()
            .any(|line| line.contains("memory.peak"))
    );
    assert!(
        !finding
            .evidence
            .iter()
            .any(|line| line.contains("cgroup.kill"))
    );
    tree.put("proc/filesystems", "nodev\tproc\n");
    assert_eq!(tree.finding("overlay").level, Level::Warning);
    tree.put("proc/sys/kernel/seccomp/actions_avail", "kill allow\n");
    assert_eq!(tree.finding("seccomp").level, Level::Warning);
    tree.put("proc/sys/user/max_user_namespaces", "0\n");
    assert_eq!(tree.finding("user-namespaces").level, Level::Note);
}

#[test]
fn cgroup_modes_and_drivers_that_disagree() {
    let tree = Tree::healthy();
    let hybrid = format!("{HOST_MOUNTS}3 1 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw\n");
    tree.put("proc/1/mountinfo", &hybrid);
    assert!(tree.finding("cgroup-mode").what.contains("hybrid"));
    tree.put(
        "proc/1/mountinfo",
        "1 0 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n",
    );
    assert_eq!(tree.finding("cgroup-mode").level, Level::Problem);
    tree.put(
        "var/lib/kubelet/config.yaml",
        "kind: x\ncgroupDriver: cgroupfs\n",
    );
    let finding = tree.finding("cgroup-driver");
    assert_eq!(finding.level, Level::Problem);
    assert_eq!(finding.evidence[0], "kubelet: cgroupfs");
}

#[test]
fn containerd_that_is_gone_broken_or_without_us() {
    let tree = Tree::healthy();
    tree.put("etc/containerd/conf.d/holdfast.toml", "");
    let finding = tree.finding("drop-in");
    assert_eq!(finding.level, Level::Note);
    tree.put("etc/containerd/config.toml", "version = \n");
    assert_eq!(tree.finding("containerd-config").level, Level::Problem);
    std::fs::remove_dir_all(tree.folder.path().join("proc/50")).unwrap();
    assert_eq!(tree.finding("containerd").level, Level::Note);
    let unsupervised = tree.finding("unsupervised-shims");
    assert!(
        unsupervised.evidence[0].contains("pid 60"),
        "{unsupervised:?}"
    );
}

#[test]
fn a_configuration_named_on_the_command_line_is_the_one_that_counts() {
    let tree = Tree::healthy();
    tree.put("opt/c.toml", "broken");
    tree.put("proc/50/cmdline", "containerd\0--config\0/opt/c.toml\0");
    let finding = tree.finding("containerd-config");
    assert!(
        finding.evidence[0].starts_with("/opt/c.toml: "),
        "{finding:?}"
    );
}

#[test]
fn a_daemon_in_a_namespace_of_its_own_is_found_by_process_and_by_unit() {
    let tree = Tree::healthy();
    let slave = "1 0 8:1 / / rw master:1 - ext4 /dev/sda1 rw\n";
    tree.process(70, "dockerd", 'S', 1, "mnt:[5]", slave);
    let finding = tree.finding("private-mount-namespace");
    assert_eq!(finding.level, Level::Warning);
    assert!(
        finding
            .evidence
            .iter()
            .any(|line| line.contains("master:1"))
    );
    tree.put("etc/docker/daemon.json", "{\"live-restore\": true}");
    assert_eq!(
        tree.finding("private-mount-namespace").level,
        Level::Problem
    );
    tree.put(
        "etc/systemd/system/containerd.service.d/mounts.conf",
        "[Service]\nMountFlags=slave\n",
    );
    let finding = tree.finding("unit-mount-flags");
    assert_eq!(finding.level, Level::Problem);
    assert_eq!(
        finding.evidence,
        ["/etc/systemd/system/containerd.service.d/mounts.conf: MountFlags=slave"]
    );
    assert_eq!(tree.report().exit_code(), 3);
}

#[test]
fn a_root_that_is_not_shared() {
    let tree = Tree::healthy();
    tree.put("proc/1/mountinfo", &HOST_MOUNTS.replace("shared:1 ", ""));
    assert_eq!(tree.finding("root-propagation").level, Level::Note);
}

#[test]
fn a_mount_that_the_node_has_removed_is_found_with_its_holders() {
    let tree = Tree::healthy();
    let root = "/run/containerd/io.containerd.runtime.v2.task/k8s.io/gone/rootfs";
    let kept = format!("1 0 8:1 / / rw - ext4 x rw\n5 1 0:99 / {root} rw - overlay o rw\n");
    tree.process(80, "udevd", 'S', 1, "mnt:[8]", &kept);
    tree.process(81, "worker", 'S', 80, "mnt:[8]", &kept);
    let finding = tree.finding("leaked-mounts");
    assert_eq!(finding.evidence.len(), 1, "{finding:?}");
    let line = &finding.evidence[0];
    assert!(
        line.contains(root) && line.contains("pid 80 (udevd), pid 81 (worker)"),
        "{line}"
    );
    // The same, but the container is there: a copy, not a leak.
    let live = format!("{HOST_MOUNTS}5 1 0:99 / {root} rw - overlay o rw\n");
    tree.put("proc/1/mountinfo", &live);
    assert_eq!(tree.report().findings, []);
}

#[test]
fn pipes_by_limit_and_by_use() {
    let tree = Tree::healthy();
    tree.put("proc/sys/fs/pipe-user-pages-soft", "64\n");
    assert_eq!(tree.finding("pipe-limit").level, Level::Warning);
    for fd in 0..3 {
        tree.link(&format!("proc/61/fd/{fd}"), &format!("pipe:[{fd}]"));
        tree.link(&format!("proc/60/fd/{fd}"), &format!("pipe:[{fd}]"));
    }
    // Three pipes, seen from both ends: 48 of 64 pages are 75 in a hundred.
    let finding = tree.finding("pipe-users");
    assert!(
        finding.evidence[0].starts_with("uid 7: about 48 of 64 pages in 3 pipes"),
        "{finding:?}"
    );
    tree.put("proc/sys/fs/pipe-user-pages-soft", "0\n");
    assert_eq!(tree.report().findings, []);
}

#[test]
fn records_that_cannot_be_kept() {
    let tree = Tree::healthy();
    std::fs::remove_dir_all(tree.folder.path().join("run/systemd/journal")).unwrap();
    assert_eq!(tree.finding("journald").evidence.len(), 2);
    std::fs::remove_dir_all(tree.folder.path().join("sys")).unwrap();
    assert!(tree.finding("tracefs").what.contains("no tracefs"));
    tree.put(
        "var/lib/holdfast/ledger/ledger-00000000000000000001.jsonl",
        "torn\n",
    );
    assert!(tree.finding("ledger").what.starts_with("1 of 1 lines"));
}

#[test]
fn shims_and_sockets_that_nobody_has() {
    let tree = Tree::healthy();
    tree.put("run/containerd/s/dead", "");
    tree.put("run/containerd/s/alive", "");
    tree.put(
        "proc/net/unix",
        "Num RefCount Protocol Flags Type St Inode Path\n\
         0: 2 0 00010000 0001 01 1 /run/containerd/s/alive\n",
    );
    assert_eq!(
        tree.finding("stale-sockets").evidence,
        ["/run/containerd/s/dead"]
    );
    tree.link("proc/60/cwd", "/run/bundle (deleted)");
    let finding = tree.finding("orphaned-shims");
    assert!(
        finding.evidence[0].contains("pid 61 (train)"),
        "{finding:?}"
    );
    // After a SIGKILL of the shim before it.
    tree.process(59, "holdfast-keeper", 'S', 1, HOST, HOST_MOUNTS);
    tree.process(60, "containerd-shim", 'S', 59, HOST, HOST_MOUNTS);
    tree.process(61, "train", 'S', 59, "mnt:[7]", "");
    tree.link("proc/60/cwd", "/run/bundle (deleted)");
    let finding = tree.finding("orphaned-shims");
    assert!(
        finding.evidence[0].contains(" with pid 61 (train);"),
        "{finding:?}"
    );
}

#[test]
fn processes_of_containers_that_cannot_go_on() {
    let tree = Tree::healthy();
    tree.process(90, "jbd2", 'D', 2, HOST, HOST_MOUNTS);
    assert_eq!(tree.report().findings, [], "not of a container");
    tree.process(62, "reader", 'D', 61, "mnt:[7]", "");
    tree.put("proc/62/wchan", "nfs_wait_bit_killable");
    tree.process(63, "paused", 'D', 61, "mnt:[7]", "");
    tree.put("proc/63/cgroup", "4:freezer:/k8s/paused\n0::/\n");
    tree.put("sys/fs/cgroup/freezer/k8s/paused/freezer.state", "FROZEN\n");
    let stuck = tree.finding("stuck-processes");
    assert_eq!(
        stuck.evidence,
        ["pid 62 (reader), in kernel function nfs_wait_bit_killable"]
    );
    assert_eq!(tree.finding("frozen-processes").level, Level::Note);
    // Those of a shim that was killed are its keeper's; the shim itself is of no container.
    tree.process(59, "holdfast-keeper", 'S', 1, HOST, HOST_MOUNTS);
    tree.process(60, "containerd-shim", 'D', 59, HOST, HOST_MOUNTS);
    tree.process(62, "reader", 'D', 59, "mnt:[7]", "");
    assert_eq!(tree.finding("stuck-processes").evidence, stuck.evidence);
}

#[test]
fn scripts_get_levels_and_people_get_the_worst_first() {
    let tree = Tree::healthy();
    tree.put("proc/sys/fs/pipe-user-pages-soft", "64\n");
    tree.put("etc/containerd/conf.d/holdfast.toml", "");
    let report = tree.report();
    assert_eq!(report.exit_code(), 2);
    let text = report.text();
    assert!(text.starts_with("WARNING [pipe-limit]"), "{text}");
    assert!(text.find("note [drop-in]").is_some(), "{text}");
    let json = report.json();
    assert_eq!(json["findings"].as_array().unwrap().len(), 2);
    let warning = json["findings"].as_array().unwrap().iter();
    let levels: Vec<&str> = warning.map(|one| one["level"].as_str().unwrap()).collect();
    assert!(levels.contains(&"warning") && levels.contains(&"note"));
}
