//! Incident F: a process that SIGKILL does not end. Where a frozen cgroup of the container holds
//! it, it is thawed; where nothing can be done, Kill and Delete say which process it is and where
//! it sleeps, instead of a success that is none.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use holdfast_integration::containerd::{Containerd, peer};
use holdfast_integration::deadline::eventually;
use holdfast_integration::leaks::is_alive;
use holdfast_integration::place::unique;
use holdfast_integration::shim::Shim;
use holdfast_integration::{on_containerds, skip};

on_containerds! {
    a_frozen_nested_cgroup_does_not_keep_its_container;
    what_cannot_die_is_named_by_kill_and_delete;
}

const FREEZER: &str = "/sys/fs/cgroup/freezer";
const LIMIT: Duration = Duration::from_secs(10);

/// A frozen cgroup of the v1 freezer or of v2, thawed and removed at the end.
struct Frozen(PathBuf);

/// File, word and what is read back, to freeze and to thaw.
fn words(
    cgroup: &Path,
) -> (
    &'static str,
    [&'static str; 2],
    (&'static str, &'static str),
) {
    if cgroup.starts_with(FREEZER) {
        let file = "freezer.state";
        (file, ["FROZEN", "THAWED"], (file, "FROZEN"))
    } else {
        ("cgroup.freeze", ["1", "0"], ("cgroup.events", "frozen 1"))
    }
}

impl Frozen {
    fn holding(cgroup: PathBuf, pid: i32) -> Self {
        fs::create_dir(&cgroup).unwrap();
        let frozen = Self(cgroup);
        fs::write(frozen.0.join("cgroup.procs"), pid.to_string()).unwrap();
        let (file, [freeze, _], (told_in, told)) = words(&frozen.0);
        fs::write(frozen.0.join(file), freeze).unwrap();
        eventually("the cgroup is frozen", LIMIT, || {
            let text = fs::read_to_string(frozen.0.join(told_in)).ok()?;
            text.lines().any(|line| line == told).then_some(())
        });
        frozen
    }

    fn thaw(&self) {
        let (file, [_, thaw], _) = words(&self.0);
        let _ = fs::write(self.0.join(file), thaw);
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.thaw();
        let until = Instant::now() + LIMIT;
        while self.0.exists() && fs::remove_dir(&self.0).is_err() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn has_freezer(test: &str) -> bool {
    let there = Path::new(FREEZER).join("cgroup.procs").exists();
    if !there {
        skip(test, "no cgroup v1 freezer on this machine");
    }
    there
}

/// The cgroup of a process in the v1 freezer; in v2 where there is none.
fn freezer_of(pid: i32) -> PathBuf {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let of = |what: &str| text.lines().find_map(|line| Some(line.split_once(what)?.1));
    match of(":freezer:") {
        Some(path) => Path::new(FREEZER).join(path.trim_start_matches('/')),
        None => Path::new("/sys/fs/cgroup").join(of("0::/").unwrap()),
    }
}

fn a_frozen_nested_cgroup_does_not_keep_its_container(containerd: &Containerd) {
    if peer() {
        return;
    }
    let init = containerd.start_task("box", &[], &["sh", "-c", "sleep 599 & wait"]);
    let shim = Shim::of(containerd, "box");
    let child = eventually("the child runs", LIMIT, || {
        shim.pids("box")
            .unwrap()
            .into_iter()
            .map(|pid| i32::try_from(pid).unwrap())
            .find(|pid| *pid != init)
    });
    let own = freezer_of(init);
    let roots = [Path::new(FREEZER), Path::new("/sys/fs/cgroup")];
    assert!(
        !roots.contains(&own.as_path()),
        "the container has no cgroup of its own"
    );
    let nested = Frozen::holding(own.join("nested"), child);
    let began = Instant::now();
    shim.kill("box", "", 9).unwrap();
    assert_eq!(shim.wait("box", "").unwrap(), 137);
    assert!(began.elapsed() < Duration::from_secs(5));
    drop(nested);
    containerd.ctr_ok(&["tasks", "delete", "--force", "box"]);
    containerd.ctr_ok(&["containers", "delete", "box"]);
}

fn what_cannot_die_is_named_by_kill_and_delete(containerd: &Containerd) {
    if peer() || !has_freezer("what_cannot_die") {
        return;
    }
    let init = containerd.start_task("box", &[], &["sleep", "598"]);
    let shim = Shim::of(containerd, "box");
    // Not below the container's cgroup, so it is not the shim's to thaw.
    let elsewhere = Frozen::holding(
        Path::new(FREEZER).join(unique("holdfast-test-frozen")),
        init,
    );
    for _ in 0..2 {
        let began = Instant::now();
        let refused = shim.kill("box", "", 9).unwrap_err();
        let took = began.elapsed();
        assert!(took < Duration::from_secs(5), "{took:?}");
        assert_eq!(refused.code, 9, "{refused:?}");
        for part in [
            &format!("pid {init} (sleep)") as &str,
            "state D",
            "in kernel function",
            "sleep 598",
        ] {
            assert!(refused.message.contains(part), "{part:?}: {refused:?}");
        }
    }
    let began = Instant::now();
    let refused = shim.delete("box", "").unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(refused.code, 9, "{refused:?}");
    assert!(
        refused.message.contains("cannot delete a running process")
            && refused.message.contains(&format!("pid {init} (sleep)")),
        "{refused:?}"
    );
    // Others are not disturbed, and when the kernel lets go it ends by itself.
    assert_eq!(shim.state("box", "").unwrap().status.value(), 2);
    elsewhere.thaw();
    assert_eq!(shim.wait("box", "").unwrap(), 137);
    assert!(!is_alive(init));
    containerd.ctr_ok(&["tasks", "delete", "--force", "box"]);
    containerd.ctr_ok(&["containers", "delete", "box"]);
}
