//! The runtime in the hands of an ordinary user.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use holdfast_integration::bundle::Bundle;
use holdfast_integration::deadline::{self, Finished};
use holdfast_integration::runtime::Kind;
use holdfast_integration::scratch::{LIMIT, Scratch, text};
use holdfast_integration::user::User;
use holdfast_integration::{on_runtimes, place, skip};
use serde_json::json;

on_runtimes! {
    a_container_of_one_s_own_id: holdfast runc;
    subordinate_ids_are_mapped_by_the_helpers: holdfast runc;
    the_whole_life_of_a_container: holdfast runc;
    what_spec_writes_runs: holdfast runc;
    volumes_and_covers_hold: holdfast runc;
    docker_s_profile_is_in_force: holdfast runc;
    a_cgroup_that_cannot_be_made: holdfast;
    a_map_that_is_not_the_user_s: holdfast;
    helpers_that_are_missing: holdfast;
    groups_that_cannot_be_set: holdfast runc;
    a_terminal: holdfast;
    a_scope_of_the_user_s_own_systemd: holdfast runc;
    no_systemd_of_the_user_s_own: holdfast;
}

/// The user, or the reason why there is none.
fn user(scratch: &Scratch, test: &str) -> Option<User> {
    match User::new(&scratch.path("")) {
        Ok(user) => Some(user),
        Err(why) => {
            skip(test, &why);
            None
        }
    }
}

/// A call by the user; the state is where it is by default.
fn call(scratch: &Scratch, user: &User, words: &[&str]) -> Finished {
    deadline::run(&mut command(scratch, user, words), LIMIT)
}

fn command(scratch: &Scratch, user: &User, words: &[&str]) -> Command {
    let mut inner = scratch.runtime.command();
    inner.args(words);
    inner.env("HOLDFAST_TEST_FOLDER", scratch.path(""));
    inner.env("HOLDFAST_LEDGER_DIR", user.runtime_dir.join("ledger"));
    user.command(&inner)
}

