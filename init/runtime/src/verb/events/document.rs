//! The `data` of a `stats` event: runc's names and units (bytes, nanoseconds).

use holdfast_cgroups::{
    Cpuset, Details, Pids, Psi, PsiData, Stats, V1Blkio, V1BlkioEntry, V1MemoryEntry, V1Stats,
    V2IoEntry, V2Stats,
};
use serde_json::{Map, Value, json};

/// The whole document.
pub(super) fn stats(stats: &Stats, details: &Details, rdt: Value) -> Value {
    let mut document = match stats {
        Stats::V1(stats) => v1(stats, details),
        Stats::V2(stats) => v2(stats, details),
    };
    document.insert("cpuset".into(), cpuset(details.cpuset.as_ref()));
    document.insert("intel_rdt".into(), rdt);
    // Of the devices runc itself makes, which no OCI specification can ask for.
    document.insert("network_interfaces".into(), Value::Null);
    document.into_iter().collect()
}

fn v1(stats: &V1Stats, details: &Details) -> Map<String, Value> {
    let usage = stats.cpu_usage.clone().unwrap_or_default();
    let throttling = stats.throttling.unwrap_or_default();
    let memory = stats.memory.as_deref().copied().unwrap_or_default();
    let hugetlb: Map<String, Value> = stats
        .hugetlb
        .iter()
        .map(|page| {
            let size = json!({"usage": page.usage, "max": page.max, "failcnt": page.failcnt});
            (page.pagesize.clone(), size)
        })
        .collect();
    let mut out = Map::new();
    out.insert(
        "cpu".into(),
        json!({
            "usage": {
                "total": usage.total,
                "percpu": usage.per_cpu,
                "percpu_kernel": details.per_cpu.iter().map(|cpu| cpu.kernel).collect::<Vec<_>>(),
                "percpu_user": details.per_cpu.iter().map(|cpu| cpu.user).collect::<Vec<_>>(),
                "kernel": usage.kernel,
                "user": usage.user,
            },
            "throttling": {
                "periods": throttling.periods,
                "throttledPeriods": throttling.throttled_periods,
                "throttledTime": throttling.throttled_time,
            },
        }),
    );
    out.insert(
        "memory".into(),
        json!({
            "cache": memory.cache,
            "usage": memory_entry(memory.usage),
            "swap": memory_entry(memory.swap),
            "kernel": memory_entry(memory.kernel),
            "kernelTCP": memory_entry(memory.kernel_tcp),
            "raw": raw(details),
        }),
    );
    out.insert("pids".into(), pids(stats.pids));
    out.insert(
        "blkio".into(),
        stats.blkio.as_ref().map_or_else(|| json!({}), blkio),
    );
    out.insert("hugetlb".into(), hugetlb.into());
    out
}

fn v2(stats: &V2Stats, details: &Details) -> Map<String, Value> {
    let cpu = stats.cpu.unwrap_or_default();
    let nanos = |micros: u64| micros.saturating_mul(1000);
    let memory = stats.memory.as_deref().copied().unwrap_or_default();
    let events = stats.memory_events.unwrap_or_default();
    let hugetlb: Map<String, Value> = stats
        .hugetlb
        .iter()
        .map(|page| {
            let size = json!({"usage": page.current, "max": page.max, "failcnt": page.failcnt});
            (page.pagesize.clone(), size)
        })
        .collect();
    let mut out = Map::new();
    out.insert(
        "cpu".into(),
        with_psi(
            json!({
                "usage": {
                    "total": nanos(cpu.usage_usec),
                    "kernel": nanos(cpu.system_usec),
                    "user": nanos(cpu.user_usec),
                },
                "throttling": {
                    "periods": cpu.nr_periods,
                    "throttledPeriods": cpu.nr_throttled,
                    "throttledTime": nanos(cpu.throttled_usec),
                },
            }),
            cpu.psi,
        ),
    );
    let entry = |usage: u64, limit: u64, max: u64, failcnt: u64| json!({"usage": usage, "limit": limit, "max": max, "failcnt": failcnt});
    out.insert(
        "memory".into(),
        with_psi(
            json!({
                "cache": memory.file,
                "usage": entry(memory.usage, memory.usage_limit, memory.max_usage, events.max),
                // Memory and swap together, as v1 counts it and readers of this document expect it.
                "swap": entry(
                    memory.swap_usage.saturating_add(memory.usage),
                    memory.swap_limit.saturating_add(memory.usage_limit),
                    memory.swap_max_usage.saturating_add(memory.max_usage),
                    0,
                ),
                "kernel": entry(0, 0, 0, 0),
                "kernelTCP": entry(0, 0, 0, 0),
                "raw": raw(details),
            }),
            memory.psi,
        ),
    );
    out.insert("pids".into(), pids(stats.pids));
    out.insert(
        "blkio".into(),
        stats
            .io
            .as_ref()
            .map_or_else(|| json!({}), |io| with_psi(io_document(&io.usage), io.psi)),
    );
    out.insert("hugetlb".into(), hugetlb.into());
    out
}

fn raw(details: &Details) -> Value {
    let pairs = details.memory_stat.iter();
    let map: Map<String, Value> = pairs
        .map(|(key, value)| (key.clone(), json!(value)))
        .collect();
    map.into()
}

