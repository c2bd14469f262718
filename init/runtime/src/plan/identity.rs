//! Who the process is, what it may do and what it runs: the end of every plan.

use std::collections::BTreeSet;
use std::ffi::CString;

use holdfast_plan::{List, Step, Words};
use libcontainer::capabilities::CapabilityExt;
use oci_spec::runtime::{
    Capabilities, IOPriorityClass, LinuxCapabilities, LinuxSchedulerFlag, LinuxSchedulerPolicy,
    PosixRlimitType, Process, Scheduler,
};

use super::Draft;
use super::filter::Filter;
use crate::bundle::cstring;
use crate::error::{Doing, Error, Result};
use crate::link::{EXECUTE, FIND_PROGRAM};
use crate::sys::probe;

/// `CAP_SYS_ADMIN`: what `seccomp(2)` wants from a process without no_new_privs.
const SYS_ADMIN: u64 = 1 << 21;

/// The resource numbers of `prlimit(2)` on x86_64 and arm64.
fn resource(typ: PosixRlimitType) -> u32 {
    use PosixRlimitType as R;
    match typ {
        R::RlimitCpu => libc::RLIMIT_CPU,
        R::RlimitFsize => libc::RLIMIT_FSIZE,
        R::RlimitData => libc::RLIMIT_DATA,
        R::RlimitStack => libc::RLIMIT_STACK,
        R::RlimitCore => libc::RLIMIT_CORE,
        R::RlimitRss => libc::RLIMIT_RSS,
        R::RlimitNproc => libc::RLIMIT_NPROC,
        R::RlimitNofile => libc::RLIMIT_NOFILE,
        R::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        R::RlimitAs => libc::RLIMIT_AS,
        R::RlimitLocks => libc::RLIMIT_LOCKS,
        R::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        R::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        R::RlimitNice => libc::RLIMIT_NICE,
        R::RlimitRtprio => libc::RLIMIT_RTPRIO,
        R::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}

fn mask(set: Option<&Capabilities>) -> u64 {
    set.into_iter().flatten().fold(0, |mask, capability| {
        mask | 1 << capability.to_cap().index()
    })
}

/// The five sets as masks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Sets {
    bounding: u64,
    effective: u64,
    permitted: u64,
    inheritable: u64,
    ambient: u64,
}

impl Sets {
    fn of(capabilities: Option<&LinuxCapabilities>) -> Self {
        let Some(sets) = capabilities else {
            return Self::default();
        };
        let permitted = mask(sets.permitted().as_ref());
        let inheritable = mask(sets.inheritable().as_ref());
        // The kernel raises only what is permitted and inheritable (capabilities(7)). Many
        // specifications, `runc spec` among them, list ambient capabilities without making
        // them inheritable, and mean nothing by it.
        let asked = mask(sets.ambient().as_ref());
        let ambient = asked & permitted & inheritable;
        if ambient != asked {
            log::debug!("ambient capabilities that are not inheritable are left out");
        }
        Self {
            bounding: mask(sets.bounding().as_ref()),
            effective: mask(sets.effective().as_ref()),
            permitted,
            inheritable,
            ambient,
        }
    }
}

impl Sets {
    /// Leaves out what this process itself has not: it cannot be granted. The runtime-spec
    /// (`config.md`, capabilities) wants a warning then and no failure: `docker run --privileged`
    /// asks for all there are, also on a node that is a container with fewer itself.
    fn limited_to(self, own: u64) -> Self {
        Self {
            bounding: self.bounding & own,
            effective: self.effective & own,
            permitted: self.permitted & own,
            inheritable: self.inheritable & own,
            ambient: self.ambient & own,
        }
    }
}

