//! Where the shim listens: address, bind, and finding a shim that is there already.
//!
//! The path is `<dir>/<sha256 of "grpc address/containerd namespace/group">`. Binding *and
//! listening* happen in `start`, before the server exists, so that a second `start` of the
//! same group can connect from the first moment on.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Component, Path, PathBuf};

use sha2::{Digest, Sha256};

/// Directory of the sockets when containerd names none.
pub(crate) const DEFAULT_DIR: &str = "/run/containerd/s";
/// Longest path `bind(2)` takes, with its terminating NUL left room for.
const MAX_PATH: usize = 107;

/// The socket could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{step} {path}")]
pub(crate) struct SocketError {
    step: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// What [`claim`] found.
#[derive(Debug)]
pub(crate) enum Claim {
    /// We own the address now.
    Listening(UnixListener),
    /// A shim of this group answers there.
    Taken,
}

/// Joins and cleans like Go's `filepath.Join`, because the hash must be the same.
fn join(parts: &[&str]) -> String {
    let mut out: Vec<String> = Vec::new();
    let joined = parts
        .iter()
        .filter(|part| !part.is_empty())
        .copied()
        .collect::<Vec<_>>()
        .join("/");
    let absolute = joined.starts_with('/');
    for component in Path::new(&joined).components() {
        match component {
            Component::Normal(name) => out.push(name.to_string_lossy().into_owned()),
            Component::ParentDir => {
                if out.last().is_some_and(|last| last != "..") {
                    out.pop();
                } else if !absolute {
                    out.push("..".to_owned());
                }
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    format!("{}{}", if absolute { "/" } else { "" }, out.join("/"))
}

/// Path of the socket that serves `group`.
pub(crate) fn path(dir: &Path, grpc_address: &str, namespace: &str, group: &str) -> PathBuf {
    let digest = Sha256::digest(join(&[grpc_address, namespace, group]).as_bytes());
    let mut name = String::with_capacity(64);
    for byte in digest {
        use std::fmt::Write as _;
        let _ = write!(name, "{byte:02x}");
    }
    dir.join(name)
}

/// Binds and listens at `path`, or finds the shim that already does.
///
/// A socket file that nobody listens on is what a killed shim leaves behind; it is replaced.
///
/// # Errors
/// [`SocketError`] with the step that failed.
pub(crate) fn claim(path: &Path) -> Result<Claim, SocketError> {
    let failed = |step: &'static str| {
        let path = path.to_owned();
        move |source: io::Error| SocketError { step, path, source }
    };
    if path.as_os_str().len() > MAX_PATH {
        return Err(failed(
            "bind (path over 107 bytes; choose a shorter socket directory)",
        )(io::Error::from_raw_os_error(libc::ENAMETOOLONG)));
    }
    if let Some(dir) = path.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(failed("create the directory of"))?;
    }
    for _ in 0..8 {
        match UnixListener::bind(path) {
            Ok(listener) => {
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
                    .map_err(failed("restrict the permissions of"))?;
                return Ok(Claim::Listening(listener));
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(failed("bind")(error)),
        }
        match UnixStream::connect(path) {
            Ok(_) => return Ok(Claim::Taken),
            // Between somebody's bind(2) and listen(2), or nobody behind it any more. Only a
            // file that refuses twice in a row is stale; std binds and listens back to back.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::thread::sleep(std::time::Duration::from_millis(5));
                if UnixStream::connect(path).is_ok() {
                    return Ok(Claim::Taken);
                }
                match std::fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(failed("remove the stale socket")(error));
                    }
                    Ok(()) | Err(_) => {}
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("connect to")(error)),
        }
    }
    Err(failed("claim")(io::Error::from_raw_os_error(
        libc::EADDRINUSE,
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_like_go() {
        assert_eq!(join(&["/run/c.sock", "ns", "id"]), "/run/c.sock/ns/id");
        assert_eq!(join(&["/run//c.sock/", "./ns", "../id"]), "/run/c.sock/id");
        assert_eq!(join(&["", "ns", "id"]), "ns/id");
    }

    #[test]
    fn the_path_is_the_hash_go_computes() {
        // printf '/run/containerd/containerd.sock/default/abc' | sha256sum
        assert_eq!(
            path(
                Path::new("/s"),
                "/run/containerd/containerd.sock",
                "default",
                "abc"
            ),
            Path::new("/s/8cb244a719603fe00870d5ce1d8e1f1db43a654cb993d107df1f1ae23ddffa59")
        );
    }

    #[test]
    fn a_second_claim_finds_the_first_and_a_stale_file_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/sock");
        let Claim::Listening(listener) = claim(&path).unwrap() else {
            panic!("not ours")
        };
        assert!(matches!(claim(&path).unwrap(), Claim::Taken));
        drop(listener);
        assert!(matches!(claim(&path).unwrap(), Claim::Listening(_)));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}
