//! The part that runs when nothing can be relied on: signal handlers that allocate nothing, take no
//! lock and read only what was prepared in [`install`].
#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::slate::REPORT_AT;

/// Most frames of a backtrace.
pub(crate) const FRAMES: usize = 64;
/// How long a step may hold back a crash that somebody sent.
const HOLD: i64 = 1;
/// Signals that end this image.
const CRASHES: [c_int; 5] = [
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
/// Bytes of the handler's stack.
const STACK: usize = 128 * 1024;

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
    magic: u32,
    cause: u32,
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
    count: u32,
    /// Whether the thread was not the main one.
    forwarded: u32,
    /// Where [`on_crash`] lay, so that addresses can be told from where the program was loaded.
    anchor: u64,
    frames: [u64; FRAMES],
}

const REPORT_MAGIC: u32 = holdfast_keeper::REPORT_MAGIC;

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
    const EMPTY: Self = Self {
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
    // SAFETY: four bytes of a constant are read.
    unsafe {
        libc::pwrite(
            slate.as_raw_fd(),
            (&raw const ZERO).cast(),
            size_of::<u32>(),
            at,
        );
    }
    report
}

static ZERO: u32 = 0;

// What the handlers read. Written once, by `install`, on the main thread.
static SLATE: AtomicI32 = AtomicI32::new(-1);
static PROGRAM: AtomicI32 = AtomicI32::new(-1);
static MAIN_THREAD: AtomicI32 = AtomicI32::new(0);
static PROCESS: AtomicI32 = AtomicI32::new(0);
static ARGUMENTS: AtomicPtr<*const c_char> = AtomicPtr::new(ptr::null_mut());
static ENVIRONMENT: AtomicPtr<*const c_char> = AtomicPtr::new(ptr::null_mut());
static TIMER: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
static HAS_TIMER: AtomicBool = AtomicBool::new(false);
static PROBE: AtomicI32 = AtomicI32::new(-1);
static PATIENCE_MS: AtomicU64 = AtomicU64::new(0);

// What they change.
static STEPS: AtomicU32 = AtomicU32::new(0);
static HELD_SIGNAL: AtomicI32 = AtomicI32::new(0);
static HELD_SENDER: AtomicI32 = AtomicI32::new(0);
static HELD_CODE: AtomicI32 = AtomicI32::new(0);
static PROBED: AtomicBool = AtomicBool::new(false);
static ENTERED: AtomicU32 = AtomicU32::new(0);
static FORWARDED: AtomicBool = AtomicBool::new(false);
static mut REPORT: Report = Report::EMPTY;

/// A thread that is not the main one has failed.
fn forward_signal() -> c_int {
    libc::SIGRTMIN() + 4
}

fn watch_signal() -> c_int {
    libc::SIGRTMIN() + 5
}

fn thread_id() -> i32 {
    // SAFETY: takes nothing, always succeeds.
    unsafe { libc::gettid() }
}

/// From here to [`leave_step`] a crash that somebody sends is held back.
pub(super) fn enter_step() {
    STEPS.fetch_add(1, Ordering::SeqCst);
}

/// Ends what [`enter_step`] began.
pub(super) fn leave_step() {
    if STEPS.fetch_sub(1, Ordering::SeqCst) == 1 && HELD_SIGNAL.load(Ordering::SeqCst) != 0 {
        // SAFETY: integers; the handler of that signal is ours and runs on the main thread.
        unsafe {
            libc::syscall(
                libc::SYS_tgkill,
                PROCESS.load(Ordering::SeqCst),
                MAIN_THREAD.load(Ordering::SeqCst),
                forward_signal(),
            );
        }
    }
}

/// What the handlers need to know.
pub(super) struct Setup<'a> {
    /// The slate.
    pub(super) slate: BorrowedFd<'a>,
    /// The file to execute.
    pub(super) program: BorrowedFd<'a>,
    /// Its arguments, with the program's name.
    pub(super) arguments: Vec<CString>,
    /// Its environment.
    pub(super) environment: Vec<CString>,
    /// An eventfd that asks the event loop for a sign of life.
    pub(super) probe: BorrowedFd<'a>,
    /// How long the loop may be silent before it is asked, and then once more.
    pub(super) patience: Duration,
}

