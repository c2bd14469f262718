//! Why the image before has ended, as its handler left it on the slate.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use super::super::slate::REPORT_AT;
use super::handlers::on_crash;

/// Most frames of a backtrace.
pub(crate) const FRAMES: usize = 64;

/// Why an image ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Cause {
    /// A signal.
    Signal = 1,
    /// The event loop gave no sign of life.
    Stalled = 2,
    /// A panic where it cannot be contained.
    Panic = 3,
    /// Somebody asked for another program.
    Upgrade = 4,
    /// SIGKILL, or an end of its own that was not meant; the keeper says so.
    Killed = holdfast_keeper::KILLED,
}

/// What the handler writes, as it lies on the slate.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Report {
    pub(super) magic: u32,
    pub(super) cause: u32,
    /// The signal's number, 0 if none.
    pub(crate) signal: i32,
    /// `si_code`: 0 or less when a process sent it.
    pub(crate) code: i32,
    /// The faulting address; see sigaction(2).
    pub(crate) address: u64,
    /// Who sent it.
    pub(crate) sender: i32,
    /// Thread in which it happened.
    pub(crate) thread: i32,
    /// Realtime clock: seconds, nanoseconds.
    pub(crate) seconds: i64,
    /// See `seconds`.
    pub(crate) nanos: i64,
    /// The incident of a panic, ASCII, padded with zeroes.
    pub(crate) incident: [u8; 64],
    pub(super) count: u32,
    /// Whether the thread was not the main one.
    pub(super) forwarded: u32,
    /// Where [`on_crash`] lay, so that addresses can be told from where the program was loaded.
    pub(super) anchor: u64,
    pub(super) frames: [u64; FRAMES],
}

pub(super) const REPORT_MAGIC: u32 = holdfast_keeper::REPORT_MAGIC;

// The keeper writes the beginning of one.
const _: () = {
    use holdfast_keeper::Report as Brief;
    use std::mem::offset_of;
    assert!(offset_of!(Report, cause) == offset_of!(Brief, cause));
    assert!(offset_of!(Report, address) == offset_of!(Brief, address));
    assert!(offset_of!(Report, thread) == offset_of!(Brief, thread));
    assert!(offset_of!(Report, nanos) == offset_of!(Brief, nanos));
    assert!(offset_of!(Report, forwarded) == offset_of!(Brief, forwarded));
    assert!(REPORT_AT == holdfast_keeper::REPORT_AT);
};

impl Report {
    pub(super) const EMPTY: Self = Self {
        magic: 0,
        cause: 0,
        signal: 0,
        code: 0,
        address: 0,
        sender: 0,
        thread: 0,
        seconds: 0,
        nanos: 0,
        incident: [0; 64],
        count: 0,
        forwarded: 0,
        anchor: 0,
        frames: [0; FRAMES],
    };

    /// Its cause; none when there is no report.
    pub(crate) fn cause(&self) -> Option<Cause> {
        (self.magic == REPORT_MAGIC).then_some(())?;
        [
            Cause::Signal,
            Cause::Stalled,
            Cause::Panic,
            Cause::Upgrade,
            Cause::Killed,
        ]
        .into_iter()
        .find(|cause| *cause as u32 == self.cause)
    }

    /// The return addresses, innermost first, as they are in the program's file; right only if this
    /// image is of the same one.
    pub(crate) fn file_addresses(&self) -> Vec<u64> {
        let own = on_crash as *const () as u64;
        let offset = self.anchor.wrapping_sub(own).wrapping_add(load_offset());
        let count = usize::try_from(self.count).unwrap_or(0).min(FRAMES);
        let frames = self.frames.get(..count).unwrap_or_default();
        frames
            .iter()
            .map(|frame| frame.wrapping_sub(offset))
            .collect()
    }
}

/// How far from the addresses in its file this program was loaded.
fn load_offset() -> u64 {
    unsafe extern "C" {
        /// The ELF header, by the linker; at address 0 of the file of a program that can lie anywhere.
        static __ehdr_start: u8;
    }
    let start = &raw const __ehdr_start as u64;
    // SAFETY: the header is mapped for as long as the program runs; e_type is at 16.
    let kind = unsafe { (&raw const __ehdr_start).add(16).cast::<u16>().read() };
    const ET_DYN: u16 = 3;
    if kind == ET_DYN { start } else { 0 }
}

/// Reads the report of the image before, and takes it off.
pub(crate) fn take_report(slate: BorrowedFd<'_>) -> Report {
    let mut report = Report::EMPTY;
    let at = libc::off_t::try_from(REPORT_AT).unwrap_or(0);
    // SAFETY: `report` is plain data of integers, writable and as long as said; every bit
    // pattern is a value of it.
    let read = unsafe {
        libc::pread(
            slate.as_raw_fd(),
            (&raw mut report).cast(),
            size_of::<Report>(),
            at,
        )
    };
    if usize::try_from(read).ok() != Some(size_of::<Report>()) {
        return Report::EMPTY;
    }
    erase_report(slate.as_raw_fd());
    report
}

static ZERO: u32 = 0;

/// Takes the report off the slate.
pub(super) fn erase_report(slate: RawFd) {
    // SAFETY: four bytes of a constant are read.
    unsafe {
        libc::pwrite(
            slate,
            (&raw const ZERO).cast(),
            size_of::<u32>(),
            libc::off_t::try_from(REPORT_AT).unwrap_or(0),
        );
    }
}
