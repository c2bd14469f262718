//! `create`: everything up to the moment before the user's program runs.
//!
//! ```text
//! take the id ─> state.json ─> cgroup ─> plan ─> clone ─> register with the shim
//!   ─> maps, attach, limits (while init mounts) ─> hooks ─> init says ready ─> pid file
//! ```
//! Whatever fails after the id was taken is undone in reverse. A create that is *killed* leaves
//! `state.json` behind, which names all there is to remove; init notices the closed socket
//! and ends.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_cgroups::systemd::Unit;
use holdfast_cgroups::{Cgroup, CgroupPath, Driver, Hierarchies, When};
use holdfast_plan::Point;
use holdfast_record::deadline::limit_from_env;
use holdfast_record::{ContainerId, Deadline};
use holdfast_seccomp::ContainerProcessState;
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType as Type, LinuxResources};

use super::made::{self, Undo};
use super::unit::NewUnit;
use super::{Context, environment, rootless, state, unit};
use crate::bundle::{Bundle, cstring, is_new, namespace};
use crate::cause::{self, Operation};
use crate::error::{Doing, Error, Result};
use crate::gpu;
use crate::hooks::{HookNamespaces, HookStage, run_hooks};
use crate::launch::{Launch, launch};
use crate::link::Link;
use crate::net_devices;
use crate::own_stderr;
use crate::plan::create::{Inputs, has_create_hooks, prepare};
use crate::plan::filter::Filter;
use crate::plan::namespaces::{Namespaces, flag};
use crate::rdt;
use crate::registration::{Shim, tell_caller};
use crate::state::{Saved, SavedListener, StateDir};
use crate::sys::clone::UserNamespace;
use crate::sys::fd;
use crate::terminal;
use crate::user_map;

/// How long create may take without its hooks, which have deadlines of their own.
const LIMIT: Duration = Duration::from_secs(60);
/// Parent of cgroups whose path the specification leaves open.
pub(super) const DEFAULT_CGROUP_PARENT: &str = "/holdfast";

/// Options of `create` and `run`.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `--bundle`.
    pub bundle: PathBuf,
    /// `--console-socket`.
    pub console_socket: Option<PathBuf>,
    /// `--pidfd-socket`.
    pub pidfd_socket: Option<PathBuf>,
    /// `--pid-file`.
    pub pid_file: Option<PathBuf>,
    /// `--no-pivot`.
    pub no_pivot: bool,
    /// `--no-new-keyring`.
    pub no_new_keyring: bool,
    /// `--preserve-fds`: descriptors after those of `listen_fds`.
    pub preserve_fds: u32,
    /// Sockets that were passed to us by socket activation, from 3 on.
    pub listen_fds: u32,
}

/// Who takes the terminal's master.
#[derive(Debug)]
pub(super) enum Console {
    /// Nobody: the specification must not ask for a terminal.
    Detached,
    /// Us, over the given socket: `run` in the foreground.
    Foreground(OwnedFd),
}

/// A container that was created.
#[derive(Debug)]
pub(super) struct Created {
    pub(super) link: Link,
}

/// Creates a container; it waits for `start` afterwards.
///
/// # Errors
/// The step that failed. Nothing is left behind then, except what cannot be removed, which is
/// logged.
pub fn create(context: &Context, id: &ContainerId, options: &Options) -> Result<()> {
    let shim = Shim::from_environment()?;
    let made = Bundle::load(&options.bundle).and_then(|bundle| {
        create_with(
            context,
            id,
            options,
            bundle,
            Console::Detached,
            shim.as_ref(),
        )
    });
    if let (Err(error), Some(shim)) = (&made, &shim) {
        shim.failed(error, Operation::Create);
    }
    if let Err(error) = &made {
        cause::record(error, Operation::Create, id, &options.bundle);
    }
    made.map(drop)
}

