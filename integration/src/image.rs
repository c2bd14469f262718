//! A busybox root file system and image, made on the fly from Debian's busybox-static.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::deadline;

/// The image's name in containerd.
pub const NAME: &str = "holdfast.test/busybox:latest";

/// The statically linked busybox, or why there is none.
///
/// # Errors
/// A sentence for the reader of a skipped test.
pub fn busybox() -> Result<PathBuf, String> {
    let path = crate::place::program("busybox").ok_or("busybox not found (busybox-static)")?;
    let image = fs::read(&path).map_err(|e| format!("read {}: {e}", path.display()))?;
    // A dynamic executable names its loader on its first page.
    let dynamic = image
        .windows(8)
        .take(4096)
        .any(|window| window == b"ld-linux");
    if dynamic {
        return Err(format!("{} is not static (busybox-static)", path.display()));
    }
    Ok(path)
}

/// Fills `rootfs` with busybox, its applets as hard links, and the folders a container expects.
///
/// # Panics
/// When the files cannot be written.
pub fn fill_rootfs(rootfs: &Path) {
    let source = busybox().expect("busybox");
    for folder in [
        "bin", "dev", "etc", "home", "mnt", "proc", "root", "run", "sys", "tmp", "var",
    ] {
        fs::create_dir_all(rootfs.join(folder)).expect("folder of the root file system");
    }
    fs::set_permissions(rootfs.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("chmod");
    let copy = rootfs.join("bin/busybox");
    fs::copy(source, &copy).expect("copy busybox");
    // Hard links, not symlinks: Debian's busybox runs applets inside its shell, and a test that
    // looks at a process wants to find the name it started.
    for applet in APPLETS {
        let link = rootfs.join("bin").join(applet);
        if !link.exists() {
            fs::hard_link(&copy, link).expect("link an applet");
        }
    }
    symlink("bin", rootfs.join("sbin")).expect("sbin");
    fs::write(
        rootfs.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n",
    )
    .expect("passwd");
    fs::write(
        rootfs.join("etc/group"),
        "root:x:0:\nuser:x:1000:\nextra:x:2000:user\n",
    )
    .expect("group");
}

const APPLETS: &[&str] = &[
    "ash", "awk", "basename", "cat", "chmod", "chown", "chroot", "cp", "cut", "date", "dd", "df",
    "dirname", "echo", "env", "expr", "false", "find", "free", "grep", "head", "hostname", "id",
    "ip", "kill", "ln", "ls", "mkdir", "mkfifo", "mknod", "mount", "mv", "nproc", "od", "printf",
    "ps", "pwd", "readlink", "realpath", "rm", "rmdir", "sed", "seq", "setsid", "sh", "sleep",
    "sort", "stat", "stty", "sync", "tail", "tee", "test", "time", "top", "touch", "tr", "true",
    "tty", "umount", "uname", "uniq", "unshare", "usleep", "wc", "which", "whoami", "xargs", "yes",
];

/// Writes the root file system alone as a tar, for `docker import` and `podman import`.
///
/// # Panics
/// When tar fails or files cannot be written.
#[must_use]
pub fn write_root_archive(folder: &Path) -> PathBuf {
    let rootfs = folder.join("rootfs");
    if !rootfs.exists() {
        fill_rootfs(&rootfs);
    }
    let archive = folder.join("rootfs.tar");
    tar(&rootfs, &archive);
    archive
}

/// Writes the image as a tar of an OCI image layout, ready for `ctr images import`.
///
/// # Panics
/// When tar fails or files cannot be written.
#[must_use]
pub fn write_archive(folder: &Path) -> PathBuf {
    write_archive_of(folder, NAME, &["sh"])
}

/// [`write_archive`] under another name, of an image that runs something else when nothing is said.
///
/// # Panics
/// As [`write_archive`].
#[must_use]
pub fn write_archive_of(folder: &Path, name: &str, command: &[&str]) -> PathBuf {
    let rootfs = folder.join("rootfs");
    let layout = folder.join("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("layout");
    fill_rootfs(&rootfs);
    let layer = folder.join("layer.tar");
    tar(&rootfs, &layer);

    let layer = fs::read(layer).expect("read the layer");
    let diff = digest(&layer);
    let layer = blob(&blobs, &layer, "application/vnd.oci.image.layer.v1.tar");
    let config = json!({
        "architecture": architecture(), "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": command, "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{diff}")]},
    });
    let config = blob(
        &blobs,
        config.to_string().as_bytes(),
        "application/vnd.oci.image.config.v1+json",
    );
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config, "layers": [layer],
    });
    let mut manifest = blob(
        &blobs,
        manifest.to_string().as_bytes(),
        "application/vnd.oci.image.manifest.v1+json",
    );
    manifest["annotations"] = json!({"io.containerd.image.name": name});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(layout.join("index.json"), index.to_string()).expect("index");
    fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .expect("oci-layout");

    let archive = folder.join("image.tar");
    tar(&layout, &archive);
    archive
}

fn tar(folder: &Path, archive: &Path) {
    deadline::run(
        Command::new("tar")
            .arg("-C")
            .arg(folder)
            .arg("-cf")
            .arg(archive)
            .arg("."),
        Duration::from_secs(30),
    )
    .ok();
}

fn blob(blobs: &Path, content: &[u8], media_type: &str) -> serde_json::Value {
    let digest = digest(content);
    fs::write(blobs.join(&digest), content).expect("write a blob");
    json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": content.len()})
}

/// SHA-256 in lower-case hex.
#[must_use]
pub fn digest(content: &[u8]) -> String {
    Sha256::digest(content)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
