//! The commands: their options, and the call each one makes.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use holdfast_cgroups::Below;
use holdfast_record::{ContainerId, Signal};
use lexopt::{Arg, Parser};
use oci_spec::runtime::Capability;

use super::criu_flags;
use super::duration;
use super::global::{self, Global, Parsed, flag, path, text, usage};
use super::help;
use super::questions;
use super::update_flags::{self, Asked};
use crate::cause::{self, Operation};
use crate::cli::log_file;
use crate::error::{Doing, Error, Result};
use crate::verb::{
    Context, checkpoint, create, delete, events, exec, kill, list, pause, ps, restore, run, start,
    state, update,
};

/// Runs the command line. The second value tells whether it was an `exec`.
pub(super) fn run(args: impl Iterator<Item = OsString>) -> (Result<i32>, bool) {
    let mut parser = Parser::from_args(args);
    match global::parse(&mut parser) {
        Ok(Parsed::Version) => (print(&help::version()), false),
        Ok(Parsed::Help) => (print(help::HELP.trim_end()), false),
        Ok(Parsed::Command(global)) => {
            let Global {
                context,
                log,
                command,
            } = global;
            log.install();
            let exec = command == "exec";
            (dispatch(&context, &command, &mut parser), exec)
        }
        Err(error) => (Err(error), false),
    }
}

fn dispatch(context: &Context, command: &str, parser: &mut Parser) -> Result<i32> {
    // podman and others ask for the help of a verb to know whether it is there.
    if help::is_next(parser)
        && let Some(text) = help::of(command)
    {
        return print(&text);
    }
    match command {
        "create" => {
            let (options, switches) = create_options(parser)?;
            create::create(context, &switches.id()?, &options).map(|()| 0)
        }
        "run" => {
            let (options, switches) = create_options(parser)?;
            let (detach, keep) = (switches.detach, switches.keep);
            run::run(context, &switches.id()?, &options, detach, keep)
        }
        "start" => {
            let id = only_id(parser)?;
            let started = start::start(context, &id);
            if let Err(error) = &started {
                log_file::tell_reason(&cause::reason(error, Operation::Start));
                let bundle = bundle_of(context, &id);
                cause::record(error, Operation::Start, &id, &bundle);
            }
            started.map(|()| 0)
        }
        "state" => print(&state::state(context, &only_id(parser)?)?),
        "kill" => kill_command(context, parser),
        "delete" => {
            let mut force = false;
            let mut ids = Ids::default();
            while let Some(arg) = parser.next().map_err(usage)? {
                match arg {
                    Arg::Short('f') | Arg::Long("force") => force = flag(parser)?,
                    Arg::Value(value) => ids.push(value)?,
                    other => return Err(usage(other.unexpected())),
                }
            }
            let id = ids.one()?;
            let deleted = delete::delete(context, &id, force);
            if let Err(error) = &deleted {
                let bundle = bundle_of(context, &id);
                cause::record(error, Operation::Delete, &id, &bundle);
            }
            deleted.map(|()| 0)
        }
        "exec" => exec_command(context, parser),
        "ps" => ps_command(context, parser),
        "list" => list_command(context, parser),
        "pause" => pause::pause(context, &only_id(parser)?).map(|()| 0),
        "resume" => pause::resume(context, &only_id(parser)?).map(|()| 0),
        "update" => update_command(context, parser),
        "events" => events_command(context, parser),
        "checkpoint" => {
            let (id, options) = criu_flags::checkpoint(parser)?;
            checkpoint::checkpoint(context, &id, &options).map(|()| 0)
        }
        "restore" => {
            let (id, options) = criu_flags::restore(parser)?;
            restore::restore(context, &id, &options)
        }
        "spec" => spec_command(parser),
        "features" => print(&pretty(&crate::features::features())?),
        "why" => questions::why(parser),
        "shims" => questions::shims(parser),
        "upgrade" => questions::upgrade(parser),
        "gpu" => super::gpu_commands::run(context, parser),
        "check" => questions::check(parser),
        other => Err(Error::Usage(format!("no command {other:?}"))),
    }
}

