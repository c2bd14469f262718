//! What `holdfast-init` can be told to do.

use core::ffi::CStr;

use crate::wire::{Field, List, Malformed, Reader, Sink, Words};

/// A moment at which `holdfast-init` waits for its parent.
///
/// The parent does the work of a point on its own and then sends one byte, so the
/// child only sleeps when it is the faster of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Point {
    /// The process is in its cgroups.
    Cgroups = 2,
    /// `prestart`, `createRuntime` and `createContainer` hooks have run. Announced first.
    Hooks = 3,
    /// Everything is prepared; the process may become the user's.
    Ready = 4,
}

/// What a mount target is, and so what is created when it is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum TargetKind {
    /// A directory.
    Directory = 1,
    /// A regular file (a bind mount of a file, device or socket).
    File = 2,
}

macro_rules! wire_enum {
    ($name:ident { $($variant:ident = $value:literal),+ }) => {
        impl $name {
            /// The number on the wire.
            pub fn code(self) -> u32 { self as u32 }
            /// The variant with that number.
            ///
            /// # Errors
            /// [`Malformed`] when no variant has it.
            pub fn from_code(code: u32) -> Result<Self, Malformed> {
                match code { $($value => Ok(Self::$variant),)+ _ => Err(Malformed) }
            }
        }
        impl<'a> Field<'a> for $name {
            fn put(&self, out: &mut dyn Sink) { self.code().put(out); }
            fn get(from: &mut Reader<'a>) -> Result<Self, Malformed> {
                Self::from_code(u32::get(from)?)
            }
        }
    };
}
wire_enum!(Point {
    Cgroups = 2,
    Hooks = 3,
    Ready = 4
});
wire_enum!(TargetKind {
    Directory = 1,
    File = 2
});

