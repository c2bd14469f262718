//! `restore` under a shim: registered before it runs, as after a create.

use std::fs;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::process::{Child, Stdio};

use holdfast_integration::bundle::Bundle;
use holdfast_integration::deadline::{self, eventually};
use holdfast_integration::scratch::{LIMIT, Scratch};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, recvmsg, send,
    socketpair,
};

use crate::fake::{Fake, bundle, end, restore_words};

/// Starts a restore as a shim does; the other end of its socket.
fn under_a_shim(
    fake: &Fake,
    scratch: &Scratch,
    bundle: &Bundle,
    images: &Path,
) -> (Child, OwnedFd) {
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .unwrap();
    let words = restore_words(scratch, bundle, images, &[]);
    fcntl(theirs.as_raw_fd(), FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let child = fake
        .command(scratch, &words)
        .env("HOLDFAST_BARRIER", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    (child, ours)
}

/// The next frame and the descriptor with it.
fn frame(socket: &OwnedFd) -> (Vec<u8>, Option<i32>) {
    let mut buffer = vec![0; 32 << 10];
    let mut space = nix::cmsg_space!([i32; 1]);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )
    .unwrap();
    let fd = message.cmsgs().unwrap().find_map(|control| match control {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    let len = message.bytes;
    buffer.truncate(len);
    (buffer, fd)
}

fn registered(socket: &OwnedFd) -> i32 {
    let (bytes, pidfd) = frame(socket);
    assert_eq!((bytes[0], bytes.len()), (1, 5), "{bytes:?}");
    nix::unistd::close(pidfd.expect("a pidfd")).unwrap();
    i32::from_le_bytes(bytes[1..].try_into().unwrap())
}

fn command_of(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

pub(crate) fn a_restored_process_is_registered_before_it_runs(scratch: &Scratch) {
    let Some(fake) = Fake::new(scratch) else {
        return;
    };
    let images = fake.images(scratch);
    let bundle = bundle(scratch, "again");
    let (mut child, shim) = under_a_shim(&fake, scratch, &bundle, &images);
    let pid = registered(&shim);
    // It is still what criu made, and a child of the shim from the beginning.
    assert!(command_of(pid).contains("swrk"), "{}", command_of(pid));
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let parent = format!("PPid:\t{}\n", std::process::id());
    assert!(status.contains(&parent), "{status}");
    assert!(
        child.try_wait().unwrap().is_none(),
        "restore has not waited for the shim"
    );
    send(shim.as_raw_fd(), &[6], MsgFlags::empty()).unwrap();
    let ended = deadline::wait(&mut child, LIMIT).expect("restore ends");
    assert!(ended.success());
    eventually("it runs", LIMIT, || {
        command_of(pid).starts_with("/bin/sleep").then_some(())
    });
    assert_eq!(scratch.state("again")["pid"], pid);
    end(scratch, &bundle, pid);
}

pub(crate) fn a_shim_that_refuses_gets_no_container(scratch: &Scratch) {
    let Some(fake) = Fake::new(scratch) else {
        return;
    };
    let images = fake.images(scratch);
    let bundle = bundle(scratch, "again");
    let (mut child, shim) = under_a_shim(&fake, scratch, &bundle, &images);
    let pid = registered(&shim);
    drop(shim);
    let ended = deadline::wait(&mut child, LIMIT).expect("restore ends");
    assert!(!ended.success());
    scratch.exit_of(pid);
    scratch.call(&["state", "again"]).failed();
}
