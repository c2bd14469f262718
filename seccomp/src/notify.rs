//! The listener of `SCMP_ACT_NOTIFY` on its way to the agent.
//!
//! Source: runtime-spec `config-linux.md`, "The Container Process State".

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use oci_spec::runtime::State;
use serde::Serialize;

/// Name of the listener in `fds`.
pub const SECCOMP_FD_NAME: &str = "seccompFd";

/// What the agent receives together with the listener, as JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerProcessState {
    oci_version: String,
    fds: [&'static str; 1],
    pid: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<String>,
    state: State,
}

/// The listener did not reach the agent.
#[derive(Debug, thiserror::Error)]
#[error(
    "seccomp listener: {step} {}: is the agent of listenerPath running and accepting?",
    path.display()
)]
pub struct ListenerError {
    /// What was tried.
    step: &'static str,
    /// `listenerPath`.
    path: PathBuf,
    /// The errno; ETIMEDOUT if the agent was too slow.
    source: io::Error,
}

impl ContainerProcessState {
    /// `pid`: the filtered process in the runtime's pid namespace. `metadata`: the profile's
    /// `listenerMetadata`. `state`: the container's, as `state` prints it.
    #[must_use]
    pub fn new(pid: i32, metadata: Option<String>, state: State) -> Self {
        Self {
            oci_version: state.version().clone(),
            fds: [SECCOMP_FD_NAME],
            pid,
            metadata,
            state,
        }
    }

    /// Connects to the agent's stream socket `path` and sends this state and `listener` in one
    /// message; the connection is closed afterwards. Waits `limit` altogether at most.
    ///
    /// # Errors
    /// [`ListenerError`] with the step and the errno: ECONNREFUSED or ENOENT if no agent runs,
    /// ETIMEDOUT if it does not accept or read.
    pub fn send(
        &self,
        path: &Path,
        listener: BorrowedFd<'_>,
        limit: Duration,
    ) -> Result<(), ListenerError> {
        let deadline = Instant::now() + limit;
        let failed = |step| {
            move |source| ListenerError {
                step,
                path: path.to_owned(),
                source,
            }
        };
        let message = serde_json::to_vec(self)
            .map_err(io::Error::other)
            .map_err(failed("encode the container process state for"))?;
        let connection = connect_until(path, deadline).map_err(failed("connect to"))?;
        send_until(&connection, &message, listener, deadline).map_err(failed("send to"))
    }
}

fn connect_until(path: &Path, deadline: Instant) -> io::Result<OwnedFd> {
    let address = UnixAddr::new(path)?;
    let connection = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // unix(7) connect waits for a place in the backlog as long as a send would.
    limit_sends(&connection, deadline)?;
    connect(connection.as_raw_fd(), &address).map_err(timed_out)?;
    Ok(connection)
}

fn send_until(
    connection: &OwnedFd,
    message: &[u8],
    listener: BorrowedFd<'_>,
    deadline: Instant,
) -> io::Result<()> {
    let descriptors = [listener.as_raw_fd()];
    let mut control: &[ControlMessage<'_>] = &[ControlMessage::ScmRights(&descriptors)];
    let mut rest = message;
    // One message in practice: the state is far smaller than a socket's buffer.
    while !rest.is_empty() {
        limit_sends(connection, deadline)?;
        let sent = sendmsg::<()>(
            connection.as_raw_fd(),
            &[io::IoSlice::new(rest)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
        .map_err(timed_out)?;
        rest = rest.get(sent..).unwrap_or_default();
        control = &[];
    }
    Ok(())
}

fn limit_sends(connection: &OwnedFd, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    let micros = i64::try_from(left.as_micros()).unwrap_or(i64::MAX);
    if micros == 0 {
        // As an option it would mean no limit.
        return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
    }
    setsockopt(
        connection,
        sockopt::SendTimeout,
        &TimeVal::microseconds(micros),
    )?;
    Ok(())
}

/// A blocking socket says EAGAIN when its time is up; socket(7).
fn timed_out(errno: nix::errno::Errno) -> io::Error {
    match errno {
        nix::errno::Errno::EAGAIN => io::Error::from_raw_os_error(libc::ETIMEDOUT),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixListener;

    use nix::sys::socket::{Backlog, ControlMessageOwned, bind, listen, recvmsg};

    use super::*;

    fn state() -> ContainerProcessState {
        let mut state = State::default();
        state
            .set_version("1.2.0".to_owned())
            .set_id("box".to_owned())
            .set_pid(Some(42));
        ContainerProcessState::new(42, Some("opaque".to_owned()), state)
    }

    #[test]
    fn the_agent_receives_state_and_descriptor() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let agent = UnixListener::bind(&path).unwrap();
        // A file stands for the listener: its offset tells that it is the same one.
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, b"0123").unwrap();

        state()
            .send(&path, file.as_fd(), Duration::from_secs(10))
            .unwrap();

        let (connection, _) = agent.accept().unwrap();
        let mut buffer = [0; 4096];
        let mut space = nix::cmsg_space!([std::os::fd::RawFd; 4]);
        let mut parts = [io::IoSliceMut::new(&mut buffer)];
        let message = recvmsg::<()>(
            connection.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )
        .unwrap();
        let received: Vec<_> = message
            .cmsgs()
            .unwrap()
            .flat_map(|control| match control {
                ControlMessageOwned::ScmRights(descriptors) => descriptors,
                _ => vec![],
            })
            .collect();
        let length = message.bytes;
        assert_eq!(received.len(), 1);
        let target = |fd: i32| std::fs::metadata(format!("/proc/self/fd/{fd}")).unwrap();
        use std::os::unix::fs::MetadataExt;
        assert_eq!(
            target(received[0]).ino(),
            target(file.as_fd().as_raw_fd()).ino()
        );
        nix::unistd::close(received[0]).unwrap();

        let json: serde_json::Value = serde_json::from_slice(&buffer[..length]).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "ociVersion": "1.2.0",
                "fds": ["seccompFd"],
                "pid": 42,
                "metadata": "opaque",
                "state": {
                    "ociVersion": "1.2.0",
                    "id": "box",
                    "status": "stopped",
                    "pid": 42,
                    "bundle": "",
                },
            })
        );
        // The connection is closed: the agent need not guess where the message ends.
        let mut connection = connection;
        assert_eq!(connection.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn without_an_agent_the_error_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nobody.sock");
        let error = state()
            .send(&path, io::stdin().as_fd(), Duration::from_secs(10))
            .unwrap_err();
        assert!(error.to_string().contains("nobody.sock"), "{error}");
        let errno = error.source().unwrap().downcast_ref::<io::Error>().unwrap();
        assert_eq!(errno.raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn an_agent_that_does_not_accept_costs_the_limit_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("asleep.sock");
        let agent = socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        bind(agent.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&agent, Backlog::new(1).unwrap()).unwrap();
        // Fill the backlog.
        let limit = Duration::from_millis(200);
        let started = Instant::now();
        let mut waiting = Vec::new();
        let errno = loop {
            assert!(waiting.len() < 64, "the backlog never fills");
            match connect_until(&path, Instant::now() + limit) {
                Ok(connection) => waiting.push(connection),
                Err(error) => break error.raw_os_error(),
            }
        };
        assert_eq!(errno, Some(libc::ETIMEDOUT));
        let error = state().send(&path, io::stdin().as_fd(), limit).unwrap_err();
        assert_eq!(error.source.raw_os_error(), Some(libc::ETIMEDOUT));
        assert!(started.elapsed() >= 2 * limit);
    }
}
