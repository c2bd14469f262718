//! `config.toml` as the NVIDIA container toolkit 1.20 reads it.
//!
//! The file belongs to the toolkit: its tables, keys, defaults and checks are followed to the letter, oddities included
//! (see [`read`]). Our own settings are in the table `[holdfast]` of the same file, which the toolkit ignores as it
//! ignores everything it does not know.

mod locate;
mod own;
mod read;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub use locate::{ChosenBy, Location, SYSTEM, VARIABLE, locate};
pub use own::{DeviceRules, Own, UnknownDeviation};

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that somebody named does not exist.
    #[error("{chosen_by} names {}, which does not exist: create it, or take the name away to use {}", .path.display(), locate::SYSTEM)]
    Missing {
        /// The file.
        path: PathBuf,
        /// Who named it.
        chosen_by: ChosenBy,
    },
    /// It cannot be read.
    #[error("failed to read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not TOML.
    #[error("{} is not TOML, line {line}, column {column}: {problem}", .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1, in characters.
        column: usize,
        /// The parser's words, in one line.
        problem: String,
    },
    /// A key has a value of the wrong type.
    #[error("{}, line {line}, column {column}: {key} must be {wanted}, not {found}", .path.display())]
    Type {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1, in characters.
        column: usize,
        /// With its tables: `nvidia-container-cli.no-pivot`.
        key: String,
        /// What it should be.
        wanted: &'static str,
        /// What it is.
        found: String,
    },
    /// A key has a value that is of no use.
    #[error("{}: {key} is {value:?}: {problem}", .path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// With its tables.
        key: &'static str,
        /// As it is there.
        value: String,
        /// What is wrong with it and what would be right.
        problem: String,
    },
}

/// Everything the toolkit reads. Field for field the keys of the file; defaults are [`Config::defaults`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `disable-require`: `NVIDIA_REQUIRE_*` is not passed on.
    pub disable_require: bool,
    /// `swarm-resource`: environment variables, comma-separated, that replace `NVIDIA_VISIBLE_DEVICES`.
    pub swarm_resource: String,
    /// `accept-nvidia-visible-devices-envvar-when-unprivileged`.
    pub accept_envvar_when_unprivileged: bool,
    /// `accept-nvidia-visible-devices-as-volume-mounts`.
    pub accept_volume_mounts: bool,
    /// `supported-driver-capabilities`, as it is in the file.
    pub supported_driver_capabilities: String,
    /// `[nvidia-container-cli]`.
    pub cli: Cli,
    /// `[nvidia-ctk]`.
    pub ctk: Ctk,
    /// `[nvidia-container-runtime]`.
    pub runtime: Runtime,
    /// `[nvidia-container-runtime-hook]`.
    pub hook: Hook,
    /// `[features]`.
    pub features: Features,
    /// `[holdfast]`.
    pub own: Own,
}

/// `[nvidia-container-cli]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cli {
    /// `root`: of the driver; empty: the host's.
    pub root: String,
    /// `path` of the program; empty: looked for.
    pub path: String,
    /// `environment`: entries added to the program's environment.
    pub environment: Vec<String>,
    /// `debug`: the program's log file.
    pub debug: String,
    /// `ldcache`.
    pub ldcache: String,
    /// `load-kmods`.
    pub load_kmods: bool,
    /// `no-pivot`.
    pub no_pivot: bool,
    /// `no-cgroups`.
    pub no_cgroups: bool,
    /// `user`: `root:video` by default on SUSE.
    pub user: String,
    /// `ldconfig`: with `@` in front a path of the host, without it one of the container.
    pub ldconfig: String,
}

/// `[nvidia-ctk]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ctk {
    /// `path`: of `nvidia-ctk` or `nvidia-cdi-hook`.
    pub path: String,
}

/// `[nvidia-container-runtime]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runtime {
    /// `debug`: its log file.
    pub debug: String,
    /// `log-level`.
    pub log_level: String,
    /// `runtimes`: low-level runtimes, the first one found is used.
    pub runtimes: Vec<String>,
    /// `mode`, as it is in the file; see [`crate::mode`].
    pub mode: String,
    /// `[nvidia-container-runtime.modes]`.
    pub modes: Modes,
}

/// `[nvidia-container-runtime.modes]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Modes {
    /// `csv`.
    pub csv: Csv,
    /// `cdi`.
    pub cdi: Cdi,
    /// `jit-cdi`.
    pub jit_cdi: JitCdi,
    /// `legacy`.
    pub legacy: Legacy,
}

/// `[nvidia-container-runtime.modes.csv]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Csv {
    /// `mount-spec-path`.
    pub mount_spec_path: String,
    /// `compat-container-root`.
    pub compat_container_root: String,
}

/// `[nvidia-container-runtime.modes.cdi]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cdi {
    /// `spec-dirs`, the last one with the highest priority.
    pub spec_dirs: Vec<String>,
    /// `default-kind` of names without a vendor and class.
    pub default_kind: String,
    /// `annotation-prefixes`.
    pub annotation_prefixes: Vec<String>,
}

/// `[nvidia-container-runtime.modes.jit-cdi]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JitCdi {
    /// `nvcdi-disable-hooks`: names, or `all`.
    pub disable_hooks: Vec<String>,
    /// `nvcdi-feature-flags`.
    pub feature_flags: Vec<String>,
}

/// `[nvidia-container-runtime.modes.legacy]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Legacy {
    /// `cuda-compat-mode`: `ldconfig`, `mount`, `hook`, `disabled`; anything else counts as none of them.
    pub cuda_compat_mode: String,
}

/// `[nvidia-container-runtime-hook]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hook {
    /// `path`.
    pub path: String,
    /// `skip-mode-detection`.
    pub skip_mode_detection: bool,
}

/// `[features]`: all off by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// `allow-cuda-compat-libs-from-container`.
    pub allow_cuda_compat_libs_from_container: bool,
    /// `allow-ldconfig-from-container`.
    pub allow_ldconfig_from_container: bool,
    /// `allow-unknown-oci-spec-fields`.
    pub allow_unknown_oci_spec_fields: bool,
    /// `disable-cuda-compat-lib-hook`.
    pub disable_cuda_compat_lib_hook: bool,
    /// `disable-imex-channel-creation`.
    pub disable_imex_channel_creation: bool,
    /// `ignore-imex-channel-requests`.
    pub ignore_imex_channel_requests: bool,
    /// `no-additional-gids-for-device-nodes`.
    pub no_additional_gids_for_device_nodes: bool,
}

impl Config {
    /// The toolkit's defaults on this host.
    #[must_use]
    pub fn defaults() -> Self {
        read::defaults(Path::new("/"))
    }

    /// Reads the file at `path`, and checks it as the toolkit does.
    ///
    /// # Errors
    /// [`Error::Read`] (also for a file that does not exist), [`Error::Syntax`], [`Error::Type`], [`Error::Value`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(path, &text)
    }

    /// As [`Config::read`], from the file's content.
    ///
    /// # Errors
    /// As there.
    pub fn parse(path: &Path, content: &[u8]) -> Result<Self, Error> {
        read::parse(path, content, read::defaults(Path::new("/")))
    }
}
