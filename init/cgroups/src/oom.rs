//! Kills by the kernel for want of memory in a cgroup.
//!
//! v1: Documentation/admin-guide/cgroup-v1/memory.rst, "OOM Control". v2: cgroup-v2.rst, `memory.events`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use crate::cgroup::Cgroup;
use crate::dir;
use crate::error::{Error, Result};
use crate::freezer::event;
use crate::sys;

/// How many processes the OOM killer has taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OomKills {
    /// In the cgroup and below (v2 `memory.events`), or in the cgroup itself (v1 counts no further).
    pub total: u64,
    /// In the cgroup itself, where the kernel tells (v2 `memory.events.local`, Linux 5.2; v1 always).
    pub local: Option<u64>,
    /// How often the whole cgroup was killed at once (v2 `memory.oom.group`).
    pub group: u64,
}

/// Something to wait on for an out-of-memory event; it may also fire when the cgroup is removed, so compare
/// [`Cgroup::oom_kills`] before and after.
#[derive(Debug)]
pub enum OomEvents {
    /// An eventfd of v1: ready for reading (POLLIN); [`OomEvents::acknowledge`] makes it quiet again.
    V1(OwnedFd),
    /// `memory.events` of v2: ready with POLLPRI (epoll: EPOLLPRI); acknowledge makes it quiet again.
    V2(OwnedFd),
}

impl AsFd for OomEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::V1(fd) | Self::V2(fd) => fd.as_fd(),
        }
    }
}

impl OomEvents {
    /// What to poll for: `POLLIN` or `POLLPRI`.
    pub fn poll_events(&self) -> libc::c_short {
        match self {
            Self::V1(_) => libc::POLLIN,
            Self::V2(_) => libc::POLLPRI,
        }
    }

    /// Takes the pending event; never blocks.
    ///
    /// # Errors
    /// [`Error::Io`] with ENODEV when the cgroup is gone (v2); on v1 a removed cgroup fires once and stays quiet.
    pub fn acknowledge(&self) -> Result<()> {
        let result = match self {
            Self::V1(fd) => {
                let mut count = [0_u8; 8];
                match sys::read_stream(fd.as_fd(), &mut count) {
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
                    other => other.map(drop),
                }
            }
            Self::V2(fd) => dir::read_all(fd.as_fd()).map(drop),
        };
        result.map_err(Error::io("read", "the OOM event"))
    }

    /// Waits for an event; false when `deadline` comes first.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn wait(&self, deadline: Instant) -> Result<bool> {
        sys::poll(self.as_fd(), self.poll_events(), deadline)
            .map_err(Error::io("poll", "the OOM event"))
    }
}

impl Cgroup {
    /// How many processes the OOM killer has taken here; `None` where no memory controller counts.
    ///
    /// Read it when a process has exited and before [`Self::remove`].
    ///
    /// # Errors
    /// [`Error::Io`]; a cgroup that is gone gives ENOENT or ENODEV ([`Error::is_gone`]).
    pub fn oom_kills(&self) -> Result<Option<OomKills>> {
        if let Some(place) = self.v1("memory") {
            let text = place.dir.read("memory.oom_control")?;
            // `oom_kill` is there since Linux 4.13.
            return Ok(event(&text, "oom_kill").map(|kills| OomKills {
                total: kills,
                local: Some(kills),
                group: 0,
            }));
        }
        let Some(place) = self.unified() else {
            return Ok(None);
        };
        let text = match place.dir.read("memory.events") {
            Ok(text) => text,
            // No memory controller here, or no cgroup: the directory itself tells.
            Err(error) if error.is_gone() => {
                place.dir.read("cgroup.procs")?;
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let local = place.dir.try_read("memory.events.local").ok();
        Ok(event(&text, "oom_kill").map(|total| OomKills {
            total,
            local: local.and_then(|text| event(&text, "oom_kill")),
            group: event(&text, "oom_group_kill").unwrap_or(0),
        }))
    }

    /// Registers for out-of-memory events; `None` where there is no memory controller.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Write`] (`cgroup.event_control`).
    pub fn oom_events(&self) -> Result<Option<OomEvents>> {
        if let Some(place) = self.v1("memory") {
            let path = || place.dir.path().join("memory.oom_control");
            let eventfd = sys::eventfd().map_err(Error::io("make an eventfd for", path()))?;
            let control = place
                .dir
                .open("memory.oom_control", libc::O_RDONLY)
                .map_err(Error::io("open", path()))?;
            let value = format!("{} {}", eventfd.as_raw_fd(), control.as_raw_fd());
            place.dir.write("cgroup.event_control", &value)?;
            // The kernel keeps its own references; `control` may be closed.
            return Ok(Some(OomEvents::V1(eventfd)));
        }
        let Some(place) = self.unified() else {
            return Ok(None);
        };
        let failed = || Error::io("read", place.dir.path().join("memory.events"));
        match place.dir.open("memory.events", libc::O_RDONLY) {
            Ok(fd) => {
                // A first read arms the poll; without it the first poll returns at once.
                dir::read_all(fd.as_fd()).map_err(failed())?;
                Ok(Some(OomEvents::V2(fd)))
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(failed()(error)),
        }
    }
}
