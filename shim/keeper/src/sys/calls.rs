//! Typed wrappers, one per system call.

use core::ffi::CStr;
use core::mem::zeroed;

use linux_raw_sys::general as k;
use linux_raw_sys::{errno, prctl as pr};

use super::arch::raw;

/// An errno value.
pub(crate) type Call<T> = Result<T, u32>;

pub(crate) const EAGAIN: u32 = errno::EAGAIN;
const EINTR: u32 = errno::EINTR;

/// What the process was started with: addresses of strings, and the address of the list of the environment.
pub(crate) struct Start {
    /// With the program's name; each ends with NUL.
    pub(crate) arguments: &'static [usize],
    /// As execve(2) takes it.
    pub(crate) environment: usize,
    /// The address of the path of the shim's program.
    pub(crate) program: Option<usize>,
}

fn check(ret: isize) -> Call<usize> {
    match ret {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an errno is 1 to 4095"
        )]
        -4095..=-1 => Err(-ret as u32),
        #[allow(
            clippy::cast_sign_loss,
            reason = "what is no error is an address or a count"
        )]
        _ => Ok(ret as usize),
    }
}

/// Widens a descriptor or id to a register; -1 stays -1.
#[allow(
    clippy::cast_sign_loss,
    reason = "the kernel takes the register's lower half"
)]
fn reg(value: i32) -> usize {
    value as isize as usize
}

fn at<T>(value: &T) -> usize {
    core::ptr::from_ref(value) as usize
}

fn at_mut<T>(value: &mut T) -> usize {
    core::ptr::from_mut(value) as usize
}

fn call(nr: u32, a: [usize; 6]) -> Call<usize> {
    // SAFETY: private; every caller below passes integers or addresses taken from references that outlive the call,
    // with the lengths that belong to them.
    check(unsafe { raw(nr as usize, a) })
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "descriptors and pids are 32 bits"
)]
fn int(ret: usize) -> i32 {
    ret as i32
}

/// Ends the process.
pub(crate) fn exit(code: i32) -> ! {
    loop {
        let _ = call(k::__NR_exit_group, [reg(code), 0, 0, 0, 0, 0]);
    }
}

/// The process' name, for people who read ps.
pub(crate) fn set_name(name: &CStr) {
    let option = pr::PR_SET_NAME as usize;
    let _ = call(k::__NR_prctl, [option, name.as_ptr() as usize, 0, 0, 0, 0]);
}

/// Orphans of this process' descendants become its children.
pub(crate) fn become_subreaper() -> Call<()> {
    let option = pr::PR_SET_CHILD_SUBREAPER as usize;
    call(k::__NR_prctl, [option, 1, 0, 0, 0, 0]).map(drop)
}

/// A set of signals: bit N-1 is signal N.
pub(crate) fn block_signals(set: u64) -> Call<()> {
    const SIG_SETMASK: usize = 2;
    call(
        k::__NR_rt_sigprocmask,
        [SIG_SETMASK, at(&set), 0, size_of::<u64>(), 0, 0],
    )
    .map(drop)
}

/// A descriptor that is readable while one of these signals waits.
pub(crate) fn signalfd(set: u64) -> Call<i32> {
    let flags = (k::O_CLOEXEC | k::O_NONBLOCK) as usize;
    call(
        k::__NR_signalfd4,
        [reg(-1), at(&set), size_of::<u64>(), flags, 0, 0],
    )
    .map(int)
}

/// Takes waiting signals off it.
pub(crate) fn drain_signals(signals: i32) {
    let mut buffer = [0u8; 128 * 4];
    let to = buffer.as_mut_ptr() as usize;
    while call(k::__NR_read, [reg(signals), to, buffer.len(), 0, 0, 0]).is_ok_and(|got| got > 0) {}
}

/// Waits until one of two descriptors is readable, at most so many milliseconds.
pub(crate) fn wait_for(two: [i32; 2], limit: Option<u64>) {
    let set = two.map(|fd| k::pollfd {
        fd,
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_possible_wrap,
            reason = "POLLIN is 1"
        )]
        events: k::POLLIN as i16,
        revents: 0,
    });
    let time = limit.map(|ms| k::__kernel_timespec {
        tv_sec: i64::try_from(ms / 1000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(ms % 1000).unwrap_or(0) * 1_000_000,
    });
    let _ = call(
        k::__NR_ppoll,
        [at(&set), 2, time.as_ref().map_or(0, at), 0, 0, 0],
    );
}

