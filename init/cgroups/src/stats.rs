//! Statistics, with all that containerd's messages `io.containerd.cgroups.v1.Metrics` and `.v2.Metrics` carry.
//!
//! Field names are those of the messages. A file that is missing or cannot be parsed leaves its field `None`; a key that
//! a kernel does not write is 0. Network statistics belong to the network namespace and are not read here.

mod v1;
mod v2;

use std::os::fd::AsFd;

use crate::cgroup::Cgroup;
use crate::dir::{Dir, read_all};
use crate::error::{Error, Result};
use crate::sys;

/// Statistics of a cgroup.
#[derive(Debug, Clone, PartialEq)]
pub enum Stats {
    /// From v1 controllers (pure v1 and hybrid).
    V1(Box<V1Stats>),
    /// From cgroup v2.
    V2(Box<V2Stats>),
}

/// `io.containerd.cgroups.v1.Metrics`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct V1Stats {
    /// One for each huge page size.
    pub hugetlb: Vec<V1Hugetlb>,
    /// Processes and threads.
    pub pids: Option<Pids>,
    /// CPU time.
    pub cpu_usage: Option<V1CpuUsage>,
    /// Throttling by the CFS quota.
    pub throttling: Option<V1Throttling>,
    /// Memory.
    pub memory: Option<Box<V1Memory>>,
    /// Block devices.
    pub blkio: Option<V1Blkio>,
    /// RDMA devices.
    pub rdma: Option<Rdma>,
    /// The OOM killer.
    pub memory_oom_control: Option<V1OomControl>,
}

/// Use of one size of huge pages, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct V1Hugetlb {
    /// `2MB`.
    pub pagesize: String,
    /// Bytes in use.
    pub usage: u64,
    /// Highest use so far.
    pub max: u64,
    /// How often the limit was hit.
    pub failcnt: u64,
}

/// Number of processes and threads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pids {
    /// How many there are.
    pub current: u64,
    /// How many may be; 0 = no limit, as containerd reports it.
    pub limit: u64,
}

/// CPU time in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct V1CpuUsage {
    /// Together.
    pub total: u64,
    /// In the kernel.
    pub kernel: u64,
    /// In user space.
    pub user: u64,
    /// Of each CPU.
    pub per_cpu: Vec<u64>,
}

/// Throttling by the CFS quota.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct V1Throttling {
    /// Periods that have passed.
    pub periods: u64,
    /// Periods in which the quota was used up.
    pub throttled_periods: u64,
    /// Nanoseconds of waiting.
    pub throttled_time: u64,
}

/// `memory.stat` and the four counters of v1, in bytes and events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "the names are the kernel's: Documentation/admin-guide/cgroup-v1/memory.rst"
)]
pub struct V1Memory {
    pub cache: u64,
    pub rss: u64,
    pub rss_huge: u64,
    pub mapped_file: u64,
    pub dirty: u64,
    pub writeback: u64,
    pub pg_pg_in: u64,
    pub pg_pg_out: u64,
    pub pg_fault: u64,
    pub pg_maj_fault: u64,
    pub inactive_anon: u64,
    pub active_anon: u64,
    pub inactive_file: u64,
    pub active_file: u64,
    pub unevictable: u64,
    pub hierarchical_memory_limit: u64,
    pub hierarchical_swap_limit: u64,
    pub total_cache: u64,
    pub total_rss: u64,
    pub total_rss_huge: u64,
    pub total_mapped_file: u64,
    pub total_dirty: u64,
    pub total_writeback: u64,
    pub total_pg_pg_in: u64,
    pub total_pg_pg_out: u64,
    pub total_pg_fault: u64,
    pub total_pg_maj_fault: u64,
    pub total_inactive_anon: u64,
    pub total_active_anon: u64,
    pub total_inactive_file: u64,
    pub total_active_file: u64,
    pub total_unevictable: u64,
    /// `memory.*`.
    pub usage: Option<V1MemoryEntry>,
    /// `memory.memsw.*`: memory and swap.
    pub swap: Option<V1MemoryEntry>,
    /// `memory.kmem.*`.
    pub kernel: Option<V1MemoryEntry>,
    /// `memory.kmem.tcp.*`.
    pub kernel_tcp: Option<V1MemoryEntry>,
}

