//! Typed wrappers, one per system call.

use core::ffi::CStr;

use linux_raw_sys::general as k;
use linux_raw_sys::{errno, ioctl, prctl as pr};

use super::arch::raw;

/// An errno value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) i32);

#[allow(clippy::cast_possible_wrap)]
mod errnos {
    use super::errno;
    pub(crate) const ENOENT: i32 = errno::ENOENT as i32;
    pub(crate) const EEXIST: i32 = errno::EEXIST as i32;
    pub(crate) const EINTR: i32 = errno::EINTR as i32;
    pub(crate) const EAGAIN: i32 = errno::EAGAIN as i32;
    pub(crate) const EINVAL: i32 = errno::EINVAL as i32;
    pub(crate) const ENOSYS: i32 = errno::ENOSYS as i32;
    pub(crate) const ENOTDIR: i32 = errno::ENOTDIR as i32;
    pub(crate) const EACCES: i32 = errno::EACCES as i32;
    pub(crate) const EPERM: i32 = errno::EPERM as i32;
    pub(crate) const ELOOP: i32 = errno::ELOOP as i32;
    pub(crate) const ENAMETOOLONG: i32 = errno::ENAMETOOLONG as i32;
    pub(crate) const EOPNOTSUPP: i32 = errno::EOPNOTSUPP as i32;
    pub(crate) const EROFS: i32 = errno::EROFS as i32;
}
pub(crate) use errnos::*;

/// Result of a system call.
pub(crate) type Call<T> = Result<T, Errno>;

#[allow(clippy::cast_sign_loss)]
const CWD: usize = k::AT_FDCWD as isize as usize;

fn check(ret: isize) -> Call<usize> {
    match ret {
        // The kernel returns -4095..-1 for an error, so both casts are exact.
        #[allow(clippy::cast_possible_truncation)]
        -4095..=-1 => Err(Errno(-ret as i32)),
        #[allow(clippy::cast_sign_loss)]
        _ => Ok(ret as usize),
    }
}

/// Widens a descriptor or id to a register; -1 stays -1.
#[allow(clippy::cast_sign_loss)]
fn reg(value: i32) -> usize {
    value as isize as usize
}

fn text(path: &CStr) -> usize {
    path.as_ptr() as usize
}

fn at<T>(value: &T) -> usize {
    core::ptr::from_ref(value) as usize
}

fn call(nr: u32, a: [usize; 6]) -> Call<usize> {
    // SAFETY: private; every caller below passes integers or addresses taken from references
    // that outlive the call, with the lengths that belong to them.
    check(unsafe { raw(nr as usize, a) })
}

#[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
fn fd(ret: usize) -> i32 {
    ret as i32
}

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

pub(crate) fn close(file: i32) {
    let _ = call(k::__NR_close, [reg(file), 0, 0, 0, 0, 0]);
}

/// Marks all descriptors from `first` on close-on-exec.
pub(crate) fn close_range_on_exec(first: u32) -> Call<()> {
    // linux/close_range.h
    const CLOSE_RANGE_CLOEXEC: usize = 1 << 2;
    let flags = CLOSE_RANGE_CLOEXEC;
    call(
        k::__NR_close_range,
        [first as usize, u32::MAX as usize, flags, 0, 0, 0],
    )
    .map(drop)
}

pub(crate) fn read(file: i32, buffer: &mut [u8]) -> Call<usize> {
    loop {
        let got = call(
            k::__NR_read,
            [
                reg(file),
                buffer.as_mut_ptr() as usize,
                buffer.len(),
                0,
                0,
                0,
            ],
        );
        if got != Err(Errno(EINTR)) {
            return got;
        }
    }
}

pub(crate) fn write(file: i32, bytes: &[u8]) -> Call<usize> {
    call(
        k::__NR_write,
        [reg(file), bytes.as_ptr() as usize, bytes.len(), 0, 0, 0],
    )
}

/// How often a look-up is begun again that a rename or mount disturbed. Somebody who renames in a
/// loop makes a create fail, but not wait.
const DISTURBED: u32 = 256;

