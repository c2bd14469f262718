//! The plan of a container's init process.

use std::collections::BTreeMap;
use std::os::fd::{OwnedFd, RawFd};

use holdfast_cgroups::{Cgroup, Hierarchies};
use holdfast_plan::{Point, Step};
use oci_spec::runtime::{LinuxNamespaceType as Type, LinuxPersonality, LinuxPersonalityDomain};

use super::filter::Filter;
use super::mounts::{self, Cgroups};
use super::namespaces::{Namespaces, flag};
use super::{Draft, PlanImage, devices, identity, placement};
use crate::bundle::{Bundle, cstring, is_new, namespace};
use crate::error::{Error, Result};
use crate::user_map::denies_groups;

/// What the plan depends on beside the bundle.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// The bundle.
    pub bundle: &'a Bundle,
    /// The name of the session keyring, when it gets one of its own.
    pub keyring: Option<&'a str>,
    /// The namespaces as decided.
    pub namespaces: &'a Namespaces,
    /// The machine's hierarchies.
    pub hierarchies: &'a Hierarchies,
    /// The container's cgroup.
    pub cgroup: Option<&'a Cgroup>,
    /// The process is attached by the parent after the clone (v1), so init has to wait.
    pub attached_late: bool,
    /// The compiled filter.
    pub filter: Option<&'a Filter>,
    /// The environment, completed.
    pub env: &'a [String],
    /// The two fifos of the gate, open and inheritable.
    pub gate: (OwnedFd, OwnedFd),
    /// The console socket, inheritable.
    pub console: Option<OwnedFd>,
    /// `--preserve-fds`.
    pub preserve_fds: u32,
    /// `--no-pivot`.
    pub no_pivot: bool,
}

/// A plan together with what must stay open until the clone.
#[derive(Debug)]
pub struct Prepared {
    /// The plan.
    pub image: PlanImage,
    /// Descriptors the plan mentions.
    pub kept: Vec<OwnedFd>,
    /// The lowest number for further inherited descriptors.
    pub floor: RawFd,
}

/// Writes the plan.
///
/// # Errors
/// What the specification asks for and cannot have, with its field.
pub fn prepare(inputs: Inputs<'_>) -> Result<Prepared> {
    let bundle = inputs.bundle;
    let spec = &bundle.spec;
    let linux = bundle.linux()?;
    let process = bundle.process()?;
    let list = bundle.namespaces();
    let own_mounts = namespace(list, Type::Mount).is_some();
    let any_user = namespace(list, Type::User).is_some();
    let mut draft = Draft::new(inputs.preserve_fds)?;

    // Others see it from the start in a pid namespace that is not its own (CVE-2016-9962).
    let seen = !is_new(list, Type::Pid);
    let protect = |draft: &mut Draft| {
        draft.push(Step::NonDumpable {}, "protect itself from being traced");
    };
    if seen && !any_user {
        protect(&mut draft);
    }
    join(&mut draft, inputs.namespaces)?;
    if inputs.namespaces.unshare_time {
        let offsets = time_offsets(linux);
        draft.push(
            Step::TimeNamespace {
                offsets: offsets.as_bytes(),
            },
            format!(
                "make the time namespace with the offsets {:?}",
                offsets.trim_end()
            ),
        );
    }
    draft.push(Step::NewSession {}, "start a session");
    if let Some(name) = inputs.keyring {
        keyring(&mut draft, name)?;
    }
    names(&mut draft, bundle)?;
    labels(
        &mut draft,
        process.apparmor_profile().as_deref(),
        process.selinux_label().as_deref(),
    )?;
    personality(&mut draft, linux.personality().as_ref());
    // Sorted: the order of a JSON object is nobody's intent, and a plan should not vary.
    let sysctls: BTreeMap<_, _> = linux.sysctl().iter().flatten().collect();
    for (name, value) in sysctls {
        let path = cstring("linux.sysctl", format!("sys/{}", name.replace('.', "/")))?;
        draft.push(
            Step::WriteProc {
                path: &path,
                value: value.as_bytes(),
            },
            format!("set the sysctl {name} to {value:?}"),
        );
    }

    // In a user namespace not earlier: it would not own its files in /proc any more, and could
    // not write the ones above.
    if seen && any_user {
        protect(&mut draft);
    }

    let propagation = mounts::root_propagation(linux.rootfs_propagation().as_deref())?;
    if own_mounts {
        mounts::root(&mut draft, bundle, propagation)?;
    } else {
        use_root(&mut draft, bundle)?;
    }
    if inputs.attached_late {
        wait(&mut draft, Point::Cgroups, false);
    }
    if inputs.namespaces.unshare_cgroup {
        draft.push(
            Step::Unshare {
                flags: u32::try_from(flag(Type::Cgroup)).unwrap_or(0),
            },
            "make the cgroup namespace",
        );
    }
    if own_mounts {
        let cgroups = Cgroups {
            hierarchies: inputs.hierarchies,
            cgroup: inputs.cgroup,
            namespace: namespace(list, Type::Cgroup).is_some(),
        };
        mounts::all(&mut draft, bundle, &cgroups)?;
        devices::push(&mut draft, bundle, any_user)?;
    } else if spec.mounts().as_ref().is_some_and(|m| !m.is_empty()) {
        return Err(Error::spec("mounts", "need a mount namespace"));
    }
    if let Some(socket) = inputs.console {
        console(&mut draft, process, socket, own_mounts)?;
    }
    if has_create_hooks(bundle) {
        wait(&mut draft, Point::Hooks, true);
    }
    if own_mounts {
        finish_root(&mut draft, bundle, propagation, inputs.no_pivot)?;
    } else {
        draft.push(Step::Chroot {}, "change the root");
    }

    placement::memory_policy(&mut draft, linux.memory_policy().as_ref())?;
    identity::limits(&mut draft, process)?;
    let set_groups = !denies_groups(linux);
    identity::check_groups(process, set_groups)?;
    identity::become_process(
        &mut draft,
        process,
        inputs.filter,
        set_groups,
        true,
        any_user,
    )?;
    wait(&mut draft, Point::Ready, true);
    let (start, result) = inputs.gate;
    let (start, result) = (draft.keep(start)?, draft.keep(result)?);
    draft.push(Step::Gate { start, result }, "wait for start");
    identity::execute(&mut draft, process, inputs.env)?;
    let floor = draft.floor();
    let (image, kept) = draft.finish()?;
    Ok(Prepared { image, kept, floor })
}

