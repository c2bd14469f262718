//! Real cgroups of this machine: whatever layout it has, and its v2 mount alone.
//!
//! Needs root. Everything happens below /holdfast-test-PID-NAME and is removed afterwards.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use holdfast_cgroups::systemd::Unit;
use holdfast_cgroups::{
    Cgroup, CgroupPath, Driver, Error, FreezerState, Hierarchies, Layout, SavedCgroup, Stats, When,
    default_device_rules, join,
};
use oci_spec::runtime::LinuxResources;

/// The layouts to test on: the machine's own, and its v2 mount as if it were alone.
fn layouts() -> Vec<Hierarchies> {
    let own = Hierarchies::detect().unwrap();
    let v2 = own
        .list()
        .iter()
        .find(|h| h.is_v2())
        .map(|h| h.mount_point.clone());
    let mut all = Vec::new();
    match v2 {
        Some(mount_point) if own.layout() != Layout::Unified => {
            all.push(Hierarchies::unified_at(mount_point));
        }
        Some(_) => {}
        None => println!("skipped for v2: this machine has no cgroup2 mount"),
    }
    all.push(own);
    all
}

/// The layout with v1 controllers, where there is one.
fn v1() -> Option<Hierarchies> {
    let own = Hierarchies::detect().unwrap();
    match own.layout() {
        Layout::Unified => {
            println!("skipped: this machine has no cgroup v1");
            None
        }
        Layout::V1 | Layout::Hybrid => Some(own),
    }
}

fn root() -> bool {
    // A directory that only root may make; asking for the uid would not notice a read-only /sys.
    let hierarchies = Hierarchies::detect().unwrap();
    let probe = hierarchies.list()[0]
        .mount_point
        .join(format!("holdfast-test-{}-probe", nanos()));
    match std::fs::create_dir(&probe) {
        Ok(()) => {
            std::fs::remove_dir(&probe).unwrap();
            true
        }
        Err(error) => {
            println!("skipped: cannot make cgroups here: {error}");
            false
        }
    }
}

fn nanos() -> u128 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_nanos()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn resources(json: &str) -> LinuxResources {
    serde_json::from_str(json).unwrap()
}

/// A cgroup and the processes started for it; all gone when dropped.
struct Fixture {
    cgroup: Cgroup,
    path: CgroupPath,
    children: Vec<Child>,
}

impl Fixture {
    fn new(hierarchies: &Hierarchies, name: &str) -> Self {
        let path = format!("/holdfast-test-{}-{name}/c", std::process::id());
        let path = CgroupPath::new(Some(Path::new(&path)), Driver::Cgroupfs, "x", "x").unwrap();
        let cgroup = Cgroup::create(hierarchies, &path, None).unwrap();
        Self {
            cgroup,
            path,
            children: Vec::new(),
        }
    }

    /// Starts a shell that waits for a line, puts it into the cgroup, and lets it go on with the script.
    fn run(&mut self, script: &str) -> i32 {
        let pid = self.hold(script);
        self.cgroup.attach(pid).unwrap();
        self.go();
        pid
    }

