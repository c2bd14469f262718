//! Where `config.toml` is.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use super::{Config, Error};

/// Names a file; it must exist then.
pub const VARIABLE: &str = "NVIDIA_CTK_CONFIG_FILE_PATH";
/// The file when nothing else is said.
pub const SYSTEM: &str = "/etc/nvidia-container-runtime/config.toml";
/// The file below `$XDG_CONFIG_HOME`.
const BELOW_XDG: &str = "nvidia-container-runtime/config.toml";

/// Why a file was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChosenBy {
    /// The hook's `-config`, or `--gpu-config`.
    Flag,
    /// [`VARIABLE`].
    Environment,
    /// `$XDG_CONFIG_HOME`.
    Xdg,
    /// [`SYSTEM`].
    System,
}

impl ChosenBy {
    /// Whether the hook insists on the file's existence. The runtime never does.
    #[must_use]
    pub fn required(self) -> bool {
        match self {
            Self::Flag | Self::Environment => true,
            Self::Xdg | Self::System => false,
        }
    }
}

impl fmt::Display for ChosenBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flag => "the command line",
            Self::Environment => VARIABLE,
            Self::Xdg => "XDG_CONFIG_HOME",
            Self::System => "the default",
        })
    }
}

/// A chosen file, which may not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The file.
    pub path: PathBuf,
    /// Why this one.
    pub chosen_by: ChosenBy,
}

/// Chooses the file: `flag`, then [`VARIABLE`], then `$XDG_CONFIG_HOME`, then [`SYSTEM`]; empty values count as unset.
///
/// `environment` looks up a variable, so that tests need not change their own.
pub fn locate(flag: Option<&OsStr>, environment: impl Fn(&str) -> Option<OsString>) -> Location {
    let variable = |name| environment(name).filter(|value| !value.is_empty());
    let chosen = |path: PathBuf, chosen_by| Location { path, chosen_by };
    if let Some(path) = flag.filter(|path| !path.is_empty()) {
        return chosen(path.into(), ChosenBy::Flag);
    }
    if let Some(path) = variable(VARIABLE) {
        return chosen(path.into(), ChosenBy::Environment);
    }
    if let Some(dir) = variable("XDG_CONFIG_HOME") {
        return chosen(Path::new(&dir).join(BELOW_XDG), ChosenBy::Xdg);
    }
    chosen(SYSTEM.into(), ChosenBy::System)
}

impl Location {
    /// Reads the file. A file that nobody named ([`ChosenBy::required`]) need not exist: then the defaults hold.
    ///
    /// # Errors
    /// As [`Config::read`], and [`Error::Missing`].
    pub fn load(&self) -> Result<Config, Error> {
        match Config::read(&self.path) {
            Err(Error::Read { path, source }) if source.kind() == std::io::ErrorKind::NotFound => {
                if self.chosen_by.required() {
                    return Err(Error::Missing {
                        path,
                        chosen_by: self.chosen_by,
                    });
                }
                Ok(Config::defaults())
            }
            other => other,
        }
    }

    /// As [`Location::load`], but no file has to exist: how the toolkit's runtime, not its hook, reads it.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn load_if_there(&self) -> Result<Config, Error> {
        match self.load() {
            Err(Error::Missing { .. }) => Ok(Config::defaults()),
            other => other,
        }
    }
}
