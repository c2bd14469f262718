//! `linux.resources` as unit properties (systemd.resource-control(5); the names and units are those of the D-Bus
//! interface, org.freedesktop.systemd1(5)).
//!
//! The cgroup's files are written afterwards all the same: they know more than systemd, and more exactly. What is here
//! is what systemd would otherwise reset.

use std::collections::BTreeMap;

use oci_spec::runtime::LinuxResources;

pub(super) use super::wire::Value;
use crate::devices::{self, ALL, MKNOD, Node, READ, Rule, WRITE};
use crate::error::{Error, Result};
use crate::resources::{io_weight, swap_alone, weight_of_shares};

/// The default `cpu.period`, in microseconds.
const DEFAULT_PERIOD: u64 = 100_000;
/// What systemd takes for "no limit".
const NO_LIMIT: u64 = u64::MAX;
/// More processors than any kernel supports.
const MAX_CPUS: usize = 8192;

/// A property to be set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Property {
    pub(super) name: &'static str,
    pub(super) value: Value,
    /// The first version of systemd that knows it; 0 for those of every version there is (systemd 240, 2018).
    pub(super) since: u32,
}

impl Property {
    pub(super) fn new(name: &'static str, value: Value) -> Self {
        Self {
            name,
            value,
            since: 0,
        }
    }
}

/// Each name once; the last one counts.
#[derive(Debug, Default)]
struct Set(Vec<Property>);

impl Set {
    fn put(&mut self, name: &'static str, value: Value, since: u32) {
        self.0.retain(|old| old.name != name);
        self.0.push(Property { name, value, since });
    }

    fn number(&mut self, name: &'static str, value: u64) {
        self.put(name, Value::U64(value), 0);
    }

    fn limit(&mut self, name: &'static str, value: Option<i64>) {
        if let Some(value) = value.filter(|&value| value != 0) {
            self.number(name, limit(value));
        }
    }

    fn cpu_max(&mut self, quota: Option<i64>, period: Option<u64>) {
        if let Some(period) = period {
            self.put("CPUQuotaPeriodUSec", Value::U64(period), 242);
        }
        if quota.is_some() || period.is_some() {
            let per_second = match quota.and_then(|quota| u64::try_from(quota).ok()) {
                None | Some(0) => NO_LIMIT,
                // systemd keeps whole percents: up, or the container would get less than it was promised.
                Some(quota) => quota
                    .saturating_mul(1_000_000)
                    .div_ceil(period.unwrap_or(DEFAULT_PERIOD).max(1))
                    .checked_next_multiple_of(10_000)
                    .unwrap_or(NO_LIMIT),
            };
            self.number("CPUQuotaPerSecUSec", per_second);
        }
    }

    fn processors(&mut self, name: &'static str, list: Option<&str>) {
        if let Some(bits) = list.and_then(bits) {
            self.put(name, Value::Bytes(bits), 244);
        }
    }
}

/// -1 is no limit.
fn limit(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(NO_LIMIT)
}

