//! A cgroup of the kernel's, its processes, and the layouts there are.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use holdfast_cgroups::{Cgroup, CgroupPath, Driver, Hierarchies, Layout};
use oci_spec::runtime::LinuxResources;

/// The layouts to test on: the machine's own, and its v2 mount as if it were alone.
pub(crate) fn layouts() -> Vec<Hierarchies> {
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
pub(crate) fn v1() -> Option<Hierarchies> {
    let own = Hierarchies::detect().unwrap();
    match own.layout() {
        Layout::Unified => {
            println!("skipped: this machine has no cgroup v1");
            None
        }
        Layout::V1 | Layout::Hybrid => Some(own),
    }
}

pub(crate) fn root() -> bool {
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

pub(crate) fn nanos() -> u128 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_nanos()
}

pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

pub(crate) fn resources(json: &str) -> LinuxResources {
    serde_json::from_str(json).unwrap()
}

/// A cgroup and the processes started for it; all gone when dropped.
pub(crate) struct Fixture {
    pub(crate) cgroup: Cgroup,
    pub(crate) path: CgroupPath,
    pub(crate) children: Vec<Child>,
}

impl Fixture {
    pub(crate) fn new(hierarchies: &Hierarchies, name: &str) -> Self {
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
    pub(crate) fn run(&mut self, script: &str) -> i32 {
        let pid = self.hold(script);
        self.cgroup.attach(pid).unwrap();
        self.go();
        pid
    }

    pub(crate) fn hold(&mut self, script: &str) -> i32 {
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

    pub(crate) fn go(&mut self) {
        use std::io::Write;
        let stdin = self.children.last_mut().unwrap().stdin.as_mut().unwrap();
        stdin.write_all(b"go\n").unwrap();
    }

    pub(crate) fn reap(&mut self) -> std::process::ExitStatus {
        self.children.pop().unwrap().wait().unwrap()
    }

    pub(crate) fn file(&self, hierarchies: &Hierarchies, controller: &str, name: &str) -> String {
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
pub(crate) fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = soon();
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) fn nested(fixture: &Fixture, name: &str) -> Vec<PathBuf> {
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

pub(crate) fn libc_sigterm() -> i32 {
    15
}