/// Whether hooks, or the GPU stage's program, run between mounts and pivot.
pub fn has_create_hooks(bundle: &Bundle) -> bool {
    if bundle.gpu.is_some() {
        return true;
    }
    // `prestart` is deprecated, and still what the NVIDIA container toolkit's hook is.
    bundle.spec.hooks().as_ref().is_some_and(|hooks| {
        [
            hooks.prestart(),
            hooks.create_runtime(),
            hooks.create_container(),
        ]
        .into_iter()
        .any(|list| list.as_ref().is_some_and(|list| !list.is_empty()))
    })
}

/// The container's own session keyring, by its name: init makes it, an exec joins it, and neither
/// keeps that of whoever called us.
pub(super) fn keyring(draft: &mut Draft, name: &str) -> Result<()> {
    let name = cstring("id", name)?;
    draft.push(Step::JoinKeyring { name: &name }, "join a session keyring");
    Ok(())
}

pub(super) fn personality(draft: &mut Draft, personality: Option<&LinuxPersonality>) {
    let Some(personality) = personality else {
        return;
    };
    let persona = match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    };
    draft.push(Step::Personality { persona }, "set the personality");
}

pub(super) fn wait(draft: &mut Draft, point: Point, announce: bool) {
    let label = match point {
        Point::Cgroups => "wait for the cgroups",
        Point::Hooks => "wait for the hooks",
        Point::Ready => "wait for the go-ahead",
    };
    draft.push(
        Step::Await {
            point,
            announce,
            wait: true,
        },
        label,
    );
}

fn join(draft: &mut Draft, namespaces: &Namespaces) -> Result<()> {
    use std::os::fd::AsFd;
    for joined in &namespaces.by_init {
        let fd = crate::sys::fd::inherited_above(joined.fd.as_fd(), draft.floor()).map_err(
            |source| Error::Io {
                doing: format!("keep the namespace {} open", joined.path),
                source,
            },
        )?;
        let fd = draft.keep(fd)?;
        draft.push(
            Step::Join {
                fd,
                flags: u32::try_from(flag(joined.typ)).unwrap_or(0),
            },
            format!("join the {} namespace {}", joined.typ, joined.path),
        );
    }
    Ok(())
}

