//! Mounts as the container sees them: propagation verified in mountinfo and by behaviour,
//! masked and read-only paths, devices, the root file system.

use std::fs;
use std::path::{Path, PathBuf};

use holdfast_integration::bundle::Bundle;
use holdfast_integration::scratch::{Scratch, text};
use holdfast_integration::{leaks, on_runtimes};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;

on_runtimes! {
    propagation_of_a_mount_is_what_was_asked: holdfast runc;
    recursive_propagation_reaches_the_mounts_below: holdfast runc;
    a_slave_mount_receives_what_the_host_mounts_later: holdfast runc;
    a_shared_mount_gives_to_the_host_what_the_container_mounts: holdfast runc crun;
    a_private_mount_receives_nothing: holdfast runc crun;
    // runc 1.1.5 leaves it private whatever is asked for.
    propagation_of_the_root_is_what_was_asked: holdfast crun;
    a_shared_root_on_a_shared_mount: holdfast crun;
    an_unbindable_root_and_all_below_it: holdfast;
    nothing_of_the_host_s_root_is_seen: holdfast runc crun;
    a_read_only_root_is_read_only: holdfast runc crun;
    // runc 1.1.5 gives a tmpfs the mode of the folder below it.
    options_of_mounts_hold: holdfast crun;
    recursive_read_only_reaches_the_mounts_below: holdfast crun;
    masked_and_read_only_paths_hold: holdfast runc crun;
    standard_devices_and_links_are_there: holdfast runc crun;
    asked_for_devices_are_made: holdfast runc crun;
    a_file_is_bound_on_a_file_that_is_made: holdfast runc crun;
    a_mount_target_that_is_a_symlink_stays_inside: holdfast runc crun;
    the_cgroup_mount_shows_the_container_s_own: holdfast runc;
    a_volume_mounted_over_a_volume: holdfast runc crun;
    a_volume_gives_the_host_nothing_unless_asked: holdfast runc crun;
    a_node_bound_from_the_host_is_not_covered_there: holdfast runc crun;
    a_root_on_a_shared_mount_can_be_shared: holdfast runc;
    // Options of later crun; runc has none of the kind.
    a_symlink_is_copied_when_asked: holdfast;
    symlinks_are_mounted_when_asked: holdfast;
    acl_is_an_option_of_mounts: holdfast runc;
}

/// A tmpfs of the host on a shared mount point, gone with the guard.
struct HostMount(PathBuf);

