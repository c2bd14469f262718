//! Attacks that runtimes have fallen for, tried on ours: by an image, by a configuration, by a
//! container next door. Attacks by somebody who is faster than the runtime are in
//! `runtime_swaps.rs`. `init/runtime/docs/hardening.md` has the table.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::Path;

use holdfast_integration::bundle::Bundle;
use holdfast_integration::pty::DescriptorSocket;
use holdfast_integration::runtime::Kind;
use holdfast_integration::scratch::{LIMIT, Scratch, text};
use holdfast_integration::{deadline, on_runtimes, place};
use serde_json::json;

on_runtimes! {
    // CVE-2019-5736
    the_runtime_s_own_file_cannot_be_overwritten: holdfast;
    // CVE-2024-21626
    a_working_directory_that_is_a_leaked_descriptor: holdfast;
    a_descriptor_the_runtime_was_started_with_does_not_arrive: holdfast;
    // CVE-2016-9962; runc and crun: seen to refuse as well, by other means.
    a_created_container_shows_its_neighbour_nothing: holdfast runc crun;
    // CVE-2019-19921, CVE-2023-27561, CVE-2023-28642, CVE-2026-41579, CVE-2026-47766
    kernel_file_systems_behind_symlinks: holdfast;
    // CVE-2019-16884, CVE-2019-19921
    a_volume_over_a_file_of_proc: holdfast runc;
    // CVE-2021-30465 and its kin, without a race
    shared_memory_behind_symlinks: holdfast;
    a_device_outside_of_dev_stays_inside: holdfast;
    // CVE-2025-31133
    masked_paths_with_a_null_device_of_the_image: holdfast;
    // CVE-2025-52565
    a_console_that_is_a_symlink: holdfast;
    // CVE-2025-52881
    a_sysctl_goes_to_the_kernel_and_nowhere_else: holdfast;
    a_sysctl_of_the_whole_machine_is_refused: holdfast runc;
    // CVE-2022-29162
    no_capability_is_inheritable: holdfast runc;
    // CVE-2022-2989 and its kin
    groups_of_the_caller_stay_outside: holdfast runc crun;
    // What a hook and a container learn of us
    a_hook_has_its_own_environment_and_no_descriptor: holdfast;
    // User namespaces
    id_maps_that_overlap: holdfast;
    root_of_a_user_namespace_is_not_root: holdfast runc crun;
    // Paths
    a_cgroup_path_that_climbs: holdfast;
    an_exec_cgroup_that_climbs: holdfast;
    ids_and_programs_that_climb: holdfast;
}

/// A folder outside of every root file system that must stay as empty as it is.
fn outside(scratch: &Scratch) -> std::path::PathBuf {
    let folder = scratch.path("outside");
    fs::create_dir(&folder).unwrap();
    folder
}

#[track_caller]
fn assert_untouched(outside: &Path) {
    let found: Vec<_> = fs::read_dir(outside)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(found.is_empty(), "reached the host: {found:?}");
}

/// A new bundle `box` in the place of the one before.
fn again(scratch: &Scratch) -> Bundle {
    let _ = fs::remove_dir_all(scratch.path("bundle-box"));
    scratch.bundle("box")
}

fn without_mount(bundle: Bundle, destination: &str) -> Bundle {
    bundle.with(|spec| {
        spec["mounts"]
            .as_array_mut()
            .unwrap()
            .retain(|mount| mount["destination"] != destination);
    })
}

/// The image names `/proc/self/exe` as its program: what runs inside then is the runtime's own
/// file, and somebody next to it opens that for writing through `/proc/PID/exe`.
///
/// The file is `holdfast-init`. Its arguments are the descriptors of a plan and of a socket; this
/// plan makes it wait, so that nobody has to be fast.
fn the_runtime_s_own_file_cannot_be_overwritten(scratch: &Scratch) {
    let program = place::built("holdfast");
    let before = fs::read(&program).unwrap();
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    // Magic, version 1, one step, the scratch area behind it; step 3: wait for the parent.
    let mut plan = b"HFPL".to_vec();
    for word in [1u32, 1, 16 + 8 + 24, 3, 24] {
        plan.extend(word.to_le_bytes());
    }
    for field in [4u64, 0, 1] {
        plan.extend(field.to_le_bytes());
    }
    fs::write(scratch.path("plan"), plan).unwrap();
    scratch.start(&bundle);
    let (theirs, ours) = UnixStream::pair().unwrap();
    let mut running = scratch
        .command(&["exec", "box", "/proc/self/exe", "0", "1"])
        .stdin(fs::File::open(scratch.path("plan")).unwrap())
        .stdout(OwnedFd::from(theirs))
        .spawn()
        .unwrap();
    let attack = "for p in /proc/[0-9]*; do case $(readlink $p/exe) in *memfd*) ;; *) continue;; esac; \
                  echo seen; exec 5<$p/exe; printf x 2>/dev/null 1<>$p/exe && echo WROTE; \
                  kill -9 ${p#/proc/}; while readlink $p/exe >/dev/null; do :; done; \
                  printf x 2>/dev/null 1<>/proc/self/fd/5 && echo WROTE; done; true";
    let seen = deadline::eventually("holdfast-init as a program", LIMIT, || {
        let said = scratch.exec(&bundle, &["sh", "-c", attack]);
        said.ok().contains("seen").then_some(said)
    });
    assert_eq!(seen.stdout, "seen\n", "{seen}");
    drop(ours);
    running.wait().unwrap();
    scratch.end(&bundle);
    assert!(before == fs::read(&program).unwrap(), "the runtime changed");
}