/// One counter of the memory controller, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct V1MemoryEntry {
    /// `limit_in_bytes`.
    pub limit: u64,
    /// `usage_in_bytes`.
    pub usage: u64,
    /// `max_usage_in_bytes`.
    pub max: u64,
    /// `failcnt`: how often the limit was hit.
    pub failcnt: u64,
}

/// `memory.oom_control`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct V1OomControl {
    /// 1 when processes wait instead of being killed.
    pub oom_kill_disable: u64,
    /// 1 when they are waiting now.
    pub under_oom: u64,
    /// How many were killed.
    pub oom_kill: u64,
}

/// Block device counters; empty where the scheduler does not count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "the names are the kernel's: Documentation/admin-guide/cgroup-v1/blkio-controller.rst"
)]
pub struct V1Blkio {
    pub io_service_bytes_recursive: Vec<V1BlkioEntry>,
    pub io_serviced_recursive: Vec<V1BlkioEntry>,
    pub io_queued_recursive: Vec<V1BlkioEntry>,
    pub io_service_time_recursive: Vec<V1BlkioEntry>,
    pub io_wait_time_recursive: Vec<V1BlkioEntry>,
    pub io_merged_recursive: Vec<V1BlkioEntry>,
    pub io_time_recursive: Vec<V1BlkioEntry>,
    pub sectors_recursive: Vec<V1BlkioEntry>,
}

/// One line of a block device counter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct V1BlkioEntry {
    /// `Read`, `Write`, `Sync`, `Async`, `Discard`, `Total`; empty for files without one.
    pub op: String,
    /// The node of the device (`/dev/sda`), from /sys/dev/block; empty when unknown.
    pub device: String,
    /// Its major number.
    pub major: u64,
    /// Its minor number.
    pub minor: u64,
    /// Bytes, operations, nanoseconds or sectors.
    pub value: u64,
}

/// Use of RDMA devices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rdma {
    /// `rdma.current`.
    pub current: Vec<RdmaEntry>,
    /// `rdma.max`; `u32::MAX` = no limit, as containerd reports it.
    pub limit: Vec<RdmaEntry>,
}

/// One RDMA device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RdmaEntry {
    /// Its name (`mlx5_0`).
    pub device: String,
    /// HCA handles.
    pub hca_handles: u32,
    /// HCA objects.
    pub hca_objects: u32,
}

/// `io.containerd.cgroups.v2.Metrics`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct V2Stats {
    /// Processes and threads.
    pub pids: Option<Pids>,
    /// CPU time and throttling.
    pub cpu: Option<V2Cpu>,
    /// Memory.
    pub memory: Option<Box<V2Memory>>,
    /// RDMA devices.
    pub rdma: Option<Rdma>,
    /// Block devices.
    pub io: Option<V2Io>,
    /// One for each huge page size.
    pub hugetlb: Vec<V2Hugetlb>,
    /// `memory.events`.
    pub memory_events: Option<V2MemoryEvents>,
}

/// One line of a pressure file.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PsiData {
    /// Per cent of time, over 10 s.
    pub avg10: f64,
    /// Over 60 s.
    pub avg60: f64,
    /// Over 300 s.
    pub avg300: f64,
    /// Microseconds so far.
    pub total: u64,
}

/// Pressure stall information (Documentation/accounting/psi.rst).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Psi {
    /// At least one task waited.
    pub some: Option<PsiData>,
    /// All tasks waited.
    pub full: Option<PsiData>,
}

/// `cpu.stat` (microseconds) and `cpu.pressure`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[allow(
    missing_docs,
    reason = "the names are the kernel's: Documentation/admin-guide/cgroup-v2.rst"
)]
pub struct V2Cpu {
    pub usage_usec: u64,
    pub user_usec: u64,
    pub system_usec: u64,
    pub nr_periods: u64,
    pub nr_throttled: u64,
    pub throttled_usec: u64,
    pub nr_bursts: u64,
    pub burst_usec: u64,
    pub psi: Option<Psi>,
}

