//! The seccomp filter of a container: from the profile, the cache or the state directory.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use holdfast_plan::Step;
use holdfast_record::Deadline;
use holdfast_seccomp::{Cache, Compiled, LoadFlags};
use oci_spec::runtime::LinuxSeccomp;

use super::Draft;
use crate::error::{Doing, Error, Result};
use crate::link::wait_readable;
use crate::state::{SavedListener, SavedSeccomp};
use crate::sys::clone;

/// A compiled filter, ready for `holdfast-init`.
#[derive(Debug)]
pub struct Filter {
    /// Instructions as the kernel takes them.
    pub program: Vec<u8>,
    /// How to load it.
    pub saved: SavedSeccomp,
}

impl Filter {
    /// Compiles the profile, or takes it from the cache in `folder`.
    ///
    /// # Errors
    /// A profile that is no profile.
    pub fn compile(profile: &LinuxSeccomp, folder: &Path) -> Result<Self> {
        let compiled = compile_bounded(profile, folder)?;
        if !compiled.unknown_syscalls.is_empty() {
            log::debug!(
                "seccomp: system calls unknown to libseccomp are answered by the default: {}",
                compiled.unknown_syscalls.join(" ")
            );
        }
        let flags = compiled.program.flags();
        let listener = flags
            .contains(LoadFlags::NEW_LISTENER)
            .then(|| profile.listener_path().clone())
            .flatten()
            .map(|path| SavedListener {
                path,
                metadata: profile.listener_metadata().clone(),
            });
        Ok(Self {
            program: compiled.program.bytes().to_vec(),
            saved: SavedSeccomp {
                flags: flags.bits(),
                listener,
            },
        })
    }

    pub(super) fn push(&self, draft: &mut Draft) {
        draft.push(
            Step::Seccomp {
                program: &self.program,
                flags: self.saved.flags,
                listener: self.saved.flags & LoadFlags::NEW_LISTENER.bits() != 0,
            },
            format!(
                "load the seccomp filter of {} instructions",
                self.program.len() / 8
            ),
        );
    }
}

/// How long libseccomp may take: docker's profile takes 20 ms, and a thousand rules with
/// arguments some seconds; there are small profiles it never comes back from.
const LIMIT: Duration = Duration::from_secs(30);

/// From the cache; else compiled in a child that can be stopped, and taken from the cache then.
fn compile_bounded(profile: &LinuxSeccomp, folder: &Path) -> Result<Compiled> {
    let cache = Cache::open(folder);
    if let Some(compiled) = cache.lookup(profile)? {
        return Ok(compiled);
    }
    let deadline = Deadline::named(
        "seccomp",
        LIMIT,
        "create: waiting for libseccomp to compile the profile",
    );
    let child = clone::fork_for(|| u8::from(cache.compile(profile).is_err()))
        .doing(|| "start the process that compiles the seccomp profile".into())?;
    let waited = wait_readable(&[child.pidfd.as_fd()], &deadline, child.pid);
    if waited.is_err() {
        // ESRCH: it has ended in this very moment.
        let _ = clone::signal_pidfd(child.pidfd.as_fd(), libc::SIGKILL);
    }
    let ended = clone::wait_pidfd(child.pidfd.as_fd(), true);
    waited?;
    match cache.lookup(profile)? {
        Some(compiled) => Ok(compiled),
        // It came back, so it will again: either the profile is wrong, and this says why, or
        // the cache cannot be written.
        None if ended == Some((libc::CLD_EXITED, 0)) || ended == Some((libc::CLD_EXITED, 1)) => {
            Ok(cache.compile(profile)?.0)
        }
        None => Err(Error::Step {
            doing: "compile the seccomp profile".into(),
            detail: "the process that did it was killed".into(),
            source: None,
        }),
    }
}
