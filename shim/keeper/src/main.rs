//! `holdfast-keeper`: the shim's parent.
//!
//! It holds a copy of every descriptor that the shim's slate names, under the same number, and nothing else. When the
//! shim is killed, the containers come to it as the nearest subreaper; it executes the shim again with the slate and
//! the descriptors, and waits for the containers on its behalf: an end is told, and reaped when the shim has it on
//! the slate. A shim that is stopped is continued after a while. With the shim's regular end it ends, too.
//!
//! It has no heap, no thread and no C runtime, and says nothing: what it has seen the shim says.
//!
//! Arguments: its own name, then those of the shim. What it relies on: [`holdfast_keeper`].
#![no_std]
#![no_main]

mod sys;

use holdfast_keeper::{
    CONTINUED, DROP, End, FIRST, FORGET, GO, HELLO, KEEPER_END, KILLED, PUT, REAPED, REPORT_AT,
    REPORT_MAGIC, Report, SIGNALS, WORDS, split,
};
use sys::{Rights, Start, Told, Wanted};

const SIGCHLD: u32 = 17;
const SIGCONT: u32 = 18;
/// Signals that must find a handler of the next image: HUP, INT, ILL, ABRT, BUS, FPE, USR1, SEGV, USR2, TERM.
const HELD_OVER_EXEC: u64 =
    bit(1) | bit(2) | bit(4) | bit(6) | bit(7) | bit(8) | bit(10) | bit(11) | bit(12) | bit(15);
/// How long `start` may take to say [`GO`].
const GO_LIMIT: u64 = 60_000;
/// Images that may fail to begin, one after the other, by a fault that they see themselves.
const FAILURES: u32 = 8;
/// Images that may fail to begin, one after the other: nobody is served by a shim that never answers.
const KILLS: u32 = 30;
/// The longest pause before an image that follows one that did not begin.
const PAUSE: u64 = 1000;
/// Most arguments of the shim.
const ARGUMENTS: usize = 64;

const fn bit(signal: u32) -> u64 {
    1 << (signal - 1)
}

/// What it knows of its shim.
struct Keeper<'a> {
    start: &'a Start,
    /// Milliseconds that a stopped shim is left alone; 0: for ever.
    patience: u64,
    /// The shim's pid; 0: there is none.
    shim: i32,
    slate: i32,
    program: i32,
    /// Whether the present image has said [`HELLO`].
    greeted: bool,
    /// How many in a row have not.
    silent: u32,
    /// When the next image is to begin, if there is none.
    begin_at: u64,
    /// The child whose end was told and not yet acknowledged; 0: none.
    told: i32,
    /// Since when the shim is stopped and by what: monotonic milliseconds, realtime.
    stopped: Option<(u64, (i64, i64), i32)>,
}

/// Called by the entry code.
fn run(start: &Start) -> i32 {
    sys::set_name(c"holdfast-keeper");
    let prepared = sys::block_signals(u64::MAX).and_then(|()| sys::signalfd(bit(SIGCHLD)));
    match prepared {
        // As a rule: it is the first that is free.
        Ok(SIGNALS) => {}
        Ok(file) => {
            if sys::duplicate(file, SIGNALS).is_err() {
                return 1;
            }
            sys::close(file);
        }
        Err(_) => return 1,
    }
    let Some(patience) = await_go() else {
        return 1;
    };
    if sys::become_subreaper().is_err() {
        return 1;
    }
    let mut keeper = Keeper {
        start,
        patience,
        shim: 0,
        slate: -1,
        program: -1,
        greeted: false,
        silent: 0,
        begin_at: 0,
        told: 0,
        stopped: None,
    };
    if !keeper.begin() {
        return 1;
    }
    loop {
        sys::wait_for([KEEPER_END, SIGNALS], keeper.limit());
        sys::drain_signals(SIGNALS);
        keeper.listen();
        if let Some(code) = keeper.look_after_shim() {
            return code;
        }
        keeper.tell();
    }
}

/// Waits for `start` to have put this process where it belongs; how long a stopped shim is left alone.
fn await_go() -> Option<u64> {
    let until = sys::monotonic() + GO_LIMIT;
    let mut words = [0; WORDS];
    loop {
        let left = until.saturating_sub(sys::monotonic());
        if left == 0 {
            return None;
        }
        sys::wait_for([KEEPER_END, -1], Some(left));
        match sys::receive(KEEPER_END, &mut words, &mut Rights::none()) {
            Ok(2..) if words[0] == GO => return Some(u64::from(words[1])),
            Err(sys::EAGAIN) => {}
            Ok(_) | Err(_) => return None,
        }
    }
}

