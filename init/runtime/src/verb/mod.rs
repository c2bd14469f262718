//! One module per command.

pub mod checkpoint;
mod container_hooks;
pub mod create;
pub mod delete;
pub(crate) mod environment;
pub mod events;
pub mod exec;
pub mod kill;
pub mod list;
mod made;
pub mod pause;
pub mod ps;
pub mod restore;
mod rootless;
pub mod run;
pub mod start;
pub mod state;
mod unit;
pub mod update;

pub(crate) use rootless::is_root_of_the_machine;

use std::path::PathBuf;

use holdfast_record::ContainerId;

/// What every command knows from the global options.
#[derive(Debug, Clone)]
pub struct Context {
    /// `--root`: where the state directories are.
    pub root: PathBuf,
    /// `--systemd-cgroup`.
    pub systemd_cgroup: bool,
    /// `--criu`: the program, looked up in PATH when it has no slash.
    pub criu: PathBuf,
    /// `--gpu` and `--gpu-config`.
    pub gpu: crate::gpu::Flags,
}

impl Context {
    /// Where compiled filters are kept: beside the state, so that they end with the boot.
    pub fn seccomp_cache(&self) -> PathBuf {
        self.root.join(".seccomp")
    }

    /// Loads a container.
    ///
    /// # Errors
    /// As [`crate::state::Container::load`].
    pub fn container(&self, id: &ContainerId) -> crate::Result<crate::state::Container> {
        crate::state::Container::load(&self.root, id)
    }
}
