//! Where a process runs and where its memory comes from: CPU affinity and NUMA policy.

use holdfast_plan::Step;
use libcontainer::process::cpu_affinity::to_cpuset;
use nix::sched::CpuSet;
use oci_spec::runtime::{
    LinuxMemoryPolicy, MemoryPolicyFlagType as Flag, MemoryPolicyModeType as Mode, Process,
};

use super::Draft;
use crate::error::{Error, Result};

/// A list like `0-3,7` as a set; `None` when it is empty or not given.
fn set(field: &str, list: Option<&str>) -> Result<Option<CpuSet>> {
    let Some(list) = list.filter(|list| !list.trim().is_empty()) else {
        return Ok(None);
    };
    let set = to_cpuset(list).map_err(|error| {
        Error::spec(field, format!("{list:?}: {}", crate::error::chain(&error)))
    })?;
    Ok(Some(set))
}

/// The set as the kernel takes it, in whole 64-bit words.
fn mask(set: &CpuSet) -> Vec<u8> {
    let mut mask = Vec::new();
    for number in (0..CpuSet::count()).filter(|number| set.is_set(*number) == Ok(true)) {
        let words = number / 64 + 1;
        if mask.len() < words * 8 {
            mask.resize(words * 8, 0);
        }
        mask[number / 8] |= 1 << (number % 8);
    }
    mask
}

/// The CPUs of `process.execCPUAffinity.initial`: where the process starts, before it enters
/// its cgroup.
///
/// # Errors
/// A list that cannot be read.
pub fn initial_cpus(process: &Process) -> Result<Option<CpuSet>> {
    let affinity = process.exec_cpu_affinity().as_ref();
    let list = affinity.and_then(|affinity| affinity.initial().as_deref());
    set("process.execCPUAffinity.initial", list)
}

/// `process.execCPUAffinity.final`, once the process is in its cgroup.
pub(super) fn final_cpus(draft: &mut Draft, process: &Process) -> Result<()> {
    let affinity = process.exec_cpu_affinity().as_ref();
    let list = affinity.and_then(|affinity| affinity.cpu_affinity_final().as_deref());
    if let Some(cpus) = set("process.execCPUAffinity.final", list)? {
        draft.push(
            Step::Affinity { mask: &mask(&cpus) },
            format!(
                "run on the CPUs {} of process.execCPUAffinity.final",
                list.unwrap_or_default()
            ),
        );
    }
    Ok(())
}

/// `linux.memoryPolicy`. Which modes, flags and nodes go together is left to the kernel.
pub(super) fn memory_policy(draft: &mut Draft, policy: Option<&LinuxMemoryPolicy>) -> Result<()> {
    let Some(policy) = policy else { return Ok(()) };
    let mut mode = number(policy.mode());
    for flag in policy.flags().iter().flatten() {
        mode |= match flag {
            Flag::MpolFNumaBalancing => 1 << 13,
            Flag::MpolFRelativeNodes => 1 << 14,
            Flag::MpolFStaticNodes => 1 << 15,
        };
    }
    let nodes = set("linux.memoryPolicy.nodes", policy.nodes().as_deref())?;
    draft.push(
        Step::MemoryPolicy {
            mode,
            nodes: &nodes.as_ref().map(mask).unwrap_or_default(),
        },
        format!(
            "set linux.memoryPolicy ({:?} on the nodes {:?}, flags {:?})",
            policy.mode(),
            policy.nodes().as_deref().unwrap_or_default(),
            policy.flags().as_deref().unwrap_or_default(),
        ),
    );
    Ok(())
}

/// linux/mempolicy.h
/// The modes by the specification's names, for `features`.
pub(crate) fn mode_names() -> Vec<String> {
    use Mode as M;
    names(&[
        M::MpolDefault,
        M::MpolPreferred,
        M::MpolBind,
        M::MpolInterleave,
        M::MpolLocal,
        M::MpolPreferredMany,
        M::MpolWeightedInterleave,
    ])
}

/// The flags by the specification's names, for `features`.
pub(crate) fn flag_names() -> Vec<String> {
    names(&[
        Flag::MpolFNumaBalancing,
        Flag::MpolFRelativeNodes,
        Flag::MpolFStaticNodes,
    ])
}

fn names(values: &[impl serde::Serialize]) -> Vec<String> {
    let name = |value| {
        serde_json::to_value(value)
            .ok()?
            .as_str()
            .map(str::to_owned)
    };
    values.iter().filter_map(name).collect()
}

fn number(mode: Mode) -> u32 {
    match mode {
        Mode::MpolDefault => 0,
        Mode::MpolPreferred => 1,
        Mode::MpolBind => 2,
        Mode::MpolInterleave => 3,
        Mode::MpolLocal => 4,
        Mode::MpolPreferredMany => 5,
        Mode::MpolWeightedInterleave => 6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_become_masks_of_whole_words() {
        let bytes = |list| set("f", Some(list)).unwrap().map(|set| mask(&set));
        assert_eq!(bytes(" "), None);
        assert_eq!(bytes("0,2-3").unwrap(), [0b1101, 0, 0, 0, 0, 0, 0, 0]);
        let wide = bytes("64").unwrap();
        assert_eq!((wide.len(), wide[8]), (16, 1));
    }

    #[test]
    fn bad_lists_name_the_field() {
        for list in ["3-1", "x", "1-", "99999"] {
            let error = set("some.field", Some(list)).unwrap_err().to_string();
            assert!(
                error.contains("some.field") && error.contains(list),
                "{error}"
            );
        }
    }
}
