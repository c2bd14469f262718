//! One child for a hook: made, joined to namespaces and executed without a wait of its own.
//!
//! `std::process::Command` cannot be used for this: it waits for `execve` without a deadline, and a program on a
//! file system that hangs makes that wait endless. Here the child's answer is a descriptor that is polled.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::child::{self, Cloned};

/// What the child is to become.
pub(crate) struct Spawn<'a> {
    /// The program, as `execve(2)` takes it.
    pub(crate) path: &'a CStr,
    /// Its arguments, the first one included.
    pub(crate) args: &'a [CString],
    /// Its whole environment.
    pub(crate) env: &'a [CString],
    /// Its working directory, entered after the namespaces have been joined.
    pub(crate) cwd: &'a CStr,
    /// Go to `/` when there is no such directory in the joined mount namespace.
    pub(crate) root_will_do: bool,
    /// fd 0, 1 and 2.
    pub(crate) stdio: [BorrowedFd<'a>; 3],
    /// A process and the `CLONE_NEW*` flags of those of its namespaces that are joined; not the pid namespace.
    pub(crate) join: Option<(BorrowedFd<'a>, libc::c_int)>,
}

/// A child that has been made, and may not have executed its program yet.
pub(crate) struct Spawned {
    /// Its pid, which is its process group's as well.
    pub(crate) pid: i32,
    /// Readable when it has ended.
    pub(crate) pidfd: OwnedFd,
    /// At its end when the program runs; five bytes, as [`refusal`] reads them, when it does not. Non-blocking.
    pub(crate) report: OwnedFd,
}

/// What the child was doing when the kernel refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Step {
    /// `setpgid`.
    Group = 1,
    /// `setns`.
    Join = 2,
    /// `setresgid`, `setresuid` within a joined user namespace.
    Root = 3,
    /// `dup2`.
    Stdio = 4,
    /// `chdir`.
    Cwd = 5,
    /// `execve`.
    Execute = 6,
}

impl Step {
    /// Completes "cannot …".
    pub(crate) fn doing(self) -> &'static str {
        match self {
            Self::Group => "make a process group for it",
            Self::Join => "join the container's namespaces",
            Self::Root => "become root in the container's user namespace",
            Self::Stdio => "set up its standard streams",
            Self::Cwd => "enter its working directory",
            Self::Execute => "execute it",
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        [
            Self::Group,
            Self::Join,
            Self::Root,
            Self::Stdio,
            Self::Cwd,
            Self::Execute,
        ]
        .into_iter()
        .find(|step| *step as u8 == byte)
    }
}

/// The step and errno in a child's report; `None` when it holds none.
pub(crate) fn refusal(report: &[u8]) -> Option<(Step, io::Error)> {
    let (step, errno) = report.split_first()?;
    let errno = i32::from_le_bytes(errno.get(..4)?.try_into().ok()?);
    Some((Step::from_byte(*step)?, io::Error::from_raw_os_error(errno)))
}

/// Makes the child. Returns as soon as it exists.
pub(crate) fn spawn(request: &Spawn<'_>) -> io::Result<Spawned> {
    let argv = child::pointers(request.args);
    let envp = child::pointers(request.env);
    let (report, answer) = pipe()?;
    // Above the standard streams, so that setting those up cannot overwrite what is still needed.
    let answer = above_stdio(answer.as_fd())?;
    let stdio = [
        above_stdio(request.stdio[0])?,
        above_stdio(request.stdio[1])?,
        above_stdio(request.stdio[2])?,
    ];
    let prepared = Prepared {
        request,
        argv: &argv,
        envp: &envp,
        stdio: [
            stdio[0].as_raw_fd(),
            stdio[1].as_raw_fd(),
            stdio[2].as_raw_fd(),
        ],
    };
    // SAFETY: nothing that the child does below allocates or takes a lock.
    match unsafe { child::clone(child::Kind::default()) }? {
        Some(Cloned { pid, pidfd }) => Ok(Spawned { pid, pidfd, report }),
        // SAFETY: this is the child; `argv` and `envp` are NULL-terminated arrays of strings that live in its copy
        // of this frame.
        None => unsafe { become_program(&prepared, answer.as_raw_fd()) },
    }
}

struct Prepared<'a> {
    request: &'a Spawn<'a>,
    argv: &'a [*const libc::c_char],
    envp: &'a [*const libc::c_char],
    stdio: [RawFd; 3],
}

