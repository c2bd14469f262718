//! Real mounts: these need root and say so.
use std::time::Instant;

use super::unmount::mounts_below;
use super::*;

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn mount_of(kind: &str, source: &str, options: &str) -> Mount {
    Mount {
        type_: kind.to_owned(),
        source: source.to_owned(),
        options: words(options),
        ..Mount::default()
    }
}

fn may_mount() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: mounting needs root");
    }
    root
}

#[test]
fn mounts_come_and_go_and_a_failure_undoes_what_was_done() {
    if !may_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let rootfs = dir.path().join("rootfs");
    std::fs::create_dir(&rootfs).unwrap();
    let tmpfs = mount_of("tmpfs", "tmpfs", "size=64k");
    let mut inner = mount_of("tmpfs", "tmpfs", "ro");
    inner.target = "/inner".to_owned();
    mount_all(&[tmpfs.clone(), inner.clone()], &rootfs).unwrap();
    assert_eq!(mounts_below(&rootfs).unwrap().len(), 2);
    assert_eq!(
        unmount_all(&rootfs, BUSY_LIMIT).unwrap(),
        Vec::<String>::new()
    );
    assert_eq!(mounts_below(&rootfs).unwrap().len(), 0);
    let wrong = mount_of("no-such-fs", "x", "");
    mount_all(&[tmpfs, inner, wrong], &rootfs).unwrap_err();
    assert_eq!(mounts_below(&rootfs).unwrap().len(), 0);
    // Twice is no error.
    unmount_all(&rootfs, BUSY_LIMIT).unwrap();
}

#[test]
fn a_fuse_mount_is_made_by_its_helper() {
    let dir = tempfile::tempdir().unwrap();
    let mount = mount_of(
        "fuse3.fuse-overlayfs",
        "overlay",
        "lowerdir=/a:/b X-containerd.x=1",
    );
    let (program, arguments) = helper(&mount, dir.path()).unwrap();
    let root = dir.path().to_str().unwrap();
    let expected = [
        "overlay",
        root,
        "-o",
        "lowerdir=/a:/b",
        "-t",
        "fuse-overlayfs",
    ];
    assert_eq!(
        (program, arguments),
        ("mount.fuse3", expected.map(OsString::from).to_vec())
    );
    assert_eq!(
        helper(&mount_of("fuse.x", "y", ""), dir.path()).unwrap().0,
        "mount.fuse"
    );
    assert_eq!(helper(&mount_of("fuseblk", "y", ""), dir.path()), None);
}

#[test]
fn owners_are_shifted_in_bind_mounts_and_layers() {
    use std::os::unix::fs::MetadataExt as _;
    if !may_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (base, rootfs) = (dir.path().join("base"), dir.path().join("rootfs"));
    std::fs::create_dir(&base).unwrap();
    std::fs::create_dir(&rootfs).unwrap();
    mount_all(&[mount_of("tmpfs", "tmpfs", "")], &base).unwrap();
    let folder = |name: &str| {
        let path = base.join(name);
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join(format!("of-{name}")), "").unwrap();
        path.display().to_string()
    };
    let (one, two) = (folder("one"), folder("two"));
    let (upper, work) = (folder("upper"), folder("work"));
    std::fs::remove_file(base.join("work/of-work")).unwrap();
    let maps = "uidmap=0:100000:65536 gidmap=0:200000:65536";
    let owner = |name: &str| {
        let meta = std::fs::metadata(rootfs.join(name)).unwrap();
        (meta.uid(), meta.gid())
    };
    let bind = mount_of("bind", &one, &format!("rbind ro {maps}"));
    if let Err(error) = mount_all(&[bind], &rootfs) {
        unmount_all(&base, BUSY_LIMIT).unwrap();
        // Before Linux 6.3.
        eprintln!("skipped: {}", crate::fault::chain(&error));
        return;
    }
    let shifted = owner("of-one");
    let read_only = std::fs::write(rootfs.join("new"), "").is_err();
    unmount_all(&rootfs, BUSY_LIMIT).unwrap();
    let options = format!("lowerdir={one}:{two},upperdir={upper},workdir={work} {maps}");
    let options = options
        .replace(",upperdir", " upperdir")
        .replace(",workdir", " workdir");
    let mounted = mount_all(&[mount_of("overlay", "overlay", &options)], &rootfs);
    let owners = mounted
        .is_ok()
        .then(|| [owner("of-two"), owner("of-upper")]);
    unmount_all(&rootfs, BUSY_LIMIT).unwrap();
    let left = mounts_below(dir.path()).unwrap();
    unmount_all(&base, BUSY_LIMIT).unwrap();
    mounted.unwrap();
    assert_eq!((shifted, read_only), ((100_000, 200_000), true));
    // Only layers are shifted: what is above belongs to the container already.
    assert_eq!(owners.unwrap(), [(100_000, 200_000), (0, 0)]);
    assert_eq!(left, [std::fs::canonicalize(&base).unwrap()]);
    assert!(!dir.path().join(".shifted-layers").exists());
}

