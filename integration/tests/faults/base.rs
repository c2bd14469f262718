//! A shim that fails where it is told to, and what must be true of it afterwards.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use holdfast_integration::containerd::{Containerd, peer};
use holdfast_integration::deadline;
use holdfast_integration::leaks::is_alive;
use holdfast_integration::shim::Shim;
use holdfast_integration::{place, skip};

/// Images that live shorter are a loop, which is another matter. Slept from when an image answers to its next fault, and
/// taken by the shim from that image's beginning: load makes it longer, and never shorter.
pub(crate) const SPACING: Duration = Duration::from_millis(600);
/// Into which pod all of them go.
pub(crate) const POD: [&str; 2] = ["--annotation", "io.containerd.runc.v2.group=base"];

/// Whether the shim under test can be made to fail; says so if not.
pub(crate) fn can_fail(test: &str) -> bool {
    let shim = (!peer()).then(|| place::built("containerd-shim-holdfast-v2"));
    let can = shim.is_some_and(|shim| {
        let said = deadline::run(Command::new(shim).arg("-v"), Duration::from_secs(10));
        said.stdout.contains("Fault points")
    });
    if !can {
        skip(
            test,
            "this shim has no fault points: see `make test-faults`",
        );
    }
    can
}

/// A container whose bundle is the shim's working directory, where the faults are ordered.
pub(crate) struct Base<'a> {
    pub(crate) containerd: &'a Containerd,
    pub(crate) pid: i32,
    pub(crate) shim: i32,
}

impl<'a> Base<'a> {
    pub(crate) fn start(containerd: &'a Containerd) -> Self {
        let pid = containerd.start_task("base", &POD, &["sleep", "600"]);
        let shim = Shim::of(containerd, "base").pid("base");
        Self {
            containerd,
            pid,
            shim,
        }
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.containerd.bundle("base").join("fault")
    }

    pub(crate) fn order(&self, place: &str, how: &str) {
        std::fs::write(self.file(), format!("{place} {how}")).unwrap();
    }

    /// The one ordered has happened.
    #[track_caller]
    pub(crate) fn happened(&self) {
        assert!(
            !self.file().exists(),
            "{:?}",
            std::fs::read_to_string(self.file())
        );
    }

    #[track_caller]
    pub(crate) fn is_well(&self) {
        assert!(is_alive(self.pid) && is_alive(self.shim));
        let shim = Shim::of(self.containerd, "base");
        assert_eq!(shim.pid("base"), self.shim);
        assert_eq!(shim.state("base", "").unwrap().pid.cast_signed(), self.pid);
    }

    pub(crate) fn end(self) {
        let _ = std::fs::remove_file(self.file());
        self.containerd.end_task("base");
    }

    pub(crate) fn ledger(&self) -> String {
        let mut all = String::new();
        for entry in std::fs::read_dir(self.containerd.path("ledger"))
            .unwrap()
            .flatten()
        {
            all += &String::from_utf8_lossy(&std::fs::read(entry.path()).unwrap_or_default());
        }
        all
    }
}
