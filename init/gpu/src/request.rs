//! Which GPUs a container asks for, and how it asks.

mod devices;
#[cfg(test)]
mod tests;

use std::fmt;

pub use devices::{Devices, Origin, annotated, devices};

use crate::capabilities::{self, Capabilities};
use crate::config::Config;
use crate::image::Image;
use crate::requirements::{self, Requirements};

/// The variable that asks for GPUs.
pub const VISIBLE_DEVICES: &str = "NVIDIA_VISIBLE_DEVICES";
/// The variable that asks for IMEX channels.
pub const IMEX_CHANNELS: &str = "NVIDIA_IMEX_CHANNELS";
/// The variable that asks to reconfigure MIG.
pub const MIG_CONFIG: &str = "NVIDIA_MIG_CONFIG_DEVICES";
/// The variable that asks to watch MIG.
pub const MIG_MONITOR: &str = "NVIDIA_MIG_MONITOR_DEVICES";
/// The directory whose mounts ask for devices.
pub const MOUNT_ROOT: &str = "/var/run/nvidia-container-devices";

/// Everything a container asks for in legacy mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The devices, and who asks for them.
    pub devices: Devices,
    /// `NVIDIA_MIG_CONFIG_DEVICES`; empty when not asked for.
    pub mig_config: String,
    /// `NVIDIA_MIG_MONITOR_DEVICES`; empty when not asked for.
    pub mig_monitor: String,
    /// IMEX channels; an empty one stands for none.
    pub imex_channels: Vec<String>,
    /// The driver's parts.
    pub capabilities: Capabilities,
    /// What the driver has to be like.
    pub requirements: Requirements,
}

/// Why a request cannot be granted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// MIG may be changed and watched only by privileged containers.
    #[error(
        "{variable} is set, which only a privileged container may (CAP_SYS_ADMIN is not in process.capabilities.bounding)"
    )]
    MigUnprivileged {
        /// [`MIG_CONFIG`] or [`MIG_MONITOR`].
        variable: &'static str,
    },
    /// Driver capabilities.
    #[error(transparent)]
    Capabilities(#[from] capabilities::Error),
    /// Requirements.
    #[error(transparent)]
    Requirements(#[from] requirements::Error),
}

/// Something of a request that is left out, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ignored {
    /// Variables of an unprivileged container, which the configuration forbids.
    Unprivileged {
        /// Their names.
        variables: Vec<String>,
    },
    /// A mount that asks for a CDI device and does not name one.
    InvalidMount {
        /// The part after [`MOUNT_ROOT`].
        device: String,
    },
}

impl fmt::Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unprivileged { variables } => write!(
                f,
                "the container asks for GPUs with {} and is not privileged, which config.toml forbids \
                 (accept-nvidia-visible-devices-envvar-when-unprivileged = false): it gets none",
                variables.join(" and ")
            ),
            Self::InvalidMount { device } => write!(
                f,
                "the mount {MOUNT_ROOT}/{device} names no CDI device (cdi/VENDOR/CLASS/NAME): it is ignored"
            ),
        }
    }
}

/// What was found, and what of it was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found<T> {
    /// What was found.
    pub value: T,
    /// What was left out.
    pub ignored: Vec<Ignored>,
}

impl Request {
    /// The request of `image`; `None` when it does not ask for GPUs. `supported` are the capabilities of the node
    /// ([`capabilities::supported`]).
    ///
    /// # Errors
    /// When what is asked for cannot be granted.
    pub fn find(
        image: &Image,
        config: &Config,
        supported: &Capabilities,
    ) -> Result<Found<Option<Self>>, Error> {
        let Found { value, mut ignored } = devices(image, config);
        let Some(devices) = value else {
            return Ok(Found {
                value: None,
                ignored,
            });
        };
        let mig_config = mig(image, MIG_CONFIG)?;
        let mig_monitor = mig(image, MIG_MONITOR)?;
        let imex = devices::imex_channels(image, config);
        ignored.extend(imex.ignored);
        let capabilities = capabilities::of(image, supported)?;
        let requirements = Requirements::of(image, config)?;
        let request = Self {
            devices,
            mig_config,
            mig_monitor,
            imex_channels: imex.value,
            capabilities,
            requirements,
        };
        Ok(Found {
            value: Some(request),
            ignored,
        })
    }
}

/// IMEX channels that the container asks for, in every mode.
#[must_use]
pub fn imex_channels(image: &Image, config: &Config) -> Found<Vec<String>> {
    devices::imex_channels(image, config)
}

fn mig(image: &Image, variable: &'static str) -> Result<String, Error> {
    let value = image.variable(variable).unwrap_or_default();
    if !value.is_empty() && !image.privileged {
        return Err(Error::MigUnprivileged { variable });
    }
    Ok(value.to_owned())
}