/// `openat2`; `O_CLOEXEC` is always added. Begun again when the kernel could not tell whether a
/// `..` left the root, because something was renamed or mounted meanwhile (EAGAIN, openat2(2)).
pub(crate) fn openat2(dir: i32, path: &CStr, flags: u32, resolve: u32) -> Call<i32> {
    for _ in 1..DISTURBED {
        match openat2_once(dir, path, flags, resolve) {
            Err(Errno(EAGAIN)) => {}
            other => return other,
        }
    }
    openat2_once(dir, path, flags, resolve)
}

fn openat2_once(dir: i32, path: &CStr, flags: u32, resolve: u32) -> Call<i32> {
    let how = k::open_how {
        flags: u64::from(flags | k::O_CLOEXEC),
        mode: 0,
        resolve: u64::from(resolve),
    };
    call(
        k::__NR_openat2,
        [
            reg(dir),
            text(path),
            at(&how),
            size_of::<k::open_how>(),
            0,
            0,
        ],
    )
    .map(fd)
}

/// `openat` of a host path.
pub(crate) fn open(path: &CStr, flags: u32) -> Call<i32> {
    call(
        k::__NR_openat,
        [CWD, text(path), (flags | k::O_CLOEXEC) as usize, 0, 0, 0],
    )
    .map(fd)
}

pub(crate) fn mkdirat(dir: i32, name: &CStr, mode: u32) -> Call<()> {
    call(
        k::__NR_mkdirat,
        [reg(dir), text(name), mode as usize, 0, 0, 0],
    )
    .map(drop)
}

pub(crate) fn mknodat(dir: i32, name: &CStr, mode: u32, device: u64) -> Call<()> {
    // The kernel takes the 32-bit encoding, which for the majors and minors of Linux
    // devices are the low bits of the 64-bit one.
    #[allow(clippy::cast_possible_truncation)]
    let device = device as usize;
    call(
        k::__NR_mknodat,
        [reg(dir), text(name), mode as usize, device, 0, 0],
    )
    .map(drop)
}

pub(crate) fn symlinkat(content: &CStr, dir: i32, name: &CStr) -> Call<()> {
    call(
        k::__NR_symlinkat,
        [text(content), reg(dir), text(name), 0, 0, 0],
    )
    .map(drop)
}

/// Length of the link's content; the bytes are in `buffer`.
pub(crate) fn readlinkat(dir: i32, name: &CStr, buffer: &mut [u8]) -> Call<usize> {
    call(
        k::__NR_readlinkat,
        [
            reg(dir),
            text(name),
            buffer.as_mut_ptr() as usize,
            buffer.len(),
            0,
            0,
        ],
    )
    .map(|len| len.min(buffer.len()))
}

pub(crate) fn unlinkat(dir: i32, name: &CStr) -> Call<()> {
    call(k::__NR_unlinkat, [reg(dir), text(name), 0, 0, 0, 0]).map(drop)
}

/// `fchownat(dir, name, uid, gid, AT_SYMLINK_NOFOLLOW)`.
pub(crate) fn chownat(dir: i32, name: &CStr, uid: u32, gid: u32) -> Call<()> {
    call(
        k::__NR_fchownat,
        [
            reg(dir),
            text(name),
            uid as usize,
            gid as usize,
            k::AT_SYMLINK_NOFOLLOW as usize,
            0,
        ],
    )
    .map(drop)
}

pub(crate) fn fchown(file: i32, uid: u32) -> Call<()> {
    // A gid of -1 stays as it is.
    let same = u32::MAX as usize;
    call(k::__NR_fchown, [reg(file), uid as usize, same, 0, 0, 0]).map(drop)
}

/// What this image needs of `struct stat`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stat {
    /// Type and permissions.
    pub(crate) mode: u32,
    /// Inode number.
    pub(crate) ino: u64,
    /// Device of a node.
    pub(crate) rdev: (u32, u32),
}