/// Whatever is open in the runtime or in init at that moment, the working directory is inside.
fn a_working_directory_that_is_a_leaked_descriptor(scratch: &Scratch) {
    let marker = scratch.path("marker");
    fs::write(&marker, "of the host\n").unwrap();
    let climb = format!("cat ../../../../../../../../..{}", text(&marker));
    let long = scratch.bundle("long").args(&["sleep", "600"]);
    scratch.start(&long);
    for number in 3..24 {
        let cwd = format!("/proc/self/fd/{number}");
        let bundle = again(scratch)
            .script(&climb)
            .with(|spec| spec["process"]["cwd"] = json!(cwd));
        let ran = scratch.run(&bundle);
        assert_ne!(ran.stdout, "of the host\n", "{cwd}: {ran}");
        // Running is fine where the descriptor is of the container itself, not starting too.
        if !ran.status.success() {
            scratch.call(&["delete", "--force", "box"]).ok();
        }
        let said = scratch.call(&["exec", "--cwd", &cwd, "long", "sh", "-c", &climb]);
        assert_ne!(said.stdout, "of the host\n", "{cwd}: {said}");
    }
    scratch.end(&long);
}

fn a_descriptor_the_runtime_was_started_with_does_not_arrive(scratch: &Scratch) {
    let bundle = scratch
        .bundle("box")
        .script("ls /proc/self/fd | sort -n | tr '\\n' ' '");
    bundle.write();
    let ours = scratch.command(&["run", "--bundle", &text(&bundle.path), "box"]);
    let mut careless = std::process::Command::new("sh");
    careless
        .args(["-c", "exec 7</ 9</etc/passwd; exec \"$@\"", "sh"])
        .arg(ours.get_program())
        .args(ours.get_args());
    for (key, value) in ours.get_envs() {
        careless.env(key, value.unwrap_or_default());
    }
    let ran = deadline::run(&mut careless, LIMIT);
    // 3 is the folder that ls reads.
    assert_eq!(ran.ok().trim(), "0 1 2 3", "{ran}");
}

