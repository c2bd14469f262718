//! Statistics from cgroup v2.

use super::{
    Keyed, Psi, PsiData, V2Cpu, V2Hugetlb, V2Io, V2IoEntry, V2Memory, V2MemoryEvents, V2Stats,
    huge_page_sizes, number, pids, rdma,
};
use crate::dir::Dir;

pub(super) fn read(dir: &Dir) -> V2Stats {
    V2Stats {
        pids: pids(dir),
        cpu: cpu(dir),
        memory: memory(dir).map(Box::new),
        rdma: rdma(dir),
        io: io(dir),
        hugetlb: hugetlb(dir),
        memory_events: Keyed::read(dir, "memory.events").map(|keyed| V2MemoryEvents {
            low: keyed.get("low"),
            high: keyed.get("high"),
            max: keyed.get("max"),
            oom: keyed.get("oom"),
            oom_kill: keyed.get("oom_kill"),
            oom_group_kill: keyed.get("oom_group_kill"),
        }),
    }
}

fn cpu(dir: &Dir) -> Option<V2Cpu> {
    let keyed = Keyed::read(dir, "cpu.stat")?;
    Some(V2Cpu {
        usage_usec: keyed.get("usage_usec"),
        user_usec: keyed.get("user_usec"),
        system_usec: keyed.get("system_usec"),
        nr_periods: keyed.get("nr_periods"),
        nr_throttled: keyed.get("nr_throttled"),
        throttled_usec: keyed.get("throttled_usec"),
        nr_bursts: keyed.get("nr_bursts"),
        burst_usec: keyed.get("burst_usec"),
        psi: pressure(dir, "cpu.pressure"),
    })
}

fn memory(dir: &Dir) -> Option<V2Memory> {
    let keyed = Keyed::read(dir, "memory.stat")?;
    let get = |key: &str| keyed.get(key);
    let file = |name: &str| number(dir, name).unwrap_or(0);
    Some(V2Memory {
        anon: get("anon"),
        file: get("file"),
        kernel_stack: get("kernel_stack"),
        slab: get("slab"),
        sock: get("sock"),
        shmem: get("shmem"),
        file_mapped: get("file_mapped"),
        file_dirty: get("file_dirty"),
        file_writeback: get("file_writeback"),
        anon_thp: get("anon_thp"),
        inactive_anon: get("inactive_anon"),
        active_anon: get("active_anon"),
        inactive_file: get("inactive_file"),
        active_file: get("active_file"),
        unevictable: get("unevictable"),
        slab_reclaimable: get("slab_reclaimable"),
        slab_unreclaimable: get("slab_unreclaimable"),
        pgfault: get("pgfault"),
        pgmajfault: get("pgmajfault"),
        // Split in two since Linux 5.9.
        workingset_refault: get("workingset_refault")
            .saturating_add(get("workingset_refault_anon"))
            .saturating_add(get("workingset_refault_file")),
        workingset_activate: get("workingset_activate")
            .saturating_add(get("workingset_activate_anon"))
            .saturating_add(get("workingset_activate_file")),
        workingset_nodereclaim: get("workingset_nodereclaim"),
        pgrefill: get("pgrefill"),
        pgscan: get("pgscan"),
        pgsteal: get("pgsteal"),
        pgactivate: get("pgactivate"),
        pgdeactivate: get("pgdeactivate"),
        pglazyfree: get("pglazyfree"),
        pglazyfreed: get("pglazyfreed"),
        thp_fault_alloc: get("thp_fault_alloc"),
        thp_collapse_alloc: get("thp_collapse_alloc"),
        usage: file("memory.current"),
        usage_limit: file("memory.max"),
        swap_usage: file("memory.swap.current"),
        swap_limit: file("memory.swap.max"),
        max_usage: file("memory.peak"),
        swap_max_usage: file("memory.swap.peak"),
        psi: pressure(dir, "memory.pressure"),
    })
}

fn io(dir: &Dir) -> Option<V2Io> {
    let text = dir.try_read("io.stat").ok()?;
    Some(V2Io {
        usage: io_entries(&text),
        psi: pressure(dir, "io.pressure"),
    })
}