/// `linux.timeOffsets` as time_namespaces(7) wants it written; the bundle has checked the clocks.
fn time_offsets(linux: &oci_spec::runtime::Linux) -> String {
    let sorted: BTreeMap<_, _> = linux.time_offsets().iter().flatten().collect();
    sorted
        .into_iter()
        .map(|(clock, offset)| {
            let seconds = offset.secs().unwrap_or(0);
            let nanoseconds = offset.nanosecs().unwrap_or(0);
            format!("{clock} {seconds} {nanoseconds}\n")
        })
        .collect()
}

fn names(draft: &mut Draft, bundle: &Bundle) -> Result<()> {
    if let Some(name) = bundle.spec.hostname() {
        draft.push(
            Step::Hostname {
                name: &cstring("hostname", name)?,
            },
            format!("set the hostname {name:?}"),
        );
    }
    if let Some(name) = bundle.spec.domainname() {
        draft.push(
            Step::Domainname {
                name: &cstring("domainname", name)?,
            },
            format!("set the domainname {name:?}"),
        );
    }
    Ok(())
}

/// The labels that take effect at execve. They are written through the host's procfs, which
/// no container can have prepared.
pub(super) fn labels(
    draft: &mut Draft,
    apparmor: Option<&str>,
    selinux: Option<&str>,
) -> Result<()> {
    if let Some(profile) = apparmor.filter(|profile| !profile.is_empty()) {
        if !libcontainer::apparmor::is_enabled().unwrap_or(false) {
            return Err(Error::spec(
                "process.apparmorProfile",
                format!("{profile:?} cannot be applied: AppArmor is not enabled in this kernel"),
            ));
        }
        let value = format!("exec {profile}");
        draft.push(
            Step::WriteProc {
                path: c"self/attr/apparmor/exec",
                value: value.as_bytes(),
            },
            format!("set the AppArmor profile {profile}"),
        );
    }
    if let Some(label) = selinux.filter(|label| !label.is_empty()) {
        if !crate::bundle::selinux_enabled() {
            return Err(Error::spec(
                "process.selinuxLabel",
                format!("{label:?} cannot be applied: SELinux is not enabled in this kernel"),
            ));
        }
        draft.push(
            Step::WriteProc {
                path: c"self/attr/exec",
                value: label.as_bytes(),
            },
            format!("set the SELinux label {label}"),
        );
    }
    Ok(())
}

fn use_root(draft: &mut Draft, bundle: &Bundle) -> Result<()> {
    let path = cstring("root.path", &bundle.rootfs)?;
    let root = crate::sys::fd::open_inherited(&path, libc::O_PATH | libc::O_DIRECTORY).map_err(
        |source| Error::Io {
            doing: format!("open the root file system {}", bundle.rootfs.display()),
            source,
        },
    )?;
    let fd = draft.keep(root)?;
    draft.push(Step::UseRoot { fd }, "use the root file system");
    Ok(())
}

pub(super) fn console(
    draft: &mut Draft,
    process: &oci_spec::runtime::Process,
    socket: OwnedFd,
    bind: bool,
) -> Result<()> {
    let side = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let (rows, columns) = process
        .console_size()
        .as_ref()
        .map_or((0, 0), |size| (side(size.height()), side(size.width())));
    let socket = draft.keep(socket)?;
    draft.push(
        Step::Console {
            socket,
            rows,
            columns,
            bind,
            uid: process.user().uid(),
        },
        "set up the terminal",
    );
    Ok(())
}

fn finish_root(draft: &mut Draft, bundle: &Bundle, propagation: u64, no_pivot: bool) -> Result<()> {
    mounts::readonly_dev(draft, bundle)?;
    mounts::covers(draft, bundle)?;
    // Make the working directory now: a read-only root could not take it later.
    let process = bundle.process()?;
    if bundle.spec.root().as_ref().and_then(|root| root.readonly()) == Some(true) {
        draft.push(
            Step::Mkdir {
                path: &cstring("process.cwd", crate::bundle::clean(process.cwd()))?,
                mode: 0o755,
            },
            format!("make the working directory {}", process.cwd().display()),
        );
        draft.push(Step::ReadonlyRoot {}, "make the root read-only");
    }
    if no_pivot {
        draft.push(Step::MoveRoot {}, "move the root to /");
    } else {
        draft.push(
            Step::PivotRoot {
                shared: propagation & libc::MS_SHARED != 0,
            },
            "pivot to the root file system",
        );
    }
    if propagation != 0 {
        draft.push(
            Step::Propagation { flags: propagation },
            "set the propagation of the root",
        );
    }
    Ok(())
}
