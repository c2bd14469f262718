//! The systemd cgroup driver: what it changes in create, update and delete.
//!
//! systemd puts a process that exists into a scope that does not exist yet, so the clone comes first and init waits for
//! its cgroup; with cgroupfs it is the other way round.

use std::path::Path;
use std::time::{Duration, Instant};

use holdfast_cgroups::systemd::{Systemd, Unit, device_properties, limit_properties};
use holdfast_cgroups::{Cgroup, Hierarchies, Layout};
use holdfast_record::{ContainerId, Deadline};
use oci_spec::runtime::LinuxResources;

use super::{is_root_of_the_machine, rootless};
use crate::error::{Error, Result};

/// How long systemd may take for one operation: a busy one with thousands of units takes seconds.
const LIMIT: Duration = Duration::from_secs(20);

/// `HOLDFAST_DEADLINE_SYSTEMD` from now.
fn deadline() -> Instant {
    Instant::now() + Deadline::named("systemd", LIMIT, "systemd").remaining()
}

/// A new container's unit.
#[derive(Debug)]
pub(super) struct NewUnit<'a> {
    pub(super) id: &'a ContainerId,
    pub(super) unit: &'a Unit,
    pub(super) hierarchies: &'a Hierarchies,
    /// The limits of the specification.
    pub(super) resources: Option<&'a LinuxResources>,
    /// The device rules, with those every container has.
    pub(super) devices: &'a LinuxResources,
}

impl NewUnit<'_> {
    /// Has the unit started with the process in it. Device rules and limits are in force when this returns, as far as
    /// systemd has words for them; the rest, and the exact values, the caller applies to the cgroup.
    pub(super) fn start(&self, pid: i32) -> Result<()> {
        let mut properties = if self.unit.is_of_user() {
            // A user's systemd has no means to restrict devices, nor does the user need it: what he may not open, his
            // container may not.
            Vec::new()
        } else {
            device_properties(self.devices)?
        };
        if let Some(resources) = self.resources {
            properties.extend(limit_properties(resources, v1(self.hierarchies))?);
        }
        // A slice may have others in it, and is not stopped when it exists.
        if !self.unit.is_slice() {
            Cgroup::refuse_occupied(self.hierarchies, self.unit)?;
        }
        let description = format!("holdfast container {}", self.id);
        Ok(systemd(self.unit)?
            .start(self.unit, pid, &description, &properties, deadline())
            .map_err(holdfast_cgroups::Error::from)?)
    }

    /// Takes the unit's cgroup over, and puts the device rules into it.
    pub(super) fn adopt(&self, pid: i32) -> Result<Cgroup> {
        Ok(Cgroup::adopt(
            self.hierarchies,
            self.unit,
            self.resources,
            pid,
        )?)
    }

    /// The exact device rules, of which systemd may have got a wider form.
    pub(super) fn restrict(&self, cgroup: &Cgroup) -> Result<()> {
        rootless::restrict(cgroup, self.devices)
    }
}

/// The unit of `linux.cgroupsPath`: of the machine's systemd, or, for everybody but its root, of the caller's own.
pub(super) fn unit(spec: Option<&Path>, id: &str, hierarchies: &Hierarchies) -> Result<Unit> {
    if is_root_of_the_machine() {
        return Ok(Unit::new(spec, id)?);
    }
    if v1(hierarchies) {
        return Err(Error::Usage(
            "--systemd-cgroup needs root on cgroup v1: a user's systemd has no controllers there; \
             leave the option away, or boot with cgroup v2"
                .into(),
        ));
    }
    let manager = Systemd::of_user()
        .and_then(|systemd| systemd.control_group(deadline()))
        .map_err(holdfast_cgroups::Error::from)?;
    Ok(Unit::of_user(spec, id, &manager)?)
}

/// Has one more process moved into a user's unit: that user's systemd may do it where the user may not, from one
/// session into another.
pub(super) fn attach(unit: &Unit, pid: i32) -> Result<()> {
    Ok(systemd(unit)?
        .attach(unit, pid, deadline())
        .map_err(holdfast_cgroups::Error::from)?)
}

fn systemd(unit: &Unit) -> Result<Systemd> {
    Ok(Systemd::of(unit).map_err(holdfast_cgroups::Error::from)?)
}

fn v1(hierarchies: &Hierarchies) -> bool {
    match hierarchies.layout() {
        Layout::Unified => false,
        Layout::V1 | Layout::Hybrid => true,
    }
}

/// Tells systemd of new limits. When it does not answer, the limits are set in the cgroup all the same: they hold
/// until its next `daemon-reload`, and a container that needs more memory now is not helped by an error.
pub(super) fn update(unit: &Unit, resources: &LinuxResources) -> Result<()> {
    let properties = limit_properties(resources, v1(&Hierarchies::detect()?))?;
    match systemd(unit)?.update(unit, &properties, deadline()) {
        Err(error) if error.is_silence() => {
            log::warn!(
                "update: {} has the new limits only until systemd reloads: {}",
                unit.name(),
                crate::error::chain(&error)
            );
            Ok(())
        }
        other => Ok(other.map_err(holdfast_cgroups::Error::from)?),
    }
}

/// Kills all that is in the cgroup, has systemd forget the unit, and removes what is left of the directories.
pub(super) fn end(cgroup: &Cgroup, unit: &Unit, until: Instant) -> Result<()> {
    cgroup.kill_all(until)?;
    stop(unit);
    Ok(cgroup.remove(until)?)
}

/// Stops a unit without processes. A systemd that does not answer, or refuses, does not keep a container from being
/// deleted: it drops a scope that has become empty by itself.
pub(super) fn stop(unit: &Unit) {
    let stopped = systemd(unit).and_then(|systemd| {
        Ok(systemd
            .stop(unit, deadline())
            .map_err(holdfast_cgroups::Error::from)?)
    });
    if let Err(error) = stopped {
        log::warn!(
            "delete: {} is left to systemd: {}",
            unit.name(),
            crate::error::chain(&error)
        );
    }
}
