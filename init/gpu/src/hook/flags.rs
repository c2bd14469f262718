//! The hook's command line, with the rules of Go's `flag` package: one dash or two, flags only before the command.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// What `-help` prints.
pub(super) const USAGE: &str = "\
Usage of nvidia-container-runtime-hook: [-config FILE] [-debug] [-version] COMMAND

Commands:
  prestart     give the container on standard input its GPUs
  poststart    nothing
  poststop     nothing

Flags:
  -config FILE    the configuration
  -debug          let nvidia-container-cli write its log to standard error
  -version        print the version
";

/// The flags of `prestart`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Flags {
    pub(super) config: Option<OsString>,
    pub(super) debug: bool,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    Prestart(Flags),
    /// `poststart`, `poststop`.
    Nothing,
    Version,
    Help,
}

/// What is wrong with the command line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    #[error("there is no command")]
    NoCommand,
    #[error("there is no command {0:?}")]
    UnknownCommand(OsString),
    #[error("there is no flag {0:?}")]
    UnknownFlag(OsString),
    #[error("{0:?} is no flag")]
    Malformed(OsString),
    #[error("-config needs a file")]
    NoFile,
    #[error("{0:?} is neither true nor false")]
    NotBool(OsString),
}

/// Reads the arguments after the program's name.
pub(super) fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Command, Error> {
    let mut arguments = arguments.peekable();
    let mut flags = Flags::default();
    let mut version = false;
    while let Some(argument) =
        arguments.next_if(|argument| argument.len() > 1 && argument.as_bytes().starts_with(b"-"))
    {
        if argument == "--" {
            break;
        }
        let bytes = argument.as_bytes();
        let body = bytes
            .strip_prefix(b"--")
            .or(bytes.strip_prefix(b"-"))
            .unwrap_or(bytes);
        if body.is_empty() || body.starts_with(b"-") || body.starts_with(b"=") {
            return Err(Error::Malformed(argument));
        }
        let (name, value) = match body.iter().position(|byte| *byte == b'=') {
            Some(at) => (&body[..at], Some(OsStr::from_bytes(&body[at + 1..]))),
            None => (body, None),
        };
        match (name, value) {
            (b"config", Some(file)) => flags.config = Some(file.to_owned()),
            (b"config", None) => flags.config = Some(arguments.next().ok_or(Error::NoFile)?),
            (b"debug", value) => flags.debug = switch(value)?,
            (b"version", value) => version = switch(value)?,
            (b"h" | b"help", _) => return Ok(Command::Help),
            _ => return Err(Error::UnknownFlag(argument)),
        }
    }
    if version {
        return Ok(Command::Version);
    }
    let command = arguments.next().ok_or(Error::NoCommand)?;
    match command.as_bytes() {
        b"prestart" => Ok(Command::Prestart(flags)),
        b"poststart" | b"poststop" => Ok(Command::Nothing),
        _ => Err(Error::UnknownCommand(command)),
    }
}

fn switch(value: Option<&OsStr>) -> Result<bool, Error> {
    match value.map(OsStr::as_bytes) {
        None | Some(b"1" | b"t" | b"T" | b"true" | b"TRUE" | b"True") => Ok(true),
        Some(b"0" | b"f" | b"F" | b"false" | b"FALSE" | b"False") => Ok(false),
        Some(other) => Err(Error::NotBool(OsStr::from_bytes(other).to_owned())),
    }
}
