//! `nvidia-container-runtime-hook`: the drop-in entry for engines that call NVIDIA's hook by name (docker's `--gpus`,
//! podman's hook directories).
//!
//! It becomes `nvidia-container-cli` with the original's command line and environment, so that exit code and output are
//! the CLI's own. What differs on purpose is in [`crate::deviation`].
//!
//! | exit code | meaning |
//! |---|---|
//! | 0 | no GPU asked for, or nothing to do at this point |
//! | 1 | refused; the reason is on standard error |
//! | 2 | the command line is wrong |
//! | other | the CLI's own |

mod flags;
mod spec;
mod state;
#[cfg(test)]
mod tests;

use std::ffi::{CString, NulError, OsStr, OsString};
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use flags::{Command, Flags};
use holdfast_record::chain;
use state::State;

use crate::config::{self, Config};
use crate::legacy::{self, Call, Program};
use crate::mode::{self, Mode, Setting};
use crate::request::{Found, Request};
use crate::{capabilities, deviation, json, paths, request};

/// The names under which the hook is called. The second is its name from before 2021.
pub const NAMES: [&str; 2] = ["nvidia-container-runtime-hook", "nvidia-container-toolkit"];

/// Whether a program called like this, a path perhaps, is the hook.
#[must_use]
pub fn is_its_name(name: &OsStr) -> bool {
    Path::new(name)
        .file_name()
        .is_some_and(|name| NAMES.iter().any(|one| name == *one))
}

/// The version that the hook behaves as.
const VERSION: &str = "1.20.0";