/// A list as execve(2) takes it; never freed, for a handler may read it at any time.
fn leak(strings: Vec<CString>) -> *mut *const c_char {
    let mut pointers: Vec<*const c_char> = strings
        .into_iter()
        .map(|string| string.into_raw().cast_const())
        .collect();
    pointers.push(ptr::null());
    Box::leak(pointers.into_boxed_slice()).as_mut_ptr()
}

/// Installs the handlers and the timer; on the main thread, once.
///
/// # Errors
/// The kernel's.
pub(super) fn install(setup: Setup<'_>) -> io::Result<()> {
    SLATE.store(setup.slate.as_raw_fd(), Ordering::SeqCst);
    PROGRAM.store(setup.program.as_raw_fd(), Ordering::SeqCst);
    PROBE.store(setup.probe.as_raw_fd(), Ordering::SeqCst);
    ARGUMENTS.store(leak(setup.arguments), Ordering::SeqCst);
    ENVIRONMENT.store(leak(setup.environment), Ordering::SeqCst);
    MAIN_THREAD.store(thread_id(), Ordering::SeqCst);
    PROCESS.store(
        i32::try_from(std::process::id()).unwrap_or(0),
        Ordering::SeqCst,
    );
    PATIENCE_MS.store(
        u64::try_from(setup.patience.as_millis()).unwrap_or(u64::MAX),
        Ordering::SeqCst,
    );
    own_stack()?;
    for signal in CRASHES {
        handle(signal, on_crash as *const () as usize)?;
    }
    handle(forward_signal(), on_forwarded as *const () as usize)?;
    handle(watch_signal(), on_timer as *const () as usize)?;
    make_timer()
}

