//! Every `unsafe` block of the shim: thin, typed faces of system calls that neither the
//! standard library nor nix offers safely.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::Command;

use holdfast_cgroups::OomEvents;
use holdfast_record::ExitStatus;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::resume::descriptor::Descriptor;

/// Result of a system call that reports failure as -1 and errno.
fn check(ret: libc::c_long) -> io::Result<libc::c_long> {
    if ret < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(ret)
    }
}

/// Narrows a descriptor returned by `syscall(2)`.
fn fd_from(ret: libc::c_long) -> io::Result<OwnedFd> {
    let raw = RawFd::try_from(ret).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: the kernel just returned `raw` as a new descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Which children [`wait_child`] looks at.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Children<'a> {
    /// Every child of the process.
    Any,
    /// The child with this pid.
    Pid(u32),
    /// The child that this pidfd names.
    Pidfd(BorrowedFd<'a>),
}

/// How a child ended, as `waitid(2)` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChildEnd {
    /// Pid of the child.
    pub(crate) pid: u32,
    /// Exit code or signal.
    pub(crate) status: ExitStatus,
}

/// Asks, without blocking, for a child that has ended. With `peek` it stays a zombie.
///
/// # Errors
/// `ECHILD` when there is no such child; see waitid(2).
pub(crate) fn wait_child(which: Children<'_>, peek: bool) -> io::Result<Option<ChildEnd>> {
    let (id_type, id) = match which {
        Children::Any => (libc::P_ALL, 0),
        Children::Pid(pid) => (libc::P_PID, pid),
        Children::Pidfd(fd) => (libc::P_PIDFD, fd.as_raw_fd().unsigned_abs()),
    };
    let mut flags = libc::WEXITED | libc::WNOHANG;
    if peek {
        flags |= libc::WNOWAIT;
    }
    // SAFETY: siginfo_t is plain data for which all zeroes is a valid value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is a live, writable siginfo_t for the whole call.
    let ret = unsafe { libc::waitid(id_type, id, &raw mut info, flags) };
    if ret < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: waitid filled `info` with the child layout, or left the zeroes of above.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    let Ok(pid) = u32::try_from(pid) else {
        return Ok(None);
    };
    if pid == 0 {
        return Ok(None);
    }
    // Only ends were asked for (WEXITED), so anything else is not the kernel's answer.
    let status = ExitStatus::from_waitid(info.si_code, status)
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    Ok(Some(ChildEnd { pid, status }))
}

/// Opens a pidfd. The caller makes sure that `pid` cannot have been reused.
///
/// # Errors
/// See pidfd_open(2).
pub(crate) fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes two integers, touches no memory of ours.
    fd_from(check(unsafe {
        libc::syscall(libc::SYS_pidfd_open, pid, 0)
    })?)
}

/// Sends `signal` (any number, also real-time) to the process behind `pidfd`.
///
/// # Errors
/// `ESRCH` when it is gone; `EINVAL` for a bad signal; see pidfd_send_signal(2).
pub(crate) fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo is allowed by pidfd_send_signal(2); the rest are integers.
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })
    .map(drop)
}

/// How a process has ended that was reaped by whoever was its parent; none while it was not.
///
/// # Errors
/// `ENOTTY` or `EINVAL` where the kernel does not keep it (before Linux 6.15).
pub(crate) fn pidfd_exit_status(pidfd: BorrowedFd<'_>) -> io::Result<Option<ExitStatus>> {
    const PIDFD_GET_INFO: libc::c_ulong = 0xc040_ff0b;
    const PIDFD_INFO_EXIT: u64 = 1 << 3;
    /// `struct pidfd_info` of linux/pidfd.h in its first size.
    #[repr(C)]
    struct Info {
        mask: u64,
        cgroup: u64,
        ids: [u32; 11],
        exit_code: i32,
    }
    const _: () = assert!(size_of::<Info>() == 64);
    let mut info = Info {
        mask: PIDFD_INFO_EXIT,
        cgroup: 0,
        ids: [0; 11],
        exit_code: 0,
    };
    // SAFETY: the request reads and writes 64 bytes, as its number says; `info` is as long and lives through the call.
    let done = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO as _, &raw mut info) };
    check(done.into())?;
    if info.mask & PIDFD_INFO_EXIT == 0 {
        return Ok(None);
    }
    let (code, status) = if libc::WIFSIGNALED(info.exit_code) {
        let code = if libc::WCOREDUMP(info.exit_code) {
            libc::CLD_DUMPED
        } else {
            libc::CLD_KILLED
        };
        (code, libc::WTERMSIG(info.exit_code))
    } else {
        (libc::CLD_EXITED, libc::WEXITSTATUS(info.exit_code))
    };
    Ok(ExitStatus::from_waitid(code, status))
}

