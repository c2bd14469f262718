//! `linux.resources` (runtime-spec, config-linux.md, "Control groups").

mod v1;
mod v2;

pub(crate) use v2::{io_weight, swap_alone, weight_of_shares};

use std::io;

use oci_spec::runtime::LinuxResources;

use crate::cgroup::Cgroup;
use crate::controllers;
use crate::devices;
use crate::dir::Dir;
use crate::ebpf;
use crate::error::{Error, Hint, Result};

/// Whether the cgroup is new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Fresh from [`Cgroup::create`], without limits and processes: nothing has to be read before it is written.
    Create,
    /// In use, with limits: the order of writes depends on them.
    Update,
}

impl Cgroup {
    /// Sets the limits that `resources` holds, in the order the kernel needs; what is absent stays as it is.
    ///
    /// A value of 0 means "not given" where it does for runc: memory.limit, reservation and swap, cpu.shares, quota
    /// and period, pids.limit. -1 lifts a limit. `memory.kernel` and `useHierarchy` are ignored (the kernel has given
    /// both up), on v2 also `swappiness`, `kernelTCP` and `disableOOMKiller` (runc does the same).
    /// Device rules are applied as given: see [`crate::default_device_rules`].
    ///
    /// # Errors
    /// [`Error::NoController`] for a limit that cannot be set on this machine, [`Error::Invalid`] for one that can be
    /// set nowhere, [`Error::Write`] with file, value and errno for one that the kernel refuses.
    pub fn apply(&self, resources: &LinuxResources, when: When) -> Result<()> {
        self.refuse_root("apply limits")?;
        let rules = match resources.devices().as_deref() {
            None | Some([]) => None,
            Some(rules) => Some(devices::parse(rules)?),
        };
        if self.is_v1() {
            if let Some(rules) = rules {
                devices::apply_v1(v1::controller(self, "devices", "devices")?, &rules, when)?;
            }
            v1::apply(self, resources, when)
        } else if let Some(place) = self.unified() {
            match when {
                When::Create => {}
                When::Update => {
                    controllers::enable_more(&place.dir, &place.hierarchy.mount_point, resources)?;
                }
            }
            if let Some(rules) = rules {
                ebpf::apply(&place.dir, &rules, when)?;
            }
            v2::apply(&place.dir, resources, when)
        } else {
            Ok(())
        }
    }
}

/// Writes a value of `linux.resources.FIELD`; a missing file means that the controller is missing.
fn set(dir: &Dir, field: &str, file: &str, value: &str) -> Result<()> {
    dir.try_write(file, value)
        .map_err(|source| refused(dir, field, file, value, source))
}

/// As [`set`]; false when the file does not exist.
fn set_if_there(dir: &Dir, file: &str, value: &str) -> Result<bool> {
    match dir.try_write(file, value) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(dir.refused(file, value, error)),
    }
}

fn refused(dir: &Dir, field: &str, file: &str, value: &str, source: io::Error) -> Error {
    // The errno of a file that does not exist.
    if source.raw_os_error() == Some(libc::ENOENT) {
        let controller = match file.split_once('.').map(|(controller, _)| controller) {
            Some("io" | "blkio") | None => "io",
            Some(controller) => controller,
        };
        return Error::NoController {
            field: format!("linux.resources.{field}"),
            controller: controller.to_owned(),
            place: format!("at {} (no file {file})", dir.path().display()),
        };
    }
    let hint = match (source.raw_os_error(), file) {
        (Some(libc::EBUSY), "memory.limit_in_bytes" | "memory.memsw.limit_in_bytes") => {
            let usage = dir.try_read("memory.usage_in_bytes").unwrap_or_default();
            format!("{} bytes are in use and cannot be reclaimed", usage.trim())
        }
        (Some(libc::EINVAL), "memory.limit_in_bytes") => {
            "above memory.memsw.limit_in_bytes; raise memory.swap with it".to_owned()
        }
        (Some(libc::EINVAL), "memory.memsw.limit_in_bytes") => {
            "below memory.limit_in_bytes; memory.swap is memory and swap together".to_owned()
        }
        (Some(libc::EINVAL), "cpu.cfs_quota_us" | "cpu.cfs_period_us" | "cpu.max") => {
            "the quota is above an ancestor's, or the period is not within 1 ms and 1 s".to_owned()
        }
        (Some(libc::EACCES | libc::EINVAL | libc::ENOSPC), "cpuset.cpus" | "cpuset.mems") => {
            "not a subset of what the parent cgroup has".to_owned()
        }
        (Some(libc::ENODEV), _) => "no such device, or the cgroup is gone".to_owned(),
        _ => String::new(),
    };
    match dir.refused(file, value, source) {
        Error::Write {
            file,
            value,
            source,
            ..
        } => Error::Write {
            file,
            value,
            hint: Hint(hint),
            source,
        },
        other => other,
    }
}

fn invalid(field: &str, value: impl ToString, why: &str) -> Error {
    Error::Invalid {
        field: format!("linux.resources.{field}"),
        value: value.to_string(),
        why: why.to_owned(),
    }
}

/// A value that is given; runc takes 0 for "not given".
fn given<T: PartialEq + Default>(value: Option<T>) -> Option<T> {
    value.filter(|value| *value != T::default())
}

/// The text of a limit of v2: negative is `max`.
fn or_max(value: i64) -> String {
    if value < 0 {
        "max".to_owned()
    } else {
        value.to_string()
    }
}

/// Checks a name that becomes a part of a file name (huge page sizes).
fn part_of_name<'a>(field: &str, name: &'a str) -> Result<&'a str> {
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(invalid(field, name, "is not a page size such as 2MB"));
    }
    Ok(name)
}

/// Writes two values that constrain each other: `first`, then `second`; when the kernel refuses the first with EINVAL
/// as long as the second has its old value, the other way round. Costs nothing when the first order is right.
fn set_pair(
    dir: &Dir,
    first: (&str, &str, &str),
    second: Option<(&str, &str, &str)>,
) -> Result<()> {
    let (field, file, value) = first;
    let again = match dir.try_write(file, value) {
        Ok(()) => false,
        Err(error) if second.is_some() && error.raw_os_error() == Some(libc::EINVAL) => true,
        Err(error) => return Err(refused(dir, field, file, value, error)),
    };
    if let Some((field, file, value)) = second {
        set(dir, field, file, value)?;
    }
    if again {
        set(dir, field, file, value)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
