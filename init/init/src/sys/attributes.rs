//! Extended attributes.

use core::ffi::CStr;

use linux_raw_sys::general as k;

use super::call::{Call, call, reg, text};

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
