//! OCI hooks: programs that the container's configuration wants run at six points of its life.
//!
//! A hook is somebody else's program inside our create, so nothing of it is trusted to behave
//! (incident 4 was a hook's output pipe): its standard input is a sealed memfd that needs no writer, its
//! output is read while it runs and kept within bounds, it has a process group of its own and a deadline, and when it
//! fails the error holds everything it said. A process that the hook leaves behind with the pipes open is not waited for.
//!
//! Specification: runtime-spec `config.md`, "POSIX-platform Hooks".

mod error;
mod output;
pub(crate) mod running;

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use holdfast_record::deadline::{Deadline, limit_from_env};
use holdfast_record::process::describe;
use holdfast_record::reason::HookPlace;
use oci_spec::runtime::Hook;

use crate::sys::fd;
use crate::sys::spawn::{Spawn, Spawned, kill_group, pipe, spawn};

pub use error::Error;
pub use output::{OUTPUT_LIMIT, Output};
use running::{Running, Waited};

/// How long a hook may take when its configuration does not say. `HOLDFAST_DEADLINE_HOOK` overrides it.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// When hooks are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookStage {
    /// Deprecated; the same moment as `createRuntime`, before it.
    Prestart,
    /// Namespaces exist, the root is not changed yet; in the runtime's namespaces.
    CreateRuntime,
    /// The same moment, in the container's namespaces.
    CreateContainer,
    /// Right before the container's program; in the container's namespaces.
    StartContainer,
    /// After the container's program was started; in the runtime's namespaces.
    Poststart,
    /// After the container was deleted; in the runtime's namespaces.
    Poststop,
}

impl HookStage {
    /// All stages in the order of a container's life.
    pub const ALL: [Self; 6] = [
        Self::Prestart,
        Self::CreateRuntime,
        Self::CreateContainer,
        Self::StartContainer,
        Self::Poststart,
        Self::Poststop,
    ];

    /// Its name in `config.json`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }
}

/// The namespaces in which hooks of a stage run.
#[derive(Clone, Copy, Debug)]
pub struct HookNamespaces<'a> {
    /// The container's init process.
    pub pidfd: BorrowedFd<'a>,
    /// `CLONE_NEW*` of those of its namespaces that are not the runtime's own. Joining one's own user namespace is
    /// refused by the kernel, `setns(2)`.
    pub flags: libc::c_int,
}

/// Runs the hooks of one stage one after the other, each with `state` (the container's state as JSON) as its standard
/// input, `bundle` as its working directory, and nothing but its own `env` as environment.
///
/// With `join` each hook runs in those namespaces; `startContainer` hooks then work in `/` if the bundle does not exist
/// there. The pid namespace is joined by this process for its children and left again before this returns.
///
/// A hook's own `timeout` wins; without one it has `HOLDFAST_DEADLINE_HOOK`, else [`DEFAULT_TIMEOUT`].
///
/// # Errors
/// [`Error`] of the first hook that fails; the ones after it are not run. Except for `poststop`, whose hooks are all
/// run because they clean up: there the first error is returned and later ones are logged.
pub fn run_hooks(
    stage: HookStage,
    hooks: &[Hook],
    state: &[u8],
    bundle: &Path,
    join: Option<&HookNamespaces<'_>>,
) -> Result<(), Error> {
    let default = limit_from_env("hook", DEFAULT_TIMEOUT);
    let mut first = None;
    for (index, hook) in hooks.iter().enumerate() {
        let place = HookPlace {
            stage: stage.name().to_owned(),
            number: index + 1,
            of: hooks.len(),
            path: hook.path().display().to_string(),
        };
        match run(stage, place, hook, state, bundle, join, default) {
            Ok(()) => {}
            Err(error) if stage != HookStage::Poststop => return Err(error),
            Err(error) if first.is_none() => first = Some(error),
            Err(error) => log::warn!("{error}, ignoring"),
        }
    }
    first.map_or(Ok(()), Err)
}

