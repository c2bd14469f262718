//! Processes by pid *and* start time, and what `/proc` says of one for the text of an error.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};

use serde::{Deserialize, Serialize};

/// A process that cannot be confused with a later owner of its pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// The pid, in the reader's pid namespace.
    pub pid: u32,
    /// Start time in clock ticks since boot: field 22 of `/proc/PID/stat`, `proc(5)`.
    pub start_time: u64,
}

impl ProcessIdentity {
    /// Reads the identity of the process that has `pid` now.
    ///
    /// # Errors
    /// `NotFound` when no process has the pid; `InvalidData` when `/proc` is not the kernel's.
    pub fn read(pid: u32) -> io::Result<Self> {
        let stat = Stat::read(pid)?;
        Ok(Self {
            pid,
            start_time: stat.start_time,
        })
    }

    /// Whether this very process still exists and is not a zombie.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        Stat::read(self.pid).is_ok_and(|stat| {
            stat.start_time == self.start_time && !matches!(stat.state, 'Z' | 'X')
        })
    }

    /// Whether this very process still has its pid, be it as a zombie.
    #[must_use]
    pub fn exists(&self) -> bool {
        Stat::read(self.pid).is_ok_and(|stat| stat.start_time == self.start_time)
    }
}

/// The fields of `/proc/PID/stat` that are of use here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The name in parentheses, at most 15 bytes, chosen by the process itself.
    pub comm: String,
    /// One letter: `R S D T t Z X I`.
    pub state: char,
    /// The parent's pid.
    pub parent: u32,
    /// The kernel's flags of the process, `PF_…` of its `sched.h`.
    pub flags: u32,
    /// Clock ticks since boot.
    pub start_time: u64,
}

/// `PF_EXITING`: set before a process gives up any of its descriptors, and never taken back.
const PF_EXITING: u32 = 0x4;

impl Stat {
    /// Whether it is ending, or has ended: what it closes now, it closes for that.
    #[must_use]
    pub fn is_exiting(&self) -> bool {
        self.flags & PF_EXITING != 0 || matches!(self.state, 'Z' | 'X')
    }

    /// Reads `/proc/PID/stat`.
    ///
    /// # Errors
    /// `NotFound` when no process has the pid; `InvalidData` when the line cannot be read.
    pub fn read(pid: u32) -> io::Result<Self> {
        // A process that ends between open and read gives ESRCH, which is the same answer.
        let line = read_stat(pid).map_err(|error| {
            if error.raw_os_error() == Some(libc::ESRCH) {
                io::ErrorKind::NotFound.into()
            } else {
                error
            }
        })?;
        parse_stat(&line).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("/proc/{pid}/stat is not as proc(5) says"),
            )
        })
    }
}

/// One read is enough, and all there is: the kernel writes the line at once, some 50 numbers and a name of 15 bytes (63
/// for its own threads). A file that does not say how long it is would else be read in growing pieces.
fn read_stat(pid: u32) -> io::Result<Vec<u8>> {
    let mut line = vec![0; 4096];
    let length = File::open(format!("/proc/{pid}/stat"))?.read(&mut line)?;
    line.truncate(length);
    Ok(line)
}

/// The name may hold spaces and parentheses, so the fields begin after the last closing one.
fn parse_stat(line: &[u8]) -> Option<Stat> {
    let open = line.iter().position(|b| *b == b'(')?;
    let close = line.iter().rposition(|b| *b == b')')?;
    let comm = String::from_utf8_lossy(line.get(open + 1..close)?).into_owned();
    let rest = std::str::from_utf8(line.get(close + 1..)?).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    Some(Stat {
        comm,
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        flags: fields.get(6)?.parse().ok()?,
        start_time: fields.get(19)?.parse().ok()?,
    })
}

/// What `/proc` says of a process, for error texts and evidence. Fields that could not be read are absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The pid asked for.
    pub pid: u32,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
    /// Letter of its state, `proc(5)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<char>,
    /// The kernel function it sleeps in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wchan: Option<String>,
    /// Its arguments joined by spaces, at most 200 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// Its parent's pid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<u32>,
    /// Its open pipes as `fd 3 -> pipe:[1234]`, at most 16 of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pipes: Vec<String>,
}

