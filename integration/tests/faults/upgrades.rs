//! An upgrade that comes back.

use std::process::Command;
use std::time::Duration;

use holdfast_integration::containerd::Containerd;
use holdfast_integration::deadline::{self, eventually};
use holdfast_integration::place;

use crate::base::{Base, POD, can_fail};

/// A program that says it could go on, is executed, and cannot: the one before it goes on, and says so.
pub(crate) fn an_upgrade_that_cannot_go_on_comes_back(containerd: &Containerd) {
    if !can_fail("an_upgrade_that_cannot_go_on_comes_back") {
        return;
    }
    let base = Base::start(containerd);
    let mut client = containerd.spawn_run(
        "box",
        &[&POD[..], &["--rm"]].concat(),
        &[
            "sh",
            "-c",
            "echo ready; until test -e /tmp/now; do usleep 10000; done; exit 42",
        ],
        None,
    );
    eventually("the container runs", Duration::from_secs(30), || {
        client.output().contains("ready").then_some(())
    });
    let folder = containerd.path("newer");
    std::fs::create_dir(&folder).unwrap();
    let newer = folder.join("containerd-shim-holdfast-v2");
    std::fs::copy(place::built("containerd-shim-holdfast-v2"), &newer).unwrap();
    let program = || std::fs::read_link(format!("/proc/{}/exe", base.shim)).unwrap();
    let before = program();
    let upgrade = || {
        let mut command = Command::new(place::built("holdfast"));
        command.args(["upgrade", "--program"]).arg(&newer);
        command.arg(base.shim.to_string());
        deadline::run(&mut command, Duration::from_secs(60))
    };
    // Twice: the one that came back is as good as the one that left.
    for _ in 0..2 {
        base.order("resume/slate", "refuse");
        let said = upgrade();
        assert!(
            said.failed().contains("could not go on from the state")
                && said.stderr.contains("gave it back"),
            "{said}"
        );
        base.happened();
        assert_eq!(program(), before);
        base.is_well();
    }
    // And one that can go on does.
    assert!(upgrade().ok().contains("2 containers go on"));
    assert_eq!(program(), newer);
    base.is_well();
    let touched = containerd.exec("box", "x", &[], &["touch", "/tmp/now"]);
    assert_eq!(touched.code(), 0, "{touched}");
    assert_eq!(client.code(), 42);
    base.end();
}
