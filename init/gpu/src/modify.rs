//! What `nvidia-container-runtime` changes in a specification.
//!
//! ```text
//! Config, Image, Mode ──> Modification::plan ──> steps, in their order ──> apply(spec)
//! ```
//! A plan can be shown (`holdfast gpu plan`) before anything is applied. Making it reads files and, for jit-cdi, asks
//! NVML; applying it reads device nodes of the host and changes the specification in memory.
//!
//! | mode | steps, in their order |
//! |---|---|
//! | legacy | features asked for by variables, CUDA compat hook, graphics files, the prestart hook |
//! | cdi | without the prestart hook, edits of CDI files |
//! | jit-cdi | without the prestart hook, edits made on the spot |
//! | csv | nothing without a request; not supported with one |

mod gated;
mod graphics;
mod hooks;
mod jit;
mod parts;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use holdfast_cdi::{ApplyError, Registry, Unresolvable};
use serde_json::Value;

use crate::config::Config;
use crate::driver::{self, Driver};
use crate::image::Image;
use crate::mode::{self, Mode, Platform, Setting};
use crate::nvml;
use crate::request::{self, Found, Ignored, Origin, annotated, devices};

pub use holdfast_cdi::ContainerEdits;

pub use hooks::{HookTool, PrestartHook, hook_path, hook_tool};
pub use jit::Selection;

/// The kind of devices whose edits are made on the spot.
pub const AUTOMATIC_KIND: &str = "runtime.nvidia.com/gpu";

/// Why a specification cannot be modified.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `mode = ""`.
    #[error(
        "nvidia-container-runtime.mode in config.toml is empty: say auto, legacy, cdi or jit-cdi"
    )]
    NoMode,
    /// An unknown mode.
    #[error(
        "invalid mode {0:?} (nvidia-container-runtime.mode in config.toml): auto, legacy, cdi, jit-cdi and csv are"
    )]
    InvalidMode(String),
    /// csv.
    #[error(
        "the container asks for GPUs in mode csv (Tegra), which holdfast does not support: use \
         nvidia-container-runtime for it, or set nvidia-container-runtime.mode to cdi and generate a specification with \
         `nvidia-ctk cdi generate`"
    )]
    CsvUnsupported,
    /// Devices of CDI files next to ones made on the spot.
    #[error(
        "a container may ask for devices of {AUTOMATIC_KIND} (also those without a kind, in mode jit-cdi) or for others, \
         not for both: {}", .devices.join(", ")
    )]
    MixedKinds {
        /// All of them.
        devices: Vec<String>,
    },
    /// CDI files do not have the devices.
    #[error(transparent)]
    Unresolvable(#[from] Unresolvable),
    /// The driver's libraries.
    #[error("{wanted}")]
    Driver {
        /// What they are needed for.
        wanted: &'static str,
        /// Why not.
        source: driver::Error,
    },
    /// NVML.
    #[error("the GPUs of the node cannot be listed")]
    Nvml(#[from] nvml::Error),
    /// A GPU asked for is not there.
    #[error("the container asks for the GPU {id:?}: {why}. The node has {known}")]
    NoSuchGpu {
        /// As asked for.
        id: String,
        /// What is wrong.
        why: String,
        /// The node's GPUs.
        known: String,
    },
    /// An IMEX channel that is none.
    #[error("IMEX channel {id:?}: {why}")]
    Imex {
        /// As asked for.
        id: String,
        /// What is wrong.
        why: String,
    },
    /// A GPU's node is missing.
    #[error(
        "the device node {} of GPU {gpu} does not exist: run nvidia-modprobe, or see why udev did not make it (switched \
         off by strict = false in [holdfast] of config.toml)", .path.display()
    )]
    MissingNode {
        /// Its index.
        gpu: String,
        /// The node.
        path: PathBuf,
    },
    /// All GPUs of a node that has none.
    #[error(
        "the container asks for all GPUs and the node has none that works: see `holdfast gpu check` (switched off by \
         strict = false in [holdfast] of config.toml)"
    )]
    NoGpus,
    /// A MIG device without its capabilities.
    #[error("the MIG device {uuid}: {why}")]
    Mig {
        /// The device.
        uuid: String,
        /// What is missing.
        why: String,
    },
    /// The edits do not fit.
    #[error("the edits of {step} cannot be applied")]
    Apply {
        /// Whose edits.
        step: String,
        /// Why.
        source: ApplyError,
    },
}