fn memory_entry(entry: Option<V1MemoryEntry>) -> Value {
    let entry = entry.unwrap_or_default();
    json!({"usage": entry.usage, "limit": entry.limit, "max": entry.max, "failcnt": entry.failcnt})
}

fn pids(pids: Option<Pids>) -> Value {
    let pids = pids.unwrap_or_default();
    json!({"current": pids.current, "limit": pids.limit})
}

fn blkio(stats: &V1Blkio) -> Value {
    let list = |entries: &[V1BlkioEntry]| {
        let entry = |entry: &V1BlkioEntry| json!({"major": entry.major, "minor": entry.minor, "op": entry.op, "value": entry.value});
        entries.iter().map(entry).collect::<Vec<_>>()
    };
    json!({
        "ioServiceBytesRecursive": list(&stats.io_service_bytes_recursive),
        "ioServicedRecursive": list(&stats.io_serviced_recursive),
        "ioQueueRecursive": list(&stats.io_queued_recursive),
        "ioServiceTimeRecursive": list(&stats.io_service_time_recursive),
        "ioWaitTimeRecursive": list(&stats.io_wait_time_recursive),
        "ioMergedRecursive": list(&stats.io_merged_recursive),
        "ioTimeRecursive": list(&stats.io_time_recursive),
        "sectorsRecursive": list(&stats.sectors_recursive),
    })
}

fn io_document(entries: &[V2IoEntry]) -> Value {
    let list = |read: fn(&V2IoEntry) -> u64, write: fn(&V2IoEntry) -> u64| {
        let both = entries.iter().flat_map(|entry| {
            [("Read", read(entry)), ("Write", write(entry))].map(
                |(op, value)| json!({"major": entry.major, "minor": entry.minor, "op": op, "value": value}),
            )
        });
        both.collect::<Vec<_>>()
    };
    json!({
        "ioServiceBytesRecursive": list(|io| io.rbytes, |io| io.wbytes),
        "ioServicedRecursive": list(|io| io.rios, |io| io.wios),
    })
}

fn with_psi(mut document: Value, psi: Option<Psi>) -> Value {
    if let (Some(psi), Some(fields)) = (psi, document.as_object_mut()) {
        let line = |line: Option<PsiData>| {
            let line = line.unwrap_or_default();
            json!({"avg10": line.avg10, "avg60": line.avg60, "avg300": line.avg300, "total": line.total})
        };
        let psi = json!({"some": line(psi.some), "full": line(psi.full)});
        fields.insert("psi".into(), psi);
    }
    document
}

fn cpuset(cpuset: Option<&Cpuset>) -> Value {
    let set = cpuset.cloned().unwrap_or_default();
    json!({
        "cpus": set.cpus,
        "cpu_exclusive": set.cpu_exclusive,
        "mems": set.mems,
        "mem_hardwall": set.mem_hardwall,
        "mem_exclusive": set.mem_exclusive,
        "memory_migrate": set.memory_migrate,
        "memory_spread_page": set.memory_spread_page,
        "memory_spread_slab": set.memory_spread_slab,
        "memory_pressure": set.memory_pressure,
        "sched_load_balance": set.sched_load_balance,
        "sched_relax_domain_level": set.sched_relax_domain_level,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_cgroups::{V2Cpu, V2Io, V2Memory};

    #[test]
    fn v2_is_told_in_the_units_of_v1() {
        let waited = PsiData {
            avg10: 0.5,
            total: 7,
            ..PsiData::default()
        };
        let psi = Some(Psi {
            some: Some(waited),
            full: None,
        });
        let given = V2Stats {
            cpu: Some(V2Cpu {
                usage_usec: 3,
                psi,
                ..V2Cpu::default()
            }),
            memory: Some(Box::new(V2Memory {
                usage: 10,
                usage_limit: u64::MAX,
                swap_usage: 5,
                swap_limit: u64::MAX,
                file: 4,
                ..V2Memory::default()
            })),
            io: Some(V2Io {
                usage: vec![V2IoEntry {
                    major: 8,
                    rbytes: 1,
                    wbytes: 2,
                    rios: 3,
                    wios: 4,
                    ..V2IoEntry::default()
                }],
                psi: None,
            }),
            ..V2Stats::default()
        };
        let details = Details {
            memory_stat: vec![("anon".into(), 1)],
            ..Details::default()
        };
        let said = stats(&Stats::V2(Box::new(given)), &details, json!({}));
        let at = |path: &str| said.pointer(path).unwrap().clone();
        assert_eq!(at("/cpu/usage/total"), 3000);
        assert_eq!(at("/cpu/psi/some/avg10"), 0.5);
        assert_eq!(at("/cpu/psi/full/total"), 0);
        assert_eq!(at("/memory/cache"), 4);
        assert_eq!(at("/memory/swap/usage"), 15);
        assert_eq!(at("/memory/swap/limit"), u64::MAX);
        assert_eq!(at("/memory/raw/anon"), 1);
        assert_eq!(at("/blkio/ioServicedRecursive/1/value"), 4);
        assert_eq!(at("/network_interfaces"), Value::Null);
        assert!(said.pointer("/memory/psi").is_none());
    }
}
