//! `exec`: one more process in a running container.
//!
//! It joins every namespace of the container (the user namespace too), its cgroup, and gets
//! the container's seccomp filter and the labels of its own process document. Under a shim the
//! process is registered before it may execute anything.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use holdfast_cgroups::systemd::Unit;
use holdfast_cgroups::{Below, Cgroup, Hierarchies};
use holdfast_plan::Point;
use holdfast_record::{ContainerId, Deadline, ExitStatus};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use oci_spec::runtime::{Capability, Hook, LinuxNamespaceType as Type, Process};

use super::create::{has_user_namespace, send_listener};
use super::{Context, environment, is_root_of_the_machine, run, unit};
use crate::bundle::check_process;
use crate::cause::Operation;
use crate::error::{Doing, Error, Result};
use crate::launch::{Launch, launch};
use crate::link::{Link, Said};
use crate::own_stderr;
use crate::plan::exec::{Inputs, prepare};
use crate::plan::filter::Filter;
use crate::plan::namespaces::{Joined, Namespaces, flag};
use crate::plan::placement;
use crate::registration::Shim;
use crate::state::{Container, Status, write_whole};
use crate::sys::clone::UserNamespace;
use crate::sys::{clone, fd, signals};
use crate::terminal::{self, Proxy, console_pair};
use crate::user_map;

/// How long exec may take until its program runs.
const LIMIT: Duration = Duration::from_secs(30);

/// Options of `exec`.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `--process`: a process document; the others below are for the form without it.
    pub process: Option<PathBuf>,
    /// The command line.
    pub args: Vec<String>,
    /// `--cwd`.
    pub cwd: Option<PathBuf>,
    /// `--env`.
    pub env: Vec<String>,
    /// `--tty`.
    pub tty: bool,
    /// `--user` as uid and gid.
    pub user: Option<(u32, Option<u32>)>,
    /// `--additional-gids`.
    pub additional_gids: Vec<u32>,
    /// `--cap`.
    pub capabilities: Vec<Capability>,
    /// `--no-new-privs`.
    pub no_new_privileges: bool,
    /// `--apparmor`.
    pub apparmor: Option<String>,
    /// `--process-label`.
    pub label: Option<String>,
    /// `--detach`.
    pub detach: bool,
    /// `--console-socket`.
    pub console_socket: Option<PathBuf>,
    /// `--pidfd-socket`.
    pub pidfd_socket: Option<PathBuf>,
    /// `--pid-file`.
    pub pid_file: Option<PathBuf>,
    /// `--preserve-fds`.
    pub preserve_fds: u32,
    /// `--ignore-paused`.
    pub ignore_paused: bool,
    /// `--cgroup`: below the container's own.
    pub cgroup: Option<Below>,
}

/// Executes a process; returns the exit code to end with.
///
/// # Errors
/// The step that failed; the process is gone then.
pub fn exec(context: &Context, id: &ContainerId, options: &Options) -> Result<i32> {
    let shim = Shim::from_environment()?;
    let outcome = exec_with(context, id, options, shim.as_ref());
    if let (Err(error), Some(shim)) = (&outcome, &shim) {
        shim.failed(error, Operation::Exec);
    }
    outcome
}