fn statx(dir: usize, path: &CStr, flags: u32) -> Call<Stat> {
    // SAFETY: all-zero bytes are a valid `struct statx`, which has integer fields only.
    let mut out: k::statx = unsafe { core::mem::zeroed() };
    let mask = (k::STATX_TYPE | k::STATX_MODE | k::STATX_INO) as usize;
    let to = core::ptr::from_mut(&mut out) as usize;
    call(
        k::__NR_statx,
        [dir, text(path), flags as usize, mask, to, 0],
    )?;
    Ok(Stat {
        mode: u32::from(out.stx_mode),
        ino: out.stx_ino,
        rdev: (out.stx_rdev_major, out.stx_rdev_minor),
    })
}

pub(crate) fn fstat(file: i32) -> Call<Stat> {
    statx(reg(file), c"", k::AT_EMPTY_PATH)
}

/// What a copy of a directory entry needs to know.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    /// Type and permissions.
    pub(crate) mode: u32,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Device of a node, as mknod(2) takes it.
    pub(crate) device: u64,
    /// Access and modification.
    times: [k::__kernel_timespec; 2],
}

/// The entry itself, no symlink followed; with an empty name, the directory.
pub(crate) fn entry(dir: i32, name: &CStr) -> Call<Entry> {
    // SAFETY: all-zero bytes are a valid `struct statx`, which has integer fields only.
    let mut out: k::statx = unsafe { core::mem::zeroed() };
    let flags = k::AT_SYMLINK_NOFOLLOW | k::AT_EMPTY_PATH;
    let mask = k::STATX_BASIC_STATS as usize;
    let to = core::ptr::from_mut(&mut out) as usize;
    call(
        k::__NR_statx,
        [reg(dir), text(name), flags as usize, mask, to, 0],
    )?;
    let (major, minor) = (u64::from(out.stx_rdev_major), u64::from(out.stx_rdev_minor));
    let time = |from: k::statx_timestamp| k::__kernel_timespec {
        tv_sec: from.tv_sec,
        tv_nsec: from.tv_nsec.into(),
    };
    Ok(Entry {
        mode: u32::from(out.stx_mode),
        uid: out.stx_uid,
        gid: out.stx_gid,
        device: (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12),
        times: [time(out.stx_atime), time(out.stx_mtime)],
    })
}

/// `utimensat`, no symlink followed; without a name, of the open file.
pub(crate) fn set_times(dir: i32, name: Option<&CStr>, entry: &Entry) -> Call<()> {
    let flags = name.map_or(0, |_| k::AT_SYMLINK_NOFOLLOW as usize);
    call(
        k::__NR_utimensat,
        [
            reg(dir),
            name.map_or(0, text),
            at(&entry.times),
            flags,
            0,
            0,
        ],
    )
    .map(drop)
}

/// Length of the records of a directory that fit; 0 at the end.
pub(crate) fn getdents(dir: i32, buffer: &mut [u8]) -> Call<usize> {
    let to = buffer.as_mut_ptr() as usize;
    call(k::__NR_getdents64, [reg(dir), to, buffer.len(), 0, 0, 0])
}

/// A new file to write to; nobody else can open it yet.
pub(crate) fn create(dir: i32, name: &CStr) -> Call<i32> {
    let flags = k::O_WRONLY | k::O_CREAT | k::O_EXCL | k::O_CLOEXEC;
    call(
        k::__NR_openat,
        [reg(dir), text(name), flags as usize, 0o600, 0, 0],
    )
    .map(fd)
}

/// Copies from the offset of `from`; 0 at its end.
pub(crate) fn sendfile(to: i32, from: i32) -> Call<usize> {
    // As much as the kernel takes at once.
    const MOST: usize = 0x7fff_f000;
    call(k::__NR_sendfile, [reg(to), reg(from), 0, MOST, 0, 0])
}

pub(crate) fn fchmod(file: i32, mode: u32) -> Call<()> {
    call(k::__NR_fchmod, [reg(file), mode as usize, 0, 0, 0, 0]).map(drop)
}

