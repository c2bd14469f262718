use std::os::unix::fs::symlink;

use super::*;

fn put(root: &Path, path: &str, content: &[u8]) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn driver(root: &Path) -> Driver {
    Driver::new(root.to_str().unwrap(), None)
}

#[test]
fn patterns() {
    for (pattern, name, expected) in [
        ("*.so.550.1", "libcuda.so.550.1", true),
        ("*.so.*", "libcuda.so", false),
        ("libcuda.so.*.*", "libcuda.so.1", false),
        ("libcuda.so.*.*", "libcuda.so.550.54.15", true),
        ("gsp*.bin", "gsp_ga10x.bin", true),
        ("a?c", "abc", true),
        ("*a*b", "xaxbxb", true),
        ("*a*b", "xaxbxc", false),
        ("", "", true),
        ("", "a", false),
    ] {
        assert_eq!(
            glob::matches(pattern.as_bytes(), name.as_bytes()),
            expected,
            "{pattern} {name}"
        );
    }
}

#[test]
fn the_version_is_in_the_names() {
    let dir = tempfile::tempdir().unwrap();
    let root = fs::canonicalize(dir.path()).unwrap();
    put(&root, "usr/lib/x86_64-linux-gnu/libcuda.so.550.54.15", b"");
    put(
        &root,
        "usr/lib/x86_64-linux-gnu/vdpau/libvdpau_nvidia.so.550.54.15",
        b"",
    );
    symlink(
        "libcuda.so.550.54.15",
        root.join("usr/lib/x86_64-linux-gnu/libcuda.so.1"),
    )
    .unwrap();
    let driver = driver(&root);
    assert_eq!(driver.version(), Ok("550.54.15"));
    assert_eq!(
        driver.library_dirs().unwrap(),
        [Path::new("/usr/lib/x86_64-linux-gnu")]
    );
    let own = driver.own_libraries(&["vdpau"], "*.so.550.54.15").unwrap();
    assert_eq!(own.len(), 2);
    assert_eq!(
        driver.inside(&own[1]),
        Path::new("/usr/lib/x86_64-linux-gnu/vdpau/libvdpau_nvidia.so.550.54.15")
    );
    assert_eq!(driver.libraries("libcuda.so.1"), own[..1]);
}

#[test]
fn without_libraries_the_error_names_the_root() {
    let dir = tempfile::tempdir().unwrap();
    let driver = driver(dir.path());
    let error = driver.version().unwrap_err().to_string();
    assert!(error.contains(dir.path().to_str().unwrap()), "{error}");
    let told = Driver::new(dir.path().to_str().unwrap(), Some("1.2".into()));
    assert_eq!(told.version(), Ok("1.2"));
    assert!(
        told.library_dirs()
            .unwrap_err()
            .to_string()
            .contains("libcuda.so.1.2")
    );
}

#[test]
fn libraries_elsewhere_are_found_by_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let root = fs::canonicalize(dir.path()).unwrap();
    put(&root, "opt/nv/libcuda.so.550.1", b"");
    put(&root, "opt/nv32/libcuda.so.550.1", b"");
    symlink("libcuda.so.550.1", root.join("opt/nv/libcuda.so.1")).unwrap();
    for old in [false, true] {
        let cache = ldcache::tests::made(
            &[
                (0x0001, "/opt/nv32/libcuda.so.550.1"),
                (0x0301, "/opt/nv/libcuda.so.1"),
                (0x0301, "/opt/nv/gone.so"),
            ],
            old,
        );
        put(&root, "etc/ld.so.cache", &cache);
        let driver = driver(&root);
        assert_eq!(driver.version(), Ok("550.1"), "old table: {old}");
        assert_eq!(driver.library_dirs().unwrap(), [Path::new("/opt/nv")]);
        // Any damage is answered with less.
        for cut in 0..cache.len() {
            put(&root, "etc/ld.so.cache", &cache[..cut]);
            let _ = ldcache::libraries(&root);
        }
    }
}

#[test]
fn the_name_of_a_library() {
    // A library every Debian has; its links lead to a file of another name.
    let libc = Path::new("/lib/x86_64-linux-gnu/libc.so.6");
    if !libc.exists() {
        eprintln!("skipped: no {}", libc.display());
        return;
    }
    assert_eq!(soname(libc).unwrap().as_deref(), Some("libc.so.6"));
    let bytes = fs::read(libc).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for cut in [0, 3, 16, 63, 64, 200, 900] {
        put(dir.path(), "x", &bytes[..cut]);
        assert!(soname(&dir.path().join("x")).is_err(), "{cut}");
    }
    assert!(soname(Path::new("/etc/passwd")).is_err());
}
