//! `linux.intelRdt` on a machine without resctrl: a clear word, and nothing left. What happens
//! with it is tested where it can be faked, beside the code.

use std::fs;

use holdfast_integration::scratch::Scratch;
use holdfast_integration::{on_runtimes, skip};
use serde_json::json;

on_runtimes! {
    without_resctrl_create_says_what_is_missing: holdfast;
    a_class_of_service_outside_of_resctrl_is_refused: holdfast;
}

fn without_resctrl_create_says_what_is_missing(scratch: &Scratch) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    if mounts.contains(" - resctrl ") {
        return skip("intelRdt", "this machine has a resctrl file system");
    }
    let bundle = scratch
        .bundle("box")
        .with(|spec| spec["linux"]["intelRdt"] = json!({"l3CacheSchema": "L3:0=f"}));
    let ran = scratch.run(&bundle);
    assert_ne!(ran.code(), 0, "{ran}");
    assert!(ran.stderr.contains("mount -t resctrl"), "{ran}");
    assert_ne!(scratch.call(&["state", "box"]).code(), 0);
}

fn a_class_of_service_outside_of_resctrl_is_refused(scratch: &Scratch) {
    for (name, class) in [("up", ".."), ("down", "a/b")] {
        let bundle = scratch
            .bundle(name)
            .with(|spec| spec["linux"]["intelRdt"] = json!({"closID": class}));
        let ran = scratch.run(&bundle);
        assert_ne!(ran.code(), 0, "{ran}");
        assert!(!ran.stderr.contains("mount -t resctrl"), "{ran}");
    }
}