pub(crate) fn fchown_both(file: i32, uid: u32, gid: u32) -> Call<()> {
    let (uid, gid) = (uid as usize, gid as usize);
    call(k::__NR_fchown, [reg(file), uid, gid, 0, 0, 0]).map(drop)
}

/// Length of the list of names, each with its NUL.
pub(crate) fn flistxattr(file: i32, buffer: &mut [u8]) -> Call<usize> {
    let to = buffer.as_mut_ptr() as usize;
    call(k::__NR_flistxattr, [reg(file), to, buffer.len(), 0, 0, 0])
}

pub(crate) fn fgetxattr(file: i32, name: &CStr, buffer: &mut [u8]) -> Call<usize> {
    let to = buffer.as_mut_ptr() as usize;
    call(
        k::__NR_fgetxattr,
        [reg(file), text(name), to, buffer.len(), 0, 0],
    )
}

pub(crate) fn fsetxattr(file: i32, name: &CStr, value: &[u8]) -> Call<()> {
    let from = value.as_ptr() as usize;
    call(
        k::__NR_fsetxattr,
        [reg(file), text(name), from, value.len(), 0, 0],
    )
    .map(drop)
}

/// Follows symlinks; relative to the working directory.
pub(crate) fn stat(path: &CStr) -> Call<Stat> {
    statx(CWD, path, 0)
}

pub(crate) fn executable(path: &CStr) -> Call<()> {
    call(
        k::__NR_faccessat,
        [CWD, text(path), k::X_OK as usize, 0, 0, 0],
    )
    .map(drop)
}

/// File system magic of an open file.
pub(crate) fn fs_magic(file: i32) -> Call<u64> {
    // SAFETY: all-zero bytes are a valid `struct statfs`, which has integer fields only.
    let mut out: k::statfs = unsafe { core::mem::zeroed() };
    let to = core::ptr::from_mut(&mut out) as usize;
    call(k::__NR_fstatfs, [reg(file), to, 0, 0, 0, 0])?;
    Ok(out.f_type.cast_unsigned())
}

pub(crate) fn fchdir(dir: i32) -> Call<()> {
    call(k::__NR_fchdir, [reg(dir), 0, 0, 0, 0, 0]).map(drop)
}

pub(crate) fn chdir(path: &CStr) -> Call<()> {
    call(k::__NR_chdir, [text(path), 0, 0, 0, 0, 0]).map(drop)
}

/// Length of the working directory's path with NUL; the bytes are in `buffer`.
pub(crate) fn getcwd(buffer: &mut [u8]) -> Call<usize> {
    call(
        k::__NR_getcwd,
        [buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0, 0],
    )
}

pub(crate) fn chroot(path: &CStr) -> Call<()> {
    call(k::__NR_chroot, [text(path), 0, 0, 0, 0, 0]).map(drop)
}

pub(crate) fn pivot_root(new: &CStr, old: &CStr) -> Call<()> {
    call(k::__NR_pivot_root, [text(new), text(old), 0, 0, 0, 0]).map(drop)
}

pub(crate) fn mount(
    source: Option<&CStr>,
    target: &CStr,
    fstype: Option<&CStr>,
    flags: u64,
    data: Option<&CStr>,
) -> Call<()> {
    #[allow(clippy::cast_possible_truncation)]
    let flags = flags as usize;
    call(
        k::__NR_mount,
        [
            source.map_or(0, text),
            text(target),
            fstype.map_or(0, text),
            flags,
            data.map_or(0, text),
            0,
        ],
    )
    .map(drop)
}

/// `umount2(target, MNT_DETACH)`.
pub(crate) fn detach(target: &CStr) -> Call<()> {
    call(
        k::__NR_umount2,
        [text(target), k::MNT_DETACH as usize, 0, 0, 0, 0],
    )
    .map(drop)
}

/// `open_tree(file, "", OPEN_TREE_CLONE | AT_EMPTY_PATH | flags)`.
pub(crate) fn clone_tree(file: i32, flags: u32) -> Call<i32> {
    let flags = k::OPEN_TREE_CLONE | k::OPEN_TREE_CLOEXEC | k::AT_EMPTY_PATH | flags;
    call(
        k::__NR_open_tree,
        [reg(file), text(c""), flags as usize, 0, 0, 0],
    )
    .map(fd)
}