fn exec_with(
    context: &Context,
    id: &ContainerId,
    options: &Options,
    shim: Option<&Shim>,
) -> Result<i32> {
    let container = context.container(id)?;
    match container.status() {
        Status::Created | Status::Running => {}
        Status::Paused if options.ignore_paused => {}
        status @ (Status::Creating | Status::Paused | Status::Stopped) => {
            return Err(Error::Status {
                operation: "exec in",
                status: status.name(),
            });
        }
    }
    let process = process(&container, options)?;
    let foreground = !options.detach;
    let terminal = process.terminal().unwrap_or(false);
    let (console, ours) = match (&options.console_socket, terminal) {
        (Some(path), true) => (Some(terminal::connect(path)?), None),
        (None, true) if foreground => {
            let (theirs, ours) = console_pair()?;
            (Some(theirs), Some(ours))
        }
        (None, true) => {
            return Err(Error::Usage(
                "cannot allocate tty if runc will detach without setting console socket".into(),
            ));
        }
        (Some(_), false) => {
            return Err(Error::Usage(
                "cannot use console socket if runc will not detach or allocate tty".into(),
            ));
        }
        (None, false) => (None, None),
    };
    let caught = if foreground {
        Some(signals::all_as_descriptor().doing(|| "watch signals".into())?)
    } else {
        None
    };
    let deadline = Deadline::named("exec", LIMIT, "exec");
    let execution = Execution {
        container: &container,
        process: &process,
        preserve_fds: options.preserve_fds,
        below: options.cgroup.as_ref(),
        stdio: own_stderr::for_container()?,
    };
    let (mut link, late) = execution.launch(console, shim.is_some())?;
    let started = execution
        .accompany(context, &mut link, late.as_ref(), shim, &deadline)
        .and_then(|()| tell(options, &link));
    if let Err(error) = started {
        let cause = link.last_words().unwrap_or(error);
        link.kill();
        return Err(cause);
    }
    match &caught {
        Some(caught) => {
            let proxy = ours.as_ref().map(Proxy::take).transpose()?;
            run::accompany(&link.pidfd, caught, proxy)
        }
        None => Ok(0),
    }
}

fn tell(options: &Options, link: &Link) -> Result<()> {
    if let Some(path) = &options.pidfd_socket {
        let socket = terminal::connect(path)?;
        fd::send_fd(socket.as_fd(), b"pidfd", link.pidfd.as_fd())
            .doing(|| format!("send the pidfd to {}", path.display()))?;
    }
    if let Some(path) = &options.pid_file {
        write_whole(path, link.pid.to_string().as_bytes(), 0o644)?;
    }
    Ok(())
}

/// The process document: the given one, or the container's own, changed by the options.
fn process(container: &Container, options: &Options) -> Result<Process> {
    let mut process: Process = match &options.process {
        Some(path) => {
            let bytes = crate::document::bytes(path)?;
            crate::document::process(&bytes).map_err(|source| Error::Json {
                path: path.clone(),
                source,
            })?
        }
        None => {
            let mut process = container.saved.process.clone();
            process.set_args(Some(options.args.clone()));
            process.set_terminal(Some(options.tty));
            process
        }
    };
    if let Some(cwd) = &options.cwd {
        process.set_cwd(cwd.clone());
    }
    if !options.env.is_empty() {
        process
            .env_mut()
            .get_or_insert_default()
            .extend(options.env.iter().cloned());
    }
    if options.tty {
        process.set_terminal(Some(true));
    }
    let user = process.user_mut();
    if let Some((uid, gid)) = options.user {
        user.set_uid(uid);
        user.set_gid(gid.unwrap_or(user.gid()));
    }
    if !options.additional_gids.is_empty() {
        user.set_additional_gids(Some(options.additional_gids.clone()));
    }
    if options.no_new_privileges {
        process.set_no_new_privileges(Some(true));
    }
    if options.apparmor.is_some() {
        process.set_apparmor_profile(options.apparmor.clone());
    }
    if options.label.is_some() {
        process.set_selinux_label(options.label.clone());
    }
    add_capabilities(&mut process, &options.capabilities);
    check_process(&process)?;
    Ok(process)
}

/// `--cap` adds to every set but the inheritable one (CVE-2022-29162).
fn add_capabilities(process: &mut Process, more: &[Capability]) {
    if more.is_empty() {
        return;
    }
    let mut sets = process.capabilities().clone().unwrap_or_default();
    let union = |set: &Option<oci_spec::runtime::Capabilities>| {
        let mut set = set.clone().unwrap_or_default();
        set.extend(more.iter().copied());
        Some(set)
    };
    sets.set_bounding(union(sets.bounding()));
    sets.set_effective(union(sets.effective()));
    sets.set_permitted(union(sets.permitted()));
    sets.set_ambient(union(sets.ambient()));
    process.set_capabilities(Some(sets));
}

/// This process on other CPUs, until it is dropped.
struct OnCpus {
    before: CpuSet,
}

impl OnCpus {
    fn move_to(cpus: &CpuSet) -> Result<Self> {
        let doing = || "run on the CPUs of process.execCPUAffinity.initial".to_owned();
        let before = sched_getaffinity(Pid::from_raw(0)).doing(doing)?;
        sched_setaffinity(Pid::from_raw(0), cpus).doing(doing)?;
        Ok(Self { before })
    }
}

