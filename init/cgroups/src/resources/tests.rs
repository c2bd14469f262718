//! Limits against folders that look like cgroups.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::*;
use crate::hierarchy::{Hierarchies, Hierarchy, Kind};
use crate::path::CgroupPath;

/// A folder with one cgroup `c` in each of its hierarchies, holding the given empty files.
struct Fake {
    _root: tempfile::TempDir,
    cgroup: Cgroup,
    dirs: Vec<PathBuf>,
}

fn fake(hierarchies: &[(&[&str], &[&str])]) -> Fake {
    let root = tempfile::tempdir().unwrap();
    let mut list = Vec::new();
    let mut dirs = Vec::new();
    for (n, (controllers, files)) in hierarchies.iter().enumerate() {
        let mount_point = root.path().join(n.to_string());
        let dir = mount_point.join("c");
        std::fs::create_dir_all(&dir).unwrap();
        for file in *files {
            std::fs::write(dir.join(file), "").unwrap();
        }
        let kind = if controllers.is_empty() {
            Kind::V2
        } else {
            Kind::V1 {
                controllers: controllers.iter().map(|&c| c.to_owned()).collect(),
                name: None,
            }
        };
        list.push(Hierarchy {
            mount_point,
            mount_root: "/".into(),
            kind,
        });
        dirs.push(dir);
    }
    let hierarchies = Hierarchies::from_list(list).unwrap();
    let path = CgroupPath::below_root("c".as_ref()).unwrap();
    Fake {
        cgroup: Cgroup::create(&hierarchies, &path, None).unwrap(),
        _root: root,
        dirs,
    }
}

impl Fake {
    fn apply(&self, json: &str, when: When) -> Result<()> {
        self.cgroup
            .apply(&serde_json::from_str(json).unwrap(), when)
    }

    /// All files that are not empty.
    fn written(&self) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        for dir in &self.dirs {
            for entry in std::fs::read_dir(dir).unwrap() {
                let entry = entry.unwrap();
                let text = std::fs::read_to_string(entry.path()).unwrap();
                if !text.is_empty() {
                    all.insert(entry.file_name().into_string().unwrap(), text);
                }
            }
        }
        all
    }

    fn put(&self, file: &str, text: &str) {
        std::fs::write(self.dirs[0].join(file), text).unwrap();
    }
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|&(a, b)| (a.to_owned(), b.to_owned()))
        .collect()
}

const V2_FILES: &[&str] = &[
    "cgroup.procs",
    "cpu.weight",
    "cpu.max",
    "cpu.max.burst",
    "cpu.idle",
    "cpuset.cpus",
    "cpuset.mems",
    "memory.max",
    "memory.low",
    "memory.high",
    "memory.swap.max",
    "memory.current",
    "pids.max",
    "io.weight",
    "io.max",
    "hugetlb.2MB.max",
    "hugetlb.2MB.rsvd.max",
    "rdma.max",
    "devices",
];

fn v2() -> Fake {
    fake(&[(&[], V2_FILES)])
}

#[test]
fn all_limits_of_v2() {
    let fake = v2();
    let json = r#"{
        "memory":{"limit":1000,"reservation":500,"swap":3000,"swappiness":10,"disableOOMKiller":true,"kernel":1},
        "cpu":{"shares":1024,"quota":20000,"period":100000,"burst":5,"cpus":"0-1","mems":"0"},
        "pids":{"limit":7},
        "blockIO":{"weight":100,"weightDevice":[],
            "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1}],
            "throttleWriteIOPSDevice":[{"major":8,"minor":0,"rate":0}]},
        "hugepageLimits":[{"pageSize":"2MB","limit":4}],
        "rdma":{"mlx5_0":{"hcaHandles":3}},
        "unified":{"memory.high":"900"}}"#;
    fake.apply(json, When::Create).unwrap();
    assert_eq!(
        fake.written(),
        map(&[
            ("memory.max", "1000"),
            ("memory.low", "500"),
            ("memory.swap.max", "2000"),
            ("memory.high", "900"),
            ("cpu.weight", "100"),
            ("cpu.max", "20000 100000"),
            ("cpu.max.burst", "5"),
            ("cpuset.cpus", "0-1"),
            ("cpuset.mems", "0"),
            ("pids.max", "7"),
            ("io.weight", "default 910"),
            ("io.max", "8:0 rbps=1 wiops=max"),
            ("hugetlb.2MB.max", "4"),
            ("hugetlb.2MB.rsvd.max", "4"),
            ("rdma.max", "mlx5_0 hca_handle=3"),
        ])
    );
}

