//! The mounts that containerd hands over with Create, of every kind, made and undone by the shim.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use containerd_shim_protos::api;
use holdfast_integration::lone::Lone;
use holdfast_integration::scratch::text;
use holdfast_integration::shim::Refused;
use holdfast_integration::{deadline, image, leaks, place, skip};
use nix::mount::{MntFlags, MsFlags};

const LIMIT: Duration = Duration::from_secs(60);

fn mount(kind: &str, source: &Path, target: &str, options: &[&str]) -> api::Mount {
    let mut mount = api::Mount::new();
    mount.type_ = kind.to_owned();
    mount.source = text(source);
    mount.target = target.to_owned();
    mount.options = options.iter().map(|option| (*option).to_owned()).collect();
    mount
}

/// Runs a script in `box`, whose root file system is these mounts; its exit status.
fn run(lone: &Lone, mounts: Vec<api::Mount>, script: &str) -> Result<u32, Refused> {
    let path = lone.bundle_path("box").join("rootfs");
    // What the harness has put there is not what is meant.
    if path.join("bin").exists() {
        fs::remove_dir_all(&path).unwrap();
        fs::create_dir(&path).unwrap();
    }
    lone.bundle("box").args(&["sh", "-c", script]).write();
    let mut request = lone.create_request("box", None);
    request.rootfs = mounts;
    lone.shim
        .call::<_, api::CreateTaskResponse>("Create", &request)?;
    lone.shim.start("box", "")?;
    let code = lone.shim.wait("box", "")?;
    lone.shim.delete("box", "")?;
    let left = leaks::mounts_under(&path);
    assert!(left.is_empty(), "{left:?}");
    Ok(code)
}

#[test]
fn layers_that_do_not_fit_in_a_page() {
    let Some(lone) = Lone::start("layers_that_do_not_fit", &[], None) else {
        return;
    };
    // Overlay does not lie on every file system; on a tmpfs it does.
    let base = lone.path("base");
    fs::create_dir(&base).unwrap();
    let none = None::<&str>;
    nix::mount::mount(none, &base, Some("tmpfs"), MsFlags::empty(), none).unwrap();
    let layers: Vec<String> = (0..80)
        .map(|number| {
            let layer = base.join(format!("{number}-{}", "layer".repeat(16)));
            if number == 79 {
                image::fill_rootfs(&layer);
            } else {
                fs::create_dir(&layer).unwrap();
            }
            fs::write(layer.join(format!("of-{number}")), "").unwrap();
            text(&layer)
        })
        .collect();
    for folder in ["upper", "work"] {
        fs::create_dir(base.join(folder)).unwrap();
    }
    let lower = format!("lowerdir={}", layers.join(":"));
    assert!(lower.len() > 2 * 4096);
    let upper = format!("upperdir={}", text(&base.join("upper")));
    let work = format!("workdir={}", text(&base.join("work")));
    let overlay = mount(
        "overlay",
        Path::new("overlay"),
        "",
        &[&lower, &upper, &work],
    );
    let script = "echo new >/new && [ -e /of-0 ] && [ -e /of-40 ] && [ -e /of-79 ] && exit 4";
    assert_eq!(run(&lone, vec![overlay], script).unwrap(), 4);
    assert_eq!(fs::read_to_string(base.join("upper/new")).unwrap(), "new\n");
    nix::mount::umount2(&base, MntFlags::MNT_DETACH).unwrap();
    lone.finish();
}

