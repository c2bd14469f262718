//! What the process may do: ids, capabilities, and the filter of its system calls.

use linux_raw_sys::general as k;
use linux_raw_sys::prctl as pr;

use super::call::{Call, at, call, fd};

pub(super) fn prctl(option: u32, a: usize, b: usize) -> Call<usize> {
    call(k::__NR_prctl, [option as usize, a, b, 0, 0, 0])
}

pub(crate) fn non_dumpable() -> Call<()> {
    prctl(pr::PR_SET_DUMPABLE, 0, 0).map(drop)
}

pub(crate) fn keep_capabilities() -> Call<()> {
    prctl(pr::PR_SET_KEEPCAPS, 1, 0).map(drop)
}

pub(crate) fn no_new_privileges() -> Call<()> {
    prctl(pr::PR_SET_NO_NEW_PRIVS, 1, 0).map(drop)
}

/// Drops one capability from the bounding set; EINVAL past the last one.
pub(crate) fn drop_bounding(capability: u32) -> Call<()> {
    prctl(pr::PR_CAPBSET_DROP, capability as usize, 0).map(drop)
}

pub(crate) fn clear_ambient() -> Call<()> {
    prctl(pr::PR_CAP_AMBIENT, pr::PR_CAP_AMBIENT_CLEAR_ALL as usize, 0).map(drop)
}

pub(crate) fn raise_ambient(capability: u32) -> Call<()> {
    prctl(
        pr::PR_CAP_AMBIENT,
        pr::PR_CAP_AMBIENT_RAISE as usize,
        capability as usize,
    )
    .map(drop)
}

/// `capset` of this thread with version 3 (64 capabilities).
pub(crate) fn capset(effective: u64, permitted: u64, inheritable: u64) -> Call<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    #[expect(clippy::cast_possible_truncation, reason = "the ABI asks for halves")]
    let half = |set: u64, high: bool| if high { (set >> 32) as u32 } else { set as u32 };
    let data = [
        half(effective, false),
        half(permitted, false),
        half(inheritable, false),
        half(effective, true),
        half(permitted, true),
        half(inheritable, true),
    ];
    call(k::__NR_capset, [at(&header), at(&data), 0, 0, 0, 0]).map(drop)
}

/// `setgroups` with little-endian 32-bit ids.
pub(crate) fn setgroups(ids: &[u8]) -> Call<()> {
    call(
        k::__NR_setgroups,
        [ids.len() / 4, ids.as_ptr() as usize, 0, 0, 0, 0],
    )
    .map(drop)
}

pub(crate) fn setresgid(gid: u32) -> Call<()> {
    let gid = gid as usize;
    call(k::__NR_setresgid, [gid, gid, gid, 0, 0, 0]).map(drop)
}

pub(crate) fn setresuid(uid: u32) -> Call<()> {
    let uid = uid as usize;
    call(k::__NR_setresuid, [uid, uid, uid, 0, 0, 0]).map(drop)
}

/// `seccomp(SECCOMP_SET_MODE_FILTER)`; returns the listener with `SECCOMP_FILTER_FLAG_NEW_LISTENER`.
pub(crate) fn seccomp(program: &[u8], flags: u32) -> Call<i32> {
    const SECCOMP_SET_MODE_FILTER: usize = 1;
    #[repr(C)]
    struct Program {
        len: u16,
        filter: *const u8,
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the library refuses programs over 4096 instructions (BPF_MAXINSNS)"
    )]
    let program = Program {
        len: (program.len() / 8) as u16,
        filter: program.as_ptr(),
    };
    call(
        k::__NR_seccomp,
        [
            SECCOMP_SET_MODE_FILTER,
            flags as usize,
            at(&program),
            0,
            0,
            0,
        ],
    )
    .map(fd)
}
