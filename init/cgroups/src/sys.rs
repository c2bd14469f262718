//! The system calls this crate needs and std does not offer. All fds are close-on-exec.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Instant;

/// Super block magic of cgroup2 (statfs(2)).
pub(crate) const CGROUP2_MAGIC: i64 = 0x6367_7270;

fn c_string(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn check(ret: libc::c_int) -> io::Result<libc::c_int> {
    if ret < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(ret)
    }
}

/// Repeats a call that a signal handler interrupted.
fn restart<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn at(dir: Option<BorrowedFd<'_>>) -> libc::c_int {
    dir.map_or(libc::AT_FDCWD, |fd| fd.as_raw_fd())
}

/// openat(2) with O_CLOEXEC | O_NOFOLLOW; never creates. `None` = absolute path.
pub(crate) fn open(
    dir: Option<BorrowedFd<'_>>,
    path: &Path,
    flags: libc::c_int,
) -> io::Result<OwnedFd> {
    let path = c_string(path)?;
    let flags = flags | libc::O_CLOEXEC | libc::O_NOFOLLOW;
    restart(|| {
        // SAFETY: `path` is NUL-terminated and outlives the call; without O_CREAT no mode argument is read.
        let fd = check(unsafe { libc::openat(at(dir), path.as_ptr(), flags) })?;
        // SAFETY: openat returned a new descriptor that nothing else owns.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    })
}

/// mkdirat(2), mode 0755.
pub(crate) fn mkdir(path: &Path) -> io::Result<()> {
    let path = c_string(path)?;
    // SAFETY: `path` is NUL-terminated and outlives the call.
    check(unsafe { libc::mkdirat(libc::AT_FDCWD, path.as_ptr(), 0o755) }).map(drop)
}

/// rmdir(2).
pub(crate) fn rmdir(path: &Path) -> io::Result<()> {
    let path = c_string(path)?;
    // SAFETY: `path` is NUL-terminated and outlives the call.
    check(unsafe { libc::unlinkat(libc::AT_FDCWD, path.as_ptr(), libc::AT_REMOVEDIR) }).map(drop)
}

/// One write(2) of the whole text: cgroup files parse each write on its own.
pub(crate) fn write_once(fd: BorrowedFd<'_>, text: &[u8]) -> io::Result<()> {
    let written = restart(|| {
        // SAFETY: pointer and length describe `text`, which outlives the call.
        let n = unsafe { libc::write(fd.as_raw_fd(), text.as_ptr().cast(), text.len()) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    })?;
    if written == text.len() {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::WriteZero,
            "the kernel took a part of the value only",
        ))
    }
}

/// One pread(2) at `offset`.
pub(crate) fn read_at(fd: BorrowedFd<'_>, into: &mut [u8], offset: usize) -> io::Result<usize> {
    let offset =
        libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    restart(|| {
        // SAFETY: pointer and length describe `into`, which is exclusively borrowed during the call.
        let n =
            unsafe { libc::pread(fd.as_raw_fd(), into.as_mut_ptr().cast(), into.len(), offset) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    })
}

/// One read(2), for fds that have no position (eventfd).
pub(crate) fn read_stream(fd: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<usize> {
    restart(|| {
        // SAFETY: pointer and length describe `into`, which is exclusively borrowed during the call.
        let n = unsafe { libc::read(fd.as_raw_fd(), into.as_mut_ptr().cast(), into.len()) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    })
}

/// The f_type of statfs(2).
pub(crate) fn file_system_magic(path: &CStr) -> io::Result<i64> {
    let mut out = std::mem::MaybeUninit::<libc::statfs>::uninit();
    restart(|| {
        // SAFETY: `path` is NUL-terminated; `out` is writable and of the type statfs fills.
        check(unsafe { libc::statfs(path.as_ptr(), out.as_mut_ptr()) })
    })?;
    // SAFETY: statfs returned 0, so it has filled the structure.
    let out = unsafe { out.assume_init() };
    #[allow(
        clippy::unnecessary_cast,
        reason = "the width of f_type differs between targets"
    )]
    Ok(out.f_type as i64)
}

/// pidfd_open(2).
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes two integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    check(fd)?;
    // SAFETY: the call returned a new descriptor (close-on-exec by definition) that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// pidfd_send_signal(2).
pub(crate) fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: the siginfo pointer may be null; everything else is an integer.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if ret < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// poll(2) on one fd until `deadline`; false when the deadline came first. A signal does not end it.
pub(crate) fn poll(
    fd: BorrowedFd<'_>,
    events: libc::c_short,
    deadline: Instant,
) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Round up, or the last millisecond would be a busy loop.
        let millis = i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        let mut poll = libc::pollfd {
            fd: fd.as_raw_fd(),
            events,
            revents: 0,
        };
        // SAFETY: the pointer is to one pollfd and the count says one.
        match check(unsafe { libc::poll(&raw mut poll, 1, millis) }) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) => {}
            Ok(_) => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// eventfd(2), close-on-exec and non-blocking.
pub(crate) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: takes two integers.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
    // SAFETY: eventfd returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// One instruction of eBPF (`struct bpf_insn`).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BpfInsn {
    /// Operation and class.
    pub(crate) code: u8,
    /// Destination register in the low, source register in the high half (little endian bit fields).
    pub(crate) regs: u8,
    /// Jump distance or memory offset.
    pub(crate) off: i16,
    /// Immediate operand.
    pub(crate) imm: i32,
}

