//! Descriptors: memfds, detached trees, descriptors in messages.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};

fn owned(ret: libc::c_long) -> io::Result<OwnedFd> {
    match RawFd::try_from(ret) {
        // SAFETY: the callers pass the result of a call that returns a new descriptor.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A sealed memfd with these bytes: nobody can change or shrink it. `inherit` leaves it open
/// over execve.
pub(crate) fn sealed(
    name: &CStr,
    bytes: &[u8],
    executable: bool,
    inherit: bool,
) -> io::Result<OwnedFd> {
    const MFD_EXEC: libc::c_uint = 0x10;
    let mut flags = libc::MFD_ALLOW_SEALING;
    if !inherit {
        flags |= libc::MFD_CLOEXEC;
    }
    // SAFETY: a NUL-terminated name and integer flags.
    let create = |flags| owned(unsafe { libc::memfd_create(name.as_ptr(), flags) }.into());
    let fd = match create(if executable { flags | MFD_EXEC } else { flags }) {
        // Kernels before 6.3 do not know MFD_EXEC and make every memfd executable.
        Err(error) if executable && error.raw_os_error() == Some(libc::EINVAL) => create(flags)?,
        other => other?,
    };
    let mut file = File::from(fd);
    file.write_all(bytes)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE | libc::F_SEAL_SEAL;
    // SAFETY: integers only.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file.into())
}

/// `open_tree(OPEN_TREE_CLONE)` of a host path: a detached copy of the mount, open over
/// execve. `recursive` takes the mounts below along.
pub(crate) fn clone_tree(path: &CStr, recursive: bool, nofollow: bool) -> io::Result<OwnedFd> {
    const OPEN_TREE_CLONE: libc::c_int = 1;
    let mut flags = OPEN_TREE_CLONE;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    if nofollow {
        flags |= libc::AT_SYMLINK_NOFOLLOW;
    }
    // SAFETY: a NUL-terminated path and integers.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })
}

/// How often a look-up is begun again that a rename or mount disturbed (EAGAIN, openat2(2)).
const DISTURBED: u32 = 256;

/// Opens with `openat2`; the result is close-on-exec.
pub(crate) fn openat2(
    dir: BorrowedFd<'_>,
    path: &CStr,
    flags: libc::c_int,
    resolve: u64,
) -> io::Result<OwnedFd> {
    for _ in 1..DISTURBED {
        match openat2_once(dir, path, flags, resolve) {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            other => return other,
        }
    }
    openat2_once(dir, path, flags, resolve)
}

fn openat2_once(
    dir: BorrowedFd<'_>,
    path: &CStr,
    flags: libc::c_int,
    resolve: u64,
) -> io::Result<OwnedFd> {
    // SAFETY: all-zero bytes are a valid open_how.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (flags | libc::O_CLOEXEC).cast_unsigned().into();
    how.resolve = resolve;
    // SAFETY: a NUL-terminated path and a struct of the size that is passed.
    owned(unsafe {
        libc::syscall(
            libc::SYS_openat2,
            dir.as_raw_fd(),
            path.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        )
    })
}

/// Whether a host path is in the kernel's caches to its end, so that a look-up waits for nobody.
pub(crate) fn is_cached(path: &CStr) -> bool {
    // linux/openat2.h; Linux 5.12.
    const RESOLVE_CACHED: u64 = 0x20;
    // SAFETY: integers only; AT_FDCWD is no descriptor that anybody could close.
    let here = unsafe { BorrowedFd::borrow_raw(libc::AT_FDCWD) };
    openat2_once(here, path, libc::O_PATH, RESOLVE_CACHED).is_ok()
}

/// Looks a host path up with its attributes, however long it takes.
pub(crate) fn look_up(path: &CStr) {
    // SAFETY: all-zero bytes are a valid stat, which has integer fields only.
    let mut found: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: a NUL-terminated path and a place for the result. The outcome is nobody's concern.
    unsafe { libc::stat(path.as_ptr(), &raw mut found) };
}

/// Whether a directory is open here, by what the kernel knows without asking a server.
pub(crate) fn is_directory(file: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: all-zero bytes are a valid statx, which has integer fields only.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC;
    // SAFETY: an empty path and a place for the result.
    let done = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            flags,
            libc::STATX_TYPE,
            &raw mut found,
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u32::from(found.stx_mode) & libc::S_IFMT == libc::S_IFDIR)
}

/// Opens a host path, to be inherited over execve (no `O_CLOEXEC`).
pub(crate) fn open_inherited(path: &CStr, flags: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: a NUL-terminated path and integers; no mode is needed without O_CREAT.
    owned(unsafe { libc::open(path.as_ptr(), flags) }.into())
}

/// A duplicate that survives execve, numbered `floor` or higher.
pub(crate) fn inherited_above(fd: BorrowedFd<'_>, floor: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: integers only.
    owned(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD, floor) }.into())
}

/// Takes over a descriptor whose number came from the environment or command line.
///
/// # Errors
/// EBADF when it is not open.
pub(crate) fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: integers only; also marks it close-on-exec, so it cannot leak into children.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and whoever passed its number gave it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends `bytes` and one descriptor. Blocks only while the receiver's buffer is full.
pub(crate) fn send_fd(socket: BorrowedFd<'_>, bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<()> {
    let fds = [fd.as_raw_fd()];
    sendmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &[IoSlice::new(bytes)],
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

/// Sends one message without a descriptor; EPIPE instead of a signal.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    nix::sys::socket::send(socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL)?;
    Ok(())
}

/// Receives one message and at most one descriptor (close-on-exec).
pub(crate) fn receive_fd(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; 2]);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut received = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            for fd in fds {
                // SAFETY: the kernel just made these descriptors for us; surplus ones are
                // closed by dropping the earlier value.
                received = Some(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    Ok((message.bytes, received))
}

/// Joins a namespace with this process.
pub(crate) fn setns(fd: BorrowedFd<'_>, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: integers only.
    if unsafe { libc::setns(fd.as_raw_fd(), flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Forgets the ownership of a descriptor that this process keeps open until it ends.
pub(crate) fn keep_open(fd: OwnedFd) -> RawFd {
    fd.into_raw_fd()
}