impl Keeper<'_> {
    /// How long nothing is to be done unless something happens.
    fn limit(&self) -> Option<u64> {
        let now = sys::monotonic();
        if self.shim == 0 {
            return Some(self.begin_at.saturating_sub(now));
        }
        let (since, ..) = self.stopped.filter(|_| self.patience > 0)?;
        Some((since + self.patience).saturating_sub(now))
    }

    /// Takes all that the shim has said.
    fn listen(&mut self) {
        let mut words = [0; WORDS];
        let mut rights = Rights::none();
        while let Ok(count @ 1..) = sys::receive(KEEPER_END, &mut words, &mut rights) {
            let said = words.get(1..count).unwrap_or_default();
            match words[0] {
                PUT => put(said, &mut rights),
                DROP => drop_ranges(said),
                HELLO => {
                    if let [slate, program, ..] = *said {
                        (self.slate, self.program) = (slate.cast_signed(), program.cast_signed());
                        self.greeted = true;
                        self.silent = 0;
                        // What was told to the image before, it may not have heard.
                        self.told = 0;
                    }
                }
                REAPED => {
                    if let [pid, ..] = *said
                        && pid.cast_signed() == self.told
                    {
                        sys::child(self.told, Wanted::Reap);
                        self.told = 0;
                    }
                }
                FORGET => self.slate = -1,
                // Of a later version.
                _ => {}
            }
        }
    }

    /// Sees to it that there is a shim, and that it runs. Some: it is done.
    fn look_after_shim(&mut self) -> Option<i32> {
        if self.shim != 0
            && let Some(end) = sys::child(self.shim, Wanted::Reap)
        {
            self.shim = 0;
            self.stopped = None;
            // Its last words.
            self.listen();
            if let Some(code) = self.ended(end) {
                return Some(code);
            }
        }
        if self.shim == 0 {
            if sys::monotonic() >= self.begin_at && !self.begin() {
                self.begin_at = sys::monotonic() + PAUSE;
            }
            return None;
        }
        while let Some(change) = sys::child(self.shim, Wanted::Stop) {
            self.stopped = match change.code {
                sys::CLD_STOPPED => Some((sys::monotonic(), sys::realtime(), change.status)),
                sys::CLD_CONTINUED => None,
                _ => self.stopped,
            };
        }
        if let Some((since, (seconds, nanos), signal)) = self.stopped
            && self.patience > 0
        {
            let waited = sys::monotonic().saturating_sub(since);
            if waited >= self.patience {
                sys::kill(self.shim, SIGCONT);
                self.stopped = None;
                let [first, second] = split(seconds);
                let _ = sys::send(
                    KEEPER_END,
                    &[
                        CONTINUED,
                        signal.cast_unsigned(),
                        u32::try_from(waited).unwrap_or(u32::MAX),
                        first,
                        second,
                        u32::try_from(nanos).unwrap_or(0),
                    ],
                );
            }
        }
        None
    }

    /// The shim has ended. Some: and so does this process.
    fn ended(&mut self, end: Told) -> Option<i32> {
        let itself = end.code == sys::CLD_EXITED;
        if itself && end.status == 0 {
            return Some(0);
        }
        if self.slate < 0 {
            return Some(1);
        }
        if !self.greeted {
            self.silent += 1;
            if self.silent >= if itself { FAILURES } else { KILLS } {
                return Some(1);
            }
        }
        let pause = if self.silent == 0 {
            0
        } else {
            (8u64 << self.silent.min(8)).min(PAUSE)
        };
        self.begin_at = sys::monotonic() + pause;
        let mut magic = 0;
        if sys::read_at(self.slate, &mut magic, REPORT_AT) && magic == REPORT_MAGIC {
            // It could still say itself why it ended.
            return None;
        }
        let (seconds, nanos) = sys::realtime();
        let report = Report {
            magic: REPORT_MAGIC,
            cause: KILLED,
            signal: if itself { 0 } else { end.status },
            code: end.code,
            address: if itself {
                u64::from(end.status.cast_unsigned())
            } else {
                0
            },
            sender: 0,
            thread: end.pid,
            seconds,
            nanos,
            incident: [0; 64],
            count: 0,
            forwarded: 0,
        };
        sys::write_at(self.slate, &report, REPORT_AT);
        None
    }

    /// Executes the shim: the first time by its path, then with the slate. False when there is no process for it.
    fn begin(&mut self) -> bool {
        self.greeted = false;
        // The end that the image before was told the next one has to be told, too.
        self.told = 0;
        match sys::fork() {
            Ok(0) => self.execute(),
            Ok(pid) => {
                self.shim = pid;
                true
            }
            Err(_) => false,
        }
    }

    /// In the new process.
    fn execute(&self) -> ! {
        sys::own_group();
        // Numbers that the shim must give to nothing.
        let _ = sys::duplicate(2, KEEPER_END);
        let _ = sys::duplicate(2, SIGNALS);
        let mut list = [0usize; ARGUMENTS];
        // One for the flag, one for the null.
        let count = self.start.arguments.len().min(ARGUMENTS - 2);
        for (slot, argument) in list.iter_mut().zip(self.start.arguments.iter().take(count)) {
            *slot = *argument;
        }
        if let (Some(slot), Some(program)) = (list.first_mut(), self.start.program) {
            *slot = program;
        }
        if self.slate < 0 {
            let _ = sys::block_signals(0);
            if let Some(path) = self.start.program {
                sys::execute(path, &list, self.start.environment);
            }
            sys::exit(127);
        }
        let flag = Flag::new(self.slate);
        if let Some(slot) = list.get_mut(count) {
            *slot = flag.0.as_ptr() as usize;
        }
        let _ = sys::block_signals(HELD_OVER_EXEC);
        sys::execute_open(self.program, &list, self.start.environment);
        sys::exit(127);
    }

    /// Tells the shim of one child that has ended; of the next one when it has acknowledged.
    fn tell(&mut self) {
        if self.shim == 0 || !self.greeted || self.told != 0 {
            return;
        }
        let Some(end) = sys::child(0, Wanted::Peek).filter(|end| end.pid != self.shim) else {
            return;
        };
        let (seconds, nanos) = sys::realtime();
        let told = End {
            pid: end.pid.cast_unsigned(),
            code: end.code,
            status: end.status,
            seconds,
            nanos: u32::try_from(nanos).unwrap_or(0),
        };
        if sys::send(KEEPER_END, &told.words()).is_ok() {
            self.told = end.pid;
        }
    }
}

