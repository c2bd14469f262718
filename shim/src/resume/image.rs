//! The life of one image of the shim: from its handlers to its end, and what the next one says of it.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use holdfast_record::deadline::limit_from_env;
use holdfast_record::ledger::{Kind, Record};
use holdfast_record::process::Stat;
use holdfast_record::reason::new_incident;
use holdfast_record::{ContainerId, Namespace, Reason, Signal, Timestamp};
use serde::{Deserialize, Serialize};

use super::inherited::Inherited;
use super::link::Link;
use super::slate::Slate;
use super::sys::{self, Cause, Report};
use crate::fault_point;
use crate::idle;
use crate::keeper;
use crate::killer::{self, Finding};
use crate::sys::memory_file;

/// An image that lived shorter counts for the loop.
const QUICK: Duration = Duration::from_millis(500);
/// So many in a row, and only what containers need most is served.
const DEGRADE_AFTER: u32 = 4;
/// So many in a row, and the next one waits before it begins.
const WAIT_AFTER: u32 = 8;
/// How long it waits.
const WAIT: Duration = Duration::from_secs(1);
/// An image that has lived so long serves everything again.
const RECOVERED: Duration = Duration::from_secs(60);
/// The argument that names the slate's descriptor.
const FLAG: &str = "-resume";
/// The argument that names the program to go back to when an upgrade cannot go on.
const BACK: &str = "-back";

/// How long the event loop may be silent before it is asked for a sign of life, and as long again
/// before it is given up.
fn patience() -> Duration {
    limit_from_env("WATCHDOG", Duration::from_secs(5))
}

/// How long another program may take to begin before it is given up.
fn takeover_limit() -> Duration {
    limit_from_env("TAKEOVER", Duration::from_secs(10))
}

/// The number of that file.
pub(super) fn program_number() -> i32 {
    PROGRAM.get().map_or(-1, |program| program.as_raw_fd())
}

/// How the images of this process have fared.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Lives {
    /// When the present one began, milliseconds since 1970.
    pub(crate) began: u64,
    /// When the first one began.
    pub(crate) first: u64,
    /// How many there were before the present one.
    pub(crate) number: u32,
    /// How many have ended by a fault.
    pub(crate) faults: u32,
    /// How many in a row have ended soon after their beginning.
    pub(crate) quick: u32,
    /// Only what containers need most is served.
    pub(crate) degraded: bool,
    /// The latest incident.
    pub(crate) incident: Option<String>,
}

/// The file that this image was made from.
static PROGRAM: OnceLock<OwnedFd> = OnceLock::new();
/// What has panicked in images before, and when.
static PANICKED: Mutex<Vec<(String, u64)>> = Mutex::new(Vec::new());
static LIVES: OnceLock<Lives> = OnceLock::new();
static DEGRADED: AtomicBool = AtomicBool::new(false);
static QUICK_ENDS: AtomicU32 = AtomicU32::new(0);
static FOLLOWS_A_KILL: AtomicBool = AtomicBool::new(false);

fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}

/// How the images of this process have fared so far.
pub(crate) fn lives() -> Lives {
    LIVES.get().cloned().unwrap_or_default()
}

/// How many images there were before this one: so that names made by one are not made by the next.
pub(crate) fn number() -> u32 {
    LIVES.get().map_or(0, |lives| lives.number)
}

/// Whether only Wait, State, Kill, Delete and what merely reads are served.
pub(crate) fn is_degraded() -> bool {
    DEGRADED.load(Ordering::Relaxed)
}

/// Whether the image before was killed, and with it the runtimes at work.
pub(crate) fn follows_a_kill() -> bool {
    FOLLOWS_A_KILL.load(Ordering::Relaxed)
}

/// Whether the image before ended soon after its beginning: what it was asked may be the cause.
pub(crate) fn was_quick() -> bool {
    QUICK_ENDS.load(Ordering::Relaxed) > 0
}

/// The end of the image before, to be told once there is somebody to tell it.
#[derive(Debug)]
pub(crate) struct Before {
    report: Report,
    cause: Cause,
    lived: Duration,
}

/// What an image begins with.
#[derive(Debug)]
pub(crate) struct Begun {
    /// What the image before has left; none for the first.
    pub(crate) inherited: Option<Inherited>,
    /// How that one ended.
    pub(crate) before: Option<Before>,
    /// Why there will be no next image.
    pub(crate) alone: Option<io::Error>,
    /// Asks for a sign of life; see [`answer_watchdog`].
    pub(crate) probe: Option<OwnedFd>,
    /// Why the next image begins only where this one can see to it: there is no keeper.
    pub(crate) unkept: Option<String>,
}

