//! The `delete` action: cleans up after a shim that is gone, and says truly what is known.
//!
//! containerd runs it after a shim has died, and after every regular delete; it kills us
//! after five seconds. The bundle may be one that the Go shim made.

use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::Message;
use holdfast_cgroups::{Cgroup, CgroupPath, Hierarchies};
use holdfast_record::ledger::{Happening, Kind, Ledger, Record};
use holdfast_record::logging::{Places, publish};
use holdfast_record::process::{ProcessIdentity, Stat};
use holdfast_record::reason::Oom;
use holdfast_record::witness::Witness;
use holdfast_record::{ContainerId, ExitStatus, Namespace, Reason, Signal, Timestamp};

use crate::cli::CommandLine;
use crate::copies;
use crate::event::proto_time;
use crate::fault::chain;
use crate::handover;
use crate::options::Options;
use crate::outbox;
use crate::rootfs;
use crate::runtime;
use crate::stdio::console::remove_leftovers;
use crate::task::journal::{JOURNAL_FILE, read};
use crate::task::owner::whose;
use crate::task::record::Entry;

/// Bound of the runtime's part; with the unmount it stays below containerd's five seconds.
const RUNTIME_LIMIT: Duration = Duration::from_millis(2200);
/// How long a busy mount is tried again before it is detached.
const BUSY_LIMIT: Duration = Duration::from_secs(1);
/// Bound of all unmounting.
const UNMOUNT_LIMIT: Duration = Duration::from_millis(1500);
/// How long the dead shim's events may hold back the answer, so that they come before what
/// containerd says of the container's end. What takes longer comes after it.
const TELL_LIMIT: Duration = Duration::from_millis(700);
/// Status for a container whose end nobody saw: as if killed, for that is what we do to it.
const KILLED: u32 = 137;

