//! The few system calls that `std` does not offer. Each function is safe to call; nothing else in this crate is unsafe.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// Takes the exclusive `flock(2)` of the open file if nobody has it; `false` when somebody has.
pub(crate) fn try_lock(file: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: flock takes no pointer; `file` is open for the duration of the call because it is borrowed.
    let result = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
    if result == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::EWOULDBLOCK) {
        Ok(false)
    } else {
        Err(error)
    }
}

/// `fallocate(2)` that keeps the file's size.
pub(crate) fn preallocate(file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    let too_big = |_| io::Error::from_raw_os_error(libc::EFBIG);
    let offset = libc::off_t::try_from(offset).map_err(too_big)?;
    let len = libc::off_t::try_from(len).map_err(too_big)?;
    // SAFETY: fallocate takes no pointer; `file` is open for the duration of the call because it is borrowed.
    let result =
        unsafe { libc::fallocate(file.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, offset, len) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Fills `buffer` from the kernel's random source without waiting for it; `getrandom(2)`.
pub(crate) fn random(buffer: &mut [u8; 8]) -> io::Result<()> {
    // SAFETY: the pointer and length are those of one live, writable array; 8 bytes are never cut short (getrandom(2)).
    let read = unsafe {
        libc::getrandom(
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::GRND_NONBLOCK,
        )
    };
    if read == 8 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A non-blocking stream connection to the socket at `path`, close-on-exec, with a large send buffer.
///
/// `std` can only connect blocking, which waits for a listener that is stopped with a full backlog.
pub(crate) fn connect_stream(path: &Path) -> io::Result<OwnedFd> {
    // SAFETY: socket takes no pointer, and a returned number that is not negative is a new descriptor owned by nobody else.
    let fd = unsafe {
        let fd = libc::socket(
            libc::AF_UNIX,
            libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            0,
        );
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: sockaddr_un is plain numbers, for which all zero bytes are a value.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX)
        .map_err(|_| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))?;
    let bytes = path.as_os_str().as_bytes();
    // One byte stays for the terminating zero.
    if bytes.len() >= address.sun_path.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    let size = socklen::<libc::sockaddr_un>()?;
    // SAFETY: `address` is a live, initialised sockaddr_un and `size` is its size.
    let connected = unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), size) };
    if connected != 0 {
        return Err(io::Error::last_os_error());
    }
    let room: libc::c_int = 1 << 20;
    // SAFETY: `room` is a live int and the length given is its size. Without room the default stays, so the result does not matter.
    unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDBUF,
            (&raw const room).cast(),
            socklen::<libc::c_int>()?,
        );
    }
    Ok(fd)
}

fn socklen<T>() -> io::Result<libc::socklen_t> {
    libc::socklen_t::try_from(size_of::<T>()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// One `send(2)` without SIGPIPE.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: pointer and length are those of one live slice; the socket is borrowed and therefore open.
    let written = unsafe {
        libc::send(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            libc::MSG_NOSIGNAL,
        )
    };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

/// Makes fd 2 a copy of `fd`, in one step: no moment passes without an fd 2.
pub(crate) fn replace_stderr(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: dup2 takes no pointer. fd 2 is the process' own by convention; std's handles for it stay valid because
    // they go by its number.
    let result = unsafe { libc::dup2(fd.as_raw_fd(), libc::STDERR_FILENO) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// One `write(2)` to fd 2, past std's lock, which a panicking thread may hold.
pub(crate) fn write_stderr(bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: pointer and length are those of one live slice; a closed fd 2 is an error, not a fault.
    let written = unsafe { libc::write(libc::STDERR_FILENO, bytes.as_ptr().cast(), bytes.len()) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

/// Waits until fd 2 takes bytes, at most `timeout` milliseconds.
pub(crate) fn wait_writable_stderr(timeout: i32) -> io::Result<()> {
    let mut poll = libc::pollfd {
        fd: libc::STDERR_FILENO,
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: `poll` is one live pollfd, which is the number given.
    let ready = unsafe { libc::poll(&raw mut poll, 1, timeout) };
    if ready < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Time since boot without that asleep, `CLOCK_MONOTONIC`.
pub(crate) fn monotonic() -> Duration {
    clock(libc::CLOCK_MONOTONIC)
}

/// Time that the machine has slept since boot.
pub(crate) fn suspended() -> Duration {
    clock(libc::CLOCK_BOOTTIME).saturating_sub(clock(libc::CLOCK_MONOTONIC))
}

fn clock(which: libc::clockid_t) -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is one live, writable timespec. The two clocks above exist on every Linux this runs on, so the call
    // cannot fail; if it did, the zero stays.
    unsafe { libc::clock_gettime(which, &raw mut time) };
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}
