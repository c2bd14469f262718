//! Architectures and load flags.

use oci_spec::runtime::{Arch, LinuxSeccompFilterFlag};

use crate::program::LoadFlags;

pub(super) fn architectures(listed: &[Arch]) -> Vec<Arch> {
    let mut all = vec![NATIVE];
    for &arch in listed {
        if arch != Arch::ScmpArchNative && !all.contains(&arch) {
            all.push(arch);
        }
    }
    all
}

pub(super) fn flags(listed: Option<&[LinuxSeccompFilterFlag]>, notifies: bool) -> LoadFlags {
    let mut flags = if notifies {
        LoadFlags::NEW_LISTENER
    } else {
        LoadFlags::NONE
    };
    let Some(listed) = listed else {
        return flags.with(LoadFlags::SPEC_ALLOW);
    };
    for flag in listed {
        flags = flags.with(match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => LoadFlags::LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => LoadFlags::SPEC_ALLOW,
            // The kernel cannot return a listener and a thread id in one number.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync if notifies => {
                LoadFlags::TSYNC.with(LoadFlags::TSYNC_ESRCH)
            }
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => LoadFlags::TSYNC,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv if notifies => {
                LoadFlags::WAIT_KILLABLE_RECV
            }
            // Says how to wait for an answer; without questions the kernel refuses it (EINVAL).
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => LoadFlags::NONE,
        });
    }
    flags
}

/// The architecture this program is built for, as OCI names it.
pub(crate) const NATIVE: Arch = {
    #[cfg(target_arch = "x86_64")]
    {
        Arch::ScmpArchX86_64
    }
    #[cfg(target_arch = "x86")]
    {
        Arch::ScmpArchX86
    }
    #[cfg(target_arch = "aarch64")]
    {
        Arch::ScmpArchAarch64
    }
    #[cfg(target_arch = "arm")]
    {
        Arch::ScmpArchArm
    }
    #[cfg(target_arch = "riscv64")]
    {
        Arch::ScmpArchRiscv64
    }
    #[cfg(target_arch = "loongarch64")]
    {
        Arch::ScmpArchLoongarch64
    }
    #[cfg(target_arch = "s390x")]
    {
        Arch::ScmpArchS390x
    }
    #[cfg(all(target_arch = "powerpc64", target_endian = "little"))]
    {
        Arch::ScmpArchPpc64le
    }
    #[cfg(all(target_arch = "powerpc64", target_endian = "big"))]
    {
        Arch::ScmpArchPpc64
    }
};