pub(super) fn create_with(
    context: &Context,
    id: &ContainerId,
    options: &Options,
    bundle: Bundle,
    console: Console,
    shim: Option<&Shim>,
) -> Result<Created> {
    let bundle = gpu::prepare(&context.gpu, bundle)?;
    let console = console_socket(&bundle, options, console)?;
    let dir = StateDir::create(&context.root, id)?;
    let mut undo = Undo {
        dir: &dir,
        cgroup: None,
        unit: None,
        rdt: None,
    };
    let made = Creation {
        context,
        id,
        options,
        bundle: &bundle,
        dir: &dir,
        deadline: Deadline::named("create", LIMIT, "create"),
    }
    .run(console, shim, &mut undo);
    if made.is_err() {
        undo.all();
    }
    made
}

/// The console socket, connected, or the reason why there cannot be one.
pub(super) fn console_socket(
    bundle: &Bundle,
    options: &Options,
    console: Console,
) -> Result<Option<OwnedFd>> {
    let terminal = bundle.process()?.terminal().unwrap_or(false);
    match (terminal, &options.console_socket, console) {
        (true, Some(path), _) => terminal::connect(path).map(Some),
        (true, None, Console::Foreground(socket)) => Ok(Some(socket)),
        (true, None, Console::Detached) => Err(Error::Usage(
            "cannot allocate tty if runc will detach without setting console socket: \
             process.terminal is true, so --console-socket is needed"
                .into(),
        )),
        (false, Some(_), _) => Err(Error::Usage(
            "cannot use console socket if runc will not detach or allocate tty: \
             process.terminal is false"
                .into(),
        )),
        (false, None, _) => Ok(None),
    }
}

struct Creation<'a> {
    context: &'a Context,
    id: &'a ContainerId,
    options: &'a Options,
    bundle: &'a Bundle,
    dir: &'a StateDir,
    deadline: Deadline,
}

