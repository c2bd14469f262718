//! Mount targets behind symlinks whose own target is missing: made inside the root.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use holdfast_integration::bundle::Bundle;
use holdfast_integration::on_runtimes;
use holdfast_integration::scratch::{Scratch, text};
use serde_json::{Value, json};

// crun 1.8.1 refuses a folder behind a dangling link.
on_runtimes! {
    a_folder_behind_a_dangling_link_is_made: holdfast runc;
    a_chain_of_dangling_links_is_followed: holdfast runc;
    a_relative_link_upwards_is_followed: holdfast runc;
    a_file_that_is_a_dangling_link: holdfast runc crun;
    a_file_system_on_a_dangling_link: holdfast runc;
    a_link_out_of_the_root_stays_inside: holdfast runc;
    links_in_a_circle_are_refused: holdfast runc crun;
}

fn source(scratch: &Scratch) -> PathBuf {
    let folder = scratch.path("source");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), "bound\n").unwrap();
    folder
}

fn bind(source: &Path, target: &str) -> Value {
    json!({"destination": target, "type": "bind", "source": text(source), "options": ["bind"]})
}

fn link(bundle: &Bundle, content: &str, path: &str) {
    let path = bundle.in_rootfs(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    symlink(content, path).unwrap();
}

fn a_folder_behind_a_dangling_link_is_made(scratch: &Scratch) {
    let folder = source(scratch);
    let bundle = scratch.bundle("box");
    link(&bundle, "/lost", "/image/run");
    let bundle = bundle
        .mount(bind(&folder, "/image/run/secrets/deep"))
        .mount(bind(&folder.join("file"), "/image/run/token"));
    let script = "cat /lost/secrets/deep/file /image/run/token /lost/token; readlink /image/run";
    let ran = scratch.run(&bundle.clone().script(script));
    assert_eq!(ran.ok(), "bound\nbound\nbound\n/lost\n");
    assert!(bundle.in_rootfs("lost/secrets/deep").is_dir());
    assert!(!Path::new("/lost").exists());
}

fn a_chain_of_dangling_links_is_followed(scratch: &Scratch) {
    let folder = source(scratch);
    let bundle = scratch.bundle("box");
    link(&bundle, "second", "/first");
    link(&bundle, "/third/part", "/second");
    link(&bundle, "fourth", "/third");
    let bundle = bundle.mount(bind(&folder, "/first/below"));
    let ran = scratch.run(&bundle.args(&["cat", "/fourth/part/below/file"]));
    assert_eq!(ran.ok(), "bound\n");
}

fn a_relative_link_upwards_is_followed(scratch: &Scratch) {
    let folder = source(scratch);
    let bundle = scratch.bundle("box");
    fs::create_dir_all(bundle.in_rootfs("real/deep")).unwrap();
    // `..` counts from where the links lead, not from how they are written.
    link(&bundle, "/real/deep", "/short");
    link(&bundle, "../made/./here", "/real/deep/link");
    let bundle = bundle.mount(bind(&folder, "/short/link/below"));
    let ran = scratch.run(&bundle.args(&["cat", "/real/made/here/below/file"]));
    assert_eq!(ran.ok(), "bound\n");
}

fn a_file_that_is_a_dangling_link(scratch: &Scratch) {
    let folder = source(scratch);
    let bundle = scratch.bundle("box");
    link(&bundle, "../lost/resolve/stub.conf", "/etc/resolv.conf");
    let bundle = bundle.mount(bind(&folder.join("file"), "/etc/resolv.conf"));
    let ran = scratch.run(&bundle.args(&["cat", "/etc/resolv.conf", "/lost/resolve/stub.conf"]));
    assert_eq!(ran.ok(), "bound\nbound\n");
}

fn a_file_system_on_a_dangling_link(scratch: &Scratch) {
    let bundle = scratch.bundle("box");
    link(&bundle, "/lost", "/image/tmp");
    let bundle = bundle.mount(json!({
        "destination": "/image/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"],
    }));
    let ran = scratch
        .run(&bundle.script("grep -c ' /lost tmpfs\\| /lost .* tmpfs ' /proc/self/mountinfo"));
    assert_eq!(ran.ok(), "1\n");
}

fn a_link_out_of_the_root_stays_inside(scratch: &Scratch) {
    let folder = source(scratch);
    let outside = scratch.path("outside");
    fs::create_dir(&outside).unwrap();
    let bundle = scratch.bundle("box");
    let inside = text(&outside.join("made"));
    link(&bundle, &inside, "/absolute");
    link(
        &bundle,
        "../../../../../../../climbed/here",
        "/image/climbing",
    );
    let bundle = bundle
        .mount(bind(&folder, "/absolute/below"))
        .mount(bind(&folder, "/image/climbing/below"));
    let script = format!("cat {inside}/below/file /climbed/here/below/file");
    assert_eq!(scratch.run(&bundle.script(&script)).ok(), "bound\nbound\n");
    assert_eq!(fs::read_dir(outside).unwrap().count(), 0);
    assert!(!Path::new("/climbed").exists());
}

fn links_in_a_circle_are_refused(scratch: &Scratch) {
    let folder = source(scratch);
    let bundle = scratch.bundle("box");
    link(&bundle, "/two", "/one");
    link(&bundle, "one", "/two");
    let ran = scratch.run(&bundle.mount(bind(&folder, "/one/below")));
    assert_ne!(ran.code(), 0, "{ran}");
    assert!(
        ran.stderr
            .to_lowercase()
            .contains("too many levels of symbolic links"),
        "{ran}"
    );
    scratch.call(&["delete", "--force", "box"]);
}
