//! Options before the command.

use std::path::PathBuf;

use lexopt::{Arg, Parser, ValueExt};

use super::log_file::{Destination, Format};
use crate::error::{Error, Result};
use crate::verb::Context;

/// Where state is kept when `--root` is not given.
const DEFAULT_ROOT: &str = "/run/holdfast";

/// What was said before the command.
#[derive(Debug)]
pub(super) struct Global {
    pub(super) context: Context,
    pub(super) log: Destination,
    pub(super) command: String,
}

/// Either a command, or something to print at once.
#[derive(Debug)]
pub(super) enum Parsed {
    Command(Global),
    Version,
    Help,
}

/// A command line that lexopt cannot read.
pub(super) fn usage(error: lexopt::Error) -> Error {
    match error {
        // podman runs `restore --lsm-profile` and looks for these words.
        lexopt::Error::MissingValue {
            option: Some(option),
        } => Error::Usage(format!("option '{option}' requires an argument")),
        other => Error::Usage(other.to_string()),
    }
}

/// Reads up to and including the command's name.
pub(super) fn parse(parser: &mut Parser) -> Result<Parsed> {
    let mut root = default_root();
    let mut systemd_cgroup = false;
    let mut criu = PathBuf::from("criu");
    let mut gpu = crate::gpu::Flags::default();
    let mut log = Destination::default();
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Arg::Long("root") => root = path(parser)?,
            Arg::Long("log") => log.path = Some(path(parser)?),
            Arg::Long("log-format") => {
                log.format = match text(parser)?.as_str() {
                    "json" => Format::Json,
                    "text" => Format::Text,
                    other => {
                        return Err(Error::Usage(format!("unknown log-format {other:?}")));
                    }
                };
            }
            Arg::Long("debug") => log.debug = flag(parser)?,
            Arg::Long("systemd-cgroup") => systemd_cgroup = flag(parser)?,
            // Detected by itself; accepted for compatibility.
            Arg::Long("rootless") => drop(text(parser)?),
            Arg::Long("criu") => criu = path(parser)?,
            Arg::Long("gpu") => gpu.handler = Some(text(parser)?),
            Arg::Long("gpu-config") => gpu.config = Some(path(parser)?),
            Arg::Long("version") | Arg::Short('v') => return Ok(Parsed::Version),
            Arg::Long("help") | Arg::Short('h') => return Ok(Parsed::Help),
            Arg::Value(command) => {
                let command = command.to_string_lossy().into_owned();
                if command == "help" {
                    return Ok(Parsed::Help);
                }
                return Ok(Parsed::Command(Global {
                    context: Context {
                        root,
                        systemd_cgroup,
                        criu,
                        gpu,
                    },
                    log,
                    command,
                }));
            }
            other => return Err(usage(other.unexpected())),
        }
    }
    Ok(Parsed::Help)
}

fn default_root() -> PathBuf {
    let Some(dir) = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) else {
        return DEFAULT_ROOT.into();
    };
    // Root of the machine, or of a user namespace that was made for somebody who is root in it:
    // the rule of runc.
    let is_root = nix::unistd::geteuid().is_root()
        && (std::env::var_os("USER").is_some_and(|user| user == "root")
            || crate::verb::is_root_of_the_machine());
    if is_root {
        DEFAULT_ROOT.into()
    } else {
        PathBuf::from(dir).join("holdfast")
    }
}

/// The value of the option just read, as a path.
pub(super) fn path(parser: &mut Parser) -> Result<PathBuf> {
    Ok(parser.value().map_err(usage)?.into())
}

/// The value of the option just read, as text.
pub(super) fn text(parser: &mut Parser) -> Result<String> {
    parser.value().and_then(ValueExt::string).map_err(usage)
}

/// A switch, also in the form `--switch=false`.
pub(super) fn flag(parser: &mut Parser) -> Result<bool> {
    match parser.optional_value() {
        None => Ok(true),
        Some(value) => match value.to_str() {
            Some("true" | "1" | "t") => Ok(true),
            Some("false" | "0" | "f") => Ok(false),
            _ => Err(Error::Usage(format!(
                "{} is neither true nor false",
                value.display()
            ))),
        },
    }
}
