//! Receives the master of a terminal from the runtime over a socket (`--console-socket`).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use holdfast_record::deadline::limit_from_env;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::resume::descriptor::{Descriptor, Name};
use crate::resume::inherited::Inherited;
use crate::resume::{self, image};
use crate::sys;
use serde::{Deserialize, Serialize};

/// How long after the runtime's success its terminal may be under way.
fn console_limit() -> Duration {
    limit_from_env("CONSOLE", Duration::from_secs(10))
}

/// Where the sockets' directories are made.
const PARENT: &str = "/run/holdfast";

/// What the names of one shim's directories begin with.
fn prefix(shim: u32) -> String {
    format!("pty-{shim}-")
}

/// Removes what a killed shim has left.
pub(crate) fn remove_leftovers(shim: u32) {
    let Ok(entries) = std::fs::read_dir(PARENT) else {
        return;
    };
    for entry in entries.flatten() {
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with(&prefix(shim))
            && let Err(error) = std::fs::remove_dir_all(entry.path())
        {
            log::warn!("remove {}: {error}", entry.path().display());
        }
    }
}

/// The terminal did not come.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConsoleError {
    /// A system call.
    #[error("terminal: {step} {path}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// On which file.
        path: PathBuf,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// Nothing came.
    #[error("terminal: the runtime sent none within {limit:?} of its success")]
    Late {
        /// See [`console_limit`].
        limit: Duration,
    },
    /// Something else came.
    #[error("terminal: the runtime sent a message without a descriptor")]
    NoDescriptor,
}

/// The socket as the slate has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ConsoleRecord {
    dir: PathBuf,
    fd: Name,
}

impl ConsoleRecord {
    /// The socket again, in the next image.
    pub(crate) fn restore(&self, inherited: &mut Inherited) -> Option<ConsoleSocket> {
        let (held, listener) = inherited
            .descriptor(self.fd)
            .and_then(listen_on)
            .inspect_err(|error| log::error!("{}: {error}", self.dir.display()))
            .ok()?;
        Some(ConsoleSocket {
            held,
            dir: self.dir.clone(),
            path: self.dir.join("s"),
            listener,
        })
    }
}

/// A socket for the slate, and for the event loop.
fn listen_on(held: Descriptor) -> io::Result<(Descriptor, AsyncFd<UnixListener>)> {
    let listener = UnixListener::from(OwnedFd::from(held.try_clone()?));
    Ok((held, sys::watch_listener(listener)?))
}

/// The socket, in a directory of its own that only root may enter; both go with it.
#[derive(Debug)]
pub(crate) struct ConsoleSocket {
    dir: PathBuf,
    path: PathBuf,
    /// What the slate names.
    held: Descriptor,
    listener: AsyncFd<UnixListener>,
}

impl ConsoleSocket {
    /// Makes the socket. Not in the bundle: with its long id the path would not fit in a
    /// socket address.
    ///
    /// # Errors
    /// [`ConsoleError::Io`].
    pub(crate) fn new() -> Result<Self, ConsoleError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let failed = |step, path: &Path| {
            let path = path.to_owned();
            move |source| ConsoleError::Io { step, path, source }
        };
        let parent = Path::new(PARENT);
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)
            .map_err(failed("create", parent))?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let image = image::number();
        let dir = parent.join(format!("{}{image}-{number}", prefix(std::process::id())));
        // Left over from a shim of the same pid that was killed.
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .map_err(failed("create", &dir))?;
        let path = dir.join("s");
        let listener = UnixListener::bind(&path).and_then(|listener| {
            listener.set_nonblocking(true)?;
            listen_on(listener.into())
        });
        let (held, listener) = match listener {
            Ok(listener) => listener,
            Err(error) => {
                let _ = std::fs::remove_dir_all(&dir);
                return Err(failed("bind", &path)(error));
            }
        };
        Ok(Self {
            dir,
            path,
            held,
            listener,
        })
    }

    /// For the slate.
    pub(crate) fn record(&self) -> ConsoleRecord {
        ConsoleRecord {
            dir: self.dir.clone(),
            fd: self.held.name(),
        }
    }

    /// For `--console-socket`.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the terminal, once the runtime has succeeded; `keep` is called in the step in which it came.
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub(crate) async fn receive(
        &self,
        keep: impl Fn(&Descriptor),
    ) -> Result<Descriptor, ConsoleError> {
        let failed = |step| {
            let path = self.path.clone();
            move |source| ConsoleError::Io { step, path, source }
        };
        let exchange = async {
            let stream = loop {
                let mut ready = self.listener.readable().await.map_err(failed("wait on"))?;
                // Accepted and received in one step: in between it would be in nobody's hands.
                let _step = resume::step();
                match ready.try_io(|listener| listener.get_ref().accept()) {
                    Ok(Ok((stream, _))) => {
                        stream.set_nonblocking(true).map_err(failed("set up"))?;
                        let mut buffer = [0u8; 4096];
                        match sys::receive_with_fd(stream.as_fd(), &mut buffer) {
                            Ok(received) => {
                                let master = received.fd.ok_or(ConsoleError::NoDescriptor)?;
                                keep(&master);
                                return Ok(master);
                            }
                            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                                break stream;
                            }
                            Err(error) => return Err(failed("receive from")(error)),
                        }
                    }
                    Ok(Err(error)) => return Err(failed("accept on")(error)),
                    Err(_) => {}
                }
            };
            // A runtime that sends after its success: none of ours does.
            let stream = sys::watch(stream, Interest::READABLE).map_err(failed("watch"))?;
            let mut buffer = [0u8; 4096];
            let received = stream
                .async_io(Interest::READABLE, |stream| {
                    let _step = resume::step();
                    let received = sys::receive_with_fd(stream.as_fd(), &mut buffer)?;
                    if let Some(master) = &received.fd {
                        keep(master);
                    }
                    Ok(received)
                })
                .await
                .map_err(failed("receive from"))?;
            received.fd.ok_or(ConsoleError::NoDescriptor)
        };
        let limit = console_limit();
        tokio::time::timeout(limit, exchange)
            .await
            .map_err(|_| ConsoleError::Late { limit })?
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        let _ = std::fs::remove_dir(&self.dir);
    }
}
