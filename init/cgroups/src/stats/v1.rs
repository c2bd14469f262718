//! Statistics from v1 controllers.

use super::{
    Keyed, V1Blkio, V1BlkioEntry, V1CpuUsage, V1Hugetlb, V1Memory, V1MemoryEntry, V1OomControl,
    V1Stats, V1Throttling, huge_page_sizes, number, pids, rdma, read_path,
};
use crate::cgroup::Cgroup;
use crate::dir::Dir;

/// Nanoseconds of one tick of `cpuacct.stat`: USER_HZ is 100 on every architecture Linux has today.
const TICK: u64 = 10_000_000;

pub(super) fn read(cgroup: &Cgroup) -> V1Stats {
    let dir = |controller| cgroup.v1(controller).map(|place| &place.dir);
    let memory = dir("memory");
    V1Stats {
        hugetlb: dir("hugetlb").map(hugetlb).unwrap_or_default(),
        pids: dir("pids").and_then(pids),
        cpu_usage: dir("cpuacct").and_then(cpu_usage),
        throttling: dir("cpu").and_then(throttling),
        memory: memory.and_then(read_memory).map(Box::new),
        blkio: dir("blkio").map(blkio),
        rdma: dir("rdma").and_then(rdma),
        memory_oom_control: memory
            .and_then(|dir| Keyed::read(dir, "memory.oom_control"))
            .map(|keyed| V1OomControl {
                oom_kill_disable: keyed.get("oom_kill_disable"),
                under_oom: keyed.get("under_oom"),
                oom_kill: keyed.get("oom_kill"),
            }),
    }
}

fn hugetlb(dir: &Dir) -> Vec<V1Hugetlb> {
    huge_page_sizes(dir, "usage_in_bytes")
        .into_iter()
        .filter_map(|size| {
            let value = |what: &str| number(dir, &format!("hugetlb.{size}.{what}"));
            Some(V1Hugetlb {
                usage: value("usage_in_bytes")?,
                max: value("max_usage_in_bytes").unwrap_or(0),
                failcnt: value("failcnt").unwrap_or(0),
                pagesize: size.clone(),
            })
        })
        .collect()
}

fn cpu_usage(dir: &Dir) -> Option<V1CpuUsage> {
    let stat = Keyed::read(dir, "cpuacct.stat");
    let ticks = |key| {
        stat.as_ref()
            .map_or(0, |stat| stat.get(key))
            .saturating_mul(TICK)
    };
    let per_cpu = dir.try_read("cpuacct.usage_percpu").unwrap_or_default();
    Some(V1CpuUsage {
        total: number(dir, "cpuacct.usage")?,
        kernel: ticks("system"),
        user: ticks("user"),
        per_cpu: per_cpu
            .split_whitespace()
            .filter_map(|value| value.parse().ok())
            .collect(),
    })
}

fn throttling(dir: &Dir) -> Option<V1Throttling> {
    let keyed = Keyed::read(dir, "cpu.stat")?;
    Some(V1Throttling {
        periods: keyed.get("nr_periods"),
        throttled_periods: keyed.get("nr_throttled"),
        throttled_time: keyed.get("throttled_time"),
    })
}

fn read_memory(dir: &Dir) -> Option<V1Memory> {
    let keyed = Keyed::read(dir, "memory.stat")?;
    let get = |key: &str| keyed.get(key);
    let entry = |prefix: &str| {
        let value = |what: &str| number(dir, &format!("{prefix}.{what}"));
        Some(V1MemoryEntry {
            usage: value("usage_in_bytes")?,
            limit: value("limit_in_bytes").unwrap_or(0),
            max: value("max_usage_in_bytes").unwrap_or(0),
            failcnt: value("failcnt").unwrap_or(0),
        })
    };
    Some(V1Memory {
        cache: get("cache"),
        rss: get("rss"),
        rss_huge: get("rss_huge"),
        mapped_file: get("mapped_file"),
        dirty: get("dirty"),
        writeback: get("writeback"),
        pg_pg_in: get("pgpgin"),
        pg_pg_out: get("pgpgout"),
        pg_fault: get("pgfault"),
        pg_maj_fault: get("pgmajfault"),
        inactive_anon: get("inactive_anon"),
        active_anon: get("active_anon"),
        inactive_file: get("inactive_file"),
        active_file: get("active_file"),
        unevictable: get("unevictable"),
        hierarchical_memory_limit: get("hierarchical_memory_limit"),
        hierarchical_swap_limit: get("hierarchical_memsw_limit"),
        total_cache: get("total_cache"),
        total_rss: get("total_rss"),
        total_rss_huge: get("total_rss_huge"),
        total_mapped_file: get("total_mapped_file"),
        total_dirty: get("total_dirty"),
        total_writeback: get("total_writeback"),
        total_pg_pg_in: get("total_pgpgin"),
        total_pg_pg_out: get("total_pgpgout"),
        total_pg_fault: get("total_pgfault"),
        total_pg_maj_fault: get("total_pgmajfault"),
        total_inactive_anon: get("total_inactive_anon"),
        total_active_anon: get("total_active_anon"),
        total_inactive_file: get("total_inactive_file"),
        total_active_file: get("total_active_file"),
        total_unevictable: get("total_unevictable"),
        usage: entry("memory"),
        swap: entry("memory.memsw"),
        kernel: entry("memory.kmem"),
        kernel_tcp: entry("memory.kmem.tcp"),
    })
}

