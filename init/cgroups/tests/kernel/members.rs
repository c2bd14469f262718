//! Freezing, thawing, signalling and killing what is inside.

use std::time::{Duration, Instant};

use holdfast_cgroups::{Error, FreezerState};

use crate::fixture::{Fixture, layouts, nested, root, soon, until};

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
