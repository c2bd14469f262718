//! The GPU stage of create: what NVIDIA's runtime wrapper and hook do, from inside.
//!
//! ```text
//! handler (flag, variable) ──> is a GPU asked for? ──no──> nothing
//!                                    │yes
//!              legacy ───────────────┼─────────────── cdi, jit-cdi
//!   device rules into the spec       │        edits into the spec
//!   … mounts, then the CLI …         │        nothing more to do
//! ```
//! Everything that can be decided is decided before anything is made, so that device rules are in the specification
//! before the cgroup exists. A container that asks for no GPU costs one read of `config.toml`.

pub(crate) mod attached;
mod cli;
mod error;
pub(crate) mod plan;
#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_gpu::config::{self, ChosenBy, Config, DeviceRules};
use holdfast_gpu::image::{Image, Mount};
use holdfast_gpu::legacy::Program;
use holdfast_gpu::mode::{Mode, Setting};
use holdfast_gpu::modify::{self, Modification, Setup, Step};
use holdfast_gpu::nodes::{self, Nodes};
use holdfast_gpu::request::{self, Found, Ignored, Request};
use holdfast_gpu::{capabilities, deviation, paths};
use holdfast_record::deadline::limit_from_env;
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use crate::bundle::Bundle;

pub(crate) use cli::run;
pub use error::Error;

/// Switches the stage on for a process: `auto`, `legacy`, `cdi`, `jit-cdi`, `off`.
pub const VARIABLE: &str = "HOLDFAST_GPU";

/// Which handler created the container, as far as GPUs are concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Handler {
    /// One without a GPU stage.
    #[default]
    Off,
    /// One whose mode `config.toml` says.
    Configured,
    /// One with this mode.
    Fixed(Mode),
}

impl Handler {
    /// Reads `--gpu` or [`VARIABLE`]; `None` when it is no handler.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "" | "off" => Self::Off,
            "auto" => Self::Configured,
            "legacy" => Self::Fixed(Mode::Legacy),
            "cdi" => Self::Fixed(Mode::Cdi),
            "jit-cdi" => Self::Fixed(Mode::JitCdi),
            _ => return None,
        })
    }
}

/// The command line's part, as it was written: read only where it matters, so that a wrong word cannot keep a container
/// from being deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--gpu`.
    pub handler: Option<String>,
    /// `--gpu-config`: the `config.toml` to read.
    pub config: Option<PathBuf>,
}

impl Flags {
    /// What `--gpu` says, else [`VARIABLE`]; off without either.
    pub(crate) fn handler(&self) -> Result<Handler, Error> {
        let word = match (&self.handler, std::env::var_os(VARIABLE)) {
            (Some(word), _) => word.clone(),
            (None, Some(word)) => word.to_string_lossy().into_owned(),
            (None, None) => return Ok(Handler::Off),
        };
        Handler::parse(&word).ok_or(Error::Handler(word))
    }
}

/// A call of `nvidia-container-cli` that is to be made when the container's mounts are there.
#[derive(Debug)]
pub struct Call {
    program: Program,
    config: Config,
    request: Request,
    /// Holdfast has written the device rules.
    no_cgroups: bool,
    /// The nodes that have to be in the container afterwards, where they are known.
    nodes: Result<Nodes, nodes::Unknown>,
    limit: Duration,
}

/// What is to be done for a container that asks for GPUs.
pub(crate) struct Decision {
    /// The mode.
    pub(crate) mode: Mode,
    /// The changes of the specification, without the prestart hook: this stage is the hook.
    pub(crate) plan: Modification,
    /// The call of the CLI, in legacy mode.
    pub(crate) call: Option<Call>,
    /// The specification with the changes.
    pub(crate) spec: Value,
}

/// Gives the container of `bundle` what it asks for, as far as that can be done before it exists. The bundle's
/// specification is changed in memory.
///
/// # Errors
/// What the container asks for and cannot have.
pub fn prepare(flags: &Flags, bundle: Bundle) -> crate::Result<Bundle> {
    let Some(decision) = decide(flags, &bundle)? else {
        return Ok(bundle);
    };
    let Decision {
        mode,
        plan,
        call,
        spec,
    } = decision;
    log::info!(
        "gpu: mode {mode}, devices {:?}, asked for by {:?}{}",
        plan.devices,
        plan.source,
        call.as_ref().map_or("", |call| if call.no_cgroups {
            ", device rules in the specification"
        } else {
            ", device rules by the CLI"
        })
    );
    let spec: Spec = serde_json::from_value(spec).map_err(Error::Spec)?;
    let mut bundle = Bundle::of(bundle.path, spec)?;
    bundle.gpu = call;
    Ok(bundle)
}

