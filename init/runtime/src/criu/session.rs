//! One criu, from its start to its end.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_record::Deadline;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::log::complaints;
use super::message::{Kind, Message, Response, acknowledgement, feature_request, opt, request};
use crate::bundle::cstring;
use crate::error::{Doing, Error, Result};
use crate::link::wait_readable;
use crate::sys::clone::Cloned;
use crate::sys::worker::{self, Worker};
use crate::sys::{clone, fd};

/// How long criu may take to say something about itself.
const BRIEF: Duration = Duration::from_secs(10);
/// How long it may take to end when its socket is closed.
const END: Duration = Duration::from_secs(5);
/// Largest answer, 64 KiB: notifications are some dozen bytes.
const MAX_ANSWER: usize = 64 << 10;

/// The criu of this machine.
#[derive(Debug)]
pub(crate) struct Criu {
    path: CString,
}

/// What a session is started with, beside its socket.
#[derive(Debug, Default)]
pub(crate) struct Setting<'a> {
    /// Descriptors it inherits under their numbers here.
    pub(crate) keep: Vec<BorrowedFd<'a>>,
    /// Make it a child of our parent.
    pub(crate) sibling: bool,
    /// The directory that is a mount point in its own mount namespace.
    pub(crate) root: Option<&'a Path>,
}

impl Criu {
    /// Finds it: `program` as it is when it has a slash, else along PATH and where root's
    /// programs are.
    ///
    /// # Errors
    /// That it is not installed.
    pub(crate) fn find(program: &Path) -> Result<Self> {
        let executable =
            |path: &Path| nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = if program.as_os_str().as_bytes().contains(&b'/') {
            Some(program.to_owned()).filter(|path| executable(path))
        } else {
            std::env::split_paths(&path)
                .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
                .map(|folder| folder.join(program))
                .find(|path| executable(path))
        };
        let path = found.ok_or_else(|| Error::Criu {
            doing: "find criu".into(),
            text: format!(
                "there is no program {} in PATH, /usr/sbin or /sbin (Debian: apt-get install criu)",
                program.display()
            ),
        })?;
        Ok(Self {
            path: cstring("--criu", path)?,
        })
    }

    /// Starts it as a worker.
    pub(crate) fn start(&self, setting: &Setting<'_>, deadline: &Deadline) -> Result<Session> {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .doing(|| "make the socket to criu".into())?;
        let text = |text: &OsStr| CString::new(text.as_bytes()).unwrap_or_default();
        let args = [
            c"criu".to_owned(),
            c"swrk".to_owned(),
            CString::new(theirs.as_raw_fd().to_string()).unwrap_or_default(),
        ];
        let env: Vec<CString> = std::env::vars_os()
            .map(|(mut key, value)| {
                key.push("=");
                key.push(value);
                text(&key)
            })
            .collect();
        let root = setting
            .root
            .map(|root| cstring("root.path", root))
            .transpose()?;
        let keep: Vec<BorrowedFd<'_>> = setting
            .keep
            .iter()
            .copied()
            .chain([theirs.as_fd()])
            .collect();
        let doing = || format!("start {}", self.path.to_string_lossy());
        let (process, report) = worker::start(&Worker {
            path: &self.path,
            args: &args,
            env: &env,
            keep: &keep,
            sibling: setting.sibling,
            root: root.as_deref(),
        })
        .doing(doing)?;
        let session = Session {
            process,
            socket: Some(ours),
        };
        let step = deadline.for_step("criu: waiting for its start");
        wait_readable(&[report.as_fd()], &step, session.process.pid)?;
        match worker::refusal(&report) {
            Some(errno) => Err(errno).doing(doing),
            None => Ok(session),
        }
    }

    /// Its version as it prints it; empty when it does not tell.
    fn version(&self) -> String {
        let deadline = Deadline::after(BRIEF, "criu: its version");
        let asked = self
            .start(&Setting::default(), &deadline)
            .and_then(|session| session.ask(&request(Kind::Version, None), &deadline));
        match asked.map(|answer| answer.version) {
            Ok((major, minor, 0)) if major > 0 => format!(" {major}.{minor}"),
            Ok((major, minor, sublevel)) if major > 0 => format!(" {major}.{minor}.{sublevel}"),
            Ok(_) | Err(_) => String::new(),
        }
    }

    /// Makes sure that this criu on this kernel has what a pre-dump or lazy pages need.
    ///
    /// # Errors
    /// What is missing.
    pub(crate) fn require(&self, mem_track: bool, lazy_pages: bool, work: &Work) -> Result<()> {
        let deadline = Deadline::after(BRIEF, "criu: its features");
        let session = self.start(&Setting::default(), &deadline)?;
        let answer = session.ask(&feature_request(mem_track, lazy_pages), &deadline)?;
        let missing = [
            (
                mem_track && !answer.features.0,
                "tracking of changed memory",
            ),
            (lazy_pages && !answer.features.1, "lazy pages (userfaultfd)"),
        ];
        match missing.iter().find(|(missing, _)| *missing) {
            None if answer.success => Ok(()),
            missing => Err(Error::Criu {
                doing: "checkpoint the container".into(),
                text: format!(
                    "criu{} has no {} on this kernel{}",
                    self.version(),
                    missing.map_or("support for what was asked", |(_, what)| what),
                    self.own_check(work),
                ),
            }),
        }
    }

