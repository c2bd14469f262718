//! A read-only `/dev`: devices and links are made, then nobody adds to them.

use holdfast_integration::bundle::Bundle;
use holdfast_integration::on_runtimes;
use holdfast_integration::scratch::Scratch;
use serde_json::json;

on_runtimes! {
    a_read_only_dev_has_its_devices: holdfast runc crun;
    what_is_mounted_below_a_read_only_dev_keeps_its_own_options: holdfast runc crun;
    a_read_only_dev_below_a_read_only_root: holdfast runc crun;
    a_recursively_read_only_dev: holdfast;
    a_writable_dev_stays_writable: holdfast runc crun;
    // runc 1.1 and crun 1.8 take what they find.
    what_only_has_a_device_s_name_is_replaced: holdfast;
    what_is_mounted_on_a_device_stays: holdfast runc crun;
    a_directory_in_place_of_a_device: holdfast;
}

fn with_dev(bundle: Bundle, word: &str) -> Bundle {
    bundle.with(|spec| {
        for mount in spec["mounts"].as_array_mut().unwrap() {
            if mount["destination"] == "/dev" {
                mount["options"].as_array_mut().unwrap().push(json!(word));
            }
        }
    })
}

const LOOK: &str = "test -c /dev/null && test -L /dev/stdin && test -c /dev/ptmx && echo devices; \
                    echo gone >/dev/null && echo written; touch /dev/made && echo made; \
                    touch /dev/shm/made && echo shared";

#[track_caller]
fn assert_read_only(scratch: &Scratch, bundle: Bundle) {
    let ran = scratch.run(&bundle.script(LOOK));
    assert_eq!(ran.ok(), "devices\nwritten\nshared\n");
    assert!(ran.stderr.contains("Read-only file system"), "{ran}");
}

fn a_read_only_dev_has_its_devices(scratch: &Scratch) {
    assert_read_only(scratch, with_dev(scratch.bundle("box"), "ro"));
}

fn what_is_mounted_below_a_read_only_dev_keeps_its_own_options(scratch: &Scratch) {
    let bundle = with_dev(scratch.bundle("box"), "ro").mount(json!({
        "destination": "/dev/made/later", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"],
    }));
    let ran =
        scratch.run(&bundle.script("touch /dev/made/later/x && echo fine; touch /dev/made/x"));
    assert_eq!(ran.stdout, "fine\n", "{ran}");
    assert!(ran.stderr.contains("Read-only file system"), "{ran}");
}

fn a_read_only_dev_below_a_read_only_root(scratch: &Scratch) {
    let bundle = with_dev(scratch.bundle("box"), "ro");
    assert_read_only(
        scratch,
        bundle.with(|spec| spec["root"]["readonly"] = true.into()),
    );
}

fn a_recursively_read_only_dev(scratch: &Scratch) {
    // At the time of the mount nothing is below it: as read-only as `ro`.
    assert_read_only(scratch, with_dev(scratch.bundle("box"), "rro"));
}

fn a_writable_dev_stays_writable(scratch: &Scratch) {
    let ran = scratch.run(&with_dev(scratch.bundle("box"), "rw").script(LOOK));
    assert_eq!(ran.ok(), "devices\nwritten\nmade\nshared\n");
}

/// A container that has its `/dev` from the image.
fn with_the_image_s_dev(scratch: &Scratch) -> Bundle {
    let bundle = scratch.bundle("box").with(|spec| {
        spec["mounts"]
            .as_array_mut()
            .unwrap()
            .retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
        spec["linux"]["devices"] = json!([
            {"path": "/dev/extra", "type": "c", "major": 10, "minor": 229, "fileMode": 0o666},
        ]);
    });
    std::fs::create_dir_all(bundle.in_rootfs("dev")).unwrap();
    bundle
}

/// A device with the numbers of another, a file, a symlink out of `/dev`: none of it is what the specification names.
fn what_only_has_a_device_s_name_is_replaced(scratch: &Scratch) {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    let bundle = with_the_image_s_dev(scratch);
    let node = |name: &str, kind, major, minor| {
        let path = bundle.in_rootfs(&format!("dev/{name}"));
        mknod(
            &path,
            kind,
            Mode::from_bits_truncate(0o666),
            makedev(major, minor),
        )
        .unwrap();
    };
    // The random numbers of this container would all be zero.
    node("urandom", SFlag::S_IFCHR, 1, 5);
    node("zero", SFlag::S_IFBLK, 1, 5);
    node("full", SFlag::S_IFCHR, 1, 7);
    std::fs::write(bundle.in_rootfs("dev/null"), "collected").unwrap();
    std::fs::write(bundle.in_rootfs("victim"), "untouched").unwrap();
    std::os::unix::fs::symlink("/victim", bundle.in_rootfs("dev/random")).unwrap();
    std::fs::write(bundle.in_rootfs("dev/extra"), "").unwrap();
    let look = "cd /dev; for n in null zero full random urandom extra; do \
                test -c $n && stat -c %n:%t,%T $n; done; cat /victim";
    let ran = scratch.run(&bundle.script(look));
    assert_eq!(
        ran.ok(),
        "null:1,3\nzero:1,5\nfull:1,7\nrandom:1,8\nurandom:1,9\nextra:a,e5\nuntouched"
    );
}

/// People do this where random numbers are scarce.
fn what_is_mounted_on_a_device_stays(scratch: &Scratch) {
    let bundle = scratch.bundle("box").mount(json!({
        "destination": "/dev/random", "type": "bind", "source": "/dev/urandom", "options": ["bind"],
    }));
    let ran = scratch.run(&bundle.script("stat -c %t,%T /dev/random"));
    assert_eq!(ran.ok(), "1,9\n");
}

fn a_directory_in_place_of_a_device(scratch: &Scratch) {
    let bundle = with_the_image_s_dev(scratch);
    std::fs::create_dir(bundle.in_rootfs("dev/null")).unwrap();
    let ran = scratch.run(&bundle.script("true"));
    let said = ran.failed();
    assert!(
        said.contains("/dev/null") && said.contains("not that device"),
        "{ran}"
    );
}