/// Defines the steps once: the enum, its encoder and its decoder cannot disagree.
macro_rules! steps {
    ($( $(#[$doc:meta])* $tag:literal $name:ident { $( $(#[$fdoc:meta])* $field:ident : $type:ty ),* $(,)? } )+) => {
        /// One thing to do. Paths of targets are resolved inside the container's root
        /// (`openat2` with `RESOLVE_IN_ROOT`); `fd` fields are descriptors inherited from the parent.
        #[expect(
            missing_docs,
            reason = "fields are named after the arguments of the system call in the step's line"
        )]
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Step<'a> {
            $( $(#[$doc])* $name { $( $(#[$fdoc])* $field: $type ),* }, )+
        }

        impl<'a> Step<'a> {
            pub(crate) fn decode(tag: u32, body: &mut Reader<'a>) -> Result<Self, Malformed> {
                match tag {
                    $( $tag => Ok(Self::$name { $( $field: <$type as Field<'a>>::get(body)? ),* }), )+
                    _ => Err(Malformed),
                }
            }

            /// Writes the body and returns the tag.
            pub fn encode(&self, out: &mut dyn Sink) -> u32 {
                match self {
                    $( Self::$name { $( $field ),* } => { $( $field.put(out); )* let _ = &out; $tag } )+
                }
            }
        }
    };
}

steps! {
    /// `setns(fd, flags)`: `fd` is a pidfd (flags: several namespaces) or a namespace file.
    1 Join { fd: i32, flags: u32 }
    /// `unshare(flags)`.
    2 Unshare { flags: u32 }
    /// Send "reached" when `announce`; wait for the parent's byte when `wait`.
    3 Await { point: Point, announce: bool, wait: bool }
    /// `setresgid(0)`, `setresuid(0)`: become root of the user namespace just joined.
    4 BecomeRoot {}
    /// `prctl(PR_SET_DUMPABLE, 0)`.
    5 NonDumpable {}
    /// `setsid()`.
    6 NewSession {}
    /// `keyctl(KEYCTL_JOIN_SESSION_KEYRING, name)`; a kernel without keyrings is fine.
    7 JoinKeyring { name: &'a CStr }
    /// `sethostname`.
    8 Hostname { name: &'a CStr }
    /// `setdomainname`.
    9 Domainname { name: &'a CStr }
    /// Write `value` to `path` below the host's `/proc`, which is verified to be procfs
    /// and crossed without symlinks (CVE-2025-52881).
    10 WriteProc { path: &'a CStr, value: &'a [u8] }
    /// `mount(NULL, "/", NULL, flags)`: propagation of everything inherited.
    11 Propagation { flags: u64 }
    /// Attach the detached tree `fd` at the host path and make it the root of all later paths.
    12 AttachRoot { fd: i32, path: &'a CStr, propagation: u64 }
    /// Use the directory `fd` as the root of all later paths, without any mount.
    13 UseRoot { fd: i32 }
    /// Mount a new file system. `nofollow` demands a target without symlinks.
    14 MountFs {
        /// File system type.
        fstype: &'a CStr,
        /// First argument of mount(2).
        source: &'a CStr,
        /// Where, inside the root.
        target: &'a CStr,
        /// `MS_*` without propagation.
        flags: u64,
        /// Propagation `MS_*`, 0 for none.
        propagation: u64,
        /// File system specific options.
        data: &'a CStr,
        /// Target must not contain symlinks (proc, sysfs: CVE-2023-27561).
        nofollow: bool,
        /// `MOUNT_ATTR_*` to set recursively.
        attr_set: u64,
        /// `MOUNT_ATTR_*` to clear recursively.
        attr_clr: u64
    }
    /// Attach a detached tree made by the parent (a bind mount).
    15 MountTree {
        /// The tree, from `open_tree(OPEN_TREE_CLONE)`.
        fd: i32,
        /// Where, inside the root.
        target: &'a CStr,
        /// What to create when the target is missing.
        kind: TargetKind,
        /// A symlink at the end of the target is the target itself.
        nofollow: bool,
        /// `MOUNT_ATTR_*` to set on the top mount.
        attr_set: u64,
        /// `MOUNT_ATTR_*` to clear on the top mount.
        attr_clr: u64,
        /// Propagation `MS_*` to set before it is attached, 0 for none: a tree of a shared mount
        /// gives everything mounted below it to the host.
        cut: u64,
        /// Propagation `MS_*` to set after it is attached, 0 for none.
        propagation: u64,
        /// `MOUNT_ATTR_*` to set recursively.
        rec_attr_set: u64,
        /// `MOUNT_ATTR_*` to clear recursively.
        rec_attr_clr: u64
    }
    /// Make a directory and what leads to it, inside the root.
    16 Mkdir { path: &'a CStr, mode: u32 }
    /// `symlink(content, path)`; an existing entry stays, unless `replace`.
    17 Symlink { content: &'a CStr, path: &'a CStr, replace: bool }
    /// `mknod`; an existing node stays.
    18 Mknod { path: &'a CStr, mode: u32, device: u64, uid: u32, gid: u32 }
    /// Allocate a pty from the container's devpts, send the master over `socket`, make the
    /// slave the controlling terminal and fds 0 to 2; with `bind`, mount it on `/dev/console`.
    19 Console { socket: i32, rows: u32, columns: u32, bind: bool, uid: u32 }
    /// Hide a path; a missing one is fine.
    20 Mask { path: &'a CStr }
    /// Make a path and what is below it read-only; a missing one is fine.
    21 Readonly { path: &'a CStr }
    /// Set `MOUNT_ATTR_RDONLY` on the root mount itself.
    22 ReadonlyRoot {}
    /// `pivot_root(".", ".")` and detach the old root; when mounts are `shared` with the host
    /// they are made slaves first, so that the detach does not travel.
    23 PivotRoot { shared: bool }
    /// `mount(MS_MOVE)` to `/` and `chroot`: for an initramfs, where pivot_root cannot work.
    24 MoveRoot {}
    /// `chroot` into the root: no mount namespace of its own.
    25 Chroot {}
    /// `prlimit(0, resource, {soft, hard})`.
    26 Rlimit { resource: u32, soft: u64, hard: u64 }
    /// `fchown` fds 0 to 2 to `uid`, unless they are `/dev/null` or refuse.
    27 OwnStdio { uid: u32 }
    /// Bounding set: drop what is not in the mask.
    28 BoundingSet { keep: u64 }
    /// Groups, gid, uid, umask; capabilities are kept over the change.
    29 Identity { uid: u32, gid: u32, groups: Words<'a>, set_groups: bool, umask: u32 }
    /// `capset`, then the ambient set.
    30 Capabilities { effective: u64, permitted: u64, inheritable: u64, ambient: u64 }
    /// `prctl(PR_SET_NO_NEW_PRIVS)`.
    31 NoNewPrivileges {}
    /// One raw `seccomp(2)`; the listener, if any, is sent over the sync socket.
    32 Seccomp { program: &'a [u8], flags: u32, listener: bool }
    /// Change into the directory, made with `mkdir -p` when `create`, and check that it is
    /// inside the root (CVE-2024-21626).
    33 Cwd { path: &'a CStr, create: bool }
    /// Find the program: `args[0]` itself when it contains a slash, else along PATH of `env`.
    34 FindProgram { name: &'a CStr, path: &'a CStr }
    /// Sleep until a byte arrives on `start`; from here on faults go to `result`.
    35 Gate { start: i32, result: i32 }
    /// `execve` of the program that was found.
    36 Exec { args: List<'a>, env: List<'a> }
    /// fds from 3 to `last` stay open over execve (socket activation, --preserve-fds).
    37 PreserveFds { count: u32 }
    /// `personality(2)`.
    38 Personality { persona: u64 }
    /// Bind a host device node (a detached tree), where mknod is refused: user namespaces.
    39 BindDevice { fd: i32, path: &'a CStr }
    /// `sched_setattr(0, attr, 0)` with the raw `struct sched_attr`.
    40 Scheduler { attr: &'a [u8] }
    /// `ioprio_set(IOPRIO_WHO_PROCESS, 0, value)`.
    41 IoPriority { value: u32 }
    /// Change the attributes of what is mounted at `target` (`MOUNT_ATTR_*`).
    42 MountAttributes { target: &'a CStr, attr_set: u64, attr_clr: u64, recursive: bool }
    /// `unshare(CLONE_NEWTIME)`, `offsets` to `/proc/self/timens_offsets`, and enter it: a clone
    /// with the flag would be inside at once, where offsets can no longer be set.
    43 TimeNamespace { offsets: &'a [u8] }
    /// Hold the directory at `path`, over which the next step mounts; a missing one is fine.
    44 KeepBelow { path: &'a CStr }
    /// Copy what was held to `target`; with `attributes`, also the directory's own owner, mode
    /// and times.
    45 CopyUp { target: &'a CStr, attributes: bool }
    /// `sched_setaffinity(0, mask)`.
    46 Affinity { mask: &'a [u8] }
    /// `set_mempolicy(mode, nodes)`: `mode` with flags, `nodes` in whole 64-bit words or empty.
    47 MemoryPolicy { mode: u32, nodes: &'a [u8] }
    /// `setxattr(target, "security.selinux", label)`: a file system whose mount options take none.
    48 Label { target: &'a CStr, label: &'a CStr }
    /// `open_tree(OPEN_TREE_CLONE)` of the host's `path`, put in the place of descriptor `fd`: for a
    /// parent that may not clone mounts, an ordinary user.
    60 CloneTree { fd: i32, path: &'a CStr, recursive: bool, nofollow: bool }
}
