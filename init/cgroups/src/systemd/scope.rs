//! Starting, changing and stopping a container's unit.

use std::path::PathBuf;
use std::time::Instant;

use super::bus::{Address, Bus};
use super::properties::Property;
use super::unit::Unit;
use super::wire::{Encoder, Value};
use super::{Error, Instance, Result};

const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";
/// Replace a job of the unit that is queued: ours is what is wanted now.
const REPLACE: &str = "replace";

/// The way to systemd. Each call makes a connection of its own: a runtime makes one call in its life.
#[derive(Debug, Clone)]
pub struct Systemd {
    addresses: Vec<Address>,
}

impl Systemd {
    /// The machine's: the bus of `DBUS_SYSTEM_BUS_ADDRESS` alone where that is set; else the system bus, and where that
    /// does not work systemd's own socket, which only root may use.
    ///
    /// # Errors
    /// [`Error::Address`] when the variable names nothing this client can connect to.
    pub fn from_environment() -> Result<Self> {
        Ok(Self::named(Instance::System)?.unwrap_or_else(|| Self {
            addresses: Address::usual(),
        }))
    }

    /// The calling user's: the bus of `DBUS_SESSION_BUS_ADDRESS` alone where that is set; else `$XDG_RUNTIME_DIR/bus`,
    /// and where that does not work that systemd's own socket beside it.
    ///
    /// # Errors
    /// [`Error::Address`] as [`Self::from_environment`]; [`Error::NoSession`] when neither variable is set.
    pub fn of_user() -> Result<Self> {
        if let Some(named) = Self::named(Instance::User)? {
            return Ok(named);
        }
        let dir = std::env::var("XDG_RUNTIME_DIR").unwrap_or_default();
        if dir.is_empty() {
            return Err(Error::NoSession);
        }
        Ok(Self {
            addresses: Address::usual_of_user(&dir),
        })
    }

    /// The one that has the unit.
    ///
    /// # Errors
    /// As the two above.
    pub fn of(unit: &Unit) -> Result<Self> {
        if unit.is_of_user() {
            Self::of_user()
        } else {
            Self::from_environment()
        }
    }

    /// The bus that the environment names, if it does.
    fn named(instance: Instance) -> Result<Option<Self>> {
        match std::env::var(instance.variable()) {
            Ok(text) if !text.is_empty() => Self::at(&text, instance).map(Some),
            Ok(_) | Err(_) => Ok(None),
        }
    }

    /// The buses of a D-Bus server address.
    ///
    /// # Errors
    /// [`Error::Address`] when it names no Unix socket.
    pub fn at(address: &str, instance: Instance) -> Result<Self> {
        let addresses = Address::parse(address, instance);
        if addresses.is_empty() {
            return Err(Error::Address {
                variable: instance.variable(),
                address: address.to_owned(),
            });
        }
        Ok(Self { addresses })
    }

    /// The cgroup that this systemd has for itself and all its units: empty or `/` for the machine's,
    /// `/user.slice/user-1000.slice/user@1000.service` for a user's.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn control_group(&self, deadline: Instant) -> Result<PathBuf> {
        let mut bus = Bus::connect(&self.addresses, "", deadline)?;
        bus.manager_property("ControlGroup").map(PathBuf::from)
    }

    /// Has a process moved into the unit: a user's systemd has the right to move it out of the session, which the user
    /// has not (cgroups(7), "Cgroups v2 delegation containment rules"). systemd 238.
    ///
    /// # Errors
    /// As [`Self::start`]; [`Error::Refused`] for a process whose effective user is not that of the unit.
    pub fn attach(&self, unit: &Unit, pid: i32, deadline: Instant) -> Result<()> {
        let mut bus = Bus::connect(&self.addresses, unit.name(), deadline)?;
        let mut body = Encoder::default();
        body.text(unit.name());
        // Of the unit itself, not of a cgroup below.
        body.text("");
        body.numbers(&[pid.cast_unsigned()]);
        bus.call("AttachProcessesToUnit", "ssau", body).map(drop)
    }

    #[cfg(test)]
    pub(super) fn directly(mut self) -> Self {
        for address in &mut self.addresses {
            address.direct = true;
        }
        self
    }

    /// The manager's `SystemState`, org.freedesktop.systemd1(5): `running`, `degraded`, `stopping` and so on.
    ///
    /// # Errors
    /// [`Error::Deadline`] with the step; [`Error::Refused`].
    pub fn state(&self, deadline: Instant) -> Result<String> {
        Bus::connect(&self.addresses, "the manager's state", deadline)?
            .manager_property("SystemState")
    }

    /// Starts the unit with a process in it, and waits until it is there.
    ///
    /// A unit of that name that is left over (failed, or running with nobody in it) is stopped, reset and started anew.
    /// The caller has made sure that no process is in it: one that is would be ended. A *slice* that runs is taken as
    /// it is, and no process is put into it: systemd does not do that.
    ///
    /// # Errors
    /// [`Error::Deadline`] with the step; [`Error::Refused`], [`Error::Job`].
    pub fn start(
        &self,
        unit: &Unit,
        pid: i32,
        description: &str,
        properties: &[Property],
        deadline: Instant,
    ) -> Result<()> {
        let mut bus = Bus::connect(&self.addresses, unit.name(), deadline)?;
        let mut all = frame(unit, pid, description);
        all.extend(known(&mut bus, properties)?);
        match start(&mut bus, unit, &all) {
            Err(error) if error.is(UNIT_EXISTS) && unit.is_slice() => Ok(()),
            Err(error) if error.is(UNIT_EXISTS) => {
                log::warn!("systemd: {} is left over, stopping it first", unit.name());
                stop(&mut bus, unit)?;
                start(&mut bus, unit, &all)
            }
            other => other,
        }
    }

    /// Stops the unit, and forgets that it failed. One that is gone is no error.
    ///
    /// To be called when its processes are dead: systemd asks those that are not to end, and waits for them as long as
    /// its own configuration says.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn stop(&self, unit: &Unit, deadline: Instant) -> Result<()> {
        stop(
            &mut Bus::connect(&self.addresses, unit.name(), deadline)?,
            unit,
        )
    }

    /// Changes limits of the unit as long as it runs: what systemd does not know it takes back with its next
    /// `daemon-reload`.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn update(&self, unit: &Unit, properties: &[Property], deadline: Instant) -> Result<()> {
        if properties.is_empty() {
            return Ok(());
        }
        let mut bus = Bus::connect(&self.addresses, unit.name(), deadline)?;
        let properties = known(&mut bus, properties)?;
        let mut body = Encoder::default();
        body.text(unit.name());
        // Until the unit ends, not for all times.
        body.bool(true);
        body.properties(pairs(&properties));
        bus.call("SetUnitProperties", "sba(sv)", body).map(drop)
    }
}