/// Where the container's configuration is; nowhere when it is not known.
fn bundle_of(context: &Context, id: &ContainerId) -> PathBuf {
    let container = context.container(id);
    container.map_or_else(|_| PathBuf::new(), |one| one.saved.bundle)
}

pub(super) fn print(text: &str) -> Result<i32> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")
        .and_then(|()| out.flush())
        .doing(|| "write to standard output".into())?;
    Ok(0)
}

pub(super) fn pretty(value: &serde_json::Value) -> Result<String> {
    serde_json::to_string_pretty(value).map_err(|source| Error::Json {
        path: "the document to print".into(),
        source,
    })
}

/// Positional arguments.
#[derive(Debug, Default)]
pub(super) struct Ids(pub(super) Vec<String>);

impl Ids {
    pub(super) fn push(&mut self, value: OsString) -> Result<()> {
        let value = value
            .into_string()
            .map_err(|value| Error::Usage(format!("{} is not UTF-8", value.display())))?;
        self.0.push(value);
        Ok(())
    }

    /// The id of a command whose further words are not ours to read.
    fn alone(value: OsString) -> Result<ContainerId> {
        let mut ids = Self::default();
        ids.push(value)?;
        ids.one()
    }

    pub(super) fn one(self) -> Result<ContainerId> {
        match &self.0[..] {
            [id] => Ok(ContainerId::new(id.as_str())?),
            [] => Err(Error::Usage("the container's id is missing".into())),
            [_, more @ ..] => Err(Error::Usage(format!(
                "unexpected arguments: {}",
                more.join(" ")
            ))),
        }
    }
}

fn only_id(parser: &mut Parser) -> Result<ContainerId> {
    let mut ids = Ids::default();
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Arg::Value(value) => ids.push(value)?,
            other => return Err(usage(other.unexpected())),
        }
    }
    ids.one()
}

#[derive(Debug, Default)]
struct RunSwitches {
    detach: bool,
    keep: bool,
    ids: Ids,
}

impl RunSwitches {
    fn id(self) -> Result<ContainerId> {
        self.ids.one()
    }
}

fn create_options(parser: &mut Parser) -> Result<(create::Options, RunSwitches)> {
    let mut options = create::Options {
        bundle: ".".into(),
        ..create::Options::default()
    };
    let mut switches = RunSwitches::default();
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Arg::Short('b') | Arg::Long("bundle") => options.bundle = path(parser)?,
            Arg::Long("console-socket") => options.console_socket = some_path(parser)?,
            Arg::Long("pidfd-socket") => options.pidfd_socket = some_path(parser)?,
            Arg::Long("pid-file") => options.pid_file = some_path(parser)?,
            Arg::Long("no-pivot") => options.no_pivot = flag(parser)?,
            Arg::Long("no-new-keyring") => options.no_new_keyring = flag(parser)?,
            Arg::Long("preserve-fds") => options.preserve_fds = number(parser)?,
            Arg::Short('d') | Arg::Long("detach") => switches.detach = flag(parser)?,
            Arg::Long("keep") => switches.keep = flag(parser)?,
            // We never become a subreaper: the container is our child or our parent's.
            Arg::Long("no-subreaper") => drop(flag(parser)?),
            Arg::Value(value) => switches.ids.push(value)?,
            other => return Err(usage(other.unexpected())),
        }
    }
    options.listen_fds = listen_fds().unwrap_or(0);
    Ok((options, switches))
}

/// Socket activation, sd_listen_fds(3): how many descriptors go on to the container. Those that the
/// environment announces to another process are not for us.
fn listen_fds() -> Option<u32> {
    let pid: u32 = std::env::var("LISTEN_PID").ok()?.parse().ok()?;
    if pid != std::process::id() {
        return None;
    }
    std::env::var("LISTEN_FDS").ok()?.parse().ok()
}

pub(super) fn some_path(parser: &mut Parser) -> Result<Option<PathBuf>> {
    let path = path(parser)?;
    // go-runc passes an empty value for "none".
    Ok((!path.as_os_str().is_empty()).then_some(path))
}