impl Creation<'_> {
    fn run(
        &self,
        console: Option<OwnedFd>,
        shim: Option<&Shim>,
        undo: &mut Undo<'_>,
    ) -> Result<Created> {
        let bundle = self.bundle;
        let linux = bundle.linux()?;
        let list = bundle.namespaces();
        let hierarchies = Hierarchies::detect()?;
        let spec = linux.cgroups_path().as_deref();
        let (unit, path) = self.cgroup_path(spec, &hierarchies)?;
        let resources = linux.resources().as_ref();
        let filter = linux
            .seccomp()
            .as_ref()
            .map(|profile| Filter::compile(profile, &self.context.seccomp_cache()))
            .transpose()?;
        // On disk before it is made: whoever finds us killed knows where to look.
        let intent = Cgroup::intent(&hierarchies, &path)?;
        let planned = Cgroup::from_saved(&intent);
        let mut saved = made::record(
            bundle,
            self.id,
            self.options,
            filter.as_ref(),
            intent,
            unit.clone(),
        )?;
        self.dir.save(&saved)?;
        let saved_keyring = saved.session_keyring();
        undo.rdt = saved.intel_rdt.clone();
        let devices = made::device_rules(resources);
        let entry = match &unit {
            None => match Cgroup::create(&hierarchies, &path, resources) {
                Ok(cgroup) => {
                    let cgroup = undo.cgroup.insert(cgroup);
                    made::save(self.dir, &mut saved, cgroup)?;
                    made::delegate(bundle, cgroup)?;
                    // Before anybody is inside: a rule set is not replaced in one piece on v1.
                    rootless::restrict(cgroup, &devices)?;
                    Entry::Directories(cgroup)
                }
                Err(error) => {
                    rootless::do_without_cgroup(error, spec, resources)?;
                    saved.cgroup = None;
                    self.dir.save(&saved)?;
                    Entry::Nowhere
                }
            },
            Some(unit) => Entry::Unit {
                new: NewUnit {
                    id: self.id,
                    unit,
                    hierarchies: &hierarchies,
                    resources,
                    devices: &devices,
                },
                saved: &mut saved,
                undo,
            },
        };
        let (into, entrance) = match &entry {
            Entry::Directories(cgroup) => (cgroup.dir_fd()?, Some(cgroup.entrance()?)),
            Entry::Unit { .. } | Entry::Nowhere => (None, None),
        };
        let pure_v2 = entrance
            .as_ref()
            .is_some_and(|entrance| entrance.fds().len() == 0);
        let namespaces = Namespaces::decide(
            list,
            pure_v2,
            linux.time_offsets().as_ref().is_some_and(|o| !o.is_empty()),
        )?;
        let env = self.environment()?;
        // From inside another user namespace nobody may be cloned into a v2 group.
        let attached_late = unit.is_some() || (into.is_some() && !namespaces.in_between.is_empty());
        let prepared = prepare(Inputs {
            bundle,
            keyring: saved_keyring.as_deref(),
            namespaces: &namespaces,
            hierarchies: &hierarchies,
            cgroup: match &entry {
                Entry::Directories(_) | Entry::Unit { .. } => Some(&planned),
                Entry::Nowhere => None,
            },
            attached_late,
            filter: filter.as_ref(),
            env: &env,
            gate: self.gate()?,
            console,
            preserve_fds: self
                .options
                .preserve_fds
                .saturating_add(self.options.listen_fds),
            no_pivot: self.options.no_pivot,
        })?;
        if let Some(filter) = &filter {
            self.dir.save_filter(&filter.program)?;
        }
        let stdio = own_stderr::for_container()?;
        let mut link = launch(
            &Launch {
                namespaces: &namespaces,
                cgroup: into,
                instead_of_divided: None,
                entrance: entrance.as_ref(),
                sibling: shim.is_some(),
                user_namespace: user_namespace(list),
                stdio: stdio.as_ref(),
            },
            prepared,
        )?
        .for_program(program(bundle)?);
        let limits = Limits {
            entry,
            resources,
            attach: attached_late,
        };
        match self.accompany(&mut link, shim, limits, filter.as_ref()) {
            Ok(()) => Ok(Created { link }),
            Err(error) => {
                let cause = link.last_words().unwrap_or(error);
                link.kill();
                Err(cause)
            }
        }
    }

    /// Where the container's cgroup is, and with the systemd driver the unit that it belongs to.
    fn cgroup_path(
        &self,
        spec: Option<&Path>,
        hierarchies: &Hierarchies,
    ) -> Result<(Option<Unit>, CgroupPath)> {
        let id = self.id.as_str();
        if self.context.systemd_cgroup {
            let unit = unit::unit(spec, id, hierarchies)?;
            let path = CgroupPath::of_unit(&unit);
            return Ok((Some(unit), path));
        }
        let path = CgroupPath::new(spec, Driver::Cgroupfs, DEFAULT_CGROUP_PARENT, id)?;
        Ok((None, path))
    }

    /// That of the specification, and what sockets that are handed in want (sd_listen_fds(3)).
    fn environment(&self) -> Result<Vec<String>> {
        let root = environment::open_root(&self.bundle.rootfs);
        let mut env = environment::complete(self.bundle.process()?, root.as_ref());
        if self.options.listen_fds > 0 {
            env.retain(|entry| {
                !entry.starts_with("LISTEN_FDS=") && !entry.starts_with("LISTEN_PID=")
            });
            // It is the first process of its pid namespace.
            env.push(format!("LISTEN_FDS={}", self.options.listen_fds));
            env.push("LISTEN_PID=1".into());
        }
        Ok(env)
    }

    /// Both ends of both fifos: opened for reading and writing, an open never blocks and a
    /// read never sees an end of file.
    fn gate(&self) -> Result<(OwnedFd, OwnedFd)> {
        let make = |path: PathBuf| -> Result<OwnedFd> {
            let doing = || format!("make {}", path.display());
            nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600))
                .doing(doing)?;
            fd::open_inherited(&cstring("--root", &path)?, libc::O_RDWR).doing(doing)
        };
        Ok((make(self.dir.start_fifo())?, make(self.dir.result_fifo())?))
    }

    /// The parent's part while init works.
    fn accompany(
        &self,
        link: &mut Link,
        shim: Option<&Shim>,
        limits: Limits<'_, '_>,
        filter: Option<&Filter>,
    ) -> Result<()> {
        if let Some(shim) = shim {
            shim.announce(link.pid, link.pidfd.as_fd())?;
        }
        self.dir.save_init(link.pid, link.pidfd.as_fd())?;
        // Before it changes its ids: then its files in /proc are no longer an ordinary user's.
        if let Some(value) = self.bundle.process()?.oom_score_adj() {
            set_oom_score(link.pid, value)?;
        }
        if is_new(self.bundle.namespaces(), Type::User) {
            user_map::write(self.bundle.linux()?, link.pid)?;
            link.go()?;
        }
        limits.impose(self, link)?;
        net_devices::hand_over(self.bundle, link.pid)?;
        rdt::apply(self.bundle.linux()?, self.id.as_str(), link.pid)?;
        if has_create_hooks(self.bundle) {
            let deadline = self.deadline.for_step("create: waiting for the mounts");
            link.reach(Point::Hooks, &deadline, unexpected_listener)?;
            if let Some(call) = &self.bundle.gpu {
                gpu::run(call, self.bundle, link)?;
            }
            self.hooks(link)?;
            link.go()?;
        }
        // It is recorded, so it may go on to the gate. Without this byte it ends with us: a
        // process that waits at the gate can always be found.
        link.go()?;
        let listener = filter.and_then(|filter| filter.saved.listener.clone());
        let deadline = self
            .deadline
            .for_step("create: waiting for the container to be ready");
        link.reach(Point::Ready, &deadline, |pid, fd| {
            send_listener(self.context, self.id, listener.as_ref(), pid, &fd)
        })?;
        let Options {
            pidfd_socket,
            pid_file,
            ..
        } = self.options;
        let pidfd = link.pidfd.as_fd();
        tell_caller(
            link.pid,
            pidfd,
            pidfd_socket.as_deref(),
            pid_file.as_deref(),
        )?;
        if let Some(shim) = shim {
            let deadline = self
                .deadline
                .for_step("create: waiting for the shim to register the process");
            shim.confirm(link.pid, &deadline)?;
        }
        Ok(())
    }

    fn hooks(&self, link: &Link) -> Result<()> {
        let Some(hooks) = self.bundle.spec.hooks() else {
            return Ok(());
        };
        let state = state::for_hooks(self.context, self.id, state::HookStatus::Creating)?;
        let stages = [
            (HookStage::Prestart, hooks.prestart()),
            (HookStage::CreateRuntime, hooks.create_runtime()),
        ];
        for (stage, list) in stages {
            let list = list.as_deref().unwrap_or_default();
            run_hooks(stage, list, &state, &self.bundle.path, None)?;
        }
        let list = hooks.create_container().as_deref().unwrap_or_default();
        let join = HookNamespaces {
            pidfd: link.pidfd.as_fd(),
            flags: i32::try_from(join_flags(self.bundle)).unwrap_or(0),
        };
        run_hooks(
            HookStage::CreateContainer,
            list,
            &state,
            &self.bundle.path,
            Some(&join),
        )?;
        Ok(())
    }
}

