//! The systemd cgroup driver. Where no systemd runs, only its absence and its silence can be tested.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use holdfast_integration::bundle::Bundle;
use holdfast_integration::deadline::{self, Finished};
use holdfast_integration::on_runtimes;
use holdfast_integration::place;
use holdfast_integration::scratch::{Scratch, text};
use serde_json::json;

on_runtimes! {
    // runc and crun wait without a limit.
    a_bus_that_never_answers: holdfast;
    a_bus_that_is_not_there: holdfast;
    a_path_is_no_unit: holdfast runc;
    a_life_in_a_scope: holdfast;
    a_scope_is_not_shared_and_not_blocked: holdfast;
}

const LIMIT: Duration = Duration::from_secs(60);

fn systemd(scratch: &Scratch, args: &[&str], change: impl FnOnce(&mut Command)) -> Finished {
    let mut all = vec!["--systemd-cgroup"];
    all.extend(args);
    let mut command = scratch.command(&all);
    change(&mut command);
    deadline::run(&mut command, LIMIT)
}

fn create(scratch: &Scratch, bundle: &Bundle, change: impl FnOnce(&mut Command)) -> Finished {
    bundle.write();
    systemd(
        scratch,
        &["create", "--bundle", &text(&bundle.path), &bundle.id],
        change,
    )
}

/// A bundle whose cgroupsPath is a unit of its own: with the unit's name.
fn scope(scratch: &Scratch, name: &str) -> (Bundle, String) {
    let unique = place::unique("holdfast-test");
    let unit = format!("{unique}-{name}.scope");
    let path = format!("system.slice:{unique}:{name}");
    let bundle = scratch
        .bundle(name)
        .args(&["sleep", "600"])
        .with(|spec| spec["linux"]["cgroupsPath"] = json!(path));
    (bundle, unit)
}

/// Incident 14: runc#1959, #1754, #4481.
fn a_bus_that_never_answers(scratch: &Scratch) {
    let socket = scratch.path("bus");
    // Connections wait in its queue for ever.
    let _listener = UnixListener::bind(&socket).unwrap();
    let (bundle, _) = scope(scratch, "silent");
    let failed = create(scratch, &bundle, |command| {
        command.env(
            "DBUS_SYSTEM_BUS_ADDRESS",
            format!("unix:path={}", text(&socket)),
        );
        command.env("HOLDFAST_DEADLINE_SYSTEMD", "300ms");
    });
    let said = failed.failed();
    assert!(said.contains("authenticate: no answer after"), "{said}");
    assert!(said.contains(&text(&socket)), "{said}");
    scratch.assert_nothing_left();
}

fn a_bus_that_is_not_there(scratch: &Scratch) {
    let (bundle, _) = scope(scratch, "absent");
    let failed = create(scratch, &bundle, |command| {
        command.env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus");
    });
    let said = failed.failed();
    assert!(
        said.contains("/nonexistent/bus: connect: No such file"),
        "{said}"
    );
    assert!(said.contains("use the cgroupfs driver"), "{said}");
    scratch.assert_nothing_left();
}

fn a_path_is_no_unit(scratch: &Scratch) {
    let bundle = scratch.bundle("path").args(&["sleep", "600"]);
    let failed = create(scratch, &bundle, |_| {});
    assert!(failed.failed().contains("slice:prefix:name"), "{failed}");
    scratch.assert_nothing_left();
}

/// sd_booted(3), and the layout these tests look into.
fn booted() -> bool {
    let here = Path::new("/run/systemd/system").is_dir()
        && Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    if !here {
        println!("skipped: no systemd with pure cgroup v2 runs here (make test-v2 boots one)");
    }
    here
}

/// `Name=value` lines of a unit.
fn show(unit: &str, properties: &str) -> String {
    let mut command = Command::new("systemctl");
    command.args(["show", unit, "-p", properties]);
    deadline::run(&mut command, LIMIT).ok().to_owned()
}

fn ok(scratch: &Scratch, args: &[&str]) {
    systemd(scratch, args, |_| {}).ok();
}

