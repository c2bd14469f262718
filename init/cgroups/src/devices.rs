//! Device rules (`linux.resources.devices`): what they mean, and how cgroup v1 is told.
//!
//! The rules are an ordered list and the last one that matches a device decides, for each of read, write and mknod on
//! its own (runtime-spec, config-linux.md, "Allowed Device list"). Where none matches, access is denied.
//! v1: Documentation/admin-guide/cgroup-v1/devices.rst; v2: the `ebpf` module.

use std::fmt;
use std::os::fd::AsFd;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType};

use crate::dir::Dir;
use crate::error::{Error, Result};
use crate::resources::When;
use crate::sys;

/// `BPF_DEVCG_ACC_MKNOD`, also used for the rules themselves.
pub(crate) const MKNOD: u8 = 1;
/// `BPF_DEVCG_ACC_READ`.
pub(crate) const READ: u8 = 2;
/// `BPF_DEVCG_ACC_WRITE`.
pub(crate) const WRITE: u8 = 4;
/// All three.
pub(crate) const ALL: u8 = MKNOD | READ | WRITE;

/// The type of device node a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Node {
    Any,
    Block,
    Char,
}

/// One rule, parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) allow: bool,
    pub(crate) node: Node,
    /// `None` = any.
    pub(crate) major: Option<u32>,
    /// `None` = any.
    pub(crate) minor: Option<u32>,
    pub(crate) access: u8,
}

impl Rule {
    /// True when every device that `other` matches is matched by this rule too.
    fn covers(&self, other: &Self) -> bool {
        (self.node == Node::Any || self.node == other.node)
            && (self.major.is_none() || self.major == other.major)
            && (self.minor.is_none() || self.minor == other.minor)
    }

    /// True when some device is matched by both.
    fn overlaps(&self, other: &Self) -> bool {
        let meet = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        (self.node == Node::Any || other.node == Node::Any || self.node == other.node)
            && meet(self.major, other.major)
            && meet(self.minor, other.minor)
    }

    /// True when it decides every access to every device.
    pub(crate) fn is_total(&self) -> bool {
        self.node == Node::Any && self.major.is_none() && self.minor.is_none() && self.access == ALL
    }
}

/// The form of v1's files: `c 1:3 rwm`.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = match self.node {
            Node::Any => 'a',
            Node::Block => 'b',
            Node::Char => 'c',
        };
        write!(f, "{node} ")?;
        for (number, end) in [(self.major, ":"), (self.minor, " ")] {
            match number {
                Some(number) => write!(f, "{number}{end}")?,
                None => write!(f, "*{end}")?,
            }
        }
        for (bit, letter) in [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')] {
            if self.access & bit != 0 {
                write!(f, "{letter}")?;
            }
        }
        Ok(())
    }
}

/// The devices every container gets besides those of its configuration, as runc and crun give them: mknod of anything,
/// the default devices of the runtime-spec, ptys, and /dev/net/tun left out.
///
/// The caller appends them to (or puts them before) the rules of config.json; this crate applies exactly what it is given.
pub fn default_device_rules() -> Vec<LinuxDeviceCgroup> {
    const RULES: [(LinuxDeviceType, Option<i64>, Option<i64>, &str); 11] = [
        (LinuxDeviceType::C, None, None, "m"),
        (LinuxDeviceType::B, None, None, "m"),
        (LinuxDeviceType::C, Some(1), Some(3), "rwm"), // null
        (LinuxDeviceType::C, Some(1), Some(5), "rwm"), // zero
        (LinuxDeviceType::C, Some(1), Some(7), "rwm"), // full
        (LinuxDeviceType::C, Some(1), Some(8), "rwm"), // random
        (LinuxDeviceType::C, Some(1), Some(9), "rwm"), // urandom
        (LinuxDeviceType::C, Some(5), Some(0), "rwm"), // tty
        (LinuxDeviceType::C, Some(5), Some(1), "rwm"), // console
        (LinuxDeviceType::C, Some(5), Some(2), "rwm"), // ptmx
        (LinuxDeviceType::C, Some(136), None, "rwm"),  // pts/*
    ];
    RULES
        .iter()
        .filter_map(|&(typ, major, minor, access)| {
            let mut rule = LinuxDeviceCgroupBuilder::default()
                .allow(true)
                .typ(typ)
                .access(access);
            if let Some(major) = major {
                rule = rule.major(major);
            }
            if let Some(minor) = minor {
                rule = rule.minor(minor);
            }
            rule.build().ok()
        })
        .collect()
}

