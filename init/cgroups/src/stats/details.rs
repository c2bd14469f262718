//! What `events` of the runtime tells beyond the statistics that containerd asks for: of each CPU, of the cpuset, and
//! the whole of `memory.stat`. The shim, which is asked for statistics every few seconds, does not read these.

use super::{Keyed, exists, number};
use crate::cgroup::Cgroup;
use crate::dir::Dir;
use crate::error::Result;

/// More about a cgroup.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Details {
    /// CPU time of each CPU, by its number (v1 only: v2 does not count it).
    pub per_cpu: Vec<PerCpu>,
    /// CPUs and memory places; `None` without the controller.
    pub cpuset: Option<Cpuset>,
    /// `memory.stat`, in the kernel's order and units.
    pub memory_stat: Vec<(String, u64)>,
}

/// CPU time of one CPU in nanoseconds (`cpuacct.usage_all`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PerCpu {
    /// In user space.
    pub user: u64,
    /// In the kernel.
    pub kernel: u64,
}

/// The cpuset controller. Flags are 0 or 1; those from `cpu_exclusive` on exist on v1 only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "the names are the kernel's: Documentation/admin-guide/cgroup-v1/cpusets.rst"
)]
pub struct Cpuset {
    /// The CPUs it may run on.
    pub cpus: Vec<u16>,
    /// The memory places it may allocate from.
    pub mems: Vec<u16>,
    pub cpu_exclusive: u64,
    pub mem_hardwall: u64,
    pub mem_exclusive: u64,
    pub memory_migrate: u64,
    pub memory_spread_page: u64,
    pub memory_spread_slab: u64,
    pub memory_pressure: u64,
    pub sched_load_balance: u64,
    pub sched_relax_domain_level: i64,
}

impl Cgroup {
    /// Reads the details. A file that is missing or cannot be parsed leaves its part empty.
    ///
    /// # Errors
    /// [`crate::Error::Gone`] when the cgroup does not exist any more.
    pub fn details(&self) -> Result<Details> {
        match self.reference() {
            Some(place) if exists(&place.dir) => {}
            Some(_) | None => return Err(self.gone()),
        }
        let memory =
            |dir: &Dir| Keyed::read(dir, "memory.stat").map_or(Vec::new(), |keyed| keyed.0);
        if self.is_v1() {
            let dir = |controller| self.v1(controller).map(|place| &place.dir);
            return Ok(Details {
                per_cpu: dir("cpuacct").map(per_cpu).unwrap_or_default(),
                cpuset: dir("cpuset").and_then(cpuset_v1),
                memory_stat: dir("memory").map(memory).unwrap_or_default(),
            });
        }
        let Some(place) = self.unified() else {
            return Err(self.gone());
        };
        Ok(Details {
            per_cpu: Vec::new(),
            cpuset: cpuset_v2(&place.dir),
            memory_stat: memory(&place.dir),
        })
    }
}

/// The lines `CPU USER SYSTEM` below a heading that names them.
fn per_cpu(dir: &Dir) -> Vec<PerCpu> {
    let text = dir.try_read("cpuacct.usage_all").unwrap_or_default();
    text.lines()
        .skip(1)
        .filter_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            Some(PerCpu {
                user: words.next()?.parse().ok()?,
                kernel: words.next()?.parse().ok()?,
            })
        })
        .collect()
}

fn cpuset_v1(dir: &Dir) -> Option<Cpuset> {
    let flag = |name: &str| number(dir, &format!("cpuset.{name}")).unwrap_or(0);
    let level = dir.try_read("cpuset.sched_relax_domain_level");
    Some(Cpuset {
        cpus: list(dir, "cpuset.cpus")?,
        mems: list(dir, "cpuset.mems").unwrap_or_default(),
        cpu_exclusive: flag("cpu_exclusive"),
        mem_hardwall: flag("mem_hardwall"),
        mem_exclusive: flag("mem_exclusive"),
        memory_migrate: flag("memory_migrate"),
        memory_spread_page: flag("memory_spread_page"),
        memory_spread_slab: flag("memory_spread_slab"),
        memory_pressure: flag("memory_pressure"),
        sched_load_balance: flag("sched_load_balance"),
        sched_relax_domain_level: level
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0),
    })
}

fn cpuset_v2(dir: &Dir) -> Option<Cpuset> {
    Some(Cpuset {
        cpus: list(dir, "cpuset.cpus.effective")?,
        mems: list(dir, "cpuset.mems.effective").unwrap_or_default(),
        ..Cpuset::default()
    })
}

fn list(dir: &Dir, file: &str) -> Option<Vec<u16>> {
    parse_list(dir.try_read(file).ok()?.trim())
}

/// A list such as `0-2,7` (cpuset(7), "List format"). One with more than 65536 members, or turned round, is none.
fn parse_list(text: &str) -> Option<Vec<u16>> {
    let mut members = Vec::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        if first > last {
            return None;
        }
        members.extend(first..=last);
    }
    Some(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        assert_eq!(parse_list("0-2,7").unwrap(), [0, 1, 2, 7]);
        assert_eq!(parse_list("").unwrap(), [0_u16; 0]);
        for wrong in ["2-0", "x", "1-", "70000"] {
            assert_eq!(parse_list(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn files_of_a_container() {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("cpuacct.usage_all", "cpu user system\n0 70 3\n1 7 0\nx\n"),
            ("cpuset.cpus", "0-1\n"),
            ("cpuset.mems", "0\n"),
            ("cpuset.sched_load_balance", "1\n"),
            ("cpuset.sched_relax_domain_level", "-1\n"),
            ("cpuset.cpus.effective", "3\n"),
        ] {
            std::fs::write(root.path().join(name), text).unwrap();
        }
        let dir = Dir::at(root.path().to_owned());
        let of = |user, kernel| PerCpu { user, kernel };
        assert_eq!(per_cpu(&dir), [of(70, 3), of(7, 0)]);
        let v1 = cpuset_v1(&dir).unwrap();
        assert_eq!((v1.cpus, v1.mems), (vec![0, 1], vec![0]));
        assert_eq!(
            (v1.sched_load_balance, v1.sched_relax_domain_level),
            (1, -1)
        );
        assert_eq!(cpuset_v2(&dir).unwrap().cpus, [3]);
        std::fs::remove_file(root.path().join("cpuset.cpus")).unwrap();
        assert_eq!(cpuset_v1(&dir), None);
    }
}
