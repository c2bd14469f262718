//! A running shim is moved to another program, and its containers do not notice.

use std::process::Command;
use std::time::Duration;

use holdfast_integration::containerd::{self, Containerd};
use holdfast_integration::deadline::{self, Finished};
use holdfast_integration::shim::Shim;
use holdfast_integration::{on_containerds, place};

on_containerds! {
    an_upgrade_leaves_containers_alone;
    what_cannot_go_on_is_refused_before_anything_changes;
}

const LIMIT: Duration = Duration::from_secs(60);

fn not_ours(test: &str) -> bool {
    containerd::not_ours(test, "containerd's own shim has no such thing")
}

fn holdfast(args: &[&str]) -> Finished {
    deadline::run(Command::new(place::built("holdfast")).args(args), LIMIT)
}

/// What `holdfast shims` says of one shim.
fn told(shim: i32) -> serde_json::Value {
    let list: serde_json::Value =
        serde_json::from_str(holdfast(&["shims", "--json"]).ok()).expect("JSON");
    let all = list.as_array().expect("a list");
    let found = all.iter().find(|one| one["pid"] == shim).cloned();
    found.unwrap_or_else(|| panic!("shim {shim} is not in {list}"))
}

fn an_upgrade_leaves_containers_alone(containerd: &Containerd) {
    if not_ours("an_upgrade_leaves_containers_alone") {
        return;
    }
    let mut client = containerd.spawn_until_told("box", LIMIT);
    let pid = containerd.task("box").expect("a task").pid;
    let shim = Shim::of(containerd, "box").pid("box");
    let before = told(shim);
    assert_eq!(before["info"]["containers"], serde_json::json!(["box"]));
    assert_eq!(before["info"]["images"], 0);
    let table = holdfast(&["shims"]);
    assert!(
        table
            .ok()
            .lines()
            .any(|line| line.starts_with(&shim.to_string())),
        "{table}"
    );
    // As the installation of a package puts another file at the same path.
    let folder = containerd.path("newer");
    std::fs::create_dir(&folder).unwrap();
    let newer = folder.join("containerd-shim-holdfast-v2");
    std::fs::copy(place::built("containerd-shim-holdfast-v2"), &newer).unwrap();
    let newer = newer.to_str().unwrap();
    // By its pid: other tests have a container of this name, too.
    let said = holdfast(&["upgrade", "--program", newer, &shim.to_string()]);
    assert!(said.ok().contains("1 containers go on"), "{said}");
    let program = std::fs::read_link(format!("/proc/{shim}/exe")).unwrap();
    assert_eq!(program.to_str(), Some(newer));
    let after = told(shim);
    assert_eq!(after["info"]["images"], 1);
    assert_eq!(after["info"]["faults"], 0, "an upgrade is no fault");
    assert_eq!(after["info"]["began"], before["info"]["began"]);
    assert_eq!(containerd.task("box").expect("a task").pid, pid);
    containerd.tell_to_end("box");
    assert_eq!(client.code(), 42);
}

fn what_cannot_go_on_is_refused_before_anything_changes(containerd: &Containerd) {
    if not_ours("what_cannot_go_on_is_refused_before_anything_changes") {
        return;
    }
    containerd.start_task("box", &[], &["sleep", "600"]);
    let shim = Shim::of(containerd, "box").pid("box");
    let older = containerd.path("older");
    place::write_program(&older, "#!/bin/sh\nexit 1\n");
    let no_program = containerd.path("text");
    std::fs::write(&no_program, "nothing").unwrap();
    for (program, why) in [
        (older.to_str().unwrap(), "does not read"),
        // Ends well whatever it is asked.
        ("/bin/true", "does not read"),
        ("/bin/echo", "does not read"),
        (no_program.to_str().unwrap(), "cannot be executed"),
        ("/no/such/file", "No such file"),
    ] {
        let said = holdfast(&["upgrade", "--program", program, &shim.to_string()]);
        assert!(said.failed().contains(why), "{program}: {said}");
        assert!(said.stderr.contains("stays as it is"), "{program}: {said}");
        assert_eq!(told(shim)["info"]["images"], 0, "{program}");
    }
    let unknown = holdfast(&["upgrade", "no-such-container"]);
    assert!(
        unknown.failed().contains("no shim of this node has it"),
        "{unknown}"
    );
    let code = containerd
        .exec("box", "x", &[], &["sh", "-c", "exit 4"])
        .code();
    assert_eq!(code, 4);
    containerd.end_task("box");
}
