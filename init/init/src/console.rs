//! The terminal: allocated in the container's own devpts, handed out by descriptor.

use holdfast_plan::TargetKind;
use linux_raw_sys::general as k;

use crate::fault::{Done, Fault};
use crate::steps::State;
use crate::sys;

const DEVPTS_MAGIC: u64 = 0x1cd1;

impl State {
    pub(crate) fn console(
        &mut self,
        socket: i32,
        rows: u32,
        columns: u32,
        bind: bool,
        uid: u32,
    ) -> Done {
        let path = c"/dev/pts/ptmx";
        let resolve = k::RESOLVE_IN_ROOT | k::RESOLVE_NO_SYMLINKS;
        let root = self.root()?;
        let ptmx = sys::openat2(root.dir(), path, k::O_RDWR | k::O_NOCTTY, resolve)
            .map_err(|errno| Fault::on(b"openat2", path.to_bytes(), errno))?;
        // An image can put anything there; only the real multiplexer will do (CVE-2025-52565).
        let magic = sys::fs_magic(ptmx).map_err(|errno| Fault::call(b"fstatfs", errno))?;
        let stat = sys::fstat(ptmx).map_err(|errno| Fault::call(b"statx", errno))?;
        if magic != DEVPTS_MAGIC || stat.ino != 2 || stat.rdev != (5, 2) {
            return Err(Fault::check(b"/dev/pts/ptmx is not the container's devpts"));
        }
        sys::unlock_pty(ptmx).map_err(|errno| Fault::call(b"ioctl TIOCSPTLCK", errno))?;
        let slave =
            sys::pty_peer(ptmx).map_err(|errno| Fault::call(b"ioctl TIOCGPTPEER", errno))?;
        if rows != 0 && columns != 0 {
            let cut = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
            sys::window_size(slave, cut(rows), cut(columns))
                .map_err(|errno| Fault::call(b"ioctl TIOCSWINSZ", errno))?;
        }
        if uid != 0 {
            sys::fchown(slave, uid).map_err(|errno| Fault::on(b"fchown", b"tty", errno))?;
        }
        if bind {
            // No symlink: it would let an image choose what the terminal covers, before the
            // masked paths are covered (CVE-2025-52565).
            let at = root.target(c"/dev/console", TargetKind::File, true)?;
            let tree = sys::clone_tree(slave, 0)
                .map_err(|errno| Fault::on(b"open_tree", b"tty", errno))?;
            sys::move_mount(tree, at)
                .map_err(|errno| Fault::on(b"move_mount", b"/dev/console", errno))?;
        }
        sys::send_fd(socket, path.to_bytes(), ptmx)
            .map_err(|errno| Fault::on(b"sendmsg", b"console socket", errno))?;
        // The master is the other side's now: an open copy here would keep the tty alive.
        sys::close(ptmx);
        for fd in 0..3 {
            sys::dup_to(slave, fd).map_err(|errno| Fault::on(b"dup3", b"tty", errno))?;
        }
        sys::controlling_terminal(0).map_err(|errno| Fault::call(b"ioctl TIOCSCTTY", errno))
    }

    /// Gives stdin, stdout and stderr to the user. `/dev/null` belongs to everybody, and a
    /// sink that refuses (a socket, a read-only file system) works without.
    pub(crate) fn own_stdio(&mut self, uid: u32) -> Done {
        for fd in 0..3 {
            let Ok(stat) = sys::fstat(fd) else { continue };
            if stat.mode & k::S_IFMT == k::S_IFCHR && stat.rdev == (1, 3) {
                continue;
            }
            match sys::fchown(fd, uid) {
                Ok(()) | Err(sys::Errno(sys::EPERM | sys::EINVAL | sys::EROFS | sys::ENOSYS)) => {}
                Err(errno) => return Err(Fault::on(b"fchown", b"stdio", errno)),
            }
        }
        Ok(())
    }
}
