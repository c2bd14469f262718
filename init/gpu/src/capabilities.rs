//! Driver capabilities: which parts of the driver a container gets.

use std::collections::BTreeSet;
use std::fmt;

use crate::config::Config;
use crate::image::Image;

/// The variable that asks for them.
pub const VARIABLE: &str = "NVIDIA_DRIVER_CAPABILITIES";

/// One capability. The order is the alphabetical one, in which they are given to the CLI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Capability {
    /// 32-bit libraries.
    Compat32,
    /// CUDA and OpenCL.
    Compute,
    /// X11.
    Display,
    /// OpenGL and Vulkan.
    Graphics,
    /// DLSS and the like.
    Ngx,
    /// nvidia-smi and NVML.
    Utility,
    /// The video codec.
    Video,
}

impl Capability {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Compat32,
        Self::Compute,
        Self::Display,
        Self::Graphics,
        Self::Ngx,
        Self::Utility,
        Self::Video,
    ];

    /// Its name in variables, in the configuration and, after `--`, on the CLI's command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Compat32 => "compat32",
            Self::Compute => "compute",
            Self::Display => "display",
            Self::Graphics => "graphics",
            Self::Ngx => "ngx",
            Self::Utility => "utility",
            Self::Video => "video",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }
}

/// A set of capabilities.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(BTreeSet<Capability>);

impl Capabilities {
    /// What a container gets that does not say.
    #[must_use]
    pub fn default_set() -> Self {
        Self([Capability::Compute, Capability::Utility].into())
    }

    /// In alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = Capability> + '_ {
        self.0.iter().copied()
    }

    /// Whether it has this one.
    #[must_use]
    pub fn has(&self, one: Capability) -> bool {
        self.0.contains(&one)
    }

    fn intersection(&self, other: &Self) -> Self {
        Self(self.0.intersection(&other.0).copied().collect())
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.iter().map(Capability::name).collect();
        f.write_str(&names.join(","))
    }
}

/// Why there is no set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The container asks for something that is not supported.
    #[error(
        "{VARIABLE}={asked:?} of the container: {unsupported:?} is not supported on this node, which allows {supported} (supported-driver-capabilities) and \"all\""
    )]
    Unsupported {
        /// The variable's value.
        asked: String,
        /// Its first word that is not supported.
        unsupported: String,
        /// What is.
        supported: Capabilities,
    },
    /// The configuration has a word that is no capability.
    #[error("supported-driver-capabilities = {value:?} in config.toml: {unknown:?} is no capability, only {} are", Capabilities(Capability::ALL.into()))]
    Unknown {
        /// The value.
        value: String,
        /// Its first unknown word.
        unknown: String,
    },
}

fn words(value: &str) -> impl Iterator<Item = &str> {
    value
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty())
}

/// What the configuration supports; exactly `all` is everything.
///
/// # Errors
/// [`Error::Unknown`].
pub fn supported(config: &Config) -> Result<Capabilities, Error> {
    let value = &config.supported_driver_capabilities;
    if value == "all" {
        return Ok(Capabilities(Capability::ALL.into()));
    }
    let set = words(value)
        .map(|word| {
            Capability::from_name(word).ok_or_else(|| Error::Unknown {
                value: value.clone(),
                unknown: word.to_owned(),
            })
        })
        .collect::<Result<_, _>>()?;
    Ok(Capabilities(set))
}

/// What the container gets of `supported`.
///
/// An image from before the variable existed gets all of it, another one that does not say the default; a value without
/// any word gives nothing at all.
///
/// # Errors
/// [`Error::Unsupported`].
pub fn of(image: &Image, supported: &Capabilities) -> Result<Capabilities, Error> {
    let asked = match image.variable(VARIABLE) {
        None if image.is_legacy() => return Ok(supported.clone()),
        None | Some("") => return Ok(supported.intersection(&Capabilities::default_set())),
        Some(asked) => asked,
    };
    if words(asked).any(|word| word == "all") {
        return Ok(supported.clone());
    }
    let set = words(asked)
        .map(|word| {
            Capability::from_name(word)
                .filter(|one| supported.has(*one))
                .ok_or_else(|| Error::Unsupported {
                    asked: asked.to_owned(),
                    unsupported: word.to_owned(),
                    supported: supported.clone(),
                })
        })
        .collect::<Result<_, _>>()?;
    Ok(Capabilities(set))
}
