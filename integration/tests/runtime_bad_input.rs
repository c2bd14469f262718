//! Bad input gets a clear error and leaves nothing behind.
//!
//! That nothing is left (state, cgroups, mounts, processes) is looked at after each of these.

use std::fs;
use std::os::unix::fs::symlink;

use holdfast_integration::bundle::Bundle;
use holdfast_integration::on_runtimes;
use holdfast_integration::scratch::{Scratch, text};

on_runtimes! {
    a_config_that_is_no_json: holdfast runc crun;
    a_config_without_a_process_to_run: holdfast runc;
    a_bundle_that_is_not_there: holdfast runc crun;
    an_id_nobody_knows: holdfast runc crun;
    an_id_that_is_taken: holdfast runc crun;
    // crun 1.8.1 removes its own runtime root here (`delete --force ..`).
    ids_that_are_paths: holdfast runc;
    a_rootfs_that_is_not_there: holdfast runc crun;
    a_rootfs_that_is_a_symlink: holdfast runc;
    a_rootfs_whose_proc_is_a_symlink: holdfast runc;
    a_rootfs_whose_dev_is_a_symlink: holdfast;
    // runc 1.1.5 and crun 1.8.1 make links and nodes on the host here (CVE-2026-41579, -47766).
    a_dev_symlink_never_reaches_the_host: holdfast;
    a_terminal_without_console_socket: holdfast runc crun;
    a_namespace_that_is_not_there: holdfast runc;
    a_mount_whose_source_is_not_there: holdfast runc crun;
    a_program_that_is_not_there: holdfast runc;
    a_working_directory_that_is_no_directory: holdfast runc crun;
    an_unknown_command_and_flag: holdfast runc;
}

#[track_caller]
fn create_fails(scratch: &Scratch, bundle: &Bundle, telling: &[&str]) {
    bundle.write();
    let (refused, _) = scratch.try_create(bundle, &[]);
    let said = refused.failed().to_lowercase();
    assert!(
        telling.iter().any(|word| said.contains(word)),
        "says none of {telling:?}: {refused}"
    );
    scratch.assert_nothing_left();
}

fn a_config_that_is_no_json(scratch: &Scratch) {
    let bundle = scratch.bundle("bad");
    for broken in ["", "{", "[]", "{\"process\": 7}", "\u{0}\u{1}"] {
        fs::write(bundle.path.join("config.json"), broken).unwrap();
        let (refused, _) = scratch.try_create(&bundle, &[]);
        refused.failed();
        scratch.assert_nothing_left();
    }
    fs::remove_file(bundle.path.join("config.json")).unwrap();
    let (refused, _) = scratch.try_create(&bundle, &[]);
    assert!(refused.failed().contains("config.json"), "{refused}");
}

fn a_config_without_a_process_to_run(scratch: &Scratch) {
    let bundle = scratch
        .bundle("none")
        .with(|spec| spec["process"]["args"] = serde_json::json!([]));
    create_fails(scratch, &bundle, &["args"]);
    let bundle = scratch
        .bundle("cwd")
        .with(|spec| spec["process"]["cwd"] = serde_json::json!("etc"));
    create_fails(scratch, &bundle, &["cwd", "absolute"]);
}

fn a_bundle_that_is_not_there(scratch: &Scratch) {
    let gone = text(&scratch.path("no-such-bundle"));
    let refused = scratch.call(&["create", "--bundle", &gone, "gone"]);
    assert!(
        refused.failed().contains("no such file or directory")
            || refused.stderr.contains("No such"),
        "{refused}"
    );
}

fn an_id_nobody_knows(scratch: &Scratch) {
    for words in [
        &["state", "nobody"][..],
        &["start", "nobody"],
        &["kill", "nobody", "KILL"],
        &["delete", "nobody"],
        &["exec", "nobody", "true"],
        &["ps", "nobody"],
        &["pause", "nobody"],
        &["resume", "nobody"],
    ] {
        let refused = scratch.call(words);
        let said = refused.failed();
        let telling = ["does not exist", "No such file", "not found"];
        assert!(telling.iter().any(|word| said.contains(word)), "{refused}");
    }
    // Deleting by force what is not there is no error.
    scratch.call(&["delete", "--force", "nobody"]).ok();
}

fn an_id_that_is_taken(scratch: &Scratch) {
    let first = scratch.bundle("taken").args(&["sleep", "600"]);
    let pid = scratch.start(&first);
    let mut second = scratch.bundle("second");
    second.id = "taken".to_owned();
    second.write();
    let refused = scratch.call(&["create", "--bundle", &text(&second.path), "taken"]);
    assert!(refused.failed().contains("exist"), "{refused}");
    // The one that is there is not touched.
    let state = scratch.state("taken");
    assert_eq!(
        (state["status"].as_str(), state["pid"].as_i64()),
        (Some("running"), Some(pid.into()))
    );
    scratch.end(&first);
}

fn ids_that_are_paths(scratch: &Scratch) {
    let bundle = scratch.bundle("good");
    bundle.write();
    for id in ["../evil", "..", ".", "a/b", "/etc", ""] {
        let refused = scratch.call(&["create", "--bundle", &text(&bundle.path), id]);
        refused.failed();
        let refused = scratch.call(&["delete", "--force", id]);
        assert!(
            scratch.root().exists(),
            "delete --force {id:?} removed the runtime root: {refused}"
        );
    }
    assert!(!scratch.path("evil").exists());
    assert!(bundle.path.join("config.json").exists());
}

