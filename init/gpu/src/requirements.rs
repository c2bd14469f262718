//! What a container demands of the driver: `NVIDIA_REQUIRE_*`, and the version of old CUDA images.

use crate::config::Config;
use crate::image::{CUDA_VERSION, Image};
use crate::version::Version;

/// Variables with this prefix are requirements …
const PREFIX: &str = "NVIDIA_REQUIRE_";
/// … but for those with this one, which are for Tegra.
const JETPACK: &str = "NVIDIA_REQUIRE_JETPACK";
/// Switches them off, with a value that Go takes for true.
const DISABLE: &str = "NVIDIA_DISABLE_REQUIRE";

/// The demands, in the order in which they are passed on: by the variables' names, then the image's version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requirements(pub Vec<String>);

/// Why the demands are not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The version of an old CUDA image cannot be read.
    #[error(
        "{CUDA_VERSION}={0:?} of the container is no version such as 11.4 (NVIDIA_DISABLE_REQUIRE=true in the container skips the check)"
    )]
    Version(String),
}

impl Requirements {
    /// What `image` demands.
    ///
    /// # Errors
    /// [`Error::Version`].
    pub fn of(image: &Image, config: &Config) -> Result<Self, Error> {
        let disabled = image.variable(DISABLE).is_some_and(go_true);
        if config.disable_require || disabled {
            return Ok(Self::default());
        }
        let mut all: Vec<String> = image
            .variables()
            .filter(|(name, _)| name.starts_with(PREFIX) && !name.starts_with(JETPACK))
            .map(|(_, value)| value.to_owned())
            .collect();
        if image.is_legacy() {
            let version = image.variable(CUDA_VERSION).unwrap_or_default();
            let (major, minor) =
                major_minor(version).ok_or_else(|| Error::Version(version.to_owned()))?;
            all.push(format!("cuda>={major}.{minor}"));
        }
        Ok(Self(all))
    }
}

/// Whether Go's `strconv.ParseBool` says true.
fn go_true(text: &str) -> bool {
    matches!(text, "1" | "t" | "T" | "true" | "TRUE" | "True")
}

/// Major and minor number. The original has no room for large ones.
fn major_minor(version: &str) -> Option<(u32, u32)> {
    let [major, minor, _] = Version::parse(version)?.numbers;
    Some((major.try_into().ok()?, minor.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_have_a_major_and_a_minor_number() {
        assert_eq!(major_minor("v10.2-rc1"), Some((10, 2)));
        assert_eq!(major_minor("9"), Some((9, 0)));
        for bad in ["foo", "4294967296", "1.4294967296"] {
            assert_eq!(major_minor(bad), None, "{bad}");
        }
    }

    #[test]
    fn only_gos_truths_switch_them_off() {
        for yes in ["1", "t", "T", "true", "TRUE", "True"] {
            assert!(go_true(yes), "{yes}");
        }
        for no in ["", "0", "yes", "on", "tRuE", "TrUe", " true"] {
            assert!(!go_true(no), "{no}");
        }
    }
}
