//! `delete`: everything a container left on the host goes, however it came to its end.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use holdfast_cgroups::Cgroup;
use holdfast_record::{ContainerId, Deadline};

use super::{Context, state, unit};
use crate::error::{Doing, Error, Result};
use crate::hooks::{HookStage, run_hooks};
use crate::link::wait_readable;
use crate::state::{Container, StateDir, Status};
use crate::sys::clone;

/// How long processes may take to die, and again the cgroup to be removed.
const LIMIT: Duration = Duration::from_secs(10);

/// How long a process that lost its parent during create may take to end.
const ORPHAN_LIMIT: Duration = Duration::from_secs(2);

/// Deletes a container; `force` also kills it, and is content when there is none.
///
/// # Errors
/// [`Error::Status`] when it runs and `force` is not given.
pub fn delete(context: &Context, id: &ContainerId, force: bool) -> Result<()> {
    let container = match context.container(id) {
        Ok(container) => container,
        Err(Error::NoContainer { .. }) if force => {
            // A create that was killed before it wrote anything leaves an empty directory.
            return StateDir::of(&context.root, id).remove();
        }
        Err(error @ Error::NoContainer { .. }) => {
            StateDir::of(&context.root, id).remove()?;
            return Err(error);
        }
        // A damaged record must not make a container undeletable for ever.
        Err(error @ Error::Json { .. }) if force => {
            log::error!(
                "{}; its cgroup, if any, has to be removed by hand",
                crate::error::chain(&error)
            );
            return StateDir::of(&context.root, id).remove();
        }
        Err(error) => return Err(error),
    };
    match container.status() {
        Status::Stopped => {}
        // Nothing of the user's has run yet; runc deletes it without force, too.
        Status::Created => kill_init(&container)?,
        Status::Creating if force => {}
        Status::Running | Status::Paused if force => kill_init(&container)?,
        status @ (Status::Running | Status::Paused | Status::Creating) => {
            return Err(Error::Status {
                operation: "delete (without --force)",
                status: status.name(),
            });
        }
    }
    remove(context, &container)
}

fn kill_init(container: &Container) -> Result<()> {
    let (pid, pidfd) = match container.open_init() {
        Err(Error::NotRunning) => return Ok(()),
        other => other?,
    };
    match clone::signal_pidfd(pidfd.as_fd(), libc::SIGKILL) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
        other => other.doing(|| format!("kill process {pid}"))?,
    }
    if let Some(cgroup) = container.cgroup()
        && let Err(error) = cgroup.thaw_all()
        && !error.is_gone()
    {
        log::warn!("delete: {}", crate::error::chain(&error));
    }
    let deadline = Deadline::named(
        "delete",
        LIMIT,
        "delete: waiting for the init process to die",
    );
    wait_readable(&[pidfd.as_fd()], &deadline, pid)
}

/// Removes cgroup and state, then runs the poststop hooks.
pub(super) fn remove(context: &Context, container: &Container) -> Result<()> {
    let saved = &container.saved;
    let hooks = saved
        .hooks
        .as_ref()
        .and_then(|hooks| hooks.poststop().as_deref())
        .unwrap_or_default();
    let state = if hooks.is_empty() {
        Vec::new()
    } else {
        state::for_hooks(context, &saved.id, state::HookStatus::Stopped)?
    };
    if let Some(cgroup) = container.cgroup() {
        if container.init.is_some() {
            // Whatever still is in there is the container's: init is dead.
            let until = Instant::now() + LIMIT;
            match &saved.unit {
                Some(unit) => unit::end(&cgroup, unit, until)?,
                None => cgroup.kill_and_remove(until)?,
            }
            cgroup.remove_made_parents();
        } else {
            // No unit either: it is started when the process is recorded.
            remove_unused(&cgroup);
        }
    }
    if let Some(rdt) = &saved.intel_rdt {
        rdt.remove()?;
    }
    container.dir.remove()?;
    // runtime-spec: a failing poststop hook is logged, the rest goes on.
    if let Err(error) = run_hooks(HookStage::Poststop, hooks, &state, &saved.bundle, None) {
        log::warn!("delete: {}", crate::error::chain(&error));
        crate::cause::record_hook(&error, &saved.id, &saved.bundle);
    }
    Ok(())
}

/// The cgroup of a create that was killed before it had recorded a process. What it cloned ends
/// by itself when it hears nothing more. Anything else in there was there before and kept
/// that create from going on: it is somebody else's and is not touched.
fn remove_unused(cgroup: &Cgroup) {
    let removed = cgroup
        .wait_empty(Instant::now() + ORPHAN_LIMIT)
        .and_then(|()| cgroup.remove(Instant::now() + LIMIT));
    match removed {
        Ok(()) => cgroup.remove_made_parents(),
        Err(error) => log::warn!(
            "delete: the cgroup stays, it is in use by others: {}",
            crate::error::chain(&error)
        ),
    }
}