/// Begins: as the first image, or with the slate of the one before. First of all, on the main thread.
///
/// # Errors
/// When there is a slate and it cannot be read. Without one there is nothing that must not fail: then
/// this image is the only one, and says so.
pub(crate) fn begin(slate: Option<i32>) -> io::Result<Begun> {
    let mut begun = Begun {
        inherited: None,
        before: None,
        alone: None,
        probe: None,
        unkept: None,
    };
    let mut link = None;
    let mut lives = Lives {
        began: now_ms(),
        first: now_ms(),
        ..Lives::default()
    };
    let slate = match slate {
        None => {
            if std::env::var_os(keeper::KEPT_VARIABLE).is_some() {
                match Link::first() {
                    Ok(first) => link = Some(first),
                    Err(error) => begun.unkept = Some(error.to_string()),
                }
            } else {
                begun.unkept = std::env::var(keeper::ALONE_VARIABLE).ok();
            }
            memory_file(c"holdfast-slate").and_then(Slate::create)
        }
        Some(number) => {
            let file = File::from(sys::inherit(number)?);
            let readable = Slate::check(&file)
                .map_err(io::Error::other)
                .and_then(|_| fault_point::refusal("resume/slate"));
            if let Err(error) = readable {
                // Left open: another program may go on with it. This one has no log yet.
                std::mem::forget(file);
                eprintln!("cannot go on from the image before: {error}");
                return Err(error);
            }
            let (slate, values) = Slate::open(file).map_err(io::Error::other)?;
            let report = sys::take_report(slate.file());
            let mut inherited = Inherited::new(values)?;
            inherited.owned(number);
            link = Link::again(&mut inherited);
            if let Ok(mut panicked) = PANICKED.lock() {
                for (what, at) in inherited.all("panic/") {
                    let at = at
                        .first_chunk::<8>()
                        .map_or(0, |at| u64::from_le_bytes(*at));
                    panicked.push((format!("panic/{what}"), at));
                }
            }
            let before: Lives = inherited.json("image").unwrap_or_default();
            let lived = Duration::from_millis(lives.began.saturating_sub(before.began));
            lives.first = before.first;
            lives.number = before.number + 1;
            lives.incident = before.incident;
            lives.faults = before.faults;
            if let Some(cause) = report.cause() {
                if cause != Cause::Upgrade {
                    lives.faults += 1;
                    lives.quick = if lived < QUICK { before.quick + 1 } else { 0 };
                    lives.degraded =
                        lives.quick >= DEGRADE_AFTER || (before.degraded && lived < RECOVERED);
                    lives.incident = Some(incident_of(&report));
                }
                // A program that was to take over, and died of it, has not come to say so.
                let died_of_upgrade =
                    cause == Cause::Upgrade && report.thread.cast_unsigned() != std::process::id();
                FOLLOWS_A_KILL.store(cause == Cause::Killed || died_of_upgrade, Ordering::Relaxed);
                begun.before = Some(Before {
                    report,
                    cause,
                    lived,
                });
            }
            begun.inherited = Some(inherited);
            Ok(slate)
        }
    };
    DEGRADED.store(lives.degraded, Ordering::Relaxed);
    QUICK_ENDS.store(lives.quick, Ordering::Relaxed);
    if lives.quick >= WAIT_AFTER {
        std::thread::sleep(WAIT);
    }
    // One that cannot be set up costs the next image, not this one.
    match slate.and_then(|slate| prepare(slate, &lives, link)) {
        Ok(probe) => begun.probe = Some(probe),
        Err(error) if begun.inherited.is_some() => return Err(error),
        // Said when there is a log.
        Err(error) => begun.alone = Some(error),
    }
    let _ = LIVES.set(lives);
    Ok(begun)
}

fn prepare(slate: Slate, lives: &Lives, link: Option<Link>) -> io::Result<OwnedFd> {
    let program = open_program(Path::new("/proc/self/exe"))?;
    let probe = crate::sys::event_counter()?;
    sys::install(sys::Setup {
        slate: slate.file(),
        program: program.as_fd(),
        arguments: arguments(&[&format!("{FLAG}={}", slate.number())])?,
        environment: environment()?,
        probe: probe.as_fd(),
        patience: patience(),
    })?;
    // The handlers use them until the very end.
    let _ = PROGRAM.set(program);
    super::set_up(slate, link);
    super::put_json("image", lives);
    Ok(probe)
}

fn string(bytes: Vec<u8>) -> io::Result<CString> {
    CString::new(bytes).map_err(io::Error::other)
}

