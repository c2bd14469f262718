//! One image gives way to the next: execve(2) with every descriptor kept, and no signal lost or fatal in between.

use std::ffi::{CString, c_char, c_int};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;

/// Signals that end this image.
pub(super) const CRASHES: [c_int; 5] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGABRT,
    libc::SIGILL,
    libc::SIGFPE,
];
/// Signals that must find a handler, or the next image dies of them before it has one.
const HELD_OVER_EXEC: [c_int; 5] = [
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGHUP,
    libc::SIGUSR1,
    libc::SIGUSR2,
];

/// A list as execve(2) takes it; never freed, for a handler may read it at any time.
pub(super) fn leak(strings: Vec<CString>) -> *mut *const c_char {
    let mut pointers: Vec<*const c_char> = strings
        .into_iter()
        .map(|string| string.into_raw().cast_const())
        .collect();
    pointers.push(ptr::null());
    Box::leak(pointers.into_boxed_slice()).as_mut_ptr()
}

/// Executes `program` with every descriptor kept; returns the errno when that fails, with
/// close-on-exec set again.
pub(super) fn execute_program(
    program: RawFd,
    arguments: *const *const c_char,
    environment: *const *const c_char,
) -> i32 {
    let mut old: libc::sigset_t = block_over_exec();
    keep_all(true);
    // SAFETY: the lists were made by `leak` and end with null; an empty path with AT_EMPTY_PATH means the
    // descriptor itself.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program,
            c"".as_ptr(),
            arguments,
            environment,
            libc::AT_EMPTY_PATH,
        );
        let errno = *libc::__errno_location();
        keep_all(false);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const old, &raw mut old);
        errno
    }
}

/// Blocks what must not meet the next image before its handlers; the mask survives execve(2).
fn block_over_exec() -> libc::sigset_t {
    // SAFETY: sigset_t is plain data, initialised by sigemptyset; sigprocmask is async-signal-safe.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        let mut old: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in CRASHES.iter().chain(&HELD_OVER_EXEC) {
            libc::sigaddset(&raw mut set, *signal);
        }
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, &raw mut old);
        old
    }
}

/// Lets the signals in that [`block_over_exec`] has held; once all handlers are there.
pub(crate) fn let_signals_in() {
    // SAFETY: as above.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, ptr::null_mut());
    }
}

/// Clears or sets close-on-exec on every descriptor above stderr.
fn keep_all(keep: bool) {
    #[repr(align(8))]
    struct Entries([u8; 4096]);
    let mut entries = Entries([0; 4096]);
    let flags = if keep { 0 } else { libc::FD_CLOEXEC };
    // SAFETY: only async-signal-safe system calls; getdents64 writes at most the length that is told into
    // `entries`, and records are read as linux_dirent64 is laid out: d_reclen at 16, d_name at 19.
    unsafe {
        let dir = libc::open(
            c"/proc/self/fd".as_ptr(),
            libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC,
        );
        if dir < 0 {
            // No /proc: the numbers in use are small.
            for fd in 3..4096 {
                libc::fcntl(fd, libc::F_SETFD, flags);
            }
            return;
        }
        loop {
            let size = libc::syscall(
                libc::SYS_getdents64,
                dir,
                entries.0.as_mut_ptr(),
                entries.0.len(),
            );
            let Ok(size @ 1..) = usize::try_from(size) else {
                break;
            };
            let mut at = 0;
            while at + 19 < size.min(entries.0.len()) {
                let record = entries.0.as_ptr().add(at);
                let length = usize::from(record.add(16).cast::<u16>().read_unaligned());
                let mut name = record.add(19);
                let mut fd: RawFd = 0;
                let mut is_number = *name != 0;
                while *name != 0 {
                    is_number &= (*name).is_ascii_digit();
                    fd = fd
                        .wrapping_mul(10)
                        .wrapping_add(RawFd::from((*name).wrapping_sub(b'0')));
                    name = name.add(1);
                }
                if is_number && fd > 2 && fd != dir {
                    libc::fcntl(fd, libc::F_SETFD, flags);
                }
                if length == 0 {
                    break;
                }
                at += length;
            }
        }
        libc::close(dir);
    }
}

/// Executes a program with every descriptor kept; outside of any handler.
///
/// Comes back only when that failed.
pub(crate) fn execute_with(
    program: BorrowedFd<'_>,
    arguments: Vec<CString>,
    environment: Vec<CString>,
) -> io::Error {
    let errno = execute_program(program.as_raw_fd(), leak(arguments), leak(environment));
    io::Error::from_raw_os_error(errno)
}
