//! Limits of cgroup v1.

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};

use super::{When, given, invalid, part_of_name, set, set_if_there, set_pair};
use crate::cgroup::Cgroup;
use crate::dir::Dir;
use crate::error::{Error, Result};

/// The directory of a controller that `linux.resources.FIELD` needs.
pub(super) fn controller<'a>(cgroup: &'a Cgroup, controller: &str, field: &str) -> Result<&'a Dir> {
    cgroup
        .v1(controller)
        .map(|place| &place.dir)
        .ok_or_else(|| Error::NoController {
            field: format!("linux.resources.{field}"),
            controller: controller.to_owned(),
            place: "on this machine".to_owned(),
        })
}

pub(super) fn apply(cgroup: &Cgroup, resources: &LinuxResources, when: When) -> Result<()> {
    if let Some(cpu) = resources.cpu() {
        cpuset(cgroup, cpu)?;
        cpu_time(cgroup, cpu)?;
    }
    if let Some(limit) = memory(resources.memory().as_ref(), when) {
        limit.apply(controller(cgroup, "memory", "memory")?)?;
    }
    if let Some(limit) = resources
        .pids()
        .as_ref()
        .and_then(|pids| given(Some(pids.limit())))
    {
        let dir = controller(cgroup, "pids", "pids.limit")?;
        set(dir, "pids.limit", "pids.max", &super::or_max(limit))?;
    }
    if let Some(io) = resources.block_io() {
        block_io(cgroup, io)?;
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        let dir = controller(cgroup, "hugetlb", "hugepageLimits")?;
        let size = part_of_name("hugepageLimits.pageSize", limit.page_size())?;
        let value = limit.limit().to_string();
        set(
            dir,
            "hugepageLimits",
            &format!("hugetlb.{size}.limit_in_bytes"),
            &value,
        )?;
        // Since Linux 5.7: without it a reservation goes around the limit.
        set_if_there(dir, &format!("hugetlb.{size}.rsvd.limit_in_bytes"), &value)?;
    }
    for (device, limit) in resources.rdma().iter().flatten() {
        let dir = controller(cgroup, "rdma", "rdma")?;
        if let Some(line) = super::v2::rdma_line(device, limit) {
            set(dir, "rdma", "rdma.max", &line)?;
        }
    }
    if let Some(network) = resources.network() {
        if let Some(class) = given(network.class_id()) {
            let dir = controller(cgroup, "net_cls", "network.classID")?;
            set(
                dir,
                "network.classID",
                "net_cls.classid",
                &class.to_string(),
            )?;
        }
        for entry in network.priorities().iter().flatten() {
            let dir = controller(cgroup, "net_prio", "network.priorities")?;
            let line = format!("{} {}", entry.name(), entry.priority());
            set(dir, "network.priorities", "net_prio.ifpriomap", &line)?;
        }
    }
    match resources.unified() {
        Some(unified) if !unified.is_empty() => Err(Error::NoController {
            field: "linux.resources.unified".to_owned(),
            controller: "cgroup v2".to_owned(),
            place: "on this machine, whose controllers are on cgroup v1".to_owned(),
        }),
        Some(_) | None => Ok(()),
    }
}

fn cpuset(cgroup: &Cgroup, cpu: &LinuxCpu) -> Result<()> {
    for (field, file, value) in [
        ("cpu.cpus", "cpuset.cpus", cpu.cpus()),
        ("cpu.mems", "cpuset.mems", cpu.mems()),
    ] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            set(controller(cgroup, "cpuset", field)?, field, file, value)?;
        }
    }
    Ok(())
}

