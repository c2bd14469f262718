//! `[holdfast]`: what the toolkit does not have.

use std::ffi::OsStr;
use std::time::Duration;

use crate::deviation;

/// Our own table. The toolkit ignores it, so one file serves both.
///
/// ```toml
/// [holdfast]
/// deadline = "60s"          # for nvidia-container-cli and for the NVML helper; HOLDFAST_DEADLINE_GPU overrides it
/// device-rules = "spec"     # who allows the devices: "spec" (holdfast, before the cgroup exists) or "cli"
/// strict = true             # fewer devices than asked for, a missing node, no driver: the create fails
/// as-original = []          # deviations that are switched off, by name; "all" for all of them
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// `deadline`: how long a program of the GPU stage may take.
    pub deadline: Duration,
    /// `device-rules`.
    pub device_rules: DeviceRules,
    /// `strict`.
    pub strict: bool,
    /// `as-original`: names of the deviations that are switched off.
    pub as_original: Vec<String>,
}

/// Who writes the cgroup's device rules in legacy mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceRules {
    /// Holdfast puts them into the specification; the CLI is called with `--no-cgroups`. They survive
    /// `systemctl daemon-reload`.
    Spec,
    /// The CLI does, as with the original. A reload takes them away.
    Cli,
}

/// A name that no deviation has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("as-original: {0:?} is no deviation that can be switched off; all, {names} are", names = deviation::names().collect::<Vec<_>>().join(", "))]
pub struct UnknownDeviation(pub String);

impl Own {
    /// Adds the names in `list`, the value of [`deviation::VARIABLE`], to [`Own::as_original`].
    ///
    /// # Errors
    /// [`UnknownDeviation`].
    pub fn switch_off(&mut self, list: Option<&OsStr>) -> Result<(), UnknownDeviation> {
        let text = list.unwrap_or_default().to_string_lossy();
        for name in text
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
        {
            check(name)?;
            self.as_original.push(name.to_owned());
        }
        Ok(())
    }
}

/// Whether a name in `as-original` is one.
pub(super) fn check(name: &str) -> Result<(), UnknownDeviation> {
    if deviation::is_known(name) {
        Ok(())
    } else {
        Err(UnknownDeviation(name.to_owned()))
    }
}

impl Default for Own {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(60),
            device_rules: DeviceRules::Spec,
            strict: true,
            as_original: Vec::new(),
        }
    }
}
