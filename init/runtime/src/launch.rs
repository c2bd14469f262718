//! From a plan to a process: one clone, and what the parent owes the child afterwards.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use holdfast_cgroups::{Cgroup, Entrance, Hierarchies};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use oci_spec::runtime::LinuxNamespaceType as Type;

use crate::error::{Doing, Error, Result};
use crate::image;
use crate::link::Link;
use crate::plan::create::Prepared;
use crate::plan::namespaces::{Joined, Namespaces, flag, proc_name};
use crate::sys::clone::{Clone3, Cloned, UserNamespace, clone_and_execute, in_between};
use crate::sys::fd;

/// How the process is made.
#[derive(Debug)]
pub struct Launch<'a> {
    /// Which namespaces, by whom.
    pub namespaces: &'a Namespaces,
    /// The cgroup v2 directory to start in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Whose cgroup it starts in when `cgroup` has handed its controllers on to children and so
    /// takes no process any more: that of the container's init process, which has moved on then
    /// (systemd and docker in a container do so).
    pub instead_of_divided: Option<i32>,
    /// The v1 cgroups to enter.
    pub entrance: Option<&'a Entrance>,
    /// Make it a child of our parent: the shim that registers it.
    pub sibling: bool,
    /// Whether it becomes root of another user namespace before it executes the image.
    pub user_namespace: UserNamespace,
    /// Its fds 0 to 2, when they are not ours.
    pub stdio: Option<&'a [OwnedFd; 3]>,
}

/// Starts `holdfast-init` with the plan.
///
/// # Errors
/// The step that failed; nothing is left running.
pub fn launch(request: &Launch<'_>, prepared: Prepared) -> Result<Link> {
    let Prepared { image, kept, floor } = prepared;
    // Until it executes the image, the new process is a copy of this one: in a pid namespace that
    // others are in, they must not open its descriptors (CVE-2016-9962). An ordinary user needs
    // its own /proc/PID files for the id maps, and has nothing that the container has not.
    if request.namespaces.clone & flag(Type::Pid) == 0 && nix::unistd::geteuid().is_root() {
        nix::sys::prctl::set_dumpable(false).doing(|| "protect itself from being traced".into())?;
    }
    let executable = image::sealed()?;
    let plan = fd::sealed(c"holdfast-plan", &image.bytes, false, true)
        .doing(|| "write the plan".into())?;
    let plan = above(plan, floor)?;
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .doing(|| "make the socket to the init process".into())?;
    let theirs = above_closed(theirs, floor)?;
    let arg = |fd: &OwnedFd| CString::new(fd.as_raw_fd().to_string()).unwrap_or_default();
    let (plan_arg, sync_arg) = (arg(&plan), arg(&theirs));
    let clone = Clone3 {
        namespaces: request.namespaces.clone,
        sibling: request.sibling && request.namespaces.in_between.is_empty(),
        cgroup: request
            .cgroup
            .filter(|_| request.namespaces.in_between.is_empty()),
        image: executable.as_fd(),
        args: [c"holdfast-init", &plan_arg, &sync_arg],
        keep: theirs.as_fd(),
        peer: ours.as_fd(),
        entrance: request.entrance,
        user_namespace: request.user_namespace,
        stdio: request
            .stdio
            .map(|fds| [fds[0].as_fd(), fds[1].as_fd(), fds[2].as_fd()]),
    };
    let cloned = if request.namespaces.in_between.is_empty() {
        let homes = join_around(&request.namespaces.by_parent)?;
        let cloned = match (clone_and_execute(&clone), request.instead_of_divided) {
            (Err(error), Some(init)) if error.raw_os_error() == Some(libc::EBUSY) => {
                clone_beside(&clone, init)
            }
            (cloned, _) => cloned.map_err(explain_clone),
        };
        return_home(homes)?;
        cloned?
    } else {
        clone_in_between(&clone, &request.namespaces.in_between)?
    };
    drop(kept);
    Ok(Link::new(cloned.pid, cloned.pidfd, ours, image.labels))
}

/// Clones into the cgroup v2 that `init` is in now.
fn clone_beside(clone: &Clone3<'_>, init: i32) -> Result<Cloned> {
    let cgroup = Cgroup::of_process(&Hierarchies::detect()?, init)?;
    let request = Clone3 {
        cgroup: cgroup.dir_fd()?,
        ..*clone
    };
    clone_and_execute(&request).map_err(explain_clone)
}

