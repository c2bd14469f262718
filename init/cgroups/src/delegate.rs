//! Handing a container's cgroup to its user (runtime-spec, config-linux.md, "Cgroup ownership"; cgroups(7), "Cgroups v2
//! delegation").

use std::path::Path;

use crate::cgroup::Cgroup;

/// Lists the files that belong to whom a cgroup is delegated (Linux 4.15).
const LIST: &str = "/sys/kernel/cgroup/delegate";
/// What the specification says for kernels without the list.
const FILES: [&str; 3] = ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"];

impl Cgroup {
    /// Makes the directory, and the files in it that may be another's, belong to a user of the host. Files that this
    /// kernel lacks are left out; v1 knows no safe delegation and is left alone.
    ///
    /// # Errors
    /// The path that the kernel refused to change.
    pub fn delegate(&self, uid: u32) -> std::io::Result<()> {
        if self.is_v1() {
            return Ok(());
        }
        let Some(place) = self.unified() else {
            return Ok(());
        };
        let list = std::fs::read_to_string(LIST).unwrap_or_else(|_| FILES.join("\n"));
        hand_over(place.dir.path(), &list, uid)
    }
}

fn hand_over(dir: &Path, list: &str, uid: u32) -> std::io::Result<()> {
    let named = |path: &Path| {
        let shown = path.display().to_string();
        move |error: std::io::Error| {
            std::io::Error::new(
                error.kind(),
                format!("change the owner of {shown}: {error}"),
            )
        }
    };
    std::os::unix::fs::chown(dir, Some(uid), None).map_err(named(dir))?;
    for file in list
        .lines()
        .filter(|file| !file.is_empty() && !file.contains('/'))
    {
        let path = dir.join(file);
        match std::os::unix::fs::lchown(&path, Some(uid), None) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => other.map_err(named(&path))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn only_listed_files_change_hands() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["cgroup.procs", "memory.max"] {
            std::fs::write(folder.path().join(file), "").unwrap();
        }
        let own = std::fs::metadata(folder.path()).unwrap().uid();
        if own != 0 {
            println!("skipped: only root gives files away");
            return;
        }
        hand_over(folder.path(), "cgroup.procs\ncgroup.threads\n", 4321).unwrap();
        let owner = |name: &str| std::fs::metadata(folder.path().join(name)).unwrap().uid();
        assert_eq!(
            (owner("."), owner("cgroup.procs"), owner("memory.max")),
            (4321, 4321, own)
        );
        let error = hand_over(&folder.path().join("gone"), "", 1)
            .unwrap_err()
            .to_string();
        assert!(error.contains("gone"), "{error}");
    }
}
