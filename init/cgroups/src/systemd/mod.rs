//! The systemd driver: a container's cgroup is a transient scope that systemd makes, knows and re-applies limits to.
//!
//! ```text
//! slice:prefix:name ─> Unit ─> StartTransientUnit(PIDs, limits, devices) ─> JobRemoved "done" ─> Cgroup::adopt
//! ```
//! A small synchronous D-Bus client of its own (`bus`, `wire`) talks to systemd: no thread, no event loop, and every
//! wait ends at the caller's deadline. Sources: the D-Bus specification (messages, authentication), the manual page
//! org.freedesktop.systemd1(5) (methods, signals), systemd.resource-control(5) (properties).
//! The decisions: docs/0002-systemd-scope.md.

mod bus;
mod properties;
mod scope;
mod unit;
mod wire;

use std::io;
use std::time::Duration;

pub use properties::{Property, device_properties, limit_properties};
pub use scope::Systemd;
pub use unit::Unit;

/// What can go wrong between us and systemd.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No address gave a usable connection.
    #[error(
        "systemd: cannot be reached ({}); {} Without systemd use the cgroupfs driver",
        attempts(tried),
        instance.where_it_is()
    )]
    Unreachable {
        /// Whose it is.
        instance: Instance,
        /// Each address with the reason.
        tried: Vec<Attempt>,
    },
    /// The variable that names the bus has no transport this client knows.
    #[error("systemd: {variable} {address:?} names no unix:path= or unix:abstract= socket")]
    Address {
        /// The variable.
        variable: &'static str,
        /// Its value.
        address: String,
    },
    /// An ordinary user, and no word of where the user's systemd is.
    #[error(
        "systemd: neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR says where this user's instance is; log in as that user (or machinectl shell), or use the cgroupfs driver"
    )]
    NoSession,
    /// A system call on the connection failed.
    #[error("systemd: {step}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// The errno.
        source: io::Error,
    },
    /// A wait came to its deadline.
    #[error(
        "systemd: {step}: no answer after {waited:?}; it is hung, overloaded or reloading (systemctl status, journalctl -u init.scope)"
    )]
    Deadline {
        /// What was waited for.
        step: &'static str,
        /// How long the whole operation had waited by then.
        waited: Duration,
    },
    /// The bus does not let us in.
    #[error("systemd: authenticate: refused with {answer:?}")]
    Authentication {
        /// The line it sent instead of `OK`.
        answer: String,
    },
    /// What came is no D-Bus message, or not the one that was asked for.
    #[error("systemd: {step}: unintelligible answer ({what})")]
    Protocol {
        /// What was waited for.
        step: &'static str,
        /// What was wrong with it.
        what: &'static str,
    },
    /// systemd (or the bus) answered a call with an error.
    #[error("systemd: {step} {unit}: {name}: {message}")]
    Refused {
        /// The method.
        step: &'static str,
        /// The unit it was about.
        unit: String,
        /// The D-Bus error name, by which callers decide.
        name: String,
        /// systemd's words.
        message: String,
    },
    /// The job ended otherwise than `done`.
    #[error("systemd: {step} {unit}: the job ended as \"{result}\" (journalctl -u {unit})")]
    Job {
        /// The method that began the job.
        step: &'static str,
        /// The unit.
        unit: String,
        /// `canceled`, `timeout`, `failed`, `dependency` or `skipped`.
        result: String,
    },
    /// systemd said `done`, but the cgroup is not where it belongs.
    #[error(
        "systemd: {unit} was started, but {path} does not exist; does systemd see this cgroup hierarchy?"
    )]
    Elsewhere {
        /// The unit.
        unit: String,
        /// Where its directory was expected.
        path: String,
    },
}

impl Error {
    /// True when systemd did not answer at all, rather than refuse: callers that can do without it then may.
    pub fn is_silence(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Io { .. }
            | Self::Deadline { .. }
            | Self::Authentication { .. }
            | Self::Protocol { .. } => true,
            Self::Address { .. }
            | Self::NoSession
            | Self::Refused { .. }
            | Self::Job { .. }
            | Self::Elsewhere { .. } => false,
        }
    }

    fn is(&self, wanted: &str) -> bool {
        matches!(self, Self::Refused { name, .. } if name == wanted)
    }
}

/// Whose systemd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instance {
    /// The machine's: process 1.
    System,
    /// A user's: `systemd --user`.
    User,
}

impl Instance {
    /// The variable that names its bus.
    fn variable(self) -> &'static str {
        match self {
            Self::System => "DBUS_SYSTEM_BUS_ADDRESS",
            Self::User => "DBUS_SESSION_BUS_ADDRESS",
        }
    }

    fn where_it_is(self) -> &'static str {
        match self {
            Self::System => {
                "is it running here, and is its bus (DBUS_SYSTEM_BUS_ADDRESS, else /run/dbus/system_bus_socket) visible?"
            }
            Self::User => {
                "is this user's instance running (systemctl --user; loginctl enable-linger keeps it), and is its bus (DBUS_SESSION_BUS_ADDRESS, else $XDG_RUNTIME_DIR/bus) visible?"
            }
        }
    }
}

/// One address that was tried.
#[derive(Debug)]
pub struct Attempt {
    /// As in `DBUS_SYSTEM_BUS_ADDRESS`.
    pub address: String,
    /// Why it did not work.
    pub error: Box<Error>,
}

fn attempts(tried: &[Attempt]) -> String {
    let one = |attempt: &Attempt| {
        let cause = std::error::Error::source(&*attempt.error)
            .map(|source| format!(": {source}"))
            .unwrap_or_default();
        let text = attempt.error.to_string();
        let text = text.strip_prefix("systemd: ").unwrap_or(&text);
        format!("{}: {text}{cause}", attempt.address)
    };
    tried.iter().map(one).collect::<Vec<_>>().join("; ")
}

type Result<T, E = Error> = std::result::Result<T, E>;

#[cfg(test)]
mod tests;