/// Nothing could be cleaned up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeleteError {
    /// The id or the containerd namespace.
    #[error("{0}")]
    Id(#[from] holdfast_record::ids::InvalidId),
    /// The bundle.
    #[error("find the bundle")]
    Bundle(#[source] io::Error),
    /// stdout.
    #[error("print the answer")]
    Print(#[source] io::Error),
}

/// What the journal says of the container.
#[derive(Debug, Default, PartialEq, Eq)]
struct History {
    pid: Option<u32>,
    shim: Option<u32>,
    shim_start: Option<u64>,
    end: Option<(ExitStatus, Timestamp)>,
    deleted: bool,
}

fn history(entries: &[Entry]) -> History {
    let mut history = History::default();
    for entry in entries {
        match entry {
            Entry::Created {
                pid,
                shim,
                shim_start,
                ..
            } => {
                history.pid = *pid;
                history.shim = Some(*shim);
                history.shim_start = *shim_start;
            }
            Entry::Exited { status, at, .. } => history.end = Some((*status, *at)),
            Entry::Deleted => history.deleted = true,
            Entry::Started { .. }
            | Entry::KillRequested { .. }
            | Entry::ExecStarted { .. }
            | Entry::ExecExited { .. }
            | Entry::Paused
            | Entry::Resumed
            | Entry::EventQueued { .. }
            | Entry::EventAcknowledged { .. } => {}
        }
    }
    history
}

impl History {
    /// Whether the container's init process runs: nobody has seen its end, and it is there.
    fn init_runs(&self) -> bool {
        let is_there = |pid| Stat::read(pid).is_ok_and(|stat| !stat.is_exiting());
        self.end.is_none() && self.pid.is_some_and(is_there)
    }

    /// Whether the shim that wrote it still runs, and so tells its events itself.
    fn shim_lives(&self) -> bool {
        match (self.shim, self.shim_start) {
            // containerd calls as soon as the connection breaks, when the shim may not be gone yet.
            (Some(pid), Some(start)) => {
                Stat::read(pid).is_ok_and(|stat| stat.start_time == start && !stat.is_exiting())
            }
            (Some(_), None) | (None, _) => false,
        }
    }
}

/// Runs the action.
///
/// # Errors
/// [`DeleteError`]; whatever fails on the way is only logged, because the rest has to go on.
pub(crate) fn delete(line: &CommandLine) -> Result<(), DeleteError> {
    let id = ContainerId::new(line.id.as_str())?;
    let namespace = Namespace::new(line.namespace.as_str())?;
    let bundle = match &line.bundle {
        Some(bundle) => bundle.clone(),
        None => std::env::current_dir().map_err(DeleteError::Bundle)?,
    };
    // containerd's working directory for us may be another container's bundle.
    let bundle = bundle
        .parent()
        .map(|parent| parent.join(id.as_str()))
        .filter(|own| own.is_dir())
        .unwrap_or(bundle);
    let options = Options::read(&bundle).unwrap_or_else(|error| {
        log::warn!("read the options: {error}");
        Options::default()
    });
    let journal = journal_of(&bundle, &namespace, &id);
    let history = history(&read(&journal));
    if !history.shim_lives() {
        handover::take_over(&journal, &namespace, &id);
    }
    let telling = handover::begin(line);
    let ran = history.init_runs();
    if !history.deleted {
        delete_in_runtime(&options, &namespace, &id, &bundle);
    }
    let left = unmount(&bundle.join("rootfs"));
    if !left.is_empty() {
        let reason = Reason::CleanupIncomplete { left };
        let record = Record::new(Kind::Container, &reason, Timestamp::now())
            .of_container(Some(&namespace), &id);
        publish(&Ledger::from_env(), &Places::default(), &record);
    }
    remove_stale_socket(&bundle);
    if let Some(shim) = history
        .shim
        .filter(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    {
        remove_leftovers(shim);
    }
    let answer = answer(&history, &bundle);
    if !history.deleted && history.pid.is_some() {
        let found = Found {
            ran,
            options: &options,
            bundle: &bundle,
        };
        record(&namespace, &id, &history, &found);
    }
    if let Some(telling) = telling {
        telling.wait(TELL_LIMIT);
    }
    let bytes = answer.write_to_bytes().unwrap_or_default();
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(&bytes)
        .and_then(|()| stdout.flush())
        .map_err(DeleteError::Print)
}

/// The container's journal: in the bundle, or where it went when the container was deleted.
fn journal_of(bundle: &Path, namespace: &Namespace, id: &ContainerId) -> PathBuf {
    let own = bundle.join(JOURNAL_FILE);
    if own.exists() {
        return own;
    }
    handover::folder(namespace)
        .and_then(|folder| outbox::latest_of(&folder, id))
        .unwrap_or(own)
}

fn answer(history: &History, bundle: &Path) -> DeleteResponse {
    let pid = history.pid.or_else(|| {
        std::fs::read_to_string(bundle.join("init.pid"))
            .ok()?
            .trim()
            .parse()
            .ok()
    });
    let (status, at) = match history.end {
        Some((status, at)) => (status.shell_code(), at),
        None => (KILLED, Timestamp::now()),
    };
    DeleteResponse {
        pid: pid.unwrap_or(0),
        exit_status: status,
        exited_at: proto_time(at),
        ..DeleteResponse::default()
    }
}

/// What the clean-up found beside the journal.
struct Found<'a> {
    /// Whether the container's init process still ran.
    ran: bool,
    options: &'a Options,
    bundle: &'a Path,
}

/// What the kernel says of an end of the shim for want of memory.
fn oom_of_shim(witness: &Witness, pid: u32, options: &Options) -> Result<Oom, String> {
    let log = match witness.oom_kill(|kill| kill.victim_pid == pid) {
        Ok(Some(kill)) => return Ok(kill.evidence(None)),
        Ok(None) => "the kernel's log has no lack of memory of it".to_owned(),
        Err(error) => format!("the kernel's log cannot be read: {error}"),
    };
    let victim = Oom {
        victim_pid: Some(pid),
        ..Oom::default()
    };
    // The log forgets, and some containers' host has none for us.
    if witness.was_oom_victim(pid).unwrap_or(false) {
        return Ok(victim);
    }
    let path = options.shim_cgroup.as_str();
    if path.is_empty() {
        return Err(log);
    }
    // A cgroup that others share proves nothing of this one: then it is a finding, and no more.
    let kills = Hierarchies::detect()
        .and_then(|hierarchies| {
            let cgroup = Cgroup::open(&hierarchies, &CgroupPath::below_root(Path::new(path))?)?;
            cgroup.oom_kills()
        })
        .ok()
        .flatten();
    Err(match kills {
        Some(kills) if kills.total > 0 => format!(
            "{log}, but the cgroup of the shim ({path}) counts {} of them",
            kills.total
        ),
        Some(_) => format!("{log}, and the cgroup of the shim ({path}) counts none"),
        None => log,
    })
}

fn record(namespace: &Namespace, id: &ContainerId, history: &History, found: &Found<'_>) {
    let mut findings = Vec::new();
    let mut timeline = Vec::new();
    let (mut sender, mut oom) = (None, None);
    if let Some((status, at)) = history.end {
        timeline.push(Happening {
            time: at,
            text: format!("the container had ended: {status}"),
        });
    }
    if let Some(pid) = history.shim {
        findings.push(match Stat::read(pid) {
            Ok(stat) if stat.state == 'Z' => {
                format!("the shim's process {pid} has ended and is not reaped yet")
            }
            Ok(stat) => format!(
                "a process {pid} ({}) exists: the shim hangs, or the pid is another's now",
                stat.comm
            ),
            Err(_) => format!("the shim's process {pid} is gone"),
        });
        let witness = Witness::from_env();
        match witness.sender(pid, Signal::KILL) {
            Ok(Some(sent)) if sent.by_kernel => timeline.push(Happening {
                time: sent.time,
                text: "the kernel killed the shim".to_owned(),
            }),
            Ok(Some(sent)) => {
                timeline.push(Happening {
                    time: sent.time,
                    text: format!("SIGKILL sent to the shim by {}", sent.sender),
                });
                sender = Some(sent.sender);
            }
            Ok(None) => findings.push("the trace of signals has no SIGKILL for it".to_owned()),
            Err(error) => findings.push(error.to_string()),
        }
        match oom_of_shim(&witness, pid, found.options) {
            Ok(seen) => oom = Some(seen),
            Err(finding) => findings.push(finding),
        }
    }
    let reason = Reason::ShimGone {
        shim_pid: history.shim,
        container_had_ended: history.end.is_some(),
        container_was_gone: history.end.is_none() && !found.ran,
        findings,
        sender,
        oom,
    };
    let status = history.end.map_or(
        ExitStatus::Signaled {
            signal: Signal::KILL,
            core: false,
        },
        |(status, _)| status,
    );
    let (name, pod) = whose(found.bundle);
    let mut record = Record::new(Kind::Shim, &reason, Timestamp::now())
        .of_container(Some(namespace), id)
        .with_name(name)
        .with_pod(pod)
        .with_status(status)
        .with_timeline(timeline);
    if let Some(pid) = history.shim {
        record = record.with_process(ProcessIdentity {
            pid,
            start_time: history.shim_start.unwrap_or(0),
        });
    }
    publish(&Ledger::from_env(), &Places::default(), &record);
}

/// Unmounts on a thread that may hang: the answer is worth more. What is left, each in one sentence.
fn unmount(rootfs: &Path) -> Vec<String> {
    let (tell, told) = std::sync::mpsc::channel();
    let target = rootfs.to_owned();
    std::thread::spawn(move || {
        // Its mounts elsewhere have the same name as here.
        let real = std::fs::canonicalize(&target).unwrap_or_else(|_| target.clone());
        let here = rootfs::unmount_all(&target, BUSY_LIMIT).map_err(|error| chain(&error));
        let _ = tell.send((here, copies::users_of(&real)));
    });
    let (here, elsewhere) = told.recv_timeout(UNMOUNT_LIMIT).unwrap_or_else(|_| {
        let shown = rootfs.display();
        let late = format!("unmounting {shown} did not finish within {UNMOUNT_LIMIT:?}");
        (Err(late), Vec::new())
    });
    let mut left = here.unwrap_or_else(|error| vec![error]);
    left.extend(elsewhere);
    left.iter().for_each(|line| log::warn!("{line}"));
    left
}

/// Removes the socket that a killed shim has left, if nobody listens on it.
fn remove_stale_socket(bundle: &Path) {
    let Ok(address) = std::fs::read_to_string(bundle.join("address")) else {
        return;
    };
    let path = Path::new(address.trim().trim_start_matches("unix://"));
    let refused = UnixStream::connect(path)
        .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    if refused && let Err(error) = std::fs::remove_file(path) {
        log::warn!("remove {}: {error}", path.display());
    }
}

fn delete_in_runtime(options: &Options, namespace: &Namespace, id: &ContainerId, bundle: &Path) {
    let arguments = runtime::delete_arguments(options, namespace, id, bundle);
    let (program, arguments): (PathBuf, _) = arguments;
    let child = Command::new(&program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            log::warn!("run {}: {error}", program.display());
            return;
        }
    };
    let deadline = Instant::now() + RUNTIME_LIMIT;
    // A short-lived process without an event loop: asking every few milliseconds will do.
    loop {
        match child.try_wait() {
            Ok(Some(status)) => {
                if !status.success() {
                    log::warn!("{} delete: {status}", program.display());
                }
                return;
            }
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) => {
                log::warn!(
                    "{} delete did not finish within {RUNTIME_LIMIT:?}; killed",
                    program.display()
                );
                let _ = child.kill();
                let _ = child.wait();
                return;
            }
            Err(error) => {
                log::warn!("wait for {}: {error}", program.display());
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::journal::BundleJournal;

    #[test]
    fn only_a_socket_without_listener_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        std::fs::write(
            dir.path().join("address"),
            format!("unix://{}", path.display()),
        )
        .unwrap();
        remove_stale_socket(dir.path());
        assert!(path.exists());
        drop(listener);
        // A child that another test is just starting may still hold a copy, until its execve.
        let patience = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while path.exists() && std::time::Instant::now() < patience {
            remove_stale_socket(dir.path());
            std::thread::yield_now();
        }
        assert!(!path.exists());
    }

    #[test]
    fn the_true_status_is_told_where_the_journal_knows_it() {
        let dir = tempfile::tempdir().unwrap();
        let none = answer(&history(&read(&dir.path().join(JOURNAL_FILE))), dir.path());
        assert_eq!((none.pid, none.exit_status), (0, KILLED));
        // As the Go shim leaves it.
        std::fs::write(dir.path().join("init.pid"), "77").unwrap();
        assert_eq!(
            answer(&history(&read(&dir.path().join(JOURNAL_FILE))), dir.path()).pid,
            77
        );
        let mut journal = BundleJournal::create(dir.path());
        let at = Timestamp::new(5, 6);
        journal.append(&Entry::Created {
            pid: Some(42),
            shim: 41,
            shim_start: None,
            at,
        });
        assert_eq!(
            answer(&history(&read(&dir.path().join(JOURNAL_FILE))), dir.path()).exit_status,
            KILLED
        );
        journal.append(&Entry::Exited {
            pid: 42,
            status: ExitStatus::Exited(3),
            at,
        });
        let told = answer(&history(&read(&dir.path().join(JOURNAL_FILE))), dir.path());
        assert_eq!(
            (told.pid, told.exit_status, told.exited_at.seconds),
            (42, 3, 5)
        );
    }
}