/// Parses the rules of a configuration. FIFOs have no device number and no rule: they are left out.
pub(crate) fn parse(rules: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>> {
    let mut parsed = Vec::with_capacity(rules.len());
    for (index, rule) in rules.iter().enumerate() {
        let invalid = |value: String, why: &str| Error::Invalid {
            field: format!("linux.resources.devices[{index}]"),
            value,
            why: why.to_owned(),
        };
        let node = match rule.typ().unwrap_or_default() {
            LinuxDeviceType::A => Node::Any,
            LinuxDeviceType::B => Node::Block,
            LinuxDeviceType::C | LinuxDeviceType::U => Node::Char,
            LinuxDeviceType::P => continue,
        };
        let number = |number: Option<i64>| match number {
            // -1 is what Go programs write for "any".
            None | Some(-1) => Ok(None),
            Some(number) => u32::try_from(number)
                .map(Some)
                .map_err(|_| invalid(number.to_string(), "is not a device number")),
        };
        let text = rule.access().as_deref().unwrap_or_default();
        let mut access = 0;
        for letter in text.chars() {
            access |= match letter {
                'r' => READ,
                'w' => WRITE,
                'm' => MKNOD,
                _ => return Err(invalid(text.to_owned(), "access is made of r, w and m")),
            };
        }
        if access == 0 {
            // Denying without saying what denies all. Allowing without saying what is a slip, and not one to guess at.
            if rule.allow() && node != Node::Any {
                return Err(invalid(
                    text.to_owned(),
                    "access is empty; say which of r, w, m to allow",
                ));
            }
            access = ALL;
        }
        parsed.push(Rule {
            allow: rule.allow(),
            node,
            major: number(rule.major())?,
            minor: number(rule.minor())?,
            access,
        });
    }
    Ok(parsed)
}

/// What v1 can hold: a default, and exceptions from it whose order does not matter.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Exceptions {
    /// The default, and the opposite of every exception.
    pub(crate) allow_by_default: bool,
    pub(crate) list: Vec<Rule>,
}

/// Computes the exceptions of an ordered list.
///
/// # Errors
/// [`Error::DeviceRules`] when a rule takes a part out of a wider exception.
pub(crate) fn exceptions(rules: &[Rule]) -> Result<Exceptions> {
    let mut out = Exceptions {
        allow_by_default: false,
        list: Vec::new(),
    };
    for rule in rules {
        if rule.is_total() {
            out.allow_by_default = rule.allow;
            out.list.clear();
            continue;
        }
        // v1 knows `a` with everything only.
        let parts = match rule.node {
            Node::Any => vec![
                Rule {
                    node: Node::Block,
                    ..*rule
                },
                Rule {
                    node: Node::Char,
                    ..*rule
                },
            ],
            Node::Block | Node::Char => vec![*rule],
        };
        for part in parts {
            if part.allow == out.allow_by_default {
                out.take_back(&part)?;
            } else {
                out.add(part);
            }
        }
    }
    Ok(out)
}

impl Exceptions {
    fn add(&mut self, rule: Rule) {
        if self
            .list
            .iter()
            .any(|old| old.covers(&rule) && rule.access & !old.access == 0)
        {
            return;
        }
        // The wider rule makes the narrower ones needless.
        self.list
            .retain(|old| !(rule.covers(old) && old.access & !rule.access == 0));
        let same = |old: &&mut Rule| {
            old.node == rule.node && old.major == rule.major && old.minor == rule.minor
        };
        match self.list.iter_mut().find(same) {
            Some(old) => old.access |= rule.access,
            None => self.list.push(rule),
        }
    }

