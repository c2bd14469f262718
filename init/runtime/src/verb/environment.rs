//! The environment of a process, completed with `HOME` as every runtime does.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use oci_spec::runtime::Process;

use crate::sys::fd;

/// `/etc/passwd` larger than this is not looked at: 1 MiB.
const PASSWD_LIMIT: u64 = 1 << 20;

/// The environment with `HOME`, from the container's `/etc/passwd` when it is not given.
/// `root`: the container's root directory.
pub(crate) fn complete(process: &Process, root: Option<&OwnedFd>) -> Vec<String> {
    let mut env: Vec<String> = process.env().clone().unwrap_or_default();
    let home = env.iter().position(|entry| entry.starts_with("HOME="));
    match home {
        // An empty one counts as not given.
        Some(at) if env.get(at).is_some_and(|entry| entry == "HOME=") => {
            env.remove(at);
        }
        Some(_) => return env,
        None => {}
    }
    let home = root
        .and_then(|root| home_of(root, process.user().uid()))
        .unwrap_or_else(|| "/".into());
    env.push(format!("HOME={home}"));
    env
}

fn home_of(root: &OwnedFd, uid: u32) -> Option<String> {
    const RESOLVE_IN_ROOT: u64 = 0x10;
    let file = fd::openat2(
        root.as_fd(),
        c"etc/passwd",
        libc::O_RDONLY | libc::O_NONBLOCK,
        RESOLVE_IN_ROOT,
    )
    .ok()?;
    let file = File::from(file);
    // A device or a fifo of the container's must not be waited for.
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = String::new();
    file.take(PASSWD_LIMIT).read_to_string(&mut text).ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        let found: u32 = fields.next()?.parse().ok()?;
        let home = fields.nth(2)?;
        (found == uid && !home.is_empty()).then(|| home.to_owned())
    })
}

/// Opens a container's root directory to look into it.
pub(super) fn open_root(path: impl AsRef<OsStr>) -> Option<OwnedFd> {
    let path = crate::bundle::cstring("root", path).ok()?;
    fd::open_inherited(&path, libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC).ok()
}
