//! The one clone of a create or exec.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use holdfast_cgroups::Entrance;
use holdfast_plan::report::{Fault, MAX_FRAME, Report};

pub(crate) use super::child::Cloned;

use super::child;

/// What the clone does to the child's user namespace.
///
/// execve takes the capabilities of a process that is not root in its user namespace, so it
/// has to become root before the image is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserNamespace {
    /// It stays in ours.
    Unchanged,
    /// A new one: the child waits for the parent's byte, sent when the maps are written.
    New,
    /// One that exists and has its maps.
    Joined,
}

/// What the new process starts with.
pub(crate) struct Clone3<'a> {
    /// `CLONE_NEW*`.
    pub(crate) namespaces: u64,
    /// Make it a child of our parent (`CLONE_PARENT`).
    pub(crate) sibling: bool,
    /// Start inside this cgroup v2 directory.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    /// The image to execute.
    pub(crate) image: BorrowedFd<'a>,
    /// argv of the image.
    pub(crate) args: [&'a CStr; 3],
    /// The only close-on-exec descriptor the image keeps.
    pub(crate) keep: BorrowedFd<'a>,
    /// The parent's end of the socket whose other end is `keep`.
    pub(crate) peer: BorrowedFd<'a>,
    /// v1 cgroups that the child enters by itself before it executes the image.
    pub(crate) entrance: Option<&'a Entrance>,
    /// The child's user namespace.
    pub(crate) user_namespace: UserNamespace,
    /// fds 0 to 2 of the child, when they are not ours.
    pub(crate) stdio: Option<[BorrowedFd<'a>; 3]>,
}

/// Clones and executes the image in the child.
///
/// The caller must be single-threaded only in so far as the child, between clone and
/// execve, makes nothing but system calls: no allocation, no lock.
pub(crate) fn clone_and_execute(request: &Clone3<'_>) -> io::Result<Cloned> {
    let argv = [
        request.args[0].as_ptr(),
        request.args[1].as_ptr(),
        request.args[2].as_ptr(),
        std::ptr::null(),
    ];
    let kind = child::Kind {
        namespaces: request.namespaces,
        sibling: request.sibling,
        cgroup: request.cgroup,
    };
    // SAFETY: below, the child only makes system calls on memory prepared above, and leaves by execveat or _exit.
    if let Some(cloned) = unsafe { child::clone(kind) }? {
        return Ok(cloned);
    }
    // SAFETY: the child's own descriptors, strings and arrays that end with NULL and live in its copy of this frame.
    unsafe {
        libc::fcntl(request.keep.as_raw_fd(), libc::F_SETFD, 0);
        if let Some(Err(error)) = request.entrance.map(Entrance::enter) {
            give_up(request, &error, b"enter the v1 cgroups");
        }
        if let Err(error) = become_root(request) {
            give_up(request, &error, b"become root of the user namespace");
        }
        if let Some(stdio) = &request.stdio {
            for (to, from) in (0..).zip(stdio) {
                libc::dup2(from.as_raw_fd(), to);
            }
        }
        let envp = [std::ptr::null::<libc::c_char>()];
        libc::syscall(
            libc::SYS_execveat,
            request.image.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
        give_up(request, &io::Error::last_os_error(), b"execveat")
    }
}

/// In the child: waits for the maps and takes id 0. Raw system calls: glibc's wrappers would
/// look for the threads of a process that this one only was copied from.
fn become_root(request: &Clone3<'_>) -> io::Result<()> {
    match request.user_namespace {
        UserNamespace::Unchanged => return Ok(()),
        UserNamespace::New => {
            // Our copy of the parent's end would keep the read below from ever seeing its death.
            // SAFETY: integers only; the descriptor is the child's own copy.
            unsafe { libc::close(request.peer.as_raw_fd()) };
            let mut answer = [0u8; 1];
            let socket = request.keep.as_raw_fd();
            // SAFETY: reads at most one byte into a buffer of one.
            match unsafe { libc::read(socket, answer.as_mut_ptr().cast(), 1) } {
                1 => {}
                // The parent is gone and nobody wants this process.
                // SAFETY: ends the child without running the parent's exit handlers.
                0 => unsafe { libc::_exit(1) },
                _ => return Err(io::Error::last_os_error()),
            }
        }
        UserNamespace::Joined => {}
    }
    // SAFETY: integers only.
    let done = unsafe {
        libc::syscall(libc::SYS_setresgid, 0, 0, 0) == 0
            && libc::syscall(libc::SYS_setresuid, 0, 0, 0) == 0
    };
    if done {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Tells the parent why the image did not start, and ends the child. No allocation.
fn give_up(request: &Clone3<'_>, error: &io::Error, what: &[u8]) -> ! {
    let mut frame = [0; MAX_FRAME];
    let len = Report::Failed(Fault {
        step: u32::MAX,
        errno: error.raw_os_error().unwrap_or(0),
        detail: what,
    })
    .write(&mut frame);
    // SAFETY: `frame` has at least `len` bytes; _exit ends the child without running the
    // parent's exit handlers.
    unsafe {
        libc::write(request.keep.as_raw_fd(), frame.as_ptr().cast(), len);
        libc::_exit(124)
    }
}

/// Runs `body` in a child that shares our descriptors and waits for it; the value it returns
/// (0 to 255) is its exit code.
///
/// For the one case that needs a process in between: joining an existing user namespace
/// before new namespaces are made. Descriptors opened by the child are ours, too.
pub(crate) fn in_between(body: impl FnOnce() -> u8) -> io::Result<u8> {
    // SAFETY: no CLONE_VM: the child works on a copy of our memory, as after fork; CLONE_FILES
    // shares the descriptor table, which `body` is meant to fill. The runtime has one thread.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            libc::CLONE_FILES | libc::SIGCHLD,
            0,
            0,
            0,
            0,
        )
    };
    if pid == 0 {
        let code = body();
        // SAFETY: ends the child without running the parent's exit handlers.
        unsafe { libc::_exit(code.into()) };
    }
    let Ok(pid) = i32::try_from(pid) else {
        return Err(io::Error::last_os_error());
    };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut status = 0;
    loop {
        // SAFETY: `status` is a valid place for the result.
        if unsafe { libc::waitpid(pid, &raw mut status, 0) } == pid {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    if libc::WIFEXITED(status) {
        Ok(u8::try_from(libc::WEXITSTATUS(status)).unwrap_or(u8::MAX))
    } else {
        Err(io::Error::other("the process in between was killed"))
    }
}

/// Runs `body` in a copy of this process, which dies with it; the value is the exit code.
pub(crate) fn fork_for(body: impl FnOnce() -> u8) -> io::Result<Cloned> {
    let parent = std::process::id();
    // SAFETY: the runtime has one thread, so the copy may do whatever this process may.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    if pid == 0 {
        // SAFETY: integers only; ends the child without running the parent's exit handlers.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if libc::getppid().cast_unsigned() != parent {
                libc::_exit(1);
            }
            libc::_exit(body().into())
        }
    }
    let pidfd = open_pidfd(pid)?;
    Ok(Cloned { pid, pidfd })
}

/// Waits for a child by its pidfd without hanging; `None` when it is no child of ours or runs.
pub(crate) fn wait_pidfd(pidfd: BorrowedFd<'_>, block: bool) -> Option<(i32, i32)> {
    // SAFETY: all-zero bytes are a valid siginfo_t.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let id = pidfd.as_raw_fd().cast_unsigned();
    let flags = libc::WEXITED | if block { 0 } else { libc::WNOHANG };
    loop {
        // SAFETY: `info` is a valid place for the result.
        let done = unsafe { libc::waitid(libc::P_PIDFD, id, &raw mut info, flags) };
        if done == 0 {
            break;
        }
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return None;
        }
    }
    // SAFETY: waitid succeeded: the union holds the SIGCHLD fields (all zero when nobody ended).
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    (pid != 0).then_some((info.si_code, status))
}

/// Sends a signal by pidfd.
pub(crate) fn signal_pidfd(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: integers only; a null siginfo asks for the default one.
    let done = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `pidfd_open`.
pub(crate) fn open_pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: integers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match i32::try_from(fd) {
        // SAFETY: a new descriptor that nobody else owns.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
