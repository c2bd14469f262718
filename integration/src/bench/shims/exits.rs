//! From the death of an init process to the subscriber who hears of it.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use super::super::Settings;
use super::super::series::{Series, Table};
use super::{Side, of};
use crate::containerd::Containerd;
use crate::shim::empty_options;

const LIMIT: Duration = Duration::from_secs(30);

pub(super) fn run(
    table: &Table<'_>,
    settings: &Settings,
    containerd: &mut Containerd,
    sides: &[Side],
) {
    let mut client = containerd.ctr_command(&["events"]);
    let mut client = client
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("start ctr events");
    let lines = arrivals(client.stdout.take().expect("piped"));
    let mut series: Vec<(&str, Series)> = sides
        .iter()
        .map(|side| (side.name, Series::default()))
        .collect();
    await_subscription(containerd, &lines);
    for round in 0..=settings.rounds {
        for (index, side) in sides.iter().enumerate() {
            let id = format!("exit-{}-{round}", side.name);
            let bundle = side.shim.bundle_by_hand(containerd, &id);
            bundle.write();
            side.shim.create(&bundle, empty_options()).expect("Create");
            side.shim.start(&id, "").expect("Start");
            let began = Instant::now();
            side.shim.kill(&id, "", 9).expect("Kill");
            let heard = loop {
                let (at, line) = lines.recv_timeout(LIMIT).expect("the exit is told");
                if line.contains("/tasks/exit") && line.contains(&id) {
                    break at;
                }
            };
            side.shim.delete(&id, "").expect("Delete");
            if round > 0 {
                series[index].1.push(heard.duration_since(began));
            }
        }
    }
    let _ = client.kill();
    let _ = client.wait();
    table.row("kill to TaskExit heard, ms", &|name| {
        of(&series, name, Series::median)
    });
}

/// Every line with the time it came; ends with the client.
fn arrivals(from: impl std::io::Read + Send + 'static) -> Receiver<(Instant, String)> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if sender.send((Instant::now(), line)).is_err() {
                return;
            }
        }
    });
    lines
}

/// A subscription has no answer: something is changed until it is heard of.
fn await_subscription(containerd: &Containerd, lines: &Receiver<(Instant, String)>) {
    for round in 0..200 {
        let label = format!("bench={round}");
        containerd.ctr_ok(&["namespaces", "label", &containerd.namespace, &label]);
        if lines.recv_timeout(Duration::from_millis(100)).is_ok() {
            return;
        }
    }
    panic!("ctr events hears nothing");
}