/// Decides what to do; `None`: nothing, because the handler has no stage or the container asks for no GPU.
///
/// # Errors
/// As [`prepare`].
pub(crate) fn decide(flags: &Flags, bundle: &Bundle) -> Result<Option<Decision>, Error> {
    let mode = match flags.handler()? {
        Handler::Off => return Ok(None),
        Handler::Configured => None,
        Handler::Fixed(mode) => Some(mode),
    };
    let image = image_of(&bundle.spec);
    let Some(mut config) = load(flags, &bundle.spec, &image)? else {
        return Ok(None);
    };
    if let Some(mode) = mode {
        mode.name().clone_into(&mut config.runtime.mode);
    }
    if !asks(&image, &config)? {
        return Ok(None);
    }
    let mode = modify::mode_of(&config, &image, modify::host_platform).map_err(Error::Modify)?;
    let limit = limit_from_env("gpu", config.own.deadline);
    let path = search_path();
    let setup = Setup {
        config: &config,
        path: Some(path.clone()),
        data_dirs: None,
        strict: config.own.strict,
        deadline: limit,
    };
    let mut plan = Modification::plan(&setup, &image, mode).map_err(Error::Modify)?;
    report(&plan.ignored);
    // The stage is the hook: one that an engine put in as well must not do it again.
    plan.steps
        .retain(|step| !matches!(step, Step::InsertHook(_)));
    if !plan.steps.contains(&Step::RemoveHook) {
        plan.steps.push(Step::RemoveHook);
    }
    let mut call = match mode {
        Mode::Legacy => legacy_call(&config, &image, &path, limit)?,
        Mode::Cdi | Mode::JitCdi | Mode::Csv => None,
    };
    let mut spec = serde_json::to_value(&bundle.spec).map_err(Error::Spec)?;
    plan.apply(&mut spec).map_err(Error::Modify)?;
    if let Some(call) = &mut call {
        allow(&mut spec, call);
    }
    Ok(Some(Decision {
        mode,
        plan,
        call,
        spec,
    }))
}

/// The usual directories: the caller's own `PATH` is nobody's business here.
fn search_path() -> OsString {
    paths::DEFAULT_PATH.join(":").into()
}

/// What the container says about GPUs.
fn image_of(spec: &Spec) -> Image {
    let process = spec.process().as_ref();
    let env = process
        .and_then(|process| process.env().as_deref())
        .unwrap_or_default();
    let mut image = Image::lenient(env.iter().map(String::as_str));
    image.privileged = process
        .and_then(|process| process.capabilities().as_ref())
        .and_then(|capabilities| capabilities.bounding().as_ref())
        .is_some_and(|set| set.contains(&oci_spec::runtime::Capability::SysAdmin));
    let mounts = spec.mounts().iter().flatten();
    image.mounts = mounts
        .map(|mount| Mount {
            source: mount
                .source()
                .as_ref()
                .map_or_else(String::new, |path| path.display().to_string()),
            destination: mount.destination().display().to_string(),
        })
        // A destination is cleaned before it is compared, so its spelling cannot be relied on; its last word can.
        .filter(|mount| mount.destination.contains("nvidia-container-devices"))
        .collect();
    let annotations = spec.annotations().iter().flatten();
    image.annotations = annotations
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    image
}

/// The configuration; `None` when it cannot be used and the container does not need it.
fn load(flags: &Flags, spec: &Spec, image: &Image) -> Result<Option<Config>, Error> {
    let variable = |name: &str| std::env::var_os(name);
    let location = config::locate(flags.config.as_deref().map(Path::as_os_str), variable);
    if variable(deviation::VARIABLE).is_none() && !seems_to_ask(image) {
        // Most containers end here. What cannot be read cannot be asked through; who asks plainly is told of it below.
        let text = std::fs::read_to_string(&location.path).unwrap_or_default();
        if !could_ask(image, &text) {
            return Ok(None);
        }
    }
    let mut own = config::Own::default();
    own.switch_off(variable(deviation::VARIABLE).as_deref())?;
    let loaded = match location.chosen_by {
        // This node's handler is made for that file.
        ChosenBy::Flag => location.load(),
        ChosenBy::Environment | ChosenBy::Xdg | ChosenBy::System => location.load_if_there(),
    };
    let unusable = loaded.map_err(Error::from).and_then(|mut config| {
        config.own.as_original.append(&mut own.as_original.clone());
        capabilities::supported(&config).map_err(Error::Supported)?;
        Ok(config)
    });
    let error = match unusable {
        Ok(config) => {
            if deviation::INVALID_VARIABLES.is_off(&config.own) {
                let env = spec
                    .process()
                    .as_ref()
                    .and_then(|process| process.env().as_deref());
                Image::strict(env.unwrap_or_default().iter().map(String::as_str))?;
            }
            return Ok(Some(config));
        }
        Err(error) => error,
    };
    if seems_to_ask(image) || deviation::CONFIG_ERRORS.is_off(&own) {
        return Err(error);
    }
    log::warn!(
        "gpu: {}; the container does not ask for a GPU and is created",
        crate::error::chain(&error)
    );
    Ok(None)
}

