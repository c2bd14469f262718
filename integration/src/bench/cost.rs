//! What a life costs beside time: processor, memory, and room on disk.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::Settings;
use super::lives::CASES;
use super::peers::{self, Peer, children_cpu};
use super::series::Table;
use crate::bundle::Bundle;
use crate::place;
use crate::scratch::text;

/// Measures and prints.
pub(super) fn run(settings: &Settings) {
    let rounds = settings.rounds;
    println!("\n== cost of one container with docker's profile, mean of {rounds} rounds");
    let peers: Vec<(Peer, Bundle)> = peers::all()
        .into_iter()
        .map(|peer| {
            let bundle = CASES[0].bundle(&peer);
            (peer, bundle)
        })
        .collect();
    let mut cpu: BTreeMap<&str, f64> = BTreeMap::new();
    for round in 0..=rounds {
        for (peer, bundle) in &peers {
            let before = children_cpu();
            begin(peer, bundle);
            end(peer, bundle);
            if round > 0 {
                *cpu.entry(peer.name).or_default() += children_cpu() - before;
            }
        }
    }
    let names: Vec<&str> = peers.iter().map(|(peer, _)| peer.name).collect();
    let table = Table::new("", &names);
    let per_life = |name: &str| cpu.get(name).map(|sum| sum / rounds as f64);
    table.row("CPU ms, create to delete", &per_life);
    match place::program("time") {
        None => println!("without peak memory: GNU time is not installed"),
        Some(time) => {
            for verb in ["create", "exec"] {
                let peaks: BTreeMap<&str, f64> = peers
                    .iter()
                    .map(|(peer, bundle)| (peer.name, peak(peer, bundle, &time, verb)))
                    .collect();
                table.row(&format!("peak KiB, {verb}"), &|name| {
                    peaks.get(name).copied()
                });
            }
        }
    }
    table.row("binary, KiB", &|name| {
        let (peer, _) = peers.iter().find(|(peer, _)| peer.name == name)?;
        let size = fs::metadata(peer.scratch.runtime.program()).ok()?.len();
        Some(size as f64 / 1024.0)
    });
    for (peer, _) in &peers {
        peer.scratch.assert_nothing_left();
    }
}

fn begin(peer: &Peer, bundle: &Bundle) {
    let (id, path) = (bundle.id.as_str(), text(&bundle.path));
    let pid_file = text(&peer.scratch.path("cost.pid"));
    let create = ["create", "--bundle", &path, "--pid-file", &pid_file, id];
    peer.timed(peer.scratch.command(&create));
    peer.timed(peer.scratch.command(&["start", id]));
}

fn end(peer: &Peer, bundle: &Bundle) {
    let id = bundle.id.as_str();
    peer.timed(peer.scratch.command(&["kill", id, "KILL"]));
    let pid = fs::read_to_string(peer.scratch.path("cost.pid")).expect("pid file");
    peer.scratch.exit_of(pid.trim().parse().expect("a pid"));
    peer.timed(peer.scratch.command(&["delete", id]));
}

/// The most memory one process of a verb had resident, in KiB, as GNU time reports it.
fn peak(peer: &Peer, bundle: &Bundle, time: &Path, verb: &str) -> f64 {
    let (id, path) = (bundle.id.as_str(), text(&bundle.path));
    let pid_file = text(&peer.scratch.path("cost.pid"));
    let report = peer.scratch.path("peak");
    let measured = |words: &[&str]| {
        let call = peer.scratch.command(words);
        let mut command = Command::new(time);
        command.args(["--format", "%M", "--output"]).arg(&report);
        command.arg(call.get_program()).args(call.get_args());
        for (key, value) in call.get_envs() {
            command.env(key, value.unwrap_or_default());
        }
        peer.timed(command);
        let said = fs::read_to_string(&report).expect("report of time");
        said.trim().parse().expect("a number of KiB")
    };
    let peak = if verb == "create" {
        let peak = measured(&["create", "--bundle", &path, "--pid-file", &pid_file, id]);
        peer.timed(peer.scratch.command(&["start", id]));
        peak
    } else {
        begin(peer, bundle);
        measured(&["exec", id, "true"])
    };
    end(peer, bundle);
    peak
}