/// A bundle as an ordinary user has it: his own id is root inside, the network is the host's.
fn bundle(scratch: &Scratch, user: &User) -> Bundle {
    let bundle = scratch
        .bundle("box")
        .without_namespace("network")
        .namespace("user", None)
        .with(|spec| {
            let map = |id| json!([{"containerID": 0, "hostID": id, "size": 1}]);
            spec["linux"]["uidMappings"] = map(user.uid);
            spec["linux"]["gidMappings"] = map(user.gid);
            let linux = spec["linux"].as_object_mut().unwrap();
            linux.remove("cgroupsPath");
            linux.remove("resources");
            let mounts = spec["mounts"].as_array_mut().unwrap();
            for mount in mounts {
                if mount["destination"] == "/sys" {
                    *mount = json!({"destination": "/sys", "type": "none", "source": "/sys",
                                    "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]});
                } else if mount["destination"] == "/dev/pts" {
                    mount["options"]
                        .as_array_mut()
                        .unwrap()
                        .retain(|word| word != "gid=5");
                }
            }
        });
    user.own(&bundle.path);
    bundle
}

/// The user's own id as root, and his subordinate ones above it.
fn with_subordinates(bundle: Bundle, user: &User) -> Bundle {
    bundle.with(|spec| {
        let (first, count) = user.subordinate;
        let map = |own| {
            json!([{"containerID": 0, "hostID": own, "size": 1},
                   {"containerID": 1, "hostID": first, "size": count.min(65_535)}])
        };
        spec["linux"]["uidMappings"] = map(user.uid);
        spec["linux"]["gidMappings"] = map(user.gid);
    })
}

fn run(scratch: &Scratch, user: &User, bundle: &Bundle) -> Finished {
    bundle.write();
    call(
        scratch,
        user,
        &["run", "--bundle", &text(&bundle.path), "box"],
    )
}

fn assert_nothing_left(user: &User) {
    for name in ["holdfast", "runc"] {
        let left: Vec<_> = fs::read_dir(user.runtime_dir.join(name))
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().file_name())
            .filter(|name| !name.to_string_lossy().starts_with('.'))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

fn a_container_of_one_s_own_id(scratch: &Scratch) {
    let Some(user) = user(scratch, "a_container_of_one_s_own_id") else {
        return;
    };
    let script = "id -u; cat /proc/self/uid_map; cat /proc/self/setgroups; echo $$; \
                  touch /made; test -c /dev/null && echo devices; exit 7";
    let ran = run(scratch, &user, &bundle(scratch, &user).script(script));
    assert_eq!(ran.code(), 7, "{ran}");
    let words: Vec<&str> = ran.stdout.split_whitespace().collect();
    let own = user.uid.to_string();
    assert_eq!(
        words,
        ["0", "0", &own, "1", "deny", "1", "devices"],
        "{ran}"
    );
    let made = fs::metadata(scratch.path("bundle-box/rootfs/made")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), user.uid);
    assert_nothing_left(&user);
}

fn subordinate_ids_are_mapped_by_the_helpers(scratch: &Scratch) {
    let Some(user) = user(scratch, "subordinate_ids_are_mapped_by_the_helpers") else {
        return;
    };
    let bundle = with_subordinates(bundle(scratch, &user), &user)
        .with(|spec| spec["process"]["user"] = json!({"uid": 3, "gid": 4, "additionalGids": [5]}));
    // Everybody may write here, who has an id.
    let shared = bundle.in_rootfs("shared");
    fs::create_dir(&shared).unwrap();
    std::os::unix::fs::chown(&shared, Some(user.subordinate.0 + 2), None).unwrap();
    let script = "id -u; id -g; sed 1d /proc/self/uid_map | tr -s ' '; touch /shared/made; \
                  grep Groups /proc/self/status | tr -d '\\t '";
    let (ran, again) = {
        let bundle = bundle.script(script);
        (run(scratch, &user, &bundle), bundle)
    };
    if ran.stderr.contains("CVE-2014-8989") || ran.stderr.contains("additional groups") {
        // runc 1.1.5 sets no groups for an ordinary user at all.
        let bundle = again.with(|spec| spec["process"]["user"] = json!({"uid": 3, "gid": 4}));
        assert!(run(scratch, &user, &bundle).ok().starts_with("3\n4\n"));
        return;
    }
    let map = format!(
        " 1 {} {}",
        user.subordinate.0,
        user.subordinate.1.min(65_535)
    );
    assert_eq!(ran.ok(), format!("3\n4\n{map}\nGroups:5\n"), "{ran}");
    let made = fs::metadata(shared.join("made")).unwrap();
    let owner = std::os::unix::fs::MetadataExt::uid(&made);
    assert_eq!(owner, user.subordinate.0 + 2);
    assert_nothing_left(&user);
}

fn the_whole_life_of_a_container(scratch: &Scratch) {
    let Some(user) = user(scratch, "the_whole_life_of_a_container") else {
        return;
    };
    let bundle = with_subordinates(bundle(scratch, &user), &user).args(&["sleep", "600"]);
    // Somebody else inside than the user himself.
    let bundle = bundle.with(|spec| spec["process"]["user"] = json!({"uid": 9, "gid": 9}));
    bundle.write();
    let pid_file = user.runtime_dir.join("pid");
    let place = text(&bundle.path);
    let words = [
        "create",
        "--bundle",
        &place,
        "--pid-file",
        &text(&pid_file),
        "box",
    ];
    let mut create = command(scratch, &user, &words);
    let status = create
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(scratch.path("err")).unwrap())
        .status()
        .unwrap();
    let said = fs::read_to_string(scratch.path("err")).unwrap();
    assert!(status.success(), "{said}");
    let pid: i32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    let state = |expected: &str| {
        let said = call(scratch, &user, &["state", "box"]);
        let state: serde_json::Value = serde_json::from_str(said.ok()).unwrap();
        assert_eq!(state["status"], expected, "{said}");
    };
    state("created");
    call(scratch, &user, &["start", "box"]).ok();
    state("running");
    assert!(call(scratch, &user, &["list"]).ok().contains("box"));
    let script = "id -u; for n in user pid mnt; do readlink /proc/self/ns/$n; done";
    let inside = call(scratch, &user, &["exec", "box", "sh", "-c", script]);
    let mut expected = "9\n".to_owned();
    for name in ["user", "pid", "mnt"] {
        let link = fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
        expected.push_str(&format!("{}\n", link.display()));
    }
    assert_eq!(inside.ok(), expected);
    let root = call(
        scratch,
        &user,
        &["exec", "--user", "0:0", "box", "id", "-u"],
    );
    assert_eq!(root.ok(), "0\n");
    let failed = call(scratch, &user, &["exec", "box", "nosuch"]);
    assert_eq!(failed.code(), 255, "{failed}");
    assert!(
        failed.stderr.contains("executable file not found in $PATH"),
        "{failed}"
    );
    call(scratch, &user, &["kill", "box", "KILL"]).ok();
    scratch.exit_of(pid);
    state("stopped");
    call(scratch, &user, &["delete", "box"]).ok();
    assert_nothing_left(&user);
}

fn what_spec_writes_runs(scratch: &Scratch) {
    let Some(user) = user(scratch, "what_spec_writes_runs") else {
        return;
    };
    let bundle = bundle(scratch, &user);
    let mut spec = scratch.runtime.command();
    spec.args(["spec", "--rootless", "--bundle", &text(&bundle.path)]);
    spec.current_dir(&bundle.path);
    deadline::run(&mut user.command(&spec), LIMIT).ok();
    let written = fs::read_to_string(bundle.path.join("config.json")).unwrap();
    let mut bundle = bundle;
    bundle.spec = serde_json::from_str(&written).unwrap();
    bundle.spec["process"]["terminal"] = json!(false);
    bundle.spec["process"]["env"] = json!(["PATH=/bin"]);
    let ran = run(scratch, &user, &bundle.script("id -u; hostname"));
    assert!(ran.ok().starts_with("0\n"), "{ran}");
    assert_nothing_left(&user);
}

fn volumes_and_covers_hold(scratch: &Scratch) {
    let Some(user) = user(scratch, "volumes_and_covers_hold") else {
        return;
    };
    let volume = scratch.path("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "bound\n").unwrap();
    user.own(&volume);
    let bind = |source: &std::path::Path, to: &str, word: &str| json!({"destination": to, "type": "bind", "source": text(source), "options": ["rbind", word]});
    let bundle = bundle(scratch, &user)
        .mount(bind(&volume, "/writable", "rw"))
        .mount(bind(&volume, "/read-only", "ro"))
        .mount(bind(&volume.join("file"), "/etc/one", "ro"))
        .with(|spec| spec["root"]["readonly"] = json!(true));
    let script = "cat /etc/one; echo new >/writable/made && cat /read-only/made; \
                  echo x 2>/dev/null >/read-only/made || echo refused; \
                  echo x 2>/dev/null >/made || echo refused; \
                  echo x 2>/dev/null >/proc/sys/kernel/hostname || echo refused; \
                  stat -c %t,%T /proc/timer_list";
    let ran = run(scratch, &user, &bundle.script(script));
    assert_eq!(ran.ok(), "bound\nnew\nrefused\nrefused\nrefused\n1,3\n");
}

fn docker_s_profile_is_in_force(scratch: &Scratch) {
    let Some(user) = user(scratch, "docker_s_profile_is_in_force") else {
        return;
    };
    let bundle =
        bundle(scratch, &user)
            .docker_seccomp()
            .args(&["grep", "Seccomp:", "/proc/self/status"]);
    assert_eq!(run(scratch, &user, &bundle).ok(), "Seccomp:\t2\n");
}

fn a_cgroup_that_cannot_be_made(scratch: &Scratch) {
    let Some(user) = user(scratch, "a_cgroup_that_cannot_be_made") else {
        return;
    };
    let plain = bundle(scratch, &user);
    let ran = run(scratch, &user, &plain);
    ran.ok();
    assert!(
        ran.stderr
            .contains("rootless: the container has no cgroup of its own"),
        "{ran}"
    );
    let asked = plain
        .clone()
        .with(|spec| spec["linux"]["cgroupsPath"] = json!("/here/box"));
    let ran = run(scratch, &user, &asked);
    assert_eq!(ran.code(), 1, "{ran}");
    assert!(
        ran.stderr.contains("linux.cgroupsPath") && ran.stderr.contains("Permission denied"),
        "{ran}"
    );
    let limited = plain.with(|spec| spec["linux"]["resources"] = json!({"pids": {"limit": 20}}));
    let ran = run(scratch, &user, &limited);
    assert_eq!(ran.code(), 1, "{ran}");
    assert!(ran.stderr.contains("linux.resources"), "{ran}");
    assert_nothing_left(&user);
}

fn a_map_that_is_not_the_user_s(scratch: &Scratch) {
    let Some(user) = user(scratch, "a_map_that_is_not_the_user_s") else {
        return;
    };
    let bundle = bundle(scratch, &user).with(|spec| {
        spec["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 0, "size": 1}]);
    });
    let ran = run(scratch, &user, &bundle);
    assert_eq!(ran.code(), 1, "{ran}");
    assert!(ran.stderr.contains("newuidmap failed"), "{ran}");
    assert!(
        ran.stderr.contains("not allowed"),
        "the helper's own words: {ran}"
    );
    assert_nothing_left(&user);
}

fn helpers_that_are_missing(scratch: &Scratch) {
    let Some(user) = user(scratch, "helpers_that_are_missing") else {
        return;
    };
    let bundle = with_subordinates(bundle(scratch, &user), &user);
    bundle.write();
    let words = ["run", "--bundle", &text(&bundle.path), "box"];
    let mut command = command(scratch, &user, &words);
    let program = text(&holdfast_integration::place::program("setpriv").unwrap());
    let mut elsewhere = Command::new(program);
    elsewhere
        .args(command.get_args())
        .env_clear()
        .current_dir("/");
    for (key, value) in command.get_envs() {
        elsewhere.env(key, value.unwrap_or_default());
    }
    command = elsewhere;
    let ran = deadline::run(command.env("PATH", "/nowhere"), LIMIT);
    assert_eq!(ran.code(), 1, "{ran}");
    assert!(ran.stderr.contains("package uidmap"), "{ran}");
    assert_nothing_left(&user);
}

fn groups_that_cannot_be_set(scratch: &Scratch) {
    let Some(user) = user(scratch, "groups_that_cannot_be_set") else {
        return;
    };
    let bundle = bundle(scratch, &user).with(|spec| {
        spec["process"]["user"] = json!({"uid": 0, "gid": 0, "additionalGids": [0]});
    });
    let ran = run(scratch, &user, &bundle);
    assert_eq!(ran.code(), 1, "{ran}");
    assert!(ran.stderr.contains("group"), "{ran}");
    assert_nothing_left(&user);
}

fn a_terminal(scratch: &Scratch) {
    let Some(user) = user(scratch, "a_terminal") else {
        return;
    };
    let bundle = bundle(scratch, &user)
        .script("test -t 0 && test -t 1 && readlink /proc/self/fd/0")
        .with(|spec| spec["process"]["terminal"] = json!(true));
    let ran = run(scratch, &user, &bundle);
    assert_eq!(ran.ok().trim_end(), "/dev/pts/0", "{ran}");
}

/// The user's own systemd, which runs until this is dropped.
struct Session<'a> {
    user: &'a User,
}

impl<'a> Session<'a> {
    /// Starts it, where one can be had.
    fn begin(user: &'a mut User) -> Result<Self, String> {
        let unified = fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap();
        if !fs::exists("/run/systemd/system").unwrap() || !unified {
            return Err("no systemd with pure cgroup v2 runs here".into());
        }
        user.runtime_dir = format!("/run/user/{}", user.uid).into();
        let this = Self { user };
        let unit = format!("user@{}.service", this.user.uid);
        let begun = deadline::run(Command::new("systemctl").args(["start", &unit]), LIMIT);
        if begun.status.success() {
            Ok(this)
        } else {
            Err(format!("user@{}.service: {}", this.user.uid, begun.stderr))
        }
    }

    /// `systemctl --user`
    fn call(&self, words: &[&str]) -> Finished {
        let mut command = Command::new("systemctl");
        command.arg("--user").args(words);
        deadline::run(&mut self.user.command(&command), LIMIT)
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        // Also its XDG_RUNTIME_DIR. It gives its units the usual 90 s to end if a failed test has left some.
        let unit = format!("user@{}.service", self.user.uid);
        let ended = Command::new("systemctl")
            .args(["kill", "--signal=KILL", &unit])
            .status();
        let stopped = Command::new("systemctl").args(["stop", &unit]).status();
        if !std::thread::panicking() {
            assert!(ended.unwrap().success() && stopped.unwrap().success());
        }
    }
}

/// The systemd driver in the hands of an ordinary user: the scope belongs to the user's own instance, which was given
/// controllers, and limits hold. The test itself comes from a service of the system, as somebody from another session
/// does.
fn a_scope_of_the_user_s_own_systemd(scratch: &Scratch) {
    let Some(mut user) = user(scratch, "a_scope_of_the_user_s_own_systemd") else {
        return;
    };
    let uid = user.uid;
    let session = match Session::begin(&mut user) {
        Ok(session) => session,
        Err(why) => return skip("a_scope_of_the_user_s_own_systemd", &why),
    };
    let user = session.user;
    let unique = place::unique("holdfast-test");
    let unit = format!("{unique}-own.scope");
    let bundle = bundle(scratch, user).args(&["sleep", "600"]).with(|spec| {
        spec["linux"]["cgroupsPath"] = json!(format!(":{unique}:own"));
        spec["linux"]["resources"] = json!({
            "memory": {"limit": 64 << 20},
            "pids": {"limit": 50},
            "devices": [{"allow": false, "access": "rwm"}],
        });
    });
    bundle.write();
    let systemd = |words: &[&str]| {
        let mut all = vec!["--systemd-cgroup"];
        all.extend(words);
        command(scratch, user, &all)
    };
    let pid_of = |words: &[&str]| {
        let file = user.runtime_dir.join("pid");
        let mut all = vec![words[0], "--pid-file", file.to_str().unwrap()];
        all.extend(&words[1..]);
        let status = systemd(&all)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(scratch.path("err")).unwrap())
            .status()
            .unwrap();
        let said = fs::read_to_string(scratch.path("err")).unwrap();
        assert!(status.success(), "{words:?}: {said}");
        fs::read_to_string(&file).unwrap().parse::<i32>().unwrap()
    };
    let init = pid_of(&["create", "--bundle", &text(&bundle.path), "box"]);
    let below = format!("/user.slice/user-{uid}.slice/user@{uid}.service/user.slice/{unit}");
    let dir = format!("/sys/fs/cgroup{below}");
    let limit = |file: &str| {
        fs::read_to_string(format!("{dir}/{file}"))
            .unwrap_or_else(|error| panic!("{dir}/{file}: {error}"))
            .trim()
            .to_owned()
    };
    assert_eq!(limit("memory.max"), (64 << 20).to_string());
    assert_eq!(limit("pids.max"), "50");
    let shown = session.call(&["show", &unit, "-p", "ActiveState,Delegate,TasksMax"]);
    for line in ["ActiveState=active", "Delegate=yes", "TasksMax=50"] {
        assert!(shown.ok().lines().any(|l| l == line), "{line}: {shown}");
    }
    deadline::run(&mut systemd(&["start", "box"]), LIMIT).ok();

    let place_of = |pid: i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        text.trim().trim_start_matches("0::").to_owned()
    };
    assert_eq!(place_of(init), below);
    let exec = pid_of(&["exec", "--detach", "box", "sleep", "600"]);
    // runc lets it stay where its caller is, and says nothing.
    if scratch.runtime.kind == Kind::Holdfast {
        assert_eq!(place_of(exec), below);
    }

    let resources = scratch.path("resources.json");
    fs::write(&resources, json!({"pids": {"limit": 70}}).to_string()).unwrap();
    fs::set_permissions(&resources, fs::Permissions::from_mode(0o644)).unwrap();
    let words = ["update", "--resources", &text(&resources), "box"];
    deadline::run(&mut systemd(&words), LIMIT).ok();
    session.call(&["daemon-reload"]).ok();
    assert_eq!(limit("pids.max"), "70");

    deadline::run(&mut systemd(&["kill", "box", "KILL"]), LIMIT).ok();
    // Its pid namespace ends with the last process in it that is reaped.
    scratch.exit_of(exec);
    scratch.exit_of(init);
    deadline::run(&mut systemd(&["delete", "box"]), LIMIT).ok();
    assert!(!fs::exists(&dir).unwrap());
    let shown = session.call(&["show", &unit, "-p", "LoadState"]);
    assert_eq!(shown.ok().trim(), "LoadState=not-found");
    assert_nothing_left(user);
}

/// The driver without one: the error says where it was looked for.
fn no_systemd_of_the_user_s_own(scratch: &Scratch) {
    let Some(user) = user(scratch, "no_systemd_of_the_user_s_own") else {
        return;
    };
    let bundle = bundle(scratch, &user).args(&["true"]);
    bundle.write();
    let words = [
        "--systemd-cgroup",
        "run",
        "--bundle",
        &text(&bundle.path),
        "box",
    ];
    let ran = call(scratch, &user, &words);
    let said = ran.failed();
    if fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap() {
        let bus = user.runtime_dir.join("bus");
        assert!(said.contains(bus.to_str().unwrap()), "{ran}");
        assert!(said.contains("systemctl --user"), "{ran}");
    } else {
        assert!(said.contains("needs root on cgroup v1"), "{ran}");
    }
    assert_nothing_left(&user);
}