/// A clock: seconds and nanoseconds.
fn clock(id: u32) -> (i64, i64) {
    let mut now = k::__kernel_timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let _ = call(
        k::__NR_clock_gettime,
        [id as usize, at_mut(&mut now), 0, 0, 0, 0],
    );
    (now.tv_sec, now.tv_nsec)
}

/// Since 1970.
pub(crate) fn realtime() -> (i64, i64) {
    clock(k::CLOCK_REALTIME)
}

/// Milliseconds of a clock that only goes on.
pub(crate) fn monotonic() -> u64 {
    let (seconds, nanos) = clock(k::CLOCK_MONOTONIC);
    u64::try_from(seconds * 1000 + nanos / 1_000_000).unwrap_or(0)
}

/// What waitid(2) tells of a child.
#[derive(Clone, Copy)]
pub(crate) struct Told {
    pub(crate) pid: i32,
    pub(crate) code: i32,
    pub(crate) status: i32,
}

pub(crate) const CLD_EXITED: i32 = 1;
pub(crate) const CLD_STOPPED: i32 = 5;
pub(crate) const CLD_CONTINUED: i32 = 6;

/// Which change of a child is asked for.
#[derive(Clone, Copy)]
pub(crate) enum Wanted {
    /// Its end, which it stays waitable for.
    Peek,
    /// Its end; then it is gone.
    Reap,
    /// That it was stopped or goes on.
    Stop,
}

/// Asks without waiting; `pid` 0: any child.
pub(crate) fn child(pid: i32, wanted: Wanted) -> Option<Told> {
    const P_ALL: usize = 0;
    const P_PID: usize = 1;
    // The layout that all 64-bit architectures share.
    #[repr(C)]
    struct Info {
        signo: i32,
        errno: i32,
        code: i32,
        padding: i32,
        pid: i32,
        uid: u32,
        status: i32,
        rest: [i32; 25],
    }
    // SAFETY: integers only; all zeroes is a value.
    let mut info: Info = unsafe { zeroed() };
    let which = if pid == 0 { P_ALL } else { P_PID };
    let flags = k::WNOHANG
        | match wanted {
            Wanted::Peek => k::WEXITED | k::WNOWAIT,
            Wanted::Reap => k::WEXITED,
            Wanted::Stop => k::WSTOPPED | k::WCONTINUED,
        };
    let done = call(
        k::__NR_waitid,
        [which, reg(pid), at_mut(&mut info), flags as usize, 0, 0],
    );
    (done.is_ok() && info.pid > 0).then_some(Told {
        pid: info.pid,
        code: info.code,
        status: info.status,
    })
}

pub(crate) fn kill(pid: i32, signal: u32) {
    let _ = call(k::__NR_kill, [reg(pid), signal as usize, 0, 0, 0, 0]);
}

/// A copy of this process; 0 in it.
pub(crate) fn fork() -> Call<i32> {
    call(k::__NR_clone, [k::SIGCHLD as usize, 0, 0, 0, 0, 0]).map(int)
}

/// Makes this process the leader of a group of its own.
pub(crate) fn own_group() {
    let _ = call(k::__NR_setpgid, [0; 6]);
}

/// Executes the file at a path; comes back only when that failed.
pub(crate) fn execute(path: usize, arguments: &[usize], environment: usize) {
    let list = arguments.as_ptr() as usize;
    let _ = call(k::__NR_execve, [path, list, environment, 0, 0, 0]);
}

/// Executes an open file; comes back only when that failed.
pub(crate) fn execute_open(file: i32, arguments: &[usize], environment: usize) {
    let list = arguments.as_ptr() as usize;
    let empty = c"".as_ptr() as usize;
    let flags = k::AT_EMPTY_PATH as usize;
    let _ = call(
        k::__NR_execveat,
        [reg(file), empty, list, environment, flags, 0],
    );
}

pub(crate) fn close(file: i32) {
    let _ = call(k::__NR_close, [reg(file), 0, 0, 0, 0, 0]);
}

pub(crate) fn close_range(first: u32, last: u32) {
    let _ = call(
        k::__NR_close_range,
        [first as usize, last as usize, 0, 0, 0, 0],
    );
}