/// Takes a descriptor that was inherited under a known number.
///
/// # Errors
/// `EBADF` when nothing is open there.
pub(crate) fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD takes integers only and fails with EBADF for a closed number.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) }.into())?;
    // SAFETY: open (checked above), and the caller is the only one who asks for `number`.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Most descriptors that one child is given by number.
const MAX_CHILD_FDS: usize = 4;
/// A number above those that children are given.
const ABOVE_ALL: RawFd = 10;

/// What a child gets besides what [`Command`] can say.
#[derive(Debug, Default)]
pub(crate) struct ChildSetup {
    /// `(ours, theirs)`: our descriptor becomes that number in the child.
    pub(crate) fds: Vec<(OwnedFd, RawFd)>,
    /// Signal for the child when the thread that started it ends.
    pub(crate) parent_death_signal: Option<i32>,
    /// Make the child the leader of its own process group.
    pub(crate) own_group: bool,
}

/// Adds `setup` to `command`; it is applied between fork and exec.
pub(crate) fn prepare_child(command: &mut Command, setup: ChildSetup) {
    debug_assert!(setup.fds.len() <= MAX_CHILD_FDS);
    if setup.own_group {
        command.process_group(0);
    }
    let ChildSetup {
        fds,
        parent_death_signal,
        ..
    } = setup;
    // SAFETY: the closure only makes system calls on integers it owns (no allocation, no
    // lock), which is what may be done in the child of a fork.
    unsafe {
        command.pre_exec(move || {
            if let Some(signal) = parent_death_signal {
                check(libc::prctl(libc::PR_SET_PDEATHSIG, signal, 0, 0, 0).into())?;
            }
            // Out of the way first: one's old number may be another's new one.
            let mut moved = [-1; MAX_CHILD_FDS];
            for (slot, (ours, _)) in moved.iter_mut().zip(&fds) {
                *slot = libc::fcntl(ours.as_raw_fd(), libc::F_DUPFD_CLOEXEC, ABOVE_ALL);
                check((*slot).into())?;
            }
            for (from, (_, theirs)) in moved.iter().zip(&fds) {
                check(libc::dup2(*from, *theirs).into())?;
            }
            Ok(())
        });
    }
}

/// Registers a pipe, fifo, socket or terminal with the event loop.
///
/// # Errors
/// `EPERM` for what epoll(7) cannot watch.
pub(crate) fn watch(
    fd: impl Into<Descriptor>,
    interest: Interest,
) -> io::Result<AsyncFd<Descriptor>> {
    // SAFETY: a Descriptor owns one open descriptor and names the same one for all its life.
    Ok(unsafe { AsyncFd::register_with_interest(fd.into(), interest) }?)
}

/// Registers a listening socket with the event loop.
///
/// # Errors
/// epoll(7)'s.
pub(crate) fn watch_listener(listener: UnixListener) -> io::Result<AsyncFd<UnixListener>> {
    // SAFETY: a listener owns one open descriptor and names the same one for all its life.
    Ok(unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) }?)
}

/// What an [`AsyncFd`] of out-of-memory events holds.
#[derive(Debug)]
pub(crate) struct OomSource(pub(crate) OomEvents);

impl AsRawFd for OomSource {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Registers out-of-memory events with the event loop.
///
/// # Errors
/// epoll(7)'s.
pub(crate) fn watch_oom(events: OomEvents) -> io::Result<(AsyncFd<OomSource>, Interest)> {
    let interest = if events.poll_events() == libc::POLLPRI {
        Interest::PRIORITY
    } else {
        Interest::READABLE
    };
    // SAFETY: OomEvents owns one open descriptor and names the same one for all its life.
    let watched = unsafe { AsyncFd::register_with_interest(OomSource(events), interest) }?;
    Ok((watched, interest))
}

/// `struct loop_info64` of loop(4).
#[repr(C)]
struct LoopInfo {
    device_inode_rdevice_offset_size: [u64; 5],
    number_and_encryption: [u32; 3],
    flags: u32,
    names_and_key: [u8; 64 + 64 + 32],
    init: [u64; 2],
}

/// `struct loop_config` of loop(4).
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// Number of a loop device that was free a moment ago; made if need be.
///
/// # Errors
/// The kernel's.
pub(crate) fn free_loop_device(control: BorrowedFd<'_>) -> io::Result<libc::c_long> {
    const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4c82;
    // SAFETY: the request takes no argument; `control` is open.
    check(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) }.into())
}

