//! What is left behind: processes, mounts, cgroups, descriptors.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::deadline;

/// A process found by its command line or environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its pid in our pid namespace.
    pub pid: i32,
    /// Its command line, arguments separated by blanks.
    pub command: String,
}

impl Process {
    /// Whether it is the parent of a shim of ours, which would begin that anew.
    #[must_use]
    pub fn is_keeper(&self) -> bool {
        self.command.starts_with("holdfast-keeper ")
    }
}

/// Living processes (zombies do not count) whose command line or environment mentions `text`,
/// this one excepted. Keepers are the first: what is killed in this order stays dead.
#[must_use]
pub fn processes_mentioning(text: &str) -> Vec<Process> {
    let own = i32::try_from(std::process::id()).expect("a pid fits");
    let mut found: Vec<Process> = pids()
        .filter(|&pid| pid != own)
        .filter_map(|pid| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let found =
                contains(&command, text.as_bytes()) || contains(&environment, text.as_bytes());
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            found.then_some(Process { pid, command })
        })
        .filter(|process| is_alive(process.pid))
        .collect();
    found.sort_by_key(|process| !process.is_keeper());
    found
}

/// Whether a pid names a process that has not ended (a zombie has).
#[must_use]
pub fn is_alive(pid: i32) -> bool {
    status_letter(pid).is_some_and(|letter| letter != 'Z' && letter != 'X')
}

fn status_letter(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name may hold anything, blanks and brackets too: the letter follows its last `)`.
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

fn pids() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc")
        .expect("read /proc")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

/// Mount points at or under a folder, in our mount namespace, deepest last.
#[must_use]
pub fn mounts_under(folder: &Path) -> Vec<PathBuf> {
    let folder = folder
        .canonicalize()
        .unwrap_or_else(|_| folder.to_path_buf());
    let table = fs::read_to_string("/proc/self/mountinfo").expect("read mountinfo");
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| PathBuf::from(point.replace("\\040", " ")))
        .filter(|point| point.starts_with(&folder))
        .collect()
}

/// Detaches every mount under a folder.
pub fn unmount_under(folder: &Path) {
    // A point may be mounted over several times.
    for _ in 0..16 {
        let points = mounts_under(folder);
        if points.is_empty() {
            return;
        }
        for point in points.iter().rev() {
            let _ = umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        }
    }
}

/// The cgroup hierarchies of this machine: v1's one per controller, v2's one or the hybrid's.
#[must_use]
pub fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_path_buf()];
    }
    let mut found: Vec<PathBuf> = fs::read_dir(root)
        .expect("read /sys/fs/cgroup")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join("cgroup.procs").exists() && !path.is_symlink())
        .collect();
    found.sort();
    found
}

/// Every cgroup below `parent` (a path from the hierarchies' roots), `parent` itself excepted.
#[must_use]
pub fn cgroups_below(parent: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for hierarchy in hierarchies() {
        collect_below(&hierarchy.join(parent.trim_start_matches('/')), &mut found);
    }
    found
}

fn collect_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(entry.path());
            collect_below(&entry.path(), found);
        }
    }
}

/// Pids in the cgroups at and below `parent`.
#[must_use]
pub fn cgroup_members(parent: &str) -> Vec<i32> {
    let own = hierarchies()
        .into_iter()
        .map(|hierarchy| hierarchy.join(parent.trim_start_matches('/')));
    let mut members: Vec<i32> = own
        .chain(cgroups_below(parent))
        .filter_map(|cgroup| fs::read_to_string(cgroup.join("cgroup.procs")).ok())
        .flat_map(|procs| {
            procs
                .lines()
                .filter_map(|l| l.parse().ok())
                .collect::<Vec<_>>()
        })
        .collect();
    members.sort_unstable();
    members.dedup();
    members
}

/// Ends everything in the cgroups at and below `parent` and removes them, `parent` included.
pub fn remove_cgroups(parent: &str) {
    for hierarchy in hierarchies() {
        let top = hierarchy.join(parent.trim_start_matches('/'));
        let mut below = vec![top.clone()];
        collect_below(&top, &mut below);
        for cgroup in &below {
            let _ = fs::write(cgroup.join("freezer.state"), "THAWED");
            let _ = fs::write(cgroup.join("cgroup.freeze"), "0");
        }
    }
    deadline::within(Duration::from_secs(2), || {
        let members = cgroup_members(parent);
        for pid in &members {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        members.is_empty().then_some(())
    });
    for hierarchy in hierarchies() {
        let top = hierarchy.join(parent.trim_start_matches('/'));
        let mut below = vec![top.clone()];
        collect_below(&top, &mut below);
        for cgroup in below.iter().rev() {
            // The kernel refuses for a moment while the last members are being reaped.
            remove_busy_folder(cgroup, Duration::from_millis(500));
        }
    }
}

/// Removes an empty folder of the kernel's that refuses with EBUSY while somebody leaves it.
pub fn remove_busy_folder(path: &Path, limit: Duration) {
    deadline::within(limit, || match fs::remove_dir(path) {
        Err(e) if e.raw_os_error() == Some(nix::libc::EBUSY) => None,
        _ => Some(()),
    });
}

/// States of containers in a runtime's root. Names with a dot in front are no containers but what
/// a runtime keeps for all of them, such as a cache of seccomp filters.
#[must_use]
pub fn states_in(root: &Path) -> Vec<String> {
    fs::read_dir(root)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
        .map(|entry| format!("state {}", entry.path().display()))
        .collect()
}

/// What each open descriptor of a process points at, by number.
#[must_use]
pub fn descriptors(pid: i32) -> Vec<(u32, String)> {
    let mut found: Vec<(u32, String)> = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let number = entry.file_name().to_str()?.parse().ok()?;
            let target = fs::read_link(entry.path()).ok()?;
            Some((number, target.to_string_lossy().into_owned()))
        })
        .collect();
    found.sort();
    found
}

/// Keeps descriptors that this process inherited from whoever started it (cargo's job server, a
/// shell's leftovers) out of the programs it starts: they would falsify every count.
pub fn keep_own_descriptors() {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    let own = i32::try_from(std::process::id()).expect("a pid fits");
    for (number, _) in descriptors(own) {
        if number > 2 {
            let number = i32::try_from(number).expect("a descriptor fits");
            // A descriptor that another thread closed meanwhile needs nothing.
            let _ = fcntl(number, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
        }
    }
}
