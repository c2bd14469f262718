//! The OCI runtimes that can be driven directly.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use crate::place;

/// Which runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Ours.
    Holdfast,
    /// The reference.
    Runc,
    /// The fast peer.
    Crun,
}

impl Kind {
    /// By the name the tests use.
    ///
    /// # Panics
    /// For a name that no test uses.
    #[must_use]
    pub fn named(name: &str) -> Self {
        match name {
            "holdfast" => Self::Holdfast,
            "runc" => Self::Runc,
            "crun" => Self::Crun,
            other => panic!("no runtime is called {other}"),
        }
    }
}

/// A runtime that is there.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// Which one.
    pub kind: Kind,
    program: PathBuf,
    before: Vec<OsString>,
}

impl Runtime {
    /// Finds it.
    ///
    /// # Errors
    /// Why it cannot be used here. Ours being missing is no such reason but a failure.
    ///
    /// # Panics
    /// When ours was not built.
    pub fn find(kind: Kind) -> Result<Self, String> {
        let peer = |name: &str| place::program(name).ok_or(format!("{name} is not installed"));
        let (program, before) = match kind {
            Kind::Holdfast => (place::built("holdfast"), Vec::new()),
            Kind::Runc => (peer("runc")?, Vec::new()),
            // crun refuses a hybrid cgroup mount, so it gets a mount namespace that hides it.
            Kind::Crun if is_hybrid() => (peer("crun")?, hidden_unified()),
            Kind::Crun => (peer("crun")?, Vec::new()),
        };
        Ok(Self {
            kind,
            program,
            before,
        })
    }

    /// A command line of it, without arguments yet.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut words = self
            .before
            .iter()
            .cloned()
            .chain([self.program.clone().into_os_string()]);
        let mut command = Command::new(words.next().expect("a program"));
        command.args(words);
        command
    }

    /// The words before the runtime's own arguments, for programs that start it themselves.
    #[must_use]
    pub fn words(&self) -> Vec<OsString> {
        self.before
            .iter()
            .cloned()
            .chain([self.program.clone().into_os_string()])
            .collect()
    }
}

fn is_hybrid() -> bool {
    std::path::Path::new("/sys/fs/cgroup/unified/cgroup.controllers").exists()
}

fn hidden_unified() -> Vec<OsString> {
    let script = "mount -t tmpfs none /sys/fs/cgroup/unified && exec \"$@\"";
    [
        "unshare",
        "--mount",
        "--propagation",
        "slave",
        "sh",
        "-c",
        script,
        "sh",
    ]
    .map(OsString::from)
    .into()
}