/// As [`clone_tree`], of a path of the host.
pub(crate) fn clone_path(path: &CStr, flags: u32) -> Call<i32> {
    let flags = k::OPEN_TREE_CLONE | k::OPEN_TREE_CLOEXEC | flags;
    call(
        k::__NR_open_tree,
        [CWD, text(path), flags as usize, 0, 0, 0],
    )
    .map(fd)
}

/// `dup3` with close-on-exec.
pub(crate) fn replace(file: i32, with: i32) -> Call<()> {
    call(
        k::__NR_dup3,
        [reg(with), reg(file), k::O_CLOEXEC as usize, 0, 0, 0],
    )
    .map(drop)
}

/// `move_mount(tree, "", target, "")`.
pub(crate) fn move_mount(tree: i32, target: i32) -> Call<()> {
    let flags = k::MOVE_MOUNT_F_EMPTY_PATH | k::MOVE_MOUNT_T_EMPTY_PATH;
    call(
        k::__NR_move_mount,
        [
            reg(tree),
            text(c""),
            reg(target),
            text(c""),
            flags as usize,
            0,
        ],
    )
    .map(drop)
}

/// `mount_setattr(tree, "", AT_EMPTY_PATH [| AT_RECURSIVE])`.
pub(crate) fn mount_setattr(
    tree: i32,
    recursive: bool,
    set: u64,
    clear: u64,
    propagation: u64,
) -> Call<()> {
    let attr = k::mount_attr {
        attr_set: set,
        attr_clr: clear,
        propagation,
        userns_fd: 0,
    };
    let flags = k::AT_EMPTY_PATH | if recursive { k::AT_RECURSIVE } else { 0 };
    call(
        k::__NR_mount_setattr,
        [
            reg(tree),
            text(c""),
            flags as usize,
            at(&attr),
            size_of::<k::mount_attr>(),
            0,
        ],
    )
    .map(drop)
}

pub(crate) fn fsopen(fstype: &CStr) -> Call<i32> {
    call(
        k::__NR_fsopen,
        [text(fstype), k::FSOPEN_CLOEXEC as usize, 0, 0, 0, 0],
    )
    .map(fd)
}

/// `fsconfig(FSCONFIG_SET_STRING)`.
pub(crate) fn fsconfig_string(context: i32, key: &CStr, value: &CStr) -> Call<()> {
    let command = k::fsconfig_command::FSCONFIG_SET_STRING as usize;
    call(
        k::__NR_fsconfig,
        [reg(context), command, text(key), text(value), 0, 0],
    )
    .map(drop)
}