    fn take_back(&mut self, rule: &Rule) -> Result<()> {
        for old in &mut self.list {
            if rule.covers(old) {
                old.access &= !rule.access;
            } else if rule.overlaps(old) && old.access & rule.access != 0 {
                return Err(Error::DeviceRules {
                    rule: rule.to_string(),
                    inside: old.to_string(),
                });
            }
        }
        self.list.retain(|old| old.access != 0);
        Ok(())
    }
}

/// Writes the rules to `devices.allow` and `devices.deny` of v1, one write each (the kernel takes one rule a write).
pub(crate) fn apply_v1(dir: &Dir, rules: &[Rule], when: When) -> Result<()> {
    let target = exceptions(rules)?;
    let (by_default, except) = if target.allow_by_default {
        ("devices.allow", "devices.deny")
    } else {
        ("devices.deny", "devices.allow")
    };
    let mut add: Vec<Rule> = target.list.clone();
    let mut drop: Vec<Rule> = Vec::new();
    let current = match when {
        When::Create => None,
        When::Update => current(&dir.read("devices.list")?),
    };
    match current {
        // Deny by default stays: change only what differs, so that no device is unusable for a moment.
        Some(current) if !target.allow_by_default => {
            add.retain(|rule| !current.contains(rule));
            drop.extend(current.into_iter().filter_map(|old| {
                let same = |new: &&Rule| {
                    new.node == old.node && new.major == old.major && new.minor == old.minor
                };
                let keep = target.list.iter().find(same).map_or(0, |new| new.access);
                let access = old.access & !keep;
                (access != 0).then_some(Rule { access, ..old })
            }));
        }
        Some(_) | None => dir.write(by_default, "a")?,
    }
    write_rules(dir, except, &add)?;
    write_rules(dir, by_default, &drop)
}

fn write_rules(dir: &Dir, file: &str, rules: &[Rule]) -> Result<()> {
    if rules.is_empty() {
        return Ok(());
    }
    let fd = dir
        .open(file, libc::O_WRONLY)
        .map_err(Error::io("open", dir.path().join(file)))?;
    for rule in rules {
        let text = rule.to_string();
        sys::write_once(fd.as_fd(), text.as_bytes())
            .map_err(|error| dir.refused(file, &text, error))?;
    }
    Ok(())
}

/// The exceptions of `devices.list`; `None` when it allows by default (then the kernel does not show them).
fn current(list: &str) -> Option<Vec<Rule>> {
    list.lines()
        .map(|line| {
            let mut fields = line.split([' ', ':']);
            let node = match fields.next()? {
                "b" => Node::Block,
                "c" => Node::Char,
                _ => return None,
            };
            let number = |text: &str| {
                if text == "*" {
                    Some(None)
                } else {
                    text.parse().ok().map(Some)
                }
            };
            let (major, minor) = (number(fields.next()?)?, number(fields.next()?)?);
            let access = fields.next()?.chars().fold(0, |access, letter| {
                access
                    | match letter {
                        'r' => READ,
                        'w' => WRITE,
                        _ => MKNOD,
                    }
            });
            Some(Rule {
                allow: true,
                node,
                major,
                minor,
                access,
            })
        })
        .collect()
}

/// What the list says of one access, bit by bit: the meaning that v1 and v2 are tested against.
#[cfg(test)]
pub(crate) fn allowed(rules: &[Rule], node: Node, major: u32, minor: u32, access: u8) -> bool {
    [MKNOD, READ, WRITE]
        .into_iter()
        .filter(|bit| access & bit != 0)
        .all(|bit| {
            rules
                .iter()
                .rev()
                .find(|rule| {
                    rule.access & bit != 0
                        && (rule.node == Node::Any || rule.node == node)
                        && rule.major.is_none_or(|m| m == major)
                        && rule.minor.is_none_or(|m| m == minor)
                })
                .is_some_and(|rule| rule.allow)
        })
}

#[cfg(test)]
mod tests;
