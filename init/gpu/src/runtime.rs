//! `nvidia-container-runtime`, `nvidia-container-runtime.cdi` and `.legacy`: the drop-in entries for engines that are
//! configured to call them.
//!
//! On `create` the bundle's `config.json` is modified as the original does; every call then goes on to the low-level
//! runtime of the configuration with the same arguments, by `execve`, so that exit code and output are its own. Where
//! that runtime is `holdfast` itself, it goes on in this very process (`docs/0003-dropin-in-one-process.md`).
//!
//! | exit code | meaning |
//! |---|---|
//! | 1 | the configuration, the specification or the request cannot be used; the reason is on standard error and in `--log` |
//! | other | the low-level runtime's own |
//!
//! As with the original a configuration that cannot be used fails every call, `delete` included, before there is a log.
//! `holdfast create` itself is not like that; see [`crate::deviation`].

mod arguments;
mod log;
#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs};

use self::log::Log;
use arguments::{bundle, has_create, has_version};
use holdfast_record::chain;

use crate::config::{self, Config};
use crate::hook;
use crate::image::InvalidVariable;
use crate::mode::Mode;
use crate::modify::{self, Modification, Setup, host_platform, mode_of};
use crate::oci;
use crate::paths::{find_program, is_executable, search_path};

/// The names under which the runtime is called.
pub const NAMES: [&str; 3] = [
    "nvidia-container-runtime",
    "nvidia-container-runtime.cdi",
    "nvidia-container-runtime.legacy",
];

/// The version that the runtime behaves as, and the specification it knows; monitoring parses this.
const VERSION: &str = "NVIDIA Container Runtime version 1.20.0\nspec: 1.3.0\n";

/// Whether a program called like this, a path perhaps, is the runtime.
#[must_use]
pub fn is_its_name(name: &OsStr) -> bool {
    Path::new(name)
        .file_name()
        .is_some_and(|name| NAMES.iter().any(|one| name == *one))
}

