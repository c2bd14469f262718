//! The seccomp filter of a container: from the profile, the cache or the state directory.

use std::path::Path;

use holdfast_plan::Step;
use holdfast_seccomp::{Cache, LoadFlags};
use oci_spec::runtime::LinuxSeccomp;

use super::Draft;
use crate::error::Result;
use crate::state::{SavedListener, SavedSeccomp};

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
        let (compiled, _) = Cache::open(folder).compile(profile)?;
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
