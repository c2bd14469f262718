//! Somebody swaps paths while create runs: a thread exchanges folders inside a root file system or
//! a volume with symlinks that lead outside, as fast as it can, during many creates
//! (CVE-2021-30465, CVE-2024-45310, CVE-2025-31133, CVE-2025-52881 and their kin).
//!
//! A create may fail then. It may not reach outside, and it may not leave anything behind.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use holdfast_integration::bundle::Bundle;
use holdfast_integration::on_runtimes;
use holdfast_integration::scratch::{Scratch, text};
use nix::fcntl::{RenameFlags, renameat2};
use serde_json::json;

on_runtimes! {
    // runc 1.1.5 and crun 1.8.1 pass too; told, not asserted, as theirs may be changed by Debian.
    targets_in_a_shared_volume: holdfast;
    targets_in_the_root_itself: holdfast;
    the_null_device_of_the_image: holdfast;
    the_folder_of_procfs: holdfast;
}

/// How many creates an attack lasts.
const CREATES: usize = 60;

/// Exchanges two names until told to stop; how often it did is counted.
fn swap(stop: &AtomicBool, swaps: &AtomicUsize, one: &Path, other: &Path) {
    while !stop.load(Ordering::Relaxed) {
        let flags = RenameFlags::RENAME_EXCHANGE;
        // One of them may be missing for the moment in which a create makes it.
        if renameat2(None, one, None, other, flags).is_ok() {
            swaps.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Runs the container again and again while `one` and `other` are exchanged; returns the outputs
/// of those that ran. `outside` must stay empty.
fn under_attack(
    scratch: &Scratch,
    bundle: &Bundle,
    (one, other): (&Path, &Path),
    outside: &Path,
) -> Vec<String> {
    let stop = AtomicBool::new(false);
    let swaps = AtomicUsize::new(0);
    let mut outputs = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| swap(&stop, &swaps, one, other));
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..CREATES {
                let ran = scratch.run(bundle);
                if ran.status.success() {
                    outputs.push(ran.stdout);
                } else {
                    // Whoever is disturbed too often gives up, and says where.
                    assert!(!ran.stderr.trim().is_empty(), "{ran}");
                }
                let found: Vec<_> = fs::read_dir(outside).unwrap().collect();
                assert!(found.is_empty(), "reached outside: {found:?}");
            }
        }));
        stop.store(true, Ordering::Relaxed);
        outcome.unwrap();
    });
    let swaps = swaps.into_inner();
    println!("{} of {CREATES} ran, {swaps} swaps", outputs.len());
    assert!(swaps > CREATES, "nobody swapped much: {swaps}");
    outputs
}

fn outside(scratch: &Scratch) -> PathBuf {
    let folder = scratch.path("outside");
    fs::create_dir(&folder).unwrap();
    folder
}

fn bind(source: &Path, target: &str) -> serde_json::Value {
    json!({"destination": target, "type": "bind", "source": text(source), "options": ["bind"]})
}

/// The attack of CVE-2021-30465: a volume of two containers, one of which swaps a folder in it
/// while the other gets a mount there.
fn targets_in_a_shared_volume(scratch: &Scratch) {
    let outside = outside(scratch);
    let volume = scratch.path("volume");
    let source = scratch.path("source");
    fs::create_dir_all(volume.join("folder")).unwrap();
    fs::create_dir(&source).unwrap();
    symlink(&outside, volume.join("link")).unwrap();
    let bundle = scratch
        .bundle("box")
        .mount(bind(&volume, "/volume"))
        .mount(bind(&source, "/volume/folder/bound"))
        .mount(bind(&source, "/volume/folder/../folder/deep/bound"))
        .mount(
            json!({"destination": "/volume/folder/tmp", "type": "tmpfs", "source": "tmpfs",
                      "options": ["tmpcopyup"]}),
        )
        .args(&["true"]);
    let names = (&volume.join("folder"), &volume.join("link"));
    under_attack(scratch, &bundle, (names.0, names.1), &outside);
}

/// Everything that is made by path inside: targets, devices, the working directory.
fn targets_in_the_root_itself(scratch: &Scratch) {
    let outside = outside(scratch);
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "bound\n").unwrap();
    let bundle = scratch.bundle("box");
    let folder = bundle.in_rootfs("image");
    fs::create_dir(&folder).unwrap();
    let link = bundle.in_rootfs("link");
    symlink(&outside, &link).unwrap();
    let device = json!({"path": "/image/dev/null", "type": "c", "major": 1, "minor": 3});
    let bundle = bundle
        .mount(bind(&source.join("file"), "/image/etc/file"))
        .mount(bind(&source, "/image/deep/er/bound"))
        .with(|spec| {
            spec["linux"]["devices"] = json!([device]);
            spec["linux"]["readonlyPaths"] = json!(["/image", "/image/deep"]);
            spec["process"]["cwd"] = json!("/image/made/cwd");
            spec["root"]["readonly"] = json!(true);
        })
        .args(&["true"]);
    under_attack(scratch, &bundle, (&folder, &link), &outside);
}

/// What covers a masked path is the null device, always.
fn the_null_device_of_the_image(scratch: &Scratch) {
    let outside = outside(scratch);
    let bundle = scratch.bundle("box").with(|spec| {
        spec["mounts"]
            .as_array_mut()
            .unwrap()
            .retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    });
    let (one, other) = (bundle.in_rootfs("dev/null"), bundle.in_rootfs("dev/swap"));
    let _ = fs::remove_file(&one);
    symlink("/proc/sysrq-trigger", &one).unwrap();
    symlink("/etc/passwd", &other).unwrap();
    let bundle = bundle.args(&["stat", "-c", "%t,%T", "/proc/keys", "/proc/timer_list"]);
    let outputs = under_attack(scratch, &bundle, (&one, &other), &outside);
    assert!(!outputs.is_empty(), "none ran");
    for output in outputs {
        assert_eq!(output, "1,3\n1,3\n");
    }
}

/// procfs is on a real folder or not at all; what is masked in it is masked.
fn the_folder_of_procfs(scratch: &Scratch) {
    let outside = outside(scratch);
    let bundle = scratch.bundle("box");
    let (one, other) = (bundle.in_rootfs("proc"), bundle.in_rootfs("swap"));
    symlink(&outside, &other).unwrap();
    let bundle = bundle.script(
        "test -e /proc/self/stat || { echo no procfs >&2; exit 7; }; stat -c %t,%T /proc/keys; \
         echo x >/proc/sys/kernel/domainname && echo WRITABLE; true",
    );
    for output in under_attack(scratch, &bundle, (&one, &other), &outside) {
        // Swapped away while the container looked, there is nothing to see.
        assert!(
            output == "1,3\n" || output.is_empty(),
            "not covered: {output:?}"
        );
    }
}
