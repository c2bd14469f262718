//! What a container says about GPUs.

use std::collections::BTreeMap;

/// The variable with which old CUDA images announce themselves.
pub const CUDA_VERSION: &str = "CUDA_VERSION";
/// The variable that new CUDA images have and old ones lack.
pub const REQUIRE_CUDA: &str = "NVIDIA_REQUIRE_CUDA";

/// An entry of `process.env` without `=`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("process.env of the container has the entry {0:?}, which is no NAME=VALUE")]
pub struct InvalidVariable(pub String);

/// What of a mount counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    /// `source`.
    pub source: String,
    /// `destination`.
    pub destination: String,
}

/// The parts of a specification that decide about GPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    env: BTreeMap<String, String>,
    /// In their order.
    pub mounts: Vec<Mount>,
    /// `annotations`.
    pub annotations: BTreeMap<String, String>,
    /// Whether `CAP_SYS_ADMIN` is in `process.capabilities.bounding`: what the toolkit takes for privileged.
    pub privileged: bool,
}

impl Image {
    /// With an environment in which every entry has to be `NAME=VALUE`, as the toolkit demands it; of several entries
    /// with one name the last counts.
    ///
    /// # Errors
    /// [`InvalidVariable`].
    pub fn strict<'a>(env: impl IntoIterator<Item = &'a str>) -> Result<Self, InvalidVariable> {
        let env = env
            .into_iter()
            .map(|entry| match entry.split_once('=') {
                Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
                None => Err(InvalidVariable(entry.to_owned())),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            env,
            ..Self::default()
        })
    }

    /// With an environment whose other entries are left out: they ask for no GPU, so they are not our business.
    #[must_use]
    pub fn lenient<'a>(env: impl IntoIterator<Item = &'a str>) -> Self {
        let pairs = env.into_iter().filter_map(|entry| entry.split_once('='));
        Self {
            env: pairs
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            ..Self::default()
        }
    }

    /// The value of a variable; `None` when it is not set.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.env.get(name).map(String::as_str)
    }

    /// All variables, sorted by name.
    pub fn variables(&self) -> impl Iterator<Item = (&str, &str)> {
        self.env
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Whether it is a CUDA image from before `NVIDIA_REQUIRE_CUDA`: those want all GPUs without saying so.
    #[must_use]
    pub fn is_legacy(&self) -> bool {
        let filled = |name| self.variable(name).is_some_and(|value| !value.is_empty());
        filled(CUDA_VERSION) && !filled(REQUIRE_CUDA)
    }
}