/// Our own arguments without those of this module, and then `more`.
fn arguments(more: &[&str]) -> io::Result<Vec<CString>> {
    std::env::args_os()
        .filter(|argument| {
            let text = argument.to_string_lossy();
            !text.starts_with(FLAG) && !text.starts_with(BACK)
        })
        .map(OsStringExt::into_vec)
        .chain(more.iter().map(|text| text.as_bytes().to_vec()))
        .map(string)
        .collect()
}

fn environment() -> io::Result<Vec<CString>> {
    std::env::vars_os()
        .map(|(name, value)| {
            let mut line = name.into_vec();
            line.push(b'=');
            line.extend(value.into_vec());
            string(line)
        })
        .collect()
}

/// An upgrade cannot go on: back to the program before it, which has left all as it was.
///
/// Comes back only when that failed.
pub(crate) fn go_back(program: i32, slate: i32) -> io::Error {
    let Ok(program) = sys::inherit(program) else {
        return io::Error::from_raw_os_error(libc::EBADF);
    };
    match arguments(&[&format!("{FLAG}={slate}")]).and_then(|list| Ok((list, environment()?))) {
        Ok((arguments, environment)) => sys::execute_with(program.as_fd(), arguments, environment),
        Err(error) => error,
    }
}

/// A program to be executed, whatever becomes of its path.
///
/// # Errors
/// See open(2).
pub(crate) fn open_program(path: &Path) -> io::Result<OwnedFd> {
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(path)
        .map(OwnedFd::from)
}

/// Lets the signals in that came while this image began. Once all handlers are there.
pub(crate) fn let_signals_in() {
    sys::let_signals_in();
}

/// Hooks for the event loop: it is watched only while it is awake.
pub(crate) fn watch_loop(builder: &mut tokio::runtime::Builder) {
    builder
        .on_thread_unpark(sys::loop_wakes)
        .on_thread_park(|| {
            sys::loop_sleeps();
            idle::loop_sleeps();
        });
}

/// Answers the watchdog, for ever.
pub(crate) async fn answer_watchdog(probe: OwnedFd) {
    let Ok(probe) = crate::sys::watch(probe, tokio::io::Interest::READABLE) else {
        return;
    };
    loop {
        let read = probe.async_io(tokio::io::Interest::READABLE, |mut file| {
            use std::io::Read as _;
            file.read(&mut [0u8; 8])
        });
        if read.await.is_err() {
            return;
        }
        sys::loop_lives();
    }
}

/// A panic has come where nothing contains it: the next image goes on.
///
/// Comes back only when there can be none.
pub(crate) fn end_by_panic(incident: &str) {
    if super::is_on() {
        let error = sys::replace(Cause::Panic, incident, None);
        log::error!("the shim cannot execute itself again: {error}");
    }
}

/// A panic in something that the next image begins anew from the slate, as it was before. Once a
/// minute: what panics again is contained, and this comes back.
pub(crate) fn retry_after_panic(what: &str, incident: &str) {
    if !super::is_on() {
        return;
    }
    let key = format!("panic/{what}");
    let recovered = u64::try_from(RECOVERED.as_millis()).unwrap_or(u64::MAX);
    if PANICKED.lock().is_ok_and(|panicked| {
        panicked
            .iter()
            .any(|(one, at)| *one == key && at.saturating_add(recovered) > now_ms())
    }) {
        return;
    }
    super::put_now(&key, &now_ms().to_le_bytes());
    end_by_panic(incident);
}

/// Forgets the panics in what begins with `what`: it is gone.
pub(crate) fn forgive(what: &str) {
    let prefix = format!("panic/{what}");
    if let Ok(mut panicked) = PANICKED.lock() {
        panicked.retain(|(one, _)| !one.starts_with(&prefix));
    }
    super::remove_all(&prefix);
}

/// Goes on with another program.
///
/// Comes back only when that failed; nothing has changed then.
pub(crate) fn upgrade(program: BorrowedFd<'_>) -> io::Error {
    let Some(present) = PROGRAM.get().filter(|_| super::is_on()) else {
        return io::Error::from(io::ErrorKind::Unsupported);
    };
    let flags = [
        format!("{FLAG}={}", super::number()),
        format!("{BACK}={}", present.as_raw_fd()),
    ];
    match arguments(&[&flags[0], &flags[1]]) {
        Ok(arguments) => {
            // It outlives execve(2). Whoever is killed by it is followed by the present program, by the keeper.
            if super::is_kept() {
                let limit = u32::try_from(takeover_limit().as_secs()).unwrap_or(u32::MAX);
                nix::unistd::alarm::set(limit.max(1));
            }
            let error = sys::replace(Cause::Upgrade, "", Some((program, arguments)));
            nix::unistd::alarm::cancel();
            error
        }
        Err(error) => error,
    }
}

