//! Processes by `/proc`, without anything that could wait for one of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Longest line of processes in a finding.
const MAX_NAMED: usize = 6;

/// A folder like `/proc`.
#[derive(Clone, Debug)]
pub(crate) struct Proc {
    folder: PathBuf,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) comm: String,
    /// Letter of its state.
    pub(crate) state: char,
    pub(crate) parent: u32,
    folder: PathBuf,
}

impl Proc {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Every process there is, by pid.
    pub(crate) fn all(&self) -> BTreeMap<u32, Process> {
        let Ok(entries) = std::fs::read_dir(&self.folder) else {
            return BTreeMap::new();
        };
        entries
            .flatten()
            .filter_map(|entry| {
                let pid = entry.file_name().to_str()?.parse().ok()?;
                Some((pid, Process::read(pid, entry.path())?))
            })
            .collect()
    }
}

impl Process {
    fn read(pid: u32, folder: PathBuf) -> Option<Self> {
        let bytes = std::fs::read(folder.join("stat")).ok()?;
        let line = String::from_utf8_lossy(&bytes);
        // The name may hold anything, so the fields begin after its last parenthesis.
        let (head, rest) = line.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace();
        Some(Self {
            pid,
            comm: head.split_once('(')?.1.to_owned(),
            state: fields.next()?.chars().next()?,
            parent: fields.next()?.parse().ok()?,
            folder,
        })
    }

    /// As it is now; none when it is gone.
    pub(crate) fn again(&self) -> Option<Self> {
        Self::read(self.pid, self.folder.clone())
    }

    /// Its arguments. Only of daemons and shims: the read may wait for the process' memory.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let bytes = std::fs::read(self.folder.join("cmdline")).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim_end_matches('\0');
        text.split('\0').map(str::to_owned).collect()
    }

    /// A file of its folder.
    pub(crate) fn read_file(&self, name: &str) -> Option<String> {
        let bytes = std::fs::read(self.folder.join(name)).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Where a link of its folder leads, `ns/mnt` or `cwd` say.
    pub(crate) fn link(&self, name: &str) -> Option<String> {
        let target = std::fs::read_link(self.folder.join(name)).ok()?;
        Some(target.to_string_lossy().into_owned())
    }

    /// Its user.
    pub(crate) fn uid(&self) -> Option<u32> {
        let status = self.read_file("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
        line.split_ascii_whitespace().next()?.parse().ok()
    }

    /// The targets of its descriptors.
    pub(crate) fn descriptors(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.folder.join("fd")) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| {
                let target = std::fs::read_link(entry.path()).ok()?;
                Some(target.to_string_lossy().into_owned())
            })
            .collect()
    }

    /// Its own folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether it is a shim, whoever's. The kernel keeps fifteen bytes of a name.
    pub(crate) fn is_shim(&self) -> bool {
        self.comm.starts_with("containerd-shim")
    }

    /// Whether it is the parent of a shim of ours, to which containers come when that is killed.
    pub(crate) fn is_keeper(&self) -> bool {
        self.comm == "holdfast-keeper"
    }
}

/// `pid 12 (name), pid 13 (name) and 4 more`.
pub(crate) fn named<'a>(processes: impl IntoIterator<Item = &'a Process>) -> String {
    let all: Vec<&Process> = processes.into_iter().collect();
    let shown: Vec<String> = all
        .iter()
        .take(MAX_NAMED)
        .map(|process| format!("pid {} ({})", process.pid, process.comm))
        .collect();
    let text = shown.join(", ");
    if all.len() > MAX_NAMED {
        format!("{text} and {} more", all.len() - MAX_NAMED)
    } else {
        text
    }
}

/// Whether `process` descends from a shim, and so belongs to a container. Shims themselves do not.
pub(crate) fn is_in_container(process: &Process, all: &BTreeMap<u32, Process>) -> bool {
    if process.is_shim() {
        return false;
    }
    let mut next = all.get(&process.parent);
    // A pid may be reused while this is read: no more steps than there could be.
    for _ in 0..64 {
        match next {
            None => return false,
            Some(parent) if parent.is_shim() || parent.is_keeper() => return true,
            Some(parent) => next = all.get(&parent.parent),
        }
    }
    false
}