fn a_rootfs_that_is_not_there(scratch: &Scratch) {
    let bundle = scratch.bundle("gone");
    fs::remove_dir_all(bundle.path.join("rootfs")).unwrap();
    create_fails(scratch, &bundle, &["rootfs"]);
}

fn a_rootfs_that_is_a_symlink(scratch: &Scratch) {
    let bundle = scratch.bundle("link");
    let real = scratch.path("real");
    fs::rename(bundle.path.join("rootfs"), &real).unwrap();
    symlink(&real, bundle.path.join("rootfs")).unwrap();
    create_fails(scratch, &bundle, &["symlink"]);
    assert_eq!(fs::read_dir(real.join("proc")).unwrap().count(), 0);
}

fn link_in_rootfs(scratch: &Scratch, name: &str) -> (Bundle, std::path::PathBuf) {
    let bundle = scratch.bundle(&format!("link-{name}"));
    let outside = scratch.path(&format!("outside-{name}"));
    fs::create_dir_all(&outside).unwrap();
    fs::remove_dir(bundle.in_rootfs(name)).unwrap();
    symlink(&outside, bundle.in_rootfs(name)).unwrap();
    (bundle, outside)
}

fn a_rootfs_whose_proc_is_a_symlink(scratch: &Scratch) {
    let (bundle, outside) = link_in_rootfs(scratch, "proc");
    create_fails(scratch, &bundle, &["/proc"]);
    assert_eq!(fs::read_dir(outside).unwrap().count(), 0);
}

fn a_rootfs_whose_dev_is_a_symlink(scratch: &Scratch) {
    let (bundle, outside) = link_in_rootfs(scratch, "dev");
    create_fails(scratch, &bundle, &["/dev"]);
    assert_eq!(fs::read_dir(outside).unwrap().count(), 0);
}

fn a_dev_symlink_never_reaches_the_host(scratch: &Scratch) {
    let (bundle, outside) = link_in_rootfs(scratch, "dev");
    // Without a mount on /dev the runtime itself makes the nodes and links there.
    let bundle = bundle.with(|spec| {
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    });
    let _ = scratch.run(&bundle);
    let _ = scratch.call(&["delete", "--force", &bundle.id]);
    assert_eq!(fs::read_dir(outside).unwrap().count(), 0);
}

fn a_terminal_without_console_socket(scratch: &Scratch) {
    let bundle = scratch
        .bundle("tty")
        .with(|spec| spec["process"]["terminal"] = true.into());
    create_fails(scratch, &bundle, &["console", "tty", "terminal"]);
    // And with a socket that nobody serves.
    let socket = text(&scratch.path("nobody-listens"));
    let bundle = scratch
        .bundle("deaf")
        .with(|spec| spec["process"]["terminal"] = true.into());
    bundle.write();
    let (refused, _) = scratch.try_create(&bundle, &["--console-socket", &socket]);
    refused.failed();
}

fn a_namespace_that_is_not_there(scratch: &Scratch) {
    let bundle = scratch
        .bundle("ns")
        .namespace("network", Some("/proc/self/ns/nonsense"));
    create_fails(scratch, &bundle, &["nonsense", "no such file"]);
    // A namespace of another kind than it says.
    let bundle = scratch
        .bundle("kind")
        .namespace("network", Some("/proc/self/ns/uts"));
    create_fails(
        scratch,
        &bundle,
        &["namespace", "ns", "invalid argument", "setns"],
    );
}

fn a_mount_whose_source_is_not_there(scratch: &Scratch) {
    let gone = text(&scratch.path("no-such-source"));
    let bundle = scratch.bundle("mount").mount(serde_json::json!({
        "destination": "/mnt", "type": "bind", "source": gone, "options": ["bind"],
    }));
    create_fails(scratch, &bundle, &["no-such-source"]);
}

fn a_program_that_is_not_there(scratch: &Scratch) {
    for (program, telling) in [
        ("nosuchprogram", "executable file not found in $path"),
        ("/no/such/program", "no such file or directory"),
        ("/etc/passwd", "permission denied"),
    ] {
        let bundle = scratch.bundle(&crate_id(program)).args(&[program]);
        let refused = scratch.run(&bundle);
        assert!(
            refused.failed().to_lowercase().contains(telling),
            "{refused}"
        );
        scratch.call(&["delete", "--force", &bundle.id]);
        scratch.assert_nothing_left();
    }
}

fn crate_id(program: &str) -> String {
    program.trim_start_matches('/').replace('/', "-")
}

fn a_working_directory_that_is_no_directory(scratch: &Scratch) {
    let bundle = scratch
        .bundle("cwd")
        .with(|spec| spec["process"]["cwd"] = "/etc/passwd".into());
    let refused = scratch.run(&bundle);
    let said = refused.failed().to_lowercase();
    assert!(
        said.contains("/etc/passwd") || said.contains("not a directory"),
        "{refused}"
    );
    scratch.call(&["delete", "--force", &bundle.id]);
}

fn an_unknown_command_and_flag(scratch: &Scratch) {
    assert_ne!(scratch.call(&["frobnicate"]).code(), 0);
    assert_ne!(scratch.call(&["state", "--frobnicate", "x"]).code(), 0);
    assert_ne!(scratch.call(&["create"]).code(), 0);
}