#[test]
fn an_image_is_mounted_through_a_loop_device_that_frees_itself() {
    if !may_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (image, rootfs) = (dir.path().join("image"), dir.path().join("rootfs"));
    std::fs::create_dir(&rootfs).unwrap();
    std::fs::File::create(&image)
        .unwrap()
        .set_len(8 << 20)
        .unwrap();
    let made = std::process::Command::new("/usr/sbin/mkfs.ext4")
        .arg("-q")
        .arg(&image)
        .status();
    if !made.is_ok_and(|status| status.success()) || !Path::new("/dev/loop-control").exists() {
        eprintln!("skipped: no mkfs.ext4 or no loop devices");
        return;
    }
    let users = |image: &Path| {
        std::fs::read_dir("/sys/block")
            .unwrap()
            .flatten()
            .any(|device| {
                std::fs::read_to_string(device.path().join("loop/backing_file"))
                    .is_ok_and(|file| Path::new(file.trim()) == image)
            })
    };
    mount_all(
        &[mount_of("ext4", image.to_str().unwrap(), "loop")],
        &rootfs,
    )
    .unwrap();
    assert!(users(&image) && rootfs.join("lost+found").is_dir());
    std::fs::write(rootfs.join("file"), "kept").unwrap();
    unmount_all(&rootfs, BUSY_LIMIT).unwrap();
    mount_all(
        &[mount_of("ext4", image.to_str().unwrap(), "loop ro")],
        &rootfs,
    )
    .unwrap();
    assert_eq!(
        std::fs::read_to_string(rootfs.join("file")).unwrap(),
        "kept"
    );
    std::fs::write(rootfs.join("file"), "no").unwrap_err();
    unmount_all(&rootfs, BUSY_LIMIT).unwrap();
    let until = Instant::now() + Duration::from_secs(5);
    while users(&image) {
        assert!(Instant::now() < until, "the device keeps the image");
        std::thread::sleep(BUSY_PAUSE);
    }
}

#[test]
fn a_busy_mount_is_detached_and_its_holder_named() {
    if !may_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let rootfs = dir.path().join("rootfs");
    std::fs::create_dir(&rootfs).unwrap();
    mount_all(&[mount_of("tmpfs", "tmpfs", "")], &rootfs).unwrap();
    let _open = std::fs::File::create(rootfs.join("held")).unwrap();
    let detached = unmount_all(&rootfs, BUSY_LIMIT).unwrap();
    assert_eq!(detached.len(), 1);
    let needle = format!("{} (", std::process::id());
    assert!(
        detached.iter().any(|line| line.contains(&needle)),
        "{detached:?}"
    );
    assert_eq!(mounts_below(&rootfs).unwrap().len(), 0);
}

#[test]
fn overlay_takes_more_layers_than_fit_in_a_page() {
    if !may_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let rootfs = dir.path().join("rootfs");
    std::fs::create_dir(&rootfs).unwrap();
    // Overlay cannot lie on every file system; a tmpfs will do.
    let base = dir.path().join("layers");
    std::fs::create_dir(&base).unwrap();
    mount_all(&[mount_of("tmpfs", "tmpfs", "")], &base).unwrap();
    let layers: Vec<String> = (0..60)
        .map(|n| {
            let layer = base.join(format!("{n}-{}", "l".repeat(70)));
            std::fs::create_dir(&layer).unwrap();
            std::fs::write(layer.join(format!("file{n}")), "").unwrap();
            layer.to_str().unwrap().to_owned()
        })
        .collect();
    let option = format!("lowerdir={}", layers.join(":"));
    assert!(option.len() > 4096);
    let overlay = mount_of("overlay", "overlay", &option);
    let mounted = mount_all(&[overlay], &rootfs);
    let count = std::fs::read_dir(&rootfs).unwrap().count();
    unmount_all(&rootfs, BUSY_LIMIT).unwrap();
    unmount_all(&base, BUSY_LIMIT).unwrap();
    mounted.unwrap();
    assert_eq!(count, 60);
}

#[test]
fn a_target_stays_below_the_root() {
    below(Path::new("/r"), "/etc/../..").unwrap_err();
    assert_eq!(
        below(Path::new("/r"), "/etc/x").unwrap(),
        Path::new("/r/etc/x")
    );
}
