//! The call into the kernel, its errors, and how arguments become registers. The wrappers beside this
//! file are one function per system call.

use core::ffi::CStr;

use linux_raw_sys::errno;
use linux_raw_sys::general as k;

use super::arch::raw;

/// An errno value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) i32);

#[expect(clippy::cast_possible_wrap, reason = "errno values are small")]
mod errnos {
    use super::errno;
    pub(crate) const ENOENT: i32 = errno::ENOENT as i32;
    pub(crate) const EBUSY: i32 = errno::EBUSY as i32;
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

#[expect(clippy::cast_sign_loss, reason = "-100 stays -100 in a register")]
pub(super) const CWD: usize = k::AT_FDCWD as isize as usize;

fn check(ret: isize) -> Call<usize> {
    match ret {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the kernel returns -4095..-1 for an error"
        )]
        -4095..=-1 => Err(Errno(-ret as i32)),
        #[expect(clippy::cast_sign_loss, reason = "large values are addresses")]
        _ => Ok(ret as usize),
    }
}

/// Widens a descriptor or id to a register.
#[expect(clippy::cast_sign_loss, reason = "-1 stays -1")]
pub(super) fn reg(value: i32) -> usize {
    value as isize as usize
}

pub(super) fn text(path: &CStr) -> usize {
    path.as_ptr() as usize
}

pub(super) fn at<T>(value: &T) -> usize {
    core::ptr::from_ref(value) as usize
}

pub(super) fn call(nr: u32, a: [usize; 6]) -> Call<usize> {
    // SAFETY: only the wrappers of `sys` can call this; each passes integers or addresses taken from
    // references that outlive the call, with the lengths that belong to them.
    check(unsafe { raw(nr as usize, a) })
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "descriptors are below 2^31"
)]
pub(super) fn fd(ret: usize) -> i32 {
    ret as i32
}