/// The limits; `v1`: of a machine with cgroup v1 (or hybrid). Values that make no sense are left out here: applying
/// them to the cgroup fails with the field's name.
///
/// # Errors
/// [`Error::Invalid`] for a swap limit that is below the memory limit.
pub fn limit_properties(resources: &LinuxResources, v1: bool) -> Result<Vec<Property>> {
    let mut set = Set::default();
    if let Some(memory) = resources.memory() {
        if v1 {
            set.limit("MemoryLimit", memory.limit());
        } else {
            set.limit("MemoryMax", memory.limit());
            set.limit("MemoryLow", memory.reservation());
            let swap = memory.swap().unwrap_or(0);
            if let Some(swap) = swap_alone(memory.limit().unwrap_or(0), swap)? {
                // 0 is a limit here: no swap.
                set.number("MemorySwapMax", limit(swap));
            }
        }
    }
    if let Some(cpu) = resources.cpu() {
        if let Some(shares) = cpu.shares().filter(|&shares| shares != 0) {
            if v1 {
                set.number("CPUShares", shares);
            } else {
                set.number("CPUWeight", weight_of_shares(shares));
            }
        }
        if !v1 && cpu.idle() == Some(1) {
            set.put("CPUWeight", Value::U64(0), 252);
        }
        set.cpu_max(
            cpu.quota().filter(|&quota| quota != 0),
            cpu.period().filter(|&period| period != 0),
        );
        set.processors("AllowedCPUs", cpu.cpus().as_deref());
        set.processors("AllowedMemoryNodes", cpu.mems().as_deref());
    }
    if let Some(pids) = resources.pids() {
        set.limit("TasksMax", Some(pids.limit()));
    }
    if let Some(weight) = resources
        .block_io()
        .as_ref()
        .and_then(|io| io.weight())
        .filter(|&weight| weight != 0)
    {
        if v1 {
            set.number("BlockIOWeight", u64::from(weight));
        } else {
            set.number("IOWeight", io_weight(weight));
        }
    }
    if !v1 {
        let all: BTreeMap<_, _> = resources.unified().iter().flatten().collect();
        for (file, value) in all {
            unified(&mut set, file, value.trim());
        }
    }
    Ok(set.0)
}

/// A file of `linux.resources.unified` that systemd has a property for.
fn unified(set: &mut Set, file: &str, value: &str) {
    let number = || match value {
        "max" => Some(NO_LIMIT),
        text => text.parse().ok(),
    };
    let simple = match file {
        "memory.min" => "MemoryMin",
        "memory.low" => "MemoryLow",
        "memory.high" => "MemoryHigh",
        "memory.max" => "MemoryMax",
        "memory.swap.max" => "MemorySwapMax",
        "pids.max" => "TasksMax",
        "cpu.weight" => "CPUWeight",
        "io.weight" => {
            let weight = value.strip_prefix("default ").unwrap_or(value);
            if let Ok(weight) = weight.trim().parse() {
                set.number("IOWeight", weight);
            }
            return;
        }
        "cpu.idle" => {
            if value == "1" {
                set.put("CPUWeight", Value::U64(0), 252);
            }
            return;
        }
        "cpu.max" => {
            let mut words = value.split_whitespace();
            let quota = match words.next() {
                Some("max") => Some(-1),
                Some(text) => text.parse().ok(),
                None => None,
            };
            let period = words.next().and_then(|text| text.parse().ok());
            if quota.is_some() {
                set.cpu_max(quota, period);
            }
            return;
        }
        "cpuset.cpus" => return set.processors("AllowedCPUs", Some(value)),
        "cpuset.mems" => return set.processors("AllowedMemoryNodes", Some(value)),
        // No property: the file is written by us, and systemd does not know of it.
        _ => return,
    };
    if let Some(number) = number() {
        set.number(simple, number);
    }
}

/// `0-2,7` as systemd's bit mask, the lowest first; `None` for an empty list or none at all.
fn bits(list: &str) -> Option<Vec<u8>> {
    let mut mask = Vec::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (
            first.trim().parse::<usize>().ok()?,
            last.trim().parse::<usize>().ok()?,
        );
        if first > last || last >= MAX_CPUS {
            return None;
        }
        for n in first..=last {
            if mask.len() <= n / 8 {
                mask.resize(n / 8 + 1, 0);
            }
            *mask.get_mut(n / 8)? |= 1_u8 << (n % 8);
        }
    }
    Some(mask)
}