fn a_life_in_a_scope(scratch: &Scratch) {
    if !booted() {
        return;
    }
    let (bundle, unit) = scope(scratch, "life");
    let bundle = bundle.with(|spec| {
        spec["linux"]["resources"] = json!({
            "memory": {"limit": 64 << 20},
            "cpu": {"quota": 25500, "period": 50000},
            "pids": {"limit": 50},
            "devices": [
                {"allow": false, "access": "rwm"},
                {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"},
            ],
        });
    });
    create(scratch, &bundle, |_| {}).ok();
    let dir = Path::new("/sys/fs/cgroup/system.slice").join(&unit);
    let file = |name: &str| {
        fs::read_to_string(dir.join(name))
            .unwrap()
            .trim()
            .to_owned()
    };
    let limits = || (file("memory.max"), file("cpu.max"), file("pids.max"));
    let of = |memory: u64, cpu: &str, pids: &str| (memory.to_string(), cpu.into(), pids.into());
    let shown = show(
        &unit,
        "ActiveState,Slice,Delegate,TasksMax,DevicePolicy,DeviceAllow",
    );
    for line in [
        "ActiveState=active",
        "Slice=system.slice",
        "Delegate=yes",
        "TasksMax=50",
        "DevicePolicy=strict",
        "DeviceAllow=/dev/char/10:229 rw",
        "DeviceAllow=char-136 rwm",
    ] {
        assert!(shown.lines().any(|l| l == line), "{line}: {shown}");
    }
    assert_eq!(limits(), of(64 << 20, "25500 50000", "50"));
    ok(scratch, &["start", &bundle.id]);
    assert_eq!(file("cgroup.procs").lines().count(), 1);
    ok(scratch, &["exec", &bundle.id, "true"]);

    // What systemd was told survives its reload; what it was not told would not.
    let wanted = scratch.path("resources.json");
    let document = json!({"memory": {"limit": 128 << 20}, "pids": {"limit": 70}});
    fs::write(&wanted, document.to_string()).unwrap();
    ok(
        scratch,
        &["update", "--resources", &text(&wanted), &bundle.id],
    );
    deadline::run(Command::new("systemctl").arg("daemon-reload"), LIMIT).ok();
    assert_eq!(limits(), of(128 << 20, "25500 50000", "70"));

    ok(scratch, &["delete", "--force", &bundle.id]);
    assert!(!dir.exists());
    assert_eq!(show(&unit, "LoadState").trim(), "LoadState=not-found");
    scratch.assert_nothing_left();
}

/// youki #3258, and the other side of it: a scope that somebody uses must not be stopped for us.
fn a_scope_is_not_shared_and_not_blocked(scratch: &Scratch) {
    if !booted() {
        return;
    }
    let (bundle, unit) = scope(scratch, "taken");
    let run = |script: &str| {
        let mut command = Command::new("systemd-run");
        command.args(["--scope", "--quiet", "--unit", &unit, "sh", "-c", script]);
        command.stdin(Stdio::null());
        command
    };
    let mut user = run("exec sleep 600").stdout(Stdio::null()).spawn().unwrap();
    deadline::eventually("the scope to run", LIMIT, || {
        show(&unit, "ActiveState").contains("=active").then_some(())
    });
    let refused = create(scratch, &bundle, |_| {});
    assert!(refused.failed().contains("is not empty"), "{refused}");
    assert!(
        user.try_wait().unwrap().is_none(),
        "somebody else's process was ended"
    );
    user.kill().unwrap();
    user.wait().unwrap();

    // Out of memory at once: the scope stays, failed.
    let mut command = run("a=x; while :; do a=$a$a; done");
    let mut with_limit = Command::new(command.get_program());
    with_limit.args(["-p", "MemoryMax=3M", "-p", "MemorySwapMax=0"]);
    with_limit.args(command.get_args()).stdin(Stdio::null());
    command = with_limit;
    let ended = deadline::run(&mut command, LIMIT);
    assert!(!ended.status.success(), "{ended}");
    deadline::eventually("the scope to have failed", LIMIT, || {
        show(&unit, "ActiveState").contains("=failed").then_some(())
    });
    create(scratch, &bundle, |_| {}).ok();
    ok(scratch, &["delete", "--force", &bundle.id]);
    assert_eq!(show(&unit, "LoadState").trim(), "LoadState=not-found");
    scratch.assert_nothing_left();
}
