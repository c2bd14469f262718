//! Panics: one report each, to fd 2 first, then to the ledger and to journald.

use std::backtrace::Backtrace;
use std::cell::{Cell, RefCell};
use std::panic::PanicHookInfo;
use std::time::Duration;

use super::{Places, publish};
use crate::deadline::Deadline;
use crate::ledger::{Ledger, Record};
use crate::reason::{Panicked, new_incident};
use crate::sys;

/// How long the report may wait for room on fd 2: it is the one text that is worth waiting for.
const PATIENCE: Duration = Duration::from_secs(1);

thread_local! {
    static REPORTING: Cell<bool> = const { Cell::new(false) };
    static INCIDENT: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Replaces the panic hook of this process: each panic is reported to fd 2 with message, place and backtrace, and
/// as the record that `describe` makes of it to `ledger` and to journald.
///
/// A panic within the report itself is written to fd 2 alone.
pub fn report_panics(
    ledger: Ledger,
    places: Places,
    describe: impl Fn(Panicked) -> Record + Send + Sync + 'static,
) {
    std::panic::set_hook(Box::new(move |info| {
        if REPORTING.replace(true) {
            write(&format!("<2>panic while reporting a panic: {info}\n"));
            return;
        }
        let panicked = panicked(info);
        write(&report(&panicked));
        INCIDENT.set(Some(panicked.incident.clone()));
        publish(&ledger, &places, &describe(panicked));
        REPORTING.set(false);
    }));
}

/// Whether this thread is within the report of a panic, and may hold any lock there is.
pub(super) fn is_reporting() -> bool {
    REPORTING.get()
}

/// The incident of this thread's latest panic, once: for the one who catches the panic and answers the caller.
#[must_use]
pub fn take_incident() -> Option<String> {
    INCIDENT.take()
}

fn panicked(info: &PanicHookInfo<'_>) -> Panicked {
    let payload = info.payload();
    let message = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a text".to_owned());
    Panicked {
        incident: new_incident(),
        message,
        location: info.location().map(ToString::to_string),
        thread: std::thread::current().name().map(str::to_owned),
        backtrace: Backtrace::force_capture().to_string(),
    }
}

/// Every line with priority 2 (critical), so that journald shows them together.
fn report(panicked: &Panicked) -> String {
    let place = panicked.location.as_deref().unwrap_or("an unknown place");
    let thread = panicked.thread.as_deref().unwrap_or("without a name");
    let head = format!(
        "internal error {} at {place} in thread {thread}: {}",
        panicked.incident, panicked.message
    );
    head.lines()
        .chain(panicked.backtrace.lines())
        .map(|line| format!("<2>{line}\n"))
        .collect()
}

/// Writes all of `text` to fd 2 if that is possible within [`PATIENCE`].
fn write(text: &str) {
    let deadline = Deadline::after(PATIENCE, "room on fd 2");
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        match sys::write_stderr(rest) {
            Ok(0) => return,
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                if deadline.is_expired()
                    || sys::wait_writable_stderr(deadline.poll_timeout()).is_err()
                {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}