/// `memory.stat`, the other counters (bytes, events) and `memory.pressure`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[allow(
    missing_docs,
    reason = "the names are the kernel's: Documentation/admin-guide/cgroup-v2.rst"
)]
pub struct V2Memory {
    pub anon: u64,
    pub file: u64,
    pub kernel_stack: u64,
    pub slab: u64,
    pub sock: u64,
    pub shmem: u64,
    pub file_mapped: u64,
    pub file_dirty: u64,
    pub file_writeback: u64,
    pub anon_thp: u64,
    pub inactive_anon: u64,
    pub active_anon: u64,
    pub inactive_file: u64,
    pub active_file: u64,
    pub unevictable: u64,
    pub slab_reclaimable: u64,
    pub slab_unreclaimable: u64,
    pub pgfault: u64,
    pub pgmajfault: u64,
    pub workingset_refault: u64,
    pub workingset_activate: u64,
    pub workingset_nodereclaim: u64,
    pub pgrefill: u64,
    pub pgscan: u64,
    pub pgsteal: u64,
    pub pgactivate: u64,
    pub pgdeactivate: u64,
    pub pglazyfree: u64,
    pub pglazyfreed: u64,
    pub thp_fault_alloc: u64,
    pub thp_collapse_alloc: u64,
    /// `memory.current`.
    pub usage: u64,
    /// `memory.max`; `u64::MAX` = no limit.
    pub usage_limit: u64,
    /// `memory.swap.current`.
    pub swap_usage: u64,
    /// `memory.swap.max`; `u64::MAX` = no limit.
    pub swap_limit: u64,
    /// `memory.peak` (Linux 5.19).
    pub max_usage: u64,
    /// `memory.swap.peak` (Linux 6.5).
    pub swap_max_usage: u64,
    pub psi: Option<Psi>,
}

/// `memory.events`: how often each limit was met.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "the names are the kernel's: Documentation/admin-guide/cgroup-v2.rst"
)]
pub struct V2MemoryEvents {
    pub low: u64,
    pub high: u64,
    pub max: u64,
    pub oom: u64,
    pub oom_kill: u64,
    pub oom_group_kill: u64,
}

/// `io.stat` and `io.pressure`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct V2Io {
    /// One for each device.
    pub usage: Vec<V2IoEntry>,
    /// Pressure.
    pub psi: Option<Psi>,
}

/// One device of `io.stat`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct V2IoEntry {
    /// Its major number.
    pub major: u64,
    /// Its minor number.
    pub minor: u64,
    /// Bytes read.
    pub rbytes: u64,
    /// Bytes written.
    pub wbytes: u64,
    /// Reads.
    pub rios: u64,
    /// Writes.
    pub wios: u64,
}

/// Use of one size of huge pages, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct V2Hugetlb {
    /// `2MB`.
    pub pagesize: String,
    /// Bytes in use.
    pub current: u64,
    /// The limit; `u64::MAX` = none.
    pub max: u64,
    /// How often the limit was hit.
    pub failcnt: u64,
}

impl Cgroup {
    /// Reads the statistics.
    ///
    /// # Errors
    /// [`Error::Gone`] when the cgroup does not exist any more. A single unreadable file is no error.
    pub fn stats(&self) -> Result<Stats> {
        if self.is_v1() {
            let gone = self.reference().is_none_or(|node| !exists(&node.dir));
            if gone {
                return Err(self.gone());
            }
            return Ok(Stats::V1(Box::new(v1::read(self))));
        }
        let Some(node) = self.unified() else {
            return Err(self.gone());
        };
        // A dozen and a half files: worth an fd of the directory.
        match node.dir.fd() {
            Ok(_) if exists(&node.dir) => {}
            Err(error) if !error.is_gone() => return Err(error),
            Ok(_) | Err(_) => return Err(self.gone()),
        }
        Ok(Stats::V2(Box::new(v2::read(&node.dir))))
    }

    fn gone(&self) -> Error {
        let path = self
            .reference()
            .map(|node| node.dir.path().display().to_string());
        Error::Gone {
            path: path.unwrap_or_default(),
        }
    }
}

/// Whether the cgroup is there: an fd of a removed directory opens nothing.
fn exists(dir: &Dir) -> bool {
    match dir.open("cgroup.procs", libc::O_RDONLY) {
        Ok(_) => true,
        Err(error) => !crate::dir::gone(&error),
    }
}

/// A file of a single number; `max` is `u64::MAX`, and so is a negative number.
fn number(dir: &Dir, file: &str) -> Option<u64> {
    let text = dir.try_read(file).ok()?;
    parse_number(text.trim())
}

