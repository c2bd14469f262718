//! `exec`: one more process in a running container.
//!
//! It joins every namespace of the container (the user namespace too), its cgroup, and gets
//! the container's seccomp filter and the labels of its own process document. Under a shim the
//! process is registered before it may execute anything.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use holdfast_cgroups::systemd::Unit;
use holdfast_cgroups::{Below, Cgroup, Hierarchies};
use holdfast_plan::Point;
use holdfast_record::{ContainerId, Deadline};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use oci_spec::runtime::{Capability, LinuxNamespaceType as Type, Process};

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
use crate::registration::{Shim, tell_caller};
use crate::state::{Container, Status};
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
        .and_then(|()| {
            let (socket, file) = (options.pidfd_socket.as_deref(), options.pid_file.as_deref());
            tell_caller(link.pid, link.pidfd.as_fd(), socket, file)
        });
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
pub(super) struct Execution<'a> {
    pub(super) container: &'a Container,
    pub(super) process: &'a Process,
    /// How many descriptors above standard error it inherits.
    pub(super) preserve_fds: u32,
    /// Where it goes instead of into the container's own cgroup.
    pub(super) below: Option<&'a Below>,
    /// Its streams; without, it has ours.
    pub(super) stdio: Option<[OwnedFd; 3]>,
}

impl Execution<'_> {
    /// The new process, and the cgroup that it still has to be moved into.
    pub(super) fn launch(
        &self,
        console: Option<OwnedFd>,
        sibling: bool,
    ) -> Result<(Link, Option<Cgroup>)> {
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
    pub(super) fn accompany(
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