/// Puts `image` behind a loop device that frees itself after its last use.
///
/// # Errors
/// `EBUSY` when somebody else took it first.
pub(crate) fn configure_loop(
    device: BorrowedFd<'_>,
    image: BorrowedFd<'_>,
    read_only: bool,
) -> io::Result<()> {
    const LOOP_CONFIGURE: libc::c_ulong = 0x4c0a;
    const READ_ONLY: u32 = 1;
    const AUTOCLEAR: u32 = 4;
    let config = LoopConfig {
        fd: u32::try_from(image.as_raw_fd())
            .map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?,
        block_size: 0,
        info: LoopInfo {
            device_inode_rdevice_offset_size: [0; 5],
            number_and_encryption: [0; 3],
            flags: AUTOCLEAR | if read_only { READ_ONLY } else { 0 },
            names_and_key: [0; 160],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    // SAFETY: the request reads one `struct loop_config`, whose layout `LoopConfig` has and
    // which lives through the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) }.into())
        .map(drop)
}

/// A user namespace with these maps, in the format of `/proc/PID/uid_map`. It lives as long as
/// the descriptor.
///
/// # Errors
/// `EPERM` without the right to make one, `EINVAL` for maps that overlap.
pub(crate) fn user_namespace(uid_map: &str, gid_map: &str) -> io::Result<OwnedFd> {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    // No signal at its end: so the reaper does not see it, and it is waited for below.
    const FLAGS: libc::c_long = libc::CLONE_NEWUSER as libc::c_long;
    // SAFETY: like fork(2), with a new user namespace: no stack and no pointers are passed.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone, FLAGS, 0, 0, 0, 0) })?;
    if pid == 0 {
        // SAFETY: only system calls on integers and a local byte, as is right after a fork; the
        // read returns when the parent closes its end or dies.
        unsafe {
            libc::close(writer.as_raw_fd());
            let mut byte = 0u8;
            libc::read(reader.as_raw_fd(), (&raw mut byte).cast(), 1);
            libc::_exit(0);
        }
    }
    let result = std::fs::write(format!("/proc/{pid}/uid_map"), uid_map)
        .and_then(|()| std::fs::write(format!("/proc/{pid}/gid_map"), gid_map))
        .and_then(|()| File::open(format!("/proc/{pid}/ns/user")));
    drop(writer);
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: our own child, which ends now; null asks for no status.
    while unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::__WCLONE) } < 0
        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
    {}
    result.map(OwnedFd::from)
}

/// Mounts the file system at `source` on `target` with its owners shifted by a user namespace;
/// see mount_setattr(2).
///
/// # Errors
/// `EINVAL` for a file system that cannot be shifted.
pub(crate) fn mount_shifted(source: &CStr, target: &CStr, user: BorrowedFd<'_>) -> io::Result<()> {
    const OPEN_TREE_CLONE: libc::c_uint = 1;
    const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_uint;
    // SAFETY: `source` ends with NUL and lives through the call.
    let tree = fd_from(check(unsafe {
        libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, source.as_ptr(), flags)
    })?)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(user.as_raw_fd()).map_err(io::Error::other)?,
    };
    // SAFETY: an empty NUL-terminated path, and a `struct mount_attr` with its size, both living
    // through the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    })?;
    // SAFETY: both strings end with NUL and live through the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    })
    .map(drop)
}

