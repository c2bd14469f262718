//! What can go wrong with a control group, in words that say what to do.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure, with the step, the path and the value it is about.
///
/// `Display` never repeats [`std::error::Error::source`]: print the chain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call on a cgroup file or directory failed.
    #[error("cgroup: {step} {}", path.display())]
    Io {
        /// What was being done (`open`, `create directory`, ...).
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// The errno.
        source: io::Error,
    },
    /// The kernel refused a value.
    #[error("cgroup: write {value:?} to {}{hint}", file.display())]
    Write {
        /// The cgroup file.
        file: PathBuf,
        /// What was written.
        value: String,
        /// What the errno usually means for this file; starts with " (" when not empty.
        hint: Hint,
        /// The errno.
        source: io::Error,
    },
    /// No cgroup file system is mounted where one is expected.
    #[error(
        "cgroup: no cgroup hierarchy is mounted ({looked_at}); mount cgroup2 on /sys/fs/cgroup"
    )]
    NotMounted {
        /// What was looked at.
        looked_at: &'static str,
    },
    /// `linux.cgroupsPath` has systemd's form.
    #[error(
        "cgroup: cgroupsPath {path:?} has the form slice:prefix:name, which needs the systemd cgroup driver (--systemd-cgroup); this call uses the cgroupfs driver, which needs a path such as /parent/name"
    )]
    SystemdPath {
        /// The path of the specification.
        path: String,
    },
    /// A process was asked into a hierarchy that is not there, or that is that of all controllers (v2).
    #[error(
        "cgroup: unknown controller {controller:?}: the container's cgroup is in no hierarchy of that controller alone (cgroup v2 has one for all: leave the controller away)"
    )]
    NoHierarchy {
        /// As asked for.
        controller: String,
    },
    /// `linux.cgroupsPath` (or a path made of the container's id) is not usable.
    #[error("cgroup: path {path:?} {why}")]
    BadPath {
        /// The path.
        path: String,
        /// Why not.
        why: &'static str,
    },
    /// A value of the specification is out of range or contradicts another.
    #[error("cgroup: {field} = {value}: {why}")]
    Invalid {
        /// The field, as in config.json (`linux.resources.cpu.shares`).
        field: String,
        /// The value.
        value: String,
        /// Why it cannot be satisfied.
        why: String,
    },
    /// A limit is asked for whose controller (or file) this kernel does not offer here.
    #[error(
        "cgroup: {field} is set, but controller \"{controller}\" is not available {place}; remove the limit or enable the controller"
    )]
    NoController {
        /// The field, as in config.json.
        field: String,
        /// The controller's name.
        controller: String,
        /// Where it is missing: "on this machine" or "at PATH (no file NAME)".
        place: String,
    },
    /// `create` found processes in a cgroup of that name.
    #[error(
        "cgroup: {} exists and is not empty ({}); another container uses this cgroupsPath, or an earlier one left processes behind",
        path.display(), Holders(holders)
    )]
    NotEmpty {
        /// The cgroup directory.
        path: PathBuf,
        /// Who is in it (at most [`Holder::MAX`]).
        holders: Vec<Holder>,
    },
    /// `create` found a frozen cgroup of that name: a process put there would never run.
    #[error("cgroup: {} exists and is frozen; thaw it or remove it first", path.display())]
    Frozen {
        /// The cgroup directory.
        path: PathBuf,
    },
    /// The cgroup is the root of its hierarchy, where the call would hit the whole machine.
    #[error("cgroup: {step} refused: {} is the root of the hierarchy, not a container's cgroup", path.display())]
    Root {
        /// The refused call.
        step: &'static str,
        /// The directory.
        path: PathBuf,
    },
    /// The cgroup does not exist (any more).
    #[error("cgroup: {path} does not exist in any hierarchy")]
    Gone {
        /// The path below the hierarchies' roots, or the directory.
        path: String,
    },
    /// A wait came to its deadline.
    #[error("cgroup: {step} {} not finished after {waited:?}: {}", path.display(), Holders(holders))]
    Deadline {
        /// What was waited for.
        step: &'static str,
        /// The cgroup directory.
        path: PathBuf,
        /// How long.
        waited: Duration,
        /// Which processes are in the way (at most [`Holder::MAX`]).
        holders: Vec<Holder>,
    },
    /// The device rules cannot be expressed by the devices controller of cgroup v1.
    #[error(
        "cgroup: device rule \"{rule}\" cuts a hole into the earlier rule \"{inside}\", which cgroup v1 cannot express; name the devices one by one"
    )]
    DeviceRules {
        /// The later, narrower rule.
        rule: String,
        /// The earlier, wider rule.
        inside: String,
    },
    /// bpf(2) refused the device program.
    #[error("cgroup: {step} the device program of {}{hint}", path.display())]
    Bpf {
        /// `load`, `attach`, `query` or `detach`.
        step: &'static str,
        /// The cgroup directory.
        path: PathBuf,
        /// What the errno usually means.
        hint: Hint,
        /// The errno.
        source: io::Error,
    },
    /// A file of /proc has a form this crate does not know.
    #[error("cgroup: cannot parse {}: {what}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What was expected.
        what: &'static str,
    },
    /// The systemd driver.
    #[error(transparent)]
    Systemd(#[from] crate::systemd::Error),
}