fn explain_clone(source: io::Error) -> Error {
    let hint = match source.raw_os_error() {
        Some(libc::ENOSPC) => " (a limit of /proc/sys/user/max_*_namespaces is reached)",
        Some(libc::EAGAIN) => " (a pids limit is reached)",
        Some(libc::ENOSYS) => " (clone3 is missing: holdfast needs Linux 5.12)",
        Some(libc::EBUSY) => " (the cgroup has children with controllers switched on)",
        _ => "",
    };
    Error::Io {
        doing: format!("clone the init process{hint}"),
        source,
    }
}

/// Joins namespaces for the clone's sake; returns our own ones to go back to.
fn join_around(joins: &[Joined]) -> Result<Vec<(OwnedFd, i32, &'static str)>> {
    let mut homes = Vec::with_capacity(joins.len());
    for joined in joins {
        let name = proc_name(joined.typ);
        let path = CString::new(format!("/proc/self/ns/{name}")).unwrap_or_default();
        let dir = fd::open_inherited(&path, libc::O_RDONLY | libc::O_CLOEXEC)
            .doing(|| format!("open our own {name} namespace"))?;
        let flags = i32::try_from(flag(joined.typ)).unwrap_or(0);
        fd::setns(joined.fd.as_fd(), flags)
            .doing(|| format!("join the {} namespace {}", joined.typ, joined.path))?;
        homes.push((dir, flags, name));
    }
    Ok(homes)
}

fn return_home(homes: Vec<(OwnedFd, i32, &'static str)>) -> Result<()> {
    for (home, flags, name) in homes.into_iter().rev() {
        fd::setns(home.as_fd(), flags).doing(|| format!("return to our own {name} namespace"))?;
    }
    Ok(())
}

/// For an existing user namespace: a process that shares our descriptors joins it, clones from
/// inside and ends; the new process becomes our child.
fn clone_in_between(clone: &Clone3<'_>, joins: &[Joined]) -> Result<Cloned> {
    let (reader, writer) =
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).doing(|| "make a pipe".into())?;
    let code = in_between(|| {
        for joined in joins {
            let flags = i32::try_from(flag(joined.typ)).unwrap_or(0);
            if let Err(error) = fd::setns(joined.fd.as_fd(), flags) {
                return errno_code(&error);
            }
        }
        let request = Clone3 {
            // CLONE_PARENT here: a child of ours, not of the process in between.
            sibling: true,
            cgroup: None,
            ..*clone
        };
        match clone_and_execute(&request) {
            Ok(cloned) => {
                let mut message = [0; 8];
                let (pid, number) = message.split_at_mut(4);
                pid.copy_from_slice(&cloned.pid.to_ne_bytes());
                // The descriptor lives on in the shared table.
                number.copy_from_slice(&fd::keep_open(cloned.pidfd).to_ne_bytes());
                match nix::unistd::write(&writer, &message) {
                    Ok(_) => 0,
                    Err(errno) => errno_code(&errno.into()),
                }
            }
            Err(error) => errno_code(&error),
        }
    })
    .doing(|| "start the process that joins the user namespace".into())?;
    if code != 0 {
        return Err(Error::Io {
            doing: "join the user namespace and clone the init process inside".into(),
            source: io::Error::from_raw_os_error(code.into()),
        });
    }
    let mut message = [0; 8];
    nix::unistd::read(reader.as_raw_fd(), &mut message)
        .doing(|| "hear from the process in between".into())?;
    let (pid, number) = message.split_at(4);
    let number = i32::from_ne_bytes(number.try_into().unwrap_or_default());
    let pidfd = fd::adopt(number).doing(|| "take the pidfd over".into())?;
    Ok(Cloned {
        pid: i32::from_ne_bytes(pid.try_into().unwrap_or_default()),
        pidfd,
    })
}

fn errno_code(error: &io::Error) -> u8 {
    error
        .raw_os_error()
        .and_then(|errno| u8::try_from(errno).ok())
        .unwrap_or(u8::MAX)
}

fn above(file: OwnedFd, floor: i32) -> Result<OwnedFd> {
    if file.as_raw_fd() >= floor {
        return Ok(file);
    }
    fd::inherited_above(file.as_fd(), floor)
        .doing(|| "move a descriptor above the preserved ones".into())
}

/// As [`above`]; the result is close-on-exec again (the clone clears it in the child).
fn above_closed(file: OwnedFd, floor: i32) -> Result<OwnedFd> {
    if file.as_raw_fd() >= floor {
        return Ok(file);
    }
    let moved = above(file, floor)?;
    fd::adopt(fd::keep_open(moved)).doing(|| "mark a descriptor close-on-exec".into())
}