#[test]
fn a_bind_with_more_mounts_below() {
    let Some(lone) = Lone::start("a_bind_with_more_mounts_below", &[], None) else {
        return;
    };
    let root = lone.path("root");
    image::fill_rootfs(&root);
    fs::create_dir_all(root.join("in/side")).unwrap();
    let mounts = || {
        vec![
            mount(
                "bind",
                &root,
                "",
                &["rbind", "ro", "X-containerd.anything=1"],
            ),
            mount(
                "tmpfs",
                Path::new("tmpfs"),
                "/in/side",
                &["nosuid", "size=64k"],
            ),
        ]
    };
    let script = "echo x >/in/side/x && ! touch /x 2>/dev/null && exit 5";
    assert_eq!(run(&lone, mounts(), script).unwrap(), 5);
    assert!(!root.join("in/side/x").exists());
    // What comes later and fails undoes what came before.
    let mut broken = mounts();
    broken.push(mount("no-such-fs", Path::new("x"), "/in", &[]));
    let refused = run(&lone, broken, "true").unwrap_err();
    assert!(refused.message.contains("no-such-fs"), "{refused:?}");
    lone.assert_nothing_left("a mount that failed");
    let mut outside = mounts();
    outside.push(mount("tmpfs", Path::new("x"), "/../..", &[]));
    let refused = run(&lone, outside, "true").unwrap_err();
    assert!(refused.message.contains("/../.."), "{refused:?}");
    lone.finish();
}

#[test]
fn an_image_through_a_loop_device() {
    let mkfs = Path::new("/usr/sbin/mkfs.ext4");
    if !mkfs.exists() || !Path::new("/dev/loop-control").exists() {
        return skip(
            "an_image_through_a_loop_device",
            "no mkfs.ext4 or no loop devices",
        );
    }
    let Some(lone) = Lone::start("an_image_through_a_loop_device", &[], None) else {
        return;
    };
    let (root, image) = (lone.path("root"), lone.path("image"));
    image::fill_rootfs(&root);
    fs::File::create(&image).unwrap().set_len(32 << 20).unwrap();
    let mut make = Command::new(mkfs);
    make.args(["-q", "-d"]).arg(&root).arg(&image);
    deadline::run(&mut make, LIMIT).ok();
    let loop_mount = || vec![mount("ext4", &image, "", &["loop"])];
    assert_eq!(run(&lone, loop_mount(), "touch /kept; exit 6").unwrap(), 6);
    assert_eq!(
        run(&lone, loop_mount(), "[ -e /kept ] && exit 7").unwrap(),
        7
    );
    deadline::eventually("the loop device is free", LIMIT, || {
        let used = fs::read_dir("/sys/block").unwrap().flatten().any(|device| {
            fs::read_to_string(device.path().join("loop/backing_file"))
                .is_ok_and(|file| Path::new(file.trim()) == image)
        });
        (!used).then_some(())
    });
    lone.finish();
}

#[test]
fn a_file_system_that_only_its_helper_can_mount() {
    let tools = tempfile::tempdir().unwrap();
    // The helper as mount.fuse(8) has it: SOURCE TARGET -o OPTIONS -t TYPE.
    let helper = tools.path().join("mount.fuse3");
    let script = "#!/bin/sh\n\
        echo \"$*\" >>\"$0.calls\"\n\
        [ \"$1\" != broken ] || { echo 'fuse: no such backend' >&2; exit 1; }\n\
        exec mount --bind \"$1\" \"$2\"\n";
    place::write_program(&helper, script);
    let path = format!("{}:{}", text(tools.path()), std::env::var("PATH").unwrap());
    let Some(lone) = Lone::start("a_file_system_of_a_helper", &[("PATH", &path)], None) else {
        return;
    };
    let root = lone.path("root");
    image::fill_rootfs(&root);
    let of = |source: &Path| vec![mount("fuse3.snapfs", source, "", &["allow_other"])];
    assert_eq!(run(&lone, of(&root), "exit 9").unwrap(), 9);
    let called = fs::read_to_string(tools.path().join("mount.fuse3.calls")).unwrap();
    let target = text(&lone.bundle_path("box").join("rootfs"));
    assert_eq!(
        called.trim(),
        format!("{} {target} -o allow_other -t snapfs", text(&root))
    );
    let refused = run(&lone, of(Path::new("broken")), "true").unwrap_err();
    assert!(
        refused.message.contains("fuse: no such backend"),
        "{refused:?}"
    );
    lone.finish();
}
