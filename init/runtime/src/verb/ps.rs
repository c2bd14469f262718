//! `ps`: the processes of a container.

use std::process::Command;

use holdfast_record::ContainerId;

use super::Context;
use crate::error::{Doing, Error, Result};

/// The pids in the host's pid namespace, ascending.
///
/// # Errors
/// [`Error::NoContainer`], or the cgroup that cannot be read.
pub fn pids(context: &Context, id: &ContainerId) -> Result<Vec<i32>> {
    let container = context.container(id)?;
    let Some(cgroup) = container.cgroup() else {
        return Ok(Vec::new());
    };
    let mut pids = match cgroup.processes() {
        Err(error) if error.is_gone() => Vec::new(),
        other => other?,
    };
    pids.sort_unstable();
    Ok(pids)
}

/// The table of ps(1) with the given options, reduced to the container's processes.
///
/// # Errors
/// When ps(1) is missing, fails, or prints no PID column.
pub fn table(context: &Context, id: &ContainerId, options: &[String]) -> Result<String> {
    let pids = pids(context, id)?;
    let default = ["-ef".to_owned()];
    let options = if options.is_empty() {
        &default[..]
    } else {
        options
    };
    let output = Command::new("ps")
        .args(options)
        .output()
        .doing(|| "run ps".into())?;
    if !output.status.success() {
        return Err(Error::Usage(format!(
            "ps {} failed: {}",
            options.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        )));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let heading = lines.next().unwrap_or_default();
    let column = heading
        .split_whitespace()
        .position(|word| word == "PID")
        .ok_or_else(|| {
            Error::Usage(format!(
                "ps {} prints no PID column to choose by",
                options.join(" ")
            ))
        })?;
    let ours = lines.filter(|line| {
        line.split_whitespace()
            .nth(column)
            .and_then(|pid| pid.parse().ok())
            .is_some_and(|pid: i32| pids.contains(&pid))
    });
    Ok(std::iter::once(heading)
        .chain(ours)
        .collect::<Vec<_>>()
        .join("\n"))
}