fn run(
    stage: HookStage,
    place: HookPlace,
    hook: &Hook,
    state: &[u8],
    bundle: &Path,
    join: Option<&HookNamespaces<'_>>,
    default: Duration,
) -> Result<(), Error> {
    let program = match Program::from(hook, bundle, default) {
        Ok(program) => program,
        Err(problem) => return Err(Error::Invalid { place, problem }),
    };
    let deadline = Deadline::after(program.limit, place.to_string());
    let start = |doing, source| Error::Start {
        place: place.clone(),
        doing,
        source,
    };

    let stdin = state_file(state).map_err(|source| start("prepare its standard input", source))?;
    let (stdout, stdout_end) = pipe().map_err(|source| start("make a pipe for it", source))?;
    let (stderr, stderr_end) = pipe().map_err(|source| start("make a pipe for it", source))?;
    let request = Spawn {
        path: &program.path,
        args: &program.args,
        env: &program.env,
        cwd: &program.cwd,
        root_will_do: stage == HookStage::StartContainer && join.is_some(),
        stdio: [stdin.as_fd(), stdout_end.as_fd(), stderr_end.as_fd()],
        join: join
            .map(|join| (join.pidfd, join.flags & !libc::CLONE_NEWPID))
            .filter(|(_, flags)| *flags != 0),
    };
    let child = spawn_within(&place, &request, join)?;
    // The hook's are the only writing ends now, so that their closing is seen.
    drop((stdout_end, stderr_end));

    let mut running = Running::new(child, stdout, stderr);
    let status = match running.wait(&deadline, None) {
        Ok(Waited::Ended(status)) => Some(status),
        Ok(Waited::Expired | Waited::WatchedEnded) => None,
        Err(source) => {
            running.kill();
            return Err(start("wait for it", source));
        }
    };
    match status {
        Some(status) => {
            if let Some((step, source)) = running.refused() {
                return Err(start(step.doing(), source));
            }
            if status.success() {
                return Ok(());
            }
            Err(Error::Failed {
                place,
                status,
                output: running.output(),
            })
        }
        None => {
            let process = Box::new(describe(running.pid()));
            let gone = running.kill();
            Err(Error::TimedOut {
                place,
                waited: deadline.limit(),
                process,
                gone,
                output: running.output(),
            })
        }
    }
}

/// A hook's entry as the kernel wants it.
struct Program {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
    cwd: CString,
    limit: Duration,
}

impl Program {
    fn from(hook: &Hook, bundle: &Path, default: Duration) -> Result<Self, String> {
        let path = hook.path();
        if !path.is_absolute() {
            return Err("its path must be absolute".to_owned());
        }
        let limit = match hook.timeout() {
            None => default,
            Some(seconds) => match u64::try_from(seconds) {
                Ok(seconds) if seconds > 0 => Duration::from_secs(seconds),
                _ => {
                    return Err(format!(
                        "its timeout must be above 0 seconds, not {seconds}"
                    ));
                }
            },
        };
        let text = |what: &str, text: &[u8]| {
            CString::new(text).map_err(|_| format!("its {what} must not contain a NUL byte"))
        };
        let list = |what: &str, items: &Option<Vec<String>>| {
            let items = items.as_deref().unwrap_or_default();
            items
                .iter()
                .map(|item| text(what, item.as_bytes()))
                .collect::<Result<Vec<_>, _>>()
        };
        let path = text("path", path.as_os_str().as_bytes())?;
        let mut args = list("args", hook.args())?;
        if args.is_empty() {
            args.push(path.clone());
        }
        Ok(Self {
            env: list("env", hook.env())?,
            cwd: text("bundle", bundle.as_os_str().as_bytes())?,
            path,
            args,
            limit,
        })
    }
}

/// The state as a file that is all there before the hook reads it, and that it cannot change for anybody else.
fn state_file(state: &[u8]) -> io::Result<OwnedFd> {
    const NAME: &CStr = c"holdfast-state";
    let mut file = File::from(fd::sealed(NAME, state, false, false)?);
    file.seek(SeekFrom::Start(0))?;
    Ok(file.into())
}

/// Makes the child, within the container's pid namespace if that is to be joined: only a parent can put a child there.
fn spawn_within(
    place: &HookPlace,
    request: &Spawn<'_>,
    join: Option<&HookNamespaces<'_>>,
) -> Result<Spawned, Error> {
    let start = |doing, source| Error::Start {
        place: place.clone(),
        doing,
        source,
    };
    let Some(join) = join.filter(|join| join.flags & libc::CLONE_NEWPID != 0) else {
        return spawn(request).map_err(|source| start("make a process for it", source));
    };
    let own = File::open("/proc/self/ns/pid")
        .map_err(|source| start("open the runtime's pid namespace", source))?;
    fd::setns(join.pidfd, libc::CLONE_NEWPID)
        .map_err(|source| start("join the container's pid namespace", source))?;
    let child = spawn(request);
    let back = fd::setns(own.as_fd(), libc::CLONE_NEWPID);
    match (child, back) {
        (Ok(child), Ok(())) => Ok(child),
        (Err(source), Ok(())) => Err(start("make a process for it", source)),
        (child, Err(source)) => {
            if let Ok(child) = child {
                kill_group(&child);
            }
            Err(Error::Return {
                place: place.clone(),
                source,
            })
        }
    }
}

#[cfg(test)]
mod tests;