fn number(parser: &mut Parser) -> Result<u32> {
    let text = text(parser)?;
    text.parse()
        .map_err(|_| Error::Usage(format!("{text:?} is not a number")))
}

fn kill_command(context: &Context, parser: &mut Parser) -> Result<i32> {
    let mut all = false;
    let mut words = Ids::default();
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Arg::Short('a') | Arg::Long("all") => all = flag(parser)?,
            Arg::Value(value) => words.push(value)?,
            other => return Err(usage(other.unexpected())),
        }
    }
    let (id, signal) = match &words.0[..] {
        [id] => (id, "SIGTERM"),
        [id, signal] => (id, signal.as_str()),
        _ => {
            return Err(Error::Usage(
                "kill needs an id and at most one signal".into(),
            ));
        }
    };
    // kill(2): only whether there is somebody to signal.
    if signal == "0" {
        let container = context.container(&ContainerId::new(id.as_str())?)?;
        return container.live_init().map(|_| 0);
    }
    let signal =
        Signal::parse(signal).ok_or_else(|| Error::Usage(format!("unknown signal {signal:?}")))?;
    kill::kill(context, &ContainerId::new(id.as_str())?, signal, all).map(|()| 0)
}

fn exec_command(context: &Context, parser: &mut Parser) -> Result<i32> {
    let mut options = exec::Options::default();
    let mut cgroups = Vec::new();
    let mut id = None;
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Arg::Short('p') | Arg::Long("process") => options.process = some_path(parser)?,
            Arg::Long("cwd") => options.cwd = some_path(parser)?,
            Arg::Short('e') | Arg::Long("env") => options.env.push(text(parser)?),
            Arg::Short('t') | Arg::Long("tty") => options.tty = flag(parser)?,
            Arg::Short('u') | Arg::Long("user") => options.user = Some(user(&text(parser)?)?),
            Arg::Short('g') | Arg::Long("additional-gids") => {
                options.additional_gids.push(number(parser)?);
            }
            Arg::Short('c') | Arg::Long("cap") => {
                options.capabilities.extend(capability(&text(parser)?));
            }
            Arg::Long("no-new-privs") => options.no_new_privileges = flag(parser)?,
            Arg::Long("apparmor") => options.apparmor = Some(text(parser)?),
            Arg::Long("process-label") => options.label = Some(text(parser)?),
            Arg::Short('d') | Arg::Long("detach") => options.detach = flag(parser)?,
            Arg::Long("console-socket") => options.console_socket = some_path(parser)?,
            Arg::Long("pidfd-socket") => options.pidfd_socket = some_path(parser)?,
            Arg::Long("pid-file") => options.pid_file = some_path(parser)?,
            Arg::Long("preserve-fds") => options.preserve_fds = number(parser)?,
            Arg::Long("ignore-paused") => options.ignore_paused = flag(parser)?,
            Arg::Long("cgroup") => cgroups.push(text(parser)?),
            Arg::Value(value) => {
                id = Some(Ids::alone(value)?);
                break;
            }
            other => return Err(usage(other.unexpected())),
        }
    }
    let id = id.ok_or_else(|| Error::Usage("the container's id is missing".into()))?;
    // The rest is the command, whatever it looks like.
    for word in parser.raw_args().map_err(usage)? {
        let word = word
            .into_string()
            .map_err(|word| Error::Usage(format!("{} is not UTF-8", word.display())))?;
        options.args.push(word);
    }
    if options.args.first().is_some_and(|first| first == "--") {
        options.args.remove(0);
    }
    if options.process.is_none() && options.args.is_empty() {
        return Err(Error::Usage("exec needs a command or --process".into()));
    }
    options.cgroup = Below::parse(&cgroups)?;
    exec::exec(context, &id, &options)
}

