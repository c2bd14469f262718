//! How a process ended, from the kernel's answer to `waitid(2)` or `wait4(2)`.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::reason::Reason;
use crate::time::Timestamp;

/// A signal number of this machine; shown by name (`SIGKILL`, `SIGRTMIN+3`), as `signal(7)` spells it.
///
/// Any number can be held, so that a record of a strange signal is still a record.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Signal(i32);

impl Signal {
    /// `SIGHUP`, 1.
    pub const HUP: Self = Self(libc::SIGHUP);
    /// `SIGINT`, 2.
    pub const INT: Self = Self(libc::SIGINT);
    /// `SIGKILL`, 9: cannot be caught.
    pub const KILL: Self = Self(libc::SIGKILL);
    /// `SIGTERM`, 15: the polite request to end.
    pub const TERM: Self = Self(libc::SIGTERM);

    /// From a signal number.
    #[must_use]
    pub const fn new(number: i32) -> Self {
        Self(number)
    }

    /// The signal number.
    #[must_use]
    pub const fn number(self) -> i32 {
        self.0
    }

    /// From a number (`9`), a name (`SIGKILL`, `kill`) or a real-time name (`SIGRTMIN+3`).
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(number) = text.parse::<i32>() {
            return (1..=64).contains(&number).then_some(Self(number));
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        if let Some((number, _)) = NAMES.iter().find(|(_, known)| known[3..] == *name) {
            return Some(Self(*number));
        }
        let offset = name
            .strip_prefix("RTMIN")
            .map(|rest| (FIRST_REAL_TIME, rest));
        let offset = offset.or_else(|| {
            name.strip_prefix("RTMAX")
                .map(|rest| (LAST_REAL_TIME, rest))
        });
        let (base, rest) = offset?;
        let number = if rest.is_empty() {
            base
        } else {
            base + rest.parse::<i32>().ok()?
        };
        (FIRST_REAL_TIME..=LAST_REAL_TIME)
            .contains(&number)
            .then_some(Self(number))
    }

    /// True for the signals the kernel raises for a process' own faulty instruction or abort.
    #[must_use]
    pub fn is_fault(self) -> bool {
        matches!(
            self.0,
            libc::SIGSEGV
                | libc::SIGBUS
                | libc::SIGILL
                | libc::SIGFPE
                | libc::SIGABRT
                | libc::SIGTRAP
                | libc::SIGSYS
        )
    }
}

/// glibc's view: the C library keeps 32 and 33 for itself.
const FIRST_REAL_TIME: i32 = 34;
const LAST_REAL_TIME: i32 = 64;

const NAMES: &[(i32, &str)] = &[
    (libc::SIGHUP, "SIGHUP"),
    (libc::SIGINT, "SIGINT"),
    (libc::SIGQUIT, "SIGQUIT"),
    (libc::SIGILL, "SIGILL"),
    (libc::SIGTRAP, "SIGTRAP"),
    (libc::SIGABRT, "SIGABRT"),
    (libc::SIGBUS, "SIGBUS"),
    (libc::SIGFPE, "SIGFPE"),
    (libc::SIGKILL, "SIGKILL"),
    (libc::SIGUSR1, "SIGUSR1"),
    (libc::SIGSEGV, "SIGSEGV"),
    (libc::SIGUSR2, "SIGUSR2"),
    (libc::SIGPIPE, "SIGPIPE"),
    (libc::SIGALRM, "SIGALRM"),
    (libc::SIGTERM, "SIGTERM"),
    (libc::SIGSTKFLT, "SIGSTKFLT"),
    (libc::SIGCHLD, "SIGCHLD"),
    (libc::SIGCONT, "SIGCONT"),
    (libc::SIGSTOP, "SIGSTOP"),
    (libc::SIGTSTP, "SIGTSTP"),
    (libc::SIGTTIN, "SIGTTIN"),
    (libc::SIGTTOU, "SIGTTOU"),
    (libc::SIGURG, "SIGURG"),
    (libc::SIGXCPU, "SIGXCPU"),
    (libc::SIGXFSZ, "SIGXFSZ"),
    (libc::SIGVTALRM, "SIGVTALRM"),
    (libc::SIGPROF, "SIGPROF"),
    (libc::SIGWINCH, "SIGWINCH"),
    (libc::SIGIO, "SIGIO"),
    (libc::SIGPWR, "SIGPWR"),
    (libc::SIGSYS, "SIGSYS"),
];

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((_, name)) = NAMES.iter().find(|(number, _)| *number == self.0) {
            return f.write_str(name);
        }
        match self.0 - FIRST_REAL_TIME {
            0 => f.write_str("SIGRTMIN"),
            offset if (1..=LAST_REAL_TIME - FIRST_REAL_TIME).contains(&offset) => {
                write!(f, "SIGRTMIN+{offset}")
            }
            _ => write!(f, "signal {}", self.0),
        }
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// As its name; a number without a name as a number.
impl Serialize for Signal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let name = self.to_string();
        if name.starts_with("SIG") {
            serializer.serialize_str(&name)
        } else {
            serializer.serialize_i32(self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Signal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(i32),
            Name(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Number(number) => Ok(Self(number)),
            Either::Name(name) => Self::parse(&name)
                .ok_or_else(|| serde::de::Error::custom(format!("{name:?} is no signal"))),
        }
    }
}