fn handle(signal: c_int, handler: usize) -> io::Result<()> {
    // SAFETY: sigaction is plain data for which all zeroes is a valid value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    // Not deferred, so that a fault within the handler comes back to it and not to the kernel's default.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER | libc::SA_RESTART;
    // SAFETY: `action` is initialised and lives through the call; the handler has the type that
    // SA_SIGINFO asks for.
    let done = unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A stack for the handlers, so that they run when the thread's own is used up.
fn own_stack() -> io::Result<()> {
    // SAFETY: a new private mapping of our own choice of place; nothing else is touched.
    let base = unsafe {
        libc::mmap(
            ptr::null_mut(),
            STACK,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let stack = libc::stack_t {
        ss_sp: base,
        ss_flags: 0,
        ss_size: STACK,
    };
    // SAFETY: the mapping above is never unmapped, and nobody else uses it.
    if unsafe { libc::sigaltstack(&raw const stack, ptr::null_mut()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn make_timer() -> io::Result<()> {
    // SAFETY: sigevent is plain data for which all zeroes is a valid value.
    let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
    event.sigev_notify = libc::SIGEV_THREAD_ID;
    event.sigev_signo = watch_signal();
    event.sigev_notify_thread_id = thread_id();
    let mut timer: libc::timer_t = ptr::null_mut();
    // SAFETY: both point at live values of the right type.
    if unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) } < 0 {
        return Err(io::Error::last_os_error());
    }
    TIMER.store(timer, Ordering::SeqCst);
    HAS_TIMER.store(true, Ordering::SeqCst);
    Ok(())
}

fn set_timer(seconds: i64, nanos: i64) {
    if !HAS_TIMER.load(Ordering::SeqCst) {
        return;
    }
    let zero = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let at = libc::itimerspec {
        it_interval: zero,
        it_value: libc::timespec {
            tv_sec: seconds,
            tv_nsec: nanos,
        },
    };
    // SAFETY: the timer was made by `make_timer` and is never deleted; timer_settime is
    // async-signal-safe.
    unsafe {
        libc::timer_settime(
            TIMER.load(Ordering::SeqCst),
            0,
            &raw const at,
            ptr::null_mut(),
        );
    }
}

fn arm() {
    let patience = PATIENCE_MS.load(Ordering::SeqCst);
    if patience > 0 {
        set_timer(
            i64::try_from(patience / 1000).unwrap_or(i64::MAX),
            i64::try_from(patience % 1000).unwrap_or(0) * 1_000_000,
        );
    }
}

/// The event loop has something to do: it is watched from here on.
pub(super) fn loop_wakes() {
    if HELD_SIGNAL.load(Ordering::SeqCst) == 0 {
        arm();
    }
}

/// The event loop sleeps, as it may.
pub(super) fn loop_sleeps() {
    if HELD_SIGNAL.load(Ordering::SeqCst) == 0 {
        set_timer(0, 0);
        PROBED.store(false, Ordering::SeqCst);
    }
}

/// The event loop has answered.
pub(super) fn loop_lives() {
    PROBED.store(false, Ordering::SeqCst);
}

/// Whether this is a child between fork and execve, which has our handlers but is not us.
fn is_other_process() -> bool {
    // SAFETY: takes nothing, always succeeds.
    unsafe { libc::getpid() != PROCESS.load(Ordering::SeqCst) }
}

fn die_of(signal: c_int) {
    // SAFETY: integers and constants; both are async-signal-safe.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut());
        libc::raise(signal);
        libc::_exit(128 + signal);
    }
}

extern "C" fn on_crash(signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    if is_other_process() {
        return die_of(signal);
    }
    // SAFETY: the kernel hands a siginfo_t that is valid for the time of the handler; which of
    // its fields are set follows from si_code.
    let (code, sender, address) = unsafe {
        let code = (*info).si_code;
        if code <= 0 {
            (code, (*info).si_pid(), 0)
        } else {
            (code, 0, (*info).si_addr() as u64)
        }
    };
    // abort(3) sends it itself and does not come back.
    let sent = code <= 0 && sender != PROCESS.load(Ordering::SeqCst);
    if thread_id() != MAIN_THREAD.load(Ordering::SeqCst) {
        if !FORWARDED.swap(true, Ordering::SeqCst) {
            fill(Cause::Signal, signal, code, sender, address, !sent);
        }
        hold(signal, code, sender);
        // SAFETY: integers. The main thread executes the program anew; this one is over.
        unsafe {
            libc::syscall(
                libc::SYS_tgkill,
                PROCESS.load(Ordering::SeqCst),
                MAIN_THREAD.load(Ordering::SeqCst),
                forward_signal(),
            );
        }
        if sent {
            return;
        }
        loop {
            // SAFETY: takes nothing.
            unsafe {
                libc::pause();
            }
        }
    }
    if sent && STEPS.load(Ordering::SeqCst) > 0 && ENTERED.load(Ordering::SeqCst) == 0 {
        hold(signal, code, sender);
        set_timer(HOLD, 0);
        return;
    }
    if ENTERED.fetch_add(1, Ordering::SeqCst) == 0 && !FORWARDED.load(Ordering::SeqCst) {
        fill(Cause::Signal, signal, code, sender, address, true);
    }
    execute(signal);
}

fn hold(signal: c_int, code: c_int, sender: c_int) {
    HELD_CODE.store(code, Ordering::SeqCst);
    HELD_SENDER.store(sender, Ordering::SeqCst);
    HELD_SIGNAL.store(signal, Ordering::SeqCst);
}

/// A step has ended that held back a crash, or another thread has failed.
extern "C" fn on_forwarded(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    let signal = HELD_SIGNAL.load(Ordering::SeqCst);
    if is_other_process() || signal == 0 {
        return;
    }
    if STEPS.load(Ordering::SeqCst) > 0 {
        set_timer(HOLD, 0);
        return;
    }
    execute_held(signal);
}

fn execute_held(signal: c_int) {
    if ENTERED.fetch_add(1, Ordering::SeqCst) == 0 && !FORWARDED.load(Ordering::SeqCst) {
        let (code, sender) = (
            HELD_CODE.load(Ordering::SeqCst),
            HELD_SENDER.load(Ordering::SeqCst),
        );
        fill(Cause::Signal, signal, code, sender, 0, false);
    }
    execute(signal);
}

extern "C" fn on_timer(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    if is_other_process() {
        return;
    }
    let held = HELD_SIGNAL.load(Ordering::SeqCst);
    if held != 0 {
        // The step has not ended in time.
        return execute_held(held);
    }
    if ENTERED.load(Ordering::SeqCst) > 0 {
        // The backtrace hangs.
        return execute(libc::SIGABRT);
    }
    if !PROBED.swap(true, Ordering::SeqCst) {
        let one = 1u64;
        // SAFETY: eight bytes of a live value; a full eventfd refuses, which is as good.
        unsafe {
            libc::write(PROBE.load(Ordering::SeqCst), (&raw const one).cast(), 8);
        }
        arm();
        return;
    }
    if ENTERED.fetch_add(1, Ordering::SeqCst) == 0 {
        fill(Cause::Stalled, 0, 0, 0, 0, true);
    }
    execute(libc::SIGABRT);
}

/// Fills in the report; with the addresses that are on the stack.
fn fill(cause: Cause, signal: c_int, code: c_int, sender: c_int, address: u64, trace: bool) {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: REPORT is written by one handler only, guarded by ENTERED and FORWARDED, and read after it
    // on the same thread or after tgkill(2); clock_gettime is async-signal-safe.
    unsafe {
        libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut now);
        let report = &raw mut REPORT;
        (*report).magic = REPORT_MAGIC;
        (*report).cause = cause as u32;
        (*report).signal = signal;
        (*report).code = code;
        (*report).sender = sender;
        (*report).address = address;
        (*report).thread = thread_id();
        (*report).forwarded = u32::from(thread_id() != MAIN_THREAD.load(Ordering::SeqCst));
        (*report).anchor = on_crash as *const () as u64;
        (*report).seconds = now.tv_sec;
        (*report).nanos = now.tv_nsec;
        (*report).count = 0;
        write_report();
        if trace {
            // Should the stack be damaged, the fault comes back to `on_crash`, which goes on without;
            // should it hang, the timer goes on.
            set_timer(2, 0);
            _Unwind_Backtrace(on_frame, ptr::null_mut());
        }
    }
}

fn write_report() {
    // SAFETY: REPORT is plain data of that length; see `fill` for who else touches it.
    unsafe {
        libc::pwrite(
            SLATE.load(Ordering::SeqCst),
            (&raw const REPORT).cast(),
            size_of::<Report>(),
            libc::off_t::try_from(REPORT_AT).unwrap_or(0),
        );
    }
}

unsafe extern "C" {
    /// The unwinder that panics use, of the Itanium C++ ABI.
    fn _Unwind_Backtrace(
        frame: extern "C" fn(*mut c_void, *mut c_void) -> c_int,
        argument: *mut c_void,
    ) -> c_int;
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
}

extern "C" fn on_frame(context: *mut c_void, _: *mut c_void) -> c_int {
    // SAFETY: `context` is the unwinder's own, for the time of this call; REPORT as in `fill`.
    unsafe {
        let report = &raw mut REPORT;
        let count = usize::try_from((*report).count).unwrap_or(FRAMES);
        if count >= FRAMES {
            return 5; // _URC_END_OF_STACK
        }
        (&raw mut (*report).frames)
            .cast::<u64>()
            .add(count)
            .write(_Unwind_GetIP(context) as u64);
        (*report).count += 1;
    }
    0
}

/// Executes the program anew; only when that fails it comes to the end that `signal` brings.
fn execute(signal: c_int) {
    write_report();
    let errno = execute_program(
        PROGRAM.load(Ordering::SeqCst),
        ARGUMENTS.load(Ordering::SeqCst),
        ENVIRONMENT.load(Ordering::SeqCst),
    );
    say(
        b"<2>containerd-shim-holdfast-v2: cannot execute itself again, errno ",
        errno,
    );
    die_of(signal);
}

fn say(text: &[u8], number: i32) {
    let mut digits = [b'0'; 12];
    let mut rest = number.unsigned_abs();
    let mut at = digits.len() - 1;
    if let Some(last) = digits.last_mut() {
        *last = b'\n';
    }
    while at > 0 {
        at -= 1;
        if let Some(digit) = digits.get_mut(at) {
            *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        }
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    let digits = digits.get(at..).unwrap_or_default();
    // SAFETY: both slices live through the calls.
    unsafe {
        libc::write(2, text.as_ptr().cast(), text.len());
        libc::write(2, digits.as_ptr().cast(), digits.len());
    }
}

/// Executes `program` with every descriptor kept; returns the errno when that fails, with
/// close-on-exec set again.
fn execute_program(
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
pub(super) fn let_signals_in() {
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

/// Ends this image for another reason than a signal, with the same program or another one.
///
/// Comes back only when that failed.
pub(super) fn replace(
    cause: Cause,
    incident: &str,
    program: Option<(BorrowedFd<'_>, Vec<CString>)>,
) -> io::Error {
    set_timer(0, 0);
    fill(cause, 0, 0, 0, 0, false);
    set_timer(0, 0);
    // SAFETY: as in `fill`; the main thread is here and in no handler.
    unsafe {
        let to = (&raw mut REPORT.incident).cast::<u8>();
        for (at, byte) in incident.bytes().take(64).enumerate() {
            to.add(at).write(byte);
        }
    }
    write_report();
    let (program, arguments) = match program {
        Some((program, arguments)) => (program.as_raw_fd(), leak(arguments)),
        None => (
            PROGRAM.load(Ordering::SeqCst),
            ARGUMENTS.load(Ordering::SeqCst),
        ),
    };
    let environment = ENVIRONMENT.load(Ordering::SeqCst);
    let error = io::Error::from_raw_os_error(execute_program(program, arguments, environment));
    // SAFETY: as in `take_report`.
    unsafe {
        libc::pwrite(
            SLATE.load(Ordering::SeqCst),
            (&raw const ZERO).cast(),
            size_of::<u32>(),
            libc::off_t::try_from(REPORT_AT).unwrap_or(0),
        );
    }
    error
}

/// There will be no next image: faults end this one, as ever.
pub(super) fn disarm() {
    set_timer(0, 0);
    HAS_TIMER.store(false, Ordering::SeqCst);
    for signal in CRASHES {
        // SAFETY: integers and a constant.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}

/// Executes a program with every descriptor kept; outside of any handler.
///
/// Comes back only when that failed.
pub(super) fn execute_with(
    program: BorrowedFd<'_>,
    arguments: Vec<CString>,
    environment: Vec<CString>,
) -> io::Error {
    let errno = execute_program(program.as_raw_fd(), leak(arguments), leak(environment));
    io::Error::from_raw_os_error(errno)
}

/// Sends a message at once, with descriptors (`SCM_RIGHTS`).
///
/// # Errors
/// `EAGAIN` when the other end takes nothing; see sendmsg(2).
pub(super) fn send_with_descriptors(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[RawFd],
) -> io::Result<()> {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let rights = [ControlMessage::ScmRights(descriptors)];
    let control = if descriptors.is_empty() {
        &[]
    } else {
        rights.as_slice()
    };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let bytes = [io::IoSlice::new(bytes)];
    sendmsg::<()>(socket.as_raw_fd(), &bytes, control, flags, None)?;
    Ok(())
}

/// How many bytes of what was sent the other end has not taken.
///
/// # Errors
/// See unix(7), `SIOCOUTQ`.
pub(super) fn unread(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: the request writes one int, which lives through the call; the kernel's name for it is SIOCOUTQ.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut count) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Takes over a descriptor that the image before has left open, and closes it for children.
///
/// # Errors
/// `EBADF` when it is not open.
pub(super) fn inherit(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD takes integers only and fails with EBADF for a closed number.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: open (checked above); the slate names each number once, and nothing else in this
    // image has taken it ([`super::restore`] keeps the list).
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Closes `number`, which nobody in this image owns.
pub(super) fn close_stale(number: RawFd) {
    // SAFETY: the caller has made sure that the number was open when this image began and that nobody has
    // taken it over since.
    unsafe {
        libc::close(number);
    }
}
