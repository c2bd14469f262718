//! The id maps of a new user namespace: user_namespaces(7), newuidmap(1).
//!
//! Root writes them. An ordinary user may write one line that maps his own id, and has to deny
//! setgroups(2) for it; whatever is more goes through `newuidmap` and `newgidmap`, which know from
//! `/etc/subuid` and `/etc/subgid` what he may have.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use holdfast_record::Deadline;
use oci_spec::runtime::{Linux, LinuxIdMapping};

use crate::error::{Doing, Error, Result};
use crate::link::wait_readable;
use crate::sys::clone;

/// How long `newuidmap` may take: it may ask a directory service for the user's ranges.
const LIMIT: Duration = Duration::from_secs(20);

/// One of the two maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    Uid,
    Gid,
}

impl Which {
    fn name(self) -> &'static str {
        match self {
            Self::Uid => "uid",
            Self::Gid => "gid",
        }
    }

    fn helper(self) -> &'static str {
        match self {
            Self::Uid => "newuidmap",
            Self::Gid => "newgidmap",
        }
    }

    fn own(self) -> u32 {
        match self {
            Self::Uid => nix::unistd::geteuid().as_raw(),
            Self::Gid => nix::unistd::getegid().as_raw(),
        }
    }
}

/// Who writes a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writer {
    /// We, who are root.
    Root,
    /// We, an ordinary user: his own id and no other.
    Own,
    /// `newuidmap` or `newgidmap`.
    Helper,
}

fn writer(which: Which, map: &[LinuxIdMapping], is_root: bool) -> Writer {
    match map {
        _ if is_root => Writer::Root,
        [only] if only.size() == 1 && only.host_id() == which.own() => Writer::Own,
        _ => Writer::Helper,
    }
}

/// Whether setgroups(2) is denied to the container, because an ordinary user maps his own group
/// and no other.
pub fn denies_groups(linux: &Linux) -> bool {
    let map = linux.gid_mappings().as_deref().unwrap_or_default();
    let is_root = nix::unistd::geteuid().is_root();
    !map.is_empty() && writer(Which::Gid, map, is_root) == Writer::Own
}

/// The same of a running process's user namespace (user_namespaces(7), "Defining user and group ID mappings").
pub fn groups_are_denied(pid: i32) -> bool {
    let path = format!("/proc/{pid}/setgroups");
    std::fs::read_to_string(path).is_ok_and(|text| text.trim() == "deny")
}

/// Writes both maps of the user namespace of process `pid`, which waits for it.
///
/// # Errors
/// Which map, and why not; with the helper's own words.
pub fn write(linux: &Linux, pid: i32) -> Result<()> {
    let is_root = nix::unistd::geteuid().is_root();
    for (which, map) in [
        (Which::Uid, linux.uid_mappings()),
        (Which::Gid, linux.gid_mappings()),
    ] {
        let map = map.as_deref().unwrap_or_default();
        match writer(which, map, is_root) {
            Writer::Root => write_file(which, map, pid)?,
            Writer::Own => {
                if which == Which::Gid {
                    let path = format!("/proc/{pid}/setgroups");
                    fs::write(&path, "deny").doing(|| format!("write deny to {path}"))?;
                }
                write_file(which, map, pid)?;
            }
            Writer::Helper => run_helper(which, map, pid)?,
        }
    }
    Ok(())
}

/// The kernel takes the whole map in one write.
fn write_file(which: Which, map: &[LinuxIdMapping], pid: i32) -> Result<()> {
    let text: String = map
        .iter()
        .map(|line| {
            format!(
                "{} {} {}\n",
                line.container_id(),
                line.host_id(),
                line.size()
            )
        })
        .collect();
    let path = format!("/proc/{pid}/{}_map", which.name());
    fs::write(&path, text).map_err(|source| Error::UserMap {
        which: which.name(),
        detail: shown(map),
        source: Some(source),
    })
}

fn shown(map: &[LinuxIdMapping]) -> String {
    let lines: Vec<String> = map
        .iter()
        .map(|line| format!("{} {} {}", line.container_id(), line.host_id(), line.size()))
        .collect();
    lines.join(", ")
}

fn run_helper(which: Which, map: &[LinuxIdMapping], pid: i32) -> Result<()> {
    let helper = which.helper();
    let failed = |detail: String, source: Option<io::Error>| Error::UserMap {
        which: which.name(),
        detail,
        source,
    };
    let program = find(helper).ok_or_else(|| {
        let detail = format!(
            "{} needs the program {helper}, which is not in PATH (Debian: package uidmap)",
            shown(map)
        );
        failed(detail, None)
    })?;
    let said = nix::sys::memfd::memfd_create(
        c"holdfast-helper",
        nix::sys::memfd::MemFdCreateFlag::MFD_CLOEXEC,
    )
    .doing(|| format!("keep what {helper} says"))?;
    let mut said = File::from(said);
    let error_output = said
        .try_clone()
        .doing(|| format!("keep what {helper} says"))?;
    let mut command = Command::new(&program);
    command.arg(pid.to_string());
    for line in map {
        command.args([line.container_id(), line.host_id(), line.size()].map(|id| id.to_string()));
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(error_output)
        .spawn()
        .doing(|| format!("run {}", program.display()))?;
    let number = child.id().cast_signed();
    let pidfd = clone::open_pidfd(number).doing(|| format!("open a pidfd of {helper}"))?;
    let deadline = Deadline::named("idmap", LIMIT, format!("create: waiting for {helper}"));
    if let Err(error) = wait_readable(&[pidfd.as_fd()], &deadline, number) {
        // It is set-user-ID root: to kill it may be refused. It holds nothing of ours.
        let _ = child.kill();
        return Err(error);
    }
    let status = child.wait().doing(|| format!("wait for {helper}"))?;
    if status.success() {
        return Ok(());
    }
    let mut text = String::new();
    let read = said
        .seek(SeekFrom::Start(0))
        .and_then(|_| (&mut said).take(4096).read_to_string(&mut text));
    if read.is_err() {
        text.push_str("(unreadable)");
    }
    let detail = format!(
        "{}: {helper} failed ({status}): {}",
        shown(map),
        text.trim()
    );
    Err(failed(detail, None))
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxIdMappingBuilder;

    fn line(container: u32, host: u32, size: u32) -> LinuxIdMapping {
        LinuxIdMappingBuilder::default()
            .container_id(container)
            .host_id(host)
            .size(size)
            .build()
            .unwrap()
    }

    #[test]
    fn who_writes() {
        let own = Which::Uid.own();
        let cases = [
            (vec![line(0, own, 1)], Writer::Own),
            (vec![line(7, own, 1)], Writer::Own),
            (vec![line(0, own, 2)], Writer::Helper),
            (vec![line(0, own + 1, 1)], Writer::Helper),
            (vec![line(0, own, 1), line(1, 100_000, 9)], Writer::Helper),
        ];
        for (map, expected) in cases {
            assert_eq!(writer(Which::Uid, &map, false), expected, "{map:?}");
            assert_eq!(writer(Which::Uid, &map, true), Writer::Root);
        }
    }
}
