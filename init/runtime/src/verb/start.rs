//! `start`: lets the created container's program run, and knows whether it does.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use holdfast_plan::report::{GO, MAX_FRAME, Report};
use holdfast_record::{ContainerId, Deadline, Signal};

use super::{Context, kill, state};
use crate::error::{Doing, Error, Result};
use crate::hooks::{HookStage, run_hooks};
use crate::link::{EXECUTE, explain, wait_readable};
use crate::state::{Container, Status};

/// How long execve may take: it can wait for a file system, or for a fork bomb's lock.
const LIMIT: Duration = Duration::from_secs(30);

/// Starts a created container. Returns after its `execve` succeeded.
///
/// # Errors
/// [`Error::Status`] when it is not `created`; the reason when `execve` fails.
pub fn start(context: &Context, id: &ContainerId) -> Result<()> {
    let container = context.container(id)?;
    let refused = |status: Status| Error::Status {
        operation: "start",
        status: status.name(),
    };
    let (pid, pidfd) = match container.open_init() {
        // Without a process: it is being created, or has ended.
        Err(Error::NotRunning) => return Err(refused(container.status())),
        other => other?,
    };
    match container.status_alive() {
        Status::Created => {}
        status @ (Status::Creating | Status::Running | Status::Paused | Status::Stopped) => {
            return Err(refused(status));
        }
    }
    start_container_hooks(context, &container)?;
    open_gate(&container, pid, pidfd.as_fd())?;
    let hooked = poststart_hooks(context, &container);
    if hooked.is_err() {
        // As runc: a container whose poststart hook failed is not what was asked for.
        match kill::kill(context, id, Signal::KILL, false) {
            Ok(()) | Err(Error::NotRunning) => {}
            Err(error) => log::error!("start: {}", crate::error::chain(&error)),
        }
    }
    hooked
}

fn poststart_hooks(context: &Context, container: &Container) -> Result<()> {
    let saved = &container.saved;
    let hooks = saved.hooks.as_ref();
    let list = hooks
        .and_then(|hooks| hooks.poststart().as_deref())
        .unwrap_or_default();
    if list.is_empty() {
        return Ok(());
    }
    let state = state::for_hooks(context, &saved.id, state::HookStatus::Running)?;
    Ok(run_hooks(
        HookStage::Poststart,
        list,
        &state,
        &saved.bundle,
        None,
    )?)
}

/// `startContainer` hooks are programs of the image: they run as the container's own process
/// would, with its user, capabilities and filter, never with ours.
fn start_container_hooks(context: &Context, container: &Container) -> Result<()> {
    let Some(hooks) = &container.saved.hooks else {
        return Ok(());
    };
    let list = hooks.start_container().as_deref().unwrap_or_default();
    if list.is_empty() {
        return Ok(());
    }
    let state = state::for_hooks(context, &container.saved.id, state::HookStatus::Created)?;
    super::container_hooks::run_all(context, container, list, &state)
}

fn open_gate(container: &Container, pid: i32, pidfd: BorrowedFd<'_>) -> Result<()> {
    let path = container.dir.start_fifo();
    let mut gate = open_fifo(&path, true).map_err(|source| match source.raw_os_error() {
        // No reader: init is past the gate, or gone.
        Some(libc::ENXIO | libc::ENOENT) => Error::Status {
            operation: "start",
            status: container.status().name(),
        },
        _ => Error::Io {
            doing: format!("open {}", path.display()),
            source,
        },
    })?;
    let result_path = container.dir.result_fifo();
    let mut result =
        open_fifo(&result_path, false).doing(|| format!("open {}", result_path.display()))?;
    // Whoever removes the fifo is the one who starts.
    fs::remove_file(&path).map_err(|_| Error::Status {
        operation: "start",
        status: Status::Running.name(),
    })?;
    gate.write_all(&[GO])
        .doing(|| format!("write to {}", path.display()))?;
    drop(gate);
    let deadline = Deadline::named("start", LIMIT, "start: waiting for execve");
    let mut frame = [0; MAX_FRAME];
    loop {
        wait_readable(&[result.as_fd(), pidfd], &deadline, pid)?;
        match result.read(&mut frame) {
            // Closed by execve, or by the end of a program that was very short.
            Ok(0) => break,
            Ok(len) => return Err(failed(&frame[..len], container)),
            // Only the pidfd was readable: init ended; what it wrote would have been read.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => {
                return Err(Error::Io {
                    doing: format!("read {}", result_path.display()),
                    source,
                });
            }
        }
    }
    // Only an orderly directory: nobody looks for it again.
    let _ = fs::remove_file(&result_path);
    Ok(())
}

fn open_fifo(path: &std::path::Path, write: bool) -> io::Result<File> {
    OpenOptions::new()
        .write(write)
        .read(!write)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
}

fn failed(frame: &[u8], container: &Container) -> Error {
    let name = container
        .saved
        .process
        .args()
        .iter()
        .flatten()
        .next()
        .cloned()
        .unwrap_or_default();
    match Report::read(frame) {
        // The step's number belongs to a plan that create took with it; past the gate there
        // is only one step.
        Ok(Report::Failed(fault)) => {
            let labels = vec![EXECUTE.to_owned()];
            explain(
                &holdfast_plan::report::Fault { step: 0, ..fault },
                &labels,
                Some(&name),
            )
        }
        Ok(Report::Reached(_) | Report::Listener) | Err(_) => Error::Step {
            doing: EXECUTE.into(),
            detail: "the init process sent something that is no report".into(),
            source: None,
        },
    }
}