/// One step of a modification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Take the toolkit's prestart hook out.
    RemoveHook,
    /// Put it in, unless it is there.
    InsertHook(PrestartHook),
    /// Apply edits.
    Edits {
        /// Whose they are.
        of: String,
        /// What they change.
        edits: Box<ContainerEdits>,
    },
}

/// Where the devices of a request were named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Annotations with these prefixes.
    Annotations,
    /// Mounts, variables, an old image.
    Container(Origin),
}

/// All that is changed for one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Modification {
    /// The mode.
    pub mode: Mode,
    /// The devices asked for, as CDI names in the CDI modes; empty when none is.
    pub devices: Vec<String>,
    /// Who asked.
    pub source: Option<Source>,
    /// What of the request was left out.
    pub ignored: Vec<Ignored>,
    /// The changes.
    pub steps: Vec<Step>,
}

/// What a plan is made with, besides the container.
#[derive(Debug, Clone)]
pub struct Setup<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// The runtime's own `PATH`.
    pub path: Option<OsString>,
    /// The runtime's own `XDG_DATA_DIRS`.
    pub data_dirs: Option<OsString>,
    /// Whether less than what is asked for is an error; the original starts the container without.
    pub strict: bool,
    /// How long NVML may take.
    pub deadline: Duration,
}

/// The mode of the *runtime* for a container: `auto` is jit-cdi, but for containers whose devices all have a CDI name,
/// and for Tegra.
///
/// # Errors
/// [`Error::NoMode`], [`Error::InvalidMode`].
pub fn mode_of(
    config: &Config,
    image: &Image,
    platform: impl FnOnce() -> Platform,
) -> Result<Mode, Error> {
    let word = config.runtime.mode.as_str();
    match Setting::parse(word) {
        None if word.is_empty() => Err(Error::NoMode),
        None => Err(Error::InvalidMode(word.to_owned())),
        Some(Setting::Fixed(mode)) => Ok(mode),
        Some(Setting::Auto) => {
            let named = visible(image, config, Mode::Cdi);
            let names = named.names();
            if !names.is_empty() && names.iter().all(|name| holdfast_cdi::is_qualified(name)) {
                return Ok(Mode::Cdi);
            }
            Ok(match platform() {
                Platform::Wsl | Platform::Nvml | Platform::Unknown => Mode::JitCdi,
                Platform::Tegra => Mode::Csv,
            })
        }
    }
}

/// The platform of this host by its files. Whether a GPU is integrated is not asked here: NVML is asked only for a
/// container that wants one.
#[must_use]
pub fn host_platform() -> Platform {
    mode::platform(std::path::Path::new("/"), || false)
}

/// The devices a container sees.
struct Visible {
    found: Found<Option<(Vec<String>, Source)>>,
}

impl Visible {
    fn names(&self) -> &[String] {
        self.found.value.as_ref().map_or(&[], |(names, _)| names)
    }
}

/// Annotations count in mode cdi only, and win there.
///
/// They are taken from the container's specification alone, under the configured prefixes, which is where the kubelet
/// puts the devices of its plugins. An empty prefix would open them to every annotation of a pod and counts as none.
fn visible(image: &Image, config: &Config, mode: Mode) -> Visible {
    if mode == Mode::Cdi {
        let prefixes: Vec<String> = config
            .runtime
            .modes
            .cdi
            .annotation_prefixes
            .iter()
            .filter(|prefix| !prefix.is_empty())
            .cloned()
            .collect();
        let names = annotated(image, &prefixes);
        if !names.is_empty() {
            return Visible {
                found: Found {
                    value: Some((names, Source::Annotations)),
                    ignored: Vec::new(),
                },
            };
        }
    }
    let Found { value, ignored } = devices(image, config);
    Visible {
        found: Found {
            value: value.map(|devices| (devices.names, Source::Container(devices.origin))),
            ignored,
        },
    }
}

impl Modification {
    /// Whether the container asks for a GPU.
    #[must_use]
    pub fn has_request(&self) -> bool {
        self.source.is_some()
    }