    fn hold(&mut self, script: &str) -> i32 {
        let child = Command::new("/bin/sh")
            .args(["-c", &format!("read line; {script}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        self.children.push(child);
        pid
    }

    fn go(&mut self) {
        use std::io::Write;
        let stdin = self.children.last_mut().unwrap().stdin.as_mut().unwrap();
        stdin.write_all(b"go\n").unwrap();
    }

    fn reap(&mut self) -> std::process::ExitStatus {
        self.children.pop().unwrap().wait().unwrap()
    }

    fn file(&self, hierarchies: &Hierarchies, controller: &str, name: &str) -> String {
        let at = hierarchies
            .list()
            .iter()
            .position(|h| h.has(controller))
            .unwrap();
        let dir = self.cgroup.directories().nth(at).unwrap();
        std::fs::read_to_string(dir.join(name))
            .unwrap()
            .trim()
            .to_owned()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let killed = self.cgroup.signal_all(9, soon());
        for child in &mut self.children {
            let _ = child.kill();
            child.wait().unwrap();
        }
        let removed = killed.and(self.cgroup.kill_and_remove(soon()));
        self.cgroup.remove_made_parents();
        if !std::thread::panicking() {
            removed.unwrap();
            for path in self.cgroup.directories() {
                assert!(
                    !path.parent().unwrap().exists(),
                    "{} is left",
                    path.display()
                );
            }
        }
    }
}

/// Waits for a condition that has no event, with a deadline.
fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = soon();
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn nested(fixture: &Fixture, name: &str) -> Vec<PathBuf> {
    let paths: Vec<PathBuf> = fixture
        .cgroup
        .directories()
        .map(|path| path.join(name))
        .collect();
    for path in &paths {
        std::fs::create_dir(path).unwrap();
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(value) = std::fs::read(path.parent().unwrap().join(file)) {
                std::fs::write(path.join(file), value).unwrap();
            }
        }
    }
    paths
}

#[test]
fn a_life_in_every_layout() {
    if !root() {
        return;
    }
    for hierarchies in layouts() {
        let mut fixture = Fixture::new(&hierarchies, "life");
        let pid = fixture.run("exec sleep 1000");
        assert_eq!(fixture.cgroup.processes().unwrap(), [pid]);

        let seen = Cgroup::of_process(&hierarchies, pid).unwrap();
        let (mine, its): (Vec<_>, Vec<_>) = (
            fixture.cgroup.directories().collect(),
            seen.directories().collect(),
        );
        assert_eq!(mine, its);

        let json = serde_json::to_string(&fixture.cgroup.save()).unwrap();
        let saved: SavedCgroup = serde_json::from_str(&json).unwrap();
        let again = Cgroup::from_saved(&saved);
        assert_eq!(again.save(), saved);
        assert_eq!(again.processes().unwrap(), [pid]);
        assert_eq!(
            again.dir_fd().unwrap().is_some(),
            hierarchies.layout() != Layout::V1
        );

        again.signal_all(libc_sigterm(), soon()).unwrap();
        fixture.reap();
        again.wait_empty(soon()).unwrap();
        again.remove(soon()).unwrap();
        again.remove(soon()).unwrap();
        assert!(matches!(again.stats(), Err(Error::Gone { .. })));
        assert!(again.processes().unwrap().is_empty());
        again.signal_all(9, soon()).unwrap();
    }
}

fn libc_sigterm() -> i32 {
    15
}

#[test]
fn create_takes_over_an_empty_cgroup_only() {
    if !root() {
        return;
    }
    for hierarchies in layouts() {
        let mut fixture = Fixture::new(&hierarchies, "taken");
        let other = Cgroup::create(&hierarchies, &fixture.path, None).unwrap();
        assert!(
            other
                .save()
                .places
                .iter()
                .all(|place| !place.made && place.made_parents == 0)
        );
        assert!(
            fixture
                .cgroup
                .save()
                .places
                .iter()
                .all(|place| place.made && place.made_parents == 1)
        );

        let pid = fixture.run("exec sleep 1000");
        let error = Cgroup::create(&hierarchies, &fixture.path, None).unwrap_err();
        assert!(
            error.to_string().contains(&format!("pid {pid} (")),
            "{error}"
        );
        fixture.cgroup.signal_all(9, soon()).unwrap();
        fixture.reap();
        fixture.cgroup.wait_empty(soon()).unwrap();

        fixture.cgroup.freeze(soon()).unwrap();
        let error = Cgroup::create(&hierarchies, &fixture.path, None).unwrap_err();
        assert!(matches!(error, Error::Frozen { .. }), "{error}");
        fixture.cgroup.thaw(soon()).unwrap();
    }
}

#[test]
fn a_failed_create_leaves_nothing() {
    if !root() {
        return;
    }
    let hierarchies = Hierarchies::detect().unwrap();
    let mut list = hierarchies.list().to_vec();
    let mut broken = list[0].clone();
    // A file system in which no directory can be made.
    broken.mount_point = "/proc/self".into();
    list.push(broken);
    let broken = Hierarchies::from_list(list).unwrap();
    let name = format!("holdfast-test-{}-broken", std::process::id());
    let path = CgroupPath::below_root(&Path::new(&name).join("a/b")).unwrap();
    let error = Cgroup::create(&broken, &path, None).unwrap_err();
    assert!(
        error.to_string().contains("/proc/self/holdfast-test"),
        "{error}"
    );
    for hierarchy in hierarchies.list() {
        assert!(!hierarchy.mount_point.join(&name).exists(), "{hierarchy:?}");
    }
}

#[test]
fn freeze_stops_and_thaw_continues() {
    if !root() {
        return;
    }
    for hierarchies in layouts() {
        let mut fixture = Fixture::new(&hierarchies, "freeze");
        let cgroup = |fixture: &Fixture| fixture.cgroup.freezer_state().unwrap();
        assert_eq!(cgroup(&fixture), FreezerState::Thawed);
        let pid = fixture.run("while :; do :; done");
        fixture.cgroup.freeze(soon()).unwrap();
        assert_eq!(cgroup(&fixture), FreezerState::Frozen);
        // utime and stime stand still: fields 14 and 15 of /proc/PID/stat.
        let ticks = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            let rest = stat.rsplit(')').next().unwrap().to_owned();
            let fields: Vec<&str> = rest.split_whitespace().collect();
            fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
        };
        let before = ticks();
        std::thread::sleep(Duration::from_millis(60));
        assert_eq!(ticks(), before, "a frozen process used CPU time");
        fixture.cgroup.thaw(soon()).unwrap();
        assert_eq!(cgroup(&fixture), FreezerState::Thawed);
        until("CPU time after the thaw", || ticks() > before);
    }
}

#[test]
fn a_freeze_that_is_late_is_taken_back() {
    if !root() {
        return;
    }
    for hierarchies in layouts() {
        let mut fixture = Fixture::new(&hierarchies, "late");
        for _ in 0..8 {
            fixture.run("while :; do :; done");
        }
        // With two CPUs and eight busy processes most of them have to be scheduled before they can stop.
        let mut late = 0;
        for _ in 0..20 {
            match fixture.cgroup.freeze(Instant::now()) {
                Ok(()) => {
                    assert_eq!(
                        fixture.cgroup.freezer_state().unwrap(),
                        FreezerState::Frozen
                    );
                    fixture.cgroup.thaw(soon()).unwrap();
                }
                Err(Error::Deadline {
                    step: "freeze",
                    holders,
                    ..
                }) => {
                    late += 1;
                    assert!(!holders.is_empty());
                }
                Err(error) => panic!("{error}"),
            }
            assert_eq!(
                fixture.cgroup.freezer_state().unwrap(),
                FreezerState::Thawed
            );
        }
        println!("{late} of 20 were late");
    }
}

#[test]
fn kill_reaches_frozen_and_nested_processes() {
    if !root() {
        return;
    }
    for hierarchies in layouts() {
        let mut fixture = Fixture::new(&hierarchies, "nested");
        let pid = fixture.run("exec sleep 1000");
        let paths = nested(&fixture, "inner");
        let inner = fixture.hold("exec sleep 1000");
        for path in &paths {
            std::fs::write(path.join("cgroup.procs"), inner.to_string()).unwrap();
        }
        // The incident: a nested v1 freezer, frozen by whoever runs in the container.
        for path in &paths {
            for (file, value) in [("freezer.state", "FROZEN"), ("cgroup.freeze", "1")] {
                if path.join(file).exists() {
                    std::fs::write(path.join(file), value).unwrap();
                }
            }
        }
        let mut all = fixture.cgroup.processes().unwrap();
        all.sort_unstable();
        let mut both = [pid, inner];
        both.sort_unstable();
        assert_eq!(all, both);
        fixture.cgroup.signal_all(9, soon()).unwrap();
        fixture.reap();
        fixture.reap();
        fixture.cgroup.wait_empty(soon()).unwrap();
        fixture.cgroup.remove(soon()).unwrap();
        assert!(paths.iter().all(|path| !path.exists()));
    }
}

#[test]
fn kill_wins_against_a_process_that_keeps_forking() {
    if !root() {
        return;
    }
    for hierarchies in layouts() {
        let mut fixture = Fixture::new(&hierarchies, "forks");
        fixture.run("while :; do sleep 0.02 & done");
        until("a few forks", || {
            fixture.cgroup.processes().unwrap().len() > 5
        });
        fixture.cgroup.signal_all(9, soon()).unwrap();
        fixture.reap();
        fixture.cgroup.wait_empty(soon()).unwrap();
        fixture.cgroup.remove(soon()).unwrap();
    }
}

#[test]
fn removal_names_who_is_in_the_way() {
    if !root() {
        return;
    }
    for hierarchies in layouts() {
        let mut fixture = Fixture::new(&hierarchies, "busy");
        let pid = fixture.run("exec sleep 1000");
        until("the exec", || {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n")
        });
        let error = fixture
            .cgroup
            .remove(Instant::now() + Duration::from_millis(30))
            .unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&format!("pid {pid} (sleep) state S")),
            "{error}"
        );
        // Nothing was killed.
        assert_eq!(fixture.cgroup.processes().unwrap(), [pid]);
    }
}