impl HostMount {
    fn shared(path: &Path) -> Self {
        fs::create_dir_all(path).unwrap();
        mount(
            Some("holdfast-test"),
            path,
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .unwrap();
        let guard = Self(path.to_path_buf());
        mount(
            None::<&str>,
            path,
            None::<&str>,
            MsFlags::MS_SHARED,
            None::<&str>,
        )
        .unwrap();
        guard
    }

    fn below(&self, name: &str) -> Self {
        let path = self.0.join(name);
        fs::create_dir_all(&path).unwrap();
        mount(
            Some("holdfast-test"),
            &path,
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .unwrap();
        fs::write(path.join("file"), name).unwrap();
        Self(path)
    }
}

impl Drop for HostMount {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// The optional fields of a mount point in a container: `shared:N`, `master:N`, `unbindable`.
fn propagation(scratch: &Scratch, bundle: &Bundle, point: &str) -> String {
    let shown = scratch.exec(bundle, &["cat", "/proc/self/mountinfo"]);
    let line = shown
        .ok()
        .lines()
        .rfind(|line| line.split(' ').nth(4) == Some(point));
    let line = line.unwrap_or_else(|| panic!("no mount on {point}: {shown}"));
    let fields: Vec<&str> = line
        .split(' ')
        .skip(6)
        .take_while(|field| *field != "-")
        .collect();
    let kinds: Vec<&str> = fields
        .iter()
        .map(|field| field.split(':').next().unwrap())
        .collect();
    kinds.join(" ")
}

fn bind(source: &Path, options: &[&str]) -> serde_json::Value {
    json!({"destination": "/mnt", "type": "bind", "source": text(source), "options": options})
}

fn sleeping(scratch: &Scratch, name: &str) -> Bundle {
    scratch.bundle(name).args(&["sleep", "600"])
}

fn propagation_of_a_mount_is_what_was_asked(scratch: &Scratch) {
    let host = HostMount::shared(&scratch.path("host"));
    for (option, expected) in [
        ("private", ""),
        ("rprivate", ""),
        ("slave", "master"),
        ("rslave", "master"),
        ("shared", "shared"),
        ("rshared", "shared"),
        ("unbindable", "unbindable"),
        ("runbindable", "unbindable"),
    ] {
        let bundle = sleeping(scratch, option).mount(bind(&host.0, &["rbind", option]));
        scratch.start(&bundle);
        let seen = propagation(scratch, &bundle, "/mnt");
        // A shared mount may at the same time be slave of the host's.
        let seen = if expected == "shared" {
            seen.split(' ').next().unwrap().to_owned()
        } else {
            seen
        };
        assert_eq!(seen, expected, "{option}");
        scratch.end(&bundle);
    }
}

fn recursive_propagation_reaches_the_mounts_below(scratch: &Scratch) {
    let host = HostMount::shared(&scratch.path("host"));
    let below = host.below("below");
    for (option, expected) in [("rprivate", ""), ("rslave", "master")] {
        let bundle = sleeping(scratch, option).mount(bind(&host.0, &["rbind", option]));
        scratch.start(&bundle);
        assert_eq!(
            propagation(scratch, &bundle, "/mnt/below"),
            expected,
            "{option}"
        );
        scratch.end(&bundle);
    }
    drop(below);
}

fn a_slave_mount_receives_what_the_host_mounts_later(scratch: &Scratch) {
    let host = HostMount::shared(&scratch.path("host"));
    let bundle = sleeping(scratch, "box").mount(bind(&host.0, &["rbind", "rslave"]));
    scratch.start(&bundle);
    let later = host.below("later");
    assert_eq!(
        scratch.exec(&bundle, &["cat", "/mnt/later/file"]).ok(),
        "later"
    );
    drop(later);
    assert_ne!(scratch.exec(&bundle, &["cat", "/mnt/later/file"]).code(), 0);
    scratch.end(&bundle);
}

fn a_private_mount_receives_nothing(scratch: &Scratch) {
    let host = HostMount::shared(&scratch.path("host"));
    let bundle = sleeping(scratch, "box").mount(bind(&host.0, &["rbind", "rprivate"]));
    scratch.start(&bundle);
    let _later = host.below("later");
    assert_ne!(scratch.exec(&bundle, &["cat", "/mnt/later/file"]).code(), 0);
    scratch.end(&bundle);
}

fn a_shared_mount_gives_to_the_host_what_the_container_mounts(scratch: &Scratch) {
    let host = HostMount::shared(&scratch.path("host"));
    let bundle = sleeping(scratch, "box")
        .mount(bind(&host.0, &["rbind", "rshared"]))
        .with(|spec| {
            spec["linux"]["rootfsPropagation"] = "rshared".into();
            let caps = json!(["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]);
            spec["process"]["capabilities"] =
                json!({"bounding": caps, "effective": caps, "permitted": caps});
        });
    scratch.start(&bundle);
    let script = "mkdir /mnt/in && mount -t tmpfs x /mnt/in && echo hello >/mnt/in/file";
    // crun hides a hybrid cgroup mount in a mount namespace of its own: its host is that one.
    scratch.exec(&bundle, &["sh", "-c", script]).ok();
    if scratch.runtime.words().len() == 1 {
        assert_eq!(
            fs::read_to_string(host.0.join("in/file")).unwrap(),
            "hello\n"
        );
    }
    scratch.exec(&bundle, &["umount", "/mnt/in"]).ok();
    scratch.end(&bundle);
}

fn propagation_of_the_root_is_what_was_asked(scratch: &Scratch) {
    for (value, expected) in [
        ("private", ""),
        ("rprivate", ""),
        ("shared", "shared"),
        ("rshared", "shared"),
        ("unbindable", "unbindable"),
    ] {
        check_root(scratch, value, expected);
    }
}

fn check_root(scratch: &Scratch, value: &str, expected: &str) {
    let bundle = sleeping(scratch, value);
    let bundle = bundle.with(|spec| spec["linux"]["rootfsPropagation"] = value.into());
    scratch.start(&bundle);
    let seen = propagation(scratch, &bundle, "/");
    scratch.end(&bundle);
    assert!(
        seen.split(' ').any(|kind| kind == expected),
        "{value}: {seen:?}"
    );
}

/// As every root is on a host whose / is shared, where docker asks for a shared root as soon as
/// one volume is: it starts, and none of the container's mounts comes to the host.
fn a_shared_root_on_a_shared_mount(scratch: &Scratch) {
    for value in ["shared", "rshared"] {
        let bundle = sleeping(scratch, value);
        let bundle = bundle.with(|spec| spec["linux"]["rootfsPropagation"] = value.into());
        let root = bundle.in_rootfs("");
        let change = |source: Option<&Path>, flags| {
            mount(source, &root, None::<&str>, flags, None::<&str>).unwrap();
        };
        change(Some(&root), MsFlags::MS_BIND);
        let _guard = HostMount(root.clone());
        change(None, MsFlags::MS_SHARED);
        scratch.start(&bundle);
        assert_eq!(leaks::mounts_under(&root).len(), 1, "{value}");
        assert_eq!(propagation(scratch, &bundle, "/"), "shared");
        scratch.end(&bundle);
        assert_eq!(leaks::mounts_under(&root).len(), 1, "{value}");
    }
}

fn an_unbindable_root_and_all_below_it(scratch: &Scratch) {
    // crun 1.8.1 cannot mask paths then: what it binds over them has become unbindable.
    check_root(scratch, "runbindable", "unbindable");
}

fn nothing_of_the_host_s_root_is_seen(scratch: &Scratch) {
    let shown = scratch.run(&scratch.bundle("box").args(&["cat", "/proc/self/mountinfo"]));
    let folder = text(&scratch.path(""));
    for line in shown.ok().lines() {
        let point = line.split(' ').nth(4).unwrap();
        assert!(!point.starts_with(folder.trim_end_matches('/')), "{line}");
        assert!(
            point == "/"
                || point.starts_with("/proc")
                || point.starts_with("/dev")
                || point.starts_with("/sys"),
            "{line}"
        );
    }
    // And the old root is gone, not only covered.
    let escape = scratch.run(
        &scratch
            .bundle("up")
            .args(&["ls", "/../../../../proc/1/root/.."]),
    );
    assert!(
        escape.ok().contains("bin") && !escape.stdout.contains("boot"),
        "{escape}"
    );
}

fn a_read_only_root_is_read_only(scratch: &Scratch) {
    let bundle = scratch
        .bundle("ro")
        .script("touch /made; touch /dev/shm/fine && echo fine");
    let bundle = bundle.with(|spec| spec["root"]["readonly"] = true.into());
    let ran = scratch.run(&bundle);
    assert_eq!(ran.stdout, "fine\n", "{ran}");
    assert!(ran.stderr.contains("Read-only file system"), "{ran}");
    assert!(!bundle.in_rootfs("made").exists());
}

fn options_of_mounts_hold(scratch: &Scratch) {
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    let bundle = scratch.bundle("options");
    let bundle = bundle.mount(bind(&source, &["bind", "ro", "nosuid", "nodev", "noexec"]));
    let bundle = bundle.mount(json!({
        "destination": "/run", "type": "tmpfs", "source": "tmpfs",
        "options": ["nosuid", "mode=711", "size=1m", "noatime"],
    }));
    let bundle = bundle.script("grep -E ' /(mnt|run) ' /proc/self/mountinfo; stat -c %a /run");
    let shown = scratch.run(&bundle);
    let line = |point: &str| {
        shown
            .ok()
            .lines()
            .find(|l| l.contains(&format!(" {point} ")))
            .unwrap()
            .to_owned()
    };
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(
            line("/mnt")
                .split(' ')
                .nth(5)
                .unwrap()
                .split(',')
                .any(|o| o == option),
            "{shown}"
        );
    }
    assert!(
        line("/run").contains("noatime") && line("/run").contains("size=1024k"),
        "{shown}"
    );
    assert!(shown.stdout.ends_with("711\n"), "{shown}");
}

fn recursive_read_only_reaches_the_mounts_below(scratch: &Scratch) {
    let host = HostMount::shared(&scratch.path("host"));
    let below = host.below("below");
    let bundle = scratch
        .bundle("rro")
        .mount(bind(&host.0, &["rbind", "rro", "rprivate"]));
    let ran = scratch.run(&bundle.script("touch /mnt/a; touch /mnt/below/b"));
    assert_eq!(
        ran.stderr.matches("Read-only file system").count(),
        2,
        "{ran}"
    );
    drop(below);
}

fn masked_and_read_only_paths_hold(scratch: &Scratch) {
    let bundle = scratch.bundle("masked").with(|spec| {
        spec["linux"]["maskedPaths"] =
            json!(["/proc/kcore", "/etc/passwd", "/home", "/no/such/path"]);
        spec["linux"]["readonlyPaths"] = json!(["/proc/sys", "/root", "/no/such/path"]);
    });
    fs::write(bundle.in_rootfs("home/secret"), "secret").unwrap();
    let ran = scratch.run(&bundle.script(
        "cat /proc/kcore /etc/passwd | wc -c; ls -A /home | wc -l; touch /home/x; touch /root/x; \
         echo 1 >/proc/sys/kernel/msgmax",
    ));
    assert!(ran.stdout.starts_with("0\n0\n"), "{ran}");
    assert!(
        ran.stderr.matches("Read-only file system").count() >= 2,
        "{ran}"
    );
}

fn standard_devices_and_links_are_there(scratch: &Scratch) {
    let script = "for d in null zero full random urandom tty; do stat -c '%n %t:%T %a' /dev/$d; done; \
                  for l in fd stdin stdout stderr ptmx; do echo $l=$(readlink /dev/$l); done; \
                  echo gone >/dev/null && head -c 3 /dev/zero | wc -c";
    let shown = scratch.run(&scratch.bundle("dev").script(script));
    for line in [
        "/dev/null 1:3 666",
        "/dev/zero 1:5 666",
        "/dev/full 1:7 666",
        "/dev/random 1:8 666",
        "/dev/urandom 1:9 666",
        "/dev/tty 5:0 666",
        "fd=/proc/self/fd",
        "stdin=/proc/self/fd/0",
        "stdout=/proc/self/fd/1",
        "stderr=/proc/self/fd/2",
        "ptmx=pts/ptmx",
        "3",
    ] {
        assert!(
            shown.ok().lines().any(|seen| seen == line),
            "no {line:?} in {shown}"
        );
    }
}

fn asked_for_devices_are_made(scratch: &Scratch) {
    let bundle = scratch.bundle("device").with(|spec| {
        spec["linux"]["devices"] = json!([
            {"path": "/dev/deep/one", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 5, "gid": 6},
        ]);
        spec["linux"]["resources"]["devices"] = json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
        ]);
    });
    let shown =
        scratch
            .run(&bundle.script(
                "stat -c '%t:%T %a %u %g' /dev/deep/one; echo x >/dev/deep/one && echo ok",
            ));
    assert_eq!(shown.ok(), "1:3 640 5 6\nok\n");
}

fn a_file_is_bound_on_a_file_that_is_made(scratch: &Scratch) {
    let source = scratch.path("source");
    fs::write(&source, "bound\n").unwrap();
    let bundle = scratch.bundle("file").args(&["cat", "/srv/new/file"]).mount(json!({
        "destination": "/srv/new/file", "type": "bind", "source": text(&source), "options": ["bind", "ro"],
    }));
    assert_eq!(scratch.run(&bundle).ok(), "bound\n");
}

fn a_mount_target_that_is_a_symlink_stays_inside(scratch: &Scratch) {
    let source = scratch.path("source");
    let outside = scratch.path("outside");
    fs::create_dir(&source).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(source.join("file"), "bound\n").unwrap();
    let bundle = scratch.bundle("link");
    for (name, target) in [
        ("absolute", text(&outside)),
        ("climbing", "../../../../../../tmp".to_owned()),
    ] {
        std::os::unix::fs::symlink(target, bundle.in_rootfs(name)).unwrap();
    }
    let mut bundle = bundle.script("cat /absolute/file /climbing/file");
    for name in ["absolute", "climbing"] {
        bundle = bundle.mount(json!({
            "destination": format!("/{name}"), "type": "bind", "source": text(&source), "options": ["bind"],
        }));
    }
    let ran = scratch.run(&bundle);
    // Inside, or refused; never on the host.
    assert!(ran.stdout == "bound\nbound\n" || ran.code() != 0, "{ran}");
    assert_eq!(fs::read_dir(outside).unwrap().count(), 0);
    scratch.call(&["delete", "--force", "link"]);
}

fn the_cgroup_mount_shows_the_container_s_own(scratch: &Scratch) {
    let bundle = scratch.bundle("cg").namespace("cgroup", None).mount(json!({
        "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
        "options": ["ro", "nosuid", "noexec", "nodev"],
    }));
    let script = "for p in /sys/fs/cgroup/pids /sys/fs/cgroup; do \
                  test -e $p/cgroup.procs && cat $p/cgroup.procs && break; done; \
                  mkdir $p/x; true";
    let shown = scratch.run(&bundle.script(script));
    assert!(shown.ok().lines().any(|line| line == "1"), "{shown}");
    assert!(shown.stderr.contains("Read-only file system"), "{shown}");
}

fn a_volume_mounted_over_a_volume(scratch: &Scratch) {
    let (first, second) = (scratch.path("first"), scratch.path("second"));
    fs::create_dir_all(first.join("sub")).unwrap();
    fs::create_dir(&second).unwrap();
    fs::write(second.join("file"), "inner\n").unwrap();
    let bundle = scratch.bundle("nested").args(&["cat", "/mnt/sub/file"]);
    let bundle = bundle.mount(bind(&first, &["rbind"])).mount(json!({
        "destination": "/mnt/sub", "type": "bind", "source": text(&second), "options": ["rbind", "ro"],
    }));
    assert_eq!(scratch.run(&bundle).ok(), "inner\n");
}

fn administrator(bundle: Bundle) -> Bundle {
    bundle.with(|spec| {
        let caps = json!(["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]);
        spec["process"]["capabilities"] =
            json!({"bounding": caps, "effective": caps, "permitted": caps});
    })
}

fn a_volume_gives_the_host_nothing_unless_asked(scratch: &Scratch) {
    let host = HostMount::shared(&scratch.path("host"));
    fs::create_dir(host.0.join("in")).unwrap();
    for (name, options) in [("none", &["rbind"][..]), ("slave", &["rbind", "slave"])] {
        let bundle = administrator(scratch.bundle(name)).mount(bind(&host.0, options));
        scratch.start(&bundle.clone().args(&["sleep", "600"]));
        let script = "mount -t tmpfs x /mnt/in && grep -c /mnt/in /proc/self/mountinfo";
        let mounted = scratch.exec(&bundle, &["sh", "-c", script]);
        assert_eq!(mounted.ok(), "1\n", "{mounted}");
        let seen = holdfast_integration::leaks::mounts_under(&host.0.join("in"));
        scratch.end(&bundle);
        assert!(seen.is_empty(), "{name}: {seen:?}");
    }
}

fn a_node_bound_from_the_host_is_not_covered_there(scratch: &Scratch) {
    // A mount over a node travels to its peers: none of them may be the host's.
    let host = HostMount::shared(&scratch.path("host"));
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
    let kind = nix::sys::stat::SFlag::S_IFCHR;
    let number = nix::sys::stat::makedev(1, 5);
    nix::sys::stat::mknod(&host.0.join("zero"), kind, mode, number).unwrap();
    let zero = text(&host.0.join("zero"));
    let bundle = administrator(scratch.bundle("box").user_namespace(100_000)).with(|spec| {
        spec["linux"]["devices"] = json!([
            {"path": zero, "type": "c", "major": 1, "minor": 5, "fileMode": 0o666},
        ]);
        spec["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
    });
    let ran = scratch.run(&bundle.script(&format!(
        "touch /tmp/cover && mount --bind /tmp/cover {zero} && grep -c ' {zero} ' /proc/self/mountinfo"
    )));
    assert_eq!(ran.ok(), "2\n", "{ran}");
    let seen = holdfast_integration::leaks::mounts_under(&host.0.join("zero"));
    assert!(seen.is_empty(), "{seen:?}");
}

fn a_root_on_a_shared_mount_can_be_shared(scratch: &Scratch) {
    // As on every machine with systemd, whose root is shared.
    let folder = HostMount::shared(&scratch.path("bundle-box"));
    let bundle = scratch.bundle("box").args(&["true"]);
    let bundle = bundle.with(|spec| spec["linux"]["rootfsPropagation"] = "rshared".into());
    scratch.run(&bundle).ok();
    drop(folder);
}

fn a_symlink_is_copied_when_asked(scratch: &Scratch) {
    let folder = scratch.path("volume");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("real"), "real\n").unwrap();
    std::os::unix::fs::symlink("real", folder.join("link")).unwrap();
    let one = |name: &str, options: &[&str]| {
        json!({"destination": format!("/m/{name}"), "type": "bind",
               "source": text(&folder.join("link")), "options": options})
    };
    // The link itself, with its content as it is; and, for comparison, what it leads to.
    let bundle = scratch
        .bundle("box")
        .script("readlink /m/copied; test ! -L /m/bound && cat /m/bound")
        .mount(one("copied", &["bind", "copy-symlink"]))
        .mount(one("bound", &["bind"]));
    assert_eq!(scratch.run(&bundle).ok(), "real\nreal\n");
    // What is no symlink is bound as ever.
    let plain = json!({"destination": "/m/plain", "type": "bind", "source": text(&folder.join("real")),
                       "options": ["bind", "copy-symlink"]});
    let bundle = scratch
        .bundle("plain")
        .args(&["cat", "/m/plain"])
        .mount(plain);
    assert_eq!(scratch.run(&bundle).ok(), "real\n");
}

/// The same two links at both ends, with and without each word.
fn symlinks_are_mounted_when_asked(scratch: &Scratch) {
    let folder = scratch.path("volume");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("real"), "real\n").unwrap();
    std::os::unix::fs::symlink("real", folder.join("link")).unwrap();
    let bundle = scratch.bundle("box");
    fs::create_dir(bundle.in_rootfs("m")).unwrap();
    for name in ["followed", "kept", "both"] {
        std::os::unix::fs::symlink(format!("of-{name}"), bundle.in_rootfs(&format!("m/{name}")))
            .unwrap();
        fs::write(bundle.in_rootfs(&format!("m/of-{name}")), "inside\n").unwrap();
    }
    let one = |name: &str, source: &str, options: &[&str]| {
        json!({"destination": format!("/m/{name}"), "type": "bind",
               "source": text(&folder.join(source)), "options": options})
    };
    let look = "cd /m; for n in followed kept both missing; do \
                echo $n: $(readlink $n) $(cat of-$n 2>/dev/null); done; cat kept";
    let bundle = bundle
        .script(look)
        .mount(one("followed", "link", &["bind"]))
        .mount(one("kept", "real", &["bind", "dest-nofollow"]))
        .mount(one(
            "both",
            "link",
            &["bind", "src-nofollow", "dest-nofollow"],
        ))
        .mount(one(
            "missing",
            "link",
            &["bind", "src-nofollow", "dest-nofollow"],
        ));
    let ran = scratch.run(&bundle);
    // The file on the link itself; the link on the link, and on what was not there.
    assert_eq!(
        ran.ok(),
        "followed: of-followed real\nkept: inside\nboth: real inside\nmissing: real\nreal\n",
        "{ran}"
    );
    let bundle = scratch.bundle("two").args(&["true"]).mount(one(
        "x",
        "link",
        &["bind", "copy-symlink", "src-nofollow"],
    ));
    let ran = scratch.run(&bundle);
    assert!(ran.failed().contains("copy-symlink"), "{ran}");
}

fn acl_is_an_option_of_mounts(scratch: &Scratch) {
    let tmpfs = json!({"destination": "/m", "type": "tmpfs", "source": "tmpfs", "options": ["acl", "nosuid"]});
    let bundle = scratch
        .bundle("box")
        .args(&["grep", " /m ", "/proc/self/mountinfo"])
        .mount(tmpfs);
    let seen = scratch.run(&bundle).ok().to_owned();
    assert!(seen.contains("nosuid"), "{seen}");
}
