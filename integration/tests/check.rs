//! `holdfast check`: each finding made for real on this machine, seen, and gone again.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use holdfast_integration::containerd::{Containerd, Extra, Version};
use holdfast_integration::deadline::{self, Finished, eventually};
use holdfast_integration::lone::Lone;
use holdfast_integration::scratch::text;
use holdfast_integration::{leaks, place, skip, sysctl};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(30);

fn run(arguments: &[&str], environment: &[(&str, &Path)]) -> Finished {
    let mut command = Command::new(place::built("holdfast"));
    command.arg("check").args(arguments);
    // Whatever this machine has, unless a test says otherwise.
    command.env("HOLDFAST_LEDGER_DIR", "/nonexistent/ledger");
    command.envs(environment.iter().copied());
    deadline::run(&mut command, LIMIT)
}

/// The evidence of every finding `check` of this machine, in one text; empty when there is none.
#[track_caller]
fn found_with(check: &str, environment: &[(&str, &Path)]) -> String {
    let said = run(&["--json"], environment);
    assert!([0, 2, 3].contains(&said.code()), "{said}");
    let report: Value = serde_json::from_str(&said.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    for finding in findings {
        for member in ["check", "level", "what", "why", "todo"] {
            assert!(
                finding[member]
                    .as_str()
                    .is_some_and(|text| !text.is_empty()),
                "{finding}"
            );
        }
    }
    findings
        .iter()
        .filter(|finding| finding["check"] == check)
        .map(ToString::to_string)
        .collect()
}

#[track_caller]
fn found(check: &str) -> String {
    found_with(check, &[])
}

fn is_root(test: &str) -> bool {
    place::is_root().map_err(|why| skip(test, &why)).is_ok()
}

#[test]
fn people_get_sentences_and_scripts_an_exit_code() {
    let said = run(&[], &[]);
    assert!(said.stdout.contains(" in order"), "{said}");
    let expected = if said.stdout.contains("PROBLEM [") {
        3
    } else if said.stdout.contains("WARNING [") {
        2
    } else {
        0
    };
    assert_eq!(said.code(), expected, "{said}");
    for part in ["    why: ", "    do:  "] {
        let findings = said.stdout.matches("] ").count();
        assert!(said.stdout.matches(part).count() <= findings, "{said}");
    }
}

#[test]
fn what_could_not_be_looked_at_is_no_finding() {
    let said = run(&["--no-such-option"], &[]);
    assert_eq!(said.code(), 1, "{said}");
}

/// What one runs first: on a node that has nothing of ours.
#[test]
fn a_node_with_runc_and_containerds_own_shim_is_not_accused() {
    let Some(mut containerd) = Containerd::start(Version::V1_6, "check", &Extra::default()) else {
        return;
    };
    "io.containerd.runc.v2".clone_into(&mut containerd.runtime_type);
    let pid = containerd.start_task("box", &[], &["sleep", "600"]);
    let shims = containerd.shims();
    assert!(
        shims.iter().any(|shim| shim.command.contains("runc-v2")),
        "{shims:?}"
    );
    let said = run(&["--json"], &[]);
    assert!([0, 2, 3].contains(&said.code()), "{said}");
    let report: Value = serde_json::from_str(&said.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let folder = text(&containerd.path(""));
    for about in shims.iter().map(|shim| shim.pid).chain([pid]) {
        let ours = format!("pid {about} ");
        let accused = findings.iter().find(|finding| {
            let finding = finding.to_string();
            finding.contains(&ours) || finding.contains(&folder)
        });
        assert!(accused.is_none(), "{accused:?}");
    }
    // It was looked at all the same.
    let in_order = report["in_order"].to_string();
    let daemon = format!("(pid {})", containerd.pid());
    let other = findings
        .iter()
        .any(|finding| finding["check"] == "containerd");
    assert!(in_order.contains(&daemon) || other, "{said}");
    containerd.end_task("box");
}

#[test]
fn a_containerd_with_mounts_of_its_own() {
    let extra = Extra {
        own_mounts: Some("slave"),
        ..Extra::default()
    };
    let Some(containerd) = Containerd::start(Version::V1_6, "check", &extra) else {
        return;
    };
    let folder = text(&containerd.path(""));
    let daemon = leaks::processes_mentioning(folder.trim_end_matches('/'))
        .into_iter()
        .find(|process| process.command.contains("config.toml"))
        .expect("containerd");
    let said = found("private-mount-namespace");
    let ours = format!("containerd is pid {}, in mnt:", daemon.pid);
    assert!(
        said.contains(&ours) && said.contains("propagation of its root: "),
        "{said}"
    );
    drop(containerd);
    assert!(!found("private-mount-namespace").contains(&ours));
}

/// A process that a test ends in any case.
struct Kept(Child);

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_mount_that_lives_on_elsewhere() {
    if !is_root("check") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let root: PathBuf = folder
        .path()
        .join("io.containerd.runtime.v2.task/test/gone/rootfs");
    std::fs::create_dir_all(&root).unwrap();
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "holdfast-test"]).arg(&root);
    deadline::run(&mut mount, LIMIT).ok();
    let mut unshare = Command::new("unshare");
    unshare
        .args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            "echo ready; exec sleep 600",
        ])
        .stdout(Stdio::piped());
    let mut holder = Kept(unshare.spawn().unwrap());
    let mut ready = [0; 6];
    let mut said = holder.0.stdout.take().unwrap();
    std::io::Read::read_exact(&mut said, &mut ready).unwrap();
    assert!(
        !found("leaked-mounts").contains(&text(&root)),
        "it is mounted here, too"
    );
    let mut unmount = Command::new("umount");
    unmount.arg(&root);
    deadline::run(&mut unmount, LIMIT).ok();
    let said = found("leaked-mounts");
    assert!(said.contains(&text(&root)), "{said}");
    let ours = format!("pid {} (", holder.0.id());
    assert!(said.contains(&ours), "{said}");
    drop(holder);
    // A namespace that another test made meanwhile may have it still; ours has not.
    assert!(!found("leaked-mounts").contains(&ours));
}

