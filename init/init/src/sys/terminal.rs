//! Terminals.

use linux_raw_sys::general as k;
use linux_raw_sys::ioctl;

use super::call::{Call, at, call, fd, reg};

/// `ioctl(ptmx, TIOCSPTLCK, 0)`: unlocks the slave.
pub(crate) fn unlock_pty(ptmx: i32) -> Call<()> {
    let unlock = 0i32;
    call(
        k::__NR_ioctl,
        [reg(ptmx), ioctl::TIOCSPTLCK as usize, at(&unlock), 0, 0, 0],
    )
    .map(drop)
}

/// `ioctl(ptmx, TIOCGPTPEER)`: the slave, by descriptor and not by path.
pub(crate) fn pty_peer(ptmx: i32) -> Call<i32> {
    let flags = (k::O_RDWR | k::O_NOCTTY | k::O_CLOEXEC) as usize;
    call(
        k::__NR_ioctl,
        [reg(ptmx), ioctl::TIOCGPTPEER as usize, flags, 0, 0, 0],
    )
    .map(fd)
}

pub(crate) fn controlling_terminal(tty: i32) -> Call<()> {
    call(
        k::__NR_ioctl,
        [reg(tty), ioctl::TIOCSCTTY as usize, 0, 0, 0, 0],
    )
    .map(drop)
}

pub(crate) fn window_size(tty: i32, rows: u16, columns: u16) -> Call<()> {
    let size = [rows, columns, 0, 0];
    call(
        k::__NR_ioctl,
        [reg(tty), ioctl::TIOCSWINSZ as usize, at(&size), 0, 0, 0],
    )
    .map(drop)
}