/// Two containers in one pid namespace, as in a pod that shares it: while the second waits for its
/// start, or sets itself up, the first must not reach the host through its `/proc/PID/fd`.
fn a_created_container_shows_its_neighbour_nothing(scratch: &Scratch) {
    let first = scratch.bundle("first").args(&["sleep", "600"]);
    let pid = scratch.start(&first);
    let second = scratch
        .bundle("second")
        .args(&["sleep", "600"])
        .namespace("pid", Some(&format!("/proc/{pid}/ns/pid")))
        // What makes init open the host's /proc.
        .with(|spec| spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"}));
    scratch.create(&second);
    let look = "for p in /proc/[0-9]*; do \
                  case $p in /proc/1|/proc/self|/proc/$$) continue;; esac; \
                  grep -q sleep $p/cmdline && continue; \
                  for d in $p/fd/*; do readlink $d; test -d $d/1/ns && echo HOST; done; \
                  done 2>/dev/null; echo looked";
    let said = scratch.exec(&first, &["sh", "-c", look]);
    assert!(said.ok().ends_with("looked\n"), "{said}");
    assert!(!said.stdout.contains("HOST"), "{said}");
    if scratch.runtime.kind == Kind::Holdfast {
        assert_eq!(said.stdout, "looked\n", "its descriptors can be read");
    }
    scratch.call(&["start", "second"]).ok();
    scratch.end(&second);
    scratch.end(&first);
}

fn kernel_file_systems_behind_symlinks(scratch: &Scratch) {
    let outside = outside(scratch);
    for (at, place) in [(1, "proc"), (2, "sys"), (3, "dev")] {
        // The folder itself, and one on the way to it.
        for way in [place.to_owned(), format!("way/{place}")] {
            let name = format!("box{at}");
            let bundle = scratch.bundle(&name);
            let link = bundle.in_rootfs(way.split('/').next().unwrap());
            let _ = fs::remove_dir(&link);
            symlink(&outside, &link).unwrap();
            let bundle = bundle.with(|spec| {
                for mount in spec["mounts"].as_array_mut().unwrap() {
                    let destination = mount["destination"].as_str().unwrap();
                    if let Some(rest) = destination.strip_prefix(&format!("/{place}")) {
                        mount["destination"] = json!(format!("/{way}{rest}"));
                    }
                }
            });
            let ran = scratch.run(&bundle);
            assert_untouched(&outside);
            // proc and sysfs on a symlink are refused; a tmpfs on it is mounted inside the root.
            if place != "dev" || way == "dev" {
                assert_ne!(ran.code(), 0, "{way}: {ran}");
                assert!(
                    ran.stderr.contains("must be a directory and not a symlink"),
                    "{ran}"
                );
            }
            scratch.call(&["delete", "--force", &name]).ok();
            fs::remove_dir_all(&bundle.path).unwrap();
        }
    }
}

fn a_volume_over_a_file_of_proc(scratch: &Scratch) {
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "fake\n").unwrap();
    let bind = |what: &Path, to: &str| json!({"destination": to, "type": "bind", "source": text(what), "options": ["bind"]});
    for mount in [
        bind(&source.join("file"), "/proc/self/attr/exec"),
        bind(&source.join("file"), "/proc/sys/kernel/hostname"),
        bind(&source, "/proc/sys"),
        bind(&source, "/proc/../proc/tty"),
        bind(&source, "/proc"),
    ] {
        let ran = scratch.run(&again(scratch).mount(mount.clone()));
        assert_ne!(ran.code(), 0, "{mount}: {ran}");
        assert!(ran.stderr.contains("/proc"), "{ran}");
        scratch.call(&["delete", "--force", "box"]).ok();
    }
    // What lxcfs provides is allowed.
    let bundle = again(scratch).mount(bind(&source.join("file"), "/proc/meminfo"));
    assert_eq!(
        scratch.run(&bundle.args(&["cat", "/proc/meminfo"])).ok(),
        "fake\n"
    );
}

fn shared_memory_behind_symlinks(scratch: &Scratch) {
    let outside = outside(scratch);
    let bundle = without_mount(scratch.bundle("box"), "/dev");
    for place in ["dev/shm", "dev/mqueue", "dev/pts"] {
        symlink(&outside, bundle.in_rootfs(place)).unwrap();
    }
    let ran = scratch.run(&bundle.script("grep -c ' /dev/' /proc/self/mountinfo; true"));
    assert_untouched(&outside);
    if !ran.status.success() {
        scratch.call(&["delete", "--force", "box"]).ok();
    }
}

fn a_device_outside_of_dev_stays_inside(scratch: &Scratch) {
    let outside = outside(scratch);
    let bundle = scratch.bundle("box");
    symlink(&outside, bundle.in_rootfs("link")).unwrap();
    let up = format!("/../../../../../../../..{}/climbed", text(&outside));
    let device =
        |path: &str| json!({"path": path, "type": "c", "major": 1, "minor": 3, "fileMode": 438});
    let bundle = bundle
        .with(|spec| spec["linux"]["devices"] = json!([device("/link/made"), device(&up)]))
        .script(&format!("ls {}", text(&outside)));
    assert_eq!(scratch.run(&bundle).ok(), "climbed\nmade\n");
    assert_untouched(&outside);
}

/// The cover of masked paths is the host's null device, whatever the image has in its place.
fn masked_paths_with_a_null_device_of_the_image(scratch: &Scratch) {
    for fake in ["/proc/sysrq-trigger", "/etc/passwd", "/nowhere"] {
        let bundle = without_mount(again(scratch), "/dev");
        let _ = fs::remove_file(bundle.in_rootfs("dev/null"));
        symlink(fake, bundle.in_rootfs("dev/null")).unwrap();
        let ran =
            scratch.run(&bundle.args(&["stat", "-c", "%t,%T", "/proc/keys", "/proc/timer_list"]));
        assert_eq!(ran.ok(), "1,3\n1,3\n", "{fake}");
    }
}