/// How a process ended. There is no variant for "not known": what is not known is not an exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// It called `exit`, with the low eight bits of its argument.
    Exited(u8),
    /// A signal ended it.
    #[serde(rename = "signaled")]
    Signaled {
        /// Which one.
        signal: Signal,
        /// Whether the kernel wrote a core dump.
        core: bool,
    },
}

impl ExitStatus {
    /// From the status word of `wait4(2)`; `None` when it reports a stop or a continue, which is no end.
    #[must_use]
    pub fn from_wait_status(status: i32) -> Option<Self> {
        if libc::WIFEXITED(status) {
            let code = u8::try_from(libc::WEXITSTATUS(status)).ok()?;
            Some(Self::Exited(code))
        } else if libc::WIFSIGNALED(status) {
            Some(Self::Signaled {
                signal: Signal(libc::WTERMSIG(status)),
                core: libc::WCOREDUMP(status),
            })
        } else {
            None
        }
    }

    /// From `si_code` and `si_status` of `waitid(2)`; `None` when they report a stop or a continue.
    #[must_use]
    pub fn from_waitid(code: i32, status: i32) -> Option<Self> {
        match code {
            libc::CLD_EXITED => Some(Self::Exited(u8::try_from(status & 0xff).ok()?)),
            libc::CLD_KILLED | libc::CLD_DUMPED => Some(Self::Signaled {
                signal: Signal(status),
                core: code == libc::CLD_DUMPED,
            }),
            _ => None,
        }
    }

    /// The status word that `wait4(2)` would give for this end.
    #[must_use]
    pub fn to_wait_status(self) -> i32 {
        match self {
            Self::Exited(code) => i32::from(code) << 8,
            Self::Signaled { signal, core } => signal.number() | if core { 0x80 } else { 0 },
        }
    }

    /// The one number that shells, containerd and Kubernetes show: the code, or 128 + the signal.
    #[must_use]
    pub fn shell_code(self) -> u32 {
        match self {
            Self::Exited(code) => u32::from(code),
            Self::Signaled { signal, .. } => 128 + u32::try_from(signal.number()).unwrap_or(0),
        }
    }

    /// Exited with code 0.
    #[must_use]
    pub fn success(self) -> bool {
        self == Self::Exited(0)
    }

    /// The signal that ended it, if one did.
    #[must_use]
    pub fn signal(self) -> Option<Signal> {
        match self {
            Self::Exited(_) => None,
            Self::Signaled { signal, .. } => Some(signal),
        }
    }
}

impl From<std::process::ExitStatus> for ExitStatus {
    /// `std` hands out only ends (never stops) from `wait`.
    fn from(status: std::process::ExitStatus) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let raw = status.into_raw();
        Self::from_wait_status(raw).unwrap_or(Self::Signaled {
            signal: Signal(raw & 0x7f),
            core: false,
        })
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exit code {code}"),
            Self::Signaled {
                signal,
                core: false,
            } => write!(f, "{signal}"),
            Self::Signaled { signal, core: true } => write!(f, "{signal} (core dumped)"),
        }
    }
}

/// One end of one process: exit = (status, time, reason).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exit {
    /// What the kernel said.
    pub status: ExitStatus,
    /// When the end was reaped.
    pub time: Timestamp,
    /// Why.
    pub reason: Reason,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn agrees_with_a_real_kernel() {
        let exited = Command::new("/bin/sh")
            .args(["-c", "exit 42"])
            .status()
            .unwrap();
        assert_eq!(ExitStatus::from(exited), ExitStatus::Exited(42));
        let killed = Command::new("/bin/sh")
            .args(["-c", "kill -9 $$"])
            .status()
            .unwrap();
        let killed = ExitStatus::from(killed);
        assert_eq!(killed.signal(), Some(Signal::KILL));
        assert_eq!(killed.shell_code(), 137);
    }

    #[test]
    fn stops_are_no_ends() {
        assert_eq!(ExitStatus::from_wait_status(0x137f), None);
        assert_eq!(ExitStatus::from_wait_status(0xffff), None);
        assert_eq!(ExitStatus::from_waitid(libc::CLD_STOPPED, 19), None);
    }

    #[test]
    fn status_words_come_back() {
        for raw in (0..=255)
            .map(|code| code << 8)
            .chain((1..=64).flat_map(|s| [s, s | 0x80]))
        {
            assert_eq!(
                ExitStatus::from_wait_status(raw).unwrap().to_wait_status(),
                raw
            );
        }
    }

    #[test]
    fn signals_by_name_and_number() {
        for number in 1..=64 {
            let signal = Signal::new(number);
            let json = serde_json::to_string(&signal).unwrap();
            assert_eq!(serde_json::from_str::<Signal>(&json).unwrap(), signal);
        }
        assert_eq!(Signal::parse("kill"), Some(Signal::KILL));
        assert_eq!(Signal::parse("SIGTERM"), Some(Signal::TERM));
        assert_eq!(Signal::parse("rtmin+3").unwrap().to_string(), "SIGRTMIN+3");
        assert_eq!(Signal::parse("RTMAX"), Some(Signal::new(64)));
        for bad in ["", "SIG", "0", "65", "-1", "RTMIN+40", "nonsense"] {
            assert_eq!(Signal::parse(bad), None, "{bad}");
        }
    }
}
