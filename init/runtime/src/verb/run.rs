//! `run`: create, start and, in the foreground, stay until the container ends.

use std::os::fd::{AsFd, OwnedFd};

use holdfast_record::{ContainerId, ExitStatus};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::create::{Console, Options, create_with};
use super::{Context, delete, start};
use crate::bundle::Bundle;
use crate::cause::{self, Operation};
use crate::error::{Doing, Error, Result};
use crate::sys::{clone, signals};
use crate::terminal::{Proxy, console_pair};

/// Runs a container.
///
/// Returns the exit code to end with: the container's in the foreground, 0 when detached.
///
/// # Errors
/// Of create, start or delete; a container that did not start is deleted.
pub fn run(
    context: &Context,
    id: &ContainerId,
    options: &Options,
    detach: bool,
    keep: bool,
) -> Result<i32> {
    let record = |error: &Error| cause::record(error, Operation::Create, id, &options.bundle);
    let bundle = Bundle::load(&options.bundle).inspect_err(record)?;
    let terminal = bundle.process()?.terminal().unwrap_or(false);
    let foreground_console = !detach && terminal && options.console_socket.is_none();
    let (console, ours) = if foreground_console {
        let (theirs, ours) = console_pair()?;
        (Console::Foreground(theirs), Some(ours))
    } else {
        (Console::Detached, None)
    };
    // Blocked before there is a child whose SIGCHLD could be missed.
    let caught = if detach {
        None
    } else {
        Some(signals::all_as_descriptor().doing(|| "watch signals".into())?)
    };
    let created = create_with(context, id, options, bundle, console, None).inspect_err(record)?;
    let record = |error: &Error| cause::record(error, Operation::Start, id, &options.bundle);
    let started = start::start(context, id)
        .inspect_err(record)
        .and_then(|()| {
            let proxy = ours.as_ref().map(Proxy::take).transpose()?;
            match &caught {
                Some(caught) => accompany(&created.link.pidfd, caught, proxy),
                None => Ok(0),
            }
        });
    if started.is_err() || (!detach && !keep) {
        let deleted = delete::delete(context, id, true);
        let code = started?;
        deleted?;
        return Ok(code);
    }
    started
}

/// Forwards signals and terminal until the child ends; returns its exit code.
pub(super) fn accompany(pidfd: &OwnedFd, caught: &OwnedFd, proxy: Option<Proxy>) -> Result<i32> {
    let mut stdin_open = true;
    let mut terminal_open = proxy.is_some();
    loop {
        while let Some(signal) = signals::next_signal(caught.as_fd()) {
            match signal {
                libc::SIGCHLD => {}
                libc::SIGWINCH if proxy.is_some() => {
                    if let Some(proxy) = &proxy {
                        proxy.resize();
                    }
                }
                // SIGURG is Go's scheduler talking to itself.
                libc::SIGURG => {}
                // ESRCH: it ended meanwhile, which the next round sees.
                other => drop(clone::signal_pidfd(pidfd.as_fd(), other)),
            }
        }
        if let Some((code, status)) = clone::wait_pidfd(pidfd.as_fd(), false) {
            if let (Some(proxy), true) = (&proxy, terminal_open) {
                // What it wrote last is still in the terminal.
                while proxy.copy(&mut false, PollTimeout::ZERO)? && proxy.readable() {}
            }
            return Ok(shell_code(code, status));
        }
        match &proxy {
            Some(proxy) if terminal_open => {
                let soon = PollTimeout::from(100u8);
                terminal_open = proxy.copy(&mut stdin_open, soon)?;
            }
            _ => {
                let mut fds = [
                    PollFd::new(pidfd.as_fd(), PollFlags::POLLIN),
                    PollFd::new(caught.as_fd(), PollFlags::POLLIN),
                ];
                match poll(&mut fds, PollTimeout::NONE) {
                    Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                    Err(errno) => {
                        return Err(errno).doing(|| "wait for the container".into());
                    }
                }
            }
        }
    }
}

fn shell_code(code: i32, status: i32) -> i32 {
    ExitStatus::from_waitid(code, status).map_or(255, |status| {
        i32::try_from(status.shell_code()).unwrap_or(255)
    })
}