/// What the configuration wants of a user namespace.
fn user_namespace(list: &[LinuxNamespace]) -> UserNamespace {
    match namespace(list, Type::User).map(|user| user.path().is_some()) {
        None => UserNamespace::Unchanged,
        Some(false) => UserNamespace::New,
        Some(true) => UserNamespace::Joined,
    }
}

/// What to join to be where the container is.
fn join_flags(bundle: &Bundle) -> u64 {
    bundle
        .namespaces()
        .iter()
        .fold(0, |flags, namespace| flags | flag(namespace.typ()))
}

/// How the new process comes into its cgroup.
enum Entry<'a, 'u> {
    /// It stays in ours: an ordinary user could not make any.
    Nowhere,
    /// The directories are there, with the device rules.
    Directories(&'a Cgroup),
    /// systemd makes them when there is a process to put in.
    Unit {
        new: NewUnit<'a>,
        saved: &'a mut Saved,
        undo: &'a mut Undo<'u>,
    },
}

/// Control groups of the new process.
struct Limits<'a, 'u> {
    entry: Entry<'a, 'u>,
    resources: Option<&'a LinuxResources>,
    /// The process has to be moved in, and waits for that.
    attach: bool,
}

impl Limits<'_, '_> {
    /// Everything but the device rules, while init works; with systemd all of it.
    fn impose(self, creation: &Creation<'_>, link: &Link) -> Result<()> {
        let cgroup = match self.entry {
            Entry::Nowhere => return Ok(()),
            Entry::Directories(cgroup) => {
                if self.attach {
                    cgroup.attach(link.pid)?;
                }
                cgroup
            }
            Entry::Unit { new, saved, undo } => {
                new.start(link.pid)?;
                undo.unit = Some(new.unit.clone());
                let cgroup = undo.cgroup.insert(new.adopt(link.pid)?);
                made::save(creation.dir, saved, cgroup)?;
                made::delegate(creation.bundle, cgroup)?;
                new.restrict(cgroup)?;
                cgroup
            }
        };
        if let Some(resources) = self.resources {
            let mut limits = resources.clone();
            limits.set_devices(None);
            cgroup.apply(&limits, When::Create)?;
        }
        if self.attach {
            link.go()?;
        }
        Ok(())
    }
}

pub(super) fn set_oom_score(pid: i32, value: i32) -> Result<()> {
    let path = format!("/proc/{pid}/oom_score_adj");
    let written = std::fs::write(&path, value.to_string());
    if let Err(error) = &written
        && error.kind() == std::io::ErrorKind::PermissionDenied
        && !nix::unistd::geteuid().is_root()
    {
        // As runc: what an ordinary user may not have, the container goes without.
        log::warn!("process.oomScoreAdj {value} is not set: {error}");
        return Ok(());
    }
    written.doing(|| {
        format!(
            "set process.oomScoreAdj to {value} in {path} \
             (lowering it needs CAP_SYS_RESOURCE)"
        )
    })
}

fn program(bundle: &Bundle) -> Result<String> {
    let args = bundle.process()?.args();
    Ok(args.iter().flatten().next().cloned().unwrap_or_default())
}

fn unexpected_listener(_: i32, _: OwnedFd) -> Result<()> {
    Err(Error::Step {
        doing: "wait for the mounts".into(),
        detail: "a seccomp listener came before its time".into(),
        source: None,
    })
}

/// Hands the listener to the agent of `listenerPath`.
pub(super) fn send_listener(
    context: &Context,
    id: &ContainerId,
    listener: Option<&SavedListener>,
    pid: i32,
    fd: &OwnedFd,
) -> Result<()> {
    let Some(listener) = listener else {
        return Err(Error::spec(
            "linux.seccomp.listenerPath",
            "is needed when a rule's action is SCMP_ACT_NOTIFY",
        ));
    };
    let oci = state::oci_state(context, id)?;
    ContainerProcessState::new(pid, listener.metadata.clone(), oci)
        .send(
            Path::new(&listener.path),
            fd.as_fd(),
            limit_from_env("socket", Duration::from_secs(10)),
        )
        .map_err(|error| Error::Step {
            doing: "hand the seccomp listener over".into(),
            detail: crate::error::chain(&error),
            source: None,
        })
}

/// Whether an exec has to change its ids inside a user namespace.
pub(super) fn has_user_namespace(saved: &Saved) -> bool {
    saved.namespaces.contains(&Type::User)
}