fn warn_of_missing(capabilities: Option<&LinuxCapabilities>, own: u64) {
    let Some(sets) = capabilities else { return };
    let asked = [sets.bounding(), sets.effective(), sets.permitted()];
    let missing: BTreeSet<String> = asked
        .into_iter()
        .flatten()
        .flatten()
        .map(CapabilityExt::to_cap)
        .filter(|capability| own & 1 << capability.index() == 0)
        .map(|capability| capability.to_string())
        .collect();
    if !missing.is_empty() {
        let missing: Vec<String> = missing.into_iter().collect();
        log::warn!(
            "process.capabilities: {} cannot be granted, holdfast does not have it itself",
            missing.join(", ")
        );
    }
}

/// Limits and scheduling: set while the process still may.
pub(super) fn limits(draft: &mut Draft, process: &Process) -> Result<()> {
    for limit in process.rlimits().iter().flatten() {
        draft.push(
            Step::Rlimit {
                resource: resource(limit.typ()),
                soft: limit.soft(),
                hard: limit.hard(),
            },
            format!(
                "set {} to {}:{} (raising a hard limit needs CAP_SYS_RESOURCE)",
                limit.typ(),
                limit.soft(),
                limit.hard()
            ),
        );
    }
    if let Some(scheduler) = process.scheduler() {
        draft.push(
            Step::Scheduler {
                attr: &scheduler_attr(scheduler),
            },
            "set the scheduler",
        );
    }
    if let Some(priority) = process.io_priority() {
        let class = match priority.class() {
            IOPriorityClass::IoprioClassRt => 1,
            IOPriorityClass::IoprioClassBe => 2,
            IOPriorityClass::IoprioClassIdle => 3,
        };
        let level = u32::try_from(priority.priority())
            .ok()
            .filter(|level| *level < 8)
            .ok_or_else(|| Error::spec("process.ioPriority.priority", "must be 0 to 7"))?;
        draft.push(
            Step::IoPriority {
                value: class << 13 | level,
            },
            "set the I/O priority",
        );
    }
    Ok(())
}

/// `struct sched_attr`, version 0 (48 bytes), sched_setattr(2).
fn scheduler_attr(scheduler: &Scheduler) -> Vec<u8> {
    let policy: u32 = match scheduler.policy() {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    };
    let flags = scheduler
        .flags()
        .iter()
        .flatten()
        .fold(0u64, |flags, flag| {
            flags
                | match flag {
                    LinuxSchedulerFlag::SchedResetOnFork => 0x01,
                    LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
                    LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
                    LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
                    LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
                    LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
                    LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
                }
        });
    let mut bytes = Vec::with_capacity(48);
    bytes.extend_from_slice(&48u32.to_ne_bytes());
    bytes.extend_from_slice(&policy.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&scheduler.nice().unwrap_or(0).to_ne_bytes());
    bytes.extend_from_slice(&scheduler.priority().unwrap_or(0).to_ne_bytes());
    for time in [
        scheduler.runtime(),
        scheduler.deadline(),
        scheduler.period(),
    ] {
        bytes.extend_from_slice(&time.unwrap_or(0).to_ne_bytes());
    }
    bytes
}

/// Groups cannot be asked for where nobody may set any.
pub(super) fn check_groups(process: &Process, set_groups: bool) -> Result<()> {
    let asked = process.user().additional_gids().iter().flatten().count();
    if set_groups || asked == 0 {
        return Ok(());
    }
    Err(Error::spec(
        "process.user.additionalGids",
        "cannot be set where an ordinary user maps only his own group (setgroups is denied)",
    ))
}

