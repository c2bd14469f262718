//! Where things are: the checkout, the built binaries, the peers.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The root of the checkout.
#[must_use]
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate lies in the checkout")
        .to_path_buf()
}

/// Folder of the binaries under test: `HOLDFAST_BIN_DIR`, else `target/release` of the checkout.
#[must_use]
pub fn built_dir() -> PathBuf {
    std::env::var_os("HOLDFAST_BIN_DIR")
        .map_or_else(|| repository().join("target/release"), PathBuf::from)
}

/// One of our own binaries. That it is missing is a failure, never a reason to skip.
///
/// # Panics
/// When it was not built.
#[must_use]
pub fn built(name: &str) -> PathBuf {
    let path = built_dir().join(name);
    assert!(
        is_program(&path),
        "{} is not there: run `make build`",
        path.display()
    );
    path
}

/// One of our binaries built with fault points, where one was: in the folder that `HOLDFAST_FAULTS_DIR` names, else in
/// `target/faults` of the checkout.
///
/// # Errors
/// That it was not, with what makes it.
pub fn with_fault_points(name: &str) -> Result<PathBuf, String> {
    let folder = std::env::var_os("HOLDFAST_FAULTS_DIR")
        .map_or_else(|| repository().join("target/faults"), PathBuf::from);
    let path = folder.join(name);
    if is_program(&path) {
        Ok(path)
    } else {
        Err(format!(
            "{} is not there: run `make faults`",
            path.display()
        ))
    }
}

/// Folder with the binaries of containerd 2.1, as `make tools` leaves it.
#[must_use]
pub fn containerd_2_1() -> PathBuf {
    repository().join("tools/containerd-2.1/bin")
}

/// A program of the machine, looked up in `PATH` and the system folders.
#[must_use]
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| is_program(candidate))
}

fn is_program(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Writes a program's text to a file that can be executed at once.
///
/// Another process writes it: a file that this one has open for writing is open in whatever a
/// parallel test forks just then, and the kernel executes no such file (`ETXTBSY`, execve(2)).
///
/// # Panics
/// When it cannot be written.
#[track_caller]
pub fn write_program(path: &Path, text: &str) {
    let mut writer = Command::new("/bin/sh")
        .args(["-c", "cat >\"$0\" && chmod 755 \"$0\""])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .expect("start a shell");
    let mut stdin = writer.stdin.take().expect("a pipe");
    stdin.write_all(text.as_bytes()).expect("the shell reads");
    drop(stdin);
    let status = writer.wait().expect("wait for own child");
    assert!(status.success(), "write {}: {status}", path.display());
}

/// Whether containers can be made at all.
///
/// # Errors
/// A sentence for the reader of a skipped test.
pub fn is_root() -> Result<(), String> {
    if nix::unistd::geteuid().is_root() {
        Ok(())
    } else {
        Err("containers need root here".to_owned())
    }
}

/// A name that no other test of this machine uses now: for cgroups, containerd namespaces, ids.
#[must_use]
pub fn unique(stem: &str) -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{stem}-{}-{number}", std::process::id())
}
