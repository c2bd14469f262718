//! Delete: what has to go when a container goes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use holdfast_cgroups::Cgroup;
use holdfast_record::deadline::limit_from_env;

use super::stuck;
use crate::fault::{Fault, chain};
use crate::reaper::Reaper;
use crate::resume::image;
use crate::rootfs;
use crate::runtime::{Call, RestoredJob, Runtime, RuntimeError};
use crate::stdio::ProcessIo;

/// How long output may still come after the process has ended.
pub(super) fn drain_limit() -> Duration {
    limit_from_env("DRAIN", Duration::from_secs(10))
}
/// Bound of the runtime's `delete`, poststop hooks included.
fn delete_limit() -> Duration {
    limit_from_env("DELETE", Duration::from_secs(60))
}
/// Bound of unmounting.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(30);

/// Clears a container whose init has ended. May be repeated; `begun` is what the image before has
/// started of it.
///
/// # Errors
/// The step that failed; then the container stays known.
pub(super) async fn container(
    reaper: Arc<Reaper>,
    runtime: Runtime,
    io: Arc<ProcessIo>,
    rootfs: Option<PathBuf>,
    cgroup: Option<Arc<Cgroup>>,
    begun: Option<RestoredJob>,
) -> Result<Vec<String>, Fault> {
    if let Err(held) = io.drain(drain_limit()).await {
        log::warn!("delete: {held}");
    }
    let again = async || {
        let call = Call::new("delete", delete_limit())
            .kept("delete")
            .arg("--force");
        runtime.run(&reaper, call).await
    };
    let deleted = match begun {
        Some(job) => match runtime.run_on(job).await {
            // With the shim before this one, whose death signal it got.
            Err(RuntimeError::Killed { .. }) if image::follows_a_kill() => again().await,
            other => other,
        },
        None => again().await,
    };
    if let Err(error) = deleted {
        // What the runtime waited for in vain is named here, with all that is known of it.
        let fault = error.fault("failed to delete the container in the runtime");
        return Err(stuck::refusal(&fault.text, None, cgroup)
            .await
            .unwrap_or(fault));
    }
    let Some(target) = rootfs else {
        return Ok(Vec::new());
    };
    let shown = target.display().to_string();
    let work =
        tokio::task::spawn_blocking(move || rootfs::unmount_all(&target, rootfs::BUSY_LIMIT));
    match tokio::time::timeout(UNMOUNT_LIMIT, work).await {
        Ok(Ok(Ok(detached))) => {
            detached
                .iter()
                .for_each(|line| log::warn!("delete: {line}"));
            Ok(detached)
        }
        Ok(Ok(Err(error))) => Err(Fault::unknown(chain(&error))),
        Ok(Err(panic)) => Err(Fault::unknown(format!("failed rootfs umount: {panic}"))),
        Err(_) => Err(Fault::deadline(format!(
            "failed rootfs umount: {shown} did not go within {UNMOUNT_LIMIT:?}; a dead server behind it?"
        ))),
    }
}