impl BpfInsn {
    /// Builds one instruction; the register bit fields follow the byte order of the machine.
    pub(crate) const fn new(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Self {
        let regs = if cfg!(target_endian = "little") {
            dst | (src << 4)
        } else {
            (dst << 4) | src
        };
        Self {
            code,
            regs,
            off,
            imm,
        }
    }
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;
const BPF_F_REPLACE: u32 = 4;

/// The head of `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
#[derive(Default)]
struct AttrLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

/// The head of `union bpf_attr` for BPF_PROG_ATTACH and BPF_PROG_DETACH.
#[repr(C)]
#[derive(Default)]
struct AttrAttach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

/// The head of `union bpf_attr` for BPF_PROG_QUERY.
#[repr(C)]
#[derive(Default)]
struct AttrQuery {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    // The kernel's copy is 8-aligned; an explicit field keeps uninitialised padding out of it.
    pad: u32,
}

/// The head of `union bpf_attr` for BPF_PROG_GET_FD_BY_ID.
#[repr(C)]
#[derive(Default)]
struct AttrById {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: `attr` is an initialised prefix of union bpf_attr, the size says how long it is, and the kernel
    // takes the rest as zero. Pointers inside are set by the callers below, which keep their targets alive.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    let ret = i32::try_from(ret).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
    check(ret)
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// Loads a program of type cgroup_device.
pub(crate) fn bpf_load_device(program: &[BpfInsn]) -> io::Result<OwnedFd> {
    let mut tries = 0;
    loop {
        let mut attr = AttrLoad {
            prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
            insn_cnt: u32::try_from(program.len())
                .map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?,
            insns: program.as_ptr() as u64,
            license: c"Apache".as_ptr() as u64,
            prog_name: *b"holdfast_device\0",
            ..AttrLoad::default()
        };
        match bpf(BPF_PROG_LOAD, &mut attr) {
            // SAFETY: the call returned a new descriptor (close-on-exec by definition) that nothing else owns.
            Ok(fd) => return Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            // The verifier gives way to a pending signal; a handful of tries, as libbpf does.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && tries < 5 => tries += 1,
            Err(error) => return Err(error),
        }
    }
}

/// Attaches a device program to a cgroup v2 directory, in place of `replace` where given.
pub(crate) fn bpf_attach_device(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    replace: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut attr = AttrAttach {
        target_fd: raw(cgroup),
        attach_bpf_fd: raw(program),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI | if replace.is_some() { BPF_F_REPLACE } else { 0 },
        replace_bpf_fd: replace.map_or(0, raw),
    };
    bpf(BPF_PROG_ATTACH, &mut attr).map(drop)
}

/// Detaches a device program from a cgroup v2 directory.
pub(crate) fn bpf_detach_device(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = AttrAttach {
        target_fd: raw(cgroup),
        attach_bpf_fd: raw(program),
        attach_type: BPF_CGROUP_DEVICE,
        ..AttrAttach::default()
    };
    bpf(BPF_PROG_DETACH, &mut attr).map(drop)
}

/// The device programs attached to a cgroup v2 directory itself (not to its ancestors), at most 64.
pub(crate) fn bpf_device_programs(cgroup: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    let mut ids = [0_u32; 64];
    let mut attr = AttrQuery {
        target_fd: raw(cgroup),
        attach_type: BPF_CGROUP_DEVICE,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: 64,
        ..AttrQuery::default()
    };
    bpf(BPF_PROG_QUERY, &mut attr)?;
    let count = usize::try_from(attr.prog_cnt).unwrap_or(0);
    let mut programs = Vec::new();
    for &id in ids.iter().take(count) {
        let mut attr = AttrById {
            id,
            ..AttrById::default()
        };
        match bpf(BPF_PROG_GET_FD_BY_ID, &mut attr) {
            // SAFETY: the call returned a new descriptor (close-on-exec by definition) that nothing else owns.
            Ok(fd) => programs.push(unsafe { OwnedFd::from_raw_fd(fd) }),
            // Detached and freed in between.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(programs)
}

/// How many links a directory has: 2 + its subdirectories on kernfs. `None` when it cannot be read.
pub(crate) fn link_count(fd: BorrowedFd<'_>) -> Option<u64> {
    let mut out = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `out` is writable and of the type fstat fills.
    check(unsafe { libc::fstat(fd.as_fd().as_raw_fd(), out.as_mut_ptr()) }).ok()?;
    // SAFETY: fstat returned 0, so it has filled the structure.
    let out = unsafe { out.assume_init() };
    #[allow(
        clippy::useless_conversion,
        reason = "the width of st_nlink differs between targets"
    )]
    Some(u64::from(out.st_nlink))
}

/// The name of a Unix socket.
pub(crate) enum SocketName<'a> {
    /// In the file system.
    Path(&'a [u8]),
    /// In the abstract namespace, without the leading zero byte.
    Abstract(&'a [u8]),
}

/// Connects a stream socket. A listener whose queue is full makes connect(2) wait: not beyond `deadline`, where the
/// error is `TimedOut`.
pub(crate) fn connect(name: &SocketName<'_>, deadline: Instant) -> io::Result<OwnedFd> {
    // SAFETY: sockaddr_un is plain bytes; all zeroes are a valid value of it.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX.unsigned_abs().try_into().unwrap_or_default();
    // The zero in front of an abstract name, or behind a path.
    let (bytes, at) = match name {
        SocketName::Path(bytes) => (bytes, 0),
        SocketName::Abstract(bytes) => (bytes, 1),
    };
    if bytes.len() + 1 > address.sun_path.len() || bytes.contains(&0) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    for (place, byte) in address.sun_path.iter_mut().skip(at).zip(*bytes) {
        *place = byte.cast_signed();
    }
    let length = std::mem::offset_of!(libc::sockaddr_un, sun_path) + bytes.len() + 1;
    let length = libc::socklen_t::try_from(length).unwrap_or_default();
    // SAFETY: no pointers.
    let fd =
        check(unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: socket returned a new descriptor that nothing else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    restart(|| {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let left = libc::timeval {
            tv_sec: left.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            // 0 would be for ever.
            tv_usec: left.subsec_micros().max(1).into(),
        };
        let size = libc::socklen_t::try_from(size_of::<libc::timeval>()).unwrap_or_default();
        // SAFETY: the pointer and the size describe `left`, which outlives the call.
        check(unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_SNDTIMEO,
                (&raw const left).cast(),
                size,
            )
        })?;
        // SAFETY: the pointer and the length describe `address`, of which `length` bytes are set; it outlives the call.
        match check(unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), length) }) {
            // SO_SNDTIMEO is over.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
                Err(io::ErrorKind::TimedOut.into())
            }
            other => other,
        }
    })?;
    Ok(fd)
}

/// geteuid(2).
pub(crate) fn effective_uid() -> u32 {
    // SAFETY: no arguments, never fails.
    unsafe { libc::geteuid() }
}
