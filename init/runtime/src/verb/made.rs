//! What `create` and `restore` have in common: what is written down before anything is made, and what is taken back when
//! it fails.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::Path;
use std::time::{Duration, Instant};

use holdfast_cgroups::systemd::Unit;
use holdfast_cgroups::{Cgroup, SavedCgroup, default_device_rules};
use holdfast_record::{ContainerId, Timestamp};
use oci_spec::runtime::{LinuxNamespaceType as Type, LinuxResources, Mount};

use super::create::Options;
use super::unit;
use crate::bundle::{Bundle, is_new};
use crate::error::{Error, Result};
use crate::plan::filter::Filter;
use crate::rdt::{self, SavedRdt};
use crate::state::{Saved, StateDir};

/// How long the removal of a failed create's cgroup may take.
const UNDO_LIMIT: Duration = Duration::from_secs(5);

/// What a failed create takes back.
pub(super) struct Undo<'a> {
    pub(super) dir: &'a StateDir,
    pub(super) cgroup: Option<Cgroup>,
    pub(super) unit: Option<Unit>,
    pub(super) rdt: Option<SavedRdt>,
}

impl Undo<'_> {
    pub(super) fn all(&self) {
        if let Some(cgroup) = &self.cgroup {
            let until = Instant::now() + UNDO_LIMIT;
            let ended = match &self.unit {
                Some(unit) => unit::end(cgroup, unit, until),
                None => cgroup.kill_and_remove(until).map_err(Error::from),
            };
            if let Err(error) = ended {
                log::error!("failed create: {}", crate::error::chain(&error));
                // Its place is recorded in state.json: `delete --force` can try again.
                return;
            }
            cgroup.remove_made_parents();
        } else if let Some(unit) = &self.unit {
            unit::stop(unit);
        }
        if let Some(Err(error)) = self.rdt.as_ref().map(SavedRdt::remove) {
            log::error!("failed create: {}", crate::error::chain(&error));
            return;
        }
        if let Err(error) = self.dir.remove() {
            log::error!("failed create: {}", crate::error::chain(&error));
        }
    }
}

/// Records which directories are ours, where that is more than the intent says.
pub(super) fn save(dir: &StateDir, saved: &mut Saved, cgroup: &Cgroup) -> Result<()> {
    let made = cgroup.save();
    if made.places.iter().any(|place| place.made_parents > 0) {
        saved.cgroup = Some(made);
        dir.save(saved)?;
    }
    Ok(())
}

/// The record of a new container.
pub(super) fn record(
    bundle: &Bundle,
    id: &ContainerId,
    options: &Options,
    filter: Option<&Filter>,
    cgroup: SavedCgroup,
    unit: Option<Unit>,
) -> Result<Saved> {
    let spec = &bundle.spec;
    Ok(Saved {
        version: crate::state::version(),
        oci_version: spec.version().clone(),
        id: id.clone(),
        bundle: bundle.path.clone(),
        rootfs: bundle.rootfs.clone(),
        created: Timestamp::now(),
        owner: nix::unistd::Uid::current().as_raw(),
        annotations: spec.annotations().clone().unwrap_or_default(),
        cgroup: Some(cgroup),
        unit,
        intel_rdt: rdt::intent(bundle.linux()?, id.as_str())?,
        memory_policy: bundle.linux()?.memory_policy().clone(),
        personality: bundle.linux()?.personality().clone(),
        no_new_keyring: options.no_new_keyring,
        keyring: (!options.no_new_keyring).then(|| keyring(id)),
        namespaces: bundle.namespaces().iter().map(|n| n.typ()).collect(),
        process: bundle.process()?.clone(),
        hooks: spec.hooks().clone(),
        seccomp: filter.map(|filter| filter.saved.clone()),
    })
}

/// A name that no other container's session keyring has, whatever its id: keyrings are found by their name among all of
/// a user, so another root's or containerd namespace's container of the same id, or one that has guessed the name
/// beforehand, would share the keys.
fn keyring(id: &ContainerId) -> String {
    // The hasher's keys come from the kernel's random numbers.
    let random = RandomState::new().build_hasher().finish();
    format!("_ses.{id}.{random:016x}")
}

/// The device rules of the specification, and after them the devices every container has.
pub(super) fn device_rules(resources: Option<&LinuxResources>) -> LinuxResources {
    let mut rules = resources
        .and_then(|resources| resources.devices().clone())
        .unwrap_or_default();
    rules.extend(default_device_rules());
    let mut devices = LinuxResources::default();
    devices.set_devices(Some(rules));
    devices
}

/// Gives the cgroup to the container's user where the specification wants that (config-linux.md, "Cgroup ownership"): in
/// a user and a cgroup namespace of its own, with its cgroup mounted writable. systemd in a container needs it.
pub(super) fn delegate(bundle: &Bundle, cgroup: &Cgroup) -> Result<()> {
    let namespaces = bundle.namespaces();
    if !is_new(namespaces, Type::User) || !is_new(namespaces, Type::Cgroup) {
        return Ok(());
    }
    let writable = |mount: &Mount| {
        let words = mount.options().iter().flatten();
        mount.source().as_deref() == Some(Path::new("cgroup"))
            && mount.destination() == Path::new("/sys/fs/cgroup")
            && !words.into_iter().any(|word| word == "ro")
    };
    if !bundle.spec.mounts().iter().flatten().any(writable) {
        return Ok(());
    }
    let user = bundle.process()?.user().uid();
    let mut maps = bundle.linux()?.uid_mappings().iter().flatten();
    let host = maps.find_map(|map| {
        let offset = user.checked_sub(map.container_id())?;
        (offset < map.size()).then(|| map.host_id().checked_add(offset))?
    });
    if let Some(uid) = host
        && let Err(error) = cgroup.delegate(uid)
    {
        // A recommendation: an ordinary user may be unable to give its own away.
        log::warn!("cgroup ownership: {error}");
    }
    Ok(())
}
