//! The Debian package: what is in it, and that it is not taken away under containers.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use holdfast_integration::containerd::{self, Containerd, Version};
use holdfast_integration::deadline::{self, Finished};
use holdfast_integration::scratch::text;
use holdfast_integration::{place, skip};

const LIMIT: Duration = Duration::from_secs(60);
const SHIM: &str = "usr/bin/containerd-shim-holdfast-v2";

const TEST: &str = "a_package_is_whole_and_stays_while_it_is_needed";

/// dpkg asks no version of containerd for anything.
#[test]
fn a_package_is_whole_and_stays_while_it_is_needed() {
    containerd::with(Version::V1_6, TEST, whole_and_kept);
}

/// A file system with nothing but dpkg's own records.
struct Node {
    root: PathBuf,
}

impl Node {
    fn new(root: PathBuf) -> Self {
        for folder in ["info", "updates", "triggers"] {
            std::fs::create_dir_all(root.join("var/lib/dpkg").join(folder)).unwrap();
        }
        std::fs::write(root.join("var/lib/dpkg/status"), "").unwrap();
        Self { root }
    }

    /// dpkg, with the scripts of packages run out here on the file system in there.
    fn dpkg(&self, words: &[&str]) -> Finished {
        let mut command = Command::new("dpkg");
        command
            .arg(format!("--root={}", text(&self.root)))
            .arg("--force-script-chrootless")
            .args(words)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env_remove("HOLDFAST_REMOVE_ANYWAY");
        deadline::run(&mut command, LIMIT)
    }

    fn has(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }
}

fn package(folder: &Path) -> PathBuf {
    let script = place::repository().join("packaging/deb/build.sh");
    let built = deadline::run(
        Command::new(script).arg(place::built_dir()).arg(folder),
        LIMIT,
    );
    PathBuf::from(built.ok().trim())
}

/// The shims of this node, but not those of `containerd`.
fn shims_of_others(containerd: &Containerd) -> usize {
    let listed = deadline::run(
        Command::new(place::built("holdfast")).args(["shims", "--json"]),
        LIMIT,
    );
    let listed: serde_json::Value = serde_json::from_str(listed.ok()).unwrap();
    let all = listed.as_array().unwrap().iter();
    all.filter(|shim| shim["namespace"] != containerd.namespace.as_str())
        .count()
}

fn whole_and_kept(containerd: &Containerd) {
    if containerd::not_ours(TEST, "the package is ours") {
        return;
    }
    if place::program("dpkg-deb").is_none() {
        return skip(TEST, "there is no dpkg-deb");
    }
    let file = package(&containerd.path("first"));
    let again = package(&containerd.path("again"));
    assert_eq!(
        std::fs::read(&file).unwrap(),
        std::fs::read(again).unwrap(),
        "the same binaries give the same package"
    );

    let node = Node::new(containerd.path("node"));
    let installed = node.dpkg(&["-i", &text(&file)]);
    assert!(!installed.ok().contains("upgrade"), "{installed}");
    let version = Command::new(node.root.join("usr/bin/holdfast"))
        .arg("--version")
        .output()
        .unwrap();
    let said = String::from_utf8(version.stdout).unwrap();
    assert!(said.starts_with("holdfast version 0."), "{said}");
    for path in [
        SHIM,
        "usr/share/man/man7/holdfast-reasons.7.gz",
        "usr/share/man/man8/holdfast.8.gz",
        "usr/share/doc/holdfast/canary.md",
        "usr/share/doc/holdfast/copyright",
        "usr/share/doc/holdfast/changelog.gz",
    ] {
        assert!(node.has(path), "{path}");
    }
    let newer = node.dpkg(&["-i", &text(&file)]);
    assert!(newer.ok().contains("holdfast upgrade --all"), "{newer}");

    containerd.start_task("box", &[], &["sleep", "600"]);
    let refused = node.dpkg(&["-r", "holdfast"]);
    let why = refused.failed();
    assert!(why.contains("still have containers"), "{refused}");
    assert!(why.contains(&containerd.namespace), "{refused}");
    assert!(node.has(SHIM));
    containerd.end_task("box");

    let ledger = "var/lib/holdfast/ledger";
    std::fs::create_dir_all(node.root.join(ledger)).unwrap();
    if shims_of_others(containerd) > 0 {
        return skip(TEST, "the removal: other shims run on this machine");
    }
    node.dpkg(&["-r", "holdfast"]).ok();
    assert!(!node.has(SHIM) && node.has(ledger));
    node.dpkg(&["-P", "holdfast"]).ok();
    assert!(!node.has(ledger));
}