#[test]
fn a_root_is_never_touched() {
    if !root() {
        return;
    }
    let hierarchies = Hierarchies::detect().unwrap();
    // pid 2 is kthreadd, which is in the root of every hierarchy.
    let kernel = Cgroup::of_process(&hierarchies, 2).unwrap();
    let refused = |result: Result<(), Error>| assert!(matches!(result, Err(Error::Root { .. })));
    refused(kernel.signal_all(0, soon()));
    refused(kernel.freeze(soon()));
    refused(kernel.thaw_all());
    refused(kernel.remove(soon()));
    refused(kernel.apply(&LinuxResources::default(), When::Update));
}

#[test]
fn hierarchies_a_process_was_not_put_into_are_left_out() {
    if !root() {
        return;
    }
    let Some(hierarchies) = v1() else { return };
    let mut fixture = Fixture::new(&hierarchies, "partial");
    // As a runtime that knows the first hierarchy only.
    let first = fixture.cgroup.directories().next().unwrap().to_owned();
    let pid = fixture.hold("exec sleep 1000");
    std::fs::write(first.join("cgroup.procs"), pid.to_string()).unwrap();
    fixture.go();
    let seen = Cgroup::of_process(&hierarchies, pid).unwrap();
    // The memory cgroup of whoever runs this test may not be the root.
    assert!(seen.directories().any(|path| path == first));
    for hierarchy in hierarchies.list() {
        assert!(seen.directories().all(|path| path != hierarchy.mount_point));
    }
}

