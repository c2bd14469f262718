//! Statistics as containerd's clients read them.
//!
//! Two messages, one for each cgroup version; what [`holdfast_cgroups`] has read is put into
//! them field by field, under the names both share.

use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use holdfast_cgroups::{
    Pids, Psi, PsiData, Rdma, Stats, V1Blkio, V1BlkioEntry, V1Memory, V1MemoryEntry, V1Stats,
    V2Memory, V2Stats,
};

/// Fills a message with the fields that source and message name alike.
macro_rules! same {
    ($message:ty, $source:expr, $($field:ident),* $(,)?) => {{
        let source = $source;
        let mut message = <$message>::new();
        $(message.$field = source.$field;)*
        message
    }};
}

/// The statistics in the message of their cgroup version.
pub(crate) fn to_any(stats: Stats) -> Any {
    let (name, bytes) = match stats {
        Stats::V1(stats) => (
            "io.containerd.cgroups.v1.Metrics",
            metrics_v1(*stats).write_to_bytes(),
        ),
        Stats::V2(stats) => (
            "io.containerd.cgroups.v2.Metrics",
            metrics_v2(*stats).write_to_bytes(),
        ),
    };
    Any {
        type_url: name.to_owned(),
        // Encoding to memory fails only for missing required fields; proto3 has none.
        value: bytes.unwrap_or_default(),
        ..Any::default()
    }
}

fn field<T, M>(value: Option<T>, convert: impl FnOnce(T) -> M) -> MessageField<M> {
    MessageField::from_option(value.map(convert))
}

fn metrics_v1(stats: V1Stats) -> v1::Metrics {
    let mut cpu = v1::CPUStat::new();
    cpu.usage = field(stats.cpu_usage, |usage| {
        same!(v1::CPUUsage, usage, total, kernel, user, per_cpu)
    });
    cpu.throttling = field(stats.throttling, |throttling| {
        same!(
            v1::Throttle,
            throttling,
            periods,
            throttled_periods,
            throttled_time
        )
    });
    v1::Metrics {
        hugetlb: stats
            .hugetlb
            .into_iter()
            .map(|one| same!(v1::HugetlbStat, one, usage, max, failcnt, pagesize))
            .collect(),
        pids: field(stats.pids, |pids: Pids| {
            same!(v1::PidsStat, pids, current, limit)
        }),
        cpu: MessageField::some(cpu),
        memory: field(stats.memory, |memory| memory_v1(&memory)),
        blkio: field(stats.blkio, blkio_v1),
        rdma: field(stats.rdma, |rdma: Rdma| v1::RdmaStat {
            current: rdma
                .current
                .into_iter()
                .map(|one| same!(v1::RdmaEntry, one, device, hca_handles, hca_objects))
                .collect(),
            limit: rdma
                .limit
                .into_iter()
                .map(|one| same!(v1::RdmaEntry, one, device, hca_handles, hca_objects))
                .collect(),
            ..v1::RdmaStat::default()
        }),
        memory_oom_control: field(stats.memory_oom_control, |oom| {
            same!(
                v1::MemoryOomControl,
                oom,
                oom_kill_disable,
                under_oom,
                oom_kill
            )
        }),
        ..v1::Metrics::default()
    }
}

fn memory_v1(memory: &V1Memory) -> v1::MemoryStat {
    let entry = |entry: Option<V1MemoryEntry>| {
        field(entry, |entry| {
            same!(v1::MemoryEntry, entry, limit, usage, max, failcnt)
        })
    };
    let mut message = same!(
        v1::MemoryStat,
        memory,
        cache,
        rss,
        rss_huge,
        mapped_file,
        dirty,
        writeback,
        pg_pg_in,
        pg_pg_out,
        pg_fault,
        pg_maj_fault,
        inactive_anon,
        active_anon,
        inactive_file,
        active_file,
        unevictable,
        hierarchical_memory_limit,
        hierarchical_swap_limit,
        total_cache,
        total_rss,
        total_rss_huge,
        total_mapped_file,
        total_dirty,
        total_writeback,
        total_pg_pg_in,
        total_pg_pg_out,
        total_pg_fault,
        total_pg_maj_fault,
        total_inactive_anon,
        total_active_anon,
        total_inactive_file,
        total_active_file,
        total_unevictable,
    );
    message.usage = entry(memory.usage);
    message.swap = entry(memory.swap);
    message.kernel = entry(memory.kernel);
    message.kernel_tcp = entry(memory.kernel_tcp);
    message
}

fn blkio_v1(blkio: V1Blkio) -> v1::BlkIOStat {
    let list = |entries: Vec<V1BlkioEntry>| {
        entries
            .into_iter()
            .map(|entry| same!(v1::BlkIOEntry, entry, op, device, major, minor, value))
            .collect()
    };
    v1::BlkIOStat {
        io_service_bytes_recursive: list(blkio.io_service_bytes_recursive),
        io_serviced_recursive: list(blkio.io_serviced_recursive),
        io_queued_recursive: list(blkio.io_queued_recursive),
        io_service_time_recursive: list(blkio.io_service_time_recursive),
        io_wait_time_recursive: list(blkio.io_wait_time_recursive),
        io_merged_recursive: list(blkio.io_merged_recursive),
        io_time_recursive: list(blkio.io_time_recursive),
        sectors_recursive: list(blkio.sectors_recursive),
        ..v1::BlkIOStat::default()
    }
}

