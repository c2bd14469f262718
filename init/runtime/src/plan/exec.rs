//! The plan of an additional process in a running container.

use std::os::fd::OwnedFd;

use holdfast_plan::{Point, Step};
use oci_spec::runtime::{LinuxMemoryPolicy, LinuxPersonality, Process};

use super::create::{Prepared, console, keyring, labels, personality, wait};
use super::filter::Filter;
use super::{Draft, identity, placement};
use crate::error::Result;

/// What the plan depends on.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// The process.
    pub process: &'a Process,
    /// Its environment, completed.
    pub env: &'a [String],
    /// The process is moved into its cgroup by the parent, so it has to wait.
    pub attached_late: bool,
    /// The container's init process, and which of its namespaces to join.
    pub join: Option<(OwnedFd, u32)>,
    /// The root directory of init, for a container without a mount namespace.
    pub root: Option<OwnedFd>,
    /// The container has a user namespace of its own.
    pub user_namespace: bool,
    /// setgroups(2) is allowed in there.
    pub set_groups: bool,
    /// The name of the container's session keyring, when it has one of its own.
    pub keyring: Option<&'a str>,
    /// The container's personality.
    pub personality: Option<&'a LinuxPersonality>,
    /// The container's memory policy.
    pub memory_policy: Option<&'a LinuxMemoryPolicy>,
    /// The container's filter.
    pub filter: Option<&'a Filter>,
    /// The console socket, inheritable.
    pub console: Option<OwnedFd>,
    /// `--preserve-fds`.
    pub preserve_fds: u32,
}

/// Writes the plan.
///
/// # Errors
/// What the process asks for and cannot have.
pub fn prepare(inputs: Inputs<'_>) -> Result<Prepared> {
    let process = inputs.process;
    let mut draft = Draft::new(inputs.preserve_fds)?;
    // It is in the container's pid namespace already: those in there must not find in its
    // /proc/PID/fd what it opens of the host (CVE-2016-9962, CVE-2024-21626).
    draft.push(Step::NonDumpable {}, "protect itself from being traced");
    if inputs.attached_late {
        // At first, while it still has the user that may be moved.
        wait(&mut draft, Point::Cgroups, false);
    }
    placement::final_cpus(&mut draft, process)?;
    // Before joining: the labels go through the host's procfs.
    labels(
        &mut draft,
        process.apparmor_profile().as_deref(),
        process.selinux_label().as_deref(),
    )?;
    if let Some((pidfd, flags)) = inputs.join {
        let fd = draft.keep(pidfd)?;
        draft.push(Step::Join { fd, flags }, "join the container's namespaces");
    }
    if let Some(root) = inputs.root {
        let fd = draft.keep(root)?;
        draft.push(Step::UseRoot { fd }, "use the container's root");
        draft.push(Step::Chroot {}, "change into the container's root");
    }
    if inputs.user_namespace {
        draft.push(Step::BecomeRoot {}, "become root of the user namespace");
    }
    draft.push(Step::NewSession {}, "start a session");
    if let Some(name) = inputs.keyring {
        keyring(&mut draft, name)?;
    }
    personality(&mut draft, inputs.personality);
    if let Some(socket) = inputs.console {
        console(&mut draft, process, socket, false)?;
    }
    placement::memory_policy(&mut draft, inputs.memory_policy)?;
    identity::limits(&mut draft, process)?;
    identity::check_groups(process, inputs.set_groups)?;
    identity::become_process(
        &mut draft,
        process,
        inputs.filter,
        inputs.set_groups,
        false,
        inputs.user_namespace,
    )?;
    wait(&mut draft, Point::Ready, false);
    identity::execute(&mut draft, process, inputs.env)?;
    let floor = draft.floor();
    let (image, kept) = draft.finish()?;
    Ok(Prepared { image, kept, floor })
}