/// Describes the process that has `pid` now; never fails, at worst everything is absent.
#[must_use]
pub fn describe(pid: u32) -> Description {
    let stat = Stat::read(pid).ok();
    let wchan = std::fs::read_to_string(format!("/proc/{pid}/wchan"))
        .ok()
        .map(|text| text.trim().to_owned())
        .filter(|text| !text.is_empty() && text != "0");
    let cmdline = std::fs::read(format!("/proc/{pid}/cmdline"))
        .ok()
        .map(|bytes| {
            let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
            text.trim().chars().take(200).collect::<String>()
        })
        .filter(|text| !text.is_empty());
    Description {
        pid,
        comm: stat.as_ref().map(|stat| stat.comm.clone()),
        state: stat.as_ref().map(|stat| stat.state),
        wchan,
        cmdline,
        parent: stat.map(|stat| stat.parent),
        pipes: pipes(pid),
    }
}

fn pipes(pid: u32) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    let mut pipes: Vec<(u32, String)> = entries
        .flatten()
        .filter_map(|entry| {
            let target = std::fs::read_link(entry.path()).ok()?;
            let target = target.to_str()?.to_owned();
            let number = entry.file_name().to_str()?.parse().ok()?;
            target.starts_with("pipe:").then_some((number, target))
        })
        .collect();
    pipes.sort();
    pipes
        .into_iter()
        .take(16)
        .map(|(number, target)| format!("fd {number} -> {target}"))
        .collect()
}

/// The meaning of a state letter, as `proc(5)` has it.
#[must_use]
pub fn state_in_words(state: char) -> &'static str {
    match state {
        'R' => "running",
        'S' => "sleeping",
        'D' => "in uninterruptible sleep",
        'T' => "stopped",
        't' => "stopped by a tracer",
        'Z' => "a zombie",
        'X' => "dead",
        'I' => "idle",
        _ => "in a state of its own",
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(state) = self.state else {
            return write!(f, "pid {} (gone)", self.pid);
        };
        let comm = self.comm.as_deref().unwrap_or("?");
        write!(
            f,
            "pid {} ({comm}), state {state} ({})",
            self.pid,
            state_in_words(state)
        )?;
        if let Some(wchan) = &self.wchan {
            write!(f, ", in kernel function {wchan}")?;
        }
        if let Some(cmdline) = &self.cmdline {
            write!(f, ", command {cmdline:?}")?;
        }
        if !self.pipes.is_empty() {
            write!(f, ", open pipes: {}", self.pipes.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let mut line = b"77 (a) R (b) S 5 ".to_vec();
        line.extend((5..=21).flat_map(|n| format!("{n} ").into_bytes()));
        line.extend(b"4242 0 0");
        let stat = parse_stat(&line).unwrap();
        assert_eq!(
            (stat.comm.as_str(), stat.state, stat.parent, stat.start_time),
            ("a) R (b", 'S', 5, 4242)
        );
        assert_eq!(parse_stat(b"77 (x) S"), None);
        assert_eq!(parse_stat(b""), None);
    }

    #[test]
    fn a_real_process_through_its_life() {
        let mut child = Command::new("/bin/cat")
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id();
        let identity = ProcessIdentity::read(pid).unwrap();
        assert!(identity.is_alive());
        let stranger = ProcessIdentity {
            start_time: identity.start_time + 1,
            ..identity
        };
        assert!(!stranger.exists(), "another start time is another process");
        let described = describe(pid);
        assert_eq!(described.parent, Some(std::process::id()));
        assert!(
            described
                .pipes
                .iter()
                .any(|pipe| pipe.starts_with("fd 0 -> pipe:"))
        );
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!identity.exists());
        assert_eq!(
            ProcessIdentity::read(pid).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        assert_eq!(describe(pid).to_string(), format!("pid {pid} (gone)"));
    }
}
