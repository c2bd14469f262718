//! Questions to the kernel that change nothing.

use std::io;

/// Whether `seccomp(2)` knows `flags` (`SECCOMP_FILTER_FLAG_*`).
///
/// The flags are checked before the filter is read, so a null filter tells the two apart: EFAULT for known flags,
/// EINVAL for unknown ones.
pub(crate) fn knows_filter_flags(flags: libc::c_ulong) -> bool {
    // SAFETY: a null filter is what is asked about: the kernel refuses it, so nothing is installed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            std::ptr::null::<libc::sock_fprog>(),
        )
    };
    result < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}
