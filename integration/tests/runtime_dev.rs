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
