//! `holdfast gpu plan`, `holdfast gpu check`.

use std::path::{Path, PathBuf};

use holdfast_gpu::check::{Finding, Level, Node, check};
use holdfast_gpu::{config, paths};
use lexopt::{Arg, Parser};
use serde_json::json;

use super::commands::{pretty, print};
use super::global::{flag, path, usage};
use super::help;
use crate::error::{Error, Result};
use crate::gpu::{Handler, attached, plan};
use crate::verb::Context;

/// Runs a command of `gpu`.
///
/// # Errors
/// A wrong command line, or what the command fails with.
pub(super) fn run(context: &Context, parser: &mut Parser) -> Result<i32> {
    let word = match parser.next().map_err(usage)? {
        Some(Arg::Value(word)) => word,
        Some(other) => return Err(usage(other.unexpected())),
        None => return Err(neither()),
    };
    if help::is_next(parser) {
        let text = help::of(&format!("gpu {}", word.display()));
        return print(&text.ok_or_else(neither)?);
    }
    match word.to_str() {
        Some("plan") => plan_command(context, parser),
        Some("check") => check_command(context, parser),
        Some(_) | None => Err(neither()),
    }
}

fn neither() -> Error {
    Error::Usage("gpu wants plan or check".into())
}

fn plan_command(context: &Context, parser: &mut Parser) -> Result<i32> {
    let mut bundle = PathBuf::from(".");
    let mut json = false;
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Arg::Short('b') | Arg::Long("bundle") => bundle = path(parser)?,
            Arg::Long("json") => json = flag(parser)?,
            other => return Err(usage(other.unexpected())),
        }
    }
    let mut flags = context.gpu.clone();
    if flags.handler.is_none() && std::env::var_os(crate::gpu::VARIABLE).is_none() {
        // Whoever asks for a plan wants the stage on.
        flags.handler = Some("auto".to_owned());
    }
    let plan_value = plan::plan(&flags, &bundle)?;
    if json {
        print(&pretty(&plan_value)?)
    } else {
        print(plan::text(&plan_value).trim_end())
    }
}

fn check_command(context: &Context, parser: &mut Parser) -> Result<i32> {
    let mut json = false;
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Arg::Long("json") => json = flag(parser)?,
            Arg::Long("probe") => return probe(parser),
            other => return Err(usage(other.unexpected())),
        }
    }
    let mode = match context.gpu.handler()? {
        Handler::Off | Handler::Configured => None,
        Handler::Fixed(mode) => Some(mode.name().to_owned()),
    };
    let node = Node {
        root: "/".into(),
        path: paths::DEFAULT_PATH.join(":").into(),
        mode,
        deadline: None,
    };
    let chosen = context.gpu.config.as_deref().map(Path::as_os_str);
    let location = config::locate(chosen, |name| std::env::var_os(name));
    let mut findings = check(&node, &location);
    findings.extend(attached::check());
    let fails = findings.iter().any(|one| one.level == Level::Failure);
    if json {
        print(&pretty(&json!({"usable": !fails, "findings": findings}))?)?;
    } else {
        print(text(&findings, fails).trim_end())?;
    }
    Ok(i32::from(fails))
}

fn text(findings: &[Finding], fails: bool) -> String {
    let mut out = String::new();
    for one in findings {
        let level = match one.level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Failure => "FAILS",
        };
        out.push_str(&format!("{level:<8} {:<12} {}\n", one.step, one.text));
        if let Some(advice) = &one.advice {
            out.push_str(&format!("{:<8} {:<12} -> {advice}\n", "", ""));
        }
    }
    out.push_str(if fails {
        "Containers that ask for a GPU fail on this node. Start with the first line that FAILS.\n"
    } else {
        "Containers that ask for a GPU get one on this node.\n"
    });
    out
}

/// The process that [`attached`] starts.
fn probe(parser: &mut Parser) -> Result<i32> {
    let mut values = parser.raw_args().map_err(usage)?.map(PathBuf::from);
    let procs = values
        .next()
        .ok_or_else(|| Error::Usage("--probe is for holdfast itself".into()))?;
    let nodes: Vec<PathBuf> = values.collect();
    let denied = attached::probe(&procs, &nodes).map_err(|detail| Error::Step {
        doing: "join the container's cgroup".into(),
        detail,
        source: None,
    })?;
    if !denied.is_empty() {
        print(denied.trim_end())?;
    }
    Ok(0)
}
