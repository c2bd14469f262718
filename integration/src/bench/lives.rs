//! One container from create to delete, every verb timed, in the shapes containers have.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use serde_json::json;

use super::Settings;
use super::peers::{self, Peer};
use super::series::{Series, Table};
use crate::bundle::Bundle;
use crate::scratch::text;

/// A shape of container.
pub(super) struct Case {
    pub(super) what: &'static str,
    key: &'static str,
    shape: fn(Bundle) -> Bundle,
}

impl Case {
    pub(super) fn bundle(&self, peer: &Peer) -> Bundle {
        let bundle = (self.shape)(peer.scratch.bundle(self.key)).args(&["sleep", "6000"]);
        bundle.write();
        bundle
    }
}

/// All shapes; the first is the one the bars are about.
pub(super) const CASES: &[Case] = &[
    Case {
        what: "docker's seccomp profile",
        key: "docker",
        shape: Bundle::docker_seccomp,
    },
    Case {
        what: "no seccomp profile",
        key: "plain",
        shape: |bundle| bundle,
    },
    Case {
        what: "docker's profile, a new user namespace",
        key: "userns",
        shape: |bundle| bundle.docker_seccomp().user_namespace(100_000),
    },
    Case {
        what: "docker's profile, 30 more mounts",
        key: "mounts",
        shape: |bundle| thirty_mounts(bundle.docker_seccomp()),
    },
];

fn thirty_mounts(bundle: Bundle) -> Bundle {
    (0..30).fold(bundle, |bundle, number| {
        let source = bundle.path.join(format!("volume-{number}"));
        fs::create_dir_all(&source).expect("volume");
        let options = if number % 2 == 0 {
            json!(["rbind", "rprivate"])
        } else {
            json!(["rbind", "ro"])
        };
        bundle.mount(json!({
            "destination": format!("/volumes/{number}"),
            "type": "bind",
            "source": text(&source),
            "options": options,
        }))
    })
}

const VERBS: [&str; 6] = ["create", "start", "state", "exec", "kill", "delete"];

/// Measures and prints.
pub(super) fn run(settings: &Settings) {
    let peers = peers::all();
    for case in CASES {
        println!(
            "\n== one container: {}; {} rounds, alternating",
            case.what, settings.rounds
        );
        let bundles: BTreeMap<_, _> = peers
            .iter()
            .map(|peer| (peer.name, case.bundle(peer)))
            .collect();
        let mut series: BTreeMap<(&str, &str), Series> = BTreeMap::new();
        // The first round warms caches and is not counted.
        for round in 0..=settings.rounds {
            for peer in &peers {
                let took = life(peer, &bundles[peer.name]);
                if round == 0 {
                    continue;
                }
                let mut add = |step, time| {
                    series.entry((step, peer.name)).or_default().push(time);
                };
                for (verb, time) in VERBS.into_iter().zip(took) {
                    add(verb, time);
                }
                add("create+start", took[0] + took[1]);
            }
        }
        let names = peers::names(&peers);
        let table = Table::new("median ms", &names);
        for step in VERBS.into_iter().chain(["create+start"]) {
            table.row(step, &|name| series.get(&(step, name)).map(Series::median));
        }
    }
    for peer in &peers {
        peer.scratch.assert_nothing_left();
    }
}

/// The time of each of [`VERBS`].
fn life(peer: &Peer, bundle: &Bundle) -> [Duration; 6] {
    let scratch = &peer.scratch;
    let pid_file = scratch.path("bench.pid");
    let path = text(&bundle.path);
    let id = bundle.id.as_str();
    let call = |words: &[&str]| peer.timed(scratch.command(words));
    let create = call(&[
        "create",
        "--bundle",
        &path,
        "--pid-file",
        &text(&pid_file),
        id,
    ]);
    let start = call(&["start", id]);
    let state = call(&["state", id]);
    let exec = call(&["exec", id, "true"]);
    let kill = call(&["kill", id, "KILL"]);
    let pid = fs::read_to_string(&pid_file).expect("pid file");
    assert_eq!(scratch.exit_of(pid.trim().parse().expect("a pid")), 137);
    let delete = call(&["delete", id]);
    [create, start, state, exec, kill, delete]
}

/// Runtimes may keep filters they have compiled: here every root is new, so none can.
pub(super) fn run_first(settings: &Settings) {
    println!(
        "\n== the first create in a new runtime root, with docker's profile: {} rounds",
        settings.rounds
    );
    let peers = peers::all();
    let mut series: BTreeMap<&str, Series> = BTreeMap::new();
    let bundles: BTreeMap<_, _> = peers
        .iter()
        .map(|peer| (peer.name, CASES[0].bundle(peer)))
        .collect();
    for round in 0..=settings.rounds {
        for peer in &peers {
            let bundle = &bundles[peer.name];
            let scratch = &peer.scratch;
            let root = scratch.path(&format!("root-{round}"));
            let path = text(&bundle.path);
            let words = ["create", "--bundle", &path, &bundle.id];
            let took = peer.timed(scratch.command_at(&root, &words));
            peer.timed(scratch.command_at(&root, &["delete", "--force", &bundle.id]));
            if round > 0 {
                series.entry(peer.name).or_default().push(took);
            }
        }
    }
    let names = peers::names(&peers);
    Table::new("median ms", &names)
        .row("first create", &|name| series.get(name).map(Series::median));
}