/// The device rules, by number: a path such as /dev/nvidia0 would be looked up in /dev by systemd at every reload, and
/// a device whose node is missing there (or made by a hook behind systemd's back) would be lost to the container.
///
/// systemd's list knows only what is allowed. Where the rules cut a hole into a wider rule, systemd gets the wider rule,
/// and the exact rules are enforced by the program (v2) or the files (v1) that [`crate::Cgroup::apply`] sets; both have to
/// allow an access on v2.
///
/// # Errors
/// [`Error::Invalid`] for a rule that makes no sense.
pub fn device_properties(resources: &LinuxResources) -> Result<Vec<Property>> {
    let rules = devices::parse(resources.devices().as_deref().unwrap_or_default())?;
    let exceptions = match devices::exceptions(&rules) {
        Ok(exceptions) => exceptions,
        Err(Error::DeviceRules { .. }) => {
            // Without the rules that take away, there is no hole. What a total denial took away has to stay away.
            let from = rules.iter().rposition(|rule| rule.is_total()).unwrap_or(0);
            let wider: Vec<Rule> = rules
                .get(from..)
                .unwrap_or_default()
                .iter()
                .copied()
                .filter(|rule| rule.allow || rule.is_total())
                .collect();
            devices::exceptions(&wider)?
        }
        Err(error) => return Err(error),
    };
    if exceptions.allow_by_default {
        return Ok(vec![
            Property::new("DevicePolicy", Value::Text("auto".to_owned())),
            Property::new("DeviceAllow", Value::Pairs(Vec::new())),
        ]);
    }
    let allowed = exceptions.list.iter().map(entry).collect();
    Ok(vec![
        Property::new("DevicePolicy", Value::Text("strict".to_owned())),
        Property::new("DeviceAllow", Value::Pairs(allowed)),
    ])
}

