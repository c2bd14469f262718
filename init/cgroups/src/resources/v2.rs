//! Limits of cgroup v2 (Documentation/admin-guide/cgroup-v2.rst, "Controllers").

use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxRdma, LinuxResources};

use super::{When, given, invalid, or_max, part_of_name, set, set_if_there, set_pair};
use crate::dir::Dir;
use crate::error::{Error, Result};

pub(super) fn apply(dir: &Dir, resources: &LinuxResources, when: When) -> Result<()> {
    if let Some(cpu) = resources.cpu() {
        cpu_limits(dir, cpu, when)?;
    }
    if let Some(memory) = resources.memory() {
        memory_limits(dir, memory, when)?;
    }
    if let Some(limit) = resources
        .pids()
        .as_ref()
        .and_then(|pids| given(Some(pids.limit())))
    {
        set(dir, "pids.limit", "pids.max", &or_max(limit))?;
    }
    if let Some(io) = resources.block_io() {
        block_io(dir, io)?;
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        let size = part_of_name("hugepageLimits.pageSize", limit.page_size())?;
        let value = or_max(limit.limit());
        set(
            dir,
            "hugepageLimits",
            &format!("hugetlb.{size}.max"),
            &value,
        )?;
        // Since Linux 5.7: without it a reservation goes around the limit.
        set_if_there(dir, &format!("hugetlb.{size}.rsvd.max"), &value)?;
    }
    for (device, limit) in resources.rdma().iter().flatten() {
        if let Some(line) = rdma_line(device, limit) {
            set(dir, "rdma", "rdma.max", &line)?;
        }
    }
    if let Some(network) = resources.network() {
        let class = given(network.class_id()).map(|_| ("network.classID", "net_cls"));
        let priorities = network
            .priorities()
            .as_ref()
            .filter(|list| !list.is_empty());
        let priorities = priorities.map(|_| ("network.priorities", "net_prio"));
        if let Some((field, controller)) = class.or(priorities) {
            return Err(Error::NoController {
                field: format!("linux.resources.{field}"),
                controller: controller.to_owned(),
                place: "on cgroup v2".to_owned(),
            });
        }
    }
    // Last: a key here overrules the field that stands for the same file.
    for (file, value) in resources
        .unified()
        .iter()
        .flatten()
        .collect::<BTreeMap<_, _>>()
    {
        if file.is_empty() || file.contains('/') || !file.contains('.') || file.starts_with('.') {
            return Err(invalid("unified", file, "is not the name of a cgroup file"));
        }
        if matches!(
            file.as_str(),
            "cgroup.procs" | "cgroup.threads" | "cgroup.kill"
        ) {
            return Err(invalid(
                "unified",
                file,
                "acts on processes and is not a limit",
            ));
        }
        set(dir, &format!("unified[{file:?}]"), file, value)?;
    }
    Ok(())
}

fn cpu_limits(dir: &Dir, cpu: &LinuxCpu, when: When) -> Result<()> {
    for (field, file, value) in [
        ("cpu.cpus", "cpuset.cpus", cpu.cpus()),
        ("cpu.mems", "cpuset.mems", cpu.mems()),
    ] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            set(dir, field, file, value)?;
        }
    }
    if given(cpu.realtime_period()).is_some() || given(cpu.realtime_runtime()).is_some() {
        return Err(Error::NoController {
            field: "linux.resources.cpu.realtimeRuntime".to_owned(),
            controller: "cpu (real time)".to_owned(),
            place: "on cgroup v2".to_owned(),
        });
    }
    // Weights can be written to a group that is not idle only: leave idle first, enter it last.
    if cpu.idle() == Some(0) {
        set(dir, "cpu.idle", "cpu.idle", "0")?;
    }
    if let Some(shares) = given(cpu.shares()) {
        if cpu.idle() == Some(1) {
            log::debug!("cgroup: cpu.shares has no meaning with cpu.idle, ignoring");
        } else {
            set(
                dir,
                "cpu.shares",
                "cpu.weight",
                &weight_of_shares(shares).to_string(),
            )?;
        }
    }
    if let Some(idle) = cpu.idle().filter(|&idle| idle != 0) {
        set(dir, "cpu.idle", "cpu.idle", &idle.to_string())?;
    }
    let max = match (given(cpu.quota()), given(cpu.period())) {
        (None, None) => None,
        // The kernel keeps the period.
        (Some(quota), None) => Some(or_max(quota)),
        (Some(quota), Some(period)) => Some(format!("{} {period}", or_max(quota))),
        (None, Some(period)) => Some(match when {
            When::Create => format!("max {period}"),
            // There is no way to write the period alone.
            When::Update => {
                let now = dir.read("cpu.max")?;
                format!(
                    "{} {period}",
                    now.split_whitespace().next().unwrap_or("max")
                )
            }
        }),
    };
    let burst = cpu.burst().map(|burst| burst.to_string());
    let burst = burst.as_deref().map(|v| ("cpu.burst", "cpu.max.burst", v));
    match (max.as_deref(), burst) {
        // A burst above the quota is refused, whichever is new.
        (Some(max), burst) => set_pair(dir, ("cpu.quota", "cpu.max", max), burst),
        (None, Some((field, file, value))) => set(dir, field, file, value),
        (None, None) => Ok(()),
    }
}

/// `cpu.shares` (2 to 262144, default 1024) as `cpu.weight` (1 to 10000, default 100).
///
/// The curve of runc 1.3.2 and crun 1.23, which maps both ends and both defaults upon each other; a straight line gives
/// a container with the default shares a weight of 39 beside a host at 100.
pub(crate) fn weight_of_shares(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    // At most 262144, so exact.
    let l = (shares as f64).log2();
    let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "within 1 and 10000 by the clamp above"
    )]
    let weight = 10_f64.powf(exponent).ceil() as u64;
    weight.clamp(1, 10_000)
}

