//! A helper program that talks to us over an inherited socket: criu.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use super::child::{self, Cloned};
use super::spawn::pipe;

/// What is started.
pub(crate) struct Worker<'a> {
    /// The program.
    pub(crate) path: &'a CStr,
    /// Its arguments, the first one included.
    pub(crate) args: &'a [CString],
    /// Its environment.
    pub(crate) env: &'a [CString],
    /// What it inherits under the numbers it has here, beside 0, 1 and 2.
    pub(crate) keep: &'a [BorrowedFd<'a>],
    /// Make it a child of our parent, and with it what it makes as a sibling of itself.
    pub(crate) sibling: bool,
    /// Give it a mount namespace of its own in which this directory is a mount point; it ends
    /// with the program, so nothing can be left mounted on the host.
    pub(crate) root: Option<&'a CStr>,
}

/// Starts it. The second value is at its end once the program runs; four bytes of errno come
/// out of it when it does not.
pub(crate) fn start(worker: &Worker<'_>) -> io::Result<(Cloned, OwnedFd)> {
    let (argv, envp) = (child::pointers(worker.args), child::pointers(worker.env));
    let (report, answer) = pipe()?;
    let keep: Vec<RawFd> = worker.keep.iter().map(AsRawFd::as_raw_fd).collect();
    let kind = child::Kind {
        sibling: worker.sibling,
        ..child::Kind::default()
    };
    // SAFETY: all that the child uses was made above; it only makes system calls until it leaves by execve or _exit.
    if let Some(cloned) = unsafe { child::clone(kind) }? {
        return Ok((cloned, report));
    }
    // SAFETY: the child; NULL-terminated arrays and strings that live in its copy of this frame.
    unsafe {
        if enter(worker.root) && keep_only(&keep) {
            libc::execve(worker.path.as_ptr(), argv.as_ptr(), envp.as_ptr());
        }
        let errno = io::Error::last_os_error().raw_os_error().unwrap_or(0);
        let bytes = errno.to_ne_bytes();
        libc::write(answer.as_raw_fd(), bytes.as_ptr().cast(), bytes.len());
        libc::_exit(127)
    }
}

/// In the child: makes the mount namespace. False when a call failed.
///
/// # Safety
/// Only in a child without CLONE_VM.
unsafe fn enter(root: Option<&CStr>) -> bool {
    let Some(root) = root else { return true };
    let none: *const libc::c_char = std::ptr::null();
    let mount = |source: *const libc::c_char, target: &CStr, flags| {
        // SAFETY: NUL-terminated strings or NULL, and integers.
        unsafe { libc::mount(source, target.as_ptr(), none, flags, none.cast()) == 0 }
    };
    // SAFETY: integers only.
    let unshared = unsafe { libc::unshare(libc::CLONE_NEWNS) } == 0;
    unshared
        && mount(none, c"/", libc::MS_SLAVE | libc::MS_REC)
        && mount(root.as_ptr(), root, libc::MS_BIND | libc::MS_REC)
        && mount(none, root, libc::MS_PRIVATE)
}

/// In the child: marks every descriptor above 2 close-on-exec but these. False when that failed.
///
/// # Safety
/// Only in a child: it changes the whole descriptor table.
unsafe fn keep_only(keep: &[RawFd]) -> bool {
    // SAFETY: as promised by the caller; integers only.
    unsafe {
        child::close_on_exec_above_stdio()
            && keep
                .iter()
                .all(|fd| libc::fcntl(*fd, libc::F_SETFD, 0) == 0)
            && child::unblock_signals()
    }
}

/// The errno that [`start`]'s report holds, if the program did not start.
pub(crate) fn refusal(report: &OwnedFd) -> Option<io::Error> {
    let mut bytes = [0; 4];
    match nix::unistd::read(report.as_fd().as_raw_fd(), &mut bytes) {
        Ok(4) => Some(io::Error::from_raw_os_error(i32::from_ne_bytes(bytes))),
        Ok(_) | Err(_) => None,
    }
}
