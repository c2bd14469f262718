//! Id-mapped mounts: the ids of a volume as the mapping says, in both directions.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use holdfast_integration::bundle::Bundle;
use holdfast_integration::on_runtimes;
use holdfast_integration::scratch::{Scratch, text};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

// runc knows id-mapped mounts since 1.2, crun 1.8.1 takes the mapping from an option of its own.
on_runtimes! {
    the_ids_of_a_volume_are_those_of_its_mapping: holdfast;
    several_ranges_and_several_volumes: holdfast;
    a_file_is_mapped_too: holdfast;
    the_container_s_own_mapping_is_the_default: holdfast crun;
    the_mapping_of_a_joined_user_namespace_is_the_default: holdfast;
    only_ridmap_reaches_the_mounts_below: holdfast;
    read_only_and_mapped: holdfast;
    a_root_file_system_that_is_mapped_stays_so: holdfast;
    what_cannot_be_mapped_is_refused: holdfast;
}

/// A folder of root's with a file of root's in it.
fn volume(scratch: &Scratch, name: &str) -> PathBuf {
    let folder = scratch.path(name);
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(folder.join("file"), "text\n").unwrap();
    folder
}

fn bind(source: &Path, target: &str, options: &[&str], mapping: Option<Value>) -> Value {
    let mut entry = json!({
        "destination": target, "type": "bind", "source": text(source), "options": options,
    });
    if let Some(mapping) = mapping {
        entry["uidMappings"] = mapping.clone();
        entry["gidMappings"] = mapping;
    }
    entry
}

fn range(inside: u32, outside: u32, size: u32) -> Value {
    json!({"containerID": inside, "hostID": outside, "size": size})
}

fn as_user(bundle: Bundle, id: u32) -> Bundle {
    bundle.with(|spec| spec["process"]["user"] = json!({"uid": id, "gid": id}))
}

fn the_ids_of_a_volume_are_those_of_its_mapping(scratch: &Scratch) {
    let folder = volume(scratch, "volume");
    for (name, options) in [("idmap", &["bind", "idmap"][..]), ("none", &["bind"][..])] {
        let mapping = json!([range(0, 1000, 10)]);
        let bundle = scratch
            .bundle(name)
            .mount(bind(&folder, "/mnt", options, Some(mapping)));
        let script = "stat -c '%u %g' /mnt/file && touch /mnt/made && stat -c '%u %g' /mnt/made";
        let ran = scratch.run(&as_user(bundle, 1000).script(script));
        assert_eq!(ran.ok(), "1000 1000\n1000 1000\n", "{name}");
        let made = fs::metadata(folder.join("made")).unwrap();
        assert_eq!((made.uid(), made.gid()), (0, 0), "{name}");
        fs::remove_file(folder.join("made")).unwrap();
    }
}

fn several_ranges_and_several_volumes(scratch: &Scratch) {
    let (first, second) = (volume(scratch, "first"), volume(scratch, "second"));
    std::os::unix::fs::chown(second.join("file"), Some(7), Some(7)).unwrap();
    let ranges = json!([range(0, 500, 1), range(7, 700, 1)]);
    let other = json!([range(7, 8, 1)]);
    let bundle = scratch
        .bundle("box")
        .mount(bind(&first, "/a", &["bind", "idmap"], Some(ranges.clone())))
        .mount(bind(&second, "/b", &["bind", "idmap"], Some(ranges)))
        .mount(bind(&second, "/c", &["bind", "idmap"], Some(other)));
    let ran = scratch.run(&bundle.script("stat -c '%u:%g' /a/file /b/file /c/file /c"));
    // The folder of the last one has no place in its mapping: it belongs to the overflow id.
    assert_eq!(ran.ok(), "500:500\n700:700\n8:8\n65534:65534\n");
}

fn a_file_is_mapped_too(scratch: &Scratch) {
    let folder = volume(scratch, "volume");
    let mapping = json!([range(0, 42, 1)]);
    let entry = bind(
        &folder.join("file"),
        "/etc/file",
        &["bind", "idmap"],
        Some(mapping),
    );
    let ran = scratch.run(
        &scratch
            .bundle("box")
            .mount(entry)
            .script("stat -c %u /etc/file"),
    );
    assert_eq!(ran.ok(), "42\n");
}

fn the_container_s_own_mapping_is_the_default(scratch: &Scratch) {
    let folder = volume(scratch, "volume");
    let bundle = scratch
        .bundle("box")
        .user_namespace(100_000)
        .mount(bind(&folder, "/mnt", &["bind", "idmap"], None))
        .mount(bind(&folder, "/plain", &["bind"], None));
    let script = "stat -c %u /mnt/file /plain/file && echo more >>/mnt/file && cat /plain/file && \
                  touch /mnt/made";
    let ran = scratch.run(&bundle.script(script));
    assert_eq!(ran.ok(), "0\n65534\ntext\nmore\n");
    assert_eq!(fs::metadata(folder.join("made")).unwrap().uid(), 0);
}

fn the_mapping_of_a_joined_user_namespace_is_the_default(scratch: &Scratch) {
    let folder = volume(scratch, "volume");
    let first = scratch
        .bundle("first")
        .user_namespace(100_000)
        .args(&["sleep", "600"]);
    let pid = scratch.start(&first);
    let second = scratch.bundle("second").user_namespace(100_000);
    let second = second
        .namespace("user", Some(&format!("/proc/{pid}/ns/user")))
        .with(|spec| {
            let linux = spec["linux"].as_object_mut().unwrap();
            linux.remove("uidMappings");
            linux.remove("gidMappings");
        })
        .mount(bind(&folder, "/mnt", &["bind", "idmap"], None));
    let ran = scratch.run(&second.args(&["stat", "-c", "%u %g", "/mnt/file"]));
    assert_eq!(ran.ok(), "0 0\n");
    scratch.end(&first);
}