    /// The error for a request that criu answered with a failure: its own words, and whether it
    /// could have worked at all.
    pub(crate) fn failure(&self, doing: &str, kind: Kind, answer: &Response, work: &Work) -> Error {
        let mut text = format!("criu failed: type {} errno {}", kind.name(), answer.errno);
        let log = work.path.join(&work.log);
        let told = complaints(&log);
        for part in [&answer.message, &told]
            .into_iter()
            .filter(|part| !part.is_empty())
        {
            text.push_str(": ");
            text.push_str(part);
        }
        text.push_str(&self.own_check(work));
        text.push_str(&format!("; log file: {}", log.display()));
        Error::Criu {
            doing: doing.to_owned(),
            text,
        }
    }

    /// What criu's own check says of this kernel; empty when it is content.
    fn own_check(&self, work: &Work) -> String {
        const LOG: &str = "check.log";
        let deadline = Deadline::after(BRIEF, "criu: its check of the kernel");
        let mut opts = Message::default();
        opts.number(opt::IMAGES_DIR_FD, work.dir.as_raw_fd().into())
            .number(opt::WORK_DIR_FD, work.dir.as_raw_fd().into())
            .number(opt::LOG_LEVEL, 4)
            .text(opt::LOG_FILE, LOG);
        let asked = self
            .start(&Setting::default(), &deadline)
            .and_then(|session| session.ask(&request(Kind::Check, Some(&opts)), &deadline));
        match asked {
            Ok(answer) if answer.success => String::new(),
            Ok(_) => {
                let kernel = nix::sys::utsname::uname().map_or_else(
                    |_| "this kernel".into(),
                    |name| format!("Linux {}", name.release().display()),
                );
                let told = complaints(&work.path.join(LOG));
                let told = if told.is_empty() {
                    "without a word"
                } else {
                    &told
                };
                format!(
                    "; criu{} does not work on {kernel}: its own check fails: {told}",
                    self.version()
                )
            }
            Err(error) => format!("; its check of the kernel: {}", crate::error::chain(&error)),
        }
    }
}

/// The directory criu writes its log to.
#[derive(Debug)]
pub(crate) struct Work {
    /// Absolute or relative, as given.
    pub(crate) path: PathBuf,
    /// Open.
    pub(crate) dir: OwnedFd,
    /// Name of the log.
    pub(crate) log: String,
}

/// A running criu. Dropped, it is told to end, and ended when it does not.
#[derive(Debug)]
pub(crate) struct Session {
    process: Cloned,
    socket: Option<OwnedFd>,
}

/// What criu is told after a notification, and by whom.
pub(crate) type OnNotify<'a> = &'a mut dyn FnMut(&Response, Option<OwnedFd>) -> Result<()>;

impl Session {
    /// Its pid.
    pub(crate) fn pid(&self) -> i32 {
        self.process.pid
    }

    fn socket(&self) -> Result<&OwnedFd> {
        self.socket.as_ref().ok_or_else(|| Error::Criu {
            doing: "talk to criu".into(),
            text: "its socket is closed".into(),
        })
    }

    fn send(&self, message: &Message) -> Result<()> {
        fd::send(self.socket()?.as_fd(), message.as_bytes())
            .doing(|| "send a request to criu".into())
    }

    fn receive(&self, deadline: &Deadline) -> Result<(Response, Option<OwnedFd>)> {
        let socket = self.socket()?;
        wait_readable(&[socket.as_fd()], deadline, self.pid())?;
        let mut buffer = vec![0; MAX_ANSWER];
        let (len, passed) =
            fd::receive_fd(socket.as_fd(), &mut buffer).doing(|| "hear from criu".into())?;
        let bytes = buffer.get(..len).unwrap_or_default();
        let unusable = |text: &str| Error::Criu {
            doing: "hear from criu".into(),
            text: text.to_owned(),
        };
        if bytes.is_empty() {
            return Err(unusable("it ended without an answer"));
        }
        let response =
            Response::read(bytes).ok_or_else(|| unusable("it sent something that is no answer"))?;
        Ok((response, passed))
    }

    /// Sends a request without notifications; returns the answer.
    fn ask(self, message: &Message, deadline: &Deadline) -> Result<Response> {
        self.send(message)?;
        Ok(self.receive(deadline)?.0)
    }

    /// Sends a request, answers every notification with what `notified` makes of it, and returns
    /// the last answer.
    ///
    /// # Errors
    /// Of `notified`, when it failed; the deadline; a criu that is gone.
    pub(crate) fn perform(
        &self,
        message: &Message,
        deadline: &Deadline,
        notified: OnNotify<'_>,
    ) -> Result<Response> {
        self.send(message)?;
        let mut failed = None;
        loop {
            let (response, passed) = match self.receive(deadline) {
                Ok(received) => received,
                // The cause is told, not that criu has given up for it.
                Err(error) => return Err(failed.unwrap_or(error)),
            };
            if response.kind != Kind::Notify as u64 {
                return failed.map_or(Ok(response), Err);
            }
            if let Err(error) = notified(&response, passed) {
                failed.get_or_insert(error);
            }
            self.send(&acknowledgement(failed.is_none()))?;
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        drop(self.socket.take());
        let pidfd = self.process.pidfd.as_fd();
        let brief = Deadline::after(END, "criu: waiting for its end");
        if wait_readable(&[pidfd], &brief, self.process.pid).is_err() {
            log::warn!(
                "criu (process {}) does not end and is killed",
                self.process.pid
            );
            // ESRCH: it has ended in this very moment.
            let _ = clone::signal_pidfd(pidfd, libc::SIGKILL);
            let _ = wait_readable(&[pidfd], &brief, self.process.pid);
        }
        // A sibling is our parent's to reap.
        let _ = clone::wait_pidfd(pidfd, false);
    }
}
