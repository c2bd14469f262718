//! Who holds a process' output open after its end.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

/// How long the search for who holds output open may take.
const LOOK_LIMIT: Duration = Duration::from_secs(2);
/// Most holders named.
const MAX_HOLDERS: usize = 8;
/// Something outside the process had its output open when the time for it was over.
#[derive(Debug, thiserror::Error)]
#[error("output was still held open {limit:?} after the end, by {}; closed it", .by.join(", "))]
pub(crate) struct Held {
    limit: Duration,
    by: Vec<String>,
}

impl Held {
    /// Looks for those who hold these pipes, which were still open after `limit`.
    pub(super) async fn of(pipes: Vec<u64>, limit: Duration) -> Self {
        let look = tokio::task::spawn_blocking(move || writers_of(&pipes));
        let by = match tokio::time::timeout(LOOK_LIMIT, look).await {
            Ok(Ok(by)) if !by.is_empty() => by,
            Ok(_) | Err(_) => vec!["nobody who can be found".to_owned()],
        };
        Self { limit, by }
    }
}

/// What a pipe is known by in `/proc/PID/fd`.
pub(super) fn inode(pipe: &OwnedFd) -> Option<u64> {
    nix::sys::stat::fstat(pipe.as_raw_fd())
        .ok()
        .map(|stat| stat.st_ino)
}

/// The processes, other than ours, that can write into one of these pipes.
fn writers_of(pipes: &[u64]) -> Vec<String> {
    use std::os::unix::fs::MetadataExt as _;
    let names: Vec<PathBuf> = pipes
        .iter()
        .map(|inode| PathBuf::from(format!("pipe:[{inode}]")))
        .collect();
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != std::process::id())
        .filter(|pid| {
            std::fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|files| {
                files.flatten().any(|file| {
                    // The link's permissions are the descriptor's: proc(5).
                    std::fs::read_link(file.path()).is_ok_and(|target| names.contains(&target))
                        && std::fs::symlink_metadata(file.path())
                            .is_ok_and(|link| link.mode() & 0o200 != 0)
                })
            })
        })
        .take(MAX_HOLDERS)
        .map(crate::look::brief)
        .collect()
}
