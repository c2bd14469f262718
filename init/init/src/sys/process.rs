//! The process: its memory, its program, its namespaces, and how the kernel treats it.

use core::ffi::CStr;

use linux_raw_sys::general as k;
use linux_raw_sys::prctl as pr;

use super::call::{Call, Errno, at, call, reg, text};
use super::privileges::prctl;

/// Ends the process.
pub(crate) fn exit(code: i32) -> ! {
    loop {
        let _ = call(k::__NR_exit_group, [reg(code), 0, 0, 0, 0, 0]);
    }
}

/// Maps the plan's file, private and writable (the scratch area is written to).
pub(crate) fn map_plan(plan: i32) -> Call<&'static mut [u8]> {
    const SEEK_END: usize = 2;
    let len = call(k::__NR_lseek, [reg(plan), 0, SEEK_END, 0, 0, 0])?;
    let prot = (k::PROT_READ | k::PROT_WRITE) as usize;
    let base = call(
        k::__NR_mmap,
        [0, len, prot, k::MAP_PRIVATE as usize, reg(plan), 0],
    )?;
    // SAFETY: a fresh private mapping of `len` bytes that is never unmapped; the file is a
    // sealed memfd, so it cannot shrink under the mapping. It is handed out once.
    Ok(unsafe { core::slice::from_raw_parts_mut(base as *mut u8, len) })
}

/// Writes pointers to the strings, and a NULL, to the scratch area; returns its address and
/// the number of entries.
pub(crate) fn pointers<'a>(area: usize, strings: impl Iterator<Item = &'a CStr>) -> (usize, usize) {
    let mut count = 0;
    for string in strings {
        // SAFETY: the plan's builder reserved one pointer per string of Step::Exec plus two,
        // behind the steps; `area` is 8-aligned and inside the private mapping.
        unsafe { (area as *mut usize).add(count).write(text(string)) };
        count += 1;
    }
    // SAFETY: as above, this is one of the two extra entries.
    unsafe { (area as *mut usize).add(count).write(0) };
    (area, count + 1)
}

/// `execve` with pointer arrays made by [`pointers`]; returns only on failure.
pub(crate) fn execve(program: &CStr, argv: usize, envp: usize) -> Errno {
    match call(k::__NR_execve, [text(program), argv, envp, 0, 0, 0]) {
        Ok(_) => Errno(0),
        Err(errno) => errno,
    }
}

pub(crate) fn setns(file: i32, flags: u32) -> Call<()> {
    call(k::__NR_setns, [reg(file), flags as usize, 0, 0, 0, 0]).map(drop)
}

pub(crate) fn unshare(flags: u32) -> Call<()> {
    call(k::__NR_unshare, [flags as usize, 0, 0, 0, 0, 0]).map(drop)
}

pub(crate) fn setsid() -> Call<()> {
    call(k::__NR_setsid, [0; 6]).map(drop)
}

pub(crate) fn sethostname(name: &[u8]) -> Call<()> {
    call(
        k::__NR_sethostname,
        [name.as_ptr() as usize, name.len(), 0, 0, 0, 0],
    )
    .map(drop)
}

pub(crate) fn setdomainname(name: &[u8]) -> Call<()> {
    call(
        k::__NR_setdomainname,
        [name.as_ptr() as usize, name.len(), 0, 0, 0, 0],
    )
    .map(drop)
}

/// `keyctl(KEYCTL_JOIN_SESSION_KEYRING, name)`, then `KEYCTL_SETPERM`: the kernel finds a keyring
/// by name only for those who may search it, and a new one lets only its possessor. Without that an
/// exec would get a keyring of its own that has the same name.
pub(crate) fn join_keyring(name: &CStr) -> Call<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: usize = 1;
    const KEYCTL_SETPERM: usize = 5;
    /// As the kernel makes it (possessor: all; user: view, read, link), and user: search.
    const PERMISSIONS: usize = 0x3f1b_0000;
    let serial = call(
        k::__NR_keyctl,
        [KEYCTL_JOIN_SESSION_KEYRING, text(name), 0, 0, 0, 0],
    )?;
    call(
        k::__NR_keyctl,
        [KEYCTL_SETPERM, serial, PERMISSIONS, 0, 0, 0],
    )
    .map(drop)
}

pub(crate) fn set_name(name: &CStr) {
    // Only for people who read ps; a failure changes nothing.
    let _ = prctl(pr::PR_SET_NAME, text(name), 0);
}

pub(crate) fn umask(mask: u32) {
    let _ = call(k::__NR_umask, [mask as usize, 0, 0, 0, 0, 0]);
}

pub(crate) fn personality(persona: u64) -> Call<()> {
    #[expect(clippy::cast_possible_truncation, reason = "registers have 64 bits")]
    call(k::__NR_personality, [persona as usize, 0, 0, 0, 0, 0]).map(drop)
}

pub(crate) fn prlimit(resource: u32, soft: u64, hard: u64) -> Call<()> {
    let limit = k::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    call(
        k::__NR_prlimit64,
        [0, resource as usize, at(&limit), 0, 0, 0],
    )
    .map(drop)
}

pub(crate) fn sched_setaffinity(mask: &[u8]) -> Call<()> {
    let from = mask.as_ptr() as usize;
    call(k::__NR_sched_setaffinity, [0, mask.len(), from, 0, 0, 0]).map(drop)
}

pub(crate) fn set_mempolicy(mode: u32, nodes: &[u8]) -> Call<()> {
    let from = if nodes.is_empty() {
        0
    } else {
        nodes.as_ptr() as usize
    };
    // The kernel takes one bit less than it is told.
    let bits = nodes.len() * 8 + 1;
    call(k::__NR_set_mempolicy, [mode as usize, from, bits, 0, 0, 0]).map(drop)
}

/// `sched_setattr(0, attr, 0)`; the struct carries its own size.
pub(crate) fn sched_setattr(attr: &[u8]) -> Call<()> {
    call(
        k::__NR_sched_setattr,
        [0, attr.as_ptr() as usize, 0, 0, 0, 0],
    )
    .map(drop)
}

/// `ioprio_set(IOPRIO_WHO_PROCESS, 0, value)`.
pub(crate) fn ioprio_set(value: u32) -> Call<()> {
    const IOPRIO_WHO_PROCESS: usize = 1;
    call(
        k::__NR_ioprio_set,
        [IOPRIO_WHO_PROCESS, 0, value as usize, 0, 0, 0],
    )
    .map(drop)
}

/// Unblocks all signals: an inherited mask would survive execve.
pub(crate) fn unblock_signals() {
    const SIG_SETMASK: usize = 2;
    let empty = 0u64;
    let _ = call(
        k::__NR_rt_sigprocmask,
        [SIG_SETMASK, at(&empty), 0, size_of::<u64>(), 0, 0],
    );
}
