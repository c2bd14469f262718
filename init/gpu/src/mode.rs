//! The ways to put a GPU into a container, and how `auto` is resolved.

use std::fmt;
use std::fs;
use std::path::Path;

use holdfast_cdi::is_qualified;

/// How GPUs are put into a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `nvidia-container-cli` is run before the container starts.
    Legacy,
    /// Edits of CDI specifications on disk.
    Cdi,
    /// Edits of a CDI specification made on the spot.
    JitCdi,
    /// Lists of files, on Tegra.
    Csv,
}

impl Mode {
    /// Its name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Legacy => "legacy",
            Self::Cdi => "cdi",
            Self::JitCdi => "jit-cdi",
            Self::Csv => "csv",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the configuration says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// `auto`.
    Auto,
    /// One mode.
    Fixed(Mode),
}

impl Setting {
    /// Reads the configuration's word; `None` when it is none of ours.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "auto" => Self::Auto,
            "legacy" => Self::Fixed(Mode::Legacy),
            "cdi" => Self::Fixed(Mode::Cdi),
            "jit-cdi" => Self::Fixed(Mode::JitCdi),
            "csv" => Self::Fixed(Mode::Csv),
            _ => return None,
        })
    }
}

/// The kind of machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// Windows' subsystem.
    Wsl,
    /// GPUs with a driver that has NVML.
    Nvml,
    /// A system on a chip.
    Tegra,
    /// None of them.
    Unknown,
}

/// What the `auto` of the *hook* becomes: `legacy` but for CDI names and Tegra. (The *runtime*'s becomes `jit-cdi` in
/// place of `legacy`.)
#[must_use]
pub fn of_hook(devices: &[String], platform: impl FnOnce() -> Platform) -> Mode {
    if !devices.is_empty() && devices.iter().all(|device| is_qualified(device)) {
        return Mode::Cdi;
    }
    match platform() {
        Platform::Wsl | Platform::Nvml | Platform::Unknown => Mode::Legacy,
        Platform::Tegra => Mode::Csv,
    }
}

/// Directories in which the dynamic linker finds libraries without being told.
const LIBRARY_DIRS: [&str; 6] = [
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib64",
    "usr/lib",
    "lib64",
    "usr/lib/wsl/lib",
];

/// Looks at the files of the system whose root is at `root`. `integrated_only` is asked when there is NVML: whether all
/// GPUs are integrated ones.
pub fn platform(root: &Path, integrated_only: impl FnOnce() -> bool) -> Platform {
    let library = |name: &str| {
        LIBRARY_DIRS
            .iter()
            .any(|dir| root.join(dir).join(name).exists())
    };
    if library("libdxcore.so") {
        return Platform::Wsl;
    }
    let nvml = library("libnvidia-ml.so.1");
    let tegra = root.join("etc/nv_tegra_release").exists()
        || fs::read_to_string(root.join("sys/devices/soc0/family"))
            .is_ok_and(|family| family.to_lowercase().starts_with("tegra"));
    match (nvml, tegra) {
        (false, true) => Platform::Tegra,
        (false, false) => Platform::Unknown,
        (true, _) if integrated_only() => Platform::Tegra,
        (true, _) => Platform::Nvml,
    }
}
