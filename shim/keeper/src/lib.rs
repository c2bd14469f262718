//! What the shim and its keeper say to each other, and the numbers that both rely on.
//!
//! The keeper (`main.rs`) is the shim's parent. It holds a copy of every descriptor that the shim's slate names, under
//! the same number, and executes the shim again when that was killed: `../docs/0010-what-outlives-sigkill.md`.
//!
//! Messages are sequences of 32-bit words on a `SOCK_SEQPACKET` pair, in the machine's own order: both ends are on one
//! machine. The first word says what it is. A keeper lives as long as its shim, through upgrades of that, so words are
//! only ever added.
#![no_std]

/// In the keeper's environment: the path of the shim's program. It is no argument, so that whoever kills by what
/// stands on command lines (`pkill -f`) does not take the keeper for a shim.
pub const PROGRAM_VARIABLE: &str = "HOLDFAST_SHIM_PROGRAM";

/// The listening socket's number, in both.
pub const LISTENER: i32 = 3;
/// The keeper's end of the pair. In the shim something without a meaning has this number.
pub const KEEPER_END: i32 = 4;
/// The shim's end of the pair, in both.
pub const SHIM_END: i32 = 5;
/// The keeper's signalfd(2). In the shim something without a meaning has this number.
pub const SIGNALS: i32 = 6;
/// The lowest number that can be held for the shim.
pub const FIRST: i32 = 7;

/// `start` → keeper: begin. Milliseconds that a stopped shim is left alone; 0: for ever.
pub const GO: u32 = 1;
/// Shim → keeper: hold these numbers; the descriptors come along (`SCM_RIGHTS`), as many and in the same order.
pub const PUT: u32 = 2;
/// Shim → keeper: close these ranges: first, last, first, last …
pub const DROP: u32 = 3;
/// Shim → keeper: an image has begun. The numbers of the slate and of the program.
pub const HELLO: u32 = 4;
/// Shim → keeper: the end of this process is on the slate.
pub const REAPED: u32 = 5;
/// Shim → keeper: the slate is not true any more; do not go on with it.
pub const FORGET: u32 = 6;

/// Keeper → shim: a child has ended ([`End`]); said again to the next image until [`REAPED`] comes.
pub const END: u32 = 16;
/// Keeper → shim: you were stopped: by this signal, for so many milliseconds, since (seconds low, high, nanoseconds).
pub const CONTINUED: u32 = 17;

/// Most descriptors that one message carries.
pub const BATCH: usize = 240;
/// Most words of a message.
pub const WORDS: usize = 1 + 2 * BATCH;

/// The end of a process, as waitid(2) tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Its pid.
    pub pid: u32,
    /// `si_code`.
    pub code: i32,
    /// `si_status`.
    pub status: i32,
    /// When the keeper saw it: realtime clock, seconds.
    pub seconds: i64,
    /// And nanoseconds.
    pub nanos: u32,
}

/// A 64-bit number as two words.
#[must_use]
pub const fn split(value: i64) -> [u32; 2] {
    let bytes = value.to_ne_bytes();
    [
        u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
    ]
}

/// The number that [`split`] took apart.
#[must_use]
pub const fn join(first: u32, second: u32) -> i64 {
    let (a, b) = (first.to_ne_bytes(), second.to_ne_bytes());
    i64::from_ne_bytes([a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]])
}

impl End {
    /// As a message.
    #[must_use]
    pub const fn words(&self) -> [u32; 7] {
        let [first, second] = split(self.seconds);
        [
            END,
            self.pid,
            self.code.cast_unsigned(),
            self.status.cast_unsigned(),
            first,
            second,
            self.nanos,
        ]
    }

    /// From a message.
    #[must_use]
    pub fn parse(words: &[u32]) -> Option<Self> {
        let [END, pid, code, status, first, second, nanos, ..] = *words else {
            return None;
        };
        Some(Self {
            pid,
            code: code.cast_signed(),
            status: status.cast_signed(),
            seconds: join(first, second),
            nanos,
        })
    }
}

/// Where on the slate it says how the image before has ended.
pub const REPORT_AT: u64 = 1024;
/// Its first word.
pub const REPORT_MAGIC: u32 = 0x6866_7270;
/// [`Report::cause`] when the keeper has written it.
pub const KILLED: u32 = 5;

/// The beginning of that report, as it lies on the slate.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Report {
    /// [`REPORT_MAGIC`].
    pub magic: u32,
    /// [`KILLED`].
    pub cause: u32,
    /// The signal that ended it; 0: it ended itself.
    pub signal: i32,
    /// `si_code`.
    pub code: i32,
    /// The exit status, if it ended itself.
    pub address: u64,
    /// Nothing: who sent the signal is not told to a parent.
    pub sender: i32,
    /// The pid that ended.
    pub thread: i32,
    /// When: realtime clock, seconds.
    pub seconds: i64,
    /// And nanoseconds.
    pub nanos: i64,
    /// No incident.
    pub incident: [u8; 64],
    /// No stack.
    pub count: u32,
    /// Nothing.
    pub forwarded: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_comes_out_as_it_went_in() {
        let end = End {
            pid: 77,
            code: 2,
            status: 9,
            seconds: -5_000_000_000,
            nanos: 999_999_999,
        };
        assert_eq!(End::parse(&end.words()), Some(end));
        assert_eq!(End::parse(&[END, 1]), None);
        assert_eq!(End::parse(&[CONTINUED, 1, 2, 3, 4, 5, 6]), None);
    }
}