fn entry(rule: &Rule) -> (String, String) {
    // `exceptions` splits `a` into both.
    let kind = match rule.node {
        Node::Block => "block",
        Node::Char | Node::Any => "char",
    };
    let device = match (rule.major, rule.minor) {
        (Some(major), Some(minor)) => format!("/dev/{kind}/{major}:{minor}"),
        (Some(major), None) => format!("{kind}-{major}"),
        // There is no way to name a minor number of all drivers.
        (None, _) => format!("{kind}-*"),
    };
    let mut access = String::new();
    for (bit, letter) in [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')] {
        if rule.access & ALL & bit != 0 {
            access.push(letter);
        }
    }
    (device, access)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(json: &str) -> LinuxResources {
        serde_json::from_str(json).unwrap()
    }

    /// `Name=value` of all, in order.
    fn limits(json: &str, v1: bool) -> String {
        let all = limit_properties(&resources(json), v1).unwrap();
        let one = |property: &Property| {
            let value = match &property.value {
                Value::U64(NO_LIMIT) => "none".to_owned(),
                Value::U64(number) => number.to_string(),
                other => format!("{other:?}"),
            };
            format!("{}={value}", property.name)
        };
        all.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn limits_have_properties() {
        for (json, v2, v1) in [
            (r"{}", "", ""),
            (
                r#"{"memory":{"limit":64,"reservation":32,"swap":96}}"#,
                "MemoryMax=64 MemoryLow=32 MemorySwapMax=32",
                "MemoryLimit=64",
            ),
            (
                r#"{"memory":{"limit":-1}}"#,
                "MemoryMax=none MemorySwapMax=none",
                "MemoryLimit=none",
            ),
            (
                r#"{"memory":{"limit":64,"swap":64}}"#,
                "MemoryMax=64 MemorySwapMax=0",
                "MemoryLimit=64",
            ),
            (
                r#"{"cpu":{"shares":1024}}"#,
                "CPUWeight=100",
                "CPUShares=1024",
            ),
            (
                r#"{"cpu":{"shares":1024,"idle":1}}"#,
                "CPUWeight=0",
                "CPUShares=1024",
            ),
            // 51 % of a processor, and 33.3 %, which has to become 34 %.
            (
                r#"{"cpu":{"quota":25500,"period":50000}}"#,
                "CPUQuotaPeriodUSec=50000 CPUQuotaPerSecUSec=510000",
                "CPUQuotaPeriodUSec=50000 CPUQuotaPerSecUSec=510000",
            ),
            (
                r#"{"cpu":{"quota":33300}}"#,
                "CPUQuotaPerSecUSec=340000",
                "CPUQuotaPerSecUSec=340000",
            ),
            (
                r#"{"cpu":{"quota":-1}}"#,
                "CPUQuotaPerSecUSec=none",
                "CPUQuotaPerSecUSec=none",
            ),
            (
                r#"{"cpu":{"cpus":"0-2,9","mems":"0"}}"#,
                "AllowedCPUs=Bytes([7, 2]) AllowedMemoryNodes=Bytes([1])",
                "AllowedCPUs=Bytes([7, 2]) AllowedMemoryNodes=Bytes([1])",
            ),
            (r#"{"cpu":{"cpus":"2-1"}}"#, "", ""),
            (r#"{"cpu":{"cpus":"0-99999"}}"#, "", ""),
            (r#"{"pids":{"limit":5}}"#, "TasksMax=5", "TasksMax=5"),
            (r#"{"pids":{"limit":-1}}"#, "TasksMax=none", "TasksMax=none"),
            (r#"{"pids":{"limit":0}}"#, "", ""),
            (
                r#"{"blockIO":{"weight":1000}}"#,
                "IOWeight=10000",
                "BlockIOWeight=1000",
            ),
            (
                r#"{"memory":{"limit":9},"unified":{"memory.max":"7","memory.high":"max","cpu.max":"50000 100000","pids.max":"x","io.weight":"default 5","hugetlb.2MB.max":"1"}}"#,
                "CPUQuotaPeriodUSec=100000 CPUQuotaPerSecUSec=500000 IOWeight=5 MemoryHigh=none MemoryMax=7",
                "MemoryLimit=9",
            ),
        ] {
            assert_eq!(limits(json, false), v2, "v2 {json}");
            assert_eq!(limits(json, true), v1, "v1 {json}");
        }
        let wrong = resources(r#"{"memory":{"limit":64,"swap":32}}"#);
        assert!(limit_properties(&wrong, false).is_err());
    }

    fn devices(json: &str) -> (String, String) {
        let all = device_properties(&resources(&format!("{{\"devices\":{json}}}"))).unwrap();
        let [policy, allow] = &all[..] else {
            return (String::new(), format!("{all:?}"));
        };
        assert_eq!((policy.name, allow.name), ("DevicePolicy", "DeviceAllow"));
        let (Value::Text(policy), Value::Pairs(pairs)) = (&policy.value, &allow.value) else {
            return (String::new(), format!("{all:?}"));
        };
        let pairs: Vec<_> = pairs.iter().map(|(a, b)| format!("{a} {b}")).collect();
        (policy.clone(), pairs.join(", "))
    }

    #[test]
    fn devices_go_by_number() {
        let none = r#"{"allow":false,"access":"rwm"}"#;
        for (rules, policy, allow) in [
            (String::new(), "strict", ""),
            (none.to_owned(), "strict", ""),
            (
                format!(
                    r#"{none},{{"allow":true,"type":"c","major":195,"minor":0,"access":"rw"}},{{"allow":true,"type":"b","major":8,"access":"r"}},{{"allow":true,"type":"c","access":"m"}}"#
                ),
                "strict",
                "/dev/char/195:0 rw, block-8 r, char-* m",
            ),
            (
                format!(r#"{none},{{"allow":true,"type":"a","major":5,"minor":1,"access":"r"}}"#),
                "strict",
                "/dev/block/5:1 r, /dev/char/5:1 r",
            ),
            (r#"{"allow":true,"access":"rwm"}"#.to_owned(), "auto", ""),
            // A hole: systemd gets the whole, the exact rules stand in the cgroup.
            (
                format!(
                    r#"{{"allow":true,"access":"rwm"}},{none},{{"allow":true,"type":"c","major":10,"access":"rw"}},{{"allow":false,"type":"c","major":10,"minor":5,"access":"w"}}"#
                ),
                "strict",
                "char-10 rw",
            ),
        ] {
            assert_eq!(
                devices(&format!("[{rules}]")),
                (policy.to_owned(), allow.to_owned()),
                "{rules}"
            );
        }
    }
}
