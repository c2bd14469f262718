//! Opens what a client's stdio paths lead to, and makes the pipes of a process.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use holdfast_record::deadline::limit_from_env;
use nix::fcntl::OFlag;

use super::StdioPaths;
use super::error::{StdioError, io_error};
use super::logger::is_logger;
use super::sink::Sink;
use crate::resume::{self, Step};

/// How long a fifo may lack its reader before the start fails.
fn reader_limit() -> Duration {
    limit_from_env("READER", Duration::from_secs(30))
}

/// Says now, and not at start, what cannot be served.
///
/// # Errors
/// [`StdioError::Scheme`].
pub(crate) fn check(paths: &StdioPaths) -> Result<(), StdioError> {
    for (stream, path) in [
        ("stdin", &paths.stdin),
        ("stdout", &paths.stdout),
        ("stderr", &paths.stderr),
    ] {
        let scheme = path.split_once("://").map(|(scheme, _)| scheme);
        let served = match scheme {
            None | Some("fifo") => true,
            Some("file") => stream != "stdin",
            // For stderr it is read as stdout's: both streams go to one program.
            Some("binary" | "binary-v2") => is_logger(&paths.stdout),
            Some(_) => false,
        };
        if !served {
            return Err(StdioError::Scheme {
                stream,
                uri: path.clone(),
            });
        }
    }
    Ok(())
}

/// Opens a file or fifo without waiting for its other end.
pub(super) fn open(path: &Path, mode: OFlag) -> io::Result<OwnedFd> {
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new()
        .read(mode != OFlag::O_WRONLY)
        .write(mode != OFlag::O_RDONLY)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map(OwnedFd::from)
}

/// What the output at `uri` goes to. It comes in the step in which it was opened: a client's fifo that is opened and
/// closed is over for the client.
pub(super) async fn open_sink(stream: &'static str, uri: &str) -> Result<(Step, Sink), StdioError> {
    use std::os::unix::fs::FileTypeExt as _;
    if let Some(rest) = uri.strip_prefix("file://") {
        let path = Path::new(rest.split('?').next().unwrap_or(rest));
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(io_error(
                stream,
                "create the directory of",
                path,
            ))?;
        }
        return append(stream, path);
    }
    let path = Path::new(uri.strip_prefix("fifo://").unwrap_or(uri));
    let kind = std::fs::metadata(path)
        .map_err(io_error(stream, "look at", path))?
        .file_type();
    if !kind.is_fifo() {
        return append(stream, path);
    }
    // Clients open their end before they call, so this succeeds at once as a rule. The kernel
    // has no event for "a reader has come", so the rare late one is asked for.
    let limit = reader_limit();
    let deadline = tokio::time::Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    while tokio::time::Instant::now() < deadline {
        if let Some(opened) = try_open_fifo(stream, path)? {
            return Ok(opened);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    Err(StdioError::NoReader {
        stream,
        path: path.to_owned(),
        limit,
    })
}

/// None: nobody reads it yet.
fn try_open_fifo(stream: &'static str, path: &Path) -> Result<Option<(Step, Sink)>, StdioError> {
    let step = resume::step();
    let writer = match open(path, OFlag::O_WRONLY) {
        Ok(writer) => writer,
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(None),
        Err(error) => return Err(io_error(stream, "open for writing", path)(error)),
    };
    let keepalive = open(path, OFlag::O_RDONLY).map_err(io_error(stream, "keep open", path))?;
    let sink = Sink::fifo(writer, keepalive).map_err(io_error(stream, "watch", path))?;
    Ok(Some((step, sink)))
}

fn append(stream: &'static str, path: &Path) -> Result<(Step, Sink), StdioError> {
    let step = resume::step();
    let file = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .map_err(io_error(stream, "open for appending", path))?;
    Ok((step, Sink::File(Arc::new(file.into()))))
}

/// A pipe whose end for us does not block and whose other end belongs to the container's user.
pub(super) fn pipe(
    stream: &'static str,
    owner: (u32, u32),
) -> Result<(OwnedFd, OwnedFd), StdioError> {
    let failed = |step| io_error(stream, step, Path::new("a pipe"));
    let (reader, writer) =
        nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed("make")(errno.into()))?;
    let ours = if stream == "stdin" { &writer } else { &reader };
    set_nonblocking(ours).map_err(failed("set up"))?;
    if owner != (0, 0) {
        let theirs = if stream == "stdin" { &reader } else { &writer };
        std::os::unix::fs::fchown(theirs, Some(owner.0), Some(owner.1))
            .map_err(failed("give away"))?;
    }
    Ok((reader, writer))
}

/// Reads and writes of it do not wait from now on.
pub(crate) fn set_nonblocking(fd: &impl AsRawFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd.as_raw_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_raw_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
