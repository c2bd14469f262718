//! What the kernel takes as limits, and what it tells of their use.

use std::time::Instant;

use holdfast_cgroups::{Error, Hierarchies, Layout, Stats, When, default_device_rules};

use crate::fixture::{Fixture, layouts, resources, root, soon, until, v1};

#[test]
fn the_kernel_takes_the_limits_of_v1() {
    if !root() {
        return;
    }
    let Some(hierarchies) = v1() else { return };
    let fixture = Fixture::new(&hierarchies, "limits");
    let mut limits = resources(
        r#"{"memory":{"limit":67108864,"swap":134217728,"reservation":33554432,"disableOOMKiller":false},
            "cpu":{"shares":512,"quota":20000,"period":50000,"burst":1000,"cpus":"0","mems":"0"},"pids":{"limit":50},
            "devices":[{"allow":false,"access":"rwm"}]}"#,
    );
    let mut rules = limits.devices().clone().unwrap();
    rules.extend(default_device_rules());
    limits.set_devices(Some(rules));
    fixture.cgroup.apply(&limits, When::Create).unwrap();
    let file = |controller: &str, name: &str| fixture.file(&hierarchies, controller, name);
    assert_eq!(file("memory", "memory.limit_in_bytes"), "67108864");
    assert_eq!(file("memory", "memory.memsw.limit_in_bytes"), "134217728");
    assert_eq!(file("memory", "memory.soft_limit_in_bytes"), "33554432");
    assert_eq!(file("cpu", "cpu.shares"), "512");
    assert_eq!(file("cpu", "cpu.cfs_quota_us"), "20000");
    assert_eq!(file("cpu", "cpu.cfs_period_us"), "50000");
    assert_eq!(file("cpu", "cpu.cfs_burst_us"), "1000");
    assert_eq!(file("cpuset", "cpuset.cpus"), "0");
    assert_eq!(file("pids", "pids.max"), "50");
    let mut devices: Vec<String> = file("devices", "devices.list")
        .lines()
        .map(str::to_owned)
        .collect();
    devices.sort();
    let mut expected = [
        "b *:* m",
        "c *:* m",
        "c 136:* rwm",
        "c 1:3 rwm",
        "c 1:5 rwm",
        "c 1:7 rwm",
        "c 1:8 rwm",
        "c 1:9 rwm",
        "c 5:0 rwm",
        "c 5:1 rwm",
        "c 5:2 rwm",
    ];
    expected.sort_unstable();
    assert_eq!(devices, expected);

    // Both directions of every pair that constrains itself.
    for (memory, swap, quota, period, burst) in [
        (268_435_456, 536_870_912, 200_000, 100_000, 5000),
        (16_777_216, 16_777_216, 10_000, 10_000, 0),
        (33_554_432, -1, -1, 100_000, 0),
        (-1, -1, 5000, 100_000, 5000),
    ] {
        let json = format!(
            r#"{{"memory":{{"limit":{memory},"swap":{swap}}},"cpu":{{"quota":{quota},"period":{period},"burst":{burst}}}}}"#
        );
        fixture
            .cgroup
            .apply(&resources(&json), When::Update)
            .unwrap();
        if memory > 0 {
            assert_eq!(file("memory", "memory.limit_in_bytes"), memory.to_string());
        }
        if swap > 0 {
            assert_eq!(
                file("memory", "memory.memsw.limit_in_bytes"),
                swap.to_string()
            );
        }
        assert_eq!(file("cpu", "cpu.cfs_quota_us"), quota.to_string());
        assert_eq!(file("cpu", "cpu.cfs_period_us"), period.to_string());
        assert_eq!(file("cpu", "cpu.cfs_burst_us"), burst.to_string());
    }

    let error = fixture
        .cgroup
        .apply(
            &resources(r#"{"memory":{"limit":1048576,"swap":4096}}"#),
            When::Update,
        )
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("4096") && text.contains("memory.memsw.limit_in_bytes"),
        "{text}"
    );
    assert_eq!(error.errno(), Some(22));
}

#[test]
fn cpuset_is_inherited_through_new_parents() {
    if !root() {
        return;
    }
    let Some(hierarchies) = v1() else { return };
    let fixture = Fixture::new(&hierarchies, "cpuset");
    let at = hierarchies.list().iter().position(|h| h.has("cpuset"));
    let Some(at) = at else {
        return println!("skipped: no cpuset controller");
    };
    let root =
        std::fs::read_to_string(hierarchies.list()[at].mount_point.join("cpuset.mems")).unwrap();
    assert_eq!(
        fixture.file(&hierarchies, "cpuset", "cpuset.mems"),
        root.trim()
    );
    assert!(
        !fixture
            .file(&hierarchies, "cpuset", "cpuset.cpus")
            .is_empty()
    );
}