#[test]
fn zero_means_not_given_and_minus_one_unlimited() {
    let fake = v2();
    let json = r#"{"memory":{"limit":0,"reservation":0,"swap":0},"cpu":{"shares":0,"quota":0,"period":0},"pids":{"limit":0}}"#;
    fake.apply(json, When::Update).unwrap();
    assert_eq!(fake.written(), map(&[]));
    let json = r#"{"memory":{"limit":-1},"cpu":{"quota":-1},"pids":{"limit":-1}}"#;
    fake.apply(json, When::Update).unwrap();
    assert_eq!(
        fake.written(),
        map(&[
            ("memory.max", "max"),
            ("memory.swap.max", "max"),
            ("cpu.max", "max"),
            ("pids.max", "max")
        ])
    );
}

#[test]
fn a_new_period_keeps_the_quota() {
    let fake = v2();
    fake.put("cpu.max", "20000 100000");
    fake.apply(r#"{"cpu":{"period":50000}}"#, When::Update)
        .unwrap();
    // Written over the old text, which is one byte longer; a cgroup file has no such tail.
    assert_eq!(fake.written()["cpu.max"], "20000 500000");
}

#[test]
fn weights_meet_at_both_ends_and_at_the_default() {
    for (shares, weight) in [
        (0, 1),
        (2, 1),
        (1024, 100),
        (262_144, 10_000),
        (1 << 40, 10_000),
    ] {
        assert_eq!(v2::weight_of_shares(shares), weight, "{shares}");
    }
    let all: Vec<u64> = (2..3000).map(v2::weight_of_shares).collect();
    assert!(all.is_sorted());
    assert_eq!(
        (v2::io_weight(10), v2::io_weight(1000), v2::io_weight(500)),
        (1, 10_000, 4950)
    );
}

#[test]
fn swap_is_what_goes_beyond_memory() {
    let table = [
        ((0, 0), Some(None)),
        ((100, 0), Some(None)),
        ((-1, 0), Some(Some(-1))),
        ((100, -1), Some(Some(-1))),
        ((100, 100), Some(Some(0))),
        ((100, 250), Some(Some(150))),
        ((0, 100), None),
        ((200, 100), None),
        ((-1, 100), None),
    ];
    for ((limit, swap), expected) in table {
        assert_eq!(v2::swap_alone(limit, swap).ok(), expected, "{limit} {swap}");
    }
}

#[test]
fn no_swap_at_all_needs_no_swap_file() {
    let fake = fake(&[(&[], &["memory.max"])]);
    fake.apply(r#"{"memory":{"limit":100,"swap":100}}"#, When::Create)
        .unwrap();
    let error = fake
        .apply(r#"{"memory":{"limit":100,"swap":200}}"#, When::Create)
        .unwrap_err();
    assert!(error.to_string().contains("memory.swap.max"), "{error}");
}

#[test]
fn a_missing_controller_is_named() {
    let fake = fake(&[(&[], &["cgroup.procs"])]);
    for (json, word) in [
        (r#"{"memory":{"limit":1}}"#, "\"memory\""),
        (r#"{"cpu":{"cpus":"0"}}"#, "\"cpuset\""),
        (r#"{"pids":{"limit":1}}"#, "\"pids\""),
        (r#"{"blockIO":{"weight":10}}"#, "\"io\""),
        (r#"{"unified":{"misc.max":"1"}}"#, "\"misc\""),
        (r#"{"network":{"classID":1}}"#, "net_cls"),
        (r#"{"cpu":{"realtimeRuntime":1}}"#, "real time"),
    ] {
        let error = fake.apply(json, When::Create).unwrap_err();
        assert!(matches!(error, Error::NoController { .. }), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn unified_keys_stay_inside_the_directory() {
    let fake = v2();
    for key in [
        "../x.y",
        "a/b.c",
        "",
        "cgroup.procs",
        "cgroup.kill",
        "..",
        ".x",
        "plain",
    ] {
        let json = format!(r#"{{"unified":{{"{key}":"1"}}}}"#);
        let error = fake.apply(&json, When::Create).unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{key}: {error}");
    }
    let error = fake
        .apply(
            r#"{"hugepageLimits":[{"pageSize":"../2MB","limit":1}]}"#,
            When::Create,
        )
        .unwrap_err();
    assert!(error.to_string().contains("page size"), "{error}");
    assert_eq!(fake.written(), map(&[]));
}

#[test]
fn usage_is_checked_before_an_update_that_asks_for_it() {
    let fake = v2();
    fake.put("memory.current", "5000\n");
    let json = r#"{"memory":{"limit":4000,"checkBeforeUpdate":true}}"#;
    let error = fake.apply(json, When::Update).unwrap_err();
    assert!(
        error.to_string().contains("5000 bytes are in use"),
        "{error}"
    );
    fake.apply(json, When::Create).unwrap();
}

fn v1() -> Fake {
    fake(&[
        (
            &["memory"],
            &[
                "cgroup.procs",
                "memory.limit_in_bytes",
                "memory.memsw.limit_in_bytes",
                "memory.soft_limit_in_bytes",
                "memory.swappiness",
                "memory.oom_control",
                "memory.kmem.limit_in_bytes",
                "memory.kmem.tcp.limit_in_bytes",
            ],
        ),
        (
            &["cpu", "cpuacct"],
            &[
                "cpu.shares",
                "cpu.cfs_quota_us",
                "cpu.cfs_period_us",
                "cpu.cfs_burst_us",
                "cpu.idle",
                "cpu.rt_runtime_us",
                "cpu.rt_period_us",
            ],
        ),
        (&["cpuset"], &["cpuset.cpus", "cpuset.mems"]),
        (&["pids"], &["pids.max"]),
        (
            &["blkio"],
            &[
                "blkio.weight",
                "blkio.weight_device",
                "blkio.throttle.read_bps_device",
            ],
        ),
        (
            &["net_cls", "net_prio"],
            &["net_cls.classid", "net_prio.ifpriomap"],
        ),
    ])
}

#[test]
fn all_limits_of_v1() {
    let fake = v1();
    let json = r#"{
        "memory":{"limit":1000,"reservation":500,"swap":3000,"swappiness":10,"disableOOMKiller":true,"kernel":1,"kernelTCP":2},
        "cpu":{"shares":1024,"quota":20000,"period":100000,"burst":5,"cpus":"0-1","mems":"0","realtimeRuntime":8,"realtimePeriod":9},
        "pids":{"limit":7},
        "blockIO":{"weight":100,"weightDevice":[{"major":8,"minor":0,"weight":20}],
            "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1}]},
        "network":{"classID":5,"priorities":[{"name":"eth0","priority":3}]}}"#;
    fake.apply(json, When::Create).unwrap();
    assert_eq!(
        fake.written(),
        map(&[
            ("memory.limit_in_bytes", "1000"),
            ("memory.memsw.limit_in_bytes", "3000"),
            ("memory.soft_limit_in_bytes", "500"),
            ("memory.swappiness", "10"),
            ("memory.oom_control", "1"),
            ("memory.kmem.tcp.limit_in_bytes", "2"),
            ("cpu.shares", "1024"),
            ("cpu.cfs_quota_us", "20000"),
            ("cpu.cfs_period_us", "100000"),
            ("cpu.cfs_burst_us", "5"),
            ("cpu.rt_runtime_us", "8"),
            ("cpu.rt_period_us", "9"),
            ("cpuset.cpus", "0-1"),
            ("cpuset.mems", "0"),
            ("pids.max", "7"),
            ("blkio.weight", "100"),
            ("blkio.weight_device", "8:0 20"),
            ("blkio.throttle.read_bps_device", "8:0 1"),
            ("net_cls.classid", "5"),
            ("net_prio.ifpriomap", "eth0 3"),
        ])
    );
}

#[test]
fn v1_refuses_what_it_cannot_do() {
    let fake = v1();
    for (json, word) in [
        (r#"{"unified":{"memory.max":"1"}}"#, "cgroup v2"),
        (
            r#"{"hugepageLimits":[{"pageSize":"2MB","limit":1}]}"#,
            "\"hugetlb\"",
        ),
        (r#"{"rdma":{"a":{"hcaHandles":1}}}"#, "\"rdma\""),
        (r#"{"cpu":{"shares":1}}"#, "within 2 and 262144"),
        (r#"{"memory":{"swappiness":101}}"#, "within 0 and 100"),
        (
            r#"{"devices":[{"allow":false,"access":"rwm"}]}"#,
            "\"devices\"",
        ),
    ] {
        let error = fake.apply(json, When::Create).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    }
    assert_eq!(fake.written(), map(&[]));
}