#[test]
fn a_limit_of_pipes_that_somebody_lowered() {
    if !is_root("check") {
        return;
    }
    let changed = match sysctl::set("fs.pipe-user-pages-soft", "16000") {
        Ok(changed) => changed,
        Err(error) => return skip("check", &format!("fs.pipe-user-pages-soft: {error}")),
    };
    let said = found("pipe-limit");
    assert!(said.contains("is 16000, below"), "{said}");
    drop(changed);
}

#[test]
fn who_has_many_pipes_is_named_before_he_has_too_many() {
    if !is_root("check") {
        return;
    }
    let changed = match sysctl::set("fs.pipe-user-pages-soft", "16000") {
        Ok(changed) => changed,
        Err(error) => return skip("check", &format!("fs.pipe-user-pages-soft: {error}")),
    };
    // Three quarters of that are 750 pipes of sixteen pages.
    let mut shell = Command::new("sh");
    let script = "ulimit -n 4096; exec \"$0\" --ignored --exact has_many_pipes --nocapture";
    shell
        .args(["-c", script])
        .arg(std::env::current_exe().unwrap())
        .env("CHECK_TEST_PIPES", "800")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut holder = Kept(shell.spawn().unwrap());
    let said = holder.0.stdout.take().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(said));
    assert!(lines.any(|line| line.unwrap().ends_with("ready")));
    let ours = format!("pid {} (", holder.0.id());
    let said = found("pipe-users");
    assert!(
        said.contains(&ours) && said.contains(" of 16000 pages in "),
        "{said}"
    );
    drop(holder);
    assert!(!found("pipe-users").contains(&ours));
    drop(changed);
}

/// The process of the test above.
#[test]
#[ignore = "a role of the test above, which runs it by its name"]
fn has_many_pipes() {
    let Ok(count) = std::env::var("CHECK_TEST_PIPES") else {
        return;
    };
    let pipes: Vec<_> = (0..count.parse().unwrap())
        .map(|_| std::io::pipe().unwrap())
        .collect();
    println!("ready");
    // Until the test closes it, or is gone.
    let _ = std::io::read_to_string(std::io::stdin());
    drop(pipes);
}

