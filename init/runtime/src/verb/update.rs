//! `update`: new limits for a container, as a `LinuxResources` document.

use std::io::Read;
use std::path::Path;

use holdfast_cgroups::When;
use holdfast_record::ContainerId;
use oci_spec::runtime::LinuxResources;

use super::{Context, unit};
use crate::error::{Doing, Error, Result};
use crate::state::Status;

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
pub fn update(context: &Context, id: &ContainerId, resources: &LinuxResources) -> Result<()> {
    let container = context.container(id)?;
    let status = container.status();
    if status == Status::Stopped || status == Status::Creating {
        return Err(Error::Status {
            operation: "update",
            status: status.name(),
        });
    }
    let cgroup = container.cgroup().ok_or(Error::NotRunning)?;
    if let Some(unit) = &container.saved.unit {
        unit::update(unit, resources)?;
    }
    Ok(cgroup.apply(resources, When::Update)?)
}