/// `memory.swap.max` for memory and swap together, as in the specification; `None` when it is not given.
pub(crate) fn swap_alone(limit: i64, swap: i64) -> Result<Option<i64>> {
    match (limit, swap) {
        // Unlimited memory lifts the limit of swap too.
        (-1, 0) => Ok(Some(-1)),
        (_, 0) => Ok(None),
        (_, -1) => Ok(Some(-1)),
        (0, _) => Err(invalid(
            "memory.swap",
            swap,
            "needs memory.limit, of which swap is what goes beyond",
        )),
        (limit, swap) if limit < 0 || swap < limit => Err(invalid(
            "memory.swap",
            swap,
            "is memory and swap together and must not be below memory.limit",
        )),
        (limit, swap) => Ok(Some(swap - limit)),
    }
}

fn memory_limits(dir: &Dir, memory: &LinuxMemory, when: When) -> Result<()> {
    let limit = memory.limit().unwrap_or(0);
    if when == When::Update && memory.check_before_update() == Some(true) && limit > 0 {
        refuse_below_usage(dir, "memory.current", limit)?;
    }
    if let Some(swap) = swap_alone(limit, memory.swap().unwrap_or(0))? {
        // Without swap there is no such file, and neither 0 nor unlimited needs one.
        if swap <= 0 {
            set_if_there(dir, "memory.swap.max", &or_max(swap))?;
        } else {
            set(dir, "memory.swap", "memory.swap.max", &or_max(swap))?;
        }
    }
    if limit != 0 {
        set(dir, "memory.limit", "memory.max", &or_max(limit))?;
    }
    if let Some(reservation) = given(memory.reservation()) {
        set(
            dir,
            "memory.reservation",
            "memory.low",
            &or_max(reservation),
        )?;
    }
    if memory.swappiness().is_some_and(|value| value != u64::MAX) {
        log::debug!("cgroup: memory.swappiness does not exist on cgroup v2, ignoring");
    }
    if memory.disable_oom_killer() == Some(true) {
        log::debug!("cgroup: memory.disableOOMKiller does not exist on cgroup v2, ignoring");
    }
    Ok(())
}

/// `checkBeforeUpdate`: a limit below what is in use would end in the OOM killer.
pub(super) fn refuse_below_usage(dir: &Dir, file: &str, limit: i64) -> Result<()> {
    let usage: i64 = dir.read(file)?.trim().parse().unwrap_or(0);
    if usage <= limit {
        return Ok(());
    }
    Err(invalid(
        "memory.limit",
        limit,
        &format!("{usage} bytes are in use, and checkBeforeUpdate is set"),
    ))
}

/// `blockIO.weight` (10 to 1000) as `io.weight` (1 to 10000), a straight line as runc and crun draw it.
pub(crate) fn io_weight(weight: u16) -> u64 {
    let weight = u64::from(weight.clamp(10, 1000));
    1 + (weight - 10) * 9999 / 990
}

fn block_io(dir: &Dir, io: &LinuxBlockIo) -> Result<()> {
    if let Some(weight) = given(io.weight()) {
        // BFQ takes the specification's own range.
        if !set_if_there(dir, "io.bfq.weight", &weight.to_string())? {
            set(
                dir,
                "blockIO.weight",
                "io.weight",
                &format!("default {}", io_weight(weight)),
            )?;
        }
    }
    if given(io.leaf_weight()).is_some() {
        return Err(invalid(
            "blockIO.leafWeight",
            "set",
            "does not exist on cgroup v2",
        ));
    }
    for device in io.weight_device().iter().flatten() {
        if let Some(weight) = given(device.weight()) {
            let number = format!("{}:{}", device.major(), device.minor());
            if !set_if_there(dir, "io.bfq.weight", &format!("{number} {weight}"))? {
                let line = format!("{number} {}", io_weight(weight));
                set(dir, "blockIO.weightDevice", "io.weight", &line)?;
            }
        }
    }
    // One line, hence one write, for each device.
    let mut lines: BTreeMap<(i64, i64), String> = BTreeMap::new();
    for (key, devices) in [
        ("rbps", io.throttle_read_bps_device()),
        ("wbps", io.throttle_write_bps_device()),
        ("riops", io.throttle_read_iops_device()),
        ("wiops", io.throttle_write_iops_device()),
    ] {
        for device in devices.iter().flatten() {
            // 0 lifts a limit on v1, and is refused by v2.
            let rate = match device.rate() {
                0 => "max".to_owned(),
                rate => rate.to_string(),
            };
            let line = lines.entry((device.major(), device.minor())).or_default();
            line.push_str(&format!(" {key}={rate}"));
        }
    }
    for ((major, minor), limits) in lines {
        set(
            dir,
            "blockIO.throttle",
            "io.max",
            &format!("{major}:{minor}{limits}"),
        )?;
    }
    Ok(())
}

/// A line of `rdma.max`, the same in v1; `None` when it limits nothing.
pub(super) fn rdma_line(device: &str, limit: &LinuxRdma) -> Option<String> {
    let mut line = device.to_owned();
    for (key, value) in [
        ("hca_handle", limit.hca_handles()),
        ("hca_object", limit.hca_objects()),
    ] {
        if let Some(value) = value {
            line.push_str(&format!(" {key}={value}"));
        }
    }
    (line.len() > device.len()).then_some(line)
}