    /// Decides what to change for a container.
    ///
    /// # Errors
    /// What is asked for and cannot be given.
    pub fn plan(setup: &Setup<'_>, image: &Image, mode: Mode) -> Result<Self, Error> {
        let found = visible(image, setup.config, mode).found;
        let (names, source) = match found.value {
            Some((names, source)) => (names, Some(source)),
            None => (Vec::new(), None),
        };
        let mut this = Self {
            mode,
            devices: names,
            source,
            ignored: found.ignored,
            steps: Vec::new(),
        };
        match mode {
            Mode::Legacy => this.legacy(setup, image)?,
            Mode::Cdi | Mode::JitCdi => this.cdi(setup, image)?,
            Mode::Csv => {
                this.steps.push(Step::RemoveHook);
                if this.has_request() {
                    return Err(Error::CsvUnsupported);
                }
            }
        }
        Ok(this)
    }

    fn edits(&mut self, of: impl Into<String>, edits: ContainerEdits) {
        self.steps.push(Step::Edits {
            of: of.into(),
            edits: Box::new(edits),
        });
    }

    fn legacy(&mut self, setup: &Setup<'_>, image: &Image) -> Result<(), Error> {
        let config = setup.config;
        if self.has_request() {
            let driver = Driver::new(&config.cli.root, None);
            let parts = parts::Parts::new(setup, &driver, &[]);
            for feature in gated::requested(image) {
                for (of, edits) in gated::edits(&parts, feature) {
                    self.edits(of, edits);
                }
            }
            if let Some(edits) = hooks::cuda_compat(&parts)? {
                self.edits("the CUDA compat hook", edits);
            }
            if graphics::wanted(image) {
                let edits = graphics::legacy_edits(&parts, &self.devices)?;
                self.edits("graphics", edits);
            }
        }
        let hook = PrestartHook::of(config, setup.path.as_deref());
        self.steps.push(Step::InsertHook(hook));
        Ok(())
    }

    fn cdi(&mut self, setup: &Setup<'_>, image: &Image) -> Result<(), Error> {
        self.steps.push(Step::RemoveHook);
        let kind = match self.mode {
            Mode::JitCdi => AUTOMATIC_KIND,
            Mode::Cdi | Mode::Legacy | Mode::Csv => &setup.config.runtime.modes.cdi.default_kind,
        };
        self.devices = qualified_names(
            &self.devices,
            kind,
            setup.strict && self.mode == Mode::JitCdi,
        );
        if self.devices.is_empty() {
            return Ok(());
        }
        let prefix = format!("{AUTOMATIC_KIND}=");
        let automatic: Vec<String> = self
            .devices
            .iter()
            .filter_map(|device| device.strip_prefix(&prefix).map(str::to_owned))
            .collect();
        if automatic.is_empty() {
            let registry = Registry::scan(&setup.config.runtime.modes.cdi.spec_dirs);
            let edits = registry.resolve(&self.devices)?;
            self.edits(self.devices.join(", "), edits);
            return Ok(());
        }
        if automatic.len() != self.devices.len() {
            return Err(Error::MixedKinds {
                devices: self.devices.clone(),
            });
        }
        for (of, edits) in jit::edits(setup, image, &automatic)? {
            self.edits(of, edits);
        }
        Ok(())
    }

    /// Applies the changes to a specification.
    ///
    /// # Errors
    /// [`Error::Apply`]. The specification is changed in part then and must not be used.
    pub fn apply(&self, spec: &mut Value) -> Result<(), Error> {
        for step in &self.steps {
            match step {
                Step::RemoveHook => hooks::remove(spec),
                Step::InsertHook(hook) => hook.insert(spec),
                Step::Edits { of, edits } => {
                    holdfast_cdi::apply(edits, spec).map_err(|source| Error::Apply {
                        step: of.clone(),
                        source,
                    })?;
                }
            }
        }
        Ok(())
    }
}

/// Names with a kind, each once, in their order. An empty name asks for the driver without a device; next to other
/// names it is what a repeated device left behind, and `without_traces` drops it then.
fn qualified_names(names: &[String], kind: &str, without_traces: bool) -> Vec<String> {
    let real = names.iter().any(|name| !name.is_empty());
    let mut out: Vec<String> = Vec::new();
    for name in names {
        if name.is_empty() && real && without_traces {
            continue;
        }
        let name = if name.is_empty() { "none" } else { name };
        let whole = if holdfast_cdi::is_qualified(name) {
            name.to_owned()
        } else {
            format!("{kind}={name}")
        };
        if !out.contains(&whole) {
            out.push(whole);
        }
    }
    out
}

/// IMEX channels of a container, each once.
fn imex_channels(image: &Image, config: &Config) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for channel in request::imex_channels(image, config).value {
        if !out.contains(&channel) {
            out.push(channel);
        }
    }
    out
}
