//! Who the process is: ids, capabilities, limits.

use holdfast_plan::Words;

use crate::fault::{Done, Fault};
use crate::sys::{self, EINVAL, Errno};

/// Drops every capability from the bounding set that is not in `keep`.
pub(crate) fn bound(keep: u64) -> Done {
    for capability in (0..64).filter(|c| keep & (1 << c) == 0) {
        match sys::drop_bounding(capability) {
            Ok(()) => {}
            // Past the kernel's last capability.
            Err(Errno(EINVAL)) => break,
            Err(errno) => return Err(Fault::call(b"prctl PR_CAPBSET_DROP", errno)),
        }
    }
    Ok(())
}

/// Changes groups, gid and uid, in the only order that works. Capabilities survive until
/// [`capabilities`] sets them.
pub(crate) fn become_user(
    uid: u32,
    gid: u32,
    groups: Words<'_>,
    set_groups: bool,
    umask: u32,
) -> Done {
    sys::umask(umask);
    // Also with an empty list: the groups of whoever started us must not stay.
    if set_groups {
        sys::setgroups(groups.as_bytes()).map_err(|errno| Fault::call(b"setgroups", errno))?;
    }
    sys::setresgid(gid).map_err(|errno| Fault::call(b"setresgid", errno))?;
    if uid != 0 {
        sys::keep_capabilities().map_err(|errno| Fault::call(b"prctl PR_SET_KEEPCAPS", errno))?;
    }
    sys::setresuid(uid).map_err(|errno| Fault::call(b"setresuid", errno))
}

/// Root of the new user namespace.
pub(crate) fn become_root() -> Done {
    sys::setresgid(0).map_err(|errno| Fault::call(b"setresgid", errno))?;
    sys::setresuid(0).map_err(|errno| Fault::call(b"setresuid", errno))
}

pub(crate) fn capabilities(effective: u64, permitted: u64, inheritable: u64, ambient: u64) -> Done {
    sys::capset(effective, permitted, inheritable)
        .map_err(|errno| Fault::call(b"capset", errno))?;
    match sys::clear_ambient() {
        // A kernel that is configured without ambient capabilities has none to clear.
        Ok(()) | Err(Errno(EINVAL)) => {}
        Err(errno) => return Err(Fault::call(b"prctl PR_CAP_AMBIENT_CLEAR_ALL", errno)),
    }
    for capability in (0..64).filter(|c| ambient & (1 << c) != 0) {
        sys::raise_ambient(capability)
            .map_err(|errno| Fault::call(b"prctl PR_CAP_AMBIENT_RAISE", errno))?;
    }
    Ok(())
}