/// What comes between the limits and `execve`, in the only order that works:
///
/// ```text
/// cwd (as root, it may be made) → stdio → bounding set → ids → find the program
///   no_new_privs off: [raise CAP_SYS_ADMIN] → seccomp → capabilities
///   no_new_privs on:  capabilities → no_new_privs → seccomp
/// ```
/// Under the filter there is nothing left but capset, prctl, read, write and execve: a
/// profile that forbids more than that still starts.
pub(super) fn become_process(
    draft: &mut Draft,
    process: &Process,
    filter: Option<&Filter>,
    set_groups: bool,
    make_cwd: bool,
    own_user_namespace: bool,
) -> Result<()> {
    let user = process.user();
    let mut sets = Sets::of(process.capabilities().as_ref());
    // In a user namespace of its own the process has them all.
    if !own_user_namespace {
        let own = probe::permitted_capabilities().doing(|| "read our own capabilities".into())?;
        warn_of_missing(process.capabilities().as_ref(), own);
        sets = sets.limited_to(own);
    }
    draft.push(
        Step::Cwd {
            path: &cstring("process.cwd", process.cwd())?,
            create: make_cwd,
        },
        format!("enter the working directory {}", process.cwd().display()),
    );
    if !process.terminal().unwrap_or(false) {
        draft.push(
            Step::OwnStdio { uid: user.uid() },
            "own stdin, stdout and stderr",
        );
    }
    draft.push(
        Step::BoundingSet {
            keep: sets.bounding,
        },
        "reduce the capability bounding set",
    );
    let groups: Vec<u8> = user
        .additional_gids()
        .iter()
        .flatten()
        .flat_map(|gid| gid.to_ne_bytes())
        .collect();
    draft.push(
        Step::Identity {
            uid: user.uid(),
            gid: user.gid(),
            groups: Words::from_bytes(&groups)
                .map_err(|_| Error::spec("process.user.additionalGids", "is not a list of ids"))?,
            set_groups,
            umask: user.umask().unwrap_or(0o022),
        },
        format!("become uid {} gid {}", user.uid(), user.gid()),
    );
    find_program(draft, process)?;
    let no_new_privileges = process.no_new_privileges().unwrap_or(false);
    let capabilities = Step::Capabilities {
        effective: sets.effective,
        permitted: sets.permitted,
        inheritable: sets.inheritable,
        ambient: sets.ambient,
    };
    match filter {
        Some(filter) if !no_new_privileges => {
            if user.uid() != 0 {
                draft.push(
                    Step::Capabilities {
                        effective: sets.permitted | SYS_ADMIN,
                        permitted: sets.permitted | SYS_ADMIN,
                        inheritable: sets.inheritable,
                        ambient: 0,
                    },
                    "keep CAP_SYS_ADMIN until the seccomp filter is loaded",
                );
            }
            filter.push(draft);
            draft.push(capabilities, "set capabilities");
        }
        _ => {
            draft.push(capabilities, "set capabilities");
            if no_new_privileges {
                draft.push(Step::NoNewPrivileges {}, "set no_new_privs");
            }
            if let Some(filter) = filter {
                filter.push(draft);
            }
        }
    }
    Ok(())
}

fn find_program(draft: &mut Draft, process: &Process) -> Result<()> {
    let name = process
        .args()
        .iter()
        .flatten()
        .next()
        .map_or("", String::as_str);
    let path = process
        .env()
        .iter()
        .flatten()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .unwrap_or("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    draft.push(
        Step::FindProgram {
            name: &cstring("process.args[0]", name)?,
            path: &cstring("process.env PATH", path)?,
        },
        FIND_PROGRAM,
    );
    Ok(())
}

/// The last step.
pub(super) fn execute(draft: &mut Draft, process: &Process, env: &[String]) -> Result<()> {
    let args = strings("process.args", process.args().iter().flatten())?;
    let env = strings("process.env", env.iter())?;
    let unusable = |_| Error::spec("process", "holds strings that cannot be passed on");
    let args = List::from_bytes(&args.0, args.1).map_err(unusable)?;
    let env = List::from_bytes(&env.0, env.1).map_err(unusable)?;
    draft.push(Step::Exec { args, env }, EXECUTE);
    Ok(())
}

fn strings<'a>(field: &str, values: impl Iterator<Item = &'a String>) -> Result<(Vec<u8>, u32)> {
    let mut bytes = Vec::new();
    let mut count = 0;
    for value in values {
        let value: CString = cstring(field, value)?;
        bytes.extend_from_slice(value.as_bytes_with_nul());
        count += 1;
    }
    Ok((bytes, count))
}
