//! The process that asks: started, read, and ended in time.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MemFdCreateFlag, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::Error;

/// The program, as built with this crate.
static PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/holdfast-nvml"));
/// More than any node's GPUs need.
const MAX_OUTPUT: usize = 1 << 20;
/// How long a killed helper may take to go before it counts as stuck.
const GRACE: Duration = Duration::from_secs(1);
/// How often a helper whose pipes are closed is asked whether it has ended: it does within microseconds.
const STEP: Duration = Duration::from_micros(100);

/// A helper that neither answered nor went when it was killed, or did not answer in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// Its pid.
    pub pid: i32,
    /// How long it was waited for.
    pub waited: Duration,
    /// Its state in `/proc`, where it does not go: `D` and where in the kernel it waits.
    pub state: Option<String>,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the process {} that asks NVML gave no answer in {} s",
            self.pid,
            self.waited.as_secs()
        )?;
        match &self.state {
            Some(state) => write!(f, " and cannot be killed ({state})"),
            None => f.write_str(" and was killed"),
        }
    }
}

/// What the helper said.
pub(super) struct Output {
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
    pub(super) ending: String,
}

/// Runs the helper for `library`.
pub(super) fn run(library: &Path, deadline: Duration) -> Result<Output, Error> {
    let started = Instant::now();
    let program = image().map_err(Error::Start)?;
    let mut child = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
        .arg0("holdfast-nvml")
        .arg(library)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(Error::Start)?;
    drop(program);
    // Both pipes are read from here on, before the helper writes its first byte.
    let mut output = Output {
        stdout: Vec::new(),
        stderr: Vec::new(),
        ending: String::new(),
    };
    let read = read_all(&mut child, &mut output, started, deadline);
    let status = match read {
        Ok(true) => wait(&mut child, started + deadline),
        Ok(false) | Err(_) => None,
    };
    if let Some(status) = status {
        output.ending = ending(status);
        return Ok(output);
    }
    Err(Error::Stuck {
        stuck: end(&mut child, started.elapsed()),
    })
}

/// The program as a file in memory.
fn image() -> io::Result<OwnedFd> {
    let fd = memfd_create(c"holdfast-nvml", MemFdCreateFlag::MFD_CLOEXEC)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(PROGRAM)?;
    // Opened anew without the right to write: a file open for writing cannot be run.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::fs::File::open(path).map(OwnedFd::from)
}

/// Reads both pipes to their end. `false`: the deadline came first.
fn read_all(
    child: &mut Child,
    output: &mut Output,
    started: Instant,
    deadline: Duration,
) -> io::Result<bool> {
    let mut stdout = child.stdout.take();
    let mut stderr = child.stderr.take();
    while stdout.is_some() || stderr.is_some() {
        let Some(left) = deadline.checked_sub(started.elapsed()) else {
            return Ok(false);
        };
        let timeout = PollTimeout::try_from(left.as_millis().max(1)).unwrap_or(PollTimeout::MAX);
        let (out_ready, err_ready) = {
            let out = stdout
                .as_ref()
                .map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN));
            let err = stderr
                .as_ref()
                .map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN));
            let (has_out, has_err) = (out.is_some(), err.is_some());
            let mut fds: Vec<PollFd<'_>> = out.into_iter().chain(err).collect();
            match poll(&mut fds, timeout) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let ready = |at: usize| fds.get(at).and_then(|fd| fd.any()).unwrap_or(false);
            (has_out && ready(0), has_err && ready(usize::from(has_out)))
        };
        if out_ready && !take(&mut stdout, &mut output.stdout)? {
            stdout = None;
        }
        if err_ready && !take(&mut stderr, &mut output.stderr)? {
            stderr = None;
        }
    }
    Ok(true)
}

/// Takes what is there; `false` at the end. What is beyond the bound is dropped, so that the writer never waits.
fn take(pipe: &mut Option<impl io::Read>, into: &mut Vec<u8>) -> io::Result<bool> {
    let Some(pipe) = pipe else { return Ok(false) };
    let mut bytes = [0; 4096];
    let length = pipe.read(&mut bytes)?;
    let room = MAX_OUTPUT.saturating_sub(into.len()).min(length);
    into.extend_from_slice(&bytes[..room]);
    Ok(length > 0)
}

/// The helper's end, which follows that of its pipes at once.
fn wait(child: &mut Child, until: Instant) -> Option<ExitStatus> {
    let until = until.max(Instant::now() + GRACE);
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < until => std::thread::sleep(STEP),
            Ok(None) | Err(_) => return None,
        }
    }
}

/// Kills the helper. One that stays, in state D, is left behind: waiting for it would hang us too.
fn end(child: &mut Child, waited: Duration) -> Stuck {
    let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
    let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    let gone = wait(child, Instant::now() + GRACE).is_some();
    Stuck {
        pid,
        waited,
        state: (!gone).then(|| state_of(pid)),
    }
}

fn state_of(pid: i32) -> String {
    let read = |name: &str| {
        let mut text = String::new();
        let file = std::fs::File::open(format!("/proc/{pid}/{name}"));
        let _ = file.and_then(|file| file.take(256).read_to_string(&mut text));
        text
    };
    let stat = read("stat");
    let state = stat
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.split(' ').next());
    format!("state {}, in {}", state.unwrap_or("?"), read("wchan"))
}

fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown end".to_owned(),
    }
}
