//! Many containers at once: whole lives per second, from create to delete.

use std::collections::BTreeMap;
use std::thread;
use std::time::Instant;

use super::Settings;
use super::peers::{self, Peer};
use super::series::Table;
use crate::bundle::Bundle;
use crate::scratch::text;

/// How many at once.
const WIDTHS: [usize; 3] = [1, 8, 32];
/// Lives per width and round, shared out among those at work.
const LIVES: usize = 32;

/// Measures and prints.
pub(super) fn run(settings: &Settings) {
    let rounds = settings.rounds.div_ceil(10);
    println!(
        "\n== `run` of true with docker's profile, in parallel: {LIVES} lives, best of {rounds} rounds"
    );
    let peers = peers::all();
    let names = peers::names(&peers);
    let bundles: BTreeMap<&str, Vec<Bundle>> = peers
        .iter()
        .map(|peer| (peer.name, bundles(peer)))
        .collect();
    let table = Table::new("lives per second", &names);
    for width in WIDTHS {
        let mut best: BTreeMap<&str, f64> = BTreeMap::new();
        for _ in 0..rounds {
            for peer in &peers {
                let rate = rate(peer, &bundles[peer.name], width);
                let known = best.entry(peer.name).or_insert(rate);
                *known = known.max(rate);
            }
        }
        table.row(&format!("{width} at once"), &|name| best.get(name).copied());
    }
    for peer in &peers {
        peer.scratch.assert_nothing_left();
    }
}

/// One bundle for each of the most that work at once.
fn bundles(peer: &Peer) -> Vec<Bundle> {
    (0..LIVES)
        .map(|number| {
            let bundle = peer.scratch.bundle(&format!("parallel-{number}"));
            let bundle = bundle.docker_seccomp().args(&["true"]);
            bundle.write();
            bundle
        })
        .collect()
}

/// `LIVES` containers, each run to its end by one of `width` workers.
fn rate(peer: &Peer, bundles: &[Bundle], width: usize) -> f64 {
    let took = peer.inside(|| {
        let began = Instant::now();
        thread::scope(|scope| {
            for share in bundles.chunks(LIVES / width) {
                scope.spawn(move || {
                    for bundle in share {
                        let path = text(&bundle.path);
                        let words = ["run", "--bundle", &path, &bundle.id];
                        peers::timed(peer.scratch.command(&words));
                    }
                });
            }
        });
        began.elapsed()
    });
    let lives = LIVES as f64;
    lives / took.as_secs_f64()
}
