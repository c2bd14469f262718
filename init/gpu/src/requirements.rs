//! What a container demands of the driver: `NVIDIA_REQUIRE_*`, and the version of old CUDA images.

use crate::config::Config;
use crate::image::{CUDA_VERSION, Image};

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

/// Major and minor number of a semantic version whose `v`, minor and patch numbers may be missing.
fn major_minor(version: &str) -> Option<(u64, u64)> {
    let version = version.strip_prefix('v').unwrap_or(version);
    let (version, build) = match version.split_once('+') {
        Some((version, build)) => (version, Some(build)),
        None => (version, None),
    };
    let (numbers, pre) = match version.split_once('-') {
        Some((numbers, pre)) => (numbers, Some(pre)),
        None => (version, None),
    };
    let identifiers = |text: &str, numeric_may_start_with_0: bool| {
        text.split('.').all(|part| {
            let digits = part.bytes().all(|byte| byte.is_ascii_digit());
            !part.is_empty()
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && (numeric_may_start_with_0 || !digits || part == "0" || !part.starts_with('0'))
        })
    };
    if build.is_some_and(|build| !identifiers(build, true))
        || pre.is_some_and(|pre| !identifiers(pre, false))
    {
        return None;
    }
    let mut parts = numbers.split('.').map(|part| {
        let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| part.parse::<u64>().ok()).flatten()
    });
    let major = parts.next()??;
    let minor = parts.next().map_or(Some(0), |part| part)?;
    parts.next().map_or(Some(0), |part| part)?;
    parts.next().is_none().then_some((major, minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_loosely() {
        let good = [
            ("9", (9, 0)),
            ("11.4.2", (11, 4)),
            ("v10.1", (10, 1)),
            ("10.2-rc1", (10, 2)),
            ("10.02", (10, 2)),
            ("12.4.0+b.007", (12, 4)),
            ("1-a-b.c", (1, 0)),
        ];
        for (text, expected) in good {
            assert_eq!(major_minor(text), Some(expected), "{text}");
        }
        for bad in [
            "",
            "v",
            "foo",
            "10.2.89.1",
            "10.",
            ".1",
            "10.2-",
            "10.2-01",
            "10.2-a..b",
            " 10",
            "10.2+",
            "10.2-ä",
            "vv1",
            "+1.2",
        ] {
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
