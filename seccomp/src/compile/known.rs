//! Which system calls a profile's author knew: what is newer is answered with ENOSYS (the stub).

use std::collections::BTreeSet;

use libseccomp::{ScmpArch, ScmpSyscall};
use oci_spec::runtime::Arch;

use super::words::{audit_arch, scmp_arch};
use crate::profile::{Action, Profile};
use crate::stub::{AUDIT_ARCH_X86_64, Known};

/// Whether a syscall newer than the profile would get an answer that says something else.
pub(super) const fn needs_stub(default: Action) -> bool {
    match default {
        Action::Allow | Action::Log | Action::Trace(_) => false,
        Action::Errno(errno) => errno as i32 != libc::ENOSYS,
        Action::KillProcess | Action::KillThread | Action::Trap | Action::Notify => true,
    }
}

/// The largest number that the profile names, per audit architecture.
///
/// Every name counts, whatever its rule says: a rule that repeats the default action shows that
/// the author knew the syscall.
pub(super) fn known(profile: &Profile<'_>) -> Vec<Known> {
    let names: BTreeSet<&str> = profile
        .rules()
        .iter()
        .flat_map(|rule| rule.names)
        .map(String::as_str)
        .collect();
    let has_x32 = profile.architectures().contains(&Arch::ScmpArchX32);
    profile
        .architectures()
        .iter()
        .filter(|&&arch| arch != Arch::ScmpArchX32)
        .map(|&arch| {
            let audit_arch = audit_arch(arch);
            Known {
                audit_arch,
                largest: largest(&names, scmp_arch(arch)),
                largest_x32: (has_x32 && audit_arch == AUDIT_ARCH_X86_64)
                    .then(|| largest(&names, ScmpArch::X32))
                    .flatten(),
            }
        })
        .collect()
}

fn largest(names: &BTreeSet<&str>, arch: ScmpArch) -> Option<u32> {
    /// libseccomp's numbers for the calls behind socketcall(2) and ipc(2).
    const MULTIPLEXED: std::ops::RangeInclusive<i32> = -299..=-100;
    /// Above the tables of all architectures that multiplex.
    const TABLE_END: u32 = 1024;

    let mut largest = None;
    let mut multiplexed = false;
    for name in names {
        let Ok(syscall) = ScmpSyscall::from_name_by_arch(name, arch) else {
            continue;
        };
        let number = syscall.as_raw_syscall();
        multiplexed |= MULTIPLEXED.contains(&number);
        if let Ok(number) = u32::try_from(number) {
            largest = largest.max(Some(number));
        }
    }
    if multiplexed {
        // Such a name has a number of its own too (socket on x86: 359), which libseccomp puts into
        // the filter but does not tell by name, only the other way round.
        let above = largest.map_or(0, |number| number + 1);
        for number in above..TABLE_END {
            let named = i32::try_from(number)
                .ok()
                .and_then(|number| ScmpSyscall::from(number).get_name_by_arch(arch).ok());
            if named.is_some_and(|name| names.contains(name.as_str())) {
                largest = Some(number);
            }
        }
    }
    largest
}
