//! `restore`: a container from what a checkpoint wrote.
//!
//! ```text
//! take the id ─> state.json ─> cgroup ─> criu, in the cgroup ─> its processes, standing still
//!   ─> hooks ─> register with the shim ─> pid file ─> criu lets them run
//! ```
//! The init process is made by criu as a sibling of itself: as our child, or, under a shim, as the
//! shim's, like the one of create. What fails is undone as in create.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use holdfast_cgroups::{Cgroup, CgroupPath, Driver, Hierarchies, When};
use holdfast_record::{ContainerId, Deadline};
use oci_spec::runtime::LinuxNamespaceType as Type;

use super::create::{self, Console, DEFAULT_CGROUP_PARENT, console_socket};
use super::made::{self, Undo};
use super::unit::NewUnit;
use super::{Context, delete, rootless, run, state, unit};
use crate::bundle::{Bundle, cstring, namespace};
use crate::criu::message::{Kind, Message, Response, opt, request};
use crate::criu::request::{
    Common, DESCRIPTORS, Folders, ROOT_NETWORK, ROOT_PIDS, binds, common_opts,
};
use crate::criu::session::{Criu, Session, Setting};
use crate::criu::targets::make_targets;
use crate::error::{Doing, Error, Result};
use crate::hooks::{HookStage, run_hooks};
use crate::plan::filter::Filter;
use crate::rdt;
use crate::registration::{Shim, tell_caller};
use crate::state::StateDir;
use crate::sys::{clone, fd, signals};
use crate::terminal::{Proxy, console_pair};

/// How long a restore may take: all memory of the container is read.
const LIMIT: Duration = Duration::from_secs(300);

/// Options of `restore`.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Those that `checkpoint` has, too.
    pub common: Common,
    /// Those that `create` has, too.
    pub create: create::Options,
    /// `--detach`.
    pub detach: bool,
    /// `--lsm-profile` (`apparmor:NAME` or `selinux:LABEL`).
    pub lsm_profile: Option<String>,
    /// `--lsm-mount-context`.
    pub lsm_mount_context: Option<String>,
}

/// Restores a container; returns the exit code to end with, as `run` does.
///
/// # Errors
/// The step that failed; nothing is left behind then, except what cannot be removed, which is
/// logged.
pub fn restore(context: &Context, id: &ContainerId, options: &Options) -> Result<i32> {
    let shim = Shim::from_environment()?;
    let restored = restore_with(context, id, options, shim.as_ref());
    if let (Err(error), Some(shim)) = (&restored, &shim) {
        shim.failed(error, crate::cause::Operation::Create);
    }
    restored
}

fn restore_with(
    context: &Context,
    id: &ContainerId,
    options: &Options,
    shim: Option<&Shim>,
) -> Result<i32> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::Unsupported {
            what: "restore by an ordinary user (criu needs root)".into(),
        });
    }
    let criu = Criu::find(&context.criu)?;
    let bundle = Bundle::load(&options.create.bundle)?;
    let terminal = bundle.process()?.terminal().unwrap_or(false);
    let foreground = !options.detach && terminal && options.create.console_socket.is_none();
    let (console, ours) = if foreground {
        let (theirs, ours) = console_pair()?;
        (Console::Foreground(theirs), Some(ours))
    } else {
        (Console::Detached, None)
    };
    let console = console_socket(&bundle, &options.create, console)?;
    let folders = Folders::open(&options.common, false, "restore.log")?;
    let caught = if options.detach {
        None
    } else {
        Some(signals::all_as_descriptor().doing(|| "watch signals".into())?)
    };
    let dir = StateDir::create(&context.root, id)?;
    let mut undo = Undo {
        dir: &dir,
        cgroup: None,
        unit: None,
        rdt: None,
    };
    let mut restoration = Restoration {
        context,
        id,
        options,
        bundle: &bundle,
        dir: &dir,
        folders: &folders,
        shim,
        console,
        init: None,
    };
    if let Err(error) = restoration.run(&criu, &mut undo) {
        undo.all();
        return Err(error);
    }
    let (Some(caught), Some(init)) = (caught, restoration.init) else {
        return Ok(0);
    };
    let proxy = ours.as_ref().map(Proxy::take).transpose()?;
    let code = run::accompany(&init, &caught, proxy);
    let deleted = delete::delete(context, id, true);
    let code = code?;
    deleted.map(|()| code)
}

