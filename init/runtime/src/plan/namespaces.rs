//! Which namespaces are made, which are joined, and by whom.
//!
//! * New ones are flags of the one clone, except the cgroup namespace on v1, which has to be
//!   made by the process itself once it is in its cgroups.
//! * Joined ones are joined by `holdfast-init`, except pid (which only concerns children, so
//!   the parent joins) and, when a user namespace is involved, everything else before it:
//!   inside the new user namespace there would be no right to join the host's.

use std::os::fd::OwnedFd;

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};

use crate::bundle::cstring;
use crate::error::{Doing, Result};
use crate::sys::fd;

/// An opened namespace file.
#[derive(Debug)]
pub struct Joined {
    /// Its type.
    pub typ: LinuxNamespaceType,
    /// The open file, inheritable.
    pub fd: OwnedFd,
    /// Where it was found.
    pub path: String,
}

/// The decision for a container.
#[derive(Debug, Default)]
pub struct Namespaces {
    /// Flags of the clone.
    pub clone: u64,
    /// `unshare(CLONE_NEWCGROUP)` by the process itself.
    pub unshare_cgroup: bool,
    /// The time namespace is made by the process itself, because it gets offsets.
    pub unshare_time: bool,
    /// Joined by the process, in this order.
    pub by_init: Vec<Joined>,
    /// Joined by the parent around the clone, and left again.
    pub by_parent: Vec<Joined>,
    /// Joined by a process in between: an existing user namespace and whatever goes with it.
    pub in_between: Vec<Joined>,
}

/// The flag of a type for clone, unshare and setns.
pub fn flag(typ: LinuxNamespaceType) -> u64 {
    // The enum's discriminants are the kernel's CLONE_NEW* values.
    u64::from(typ as u32)
}

/// Name of the file in `/proc/PID/ns` that a process enters by being cloned.
pub fn proc_name(typ: LinuxNamespaceType) -> &'static str {
    match typ {
        LinuxNamespaceType::Mount => "mnt",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Network => "net",
        LinuxNamespaceType::Time => "time",
    }
}

impl Namespaces {
    /// Opens the joined ones and decides. `into_cgroup`: the clone starts in its cgroup;
    /// `time_offsets`: there are offsets for a new time namespace.
    ///
    /// # Errors
    /// A namespace path that cannot be opened.
    pub fn decide(list: &[LinuxNamespace], into_cgroup: bool, time_offsets: bool) -> Result<Self> {
        use LinuxNamespaceType as Type;
        let mut this = Self::default();
        let new_user = list
            .iter()
            .any(|n| n.typ() == Type::User && n.path().is_none());
        let joined_user = list
            .iter()
            .any(|n| n.typ() == Type::User && n.path().is_some());
        for namespace in list {
            let typ = namespace.typ();
            let Some(path) = namespace.path() else {
                match typ {
                    Type::Cgroup if !into_cgroup || joined_user => this.unshare_cgroup = true,
                    // The clone is inside at once, and from then on its offsets are fixed.
                    Type::Time if time_offsets => this.unshare_time = true,
                    Type::Cgroup
                    | Type::Time
                    | Type::Mount
                    | Type::Uts
                    | Type::Ipc
                    | Type::User
                    | Type::Pid
                    | Type::Network => this.clone |= flag(typ),
                }
                continue;
            };
            let field = format!("linux.namespaces: path of {typ}");
            let file =
                fd::open_inherited(&cstring(&field, path)?, libc::O_RDONLY | libc::O_NONBLOCK)
                    .doing(|| format!("open the {typ} namespace {}", path.display()))?;
            let joined = Joined {
                typ,
                fd: file,
                path: path.display().to_string(),
            };
            let no_return = typ == Type::Pid && !crate::verb::is_root_of_the_machine();
            if (joined_user && typ != Type::Mount) || no_return {
                this.in_between.push(joined);
            } else if typ == Type::Pid || (new_user && typ != Type::Mount) {
                this.by_parent.push(joined);
            } else {
                this.by_init.push(joined);
            }
        }
        // The user namespace gives the rights for the others; the mount namespace takes the
        // view of the host away, so it comes last.
        this.in_between.sort_by_key(|j| j.typ != Type::User);
        this.by_init.sort_by_key(|j| j.typ == Type::Mount);
        Ok(this)
    }
}