/// Why the hook fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration.
    #[error("the GPU configuration cannot be used")]
    Config(#[from] config::Error),
    /// A name in `as-original`, or in the variable, that is no deviation.
    #[error(transparent)]
    AsOriginal(#[from] config::UnknownDeviation),
    /// `supported-driver-capabilities`.
    #[error("the GPU configuration cannot be used")]
    Supported(#[source] capabilities::Error),
    /// Standard input.
    #[error("failed to read the container's state from standard input")]
    Input(#[source] io::Error),
    /// The state is not what it should be.
    #[error("the container's state on standard input cannot be used")]
    State(#[source] json::Error),
    /// The state has no pid.
    #[error(
        "the container's state on standard input has no pid: {} would work on its own parent (as-original = [\"pid-zero\"] allows it)",
        legacy::PROGRAM
    )]
    NoPid,
    /// The specification cannot be read.
    #[error("failed to read the specification {}", .path.display())]
    ReadSpec {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The specification is not what it should be.
    #[error("the specification {} cannot be used", .path.display())]
    Spec {
        /// The file.
        path: PathBuf,
        /// Why.
        source: spec::Error,
    },
    /// The request cannot be granted.
    #[error("the GPU request of the container cannot be granted")]
    Request(#[from] request::Error),
    /// The configured mode is not the hook's.
    #[error(
        "the mode is {mode:?} (nvidia-container-runtime.mode in config.toml{}), which the hook alone cannot do: \
         run the container with the runtime instead (docker: --runtime=nvidia in place of --gpus), or set mode = \"legacy\"",
        if *.detected { ", found out by itself" } else { "" }
    )]
    Mode {
        /// As configured or detected.
        mode: String,
        /// Whether it was `auto`.
        detected: bool,
    },
    /// The CLI is missing.
    #[error(transparent)]
    NotFound(#[from] legacy::NotFound),
    /// The current directory, which relative roots refer to.
    #[error("failed to find the current directory")]
    Cwd(#[source] io::Error),
    /// A text cannot be handed to a program.
    #[error("an argument or variable of the CLI contains a NUL byte")]
    Nul(#[from] NulError),
    /// The CLI cannot be executed.
    #[error("failed to execute {}", .program.display())]
    Execute {
        /// Its path.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What a run of the hook depends on, besides files.
struct Surroundings {
    environment: Vec<(OsString, OsString)>,
    cwd: PathBuf,
}

impl Surroundings {
    fn variable(&self, name: &str) -> Option<OsString> {
        let mut all = self.environment.iter();
        all.find(|(key, _)| key == name)
            .map(|(_, value)| value.clone())
    }
}

/// The CLI, ready to be executed.
#[derive(Debug, PartialEq, Eq)]
struct Invocation {
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<OsString>,
}

/// Runs the hook with the arguments after its name.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let flags = match flags::parse(arguments) {
        Ok(Command::Prestart(flags)) => flags,
        Ok(Command::Nothing) => return ExitCode::SUCCESS,
        Ok(Command::Version) => {
            // Programs read this line, so it is the original's; the next one says the truth.
            let _ = writeln!(
                io::stdout(),
                "NVIDIA Container Runtime Hook version {VERSION}"
            );
            eprintln!("holdfast {}, in its place", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Ok(Command::Help) => {
            eprint!("{}", flags::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("{error}\n{}", flags::USAGE.trim_end());
            return ExitCode::from(2);
        }
    };
    let error = match prestart(&flags) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(error) => error,
    };
    eprintln!("{}: {}", NAMES[0], chain(&error));
    ExitCode::FAILURE
}

/// Returns when there is nothing to do; otherwise the process is the CLI afterwards.
fn prestart(flags: &Flags) -> Result<(), Error> {
    let surroundings = Surroundings {
        environment: std::env::vars_os().collect(),
        cwd: working_directory().map_err(Error::Cwd)?,
    };
    let input = || {
        let mut bytes = Vec::new();
        io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes)
    };
    let Some(invocation) = prepare(flags, &surroundings, input, Path::new("/"))? else {
        return Ok(());
    };
    execute(&invocation)
}

/// The current directory by the name that the caller used for it, if `PWD` is one: as Go's `os.Getwd`.
fn working_directory() -> io::Result<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let same = |path: &Path| {
        let (Ok(one), Ok(other)) = (path.metadata(), Path::new(".").metadata()) else {
            return false;
        };
        (one.dev(), one.ino()) == (other.dev(), other.ino())
    };
    match std::env::var_os("PWD").map(PathBuf::from) {
        Some(named) if named.is_absolute() && same(&named) => Ok(named),
        Some(_) | None => std::env::current_dir(),
    }
}

/// Everything up to the execution. The order decides which of several errors is reported, and is the original's.
fn prepare(
    flags: &Flags,
    surroundings: &Surroundings,
    input: impl FnOnce() -> io::Result<Vec<u8>>,
    host: &Path,
) -> Result<Option<Invocation>, Error> {
    let location = config::locate(flags.config.as_deref(), |name| surroundings.variable(name));
    let mut config = location.load()?;
    config
        .own
        .switch_off(surroundings.variable(deviation::VARIABLE).as_deref())?;
    let supported = capabilities::supported(&config).map_err(Error::Supported)?;
    let state = State::read(&input().map_err(Error::Input)?).map_err(Error::State)?;
    let path = paths::join(state.bundle.as_ref(), "config.json".as_ref());
    let bytes = std::fs::read(surroundings.cwd.join(&path)).map_err(|source| Error::ReadSpec {
        path: path.clone(),
        source,
    })?;
    let spec = spec::read(&bytes).map_err(|source| Error::Spec { path, source })?;
    let Found {
        value: request,
        ignored,
    } = Request::find(&spec.image, &config, &supported)?;
    for one in &ignored {
        eprintln!("{}: warning: {one}", NAMES[0]);
    }
    let Some(request) = request else {
        return Ok(None);
    };
    check_mode(&config, &request, host)?;
    if state.pid == 0 && !deviation::PID_ZERO.is_off(&config.own) {
        return Err(Error::NoPid);
    }
    let rootfs = paths::absolute(&surroundings.cwd, spec.root.as_ref());
    let program = Program::find(&config, surroundings.variable("PATH").as_deref())?;
    let call = Call {
        debug: flags.debug,
        no_cgroups: false,
        pid: state.pid.cast_unsigned(),
        rootfs: &rootfs,
    };
    let arguments = legacy::arguments(&program.path, &config, &request, &call);
    Ok(Some(Invocation {
        environment: environment(surroundings, &program, &config),
        arguments,
        program: program.path,
    }))
}

/// Only legacy mode is the hook's.
fn check_mode(config: &Config, request: &Request, host: &Path) -> Result<(), Error> {
    if config.hook.skip_mode_detection {
        return Ok(());
    }
    let configured = &config.runtime.mode;
    let (mode, detected) = match Setting::parse(configured) {
        Some(Setting::Fixed(mode)) => (mode, false),
        Some(Setting::Auto) => {
            // NVML cannot be asked from here; GPUs that are integrated and have it are set to a fixed mode.
            let platform = || mode::platform(host, || false);
            (mode::of_hook(&request.devices.names, platform), true)
        }
        None => {
            return Err(Error::Mode {
                mode: configured.clone(),
                detected: false,
            });
        }
    };
    match mode {
        Mode::Legacy => Ok(()),
        Mode::Cdi | Mode::JitCdi | Mode::Csv => Err(Error::Mode {
            mode: mode.name().to_owned(),
            detected,
        }),
    }
}

/// Ours with the search path in which the program was found, and after it the configured entries.
fn environment(surroundings: &Surroundings, program: &Program, config: &Config) -> Vec<OsString> {
    let entry = |name: &OsStr, value: &OsStr| {
        let mut entry = name.to_owned();
        entry.push("=");
        entry.push(value);
        entry
    };
    let replaced = program.search_path.as_deref();
    let mut all: Vec<OsString> = surroundings
        .environment
        .iter()
        .filter(|(name, _)| replaced.is_none() || name != "PATH")
        .map(|(name, value)| entry(name, value))
        .collect();
    all.extend(replaced.map(|path| entry("PATH".as_ref(), path)));
    all.extend(config.cli.environment.iter().map(OsString::from));
    all
}

fn execute(invocation: &Invocation) -> Result<(), Error> {
    let text = |text: &OsStr| CString::new(text.as_bytes());
    let list = |items: &[OsString]| {
        let items = items
            .iter()
            .map(|item| CString::new(item.clone().into_vec()));
        items.collect::<Result<Vec<_>, _>>()
    };
    let program = text(invocation.program.as_os_str())?;
    let (arguments, environment) = (list(&invocation.arguments)?, list(&invocation.environment)?);
    match nix::unistd::execve(&program, &arguments, &environment) {
        Ok(never) => match never {},
        Err(errno) => Err(Error::Execute {
            program: invocation.program.clone(),
            source: errno.into(),
        }),
    }
}

/// For [`crate::fuzz`]: reads a state as [`main`] does.
pub(crate) fn read_state(bytes: &[u8]) {
    let _ = State::read(bytes);
}

/// For [`crate::fuzz`]: reads a specification as [`main`] does.
pub(crate) fn read_spec(bytes: &[u8]) {
    let _ = spec::read(bytes);
}
