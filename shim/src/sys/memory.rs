//! Files in memory, and the heap.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

use super::{check, fd_from};

/// A file in memory without a name; see memfd_create(2).
///
/// # Errors
/// The kernel's.
pub(crate) fn memory_file(name: &CStr) -> io::Result<File> {
    // SAFETY: `name` is a string that ends with NUL and lives through the call; the result is a
    // new descriptor or -1.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just made this descriptor, and nobody else knows of it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// As [`memory_file`], of which a program can be executed.
///
/// # Errors
/// `EACCES` where the kernel is told to refuse it (`vm.memfd_noexec`).
pub(crate) fn executable_memory_file(name: &CStr) -> io::Result<File> {
    const MFD_EXEC: libc::c_uint = 0x10;
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: a NUL-terminated name that lives through the call, and integer flags.
    let create = |flags| check(unsafe { libc::memfd_create(name.as_ptr(), flags) }.into());
    let fd = match create(flags | MFD_EXEC) {
        // Kernels before 6.3 do not know the flag and make every such file executable.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => create(flags)?,
        other => other?,
    };
    fd_from(fd).map(File::from)
}

/// The same open file under a number of at least `number`.
///
/// # Errors
/// `EMFILE`.
pub(crate) fn move_above(file: &File, number: RawFd) -> io::Result<File> {
    // SAFETY: integers only.
    let moved =
        check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, number) }.into())?;
    fd_from(moved).map(File::from)
}

/// Lets nobody change a file in memory any more.
///
/// # Errors
/// The kernel's.
pub(crate) fn seal(file: &File) -> io::Result<()> {
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE | libc::F_SEAL_SEAL;
    // SAFETY: integers only.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) }.into()).map(drop)
}

/// A true SIGSEGV, for tests.
#[cfg(feature = "fault-points")]
pub(crate) fn write_to_nowhere() {
    let nowhere: *mut u8 = std::hint::black_box(std::ptr::without_provenance_mut(8));
    // SAFETY: none; the page is never mapped (vm.mmap_min_addr), and the fault is what is wanted.
    unsafe {
        nowhere.write_volatile(1);
    }
}

/// Lets all threads share one heap: what a thread that came and went has freed is there for the
/// next one, and can be given back.
pub(crate) fn share_one_heap() {
    // SAFETY: mallopt(3) takes two numbers and no pointer.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Gives the heap's free pages back to the kernel.
pub(crate) fn trim_heap() {
    // SAFETY: malloc_trim(3) takes a number; it touches only what is free, under malloc's own lock.
    unsafe { libc::malloc_trim(0) };
}
