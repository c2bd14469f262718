//! `startContainer` hooks: processes of the container, run by `start` before its program.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use holdfast_record::{Deadline, ExitStatus};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use oci_spec::runtime::Hook;

use super::Context;
use super::exec::Execution;
use crate::error::{Doing, Error, Result};
use crate::link::Link;
use crate::state::Container;
use crate::sys::{clone, fd};

/// How much of a hook's output is kept.
const OUTPUT: usize = 16 << 10;

/// Runs `startContainer` hooks as processes of the container.
pub(super) fn run_all(
    context: &Context,
    container: &Container,
    hooks: &[Hook],
    state: &[u8],
) -> Result<()> {
    for (at, hook) in hooks.iter().enumerate() {
        run(context, container, hook, state).map_err(|error| Error::Step {
            doing: format!(
                "run startContainer hook {} of {} ({})",
                at + 1,
                hooks.len(),
                hook.path().display()
            ),
            detail: crate::error::chain(&error),
            source: None,
        })?;
    }
    Ok(())
}

fn run(context: &Context, container: &Container, hook: &Hook, state: &[u8]) -> Result<()> {
    let mut process = container.saved.process.clone();
    let path = hook.path().display().to_string();
    // holdfast-init takes the program from args[0]; hooks whose args[0] differs from their
    // path are seen under their path.
    let mut args = vec![path];
    args.extend(hook.args().iter().flatten().skip(1).cloned());
    process
        .set_args(Some(args))
        .set_env(hook.env().clone())
        .set_terminal(Some(false))
        .set_exec_cpu_affinity(None)
        .set_cwd("/".into());
    let stdin = fd::sealed(c"state", state, false, false).doing(|| "pass the state".into())?;
    let stdin = File::open(format!("/proc/self/fd/{}", stdin.as_raw_fd()))
        .doing(|| "pass the state".into())?;
    let (reader, writer) =
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).doing(|| "make a pipe".into())?;
    let second = writer.try_clone().doing(|| "duplicate a pipe".into())?;
    let execution = Execution {
        container,
        process: &process,
        preserve_fds: 0,
        below: None,
        stdio: Some([stdin.into(), writer, second]),
    };
    let limit = hook
        .timeout()
        .and_then(|seconds| u64::try_from(seconds).ok())
        .filter(|seconds| *seconds > 0)
        .map_or(crate::hooks::DEFAULT_TIMEOUT, Duration::from_secs);
    let deadline = Deadline::named("hook", limit, "startContainer hook");
    let (mut link, late) = execution.launch(None, false)?;
    let ran = execution.accompany(context, &mut link, late.as_ref(), None, &deadline);
    if let Err(error) = ran {
        link.kill();
        return Err(error);
    }
    drop(execution);
    let mut output = Vec::new();
    let status = wait_reading(&link, reader, &mut output, &deadline);
    if status.is_err() {
        link.kill();
    }
    let (code, status) = status?;
    match ExitStatus::from_waitid(code, status) {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(Error::Step {
            doing: format!("succeed: {status}"),
            detail: String::from_utf8_lossy(&output).trim().to_owned(),
            source: None,
        }),
        None => Err(Error::NotRunning),
    }
}

/// Reads the output while the process runs: a full pipe never holds it.
fn wait_reading(
    link: &Link,
    reader: OwnedFd,
    output: &mut Vec<u8>,
    deadline: &Deadline,
) -> Result<(i32, i32)> {
    let mut reader = File::from(reader);
    let mut open = true;
    loop {
        let mut fds = vec![PollFd::new(link.pidfd.as_fd(), PollFlags::POLLIN)];
        if open {
            fds.push(PollFd::new(reader.as_fd(), PollFlags::POLLIN));
        }
        let timeout = PollTimeout::try_from(deadline.poll_timeout()).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(0) if deadline.is_expired() => {
                return Err(crate::link::expired(deadline, link.pid));
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno).doing(|| deadline.what().to_owned()),
        }
        let ready = |at: usize| {
            fds.get(at)
                .and_then(|fd| fd.revents())
                .is_some_and(|events| !events.is_empty())
        };
        let (ended, readable) = (ready(0), ready(1));
        drop(fds);
        if readable {
            let mut buffer = [0; 4096];
            let len = reader.read(&mut buffer).unwrap_or(0);
            open = len > 0;
            let room = OUTPUT.saturating_sub(output.len()).min(len);
            output.extend_from_slice(buffer.get(..room).unwrap_or_default());
        } else if ended {
            return clone::wait_pidfd(link.pidfd.as_fd(), true).ok_or(Error::NotRunning);
        }
    }
}