/// Gives the open file `from` the number `to` as well; without close-on-exec.
pub(crate) fn duplicate(from: i32, to: i32) -> Call<()> {
    call(k::__NR_dup3, [reg(from), reg(to), 0, 0, 0, 0]).map(drop)
}

/// Gives an open file a number of at least `from`, instead of its own.
pub(crate) fn move_above(file: i32, from: i32) -> Call<i32> {
    let moved = call(
        k::__NR_fcntl,
        [reg(file), k::F_DUPFD as usize, reg(from), 0, 0, 0],
    );
    close(file);
    moved.map(int)
}

/// Reads `size_of::<T>` bytes at an offset; false when there are fewer. `T`: integers only.
pub(crate) fn read_at(file: i32, value: &mut u32, offset: u64) -> bool {
    #[allow(clippy::cast_possible_truncation, reason = "usize is 64 bits")]
    let offset = offset as usize;
    let size = size_of::<u32>();
    call(
        k::__NR_pread64,
        [reg(file), at_mut(value), size, offset, 0, 0],
    ) == Ok(size)
}

/// Writes a report at an offset.
pub(crate) fn write_at(file: i32, value: &holdfast_keeper::Report, offset: u64) {
    #[allow(clippy::cast_possible_truncation, reason = "usize is 64 bits")]
    let offset = offset as usize;
    let size = size_of::<holdfast_keeper::Report>();
    let _ = call(k::__NR_pwrite64, [reg(file), at(value), size, offset, 0, 0]);
}

const SOL_SOCKET: i32 = 1;
const SCM_RIGHTS: i32 = 1;

#[repr(C)]
struct Header {
    name: usize,
    name_len: u32,
    iov: *const [usize; 2],
    iov_len: usize,
    control: usize,
    control_len: usize,
    flags: i32,
}

/// Descriptors that came with a message.
pub(crate) struct Rights {
    /// cmsghdr: length, level, type; then the numbers.
    control: [u32; 4 + 256],
    pub(crate) count: usize,
}

impl Rights {
    pub(crate) const fn none() -> Self {
        Self {
            control: [0; 260],
            count: 0,
        }
    }

    pub(crate) fn get(&self, index: usize) -> Option<i32> {
        let number = self
            .control
            .get(4..4 + self.count.min(256))
            .and_then(|numbers| numbers.get(index))?;
        Some(number.cast_signed())
    }

    pub(crate) fn set(&mut self, index: usize, number: i32) {
        if let Some(slot) = self.control.get_mut(4 + index) {
            *slot = number.cast_unsigned();
        }
    }
}

/// Takes a message without waiting; how many words it has, 0 when the other end is gone.
pub(crate) fn receive(socket: i32, words: &mut [u32], rights: &mut Rights) -> Call<usize> {
    rights.count = 0;
    let iov = [words.as_mut_ptr() as usize, size_of_val(words)];
    let mut header = Header {
        name: 0,
        name_len: 0,
        iov: &raw const iov,
        iov_len: 1,
        control: rights.control.as_mut_ptr() as usize,
        control_len: size_of_val(&rights.control),
        flags: 0,
    };
    let got = loop {
        let flags = MSG_DONTWAIT;
        match call(
            k::__NR_recvmsg,
            [reg(socket), at_mut(&mut header), flags, 0, 0, 0],
        ) {
            Err(EINTR) => {}
            other => break other?,
        }
    };
    let [low, _, level, kind, ..] = rights.control;
    if header.control_len > 16
        && (level.cast_signed(), kind.cast_signed()) == (SOL_SOCKET, SCM_RIGHTS)
    {
        rights.count = (low as usize - 16) / size_of::<u32>();
    }
    Ok(got / size_of::<u32>())
}

const MSG_DONTWAIT: usize = 0x40;
const MSG_NOSIGNAL: usize = 0x4000;

/// Sends a message without waiting.
pub(crate) fn send(socket: i32, words: &[u32]) -> Call<()> {
    let flags = MSG_DONTWAIT | MSG_NOSIGNAL;
    call(
        k::__NR_sendto,
        [
            reg(socket),
            words.as_ptr() as usize,
            size_of_val(words),
            flags,
            0,
            0,
        ],
    )
    .map(drop)
}