/// Whether a GPU is asked for. Silent but for what is left out of a request.
fn asks(image: &Image, config: &Config) -> Result<bool, Error> {
    // Annotations count in one mode only, but one that could count needs the mode to be decided.
    let cdi = &config.runtime.modes.cdi;
    let in_cdi = matches!(
        Setting::parse(&config.runtime.mode),
        Some(Setting::Auto | Setting::Fixed(Mode::Cdi))
    );
    if in_cdi && !request::annotated(image, &cdi.annotation_prefixes).is_empty() {
        return Ok(true);
    }
    let Found { value, ignored } = request::devices(image, config);
    if value.is_none() {
        report(&ignored);
    }
    Ok(value.is_some())
}

fn report(ignored: &[Ignored]) {
    for one in ignored {
        log::warn!("gpu: {one}");
    }
}

/// Whether a container that does not ask plainly could ask through a name in this configuration: a swarm resource, or the
/// prefix of an annotation. Cheaper than reading it as TOML, and never wrongly false: every string of the file is between
/// two quotes of a line, unless it has escapes or several lines.
fn could_ask(image: &Image, text: &str) -> bool {
    if ["\\", "\"\"\"", "'''", "as-original", "AS-ORIGINAL"]
        .iter()
        .any(|mark| text.contains(mark))
    {
        return true;
    }
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'));
    lines.flat_map(|line| line.split(['"', '\''])).any(|piece| {
        let mut names = piece.split(',').map(str::trim);
        names.any(|name| image.variable(name).is_some())
            || (!piece.is_empty() && image.annotations.keys().any(|key| key.starts_with(piece)))
    })
}

/// Whether a GPU is asked for as far as that can be seen without a configuration.
fn seems_to_ask(image: &Image) -> bool {
    let visible = image.variable(request::VISIBLE_DEVICES);
    let by_variable = visible.is_some_and(|value| !matches!(value.trim(), "" | "void"));
    by_variable
        || (visible.is_none() && image.is_legacy())
        || !image.mounts.is_empty()
        || image
            .annotations
            .keys()
            .any(|key| key.starts_with("cdi.k8s.io/") || key.starts_with("nvidia.cdi.k8s.io/"))
}

fn legacy_call(
    config: &Config,
    image: &Image,
    path: &OsStr,
    limit: Duration,
) -> Result<Option<Call>, Error> {
    let supported = capabilities::supported(config).map_err(Error::Supported)?;
    let found = Request::find(image, config, &supported)?;
    let Some(request) = found.value else {
        return Ok(None);
    };
    let program = Program::find(config, Some(path))?;
    let nodes = nodes::Host::default().nodes(&request);
    let no_cgroups = match (config.own.device_rules, &nodes) {
        (DeviceRules::Cli, _) => false,
        (DeviceRules::Spec, Ok(_)) => true,
        (DeviceRules::Spec, Err(why)) => {
            log::warn!(
                "gpu: {why}, so nvidia-container-cli writes the device rules: `systemctl daemon-reload` may take them away"
            );
            false
        }
    };
    Ok(Some(Call {
        program,
        config: config.clone(),
        request,
        no_cgroups,
        nodes,
        limit,
    }))
}

/// Puts the rules of the request's devices into the specification, after those that are there.
fn allow(spec: &mut Value, call: &Call) {
    let (true, Ok(nodes)) = (call.no_cgroups, &call.nodes) else {
        return;
    };
    let mut at = spec;
    for key in ["linux", "resources"] {
        if !at[key].is_object() {
            at[key] = json!({});
        }
        at = &mut at[key];
    }
    if !at["devices"].is_array() {
        at["devices"] = json!([]);
    }
    if let Some(rules) = at["devices"].as_array_mut() {
        rules.extend(nodes.numbers.iter().map(|number| {
            json!({"allow": true, "type": "c", "major": number.major, "minor": number.minor, "access": "rw"})
        }));
    }
}
