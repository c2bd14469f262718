//! What processes of a container inherit beside descriptors: session keyring and personality, in
//! init and in exec.

use std::process::Stdio;

use holdfast_integration::bundle::Bundle;
use holdfast_integration::deadline::{self, eventually};
use holdfast_integration::scratch::{LIMIT, Scratch, text};
use holdfast_integration::{on_runtimes, place, skip};
use serde_json::json;

on_runtimes! {
    init_and_exec_share_a_session_keyring: holdfast runc;
    // runc's keyring is called by the id alone: its two containers share one.
    containers_of_one_id_share_no_keyring: holdfast;
    the_callers_keyring_is_kept_when_asked: holdfast runc;
    a_personality_is_everybodys: holdfast;
}

/// A container in which /proc/keys can be read, with an id that no other container has: keyrings are
/// the user's, not the test's.
fn bundle(scratch: &Scratch) -> Option<Bundle> {
    if !std::path::Path::new("/proc/keys").exists() {
        skip("runtime_keyring", "this kernel shows no keys");
        return None;
    }
    let bundle = scratch
        .bundle(&place::unique("box"))
        .script("cat /proc/keys; sleep 600");
    Some(bundle.with(|spec| spec["linux"]["maskedPaths"] = json!([])))
}

fn init_and_exec_share_a_session_keyring(scratch: &Scratch) {
    let Some(bundle) = bundle(scratch) else {
        return;
    };
    scratch.start(&bundle);
    // A second one of the same name would be listed, too.
    let serials = |keys: &str| -> Vec<String> {
        keys.lines()
            .filter(|line| line.contains(&format!("_ses.{}", bundle.id)))
            .filter_map(|line| line.split(' ').next().map(str::to_owned))
            .collect()
    };
    let keys = eventually("the keys", LIMIT, || {
        let keys = serials(&scratch.output(&bundle).0);
        (!keys.is_empty()).then_some(keys)
    });
    let exec = scratch.exec(&bundle, &["cat", "/proc/keys"]);
    assert_eq!(serials(exec.ok()), keys, "{exec}");
    scratch.end(&bundle);
}

/// Two runtime roots, as two containerd namespaces have: the same id is another container, and its keys are not ours.
fn containers_of_one_id_share_no_keyring(scratch: &Scratch) {
    let Some(bundle) = bundle(scratch) else {
        return;
    };
    let other = bundle.clone().with(|spec| {
        let path = format!("{}-other", spec["linux"]["cgroupsPath"].as_str().unwrap());
        spec["linux"]["cgroupsPath"] = json!(path);
    });
    let roots = [scratch.root(), scratch.path("other-state")];
    std::fs::create_dir(&roots[1]).unwrap();
    for (root, bundle) in roots.iter().zip([&bundle, &other]) {
        bundle.write();
        let words = [
            "run",
            "--detach",
            "--bundle",
            &text(&bundle.path),
            &bundle.id,
        ];
        let mut command = scratch.command_at(root, &words);
        let status = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
    }
    // Root sees the keyrings of all of its containers.
    let words = ["exec", &bundle.id, "cat", "/proc/keys"];
    let said = deadline::run(&mut scratch.command_at(&roots[0], &words), LIMIT);
    let own = format!("_ses.{}", bundle.id);
    let keys = said.ok().lines().filter(|line| line.contains(&own)).count();
    for root in &roots {
        let words = ["delete", "--force", &bundle.id];
        deadline::run(&mut scratch.command_at(root, &words), LIMIT).ok();
    }
    assert_eq!(keys, 2, "{said}");
}

fn the_callers_keyring_is_kept_when_asked(scratch: &Scratch) {
    let Some(bundle) = bundle(scratch) else {
        return;
    };
    bundle.write();
    let (created, pid) = scratch.try_create(&bundle, &["--no-new-keyring"]);
    created.ok();
    scratch.call(&["start", &bundle.id]).ok();
    let exec = scratch.exec(&bundle, &["cat", "/proc/keys"]);
    assert!(
        !exec.ok().contains(&format!("_ses.{}", bundle.id)),
        "{exec}"
    );
    assert!(pid.is_some());
    scratch.end(&bundle);
}

// runc 1.1.5 does not know it, and crun 1.8.1 forgets it in exec.
fn a_personality_is_everybodys(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]).with(|spec| {
        spec["linux"]["personality"] = json!({"domain": "LINUX32"});
    });
    let pid = scratch.start(&bundle);
    // PER_LINUX32, personality(2).
    let of_init = std::fs::read_to_string(format!("/proc/{pid}/personality")).unwrap();
    assert_eq!(of_init.trim(), "00000008");
    let of_exec = scratch.exec(&bundle, &["cat", "/proc/self/personality"]);
    assert_eq!(of_exec.ok().trim(), "00000008");
    scratch.end(&bundle);
}
