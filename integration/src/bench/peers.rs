//! Whom we are measured against: Debian's runc and crun, and the newest of both.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};

use crate::runtime::{Kind, Runtime, with_hidden_hybrid};
use crate::scratch::Scratch;

/// One runtime with a place of its own.
#[derive(Debug)]
pub(super) struct Peer {
    /// The column's head.
    pub(super) name: &'static str,
    pub(super) scratch: Scratch,
}

/// Ours and all peers that can be had; who is missing is said.
pub(super) fn all() -> Vec<Peer> {
    let found = [
        ("holdfast", Runtime::find(Kind::Holdfast)),
        ("crun", Runtime::find(Kind::Crun)),
        ("runc", Runtime::find(Kind::Runc)),
        ("crun-new", Runtime::newest(Kind::Crun)),
        ("runc-new", Runtime::newest(Kind::Runc)),
    ];
    let mut peers = Vec::new();
    for (name, runtime) in found {
        match runtime {
            Ok(runtime) => {
                if name != "holdfast" {
                    println!("{name}: {}", runtime.version());
                }
                peers.push(Peer {
                    name,
                    scratch: Scratch::new(runtime.bare()),
                });
            }
            Err(why) => println!("without {name}: {why}"),
        }
    }
    peers
}

pub(super) fn names(peers: &[Peer]) -> Vec<&'static str> {
    peers.iter().map(|peer| peer.name).collect()
}

impl Peer {
    /// crun refuses a hybrid cgroup mount and is started where that is hidden. The others are not:
    /// they do without, and see the machine as it is.
    pub(super) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match self.scratch.runtime.kind {
            Kind::Crun => with_hidden_hybrid(work),
            Kind::Holdfast | Kind::Runc => work(),
        }
    }

    /// Runs a command that must succeed, and says how long it took.
    pub(super) fn timed(&self, command: Command) -> Duration {
        self.inside(|| timed(command))
    }
}

/// The same for a caller that is [`Peer::inside`] already.
pub(super) fn timed(mut command: Command) -> Duration {
    quiet(&mut command);
    let started = Instant::now();
    let status = command.status().expect("start");
    let took = started.elapsed();
    assert!(status.success(), "{command:?}: {status}");
    took
}

/// Without streams that a container could keep open. Errors are for whoever runs this.
pub(super) fn quiet(command: &mut Command) {
    command.stdin(Stdio::null()).stdout(Stdio::null());
}

/// Starts a command with [`quiet`] streams.
pub(super) fn spawn(mut command: Command) -> Child {
    quiet(&mut command);
    command.spawn().expect("start")
}

/// Processor time of everything this process has waited for so far, in milliseconds: user and
/// kernel.
pub(super) fn children_cpu() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("getrusage");
    let millis = |time: nix::sys::time::TimeVal| {
        let parts = (time.tv_sec() as f64, time.tv_usec() as f64);
        parts.0 * 1000.0 + parts.1 / 1000.0
    };
    millis(usage.user_time()) + millis(usage.system_time())
}

/// Page faults, of those without a disk, of everything this process has waited for so far.
pub(super) fn children_faults() -> i64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("getrusage");
    usage.minor_page_faults()
}
