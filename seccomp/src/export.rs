//! libseccomp's filter as bytes, through a pipe that cannot fill up.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use libseccomp::ScmpFilterContext;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{Pid, gettid, pipe2};

use crate::error::Error;
use crate::sys;

/// How long a new thread may take to run its first instruction, or a finished one to disappear.
/// Both take microseconds; it is for a machine that stands still.
const THREAD_LIMIT: Duration = Duration::from_secs(30);

/// Enough for most programs; the reader's buffer grows if it is not.
const USUAL_SIZE: usize = 16 * 1024;

/// Exports `context` through a pipe, with `capacity` bytes if given.
///
/// libseccomp writes the whole program with one blocking write(2). If nobody reads, the write waits
/// for ever as soon as the program is larger than the pipe, and a pipe may be as small as a page
/// (pipe(7), pipe-user-pages-soft). So the reader runs first: it has said so before the export
/// starts. When this returns, the reader is gone, also for the kernel, and the process has as many
/// threads as before.
pub(crate) fn export(context: &ScmpFilterContext, capacity: Option<i32>) -> Result<Vec<u8>, Error> {
    let (read_end, write_end) = pipe(capacity).map_err(|source| Error::Export {
        step: "create the pipe",
        source,
    })?;

    let (exported, read, reader) = thread::scope(|scope| {
        let (running, started) = mpsc::sync_channel::<Pid>(1);
        let reader = thread::Builder::new()
            .name("seccomp-export".to_owned())
            .spawn_scoped(scope, move || {
                // It fails only if the exporting thread gave up waiting; then the pipe ends too.
                let _gave_up = running.send(gettid());
                let mut bytes = Vec::with_capacity(USUAL_SIZE);
                File::from(read_end).read_to_end(&mut bytes)?;
                Ok(bytes)
            })
            .map_err(|source| Error::Export {
                step: "start the thread that reads the pipe",
                source,
            })?;
        let thread = started
            .recv_timeout(THREAD_LIMIT)
            .map_err(|_| Error::Export {
                step: "wait for the thread that reads the pipe",
                source: io::Error::from_raw_os_error(libc::ETIMEDOUT),
            });
        let exported = match &thread {
            Ok(_) => context.export_bpf(&write_end),
            Err(_) => Ok(()),
        };
        drop(write_end);
        let read = reader
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the reading thread panicked")));
        thread.map(|thread| (exported, read, thread))
    })?;

    sys::wait_until_gone(reader, THREAD_LIMIT).map_err(|source| Error::Export {
        step: "wait for the end of the thread that read the pipe",
        source,
    })?;
    exported.map_err(|source| Error::Libseccomp {
        step: "export",
        subject: "the program".to_owned(),
        source,
    })?;
    read.map_err(|source| Error::Export {
        step: "read the pipe",
        source,
    })
}

fn pipe(capacity: Option<i32>) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read_end, write_end) = pipe2(OFlag::O_CLOEXEC)?;
    if let Some(capacity) = capacity {
        fcntl(write_end.as_raw_fd(), FcntlArg::F_SETPIPE_SZ(capacity))?;
    }
    Ok((read_end, write_end))
}
