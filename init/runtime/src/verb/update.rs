//! `update`: new limits for a container, as a `LinuxResources` document.

use std::io::Read;
use std::path::Path;

use holdfast_cgroups::{Cgroup, When};
use holdfast_record::ContainerId;
use oci_spec::runtime::LinuxResources;

use super::{Context, unit};
use crate::error::{Doing, Error, Result};
use crate::rdt::{self, Schemata};
use crate::state::{Container, Status};

/// A resources document is small; more than this is no such document: 1 MiB.
const LIMIT: u64 = 1 << 20;

/// Reads the document at `path` (`-`: standard input).
///
/// # Errors
/// A file that cannot be read, a document that is none.
pub fn read(path: &Path) -> Result<LinuxResources> {
    let mut text = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().lock().take(LIMIT).read_to_end(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(LIMIT).read_to_end(&mut text))
    }
    .doing(|| format!("read the resources from {}", path.display()))?;
    serde_json::from_slice(&text).map_err(|source| Error::Json {
        path: path.to_owned(),
        source,
    })
}

/// Applies the limits that are given; the others stay.
///
/// # Errors
/// A container that has ended, a limit that is refused.
pub fn update(
    context: &Context,
    id: &ContainerId,
    resources: &LinuxResources,
    schemata: &Schemata,
) -> Result<()> {
    let container = context.container(id)?;
    let status = container.status();
    if status == Status::Stopped || status == Status::Creating {
        return Err(Error::Status {
            operation: "update",
            status: status.name(),
        });
    }
    let cgroup = container.cgroup().ok_or(Error::NotRunning)?;
    if !schemata.is_empty() {
        set_schemata(&container, &cgroup, schemata)?;
    }
    if let Some(unit) = &container.saved.unit {
        unit::update(unit, resources)?;
    }
    Ok(cgroup.apply(resources, When::Update)?)
}

/// A container without a place in resctrl gets one, as with runc, and all of its processes move there.
fn set_schemata(container: &Container, cgroup: &Cgroup, schemata: &Schemata) -> Result<()> {
    if let Some(rdt) = &container.saved.intel_rdt {
        return rdt.set(schemata);
    }
    let rdt = rdt::own_group(container.saved.id.as_str())?;
    let mut saved = container.saved.clone();
    saved.intel_rdt = Some(rdt.clone());
    // On disk before it is made, so that delete finds it.
    container.dir.save(&saved)?;
    rdt.make()?;
    rdt.set(schemata)?;
    for pid in cgroup.processes()? {
        rdt.add(pid)?;
    }
    Ok(())
}
