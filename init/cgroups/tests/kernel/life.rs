//! Made, entered, taken over, removed.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use holdfast_cgroups::systemd::Unit;
use holdfast_cgroups::{Cgroup, CgroupPath, Error, Hierarchies, Layout, SavedCgroup, When, join};
use oci_spec::runtime::LinuxResources;

use crate::fixture::{Fixture, layouts, libc_sigterm, nanos, root, soon, until, v1};

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