/// The lines `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`.
fn io_entries(text: &str) -> Vec<V2IoEntry> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (major, minor) = words.next()?.split_once(':')?;
            let mut entry = V2IoEntry {
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
                ..V2IoEntry::default()
            };
            for (key, value) in words.filter_map(|word| word.split_once('=')) {
                let value = value.parse().unwrap_or(0);
                match key {
                    "rbytes" => entry.rbytes = value,
                    "wbytes" => entry.wbytes = value,
                    "rios" => entry.rios = value,
                    "wios" => entry.wios = value,
                    _ => {}
                }
            }
            Some(entry)
        })
        .collect()
}

fn hugetlb(dir: &Dir) -> Vec<V2Hugetlb> {
    huge_page_sizes(dir, "current")
        .into_iter()
        .filter_map(|size| {
            let events = Keyed::read(dir, &format!("hugetlb.{size}.events"));
            Some(V2Hugetlb {
                current: number(dir, &format!("hugetlb.{size}.current"))?,
                max: number(dir, &format!("hugetlb.{size}.max")).unwrap_or(u64::MAX),
                failcnt: events.map_or(0, |events| events.get("max")),
                pagesize: size,
            })
        })
        .collect()
}

fn pressure(dir: &Dir, file: &str) -> Option<Psi> {
    // Without CONFIG_PSI, or with psi=0, the file is missing or refuses the read.
    dir.try_read(file).ok().map(|text| parse_pressure(&text))
}

/// The lines `some avg10=0.00 avg60=0.00 avg300=0.00 total=0` and `full ...`.
fn parse_pressure(text: &str) -> Psi {
    let line = |name: &str| {
        let words = text.lines().find_map(|line| line.strip_prefix(name))?;
        let mut data = PsiData::default();
        for (key, value) in words
            .split_whitespace()
            .filter_map(|word| word.split_once('='))
        {
            match key {
                "avg10" => data.avg10 = value.parse().ok()?,
                "avg60" => data.avg60 = value.parse().ok()?,
                "avg300" => data.avg300 = value.parse().ok()?,
                "total" => data.total = value.parse().ok()?,
                _ => {}
            }
        }
        Some(data)
    };
    Psi {
        some: line("some "),
        full: line("full "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_lines() {
        let psi = parse_pressure(
            "some avg10=17.29 avg60=4.23 avg300=1.45 total=9635596\nfull avg10=x total=1\n",
        );
        assert_eq!(
            psi.some,
            Some(PsiData {
                avg10: 17.29,
                avg60: 4.23,
                avg300: 1.45,
                total: 9_635_596
            })
        );
        assert_eq!(psi.full, None, "a broken line is left out");
    }

    #[test]
    fn io_lines() {
        let parsed = io_entries(
            "8:16 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0\n8:0\nx\n",
        );
        assert_eq!(parsed.len(), 2);
        let first = parsed.first().unwrap();
        assert_eq!(
            (first.minor, first.rbytes, first.wios),
            (16, 1_459_200, 353)
        );
    }

    #[test]
    fn files_of_a_container() {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            (
                "cpu.stat",
                "usage_usec 10\nuser_usec 6\nsystem_usec 4\nnr_bursts 1\n",
            ),
            (
                "memory.stat",
                "anon 4096\nworkingset_refault_anon 1\nworkingset_refault_file 2\n",
            ),
            ("memory.current", "8192\n"),
            ("memory.max", "max\n"),
            ("memory.events", "low 0\noom 1\noom_kill 2\n"),
            ("hugetlb.2MB.current", "0\n"),
            ("hugetlb.2MB.max", "max\n"),
            ("hugetlb.2MB.events", "max 4\n"),
        ] {
            std::fs::write(root.path().join(name), text).unwrap();
        }
        let stats = read(&Dir::at(root.path().to_owned()));
        assert_eq!(stats.pids.unwrap().limit, 0);
        assert_eq!(stats.cpu.unwrap().nr_bursts, 1);
        let memory = stats.memory.unwrap();
        assert_eq!(
            (memory.usage, memory.usage_limit, memory.workingset_refault),
            (8192, u64::MAX, 3)
        );
        assert_eq!(stats.memory_events.unwrap().oom_kill, 2);
        assert_eq!(stats.io, None);
        assert_eq!(stats.hugetlb.first().unwrap().failcnt, 4);
    }
}