/// The terminal is mounted before the masked paths are covered: an image must not choose on what.
fn a_console_that_is_a_symlink(scratch: &Scratch) {
    let bundle = without_mount(scratch.bundle("box"), "/dev");
    symlink("/proc/sysrq-trigger", bundle.in_rootfs("dev/console")).unwrap();
    let bundle = bundle
        .script("grep -c sysrq-trigger.*devpts /proc/self/mountinfo")
        .with(|spec| spec["process"]["terminal"] = json!(true));
    bundle.write();
    let _socket = DescriptorSocket::listen(&scratch.path("console"));
    let (created, _) = scratch.try_create(
        &bundle,
        &["--console-socket", &text(&scratch.path("console"))],
    );
    assert!(created.failed().contains("/dev/console"), "{created}");
}

/// A volume that covers the sysctl's file inside (which is refused as such), or the folder of a
/// previous container, is not what is written to.
fn a_sysctl_goes_to_the_kernel_and_nowhere_else(scratch: &Scratch) {
    let bundle = scratch.bundle("box");
    // An image with something at the place where procfs will be.
    let fake = bundle.in_rootfs("proc/sys/net/ipv4");
    fs::create_dir_all(&fake).unwrap();
    fs::write(fake.join("ip_forward"), "untouched").unwrap();
    let bundle = bundle
        .with(|spec| spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"}))
        .args(&["cat", "/proc/sys/net/ipv4/ip_forward"]);
    assert_eq!(scratch.run(&bundle).ok(), "1\n");
    assert_eq!(
        fs::read_to_string(fake.join("ip_forward")).unwrap(),
        "untouched"
    );
}

fn a_sysctl_of_the_whole_machine_is_refused(scratch: &Scratch) {
    let place = "/proc/sys/kernel/panic";
    let before = fs::read_to_string(place).unwrap();
    for (name, shared) in [
        ("kernel.panic", None),
        ("vm.overcommit_memory", None),
        ("net.ipv4.ip_forward", Some("network")),
        ("kernel.shmmax", Some("ipc")),
        ("kernel.domainname", Some("uts")),
    ] {
        let bundle = again(scratch).with(|spec| {
            spec["linux"]["sysctl"] = json!({name: "1"});
            spec.as_object_mut().unwrap().remove("hostname");
        });
        let bundle = match shared {
            Some(kind) => bundle.without_namespace(kind),
            None => bundle,
        };
        let ran = scratch.run(&bundle);
        assert_ne!(ran.code(), 0, "{name}: {ran}");
        assert!(ran.stderr.contains(name), "{ran}");
        scratch.call(&["delete", "--force", "box"]).ok();
    }
    assert_eq!(fs::read_to_string(place).unwrap(), before);
}

fn no_capability_is_inheritable(scratch: &Scratch) {
    let none = "CapInh:\t0000000000000000\n";
    let look = ["grep", "CapInh", "/proc/self/status"];
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    let pid = scratch.start(&bundle);
    let of_init = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(of_init.contains(none), "{of_init}");
    assert_eq!(scratch.exec(&bundle, &look).ok(), none);
    let said = scratch.call(&[&["exec", "--cap", "CAP_SYS_PTRACE", "box"][..], &look].concat());
    assert_eq!(said.ok(), none);
    scratch.end(&bundle);
}

fn groups_of_the_caller_stay_outside(scratch: &Scratch) {
    let long = scratch.bundle("long").args(&["sleep", "600"]);
    scratch.start(&long);
    let look = "grep Groups /proc/self/status | tr -d '\\t '";
    let caller = |words: &[&str]| {
        let inner = scratch.command(words);
        let mut command = std::process::Command::new("setpriv");
        command
            .args(["--groups", "4,5,20"])
            .arg(inner.get_program())
            .args(inner.get_args());
        for (key, value) in inner.get_envs() {
            command.env(key, value.unwrap_or_default());
        }
        deadline::run(&mut command, LIMIT)
    };
    for (groups, told) in [(json!([]), "Groups:\n"), (json!([7]), "Groups:7\n")] {
        let bundle = again(scratch).script(look).with(|spec| {
            spec["process"]["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": groups});
        });
        bundle.write();
        let ran = caller(&["run", "--bundle", &text(&bundle.path), "box"]);
        assert_eq!(ran.ok().trim_end(), told.trim_end(), "{ran}");
    }
    let said = caller(&["exec", "--user", "1000:1000", "long", "sh", "-c", look]);
    assert_eq!(said.ok().trim_end(), "Groups:", "{said}");
    scratch.end(&long);
}