fn psi(psi: Option<Psi>) -> MessageField<v2::PSIStats> {
    let data = |data: Option<PsiData>| {
        field(data, |data| {
            same!(v2::PSIData, data, avg10, avg60, avg300, total)
        })
    };
    field(psi, |psi| v2::PSIStats {
        some: data(psi.some),
        full: data(psi.full),
        ..v2::PSIStats::default()
    })
}

fn metrics_v2(stats: V2Stats) -> v2::Metrics {
    v2::Metrics {
        pids: field(stats.pids, |pids: Pids| v2::PidsStat {
            current: pids.current,
            // What has no limit has 0 in the message for v1, and this here: clients know both.
            limit: match pids.limit {
                0 => u64::MAX,
                limit => limit,
            },
            ..v2::PidsStat::default()
        }),
        cpu: field(stats.cpu, |cpu| {
            let mut message = same!(
                v2::CPUStat,
                cpu,
                usage_usec,
                user_usec,
                system_usec,
                nr_periods,
                nr_throttled,
                throttled_usec,
                nr_bursts,
                burst_usec,
            );
            message.psi = psi(cpu.psi);
            message
        }),
        memory: field(stats.memory, |memory| memory_v2(&memory)),
        rdma: MessageField::some(rdma_v2(stats.rdma.unwrap_or_default())),
        io: field(stats.io, |io| v2::IOStat {
            usage: io
                .usage
                .into_iter()
                .map(|entry| same!(v2::IOEntry, entry, major, minor, rbytes, wbytes, rios, wios))
                .collect(),
            psi: psi(io.psi),
            ..v2::IOStat::default()
        }),
        hugetlb: stats
            .hugetlb
            .into_iter()
            .map(|one| same!(v2::HugeTlbStat, one, current, max, pagesize, failcnt))
            .collect(),
        memory_events: field(stats.memory_events, |events| {
            same!(
                v2::MemoryEvents,
                events,
                low,
                high,
                max,
                oom,
                oom_kill,
                oom_group_kill
            )
        }),
        ..v2::Metrics::default()
    }
}

/// Always there, if empty, as clients are used to.
fn rdma_v2(rdma: Rdma) -> v2::RdmaStat {
    v2::RdmaStat {
        current: rdma
            .current
            .into_iter()
            .map(|one| same!(v2::RdmaEntry, one, device, hca_handles, hca_objects))
            .collect(),
        limit: rdma
            .limit
            .into_iter()
            .map(|one| same!(v2::RdmaEntry, one, device, hca_handles, hca_objects))
            .collect(),
        ..v2::RdmaStat::default()
    }
}

fn memory_v2(memory: &V2Memory) -> v2::MemoryStat {
    let mut message = same!(
        v2::MemoryStat,
        memory,
        anon,
        file,
        kernel_stack,
        slab,
        sock,
        shmem,
        file_mapped,
        file_dirty,
        file_writeback,
        anon_thp,
        inactive_anon,
        active_anon,
        inactive_file,
        active_file,
        unevictable,
        slab_reclaimable,
        slab_unreclaimable,
        pgfault,
        pgmajfault,
        workingset_refault,
        workingset_activate,
        workingset_nodereclaim,
        pgrefill,
        pgscan,
        pgsteal,
        pgactivate,
        pgdeactivate,
        pglazyfree,
        pglazyfreed,
        thp_fault_alloc,
        thp_collapse_alloc,
        usage,
        usage_limit,
        swap_usage,
        swap_limit,
        max_usage,
        swap_max_usage,
    );
    message.psi = psi(memory.psi);
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_cgroups::{V1CpuUsage, V2Cpu};

    #[test]
    fn each_version_has_its_message() {
        let stats = V1Stats {
            cpu_usage: Some(V1CpuUsage {
                total: 5,
                ..V1CpuUsage::default()
            }),
            memory: Some(Box::new(V1Memory {
                rss: 7,
                total_inactive_file: 8,
                ..V1Memory::default()
            })),
            ..V1Stats::default()
        };
        let any = to_any(Stats::V1(Box::new(stats)));
        assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
        let read = v1::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!(read.cpu.usage.total, 5);
        assert_eq!((read.memory.rss, read.memory.total_inactive_file), (7, 8));
        assert!(read.blkio.is_none());
        let stats = V2Stats {
            cpu: Some(V2Cpu {
                usage_usec: 9,
                ..V2Cpu::default()
            }),
            pids: Some(Pids {
                current: 3,
                limit: 0,
            }),
            ..V2Stats::default()
        };
        let any = to_any(Stats::V2(Box::new(stats)));
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let read = v2::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!(read.cpu.usage_usec, 9);
        assert_eq!((read.pids.current, read.pids.limit), (3, u64::MAX));
        assert!(read.rdma.is_some() && read.memory.is_none());
    }
}
