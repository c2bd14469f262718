//! The OCI runtimes that can be driven directly.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
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

    /// The newest of a peer that Debian has, unpacked into `tools/` by `make tools`.
    ///
    /// # Errors
    /// Why it cannot be used here.
    pub fn newest(kind: Kind) -> Result<Self, String> {
        let name = match kind {
            Kind::Holdfast => return Err("there is one of ours".to_owned()),
            Kind::Runc => "runc",
            Kind::Crun => "crun",
        };
        let program = place::repository().join("tools/peers/bin").join(name);
        if !program.exists() {
            return Err(format!(
                "{} is missing: see what `make tools` says",
                program.display()
            ));
        }
        let before = match kind {
            Kind::Crun if is_hybrid() => hidden_unified(),
            Kind::Holdfast | Kind::Runc | Kind::Crun => Vec::new(),
        };
        Ok(Self {
            kind,
            program,
            before,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The first line of what `--version` says, or why it says nothing.
    #[must_use]
    pub fn version(&self) -> String {
        match Command::new(&self.program).arg("--version").output() {
            Ok(said) => String::from_utf8_lossy(&said.stdout)
                .lines()
                .next()
                .unwrap_or_default()
                .to_owned(),
            Err(e) => format!("{}: {e}", self.program.display()),
        }
    }

    /// The same without the words that hide a hybrid cgroup mount from it: the caller sees to that
    /// with [`with_hidden_hybrid`].
    #[must_use]
    pub fn bare(mut self) -> Self {
        self.before.clear();
        self
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
    Path::new(UNIFIED).join("cgroup.controllers").exists()
}

const UNIFIED: &str = "/sys/fs/cgroup/unified";

fn hidden_unified() -> Vec<OsString> {
    let script = format!("mount -t tmpfs none {UNIFIED} && exec \"$@\"");
    [
        "unshare",
        "--mount",
        "--propagation",
        "slave",
        "sh",
        "-c",
        &script,
        "sh",
    ]
    .map(OsString::from)
    .into()
}

/// Does something in a thread of its own, in a mount namespace where a hybrid cgroup mount is
/// hidden; programs started there inherit it, at no cost to them.
///
/// # Panics
/// When the namespace cannot be made, or `work` panics.
pub fn with_hidden_hybrid<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    if !is_hybrid() {
        return work();
    }
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // One thread only: a mount namespace needs a working directory of its own.
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).expect("mount namespace");
            let slave = MsFlags::MS_SLAVE | MsFlags::MS_REC;
            mount(None::<&str>, "/", None::<&str>, slave, None::<&str>).expect("slave");
            mount(
                Some("none"),
                UNIFIED,
                Some("tmpfs"),
                MsFlags::empty(),
                None::<&str>,
            )
            .expect("hide the hybrid mount");
            work()
        });
        thread.join().expect("work in a mount namespace")
    })
}