/// `fsconfig(FSCONFIG_CMD_CREATE)` and `fsmount`: a detached mount.
pub(crate) fn fsmount(context: i32, attributes: u32) -> Call<i32> {
    let command = k::fsconfig_command::FSCONFIG_CMD_CREATE as usize;
    call(k::__NR_fsconfig, [reg(context), command, 0, 0, 0, 0])?;
    call(
        k::__NR_fsmount,
        [
            reg(context),
            k::FSMOUNT_CLOEXEC as usize,
            attributes as usize,
            0,
            0,
            0,
        ],
    )
    .map(fd)
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

pub(crate) fn set_attribute(path: &CStr, name: &CStr, value: &[u8]) -> Call<()> {
    call(
        k::__NR_setxattr,
        [
            text(path),
            text(name),
            value.as_ptr() as usize,
            value.len(),
            0,
            0,
        ],
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

fn prctl(option: u32, a: usize, b: usize) -> Call<usize> {
    call(k::__NR_prctl, [option as usize, a, b, 0, 0, 0])
}

pub(crate) fn set_name(name: &CStr) {
    // Only for people who read ps; a failure changes nothing.
    let _ = prctl(pr::PR_SET_NAME, text(name), 0);
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
    // Splitting into halves is what the ABI asks for.
    #[allow(clippy::cast_possible_truncation)]
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

pub(crate) fn umask(mask: u32) {
    let _ = call(k::__NR_umask, [mask as usize, 0, 0, 0, 0, 0]);
}

pub(crate) fn personality(persona: u64) -> Call<()> {
    #[allow(clippy::cast_possible_truncation)]
    call(k::__NR_personality, [persona as usize, 0, 0, 0, 0, 0]).map(drop)
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

/// `seccomp(SECCOMP_SET_MODE_FILTER)`; returns the listener with `SECCOMP_FILTER_FLAG_NEW_LISTENER`.
pub(crate) fn seccomp(program: &[u8], flags: u32) -> Call<i32> {
    const SECCOMP_SET_MODE_FILTER: usize = 1;
    #[repr(C)]
    struct Program {
        len: u16,
        filter: *const u8,
    }
    // The library refuses programs over 4096 instructions (BPF_MAXINSNS).
    #[allow(clippy::cast_possible_truncation)]
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

/// Sends `bytes` and one descriptor over a unix socket.
pub(crate) fn send_fd(socket: i32, bytes: &[u8], file: i32) -> Call<()> {
    #[repr(C)]
    struct Control {
        len: usize,
        level: i32,
        kind: i32,
        file: i32,
        padding: i32,
    }
    #[repr(C)]
    struct Header {
        name: usize,
        name_len: u32,
        iov: *const [usize; 2],
        iov_len: usize,
        control: *const Control,
        control_len: usize,
        flags: i32,
    }
    const SOL_SOCKET: i32 = 1;
    const SCM_RIGHTS: i32 = 1;
    const MSG_NOSIGNAL: usize = 0x4000;
    let control = Control {
        len: size_of::<usize>() + 12,
        level: SOL_SOCKET,
        kind: SCM_RIGHTS,
        file,
        padding: 0,
    };
    let iov = [bytes.as_ptr() as usize, bytes.len()];
    let header = Header {
        name: 0,
        name_len: 0,
        iov: &raw const iov,
        iov_len: 1,
        control: &raw const control,
        control_len: size_of::<Control>(),
        flags: 0,
    };
    call(
        k::__NR_sendmsg,
        [reg(socket), at(&header), MSG_NOSIGNAL, 0, 0, 0],
    )
    .map(drop)
}

pub(crate) fn dup_to(file: i32, to: i32) -> Call<()> {
    call(k::__NR_dup3, [reg(file), reg(to), 0, 0, 0, 0]).map(drop)
}

/// `ioctl(ptmx, TIOCSPTLCK, 0)`: unlocks the slave.
pub(crate) fn unlock_pty(ptmx: i32) -> Call<()> {
    let unlock = 0i32;
    call(
        k::__NR_ioctl,
        [reg(ptmx), ioctl::TIOCSPTLCK as usize, at(&unlock), 0, 0, 0],
    )
    .map(drop)
}

/// `ioctl(ptmx, TIOCGPTPEER)`: the slave, by descriptor and not by path.
pub(crate) fn pty_peer(ptmx: i32) -> Call<i32> {
    let flags = (k::O_RDWR | k::O_NOCTTY | k::O_CLOEXEC) as usize;
    call(
        k::__NR_ioctl,
        [reg(ptmx), ioctl::TIOCGPTPEER as usize, flags, 0, 0, 0],
    )
    .map(fd)
}

pub(crate) fn controlling_terminal(tty: i32) -> Call<()> {
    call(
        k::__NR_ioctl,
        [reg(tty), ioctl::TIOCSCTTY as usize, 0, 0, 0, 0],
    )
    .map(drop)
}

pub(crate) fn window_size(tty: i32, rows: u16, columns: u16) -> Call<()> {
    let size = [rows, columns, 0, 0];
    call(
        k::__NR_ioctl,
        [reg(tty), ioctl::TIOCSWINSZ as usize, at(&size), 0, 0, 0],
    )
    .map(drop)
}