#[test]
fn join_goes_into_existing_cgroups_only() {
    if !root() {
        return;
    }
    for hierarchies in layouts() {
        let mut fixture = Fixture::new(&hierarchies, "join");
        let pid = fixture.hold("exec sleep 1000");
        let path = format!("/holdfast-test-{}-join", std::process::id());
        join(&hierarchies, &Path::new(&path).join("c"), pid).unwrap();
        fixture.go();
        assert_eq!(fixture.cgroup.processes().unwrap(), [pid]);
        let error = join(&hierarchies, &Path::new(&path).join("nowhere"), pid).unwrap_err();
        assert!(error.is_gone(), "{error}");
    }
}

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

#[test]
fn a_thread_enters_by_itself() {
    if !root() {
        return;
    }
    let Some(hierarchies) = v1() else { return };
    let fixture = Fixture::new(&hierarchies, "enter");
    let entrance = fixture.cgroup.entrance().unwrap();
    let v1 = hierarchies.list().iter().filter(|h| !h.is_v2()).count();
    assert_eq!(entrance.fds().len(), v1);
    // In a process of one thread it moves the process; here it moves the one thread, which ends at once.
    let text = std::thread::spawn(move || {
        entrance.enter().unwrap();
        std::fs::read_to_string("/proc/thread-self/cgroup").unwrap()
    })
    .join()
    .unwrap();
    let inside = text
        .lines()
        .filter(|line| line.ends_with("-enter/c"))
        .count();
    assert_eq!(inside, v1, "{text}");
}

#[test]
fn a_thaw_under_a_frozen_parent_is_not_claimed() {
    if !root() {
        return;
    }
    for hierarchies in layouts() {
        let fixture = Fixture::new(&hierarchies, "above");
        let set = |frozen: bool| {
            for path in fixture.cgroup.directories() {
                let parent = path.parent().unwrap();
                for (file, yes, no) in [
                    ("freezer.state", "FROZEN", "THAWED"),
                    ("cgroup.freeze", "1", "0"),
                ] {
                    if parent.join(file).exists() {
                        std::fs::write(parent.join(file), if frozen { yes } else { no }).unwrap();
                    }
                }
            }
        };
        set(true);
        until("the freeze", || {
            fixture.cgroup.freezer_state().unwrap() == FreezerState::Frozen
        });
        let result = fixture
            .cgroup
            .thaw(Instant::now() + Duration::from_millis(20));
        set(false);
        assert!(
            matches!(result, Err(Error::Deadline { step: "thaw", .. })),
            "{result:?}"
        );
        fixture.cgroup.thaw(soon()).unwrap();
    }
}