/// Holds descriptors under the numbers that they have in the shim.
fn put(numbers: &[u32], rights: &mut Rights) {
    let highest = numbers.iter().fold(0, |a, b| a.max(*b)).cast_signed();
    // Out of the way first: the number that one came under may be another's.
    for index in 0..rights.count {
        if let Some(file) = rights.get(index) {
            let moved = sys::move_above(file, highest.max(FIRST) + 1);
            rights.set(index, moved.unwrap_or(-1));
        }
    }
    for index in 0..rights.count {
        let Some(file) = rights.get(index).filter(|file| *file >= 0) else {
            continue;
        };
        if let Some(number) = numbers.get(index)
            && number.cast_signed() >= FIRST
        {
            let _ = sys::duplicate(file, number.cast_signed());
        }
        sys::close(file);
    }
}

fn drop_ranges(mut ranges: &[u32]) {
    while let [first, last, rest @ ..] = ranges {
        if *first >= FIRST.cast_unsigned() && first <= last {
            sys::close_range(*first, *last);
        }
        ranges = rest;
    }
}

/// `-resume=N` with its NUL.
struct Flag([u8; 24]);

impl Flag {
    fn new(slate: i32) -> Self {
        const NAME: &[u8] = b"-resume=";
        let mut text = [0; 24];
        let mut digits = [0u8; 10];
        let mut count = 0;
        let mut rest = slate.unsigned_abs();
        for digit in &mut digits {
            *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
            count += 1;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        let number = digits.iter().take(count).rev();
        for (to, from) in text.iter_mut().zip(NAME.iter().chain(number)) {
            *to = *from;
        }
        Self(text)
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Reached only through a bug. The shim goes on without a keeper, and says so.
    sys::exit(125)
}