/// Why the runtime fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration.
    #[error("the GPU configuration cannot be used")]
    Config(#[from] config::Error),
    /// A name in `as-original` that is no deviation.
    #[error(transparent)]
    AsOriginal(#[from] config::UnknownDeviation),
    /// No low-level runtime.
    #[error(
        "no runtime binary found from candidate list: {} (nvidia-container-runtime.runtimes in config.toml)", .0.join(", ")
    )]
    NoRuntime(Vec<String>),
    /// The low-level runtime is this wrapper.
    #[error(
        "{} is this program under a wrapper's name, which would call itself for ever: name runc, crun or holdfast in \
         nvidia-container-runtime.runtimes of config.toml", .0.display()
    )]
    ItsOwnRuntime(PathBuf),
    /// `--bundle` without a value.
    #[error("the option --bundle needs a value")]
    NoBundle,
    /// The specification.
    #[error("config.json of the container cannot be used")]
    Spec(#[from] oci::Error),
    /// Its environment.
    #[error(transparent)]
    Environment(#[from] InvalidVariable),
    /// The modification.
    #[error("could not apply the required modification to config.json")]
    Modify(#[from] modify::Error),
    /// The low-level runtime cannot be started.
    #[error("failed to run {}", .path.display())]
    Exec {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What to go on with.
enum Next {
    /// Another program.
    Exec(PathBuf),
    /// Ourselves.
    Own,
}

/// Runs as the drop-in called `name`. `own` is `holdfast` with these arguments.
pub fn main(
    name: &OsStr,
    arguments: impl IntoIterator<Item = OsString>,
    own: impl FnOnce(Vec<OsString>) -> ExitCode,
) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let mut log = Log::none();
    let failed = match run(name, &arguments, &mut log) {
        Ok(Next::Own) => return own(arguments),
        Ok(Next::Exec(path)) => {
            let source = Command::new(&path).args(&arguments).exec();
            Error::Exec { path, source }
        }
        Err(error) => error,
    };
    let text = chain(&failed);
    log.error(&text);
    // Standard error may be gone; there is nobody left to tell.
    let _ = io::stderr().write_all(log::text_line("error", &text).as_bytes());
    ExitCode::FAILURE
}

fn run(name: &OsStr, arguments: &[OsString], log: &mut Log) -> Result<Next, Error> {
    let version = has_version(arguments);
    if version {
        print(VERSION);
    }
    let mut config = config::locate(None, |name| env::var_os(name)).load_if_there()?;
    config
        .own
        .switch_off(env::var_os(crate::deviation::VARIABLE).as_deref())?;
    *log = Log::of(arguments, &config.runtime.debug);
    if let Some(mode) = forced_mode(name) {
        mode.name().clone_into(&mut config.runtime.mode);
    }
    let next = low_level(&config)?;
    if has_create(arguments) {
        let bundle = bundle(arguments).ok_or(Error::NoBundle)?;
        modify_bundle(&config, Path::new(&bundle), log)?;
    }
    if version {
        print("\n");
    }
    Ok(next)
}

fn print(text: &str) {
    // What follows does not depend on it.
    let _ = io::stdout().write_all(text.as_bytes());
}

fn forced_mode(name: &OsStr) -> Option<Mode> {
    match Path::new(name).extension()?.to_str()? {
        "cdi" => Some(Mode::Cdi),
        "legacy" => Some(Mode::Legacy),
        _ => None,
    }
}

/// The first of the configured runtimes that can be run.
fn low_level(config: &Config) -> Result<Next, Error> {
    let dirs = search_path(env::var_os("PATH").as_deref(), "/");
    let found = config.runtime.runtimes.iter().find_map(|candidate| {
        if candidate.contains('/') {
            let path = PathBuf::from(candidate);
            return is_executable(&path).then_some(path);
        }
        find_program(candidate, &dirs)
    });
    let path = found.ok_or_else(|| Error::NoRuntime(config.runtime.runtimes.clone()))?;
    if !is_this_program(&path) {
        return Ok(Next::Exec(path));
    }
    if is_its_name(path.as_os_str()) || hook::is_its_name(path.as_os_str()) {
        return Err(Error::ItsOwnRuntime(path));
    }
    Ok(Next::Own)
}

fn is_this_program(path: &Path) -> bool {
    let id = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    let own = id(Path::new("/proc/self/exe"));
    own.is_some() && id(path) == own
}

fn modify_bundle(config: &Config, bundle: &Path, log: &mut Log) -> Result<(), Error> {
    let path = bundle.join("config.json");
    let mut spec = oci::read(&path, config.features.allow_unknown_oci_spec_fields)?;
    let image = oci::image_of(&spec, false)?;
    let mode = mode_of(config, &image, host_platform)?;
    let setup = Setup {
        config,
        path: env::var_os("PATH"),
        data_dirs: env::var_os("XDG_DATA_DIRS"),
        // The original's way: this is its name.
        strict: false,
        deadline: config.own.deadline,
    };
    let modification = Modification::plan(&setup, &image, mode)?;
    for ignored in &modification.ignored {
        log.warning(&ignored.to_string());
    }
    modification.apply(&mut spec)?;
    let spec = oci::normalise(&path, spec, true)?;
    write(&path, &spec).map_err(|source| Error::Spec(oci::Error::Write { path, source }))
}

/// Replaces the file at once, with the mode and owner it had: a reader sees the old one or the new one.
fn write(path: &Path, spec: &serde_json::Value) -> io::Result<()> {
    let path = fs::canonicalize(path)?;
    let meta = fs::metadata(&path)?;
    let mut text = serde_json::to_vec(spec)?;
    text.push(b'\n');
    let new = path.with_extension(format!("json.{}", std::process::id()));
    let written = fs::write(&new, &text)
        .and_then(|()| fs::set_permissions(&new, fs::Permissions::from_mode(meta.mode() & 0o7777)))
        .and_then(|()| std::os::unix::fs::chown(&new, Some(meta.uid()), Some(meta.gid())))
        .and_then(|()| fs::rename(&new, &path));
    if written.is_err() {
        // The reason why it could not be written is the one to tell.
        let _ = fs::remove_file(&new);
    }
    written
}