/// What every container's unit has, limits or not.
fn frame(unit: &Unit, pid: i32, description: &str) -> Vec<Property> {
    let yes = |name| Property::new(name, Value::Bool(true));
    let mut all = vec![
        Property::new("Description", Value::Text(description.to_owned())),
        // Not to be stopped in the order of services at shutdown.
        Property::new("DefaultDependencies", Value::Bool(false)),
        yes("CPUAccounting"),
        yes("MemoryAccounting"),
        yes("TasksAccounting"),
        // Of v1 and of v2.
        yes("BlockIOAccounting"),
        yes("IOAccounting"),
    ];
    if unit.is_slice() {
        all.push(Property::new(
            "Wants",
            Value::Texts(vec![unit.slice().to_owned()]),
        ));
    } else {
        all.push(Property::new("Slice", Value::Text(unit.slice().to_owned())));
        // The container may make cgroups of its own, and systemd leaves them and our device program alone.
        all.push(yes("Delegate"));
        all.push(Property::new(
            "PIDs",
            Value::Numbers(vec![pid.cast_unsigned()]),
        ));
    }
    all
}

/// The properties that this systemd knows; it refuses all of them for one that it does not. Its version is asked for
/// only where that matters.
pub(super) fn known(bus: &mut Bus, properties: &[Property]) -> Result<Vec<Property>> {
    if properties.iter().all(|property| property.since == 0) {
        return Ok(properties.to_vec());
    }
    let text = bus.manager_property("Version")?;
    let version = version(&text);
    let (new, too_new): (Vec<_>, Vec<_>) = properties
        .iter()
        .cloned()
        .partition(|property| property.since <= version);
    for property in too_new {
        log::debug!(
            "systemd {text} does not know {}, it is set in the cgroup only",
            property.name
        );
    }
    Ok(new)
}

/// `252.39-1~deb12u1`, `v245`, `257 (257.4-1)`; 0 when there is no number.
pub(super) fn version(text: &str) -> u32 {
    let text = text.trim_start_matches(|c: char| !c.is_ascii_digit());
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text.get(..end)
        .and_then(|digits| digits.parse().ok())
        .unwrap_or(0)
}

fn pairs(properties: &[Property]) -> impl Iterator<Item = (&str, &Value)> {
    properties
        .iter()
        .map(|property| (property.name, &property.value))
}

fn start(bus: &mut Bus, unit: &Unit, properties: &[Property]) -> Result<()> {
    let mut body = Encoder::default();
    body.text(unit.name());
    body.text(REPLACE);
    body.properties(pairs(properties));
    body.no_auxiliary_units();
    job(bus, "StartTransientUnit", "ssa(sv)a(sa(sv))", body)
}

fn stop(bus: &mut Bus, unit: &Unit) -> Result<()> {
    let mut body = Encoder::default();
    body.text(unit.name());
    body.text(REPLACE);
    match job(bus, "StopUnit", "ss", body) {
        Err(error) if error.is(NO_SUCH_UNIT) => return Ok(()),
        other => other?,
    }
    let mut body = Encoder::default();
    body.text(unit.name());
    match bus.call("ResetFailedUnit", "s", body) {
        // It was not failed, and is forgotten already.
        Err(error) if error.is(NO_SUCH_UNIT) => Ok(()),
        other => other.map(drop),
    }
}

/// Calls a method that begins a job, and waits for the job's end.
fn job(bus: &mut Bus, step: &'static str, signature: &str, body: Encoder) -> Result<()> {
    let answer = bus.call(step, signature, body)?;
    let job = answer.arguments().text().ok_or(Error::Protocol {
        step,
        what: "no job",
    })?;
    let waiting = match step {
        "StopUnit" => "JobRemoved of StopUnit",
        _ => "JobRemoved of StartTransientUnit",
    };
    let end = bus.job_end(waiting, &job)?;
    if end.result == "done" {
        Ok(())
    } else {
        Err(Error::Job {
            step,
            unit: end.unit,
            result: end.result,
        })
    }
}
