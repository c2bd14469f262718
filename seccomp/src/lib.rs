//! From an OCI seccomp profile to a BPF program in the kernel; knows no container.
//!
//! ```text
//! LinuxSeccomp --Profile::new--> Profile --compile--> Compiled { Program, unknown syscalls }
//!                                   |                    ^
//!                                   +------ Cache -------+        Program --sys::load--> kernel
//! ```
//!
//! * [`Profile`] checks what the OCI runtime specification demands, without touching libseccomp.
//! * [`compile`] turns it into a [`Program`] with libseccomp, through a pipe whose reader runs
//!   before the export starts (`docs/0001-pipe-export.md`), and puts the ENOSYS stub in front.
//! * [`Cache`] keeps compiled programs on disk; a hit costs a handful of system calls and does not
//!   make libseccomp probe anything (`docs/0002-cache-key.md`).
//! * [`sys::load`] is the one raw `seccomp(2)`. `holdfast-init` makes the same call itself (it has
//!   no std); the function here is the contract's reference and what the tests use. When to make
//!   it is [`LoadPoint`].
//! * [`ContainerProcessState::send`] hands the listener of `SCMP_ACT_NOTIFY` to the agent.
//!
//! # Limits of libseccomp
//! Every runtime that uses libseccomp shares these; seen with 2.5.4.
//!
//! * Of several rules for one syscall without arguments the first counts.
//! * Ordered comparisons (GE, GT, LE, LT) of the *same* argument, or-combined, are merged wrongly when
//!   a value needs more than 32 bits: some arguments are then allowed or denied against the profile.
//!   Smaller values and the other operators are right (the property tests in `compile.rs` hold them
//!   against a model).
//! * Rules for one syscall that mix several arguments can keep libseccomp busy without end. Three
//!   are enough: `a2 & 2 == 2`; `a0 > 0, a1 < 1`; `a0 > 0, a2 <= 2`. The compiling thread cannot be
//!   stopped, so whoever takes profiles from strangers must compile in a process that has a
//!   deadline, and kill it: the shim does that with `holdfast create`.
//!
//! Sources: OCI runtime-spec `config-linux.md` (Seccomp), seccomp(2), seccomp_unotify(2),
//! `Documentation/userspace-api/seccomp_filter.rst`, libseccomp 2.5 manual pages.

mod cache;
mod compile;
mod error;
mod export;
pub mod fuzz;
#[cfg(test)]
mod interpreter;
mod notify;
mod profile;
mod program;
mod stub;
pub mod sys;
pub mod testing;

pub use cache::{CACHE_ENTRIES_MAX, Cache, Origin};
pub use compile::{Compiled, compile};
pub use error::Error;
pub use notify::{ContainerProcessState, ListenerError, SECCOMP_FD_NAME};
pub use profile::{
    ACTIONS, ARCHITECTURES, Action, Condition, FLAGS, Listener, NEVER_NOTIFIED, OPERATORS, Profile,
    Rule,
};
pub use program::{INSTRUCTION_SIZE, INSTRUCTIONS_MAX, LoadFlags, LoadPoint, Program};

/// The version of libseccomp that is linked in, e.g. `2.5.4`; empty if it does not tell.
#[must_use]
pub fn library_version() -> String {
    libseccomp::ScmpVersion::current().map_or_else(|_| String::new(), |version| version.to_string())
}
