//! OOM kills in the kernel's log.
//!
//! Each record of `/dev/kmsg` is `priority,sequence,microseconds,flags;text` (`Documentation/ABI/testing/dev-kmsg`). Of the
//! report of an OOM kill two lines matter, in this order:
//!
//! ```text
//! memory: usage 24576kB, limit 24576kB, failcnt 13
//! oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=c,mems_allowed=0,oom_memcg=/a,task_memcg=/a/b,task=tail,pid=20362,uid=0
//! ```

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use super::since_boot;
use crate::time::Timestamp;

/// The longest record that the kernel gives out, with room to spare.
const MAX_RECORD: usize = 8192;

/// One OOM kill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OomKill {
    /// When, to about a second: the kernel's log has a clock of its own.
    pub time: Timestamp,
    /// The cgroup that was at its limit, below the mount point; none: the node itself had no memory left.
    pub cgroup: Option<String>,
    /// The cgroup of the killed process.
    pub victim_cgroup: Option<String>,
    /// Pid of the killed process in the node's pid namespace.
    pub victim_pid: u32,
    /// Its name.
    pub victim: String,
    /// Usage of `cgroup` in bytes at that time.
    pub usage: Option<u64>,
    /// Limit of `cgroup` in bytes.
    pub limit: Option<u64>,
}

impl OomKill {
    /// Whether the killed process was in the cgroup whose folder in the cgroup file system is `folder`, or below it.
    #[must_use]
    pub fn was_in(&self, folder: &Path) -> bool {
        let Some(cgroup) = &self.victim_cgroup else {
            return false;
        };
        // The log's path begins at the mount point, which is not known here: one end of `folder` must be a beginning of it.
        Path::new(cgroup)
            .ancestors()
            .filter_map(|path| path.strip_prefix("/").ok())
            .filter(|path| !path.as_os_str().is_empty())
            .any(|path| folder.ends_with(path))
    }
}

/// Calls `each` for every OOM kill in the log, oldest first. Never waits for a new record.
pub(super) fn oom_kills(path: &Path, mut each: impl FnMut(OomKill)) -> io::Result<()> {
    let mut log = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let mut reader = Reader::default();
    let mut buffer = vec![0; MAX_RECORD];
    loop {
        match log.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(size) => {
                let text = String::from_utf8_lossy(buffer.get(..size).unwrap_or_default());
                if let Some(kill) = reader.record(&text) {
                    each(kill);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            // The oldest records were overwritten while we read: the next read goes on after the gap.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// What has been said so far of the kill that is being reported.
#[derive(Debug, Default)]
struct Reader {
    memory: Option<(u64, u64)>,
}

impl Reader {
    fn record(&mut self, text: &str) -> Option<OomKill> {
        let (head, text) = text.split_once(';')?;
        let text = text.lines().next()?;
        if let Some(rest) = text.strip_prefix("memory: usage ") {
            self.memory = usage(rest);
        }
        let fields = text.strip_prefix("oom-kill:")?;
        let memory = self.memory.take();
        let micros: u64 = head.split(',').nth(2)?.parse().ok()?;
        let field = |name: &str| {
            let key = format!("{name}=");
            // The last: a cgroup's name may hold nearly anything.
            let at = fields
                .rmatch_indices(&key)
                .map(|(at, _)| at)
                .find(|at| *at == 0 || fields.as_bytes().get(at - 1) == Some(&b','))?;
            fields.get(at + key.len()..)
        };
        let until = |text: &str, next: &str| {
            let end = text.rfind(next).unwrap_or(text.len());
            text.get(..end).unwrap_or_default().to_owned()
        };
        let is_cgroup = fields.starts_with("constraint=CONSTRAINT_MEMCG,");
        Some(OomKill {
            time: since_boot(Duration::from_micros(micros)),
            cgroup: field("oom_memcg")
                .filter(|_| is_cgroup)
                .map(|text| until(text, ",task_memcg=")),
            victim_cgroup: field("task_memcg").map(|text| until(text, ",task=")),
            victim_pid: field("pid")?.split(',').next()?.parse().ok()?,
            victim: until(field("task")?, ",pid="),
            usage: memory.filter(|_| is_cgroup).map(|(usage, _)| usage),
            limit: memory.filter(|_| is_cgroup).map(|(_, limit)| limit),
        })
    }
}

/// Reads `24576kB, limit 24576kB, failcnt 13` as bytes.
fn usage(text: &str) -> Option<(u64, u64)> {
    let (usage, rest) = text.split_once("kB, limit ")?;
    let (limit, _) = rest.split_once("kB,")?;
    let bytes = |kib: &str| Some(kib.parse::<u64>().ok()?.saturating_mul(1024));
    Some((bytes(usage)?, bytes(limit)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_a_cgroup_and_a_node_without_memory_are_told_apart() {
        let mut reader = Reader::default();
        assert_eq!(
            reader.record("6,1,5,-;memory: usage 24576kB, limit 20480kB, failcnt 13\n"),
            None
        );
        assert_eq!(
            reader.record("6,1,5,-;swap: usage 0kB, limit 9kB, failcnt 0\n"),
            None
        );
        let text = "6,2,1000000,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=c,mems_allowed=0,oom_memcg=/pod,task_memcg=/pod/box,task=a,pid=3,pid=20362,uid=0\n DEVICE=x\n";
        let kill = reader.record(text).unwrap();
        assert_eq!(kill.cgroup.as_deref(), Some("/pod"));
        assert_eq!(kill.victim_cgroup.as_deref(), Some("/pod/box"));
        assert_eq!((kill.victim.as_str(), kill.victim_pid), ("a,pid=3", 20362));
        assert_eq!(
            (kill.usage, kill.limit),
            (Some(24576 << 10), Some(20 << 20))
        );
        let text = "6,3,5,-;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/pod/box,task=tail,pid=7,uid=0\n";
        let kill = reader.record(text).unwrap();
        assert_eq!((kill.cgroup.as_deref(), kill.limit), (None, None));
        assert_eq!(kill.victim_pid, 7);
        for other in ["", ";", "6,3,5,-;", "6,3,5,-;oom-kill:", "oom-kill:pid=7"] {
            assert_eq!(reader.record(other), None, "{other:?}");
        }
    }

    #[test]
    fn a_victim_belongs_to_its_cgroup_and_those_above() {
        let kill = |cgroup: &str| OomKill {
            time: Timestamp::new(0, 0),
            cgroup: None,
            victim_cgroup: Some(cgroup.to_owned()),
            victim_pid: 1,
            victim: String::new(),
            usage: None,
            limit: None,
        };
        let folder = Path::new("/sys/fs/cgroup/memory/default/box");
        assert!(kill("/default/box").was_in(folder));
        assert!(kill("/default/box/inner").was_in(folder));
        assert!(!kill("/default").was_in(folder));
        assert!(!kill("/default/boxes").was_in(folder));
        assert!(!kill("/").was_in(folder));
    }

    #[test]
    fn the_log_of_this_machine_can_be_read() {
        match oom_kills(Path::new("/dev/kmsg"), |kill| assert!(kill.victim_pid > 0)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                println!("SKIPPED: /dev/kmsg: {error}");
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                println!("SKIPPED: /dev/kmsg: {error}");
            }
            other => other.unwrap(),
        }
    }
}
