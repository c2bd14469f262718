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

/// Our own permitted capabilities, bit `n` for capability number `n` (capget(2)).
pub(crate) fn permitted_capabilities() -> io::Result<u64> {
    const VERSION_3: u32 = 0x2008_0522;
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    let header = Header {
        version: VERSION_3,
        pid: 0,
    };
    // Effective, permitted and inheritable of capabilities 0 to 31, then of 32 to 63.
    let mut data = [0_u32; 6];
    // SAFETY: the header lives through the call and names version 3, for which the kernel writes
    // two structs of three words: the six words of `data`.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u64::from(data[1]) | u64::from(data[4]) << 32)
}

#[cfg(test)]
mod tests {
    use super::permitted_capabilities;

    #[test]
    fn permitted_capabilities_are_those_the_kernel_prints() {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("CapPrm:\t"))
            .unwrap();
        let printed = u64::from_str_radix(line, 16).unwrap();
        assert_eq!(permitted_capabilities().unwrap(), printed);
    }
}