struct Restoration<'a> {
    context: &'a Context,
    id: &'a ContainerId,
    options: &'a Options,
    bundle: &'a Bundle,
    dir: &'a StateDir,
    folders: &'a Folders,
    shim: Option<&'a Shim>,
    console: Option<OwnedFd>,
    /// The restored init process.
    init: Option<OwnedFd>,
}

impl Restoration<'_> {
    fn run(&mut self, criu: &Criu, undo: &mut Undo<'_>) -> Result<()> {
        let bundle = self.bundle;
        let linux = bundle.linux()?;
        let deadline = Deadline::named("restore", LIMIT, "restore: waiting for criu");
        let hierarchies = Hierarchies::detect()?;
        let spec = linux.cgroups_path().as_deref();
        let (unit, path) = if self.context.systemd_cgroup {
            let unit = unit::unit(spec, self.id.as_str(), &hierarchies)?;
            let path = CgroupPath::of_unit(&unit);
            (Some(unit), path)
        } else {
            let id = self.id.as_str();
            let path = CgroupPath::new(spec, Driver::Cgroupfs, DEFAULT_CGROUP_PARENT, id)?;
            (None, path)
        };
        // criu restores the filters of the processes; this is the one for later execs.
        let filter = linux
            .seccomp()
            .as_ref()
            .map(|profile| Filter::compile(profile, &self.context.seccomp_cache()))
            .transpose()?;
        let intent = Cgroup::intent(&hierarchies, &path)?;
        let mut saved = made::record(
            bundle,
            self.id,
            &self.options.create,
            filter.as_ref(),
            intent,
            unit.clone(),
        )?;
        self.dir.save(&saved)?;
        undo.rdt = saved.intel_rdt.clone();
        if let Some(filter) = &filter {
            self.dir.save_filter(&filter.program)?;
        }
        make_targets(bundle)?;

        let namespaces = self.joined_namespaces()?;
        let session = criu.start(
            &Setting {
                keep: namespaces.iter().map(|(_, fd)| fd.as_fd()).collect(),
                sibling: self.shim.is_some(),
                root: Some(&bundle.rootfs),
            },
            &deadline,
        )?;
        // What it makes is where it is itself.
        let devices = made::device_rules(linux.resources().as_ref());
        let cgroup = match &unit {
            None => undo.cgroup.insert(Cgroup::create(
                &hierarchies,
                &path,
                linux.resources().as_ref(),
            )?),
            Some(unit) => {
                let new = NewUnit {
                    id: self.id,
                    unit,
                    hierarchies: &hierarchies,
                    resources: linux.resources().as_ref(),
                    devices: &devices,
                };
                new.start(session.pid())?;
                undo.unit = Some(unit.clone());
                undo.cgroup.insert(new.adopt(session.pid())?)
            }
        };
        made::save(self.dir, &mut saved, cgroup)?;
        made::delegate(bundle, cgroup)?;
        rootless::restrict(cgroup, &devices)?;
        if let Some(resources) = linux.resources() {
            let mut limits = resources.clone();
            limits.set_devices(None);
            cgroup.apply(&limits, When::Create)?;
        }
        if unit.is_none() {
            cgroup.attach(session.pid())?;
        }
        rdt::apply(linux, self.id.as_str(), session.pid())?;
        let opts = self.opts(&session, &namespaces, &hierarchies, cgroup)?;
        let answer = session.perform(
            &request(Kind::Restore, Some(&opts)),
            &deadline,
            &mut |notified, passed| self.notified(notified, passed, &deadline),
        )?;
        if !answer.success {
            let work = &self.folders.work;
            return Err(criu.failure("restore the container", Kind::Restore, &answer, work));
        }
        if self.init.is_none() {
            return Err(Error::Criu {
                doing: "restore the container".into(),
                text: "criu has not told which process it restored".into(),
            });
        }
        Ok(())
    }

    /// The network and pid namespaces that the container joins, under the names they have in the
    /// images, open over execve.
    fn joined_namespaces(&self) -> Result<Vec<(&'static str, OwnedFd)>> {
        let mut open = Vec::new();
        for (typ, key) in [(Type::Network, ROOT_NETWORK), (Type::Pid, ROOT_PIDS)] {
            let joined = namespace(self.bundle.namespaces(), typ).and_then(|n| n.path().as_ref());
            if let Some(path) = joined {
                let file = fd::open_inherited(
                    &cstring("linux.namespaces", path)?,
                    libc::O_RDONLY | libc::O_CLOEXEC,
                )
                .doing(|| format!("open the {typ} namespace {}", path.display()))?;
                open.push((key, file));
            }
        }
        Ok(open)
    }

    fn opts(
        &self,
        session: &Session,
        namespaces: &[(&'static str, OwnedFd)],
        hierarchies: &Hierarchies,
        cgroup: &Cgroup,
    ) -> Result<Message> {
        let bundle = self.bundle;
        let mut opts = common_opts(&self.options.common, self.folders, bundle);
        opts.flag(opt::EVASIVE_DEVICES, true)
            .flag(opt::RST_SIBLING, true)
            .text(opt::ROOT, bundle.rootfs.as_os_str().as_bytes());
        if let Some(profile) = &self.options.lsm_profile {
            opts.text(opt::LSM_PROFILE, profile);
        }
        if let Some(label) = &self.options.lsm_mount_context {
            opts.text(opt::LSM_MOUNT_CONTEXT, label);
        }
        for (key, fd) in namespaces {
            inherit(&mut opts, key, fd.as_raw_fd());
        }
        for (key, fd) in self.streams() {
            inherit(&mut opts, &key, fd);
        }
        for (target, source) in binds(bundle) {
            external(&mut opts, &target, &source);
        }
        if bundle
            .linux()?
            .masked_paths()
            .iter()
            .flatten()
            .next()
            .is_some()
        {
            external(&mut opts, Path::new("/dev/null"), Path::new("/dev/null"));
        }
        let path = format!("/proc/{}/cgroup", session.pid());
        let own = std::fs::read_to_string(&path).doing(|| format!("read {path}"))?;
        for (controller, path) in cgroup_roots(&own) {
            opts.pair(opt::CG_ROOT, controller, path);
        }
        self.cgroup_mounts(&mut opts, cgroup, hierarchies);
        Ok(opts)
    }

    /// Pipes that the container's first descriptors were: they get ours instead.
    fn streams(&self) -> Vec<(String, i32)> {
        let path = self.folders.images_path.join(DESCRIPTORS);
        let text = std::fs::read(&path).unwrap_or_default();
        // Without the file the images are of another runtime, and their streams what they are.
        let links: Vec<String> = serde_json::from_slice(&text).unwrap_or_default();
        links
            .into_iter()
            .zip(0_i32..3)
            .filter(|(link, _)| link.starts_with("pipe:"))
            .collect()
    }

    /// The bind mounts that a `cgroup` mount of the container is on v1, with what they are now.
    fn cgroup_mounts(&self, opts: &mut Message, cgroup: &Cgroup, hierarchies: &Hierarchies) {
        let mounts = self.bundle.spec.mounts().iter().flatten();
        let targets = mounts
            .filter(|mount| mount.typ().as_deref() == Some("cgroup"))
            .map(oci_spec::runtime::Mount::destination);
        for target in targets {
            for hierarchy in hierarchies.list().iter().filter(|h| !h.is_v2()) {
                let dir = cgroup
                    .directories()
                    .find(|dir| dir.starts_with(&hierarchy.mount_point));
                if let (Some(dir), Some(name)) = (dir, hierarchy.mount_point.file_name()) {
                    external(opts, &target.join(name), dir);
                }
            }
        }
    }

    fn notified(
        &mut self,
        notified: &Response,
        passed: Option<OwnedFd>,
        deadline: &Deadline,
    ) -> Result<()> {
        match notified.script.as_str() {
            "setup-namespaces" => self.hooks(notified.pid),
            "post-restore" => self.take_over(notified.pid, deadline),
            "orphan-pts-master" => self.send_terminal(passed),
            // Further moments, at which nothing is ours to do.
            _ => Ok(()),
        }
    }

    fn hooks(&self, pid: i32) -> Result<()> {
        let Some(hooks) = self.bundle.spec.hooks() else {
            return Ok(());
        };
        let state = state::for_restore_hooks(self.context, self.id, pid)?;
        for (stage, list) in [
            (HookStage::Prestart, hooks.prestart()),
            (HookStage::CreateRuntime, hooks.create_runtime()),
        ] {
            let list = list.as_deref().unwrap_or_default();
            run_hooks(stage, list, &state, &self.bundle.path, None)?;
        }
        Ok(())
    }

    /// The processes are there and stand still until criu gets its answer: register before run.
    fn take_over(&mut self, pid: i32, deadline: &Deadline) -> Result<()> {
        let pidfd = clone::open_pidfd(pid).doing(|| format!("open a pidfd of process {pid}"))?;
        self.dir.save_init(pid, pidfd.as_fd())?;
        if let Some(shim) = self.shim {
            shim.announce(pid, pidfd.as_fd())?;
            let step = deadline.for_step("restore: waiting for the shim to register the process");
            shim.confirm(pid, &step)?;
        }
        let options = &self.options.create;
        let (socket, file) = (&options.pidfd_socket, &options.pid_file);
        tell_caller(pid, pidfd.as_fd(), socket.as_deref(), file.as_deref())?;
        self.init = Some(pidfd);
        Ok(())
    }

    fn send_terminal(&self, master: Option<OwnedFd>) -> Result<()> {
        let (Some(master), Some(console)) = (master, &self.console) else {
            return Err(Error::Criu {
                doing: "hand the terminal over".into(),
                text: "the container had a terminal when it was checkpointed, and process.terminal is false now".into(),
            });
        };
        fd::send_fd(console.as_fd(), b"/dev/ptmx", master.as_fd())
            .doing(|| "hand the terminal over".into())
    }
}

fn inherit(opts: &mut Message, key: &str, fd: i32) {
    let mut inherited = Message::default();
    inherited.text(1, key).number(2, fd.into());
    opts.message(opt::INHERIT_FD, &inherited);
}

fn external(opts: &mut Message, name: &Path, source: &Path) {
    opts.pair(
        opt::EXT_MNT,
        name.as_os_str().as_bytes(),
        source.as_os_str().as_bytes(),
    );
}

/// What `/proc/PID/cgroup` says, controller by controller; cgroup v2 is the empty name.
fn cgroup_roots(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().flat_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next().unwrap_or(""), parts.next().unwrap_or("/"));
        controllers
            .split(',')
            .map(move |controller| (controller, path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_controller_has_its_root() {
        let text = "5:cpu,cpuacct:/box\n1:name=systemd:/a:b\n0::/two\n";
        let roots: Vec<_> = cgroup_roots(text).collect();
        let expected = [
            ("cpu", "/box"),
            ("cpuacct", "/box"),
            ("name=systemd", "/a:b"),
            ("", "/two"),
        ];
        assert_eq!(roots, expected);
    }
}
