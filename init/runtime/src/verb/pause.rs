//! `pause` and `resume`: the freezer.

use std::time::{Duration, Instant};

use holdfast_record::ContainerId;

use super::Context;
use crate::error::{Error, Result};
use crate::state::Status;

const LIMIT: Duration = Duration::from_secs(10);

/// Freezes every process of a container.
///
/// # Errors
/// When it is not running or created; when processes do not freeze in time, they are thawed
/// again and named.
pub fn pause(context: &Context, id: &ContainerId) -> Result<()> {
    let container = context.container(id)?;
    match container.status() {
        Status::Created | Status::Running => {}
        status @ (Status::Creating | Status::Paused | Status::Stopped) => {
            return Err(Error::Status {
                operation: "pause",
                status: status.name(),
            });
        }
    }
    let cgroup = container.cgroup().ok_or(Error::NotRunning)?;
    Ok(cgroup.freeze(Instant::now() + LIMIT)?)
}

/// Lets them go on.
///
/// # Errors
/// When it is not paused.
pub fn resume(context: &Context, id: &ContainerId) -> Result<()> {
    let container = context.container(id)?;
    let status = container.status();
    if status != Status::Paused {
        return Err(Error::Status {
            operation: "resume",
            status: status.name(),
        });
    }
    let cgroup = container.cgroup().ok_or(Error::NotRunning)?;
    Ok(cgroup.thaw(Instant::now() + LIMIT)?)
}
