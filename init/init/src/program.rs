//! The user's program: where it is, and the last call.

use core::ffi::CStr;

use holdfast_plan::List;
use linux_raw_sys::general as k;

use crate::fault::{Done, Fault};
use crate::root::PathBuffer;
use crate::steps::State;
use crate::sys::{self, EACCES, ENOENT, Errno};

fn check(path: &CStr) -> Result<(), Errno> {
    let stat = sys::stat(path)?;
    if stat.mode & k::S_IFMT == k::S_IFDIR {
        return Err(Errno(EACCES));
    }
    sys::executable(path)
}

impl State {
    /// Looks a program up as a shell does: a name with a slash as it is, another along `path`.
    /// An entry that exists but may not be executed is remembered, the search goes on.
    pub(crate) fn find_program(&mut self, name: &CStr, path: &CStr) -> Done {
        if name.to_bytes().contains(&b'/') {
            check(name).map_err(|errno| Fault::on(b"stat", name.to_bytes(), errno))?;
            self.program = Some(self.keep(&[name.to_bytes()])?);
            return Ok(());
        }
        let mut reason = Errno(ENOENT);
        for dir in path.to_bytes().split(|b| *b == b':') {
            // POSIX: an empty entry is the working directory.
            let dir = if dir.is_empty() { b"." } else { dir };
            let candidate = self.keep(&[dir, b"/", name.to_bytes()])?;
            match check(candidate.as_cstr()) {
                Ok(()) => {
                    self.program = Some(candidate);
                    return Ok(());
                }
                Err(Errno(EACCES)) => reason = Errno(EACCES),
                Err(_) => {}
            }
        }
        Err(Fault::on(b"lookup", name.to_bytes(), reason))
    }

    fn keep(&self, parts: &[&[u8]]) -> Result<PathBuffer, Fault> {
        PathBuffer::of(parts).map_err(|errno| Fault::call(b"path of the program", errno))
    }

    /// Becomes the program; returns only when that failed.
    pub(crate) fn exec(&mut self, args: List<'_>, env: List<'_>) -> Errno {
        let Some(program) = &self.program else {
            return Errno(ENOENT);
        };
        let (argv, used) = sys::pointers(self.scratch, args.iter());
        let (envp, _) = sys::pointers(self.scratch + used * size_of::<usize>(), env.iter());
        sys::execve(program.as_cstr(), argv, envp)
    }
}