impl Drop for OnCpus {
    fn drop(&mut self) {
        if let Err(errno) = sched_setaffinity(Pid::from_raw(0), &self.before) {
            // It only concerns where a process runs that has little left to do.
            log::warn!("cannot return to the CPUs from before the exec: {errno}");
        }
    }
}

/// One additional process.
struct Execution<'a> {
    container: &'a Container,
    process: &'a Process,
    preserve_fds: u32,
    below: Option<&'a Below>,
    stdio: Option<[OwnedFd; 3]>,
}

impl Execution<'_> {
    /// The new process, and the cgroup that it still has to be moved into.
    fn launch(&self, console: Option<OwnedFd>, sibling: bool) -> Result<(Link, Option<Cgroup>)> {
        let saved = &self.container.saved;
        let init = self.container.live_init()?;
        let pidfd = clone::open_pidfd(init).doing(|| format!("open a pidfd of process {init}"))?;
        if !self.container.alive() {
            return Err(Error::NotRunning);
        }
        let root_path = format!("/proc/{init}/root");
        let root = environment::open_root(&root_path);
        let env = environment::complete(self.process, root.as_ref());
        let filter = match &saved.seccomp {
            Some(seccomp) => Some(Filter {
                program: self.container.dir.filter()?,
                saved: seccomp.clone(),
            }),
            None => None,
        };
        let has = |typ| saved.namespaces.contains(&typ);
        let rootless = has(Type::User) && !nix::unistd::geteuid().is_root();
        let flags = saved
            .namespaces
            .iter()
            .filter(|typ| **typ != Type::Pid && !(rootless && **typ == Type::User))
            .fold(0, |flags, typ| flags | flag(*typ));
        let inherited =
            fd::inherited_above(pidfd.as_fd(), 3).doing(|| "keep the pidfd open".into())?;
        let mut namespaces = Namespaces::default();
        let joined = |typ, fd| Joined {
            typ,
            fd,
            path: format!("of process {init}"),
        };
        // Only root of the container's user namespace may put a child into its pid namespace, and
        // an ordinary user becomes that by joining it, for good: a process in between does.
        if rootless {
            let again = pidfd.try_clone().doing(|| "keep the pidfd open".into())?;
            namespaces.in_between.push(joined(Type::User, again));
        }
        if has(Type::Pid) {
            // Nor could root of somebody else's user namespace (podman) come back from it.
            let list = if rootless || !is_root_of_the_machine() {
                &mut namespaces.in_between
            } else {
                &mut namespaces.by_parent
            };
            list.push(joined(Type::Pid, pidfd));
        }
        let chroot = if has(Type::Mount) { None } else { root };
        let chroot = chroot
            .map(|root| fd::inherited_above(root.as_fd(), 3))
            .transpose()
            .doing(|| "keep the container's root open".into())?;
        let cgroup = self.cgroup()?;
        let into = match &cgroup {
            Some(cgroup) => cgroup.dir_fd()?,
            None => None,
        };
        // From inside another user namespace nobody may be cloned into a v2 group, nor, by an ordinary user, from
        // outside of what that user's systemd has.
        let of_user = saved.unit.as_ref().is_some_and(Unit::is_of_user);
        let late = into.is_some() && (of_user || !namespaces.in_between.is_empty());
        let keyring = saved.session_keyring();
        let prepared = prepare(Inputs {
            process: self.process,
            env: &env,
            attached_late: late,
            join: (flags != 0).then(|| (inherited, u32::try_from(flags).unwrap_or(0))),
            root: chroot,
            user_namespace: has_user_namespace(saved),
            set_groups: !(rootless && user_map::groups_are_denied(init)),
            keyring: keyring.as_deref(),
            personality: saved.personality.as_ref(),
            memory_policy: saved.memory_policy.as_ref(),
            filter: filter.as_ref(),
            console,
            preserve_fds: self.preserve_fds,
        })?;
        let entrance = cgroup.as_ref().map(Cgroup::entrance).transpose()?;
        let program = self.process.args().iter().flatten().next();
        // The new process inherits it and is there before it enters the cgroup.
        let here = placement::initial_cpus(self.process)?
            .map(|cpus| OnCpus::move_to(&cpus))
            .transpose()?;
        let link = launch(
            &Launch {
                namespaces: &namespaces,
                cgroup: into.filter(|_| !late),
                // A cgroup that was asked for is that one or none.
                instead_of_divided: self.below.is_none().then_some(init),
                entrance: entrance.as_ref(),
                sibling,
                user_namespace: if rootless {
                    UserNamespace::Joined
                } else {
                    UserNamespace::Unchanged
                },
                stdio: self.stdio.as_ref(),
            },
            prepared,
        )?
        .for_program(program.cloned().unwrap_or_default());
        drop(here);
        Ok((link, cgroup.filter(|_| late)))
    }

    /// The container's cgroup, or the one below it that was asked for.
    fn cgroup(&self) -> Result<Option<Cgroup>> {
        let Some(below) = self.below else {
            return Ok(self.container.cgroup());
        };
        let own = self.container.cgroup().ok_or_else(|| {
            Error::Usage("--cgroup: the container has no cgroup of its own".into())
        })?;
        Ok(Some(own.below(below)?))
    }

    /// Moves the process, which waits for that, into its cgroup.
    fn enter(&self, cgroup: &Cgroup, pid: i32) -> Result<()> {
        let refused = match cgroup.attach(pid) {
            // Divided among children since: where init is now. Not when the cgroup was asked for.
            Err(error) if error.errno() == Some(libc::EBUSY) && self.below.is_none() => {
                let init = self.container.live_init()?;
                return Ok(Cgroup::of_process(&Hierarchies::detect()?, init)?.attach(pid)?);
            }
            Err(error) if matches!(error.errno(), Some(libc::EACCES | libc::EPERM)) => error,
            other => return Ok(other?),
        };
        match &self.container.saved.unit {
            Some(unit) if unit.is_of_user() && self.below.is_none() => unit::attach(unit, pid),
            Some(_) | None if !is_root_of_the_machine() => {
                // As runc: an ordinary user who comes from another session has no way in.
                log::warn!(
                    "exec: the process stays in the caller's cgroup: {}",
                    crate::error::chain(&refused)
                );
                Ok(())
            }
            Some(_) | None => Err(refused.into()),
        }
    }

    /// Registers the process, lets it go and waits until it has become the program.
    fn accompany(
        &self,
        context: &Context,
        link: &mut Link,
        late: Option<&Cgroup>,
        shim: Option<&Shim>,
        deadline: &Deadline,
    ) -> Result<()> {
        if let Some(cgroup) = late {
            self.enter(cgroup, link.pid)?;
            link.go()?;
        }
        if let Some(rdt) = &self.container.saved.intel_rdt {
            rdt.add(link.pid)?;
        }
        if let Some(value) = self.process.oom_score_adj() {
            super::create::set_oom_score(link.pid, value)?;
        }
        if let Some(shim) = shim {
            shim.announce(link.pid, link.pidfd.as_fd())?;
            let step = deadline.for_step("exec: waiting for the shim to register the process");
            shim.confirm(link.pid, &step)?;
        }
        link.go()?;
        let listener = self
            .container
            .saved
            .seccomp
            .as_ref()
            .and_then(|seccomp| seccomp.listener.clone());
        let step = deadline.for_step("exec: waiting for execve");
        loop {
            match link.next(&step)? {
                // Closed by execve, or by the end of a program that was very short.
                Said::Closed => return Ok(()),
                Said::Listener(fd) => send_listener(
                    context,
                    &self.container.saved.id,
                    listener.as_ref(),
                    link.pid,
                    &fd,
                )?,
                Said::Reached(Point::Cgroups | Point::Hooks | Point::Ready) => {}
            }
        }
    }
}

/// How much of a hook's output is kept.
const OUTPUT: usize = 16 << 10;

/// Runs `startContainer` hooks as processes of the container.
pub(super) fn run_start_container_hooks(
    context: &Context,
    container: &Container,
    hooks: &[Hook],
    state: &[u8],
) -> Result<()> {
    for (at, hook) in hooks.iter().enumerate() {
        run_inside(context, container, hook, state).map_err(|error| Error::Step {
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

fn run_inside(context: &Context, container: &Container, hook: &Hook, state: &[u8]) -> Result<()> {
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