/// In the child: becomes the program, or reports the step that failed and ends.
///
/// # Safety
/// Only in a child without CLONE_VM; `argv` and `envp` end with NULL.
unsafe fn become_program(prepared: &Prepared<'_>, answer: RawFd) -> ! {
    // SAFETY: as promised by the caller.
    let step = unsafe { enter(prepared) };
    let errno = io::Error::last_os_error().raw_os_error().unwrap_or(0);
    let mut bytes = [step as u8, 0, 0, 0, 0];
    bytes[1..].copy_from_slice(&errno.to_le_bytes());
    // SAFETY: pointer and length of a live array; _exit runs none of the parent's handlers.
    unsafe {
        libc::write(answer, bytes.as_ptr().cast(), bytes.len());
        libc::_exit(127)
    }
}

/// Returns only when a step failed; errno is that of its call.
///
/// # Safety
/// As [`become_program`].
unsafe fn enter(prepared: &Prepared<'_>) -> Step {
    let request = prepared.request;
    // SAFETY: system calls on integers and on NUL-terminated strings and NULL-terminated arrays that the caller
    // prepared before the clone. The identity calls are made raw: glibc's wrappers would wait for the threads that
    // the parent has and this child does not.
    unsafe {
        if libc::setpgid(0, 0) < 0 {
            return Step::Group;
        }
        if let Some((target, flags)) = request.join {
            if libc::setns(target.as_raw_fd(), flags) < 0 {
                return Step::Join;
            }
            if flags & libc::CLONE_NEWUSER != 0
                && (libc::syscall(libc::SYS_setresgid, 0, 0, 0) < 0
                    || libc::syscall(libc::SYS_setresuid, 0, 0, 0) < 0)
            {
                return Step::Root;
            }
        }
        for (number, fd) in (0..).zip(prepared.stdio) {
            if libc::dup2(fd, number) < 0 {
                return Step::Stdio;
            }
        }
        if libc::chdir(request.cwd.as_ptr()) < 0
            && !(request.root_will_do && libc::chdir(c"/".as_ptr()) == 0)
        {
            return Step::Cwd;
        }
        // Rust ignores SIGPIPE, which a hook does not expect.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        child::unblock_signals();
        nothing_survives();
        libc::execve(
            request.path.as_ptr(),
            prepared.argv.as_ptr(),
            prepared.envp.as_ptr(),
        );
    }
    Step::Execute
}

/// Marks every descriptor above 2, so that the report survives until `execve` and nothing survives it.
///
/// # Safety
/// Only in a child: it changes the whole descriptor table.
unsafe fn nothing_survives() {
    /// What a kernel before 5.11 gets; a runtime has few descriptors and low ones.
    const LAST: RawFd = 4096;
    // SAFETY: as promised by the caller; integers only.
    unsafe {
        if !child::close_on_exec_above_stdio() {
            for fd in 3..LAST {
                libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
            }
        }
    }
}

/// A pipe: (its reading end, non-blocking; its writing end, blocking). Both close on exec.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    // SAFETY: a live array of two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: pipe2 has just made both descriptors; nobody else owns them.
    let (reader, writer) =
        unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
    // SAFETY: integers only. The reading end is an open file of its own, so the writer stays blocking.
    if unsafe { libc::fcntl(reader.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((reader, writer))
}

fn above_stdio(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: integers only; the result is a new descriptor.
    unsafe {
        match libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3) {
            -1 => Err(io::Error::last_os_error()),
            new => Ok(OwnedFd::from_raw_fd(new)),
        }
    }
}

/// Kills a process group, and its leader by pidfd in case it has not become one yet. A group that is gone is no error.
pub(crate) fn kill_group(child: &Spawned) {
    // SAFETY: integers only. The pid cannot have been reused: the child has not been waited for.
    unsafe {
        libc::kill(-child.pid, libc::SIGKILL);
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            child.pidfd.as_raw_fd(),
            libc::SIGKILL,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        );
    }
}

/// `poll(2)` for reading: which of `fds` are readable or at their end, after at most `timeout` milliseconds.
pub(crate) fn poll<const N: usize>(
    fds: [Option<BorrowedFd<'_>>; N],
    timeout: i32,
) -> io::Result<[bool; N]> {
    // A negative number is skipped by the kernel.
    let mut polled = fds.map(|fd| libc::pollfd {
        fd: fd.map_or(-1, |fd| fd.as_raw_fd()),
        events: libc::POLLIN,
        revents: 0,
    });
    let count = libc::nfds_t::try_from(N).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: a live array of `count` pollfds.
    if unsafe { libc::poll(polled.as_mut_ptr(), count, timeout) } < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
        return Ok([false; N]);
    }
    Ok(polled.map(|fd| fd.revents != 0))
}
