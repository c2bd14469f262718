//! Files and directories: opening, making, and what they are.

use core::ffi::CStr;

use linux_raw_sys::general as k;

use super::call::{CWD, Call, EAGAIN, Errno, at, call, fd, reg, text};

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

/// A new file to write to; nobody else can open it yet.
pub(crate) fn create(dir: i32, name: &CStr) -> Call<i32> {
    let flags = k::O_WRONLY | k::O_CREAT | k::O_EXCL | k::O_CLOEXEC;
    call(
        k::__NR_openat,
        [reg(dir), text(name), flags as usize, 0o600, 0, 0],
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
    #[expect(clippy::cast_possible_truncation, reason = "registers have 64 bits")]
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

/// Length of the records of a directory that fit; 0 at the end.
pub(crate) fn getdents(dir: i32, buffer: &mut [u8]) -> Call<usize> {
    let to = buffer.as_mut_ptr() as usize;
    call(k::__NR_getdents64, [reg(dir), to, buffer.len(), 0, 0, 0])
}

/// Copies from the offset of `from`; 0 at its end.
pub(crate) fn sendfile(to: i32, from: i32) -> Call<usize> {
    // As much as the kernel takes at once.
    const MOST: usize = 0x7fff_f000;
    call(k::__NR_sendfile, [reg(to), reg(from), 0, MOST, 0, 0])
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

pub(crate) fn fchown_both(file: i32, uid: u32, gid: u32) -> Call<()> {
    let (uid, gid) = (uid as usize, gid as usize);
    call(k::__NR_fchown, [reg(file), uid, gid, 0, 0, 0]).map(drop)
}

pub(crate) fn fchmod(file: i32, mode: u32) -> Call<()> {
    call(k::__NR_fchmod, [reg(file), mode as usize, 0, 0, 0, 0]).map(drop)
}