fn blkio(dir: &Dir) -> V1Blkio {
    // BFQ counts under its own names, and only on its own devices; the throttling layer counts on all of them.
    let first = |names: &[&str]| {
        names
            .iter()
            .filter_map(|name| dir.try_read(name).ok())
            .map(|text| entries(&text))
            .find(|entries| !entries.is_empty())
            .unwrap_or_default()
    };
    let both = |what: &str| first(&[&format!("blkio.bfq.{what}"), &format!("blkio.{what}")]);
    let mut out = V1Blkio {
        io_service_bytes_recursive: first(&[
            "blkio.bfq.io_service_bytes_recursive",
            "blkio.io_service_bytes_recursive",
            "blkio.throttle.io_service_bytes_recursive",
        ]),
        io_serviced_recursive: first(&[
            "blkio.bfq.io_serviced_recursive",
            "blkio.io_serviced_recursive",
            "blkio.throttle.io_serviced_recursive",
        ]),
        io_queued_recursive: both("io_queued_recursive"),
        io_service_time_recursive: both("io_service_time_recursive"),
        io_wait_time_recursive: both("io_wait_time_recursive"),
        io_merged_recursive: both("io_merged_recursive"),
        io_time_recursive: both("time_recursive"),
        sectors_recursive: both("sectors_recursive"),
    };
    name_devices(&mut out);
    out
}

/// The lines `8:0 Read 4096` and `8:0 12`; the sum over all devices (`Total 0`) is left out.
fn entries(text: &str) -> Vec<V1BlkioEntry> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (major, minor) = words.next()?.split_once(':')?;
            let (op, value) = match (words.next()?, words.next()) {
                (op, Some(value)) => (op, value),
                (value, None) => ("", value),
            };
            Some(V1BlkioEntry {
                op: op.to_owned(),
                device: String::new(),
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
                value: value.parse().ok()?,
            })
        })
        .collect()
}

/// Fills in the names, asking sysfs once for each device.
fn name_devices(stats: &mut V1Blkio) {
    let mut known: Vec<(u64, u64, String)> = Vec::new();
    let lists = [
        &mut stats.io_service_bytes_recursive,
        &mut stats.io_serviced_recursive,
        &mut stats.io_queued_recursive,
        &mut stats.io_service_time_recursive,
        &mut stats.io_wait_time_recursive,
        &mut stats.io_merged_recursive,
        &mut stats.io_time_recursive,
        &mut stats.sectors_recursive,
    ];
    for entry in lists.into_iter().flatten() {
        let (major, minor) = (entry.major, entry.minor);
        let found = known
            .iter()
            .find(|(a, b, _)| (*a, *b) == (major, minor))
            .map(|(_, _, name)| name.clone());
        entry.device = found.unwrap_or_else(|| {
            let name = device_name(major, minor).unwrap_or_default();
            known.push((major, minor, name.clone()));
            name
        });
    }
}

fn device_name(major: u64, minor: u64) -> Option<String> {
    let uevent = read_path(&format!("/sys/dev/block/{major}:{minor}/uevent"))?;
    let name = uevent
        .lines()
        .find_map(|line| line.strip_prefix("DEVNAME="))?;
    Some(format!("/dev/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blkio_lines() {
        let parsed = entries("8:0 Read 4096\n8:0 Total 4097\n253:1 12\nTotal 4097\nx:y Read 1\n");
        let short: Vec<_> = parsed
            .iter()
            .map(|e| (e.major, e.minor, e.op.as_str(), e.value))
            .collect();
        assert_eq!(
            short,
            [
                (8, 0, "Read", 4096),
                (8, 0, "Total", 4097),
                (253, 1, "", 12)
            ]
        );
    }

    #[test]
    fn a_broken_file_leaves_its_field_out() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::at(root.path().to_owned());
        std::fs::write(root.path().join("cpuacct.usage"), "rubbish\n").unwrap();
        assert_eq!(cpu_usage(&dir), None);
        std::fs::write(root.path().join("cpuacct.usage"), "77\n").unwrap();
        std::fs::write(root.path().join("cpuacct.stat"), "user 2\nsystem 3\n").unwrap();
        std::fs::write(root.path().join("cpuacct.usage_percpu"), "70 7 \n").unwrap();
        assert_eq!(
            cpu_usage(&dir),
            Some(V1CpuUsage {
                total: 77,
                kernel: 30_000_000,
                user: 20_000_000,
                per_cpu: vec![70, 7]
            })
        );
    }
}