fn cpu_time(cgroup: &Cgroup, cpu: &LinuxCpu) -> Result<()> {
    let dir = |field| controller(cgroup, "cpu", field);
    // Weights can be written to a group that is not idle only: leave idle first, enter it last.
    if cpu.idle() == Some(0) {
        set(dir("cpu.idle")?, "cpu.idle", "cpu.idle", "0")?;
    }
    if let Some(shares) = given(cpu.shares()) {
        // The kernel would clamp it without a word; the container would not get what was asked for.
        if !(2..=262_144).contains(&shares) {
            return Err(invalid("cpu.shares", shares, "must be within 2 and 262144"));
        }
        if cpu.idle() == Some(1) {
            log::debug!("cgroup: cpu.shares has no meaning with cpu.idle, ignoring");
        } else {
            set(
                dir("cpu.shares")?,
                "cpu.shares",
                "cpu.shares",
                &shares.to_string(),
            )?;
        }
    }
    if let Some(idle) = cpu.idle().filter(|&idle| idle != 0) {
        set(dir("cpu.idle")?, "cpu.idle", "cpu.idle", &idle.to_string())?;
    }
    let text = |value: Option<u64>| given(value).map(|value| value.to_string());
    let (period, quota) = (
        text(cpu.period()),
        given(cpu.quota()).map(|quota| quota.to_string()),
    );
    let burst = cpu.burst().map(|burst| burst.to_string());
    let quota = quota
        .as_deref()
        .map(|v| ("cpu.quota", "cpu.cfs_quota_us", v));
    let burst = burst
        .as_deref()
        .map(|v| ("cpu.burst", "cpu.cfs_burst_us", v));
    // Each of the three is checked against the other two as they are at that moment.
    match (
        period
            .as_deref()
            .map(|v| ("cpu.period", "cpu.cfs_period_us", v)),
        quota,
    ) {
        (Some(period), quota) => {
            set_pair(dir("cpu.period")?, period, quota)?;
            if let Some((field, file, value)) = burst {
                set(dir("cpu.burst")?, field, file, value)?;
            }
        }
        (None, Some(quota)) => set_pair(dir("cpu.quota")?, quota, burst)?,
        (None, None) => {
            if let Some((field, file, value)) = burst {
                set(dir("cpu.burst")?, field, file, value)?;
            }
        }
    }
    let (period, runtime) = (
        text(cpu.realtime_period()),
        given(cpu.realtime_runtime()).map(|runtime| runtime.to_string()),
    );
    let runtime = runtime
        .as_deref()
        .map(|v| ("cpu.realtimeRuntime", "cpu.rt_runtime_us", v));
    match (period.as_deref(), runtime) {
        (Some(period), runtime) => {
            let period = ("cpu.realtimePeriod", "cpu.rt_period_us", period);
            set_pair(dir("cpu.realtimePeriod")?, period, runtime)
        }
        (None, Some((field, file, value))) => set(dir("cpu.realtimeRuntime")?, field, file, value),
        (None, None) => Ok(()),
    }
}

/// The memory limits that are given.
struct Memory<'a> {
    memory: &'a LinuxMemory,
    limit: Option<i64>,
    swap: Option<i64>,
    disable_oom_killer: Option<bool>,
    check_usage: bool,
}

fn memory(memory: Option<&LinuxMemory>, when: When) -> Option<Memory<'_>> {
    let memory = memory?;
    let limit = given(memory.limit());
    // No limit for memory is no limit for memory and swap either, unless one is given.
    let swap = given(memory.swap()).or(limit.filter(|&limit| limit == -1));
    let disable_oom_killer = match when {
        // The default of a new cgroup.
        When::Create => memory.disable_oom_killer().filter(|&disable| disable),
        When::Update => memory.disable_oom_killer(),
    };
    let some = limit.is_some()
        || swap.is_some()
        || disable_oom_killer.is_some()
        || given(memory.reservation()).is_some()
        || given(memory.kernel_tcp()).is_some()
        || swappiness(memory).is_some();
    some.then_some(Memory {
        memory,
        limit,
        swap,
        disable_oom_killer,
        check_usage: when == When::Update && memory.check_before_update() == Some(true),
    })
}

/// u64::MAX is -1 of a Go program: not given.
fn swappiness(memory: &LinuxMemory) -> Option<u64> {
    memory.swappiness().filter(|&value| value != u64::MAX)
}

