//! Mounts, and the directories that a process sees as its root and its own.

use core::ffi::CStr;

use linux_raw_sys::general as k;

use super::call::{CWD, Call, at, call, fd, reg, text};

pub(crate) fn mount(
    source: Option<&CStr>,
    target: &CStr,
    fstype: Option<&CStr>,
    flags: u64,
    data: Option<&CStr>,
) -> Call<()> {
    #[expect(clippy::cast_possible_truncation, reason = "registers have 64 bits")]
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

pub(crate) fn pivot_root(new: &CStr, old: &CStr) -> Call<()> {
    call(k::__NR_pivot_root, [text(new), text(old), 0, 0, 0, 0]).map(drop)
}

pub(crate) fn chroot(path: &CStr) -> Call<()> {
    call(k::__NR_chroot, [text(path), 0, 0, 0, 0, 0]).map(drop)
}

pub(crate) fn chdir(path: &CStr) -> Call<()> {
    call(k::__NR_chdir, [text(path), 0, 0, 0, 0, 0]).map(drop)
}

pub(crate) fn fchdir(dir: i32) -> Call<()> {
    call(k::__NR_fchdir, [reg(dir), 0, 0, 0, 0, 0]).map(drop)
}

/// Length of the working directory's path with NUL; the bytes are in `buffer`.
pub(crate) fn getcwd(buffer: &mut [u8]) -> Call<usize> {
    call(
        k::__NR_getcwd,
        [buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0, 0],
    )
}