fn incident_of(report: &Report) -> String {
    let text: String = report
        .incident
        .iter()
        .take_while(|byte| **byte != 0)
        .map(|byte| char::from(*byte))
        .collect();
    if text.is_empty() {
        new_incident()
    } else {
        text
    }
}

impl Before {
    /// The record of it for the ledger; none where there is one already, or nothing was wrong.
    pub(crate) fn record(&self, namespace: &Namespace, id: &ContainerId) -> Option<Record> {
        let incident = lives().incident.unwrap_or_default();
        let reason = match self.cause {
            // The panic hook has written it.
            Cause::Panic | Cause::Upgrade => return None,
            Cause::Killed => {
                let pid = u32::try_from(self.report.thread).unwrap_or(0);
                let signal = (self.report.signal > 0).then(|| Signal::new(self.report.signal));
                let Finding {
                    findings,
                    sender,
                    oom,
                } = match signal {
                    Some(signal) => killer::of(pid, signal),
                    None => Finding {
                        findings: vec![format!("it ended with status {}", self.report.address)],
                        ..Finding::default()
                    },
                };
                Reason::ShimKilled {
                    incident,
                    shim_pid: pid,
                    signal,
                    findings,
                    sender,
                    oom,
                }
            }
            Cause::Signal => {
                let signal = Signal::new(self.report.signal);
                let sent_by = self.sender().map(|sender| who(sender, signal));
                Reason::ShimCrashed {
                    incident,
                    signal,
                    backtrace: self.backtrace(sent_by.as_deref()),
                    sent_by,
                }
            }
            Cause::Stalled => Reason::ShimStalled {
                incident,
                stalled: patience() * 2,
                threads: vec![self.backtrace(None)],
            },
        };
        let at = Timestamp::new(
            self.report.seconds,
            u32::try_from(self.report.nanos).unwrap_or(0),
        );
        Some(Record::new(Kind::Shim, &reason, at).of_container(Some(namespace), id))
    }

    /// Tells it in the log: what somebody has wished for is no warning.
    pub(crate) fn log(&self) {
        let level = match self.cause {
            Cause::Upgrade => log::Level::Info,
            Cause::Signal | Cause::Stalled | Cause::Panic | Cause::Killed => log::Level::Warn,
        };
        log::log!(level, "{}", self.sentence());
    }

    fn sentence(&self) -> String {
        let lived = self.lived.as_secs_f32();
        let what = match self.cause {
            Cause::Signal if self.report.code <= 0 => format!(
                "{} from process {}",
                Signal::new(self.report.signal),
                self.report.sender
            ),
            Cause::Signal => format!(
                "{} at address {:#x}",
                Signal::new(self.report.signal),
                self.report.address
            ),
            Cause::Stalled => "a stalled event loop".to_owned(),
            Cause::Killed if self.report.signal > 0 => {
                let signal = Signal::new(self.report.signal);
                format!("{signal}, which ended process {}", self.report.thread)
            }
            Cause::Killed => format!(
                "process {} ended with status {}",
                self.report.thread, self.report.address
            ),
            Cause::Panic => "a panic".to_owned(),
            Cause::Upgrade => "an upgrade".to_owned(),
        };
        let place = match self.cause {
            // Another process' number.
            Cause::Killed => String::new(),
            Cause::Signal | Cause::Stalled | Cause::Panic | Cause::Upgrade => {
                format!(" in thread {}", self.report.thread)
            }
        };
        format!(
            "the shim went on in a new image after {what}{place}; the one before lived {lived:.1} s"
        )
    }

    /// Another process that has sent the signal; abort(3) sends its own.
    fn sender(&self) -> Option<u32> {
        let sender = u32::try_from(self.report.sender).ok()?;
        let is_other = self.report.code <= 0 && sender != 0 && sender != std::process::id();
        is_other.then_some(sender)
    }

    fn backtrace(&self, sent_by: Option<&str>) -> String {
        let frames = self.report.file_addresses();
        let mut lines = vec![match sent_by {
            Some(sender) => format!("sent by {sender}"),
            None => format!("at address {:#x}", self.report.address),
        }];
        lines.extend(super::symbols::name_all(
            Path::new("/proc/self/exe"),
            &frames,
        ));
        lines.join("\n")
    }
}

/// Who sent us a signal: from the kernel's trace with command and parent, else by what the process is now.
fn who(sender: u32, signal: Signal) -> String {
    let traced = killer::of(std::process::id(), signal).sender;
    match traced.filter(|traced| traced.pid == sender) {
        Some(traced) => traced.to_string(),
        None => match Stat::read(sender) {
            Ok(stat) => format!("pid {sender} ({})", stat.comm),
            Err(_) => format!("pid {sender}, which is gone"),
        },
    }
}