fn a_hook_has_its_own_environment_and_no_descriptor(scratch: &Scratch) {
    let told = scratch.path("told");
    let script = format!(
        "{{ tr '\\0' '\\n' </proc/self/environ; ls /proc/self/fd | tr '\\n' ' '; echo; }} >>{}",
        text(&told)
    );
    let hook = json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["OWN=1"]}]);
    let bundle = scratch.bundle("box").with(|spec| {
        spec["process"]["env"] = json!(["PATH=/bin", "SECRET=of the container"]);
        spec["hooks"] = json!({"createRuntime": hook, "poststart": hook, "poststop": hook});
    });
    scratch.run(&bundle).ok();
    // `>>` is 3 while ls runs, which reads its folder through 4; a shell may keep a saved one.
    for line in fs::read_to_string(&told).unwrap().lines() {
        let fine = line == "OWN=1"
            || line.starts_with("PWD=")
            || line.starts_with("0 1 2 3") && !line.contains(" 5");
        assert!(fine, "a hook sees {line:?}");
    }
}

fn id_maps_that_overlap(scratch: &Scratch) {
    let good = json!({"containerID": 0, "hostID": 100_000, "size": 1000});
    for bad in [
        json!({"containerID": 500, "hostID": 200_000, "size": 10}),
        json!({"containerID": 2000, "hostID": 100_999, "size": 10}),
        json!({"containerID": 5000, "hostID": 4_294_967_290u32, "size": 100}),
        json!({"containerID": 5000, "hostID": 300_000, "size": 0}),
    ] {
        let bundle = again(scratch).user_namespace(100_000).with(|spec| {
            spec["linux"]["uidMappings"] = json!([good, bad]);
        });
        let ran = scratch.run(&bundle);
        assert_ne!(ran.code(), 0, "{bad}: {ran}");
        assert!(ran.stderr.contains("uid"), "{bad}: {ran}");
        scratch.assert_nothing_left();
    }
}

fn root_of_a_user_namespace_is_not_root(scratch: &Scratch) {
    let secret = scratch.path("secret");
    fs::create_dir(&secret).unwrap();
    fs::write(secret.join("file"), "of root\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(secret.join("file"), mode).unwrap();
    let script = "cat /secret/file; echo 0 0 1 >/proc/self/uid_map; \
                  echo x >/proc/sysrq-trigger; id -u; cat /proc/self/uid_map";
    let bundle = scratch
        .bundle("box")
        .user_namespace(100_000)
        .mount(json!({"destination": "/secret", "type": "bind", "source": text(&secret), "options": ["bind"]}))
        .script(script);
    let ran = scratch.run(&bundle);
    let words: Vec<&str> = ran.stdout.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "100000", "65536"], "{ran}");
}

fn a_cgroup_path_that_climbs(scratch: &Scratch) {
    for path in ["/a/../../b", "../up", "/..", "/"] {
        let bundle = again(scratch).with(|spec| spec["linux"]["cgroupsPath"] = json!(path));
        let ran = scratch.run(&bundle);
        assert_ne!(ran.code(), 0, "{path}: {ran}");
        assert!(ran.stderr.contains("cgroup"), "{ran}");
        scratch.assert_nothing_left();
    }
}

fn an_exec_cgroup_that_climbs(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    scratch.start(&bundle);
    for path in ["..", "../other", "/../..", "a/../../b"] {
        let said = scratch.call(&["exec", "--cgroup", path, "box", "true"]);
        assert_eq!(said.code(), 255, "{path}: {said}");
        assert!(said.failed().contains(".."), "{said}");
    }
    scratch.end(&bundle);
}

fn ids_and_programs_that_climb(scratch: &Scratch) {
    let bundle = scratch.bundle("box").args(&["sleep", "600"]);
    scratch.start(&bundle);
    for id in ["../box", "box/../box", "..", ".", "a/b", ""] {
        for words in [
            &["state", id][..],
            &["delete", "--force", id],
            &["kill", id, "9"],
        ] {
            let said = scratch.call(words);
            assert_ne!(said.code(), 0, "{words:?}: {said}");
        }
    }
    // Still there.
    assert_eq!(scratch.state("box")["status"], "running");
    let of_host = format!("/../../../../../..{}", text(&place::built("holdfast")));
    let said = scratch.exec(&bundle, &[&of_host, "--version"]);
    assert_eq!(said.code(), 255, "{said}");
    scratch.end(&bundle);
}