/// A tmpfs below a folder, unmounted at the end.
struct Below(PathBuf);

impl Below {
    fn new(path: PathBuf) -> Self {
        fs::create_dir(&path).unwrap();
        mount(
            Some("below"),
            &path,
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .unwrap();
        fs::write(path.join("file"), "below").unwrap();
        Self(path)
    }
}

impl Drop for Below {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

fn only_ridmap_reaches_the_mounts_below(scratch: &Scratch) {
    let folder = volume(scratch, "volume");
    let below = Below::new(folder.join("below"));
    for (word, expected) in [("idmap", "5\n0\n"), ("ridmap", "5\n5\n")] {
        let mapping = json!([range(0, 5, 1)]);
        let entry = bind(&folder, "/mnt", &["rbind", word], Some(mapping));
        let bundle = scratch.bundle(word).mount(entry);
        let ran = scratch.run(&bundle.script("stat -c %u /mnt/file /mnt/below/file"));
        assert_eq!(ran.ok(), expected, "{word}");
    }
    drop(below);
}

fn read_only_and_mapped(scratch: &Scratch) {
    let folder = volume(scratch, "volume");
    let mapping = json!([range(0, 0, 1000)]);
    let entry = bind(
        &folder,
        "/mnt",
        &["bind", "ro", "nosuid", "idmap"],
        Some(mapping),
    );
    let bundle = scratch.bundle("box").mount(entry);
    let ran = scratch.run(&bundle.script("touch /mnt/x; grep ' /mnt ' /proc/self/mountinfo"));
    assert!(ran.stderr.contains("Read-only file system"), "{ran}");
    for word in ["ro", "nosuid", "idmapped"] {
        let options = ran.ok().split(' ').nth(5).unwrap();
        assert!(
            options.split(',').any(|option| option == word),
            "{word}: {ran}"
        );
    }
}

fn a_root_file_system_that_is_mapped_stays_so(scratch: &Scratch) {
    // containerd hands over such a root for a pod with a user namespace: here a container's own
    // volume, mapped by the first one, is the root of the second.
    let first = scratch.bundle("first").args(&["sleep", "600"]);
    let second = scratch.bundle("second");
    let mapping = json!([range(0, 300_000, 65536)]);
    let shared = Shared::new(scratch.path("shared"));
    let entry = bind(
        &second.in_rootfs("/"),
        "/mnt/root",
        &["bind", "idmap"],
        Some(mapping),
    );
    let first = first
        .mount(bind(&shared.0, "/mnt", &["rbind", "rshared"], None))
        .mount(entry)
        .with(|spec| spec["linux"]["rootfsPropagation"] = "rshared".into());
    scratch.start(&first);
    let root = shared.0.join("root");
    assert_eq!(fs::metadata(root.join("bin")).unwrap().uid(), 300_000);
    let second = second.namespace("user", None).with(|spec| {
        spec["root"]["path"] = text(&root).into();
        let map = json!([range(0, 300_000, 65536)]);
        spec["linux"]["uidMappings"] = map.clone();
        spec["linux"]["gidMappings"] = map;
    });
    let ran = scratch.run(&second.script("stat -c %u /bin && touch /made && stat -c %u /made"));
    assert_eq!(ran.ok(), "0\n0\n");
    let made = scratch.path("bundle-second").join("rootfs/made");
    assert_eq!(fs::metadata(made).unwrap().uid(), 0);
    scratch.end(&first);
    drop(shared);
}

/// A shared tmpfs of the host, unmounted at the end with what came below it.
struct Shared(PathBuf);

impl Shared {
    fn new(path: PathBuf) -> Self {
        let below = Below::new(path);
        let none = None::<&str>;
        mount(none, &below.0, none, MsFlags::MS_SHARED, none).unwrap();
        let path = below.0.clone();
        std::mem::forget(below);
        Self(path)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

fn what_cannot_be_mapped_is_refused(scratch: &Scratch) {
    let folder = volume(scratch, "volume");
    let mapping = || Some(json!([range(0, 1000, 10)]));
    let mut half = bind(&folder, "/mnt", &["bind", "idmap"], mapping());
    half.as_object_mut().unwrap().remove("gidMappings");
    let mut tmpfs = bind(&folder, "/mnt", &["idmap"], mapping());
    tmpfs["type"] = "tmpfs".into();
    let overlap = json!([range(0, 1000, 10), range(5, 2000, 10)]);
    for (name, entry, words) in [
        ("half", half, "belong together"),
        ("tmpfs", tmpfs, "work on bind mounts only"),
        (
            "none",
            bind(&folder, "/mnt", &["bind", "idmap"], None),
            "needs uidMappings and gidMappings",
        ),
        (
            "unable",
            bind(Path::new("/sys"), "/mnt", &["bind", "idmap"], mapping()),
            "map the ids of /sys: its file system does not support id-mapped mounts",
        ),
        (
            "overlap",
            bind(&folder, "/mnt", &["bind", "idmap"], Some(overlap)),
            "make a user namespace with the id mappings",
        ),
    ] {
        let ran = scratch.run(&scratch.bundle(name).mount(entry));
        assert_ne!(ran.code(), 0, "{ran}");
        assert!(ran.stderr.contains(words), "{name}: {ran}");
        assert!(
            ran.stderr.contains("Invalid argument") || ran.stderr.contains("mounts[6]"),
            "{ran}"
        );
    }
}
