//! System calls of every process that takes part, counted by strace.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::Settings;
use super::peers::{self, Peer};
use super::series::Table;
use crate::bundle::Bundle;
use crate::scratch::text;
use crate::{deadline, place};

const LIMIT: Duration = Duration::from_secs(60);

/// Kinds of calls that are counted apart: line, and the names that belong to it.
const KINDS: [(&str, &[&str]); 3] = [
    ("clones", &["clone", "clone3", "fork", "vfork"]),
    ("execs", &["execve", "execveat"]),
    (
        "opens",
        &["open", "openat", "openat2", "open_tree", "creat"],
    ),
];

/// Measures and prints.
pub(super) fn run(_: &Settings) {
    let Some(strace) = place::program("strace") else {
        return println!("\nwithout system calls: strace is not installed");
    };
    let peers = peers::all();
    let names = peers::names(&peers);
    for (what, key, shape) in [
        (
            "with docker's profile",
            "docker",
            Bundle::docker_seccomp as fn(Bundle) -> Bundle,
        ),
        ("without a profile", "plain", |bundle| bundle),
    ] {
        println!("\n== system calls of all processes, one run each, {what} (strace -f)");
        let mut counts: BTreeMap<(&str, &str), BTreeMap<String, u64>> = BTreeMap::new();
        for peer in &peers {
            let bundle = shape(peer.scratch.bundle(&format!("calls-{key}"))).args(&["true"]);
            bundle.write();
            // Once unseen, so that what can be kept is kept.
            let path = text(&bundle.path);
            peer.timed(
                peer.scratch
                    .command(&["run", "--bundle", &path, &bundle.id]),
            );
            for (verb, count) in verbs(peer, &strace, &bundle) {
                counts.insert((verb, peer.name), count);
            }
        }
        let table = Table::new("", &names);
        let sum = |verbs: &[&'static str], name: &str, names: Option<&[&str]>| -> Option<f64> {
            let mut total = 0;
            for verb in verbs {
                let found = counts
                    .iter()
                    .find(|((v, peer), _)| v == verb && *peer == name)?;
                total += found
                    .1
                    .iter()
                    .filter(|(call, _)| names.is_none_or(|names| names.contains(&call.as_str())))
                    .map(|(_, count)| count)
                    .sum::<u64>();
            }
            Some(total as f64)
        };
        table.row("create+start", &|name| {
            sum(&["create", "start"], name, None)
        });
        for (line, kind) in KINDS {
            table.row(&format!("  of them {line}"), &|name| {
                sum(&["create", "start"], name, Some(kind))
            });
        }
        for verb in ["state", "exec", "kill", "delete"] {
            table.row(verb, &|name| sum(&[verb], name, None));
        }
    }
    for peer in &peers {
        peer.scratch.assert_nothing_left();
    }
}

/// What each verb cost in one life. `create` counts the container's own process too, to its end:
/// that is where the runtime's last calls are made.
fn verbs(
    peer: &Peer,
    strace: &Path,
    bundle: &Bundle,
) -> Vec<(&'static str, BTreeMap<String, u64>)> {
    let scratch = &peer.scratch;
    let id = bundle.id.as_str();
    let path = text(&bundle.path);
    let traced = |verb: &str, words: &[&str]| -> (PathBuf, Command) {
        let log = scratch.path(&format!("calls-{verb}"));
        (log.clone(), under(strace, &log, scratch.command(words)))
    };
    let to_end = |verb: &'static str, words: &[&str]| {
        let (log, command) = traced(verb, words);
        peer.timed(command);
        (verb, read(&log))
    };
    let mut counts = Vec::new();
    peer.inside(|| {
        // Its end is the container's end, so it is waited for after start.
        let (log, command) = traced("create", &["create", "--bundle", &path, id]);
        let mut create = peers::spawn(command);
        deadline::eventually("created", LIMIT, || {
            let mut state = scratch.command(&["state", id]);
            let said = deadline::run(&mut state, LIMIT);
            said.stdout.contains("\"created\"").then_some(())
        });
        let (start_log, start) = traced("start", &["start", id]);
        peers::timed(start);
        deadline::wait(&mut create, LIMIT).expect("create ends with its container");
        counts.push(("create", read(&log)));
        counts.push(("start", read(&start_log)));
    });
    peer.timed(scratch.command(&["delete", "--force", id]));

    // A second life for the verbs that need a container that stays.
    let bundle = bundle.clone().args(&["sleep", "6000"]);
    bundle.write();
    begin(peer, &bundle);
    counts.push(to_end("state", &["state", id]));
    counts.push(to_end("exec", &["exec", id, "true"]));
    counts.push(to_end("kill", &["kill", id, "KILL"]));
    deadline::eventually("stopped", LIMIT, || {
        let said = peer.inside(|| deadline::run(&mut scratch.command(&["state", id]), LIMIT));
        said.stdout.contains("\"stopped\"").then_some(())
    });
    counts.push(to_end("delete", &["delete", id]));
    counts
}

fn begin(peer: &Peer, bundle: &Bundle) {
    let path = text(&bundle.path);
    let create = ["create", "--bundle", &path, &bundle.id];
    peer.timed(peer.scratch.command(&create));
    peer.timed(peer.scratch.command(&["start", &bundle.id]));
}

/// The command, with its calls counted into `log`.
pub(super) fn under(strace: &Path, log: &Path, call: Command) -> Command {
    let mut traced = Command::new(strace);
    traced.args(["-f", "-qq", "-c", "-U", "calls,name", "-o"]);
    traced.arg(log).arg("--");
    traced.arg(call.get_program()).args(call.get_args());
    for (key, value) in call.get_envs() {
        traced.env(key, value.unwrap_or_default());
    }
    traced
}

/// Calls by name.
pub(super) fn read(log: &Path) -> BTreeMap<String, u64> {
    let text = fs::read_to_string(log).expect("strace's counts");
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let calls = words.next()?.parse().ok()?;
            let name = words.next()?;
            (name != "total").then(|| (name.to_owned(), calls))
        })
        .collect()
}
