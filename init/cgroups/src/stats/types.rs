//! What the statistics consist of.

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