/// A file in memory without a name; see memfd_create(2).
///
/// # Errors
/// The kernel's.
pub(crate) fn memory_file(name: &CStr) -> io::Result<File> {
    // SAFETY: `name` is a string that ends with NUL and lives through the call; the result is a
    // new descriptor or -1.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just made this descriptor, and nobody else knows of it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// As [`memory_file`], of which a program can be executed.
///
/// # Errors
/// `EACCES` where the kernel is told to refuse it (`vm.memfd_noexec`).
pub(crate) fn executable_memory_file(name: &CStr) -> io::Result<File> {
    const MFD_EXEC: libc::c_uint = 0x10;
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: a NUL-terminated name that lives through the call, and integer flags.
    let create = |flags| check(unsafe { libc::memfd_create(name.as_ptr(), flags) }.into());
    let fd = match create(flags | MFD_EXEC) {
        // Kernels before 6.3 do not know the flag and make every such file executable.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => create(flags)?,
        other => other?,
    };
    fd_from(fd).map(File::from)
}

/// The same open file under a number of at least `number`.
///
/// # Errors
/// `EMFILE`.
pub(crate) fn move_above(file: &File, number: RawFd) -> io::Result<File> {
    // SAFETY: integers only.
    let moved =
        check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, number) }.into())?;
    fd_from(moved).map(File::from)
}

/// Looks at the next bytes of a stream socket; [`take`] takes them off. The socket knows how many were looked at, so
/// that a next image can tell ([`finish_taking`]).
///
/// # Errors
/// `EAGAIN` when there are none; see recv(2).
pub(crate) fn peek(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    use nix::sys::socket::{MsgFlags, recv};
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    Ok(recv(socket.as_raw_fd(), buffer, flags)?)
}

/// Takes off what was looked at.
///
/// # Errors
/// See recv(2).
pub(crate) fn take(socket: BorrowedFd<'_>, buffer: &mut [u8], mut size: usize) -> io::Result<()> {
    use nix::sys::socket::{MsgFlags, recv};
    while size > 0 {
        let most = size.min(buffer.len());
        let some = buffer.get_mut(..most).unwrap_or_default();
        match recv(socket.as_raw_fd(), some, MsgFlags::MSG_DONTWAIT)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            taken => size -= taken.min(size),
        }
    }
    Ok(())
}

/// Makes [`peek`] begin at the first byte that was not taken; `taken`: as many as an image before had on the slate
/// before it took them off. Whether it came to that the socket knows.
///
/// # Errors
/// See socket(7), `SO_PEEK_OFF`.
pub(crate) fn finish_taking(socket: BorrowedFd<'_>, taken: Option<u64>) -> io::Result<()> {
    let mut offset: libc::c_int = 0;
    let mut size = libc::socklen_t::try_from(size_of_val(&offset)).map_err(io::Error::other)?;
    // SAFETY: the option is one int, which lives through the call, and so does its size.
    let asked = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEEK_OFF,
            (&raw mut offset).cast(),
            &raw mut size,
        )
    };
    check(asked.into())?;
    // Less than was looked at: it was killed while it took them off.
    if let Ok(looked @ 1..) = u64::try_from(offset)
        && taken.is_some_and(|taken| looked <= taken)
    {
        let looked = usize::try_from(looked).map_err(io::Error::other)?;
        take(socket, &mut [0; 4096], looked)?;
    }
    let zero: libc::c_int = 0;
    // SAFETY: as above.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEEK_OFF,
            (&raw const zero).cast(),
            size,
        )
    };
    check(set.into()).map(drop)
}

/// Moves bytes from one pipe to another within the kernel, as many as there are and fit, at most `size`; 0 at the end
/// of the first one.
///
/// # Errors
/// `EAGAIN` when the first is empty or the second full; see splice(2).
pub(crate) fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, size: usize) -> io::Result<usize> {
    let none = std::ptr::null_mut();
    let flags = libc::SPLICE_F_NONBLOCK | libc::SPLICE_F_MOVE;
    // SAFETY: null offsets are allowed, and right for pipes; the rest are integers.
    let moved = check(unsafe {
        libc::splice(from.as_raw_fd(), none, to.as_raw_fd(), none, size, flags) as libc::c_long
    })?;
    Ok(usize::try_from(moved).unwrap_or(0))
}

/// How many bytes can be read from a pipe at once.
///
/// # Errors
/// See ioctl(2).
pub(crate) fn readable_bytes(pipe: BorrowedFd<'_>) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: the request writes one int, which lives through the call.
    check(unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut count) }.into())?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Lets nobody change a file in memory any more.
///
/// # Errors
/// The kernel's.
pub(crate) fn seal(file: &File) -> io::Result<()> {
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE | libc::F_SEAL_SEAL;
    // SAFETY: integers only.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) }.into()).map(drop)
}

