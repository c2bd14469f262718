//! Mounts that mount(2) cannot make: loop devices, shifted owners, long lists of layers.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::{check, fd_from};

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