#[test]
fn devices_are_denied_on_v2() {
    if !root() {
        return;
    }
    let Some(hierarchies) = layouts()
        .into_iter()
        .find(|h| h.layout() == Layout::Unified)
    else {
        return println!("skipped: no cgroup2 mount");
    };
    let mut fixture = Fixture::new(&hierarchies, "bpf");
    let rules = |json: &str| resources(&format!(r#"{{"devices":[{json}]}}"#));
    let null = r#"{"allow":true,"type":"c","major":1,"minor":3,"access":"rwm"}"#;
    let no_zero = r#"{"allow":false,"type":"c","major":1,"minor":5,"access":"r"}"#;
    let all = r#"{"allow":true,"access":"rwm"}"#;
    let none = r#"{"allow":false,"access":"rwm"}"#;
    let open = |fixture: &mut Fixture, device: &str| {
        fixture.run(&format!("exec 3<{device}"));
        fixture.reap().success()
    };
    match fixture
        .cgroup
        .apply(&rules(&format!("{all},{no_zero}")), When::Create)
    {
        Ok(()) => {}
        Err(Error::Bpf { source, .. }) if matches!(source.raw_os_error(), Some(1 | 22 | 38)) => {
            return println!("skipped: no cgroup device programs on this kernel: {source}");
        }
        Err(error) => panic!("{error}"),
    }
    assert!(open(&mut fixture, "/dev/null"));
    assert!(!open(&mut fixture, "/dev/zero"));
    assert!(open(&mut fixture, "/dev/full"));
    // An update replaces the program: /dev/zero would stay denied if it were added.
    fixture.cgroup.apply(&rules(all), When::Update).unwrap();
    assert!(open(&mut fixture, "/dev/zero"));
    fixture
        .cgroup
        .apply(&rules(&format!("{none},{null}")), When::Update)
        .unwrap();
    assert!(open(&mut fixture, "/dev/null"));
    assert!(!open(&mut fixture, "/dev/full"));
}

#[test]
fn an_oom_kill_is_counted_and_announced() {
    if !root() {
        return;
    }
    let hierarchies = Hierarchies::detect().unwrap();
    let mut fixture = Fixture::new(&hierarchies, "oom");
    let limit = r#"{"memory":{"limit":8388608,"swap":8388608}}"#;
    match fixture.cgroup.apply(&resources(limit), When::Create) {
        Ok(()) => {}
        Err(Error::NoController { .. }) => return println!("skipped: no memory controller"),
        Err(error) => panic!("{error}"),
    }
    let events = fixture.cgroup.oom_events().unwrap().unwrap();
    assert_eq!(fixture.cgroup.oom_kills().unwrap().unwrap().total, 0);
    assert!(!events.wait(Instant::now()).unwrap(), "no event yet");
    // tail keeps the one endless line in memory.
    fixture.run("exec tail -n 1 /dev/zero");
    assert!(events.wait(soon()).unwrap());
    events.acknowledge().unwrap();
    assert!(!fixture.reap().success());
    let kills = fixture.cgroup.oom_kills().unwrap().unwrap();
    assert_eq!((kills.total, kills.local), (1, Some(1)));
}

#[test]
fn statistics_are_plausible() {
    if !root() {
        return;
    }
    for hierarchies in layouts() {
        let mut fixture = Fixture::new(&hierarchies, "stats");
        let pid = fixture.run("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; exec sleep 1000");
        until("the exec", || {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n")
        });
        match fixture.cgroup.stats().unwrap() {
            Stats::V1(stats) => {
                let has = |controller: &str| hierarchies.list().iter().any(|h| h.has(controller));
                assert_eq!(
                    stats.pids.is_some_and(|pids| pids.current == 1),
                    has("pids")
                );
                assert_eq!(
                    stats.cpu_usage.is_some_and(|cpu| cpu.total > 1_000_000),
                    has("cpuacct")
                );
                // Events and pages are counted with a delay of up to two seconds, limits are not.
                let memory = stats.memory.is_some_and(|memory| {
                    memory.hierarchical_memory_limit > 0
                        && memory.usage.is_some_and(|usage| usage.limit > 0)
                });
                assert_eq!(memory, has("memory"));
                assert_eq!(stats.throttling.is_some(), has("cpu"));
                assert_eq!(
                    stats
                        .memory_oom_control
                        .is_some_and(|oom| oom.oom_kill == 0),
                    has("memory")
                );
            }
            Stats::V2(stats) => {
                let cpu = stats.cpu.unwrap();
                assert!(cpu.usage_usec > 1000 && cpu.usage_usec >= cpu.user_usec);
            }
        }
    }
}