impl Error {
    /// The errno of the failure, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Io { source, .. } | Self::Write { source, .. } | Self::Bpf { source, .. } => {
                source.raw_os_error()
            }
            Self::NotMounted { .. }
            | Self::NoHierarchy { .. }
            | Self::SystemdPath { .. }
            | Self::BadPath { .. }
            | Self::Invalid { .. }
            | Self::NoController { .. }
            | Self::NotEmpty { .. }
            | Self::Frozen { .. }
            | Self::Root { .. }
            | Self::Gone { .. }
            | Self::Deadline { .. }
            | Self::DeviceRules { .. }
            | Self::Parse { .. }
            | Self::Systemd(_) => None,
        }
    }

    /// True when the cgroup is not there (any more): ENOENT or ENODEV from the kernel, or [`Error::Gone`].
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Gone { .. })
            || matches!(self.errno(), Some(libc::ENOENT | libc::ENODEV))
    }

    pub(crate) fn io(
        step: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { step, path, source }
    }
}

/// A remark behind an error text, empty for none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hint(pub String);

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            Ok(())
        } else {
            write!(f, " ({})", self.0)
        }
    }
}

/// A process that stands in the way of a freeze, a kill or a removal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its pid, in the caller's pid namespace; 0 when it lives in a pid namespace the caller cannot see.
    pub pid: i32,
    /// `comm` of /proc/PID/stat; empty when the process is gone.
    pub command: String,
    /// The state letter of /proc/PID/stat (`D` = uninterruptible); `?` when unknown.
    pub state: char,
    /// The kernel function a `D` process sleeps in (/proc/PID/wchan); empty when unknown.
    pub waiting_in: String,
}

impl Holder {
    /// How many processes an error names.
    pub const MAX: usize = 8;

    /// Reads what /proc says of `pid`. Never fails: a process that is gone has an empty command.
    pub fn of(pid: i32) -> Self {
        let stat = std::fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
        let stat = String::from_utf8_lossy(&stat);
        // The command may hold spaces and parentheses: it ends at the last ')'.
        let (command, state) = match (stat.find('('), stat.rfind(')')) {
            (Some(open), Some(close)) if open < close => (
                stat.get(open + 1..close).unwrap_or_default().to_owned(),
                stat.get(close + 2..)
                    .and_then(|rest| rest.chars().next())
                    .unwrap_or('?'),
            ),
            _ => (String::new(), '?'),
        };
        let waiting_in = if state == 'D' {
            let text = std::fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
            if text == "0" { String::new() } else { text }
        } else {
            String::new()
        };
        Self {
            pid,
            command,
            state,
            waiting_in,
        }
    }

    pub(crate) fn of_all(pids: &[i32]) -> Vec<Self> {
        pids.iter()
            .take(Self::MAX)
            .map(|&pid| Self::of(pid))
            .collect()
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "pid {} ({}) state {}",
            self.pid, self.command, self.state
        )?;
        if !self.waiting_in.is_empty() {
            write!(f, " in {}", self.waiting_in)?;
        }
        Ok(())
    }
}

struct Holders<'a>(&'a [Holder]);

impl fmt::Display for Holders<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no process of it is visible here");
        }
        for (n, holder) in self.0.iter().enumerate() {
            let comma = if n == 0 { "" } else { ", " };
            write!(f, "{comma}{holder}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_says_who_it_is() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let me = Holder::of(pid);
        assert_eq!(me.pid, pid);
        assert!(!me.command.is_empty());
        assert!("RSD".contains(me.state), "{}", me.state);
        // Above pid_max's ceiling (2^22): cannot exist.
        let nobody = Holder::of(1 << 23);
        assert_eq!(nobody.state, '?');
        assert_eq!(nobody.command, "");
    }

    #[test]
    fn display_does_not_repeat_its_source() {
        let error = Error::Write {
            file: "/sys/fs/cgroup/a/memory.max".into(),
            value: "1".into(),
            hint: Hint("usage is above the limit".into()),
            source: io::Error::from_raw_os_error(libc::EBUSY),
        };
        assert_eq!(
            error.to_string(),
            "cgroup: write \"1\" to /sys/fs/cgroup/a/memory.max (usage is above the limit)"
        );
        assert_eq!(error.errno(), Some(libc::EBUSY));
        assert!(!error.is_gone());
    }
}
