//! Descriptors: reading, writing, duplicating, sending, closing.

use linux_raw_sys::general as k;

use super::call::{Call, EINTR, Errno, at, call, reg};

pub(crate) fn close(file: i32) {
    let _ = call(k::__NR_close, [reg(file), 0, 0, 0, 0, 0]);
}

/// Marks all descriptors from `first` on close-on-exec.
pub(crate) fn close_range_on_exec(first: u32) -> Call<()> {
    // linux/close_range.h
    const CLOSE_RANGE_CLOEXEC: usize = 1 << 2;
    let flags = CLOSE_RANGE_CLOEXEC;
    call(
        k::__NR_close_range,
        [first as usize, u32::MAX as usize, flags, 0, 0, 0],
    )
    .map(drop)
}

pub(crate) fn read(file: i32, buffer: &mut [u8]) -> Call<usize> {
    loop {
        let got = call(
            k::__NR_read,
            [
                reg(file),
                buffer.as_mut_ptr() as usize,
                buffer.len(),
                0,
                0,
                0,
            ],
        );
        if got != Err(Errno(EINTR)) {
            return got;
        }
    }
}

pub(crate) fn write(file: i32, bytes: &[u8]) -> Call<usize> {
    call(
        k::__NR_write,
        [reg(file), bytes.as_ptr() as usize, bytes.len(), 0, 0, 0],
    )
}

/// `dup3` with close-on-exec.
pub(crate) fn replace(file: i32, with: i32) -> Call<()> {
    call(
        k::__NR_dup3,
        [reg(with), reg(file), k::O_CLOEXEC as usize, 0, 0, 0],
    )
    .map(drop)
}

pub(crate) fn dup_to(file: i32, to: i32) -> Call<()> {
    call(k::__NR_dup3, [reg(file), reg(to), 0, 0, 0, 0]).map(drop)
}

/// Sends `bytes` and one descriptor over a unix socket.
pub(crate) fn send_fd(socket: i32, bytes: &[u8], file: i32) -> Call<()> {
    #[repr(C)]
    struct Control {
        len: usize,
        level: i32,
        kind: i32,
        file: i32,
        padding: i32,
    }
    #[repr(C)]
    struct Header {
        name: usize,
        name_len: u32,
        iov: *const [usize; 2],
        iov_len: usize,
        control: *const Control,
        control_len: usize,
        flags: i32,
    }
    const SOL_SOCKET: i32 = 1;
    const SCM_RIGHTS: i32 = 1;
    const MSG_NOSIGNAL: usize = 0x4000;
    let control = Control {
        len: size_of::<usize>() + 12,
        level: SOL_SOCKET,
        kind: SCM_RIGHTS,
        file,
        padding: 0,
    };
    let iov = [bytes.as_ptr() as usize, bytes.len()];
    let header = Header {
        name: 0,
        name_len: 0,
        iov: &raw const iov,
        iov_len: 1,
        control: &raw const control,
        control_len: size_of::<Control>(),
        flags: 0,
    };
    call(
        k::__NR_sendmsg,
        [reg(socket), at(&header), MSG_NOSIGNAL, 0, 0, 0],
    )
    .map(drop)
}