/// A true SIGSEGV, for tests.
#[cfg(feature = "fault-points")]
pub(crate) fn write_to_nowhere() {
    let nowhere: *mut u8 = std::hint::black_box(std::ptr::without_provenance_mut(8));
    // SAFETY: none; the page is never mapped (vm.mmap_min_addr), and the fault is what is wanted.
    unsafe {
        nowhere.write_volatile(1);
    }
}

/// A counter that can be written by a signal handler and read by the event loop; see eventfd(2).
///
/// # Errors
/// The kernel's.
pub(crate) fn event_counter() -> io::Result<OwnedFd> {
    // SAFETY: integers only.
    fd_from(check(
        unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) }.into(),
    )?)
}

/// Sets the window size of a terminal.
///
/// # Errors
/// See ioctl_tty(2).
pub(crate) fn set_window_size(tty: BorrowedFd<'_>, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one winsize, which lives for the whole call.
    check(unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }.into())
        .map(drop)
}

/// Lets all threads share one heap: what a thread that came and went has freed is there for the
/// next one, and can be given back.
pub(crate) fn share_one_heap() {
    // SAFETY: mallopt(3) takes two numbers and no pointer.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Gives the heap's free pages back to the kernel.
pub(crate) fn trim_heap() {
    // SAFETY: malloc_trim(3) takes a number; it touches only what is free, under malloc's own lock.
    unsafe { libc::malloc_trim(0) };
}

/// Starts a new core scheduling cookie for the process group of the caller.
///
/// # Errors
/// `ENODEV` or `EINVAL` where the kernel has no core scheduling.
pub(crate) fn create_core_scheduling_cookie() -> io::Result<()> {
    const PR_SCHED_CORE: i32 = 62;
    const PR_SCHED_CORE_CREATE: libc::c_ulong = 1;
    const PROCESS_GROUP: libc::c_ulong = 2;
    // SAFETY: integers only.
    check(
        unsafe {
            libc::prctl(
                PR_SCHED_CORE,
                PR_SCHED_CORE_CREATE,
                0 as libc::c_ulong,
                PROCESS_GROUP,
                0 as libc::c_ulong,
            )
        }
        .into(),
    )
    .map(drop)
}

/// One message from a socket with at most one descriptor attached.
#[derive(Debug)]
pub(crate) struct Received {
    /// Bytes of the message; 0 is end of file.
    pub(crate) len: usize,
    /// The descriptor that came along, close-on-exec.
    pub(crate) fd: Option<Descriptor>,
}

/// Receives a message and the descriptor that may come with it (`SCM_RIGHTS`).
///
/// # Errors
/// `EAGAIN` on an empty non-blocking socket; see recvmsg(2).
pub(crate) fn receive_with_fd(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    #[repr(align(8))]
    struct Control([u8; 128]);
    let mut control = Control([0; 128]);
    let mut iov = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: msghdr is plain data for which all zeroes is a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len() as _;
    // SAFETY: `message` points at `iov`, `buffer` and `control`, all alive and sized as told.
    let len = check(unsafe {
        libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) as libc::c_long
    })?;
    let mut fd = None;
    // SAFETY: the CMSG macros walk the control buffer that recvmsg has just filled; each
    // descriptor read from an SCM_RIGHTS message is new and owned by us, so all but the
    // first are closed by dropping them.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(header).cast::<RawFd>();
                for index in 0..bytes / size_of::<RawFd>() {
                    let received = OwnedFd::from_raw_fd(data.add(index).read_unaligned());
                    fd.get_or_insert(received);
                }
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    Ok(Received {
        len: usize::try_from(len).unwrap_or(0),
        fd: fd.map(Descriptor::from),
    })
}

