//! The shim's side of the barrier: `holdfast` registers a process before it runs.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use holdfast_record::Deadline;
use holdfast_record::barrier::{self, Frame};
use tokio::io::unix::AsyncFd;

use super::Runtime;
use super::call::Call;
use super::error::RuntimeError;
use super::working::{Working, end_of, finish, overdue, receive};
use crate::reaper::{Child, Launch, Reaper};
use crate::resume::descriptor::Descriptor;
use crate::sys::{self, ChildSetup};

/// Number of the barrier's descriptor in the runtime.
const BARRIER_FD: i32 = 3;

/// What the shim's side of the barrier needs.
pub(super) struct Attending<'a> {
    pub(super) working: Working,
    pub(super) socket: Descriptor,
    pub(super) launch: &'a Launch,
    pub(super) verb: &'static str,
    pub(super) log: &'a Path,
    pub(super) deadline: &'a Deadline,
}

impl Runtime {
    #[expect(
        clippy::too_many_arguments,
        reason = "one step of `make`, split for length only"
    )]
    pub(super) async fn make_behind_barrier<F>(
        &self,
        reaper: &Arc<Reaper>,
        mut command: Command,
        launch: &Launch,
        call: &Call,
        pid_file: &Path,
        log: &Path,
        deadline: &Deadline,
        register: impl Fn(Child) -> F,
    ) -> Result<(), RuntimeError>
    where
        F: Future<Output = bool>,
    {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
        let verb = call.verb;
        let broken = |source: io::Error| RuntimeError::Barrier { verb, source };
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        )
        .map_err(|errno| broken(errno.into()))?;
        // Theirs blocks: the runtime waits for the answer.
        set_blocking(&theirs).map_err(broken)?;
        command.env(barrier::ENV, BARRIER_FD.to_string());
        let setup = ChildSetup {
            fds: vec![(theirs, BARRIER_FD)],
            parent_death_signal: Some(libc::SIGKILL),
            own_group: true,
        };
        let ours = Descriptor::from(ours);
        let barrier = Some((Some(ours.name()), pid_file));
        let working = self.spawn(reaper, command, setup, call, log, barrier)?;
        let at = Attending {
            working,
            socket: ours,
            launch,
            verb,
            log,
            deadline,
        };
        self.attend(at, None, &register).await
    }

    /// The shim's side of the barrier, to the end of the runtime. `early`: a process that it has
    /// registered in the image before, whose descriptor is none if the owner knows it already.
    pub(super) async fn attend<F>(
        &self,
        at: Attending<'_>,
        early: Option<(u32, Option<Descriptor>)>,
        register: &impl Fn(Child) -> F,
    ) -> Result<(), RuntimeError>
    where
        F: Future<Output = bool>,
    {
        let Attending {
            mut working,
            socket,
            launch,
            verb,
            log,
            deadline,
        } = at;
        let broken = |source: io::Error| RuntimeError::Barrier { verb, source };
        let socket = sys::watch(socket, tokio::io::Interest::READABLE).map_err(broken)?;
        let mut failed = working.kept.job.as_ref().and_then(|job| job.failed.clone());
        let mut registered = early.is_some();
        if let Some((pid, pidfd)) = early {
            if let Some(pidfd) = pidfd {
                let made = launch
                    .adopt(pid, Some(pidfd))
                    .map_err(|source| RuntimeError::Adopt { verb, source })?;
                if !register(made).await {
                    hang_up(&socket);
                    let _ = finish(&mut working, deadline, verb).await;
                    return Err(RuntimeError::GivenUp { verb });
                }
            }
            working.acknowledge(&socket, verb);
        }
        let mut reason = working.kept.job.as_ref().and_then(|job| job.reason.clone());
        let mut ended = working.kept.job.as_ref().and_then(|job| job.ended);
        let mut buffer = vec![0u8; barrier::MAX_FRAME];
        loop {
            let received = if ended.is_some() {
                // All its frames are here; end of file may be long in coming if a child of
                // it holds the socket, too.
                working.receive(socket.get_ref().as_fd(), &mut buffer)
            } else {
                let kept = &mut working.kept;
                tokio::select! {
                    biased;
                    received = socket.async_io(tokio::io::Interest::READABLE, |fd| {
                        receive(kept, fd.as_fd(), &mut buffer)
                    }) => received,
                    () = tokio::time::sleep(deadline.remaining()) => {
                        return Err(overdue(&working, deadline, verb).await);
                    }
                    status = end_of(&mut working.child, verb) => {
                        ended = Some(working.has_ended(status?));
                        continue;
                    }
                }
            };
            let received = match received {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // It ended without reading our answer. Said once; its frames come after.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => continue,
                Err(error) => return Err(broken(error)),
            };
            if received.len == 0 {
                break;
            }
            match Frame::decode(buffer.get(..received.len).unwrap_or_default()) {
                Ok(Frame::Registered { pid }) => {
                    let made = launch
                        .adopt(pid, received.fd)
                        .map_err(|source| RuntimeError::Adopt { verb, source })?;
                    if !register(made).await {
                        // Without the answer the runtime kills what it made.
                        hang_up(&socket);
                        let _ = finish(&mut working, deadline, verb).await;
                        return Err(RuntimeError::GivenUp { verb });
                    }
                    registered = true;
                    working.acknowledge(&socket, verb);
                }
                Ok(Frame::Failed { text }) => {
                    working.kept.change(|job| job.failed = Some(text.clone()));
                    failed = Some(text);
                }
                Ok(Frame::Reason(told)) => {
                    working.kept.change(|job| job.reason = Some(told.clone()));
                    reason = Some(told);
                }
                Err(error) => log::warn!("{verb}: a frame of the runtime: {error}"),
            }
        }
        let status = match ended {
            Some(status) => status,
            None => finish(&mut working, deadline, verb).await?,
        };
        let judged = self.judge(verb, status, log, failed, reason);
        working.keep_words(&judged);
        judged?;
        if registered {
            Ok(())
        } else {
            Err(RuntimeError::Failed {
                text: format!("{verb}: the runtime registered no process"),
                reason: None,
            })
        }
    }
}

/// End of file for the runtime, however long our end stays open for the next image.
fn hang_up(socket: &AsyncFd<Descriptor>) {
    use nix::sys::socket::{Shutdown, shutdown};
    if let Err(errno) = shutdown(socket.get_ref().as_raw_fd(), Shutdown::Both) {
        log::debug!("hang up at the barrier: {errno}");
    }
}

fn set_blocking(fd: &OwnedFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(fd.as_raw_fd(), FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok(())
}
