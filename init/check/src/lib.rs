//! `holdfast check`: the node before it bites.
//!
//! [`examine`] reads `/proc`, `/sys`, `/etc` and `/run` below a root that a test can put in the place of `/`, changes
//! nothing, and makes [`Finding`]s: what is so, why it matters, what to do. It works on nodes that have never seen
//! Holdfast: that is when one runs it first.
//!
//! | module | what it looks at |
//! |---|---|
//! | `kernel` | version and features, and what is lost without each |
//! | `cgroups` | the hierarchy, and whether kubelet, containerd and systemd agree on the driver |
//! | `engine` | containerd: whether it runs, its version, its configuration, the drop-in |
//! | `mounts` | daemons in mount namespaces of their own, container mounts that live on elsewhere |
//! | `pipes` | `fs.pipe-user-pages-soft`, and who is near it |
//! | `records` | journald, tracefs, the ledger's space and state |
//! | `shims` | sockets without a listener, shims without a bundle or a containerd |
//! | `stuck` | processes of containers in state D, or frozen |
//!
//! Nothing here waits for a process that hangs: a command line is read of daemons and shims alone, everything else comes
//! from files that take no lock of the process.

mod cgroups;
mod engine;
mod kernel;
mod mountinfo;
mod mounts;
mod pipes;
mod proc;
mod records;
mod report;
mod shims;
mod stuck;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use report::{Finding, Level, Report};

use proc::Proc;

/// What is looked at.
#[derive(Clone, Debug)]
pub struct Node {
    root: PathBuf,
    ledger: PathBuf,
    witness: holdfast_record::witness::Witness,
    journald: holdfast_record::logging::Places,
    /// How long a process must stay in state D to count as stuck.
    patience: Duration,
}

impl Node {
    /// This node, with the ledger, tracefs and journald that the environment names.
    #[must_use]
    pub fn this() -> Self {
        Self {
            root: PathBuf::from("/"),
            ledger: holdfast_record::ledger::Ledger::from_env().dir().to_owned(),
            witness: holdfast_record::witness::Witness::from_env(),
            journald: holdfast_record::logging::Places::default(),
            patience: Duration::from_millis(500),
        }
    }

    /// A tree of files that looks like a node.
    #[must_use]
    pub fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            ledger: root.join("var/lib/holdfast/ledger"),
            witness: holdfast_record::witness::Witness::new(
                Some(root.join("sys/kernel/tracing")),
                "holdfast",
                root.join("dev/kmsg"),
            ),
            journald: holdfast_record::logging::Places {
                stream: root.join("run/systemd/journal/stdout"),
                datagram: root.join("run/systemd/journal/socket"),
                ..holdfast_record::logging::Places::default()
            },
            patience: Duration::ZERO,
        }
    }

    /// `path`, which begins with a slash, below the root.
    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// A file's text; none when it cannot be read.
    fn read(&self, path: &str) -> Option<String> {
        let bytes = std::fs::read(self.path(path)).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn proc(&self) -> Proc {
        Proc::new(self.path("/proc"))
    }
}

/// Looks at everything.
#[must_use]
pub fn examine(node: &Node) -> Report {
    let mut report = Report::default();
    let processes = node.proc().all();
    kernel::look(node, &mut report);
    cgroups::look(node, &processes, &mut report);
    engine::look(node, &processes, &mut report);
    mounts::look(node, &processes, &mut report);
    pipes::look(node, &processes, &mut report);
    records::look(node, &mut report);
    shims::look(node, &processes, &mut report);
    stuck::look(node, &processes, &mut report);
    report
}

#[cfg(test)]
mod tests;