#[test]
fn containers_come_and_go_below_a_common_parent() {
    if !root() {
        return;
    }
    for hierarchies in layouts() {
        let parent = format!("/holdfast-test-{}-crowd", std::process::id());
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (parent, hierarchies) = (&parent, &hierarchies);
                scope.spawn(move || {
                    for round in 0..10 {
                        let path = format!("{parent}/deep/{thread}-{round}");
                        let path = CgroupPath::below_root(Path::new(&path)).unwrap();
                        let cgroup = Cgroup::create(hierarchies, &path, None).unwrap();
                        cgroup.remove(soon()).unwrap();
                        // Takes the parent away under the others, where it happens to be empty.
                        cgroup.remove_made_parents();
                    }
                });
            }
        });
        for hierarchy in hierarchies.list() {
            // Who made a parent need not have been the last to leave.
            let top = hierarchy.mount_point.join(parent.trim_start_matches('/'));
            let _ = std::fs::remove_dir(top.join("deep"));
            let _ = std::fs::remove_dir(&top);
            assert!(!top.exists(), "{}", top.display());
        }
    }
}

#[test]
fn signals_other_than_kill_reach_everybody_once() {
    if !root() {
        return;
    }
    for hierarchies in layouts() {
        let mut fixture = Fixture::new(&hierarchies, "usr1");
        let folder = tempfile::tempdir().unwrap();
        let count = folder.path().join("count");
        // Tells when the trap is set, counts the signals, and goes on.
        let script = format!(
            "trap 'echo x >>{0}' USR1; echo ready >{0}.$$; while :; do read line || sleep 0.01; done </dev/null",
            count.display()
        );
        for _ in 0..3 {
            let pid = fixture.run(&script);
            until("the trap", || {
                folder.path().join(format!("count.{pid}")).exists()
            });
        }
        // sleep inherits the ignored or default action; USR1 ends it, which the loop does not mind.
        fixture.cgroup.signal_all(10, soon()).unwrap();
        let lines = || {
            std::fs::read_to_string(&count)
                .unwrap_or_default()
                .lines()
                .count()
        };
        until("three signals", || lines() >= 3);
        assert_eq!(lines(), 3);
    }
}

#[test]
fn a_cgroup_may_be_shared_by_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Cgroup>();
    shared::<Hierarchies>();
    shared::<holdfast_cgroups::OomEvents>();
}

/// As if systemd had just started a scope: it has made one directory and put the process there.
#[test]
fn what_systemd_has_made_is_taken_over() {
    if !root() {
        return;
    }
    for hierarchies in layouts() {
        let slice = format!("holdfasttest{}.slice", nanos());
        let unit = Unit::new(Some(Path::new(&format!("{slice}:test:1"))), "1").unwrap();
        let elsewhere = Cgroup::adopt(&hierarchies, &unit, None, 1).unwrap_err();
        assert!(
            elsewhere.to_string().contains("does not exist"),
            "{elsewhere}"
        );
        Cgroup::refuse_occupied(&hierarchies, &unit).unwrap();

        // One of those systemd uses, and that takes a process without being set up (cpuset does not).
        let its = hierarchies
            .list()
            .iter()
            .find(|h| h.has("pids") || h.is_v2())
            .unwrap();
        let above = its.mount_point.join(&slice);
        let dir = above.join("test-1.scope");
        std::fs::create_dir_all(&dir).unwrap();
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        std::fs::write(dir.join("cgroup.procs"), pid.to_string()).unwrap();

        let occupied = Cgroup::refuse_occupied(&hierarchies, &unit).unwrap_err();
        assert!(matches!(occupied, Error::NotEmpty { .. }), "{occupied}");
        let other = Cgroup::adopt(&hierarchies, &unit, None, pid + 1).unwrap_err();
        assert!(matches!(other, Error::NotEmpty { .. }), "{other}");

        let cgroup = Cgroup::adopt(&hierarchies, &unit, None, pid).unwrap();
        let seen = Cgroup::of_process(&hierarchies, pid).unwrap();
        assert_eq!(
            cgroup.directories().collect::<Vec<_>>(),
            seen.directories().collect::<Vec<_>>()
        );
        assert_eq!(cgroup.directories().count(), hierarchies.list().len());

        cgroup.signal_all(9, soon()).unwrap();
        child.wait().unwrap();
        cgroup.kill_all(soon()).unwrap();
        cgroup.remove(soon()).unwrap();
        cgroup.remove_made_parents();
        // The slice is systemd's, so it stays; everything in the other hierarchies was ours.
        std::fs::remove_dir(&above).unwrap();
        for hierarchy in hierarchies.list() {
            assert!(
                !hierarchy.mount_point.join(&slice).exists(),
                "{hierarchy:?}"
            );
        }
    }
}