#[test]
fn a_shim_without_its_bundle() {
    let Some(lone) = Lone::start("check", &[], None) else {
        return;
    };
    let bundle = lone.bundle_path("box");
    let shim = leaks::processes_mentioning(&lone.namespace)
        .into_iter()
        .find(|process| process.command.contains("containerd-shim-"));
    let pid = shim.expect("the shim").pid;
    let ours = format!("pid {pid} (containerd-shim");
    assert!(!found("orphaned-shims").contains(&ours));
    // As whoever cleans up /run by hand does it.
    let aside = lone.path("aside");
    std::fs::create_dir_all(&aside).unwrap();
    let rootfs = bundle.join("rootfs");
    if rootfs.exists() {
        std::fs::rename(&rootfs, aside.join("rootfs")).unwrap();
    }
    std::fs::remove_dir_all(&bundle).unwrap();
    let said = found("orphaned-shims");
    assert!(said.contains(&ours) && said.contains("(deleted)"), "{said}");
}

#[test]
fn a_socket_that_nobody_listens_on() {
    if !is_root("check") {
        return;
    }
    let folder = Path::new("/run/containerd/s");
    std::fs::create_dir_all(folder).unwrap();
    let path = folder.join(place::unique("holdfast-test-check"));
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    assert!(!found("stale-sockets").contains(&text(&path)));
    drop(listener);
    let said = found("stale-sockets");
    std::fs::remove_file(&path).unwrap();
    assert!(said.contains(&text(&path)), "{said}");
    assert!(!found("stale-sockets").contains(&text(&path)));
}

#[test]
fn a_container_that_is_frozen() {
    if !Path::new("/sys/fs/cgroup/freezer").is_dir() {
        return skip(
            "check",
            "only the freezer of cgroup v1 shows in a process' state",
        );
    }
    let Some(containerd) = Containerd::start(Version::V1_6, "check", &Extra::default()) else {
        return;
    };
    let pid = containerd.start_task("box", &[], &["sleep", "600"]);
    let ours = format!("pid {pid} (sleep)");
    assert!(!found("frozen-processes").contains(&ours));
    containerd.ctr_ok(&["tasks", "pause", "box"]);
    eventually("check sees it", LIMIT, || {
        found("frozen-processes").contains(&ours).then_some(())
    });
    assert!(!found("stuck-processes").contains(&ours));
    containerd.ctr_ok(&["tasks", "resume", "box"]);
    containerd.end_task("box");
}

#[test]
fn records_that_cannot_be_kept_or_explained() {
    let folder = tempfile::tempdir().unwrap();
    let said = found_with("tracefs", &[("HOLDFAST_TRACEFS", folder.path())]);
    assert!(said.contains("no tracefs at"), "{said}");
    let off = found_with("tracefs", &[("HOLDFAST_TRACEFS", Path::new("off"))]);
    assert!(off.contains("HOLDFAST_TRACEFS=off"), "{off}");
    let journal = found_with("journald", &[("HOLDFAST_JOURNALD", folder.path())]);
    assert!(journal.contains("does not exist"), "{journal}");
    let ledger = folder.path().join("ledger");
    std::fs::create_dir(&ledger).unwrap();
    let environment: [(&str, &Path); 1] = [("HOLDFAST_LEDGER_DIR", &ledger)];
    assert_eq!(found_with("ledger", &environment), "");
    std::fs::write(ledger.join("ledger-00000000000000000001.jsonl"), "torn\n").unwrap();
    let said = found_with("ledger", &environment);
    assert!(said.contains("1 of 1 lines"), "{said}");
}

#[test]
fn a_ledger_that_has_no_room() {
    if !is_root("check") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut mount = Command::new("mount");
    mount
        .args(["-t", "tmpfs", "-o", "size=1m", "holdfast-test"])
        .arg(folder.path());
    deadline::run(&mut mount, LIMIT).ok();
    // Not made yet: what would hold it is looked at.
    let ledger = folder.path().join("ledger");
    let said = found_with("ledger-space", &[("HOLDFAST_LEDGER_DIR", &ledger)]);
    let code = run(&[], &[("HOLDFAST_LEDGER_DIR", &ledger)]).code();
    let mut unmount = Command::new("umount");
    unmount.arg(folder.path());
    deadline::run(&mut unmount, LIMIT).ok();
    assert!(said.contains("1 MiB and "), "{said}");
    assert!(said.contains(&text(folder.path())), "{said}");
    assert_eq!(code, 3);
}
