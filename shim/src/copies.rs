//! Who uses a root file system in another mount namespace.
//!
//! A mount namespace is a copy: whoever makes one while a container runs takes its root file system along, and unless
//! propagation joins the two, unmounting it here leaves it there. Linux mends that when the mount point's folder is
//! removed, which containerd does last: every mount on it goes, in every namespace (rename(2), rmdir(2) since 3.18; the
//! test `mount_leaks` shows it). What that does not mend is a process with its working directory, its root or an open
//! file there: it keeps the file system alive and the layers below it busy, and no list of mounts shows why. It is named.
//!
//! Only `delete` looks, which containerd runs for every container, as a process of its own and beside all RPCs.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use holdfast_record::process::Stat;

use crate::rootfs::mounts_in;

/// Most processes named.
const MAX_NAMED: usize = 8;

/// Who uses what is mounted at and below `rootfs` in other mount namespaces, each namespace in one sentence.
pub(crate) fn users_of(rootfs: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for pids in others() {
        let points = pids
            .first()
            .map_or_else(Vec::new, |pid| mounts_at(*pid, rootfs));
        if points.is_empty() {
            continue;
        }
        let users = users(&pids, &points);
        if !users.is_empty() {
            found.push(format!(
                "{} is in use in another mount namespace, by {}",
                rootfs.display(),
                users.into_iter().collect::<Vec<_>>().join(", ")
            ));
        }
    }
    found
}

fn name(pid: u32) -> String {
    Stat::read(pid).map_or_else(
        |_| format!("process {pid}"),
        |stat| format!("process {pid} ({})", stat.comm),
    )
}

/// Processes of a namespace that use a file system which is mounted at one of the points there, and nowhere here.
fn users(pids: &[u32], points: &[PathBuf]) -> BTreeSet<String> {
    let Some(pid) = pids.first() else {
        return BTreeSet::new();
    };
    let here = devices_here();
    let devices: BTreeSet<u64> = points
        .iter()
        .filter_map(|point| {
            let there = format!("/proc/{pid}/root{}", point.display());
            Some(std::fs::metadata(there).ok()?.dev())
        })
        .filter(|device| !here.contains(device))
        .collect();
    let on_it =
        |path: PathBuf| std::fs::metadata(path).is_ok_and(|file| devices.contains(&file.dev()));
    let mut found = BTreeSet::new();
    for pid in pids {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let mut how = Vec::new();
        if on_it(folder.join("cwd")) {
            how.push("working directory");
        }
        if on_it(folder.join("root")) {
            how.push("root directory");
        }
        let mut files = std::fs::read_dir(folder.join("fd"))
            .into_iter()
            .flatten()
            .flatten();
        if files.any(|file| on_it(file.path())) {
            how.push("open file");
        }
        if !how.is_empty() && found.len() < MAX_NAMED {
            found.insert(format!("{}: {}", name(*pid), how.join(", ")));
        }
    }
    found
}

/// The devices of all mounts of our own namespace.
fn devices_here() -> BTreeSet<u64> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table
        .lines()
        .filter_map(|line| {
            let (major, minor) = line.split(' ').nth(2)?.split_once(':')?;
            Some(libc::makedev(major.parse().ok()?, minor.parse().ok()?))
        })
        .collect()
}

/// The processes of each mount namespace of our pid namespace but our own. Those of other pid namespaces belong to
/// containers, perhaps with a containerd of their own that has a container of the same name.
fn others() -> Vec<Vec<u32>> {
    let link = |pid: &str, kind: &str| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
    let (Some(own_mounts), Some(own_pids)) = (link("self", "mnt"), link("self", "pid")) else {
        return Vec::new();
    };
    let mut found: BTreeMap<PathBuf, Vec<u32>> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some((text, pid)) = name.to_str().and_then(|t| Some((t, t.parse().ok()?))) else {
            continue;
        };
        let Some(mounts) = link(text, "mnt").filter(|mounts| *mounts != own_mounts) else {
            continue;
        };
        if link(text, "pid").is_none_or(|pids| pids != own_pids) {
            continue;
        }
        found.entry(mounts).or_default().push(pid);
    }
    found.into_values().collect()
}

/// Mount points at and below `rootfs` as that process sees them, deepest first.
fn mounts_at(pid: u32, rootfs: &Path) -> Vec<PathBuf> {
    // A process that has ended meanwhile has no mounts.
    mounts_in(&format!("/proc/{pid}/mountinfo"), rootfs).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// A process in a mount namespace of its own, with a mount there that nobody else has, and its working directory in
    /// it if it `stays`.
    fn keeper(point: &Path, stays: bool) -> Option<std::process::Child> {
        let script = format!(
            "mount -t tmpfs none '{0}' && cd '{1}' && echo ready && exec sleep 60",
            point.display(),
            if stays { point } else { Path::new("/") }.display()
        );
        let mut child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &script])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut said = String::new();
        let stdout = child.stdout.take()?;
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut said).ok()?;
        if said.trim() == "ready" {
            Some(child)
        } else {
            let _ = child.wait();
            None
        }
    }

    #[test]
    fn who_uses_a_copy_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let point = dir.path().join("root fs");
        std::fs::create_dir(&point).unwrap();
        for stays in [false, true] {
            let Some(mut keeper) = keeper(&point, stays) else {
                println!("skipped: no mount namespace can be made here");
                return;
            };
            let pid = keeper.id();
            assert_eq!(mounts_at(pid, &point), std::slice::from_ref(&point));
            let users = users_of(&point);
            if stays {
                assert_eq!(users.len(), 1, "{users:?}");
                let user = &users[0];
                assert!(user.contains(&format!("by process {pid} (")), "{user}");
                assert!(user.ends_with("): working directory"), "{user}");
            } else {
                // It goes with the folder.
                assert_eq!(users, Vec::<String>::new());
            }
            keeper.kill().unwrap();
            keeper.wait().unwrap();
            assert_eq!(users_of(&point), Vec::<String>::new());
        }
    }
}