impl Memory<'_> {
    fn apply(&self, dir: &Dir) -> Result<()> {
        if let (true, Some(limit)) = (self.check_usage, self.limit.filter(|&limit| limit > 0)) {
            super::v2::refuse_below_usage(dir, "memory.usage_in_bytes", limit)?;
        }
        let text = |value: Option<i64>| value.map(|value| value.to_string());
        let (limit, swap) = (text(self.limit), text(self.swap));
        let swap = swap
            .as_deref()
            .map(|v| ("memory.swap", "memory.memsw.limit_in_bytes", v));
        match (limit.as_deref(), swap) {
            (Some(limit), swap) => {
                let limit = ("memory.limit", "memory.limit_in_bytes", limit);
                match self.swap {
                    // Lifting: memory+swap first, or memory would be above it. Without swap accounting there is no
                    // such file and nothing to lift.
                    Some(-1) => {
                        set_if_there(dir, "memory.memsw.limit_in_bytes", "-1")?;
                        set(dir, limit.0, limit.1, limit.2)?;
                    }
                    Some(_) | None => set_pair(dir, limit, swap)?,
                }
            }
            (None, Some((field, file, value))) => {
                if self.swap == Some(-1) {
                    set_if_there(dir, file, value)?;
                } else {
                    set(dir, field, file, value)?;
                }
            }
            (None, None) => {}
        }
        if let Some(value) = given(self.memory.reservation()) {
            set(
                dir,
                "memory.reservation",
                "memory.soft_limit_in_bytes",
                &value.to_string(),
            )?;
        }
        if let Some(value) = given(self.memory.kernel_tcp()) {
            set(
                dir,
                "memory.kernelTCP",
                "memory.kmem.tcp.limit_in_bytes",
                &value.to_string(),
            )?;
        }
        if let Some(value) = swappiness(self.memory) {
            if value > 100 {
                return Err(invalid(
                    "memory.swappiness",
                    value,
                    "must be within 0 and 100",
                ));
            }
            set(
                dir,
                "memory.swappiness",
                "memory.swappiness",
                &value.to_string(),
            )?;
        }
        match self.disable_oom_killer {
            Some(disable) => {
                let value = if disable { "1" } else { "0" };
                set(dir, "memory.disableOOMKiller", "memory.oom_control", value)
            }
            None => Ok(()),
        }
    }
}

fn block_io(cgroup: &Cgroup, io: &LinuxBlockIo) -> Result<()> {
    let dir = |field| controller(cgroup, "blkio", field);
    // BFQ has files of its own; CFQ's are gone since Linux 5.0.
    let either = |field: &str, bfq: &str, cfq: &str, value: &str| {
        let dir = controller(cgroup, "blkio", field)?;
        if set_if_there(dir, bfq, value)? {
            Ok(())
        } else {
            set(dir, field, cfq, value)
        }
    };
    if let Some(weight) = given(io.weight()) {
        either(
            "blockIO.weight",
            "blkio.bfq.weight",
            "blkio.weight",
            &weight.to_string(),
        )?;
    }
    if let Some(weight) = given(io.leaf_weight()) {
        let field = "blockIO.leafWeight";
        set(dir(field)?, field, "blkio.leaf_weight", &weight.to_string())?;
    }
    for device in io.weight_device().iter().flatten() {
        if let Some(weight) = given(device.weight()) {
            let line = format!("{}:{} {weight}", device.major(), device.minor());
            either(
                "blockIO.weightDevice",
                "blkio.bfq.weight_device",
                "blkio.weight_device",
                &line,
            )?;
        }
        if let Some(weight) = given(device.leaf_weight()) {
            let field = "blockIO.weightDevice.leafWeight";
            let line = format!("{}:{} {weight}", device.major(), device.minor());
            set(dir(field)?, field, "blkio.leaf_weight_device", &line)?;
        }
    }
    let throttles: [(&str, &str, &Option<Vec<LinuxThrottleDevice>>); 4] = [
        (
            "blockIO.throttleReadBpsDevice",
            "blkio.throttle.read_bps_device",
            io.throttle_read_bps_device(),
        ),
        (
            "blockIO.throttleWriteBpsDevice",
            "blkio.throttle.write_bps_device",
            io.throttle_write_bps_device(),
        ),
        (
            "blockIO.throttleReadIOPSDevice",
            "blkio.throttle.read_iops_device",
            io.throttle_read_iops_device(),
        ),
        (
            "blockIO.throttleWriteIOPSDevice",
            "blkio.throttle.write_iops_device",
            io.throttle_write_iops_device(),
        ),
    ];
    for (field, file, devices) in throttles {
        for device in devices.iter().flatten() {
            let line = format!("{}:{} {}", device.major(), device.minor(), device.rate());
            set(dir(field)?, field, file, &line)?;
        }
    }
    Ok(())
}