/// Mounts overlay with the mount API, one `lowerdir+` per layer, for lists of layers that
/// do not fit mount(2)'s page. Needs Linux 6.5; older ones answer `EINVAL`.
///
/// # Errors
/// The first failing step's errno.
pub(crate) fn mount_overlay_layers(
    layers: &[&str],
    other: &[(String, Option<String>)],
    target: &CStr,
    attributes: u64,
) -> io::Result<()> {
    const FSCONFIG_SET_FLAG: u32 = 0;
    const FSCONFIG_SET_STRING: u32 = 1;
    const FSCONFIG_CMD_CREATE: u32 = 6;
    const MOVE_MOUNT_F_EMPTY_PATH: u32 = 4;
    let config = |fs: BorrowedFd<'_>, command: u32, key: Option<&CStr>, value: Option<&CStr>| {
        // SAFETY: both strings are NUL terminated and outlive the call, or null where
        // fsconfig(2) allows it for this command.
        check(unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                fs.as_raw_fd(),
                command,
                key.map_or(std::ptr::null(), CStr::as_ptr),
                value.map_or(std::ptr::null(), CStr::as_ptr),
                0,
            )
        })
        .map(drop)
    };
    let text = |s: &str| CString::new(s).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL));
    // SAFETY: a NUL-terminated constant and an integer.
    let fs = fd_from(check(unsafe {
        libc::syscall(libc::SYS_fsopen, c"overlay".as_ptr(), 1)
    })?)?;
    for layer in layers {
        config(
            fs.as_fd(),
            FSCONFIG_SET_STRING,
            Some(c"lowerdir+"),
            Some(&text(layer)?),
        )?;
    }
    for (key, value) in other {
        let key = text(key)?;
        match value {
            Some(value) => config(
                fs.as_fd(),
                FSCONFIG_SET_STRING,
                Some(&key),
                Some(&text(value)?),
            )?,
            None => config(fs.as_fd(), FSCONFIG_SET_FLAG, Some(&key), None)?,
        }
    }
    config(fs.as_fd(), FSCONFIG_CMD_CREATE, None, None)?;
    // SAFETY: integers only.
    let mount = fd_from(check(unsafe {
        libc::syscall(libc::SYS_fsmount, fs.as_raw_fd(), 1, attributes)
    })?)?;
    // SAFETY: both strings are NUL terminated and outlive the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    })
    .map(drop)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::zombie_processes, reason = "reaped by pidfd")]
    use super::*;

    #[test]
    fn what_was_looked_at_is_taken_once() {
        use std::io::Write as _;
        use std::os::unix::net::UnixStream;
        let (mut writer, reader) = UnixStream::pair().unwrap();
        let mut buffer = [0; 16];
        finish_taking(reader.as_fd(), None).unwrap();
        writer.write_all(b"first").unwrap();
        assert_eq!(peek(reader.as_fd(), &mut buffer).unwrap(), 5);
        // Not on the slate: it is read again.
        finish_taking(reader.as_fd(), None).unwrap();
        assert_eq!(peek(reader.as_fd(), &mut buffer).unwrap(), 5);
        writer.write_all(b"second").unwrap();
        // On the slate, and not taken yet.
        finish_taking(reader.as_fd(), Some(5)).unwrap();
        assert_eq!(peek(reader.as_fd(), &mut buffer).unwrap(), 6);
        assert_eq!(&buffer[..6], b"second");
        take(reader.as_fd(), &mut buffer, 6).unwrap();
        // On the slate, and taken.
        writer.write_all(b"third!").unwrap();
        finish_taking(reader.as_fd(), Some(6)).unwrap();
        assert_eq!(peek(reader.as_fd(), &mut buffer).unwrap(), 6);
        assert_eq!(&buffer[..6], b"third!");
        // On the slate, and taken in part.
        take(reader.as_fd(), &mut buffer, 2).unwrap();
        finish_taking(reader.as_fd(), Some(6)).unwrap();
        writer.write_all(b"4").unwrap();
        assert_eq!(peek(reader.as_fd(), &mut buffer).unwrap(), 1);
        assert_eq!(buffer[0], b'4');
    }

    #[test]
    fn a_child_is_peeked_at_and_then_reaped_by_its_pidfd() {
        let child = Command::new("/bin/sh")
            .args(["-c", "exit 7"])
            .spawn()
            .unwrap();
        let pidfd = pidfd_open(child.id()).unwrap();
        let mut poll = [nix::poll::PollFd::new(
            pidfd.as_fd(),
            nix::poll::PollFlags::POLLIN,
        )];
        nix::poll::poll(&mut poll, nix::poll::PollTimeout::from(5000u16)).unwrap();
        let peeked = wait_child(Children::Pid(child.id()), true)
            .unwrap()
            .unwrap();
        assert_eq!(peeked.status, ExitStatus::Exited(7));
        let reaped = wait_child(Children::Pidfd(pidfd.as_fd()), false).unwrap();
        assert_eq!(reaped, Some(peeked));
        let gone = wait_child(Children::Pidfd(pidfd.as_fd()), false).unwrap_err();
        assert_eq!(gone.raw_os_error(), Some(libc::ECHILD));
    }
}
