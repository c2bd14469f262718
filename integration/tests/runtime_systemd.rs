//! The systemd cgroup driver. Where no systemd runs, only its absence and its silence can be tested.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use holdfast_integration::bundle::Bundle;
use holdfast_integration::deadline::{self, Finished};
use holdfast_integration::killer;
use holdfast_integration::on_runtimes;
use holdfast_integration::place;
use holdfast_integration::runtime::Kind;
use holdfast_integration::scratch::{Scratch, text};
use serde_json::json;

on_runtimes! {
    // runc and crun wait without a limit.
    a_bus_that_never_answers: holdfast;
    a_bus_that_is_not_there: holdfast;
    a_path_is_no_unit: holdfast runc;
    a_life_in_a_scope: holdfast;
    a_life_in_a_scope_of_v1: holdfast runc;
    a_scope_is_not_shared_and_not_blocked: holdfast;
    // runc and crun leave cgroups behind, as in runtime_killed.rs.
    a_killed_create_in_a_scope: holdfast;
    a_killed_delete_of_a_scope: holdfast;
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

const ROOT: &str = "/sys/fs/cgroup";

/// sd_booted(3).
fn booted() -> bool {
    let here = Path::new("/run/systemd/system").is_dir();
    if !here {
        println!("skipped: no systemd runs here (make test-v2 boots one)");
    }
    here
}

/// Whether systemd has everything in one hierarchy.
fn unified() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
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
    if !booted() || !unified() {
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

/// The same on the old hierarchies (`CGROUPS=v1` and `CGROUPS=hybrid` of integration/uml.sh): systemd makes the scope in
/// its own hierarchy and in those whose controllers it sets; the runtime makes it in all others, and the process is in
/// each.
fn a_life_in_a_scope_of_v1(scratch: &Scratch) {
    if !booted() || unified() {
        return;
    }
    let (bundle, unit) = scope(scratch, "old");
    let bundle = bundle.with(|spec| {
        spec["linux"]["resources"] = json!({
            "cpu": {"quota": 25500, "period": 50000, "shares": 512},
            "pids": {"limit": 50},
            "devices": [
                {"allow": false, "access": "rwm"},
                {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"},
            ],
        });
    });
    create(scratch, &bundle, |_| {}).ok();
    let dir = |hierarchy: &str| {
        Path::new(ROOT)
            .join(hierarchy)
            .join("system.slice")
            .join(&unit)
    };
    let file = |hierarchy: &str, name: &str| {
        fs::read_to_string(dir(hierarchy).join(name))
            .unwrap_or_else(|error| panic!("{hierarchy} {name}: {error}"))
            .trim()
            .to_owned()
    };
    let limits = || {
        [
            file("cpu", "cpu.shares"),
            file("cpu", "cpu.cfs_quota_us"),
            file("cpu", "cpu.cfs_period_us"),
            file("pids", "pids.max"),
        ]
    };
    let rules = || {
        let mut rules: Vec<String> = file("devices", "devices.list")
            .lines()
            .map(str::to_owned)
            .collect();
        rules.sort();
        rules
    };
    let shown = show(
        &unit,
        "ActiveState,Slice,Delegate,TasksMax,CPUShares,DevicePolicy,DeviceAllow",
    );
    for line in [
        "ActiveState=active",
        "Slice=system.slice",
        "Delegate=yes",
        "TasksMax=50",
        "CPUShares=512",
        "DevicePolicy=strict",
        "DeviceAllow=/dev/char/10:229 rw",
    ] {
        assert!(shown.lines().any(|l| l == line), "{line}: {shown}");
    }
    assert_eq!(limits(), ["512", "25500", "50000", "50"]);
    let exact = rules();
    assert!(exact.contains(&"c 10:229 rw".to_owned()), "{exact:?}");
    assert!(!exact.contains(&"a *:* rwm".to_owned()), "{exact:?}");
    ok(scratch, &["start", &bundle.id]);

    // In every hierarchy there is; systemd's own is `name=systemd`, and on hybrid the v2 one beside it.
    let pid = file("systemd", "cgroup.procs");
    let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let place = format!("/system.slice/{unit}");
    for line in own.lines() {
        // runc 1.1 leaves out what it has no limits for.
        let elsewhere = !line.ends_with(&place) && scratch.runtime.kind == Kind::Holdfast;
        assert!(!elsewhere, "{line}");
    }
    for controller in ["name=systemd", "pids", "cpu,cpuacct", "devices", "freezer"] {
        assert!(
            own.lines()
                .any(|line| line.ends_with(&format!(":{controller}:{place}"))),
            "{controller}: {own}"
        );
    }
    ok(scratch, &["exec", &bundle.id, "true"]);
    ok(scratch, &["pause", &bundle.id]);
    ok(scratch, &["resume", &bundle.id]);

    let wanted = scratch.path("resources.json");
    let document = json!({"cpu": {"shares": 256}, "pids": {"limit": 70}});
    fs::write(&wanted, document.to_string()).unwrap();
    ok(
        scratch,
        &["update", "--resources", &text(&wanted), &bundle.id],
    );
    deadline::run(Command::new("systemctl").arg("daemon-reload"), LIMIT).ok();
    assert_eq!(limits(), ["256", "25500", "50000", "70"]);
    // runc has named the devices by their nodes, and loses those that the host's /dev has not (/dev/net/tun).
    if scratch.runtime.kind == Kind::Holdfast {
        assert_eq!(rules(), exact, "the reload changed the device rules");
    }
    assert_eq!(file("systemd", "cgroup.procs"), pid);

    ok(scratch, &["delete", "--force", &bundle.id]);
    let left = cgroups_named(&unit);
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(show(&unit, "LoadState").trim(), "LoadState=not-found");
    scratch.assert_nothing_left();
}

/// youki #3258, and the other side of it: a scope that somebody uses must not be stopped for us.
fn a_scope_is_not_shared_and_not_blocked(scratch: &Scratch) {
    if !booted() {
        return;
    }
    let (bundle, unit) = scope(scratch, "taken");
    let mut user = Command::new("systemd-run")
        .args(["--scope", "--quiet", "--unit", &unit, "sleep", "600"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
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

    // Ended by its own time limit: the scope stays, failed.
    let mut command = Command::new("systemd-run");
    command.args(["--scope", "--quiet", "--unit", &unit]);
    command.args(["-p", "RuntimeMaxSec=100ms", "sleep", "600"]);
    command.stdin(Stdio::null());
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

/// At every few system calls, the conversation with systemd among them: what it was told comes to its end as well.
fn killed(scratch: &Scratch, name: &str, words: &[&str], before: impl Fn(&Bundle)) {
    if !booted() {
        return;
    }
    let (bundle, unit) = scope(scratch, name);
    bundle.write();
    let path = text(&bundle.path);
    let words: Vec<&str> = words
        .iter()
        .map(|word| if *word == "BUNDLE" { &path } else { *word })
        .chain([bundle.id.as_str()])
        .collect();
    let delete = ["--systemd-cgroup", "delete", "--force", &bundle.id];
    // A booted v1 makes a dozen cgroups for each place, on one processor.
    let step = if unified() { 5 } else { 17 };
    let places = killer::sweep(
        scratch,
        &words,
        step,
        || before(&bundle),
        |number| {
            killer::clean_up(scratch, &delete, number);
            deadline::eventually("the scope to be gone", LIMIT, || {
                (show(&unit, "LoadState").trim() == "LoadState=not-found").then_some(())
            });
            let left = cgroups_named(&unit);
            assert!(left.is_empty(), "killed at {number}: {left:?}");
        },
    );
    assert!(places > 50, "only {places}: what was killed?");
}

fn a_killed_create_in_a_scope(scratch: &Scratch) {
    let words = ["--systemd-cgroup", "create", "--bundle", "BUNDLE"];
    killed(scratch, "killed", &words, |_| {});
}

fn a_killed_delete_of_a_scope(scratch: &Scratch) {
    let words = ["--systemd-cgroup", "delete", "--force"];
    killed(scratch, "deleted", &words, |bundle| {
        create(scratch, bundle, |_| {}).ok();
        ok(scratch, &["start", &bundle.id]);
    });
}

/// Folders of this name in `system.slice` of every hierarchy.
fn cgroups_named(unit: &str) -> Vec<PathBuf> {
    let hierarchies = holdfast_integration::leaks::hierarchies().into_iter();
    hierarchies
        .map(|hierarchy| hierarchy.join("system.slice").join(unit))
        .filter(|folder| folder.exists())
        .collect()
}