fn user(text: &str) -> Result<(u32, Option<u32>)> {
    let wrong = || Error::Usage(format!("--user {text:?} is not UID or UID:GID"));
    let number = |part: &str| part.parse::<u32>().map_err(|_| wrong());
    match text.split_once(':') {
        None => Ok((number(text)?, None)),
        Some((uid, gid)) => Ok((number(uid)?, Some(number(gid)?))),
    }
}

/// One that this version does not know is left out, as the runtime-spec wants it.
fn capability(name: &str) -> Option<Capability> {
    let full = if name.starts_with("CAP_") {
        name.to_owned()
    } else {
        format!("CAP_{name}")
    };
    let known = serde_json::from_value(serde_json::Value::String(full)).ok();
    if known.is_none() {
        log::warn!("ignoring the unknown capability {name:?}");
    }
    known
}

fn ps_command(context: &Context, parser: &mut Parser) -> Result<i32> {
    let mut json = false;
    let mut id = None;
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Arg::Short('f') | Arg::Long("format") => json = format_word(parser)? == "json",
            Arg::Value(value) => {
                id = Some(Ids::alone(value)?);
                break;
            }
            other => return Err(usage(other.unexpected())),
        }
    }
    let id = id.ok_or_else(|| Error::Usage("the container's id is missing".into()))?;
    if json {
        let pids = ps::pids(context, &id)?;
        return print(&serde_json::json!(pids).to_string());
    }
    let options: Vec<String> = parser
        .raw_args()
        .map_err(usage)?
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    print(&ps::table(context, &id, &options)?)
}

fn format_word(parser: &mut Parser) -> Result<String> {
    let word = text(parser)?;
    if word == "table" || word == "json" {
        Ok(word)
    } else {
        Err(Error::Usage(format!("invalid format option {word:?}")))
    }
}

fn list_command(context: &Context, parser: &mut Parser) -> Result<i32> {
    let mut format = list::Format::Table;
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Arg::Short('f') | Arg::Long("format") => {
                if format_word(parser)? == "json" {
                    format = list::Format::Json;
                }
            }
            Arg::Short('q') | Arg::Long("quiet") => {
                if flag(parser)? {
                    format = list::Format::Quiet;
                }
            }
            other => return Err(usage(other.unexpected())),
        }
    }
    let text = list::list(context, format)?;
    if text.is_empty() {
        return Ok(0);
    }
    print(&text)
}

fn update_command(context: &Context, parser: &mut Parser) -> Result<i32> {
    let (asked, schemata, ids) = update_flags::parse(parser)?;
    let id = ids.one()?;
    let resources = match asked {
        Asked::Document(path) => update::read(&path)?,
        Asked::Limits(resources) => *resources,
    };
    update::update(context, &id, &resources, &schemata).map(|()| 0)
}

fn events_command(context: &Context, parser: &mut Parser) -> Result<i32> {
    let mut once = false;
    let mut interval = Duration::from_secs(5);
    let mut ids = Ids::default();
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Arg::Long("stats") => once = flag(parser)?,
            Arg::Long("interval") => interval = duration::parse(&text(parser)?)?,
            Arg::Value(value) => ids.push(value)?,
            other => return Err(usage(other.unexpected())),
        }
    }
    let id = ids.one()?;
    if once {
        events::once(context, &id)?;
    } else {
        events::follow(context, &id, interval)?;
    }
    Ok(0)
}

fn spec_command(parser: &mut Parser) -> Result<i32> {
    let mut bundle = PathBuf::from(".");
    let mut rootless = false;
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Arg::Short('b') | Arg::Long("bundle") => bundle = path(parser)?,
            Arg::Long("rootless") => rootless = flag(parser)?,
            other => return Err(usage(other.unexpected())),
        }
    }
    let ids = rootless.then(|| {
        (
            nix::unistd::geteuid().as_raw(),
            nix::unistd::getegid().as_raw(),
        )
    });
    let file = bundle.join("config.json");
    let text = pretty(&crate::default_spec::default_spec(ids))?;
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&file)
        .and_then(|mut out| out.write_all(text.as_bytes()))
        .doing(|| format!("write {} (it must not exist yet)", file.display()))?;
    Ok(0)
}