fn parse_number(text: &str) -> Option<u64> {
    match text {
        "max" => Some(u64::MAX),
        _ if text.starts_with('-') => Some(u64::MAX),
        _ => text.parse().ok(),
    }
}

/// The `KEY NUMBER` lines of a file.
struct Keyed(Vec<(String, u64)>);

impl Keyed {
    fn read(dir: &Dir, file: &str) -> Option<Self> {
        dir.try_read(file).ok().map(|text| Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        Self(
            text.lines()
                .filter_map(|line| {
                    let (key, value) = line.split_once(' ')?;
                    Some((key.to_owned(), parse_number(value.trim())?))
                })
                .collect(),
        )
    }

    fn get(&self, key: &str) -> u64 {
        self.0
            .iter()
            .find(|(k, _)| k == key)
            .map_or(0, |(_, value)| *value)
    }
}

/// `pids.current` and `pids.max`.
fn pids(dir: &Dir) -> Option<Pids> {
    let limit = number(dir, "pids.max")
        .filter(|&limit| limit != u64::MAX)
        .unwrap_or(0);
    Some(Pids {
        current: number(dir, "pids.current")?,
        limit,
    })
}

/// `rdma.current` and `rdma.max`.
fn rdma(dir: &Dir) -> Option<Rdma> {
    let current = parse_rdma(&dir.try_read("rdma.current").ok()?);
    let limit = parse_rdma(&dir.try_read("rdma.max").ok()?);
    Some(Rdma { current, limit })
}

fn parse_rdma(text: &str) -> Vec<RdmaEntry> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let mut entry = RdmaEntry {
                device: words.next()?.to_owned(),
                ..RdmaEntry::default()
            };
            for (key, value) in words.filter_map(|word| word.split_once('=')) {
                let value = if value == "max" {
                    u32::MAX
                } else {
                    value.parse().unwrap_or(0)
                };
                match key {
                    "hca_handle" => entry.hca_handles = value,
                    "hca_object" => entry.hca_objects = value,
                    _ => {}
                }
            }
            Some(entry)
        })
        .collect()
}

/// The huge page sizes for which a directory has files (`hugetlb.2MB.SUFFIX`).
fn huge_page_sizes(dir: &Dir, suffix: &str) -> Vec<String> {
    let mut sizes: Vec<String> = std::fs::read_dir(dir.path())
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            let size = name
                .strip_prefix("hugetlb.")?
                .strip_suffix(suffix)?
                .strip_suffix('.')?;
            (!size.contains('.')).then(|| size.to_owned())
        })
        .collect();
    sizes.sort();
    sizes
}

/// Reads one small file by its absolute path.
fn read_path(path: &str) -> Option<String> {
    let fd = sys::open(None, std::path::Path::new(path), libc::O_RDONLY).ok()?;
    read_all(fd.as_fd()).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(parse_number("12"), Some(12));
        assert_eq!(parse_number("max"), Some(u64::MAX));
        assert_eq!(parse_number("-1"), Some(u64::MAX));
        assert_eq!(parse_number("12x"), None);
        assert_eq!(parse_number(""), None);
    }

    #[test]
    fn keyed_lines_survive_rubbish() {
        let keyed = Keyed::parse("anon 4096\nbroken\nfile x\nshmem 1\n");
        assert_eq!(
            (keyed.get("anon"), keyed.get("file"), keyed.get("shmem")),
            (4096, 0, 1)
        );
    }

    #[test]
    fn rdma_lines() {
        let parsed = parse_rdma("mlx5_0 hca_handle=2 hca_object=max\n\n");
        assert_eq!(
            parsed,
            [RdmaEntry {
                device: "mlx5_0".into(),
                hca_handles: 2,
                hca_objects: u32::MAX
            }]
        );
    }

    #[test]
    fn huge_page_sizes_come_from_file_names() {
        let root = tempfile::tempdir().unwrap();
        for name in [
            "hugetlb.2MB.max",
            "hugetlb.1GB.max",
            "hugetlb.2MB.rsvd.max",
            "hugetlb.2MB.events",
            "x",
        ] {
            std::fs::write(root.path().join(name), "").unwrap();
        }
        assert_eq!(
            huge_page_sizes(&Dir::at(root.path().to_owned()), "max"),
            ["1GB", "2MB"]
        );
    }
}
