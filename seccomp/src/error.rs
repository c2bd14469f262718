//! What can go wrong between a profile and its program.

use std::io;

use libseccomp::error::SeccompError;

use crate::program::INSTRUCTIONS_MAX;

/// Why a profile has no program.
///
/// The first group is the profile's fault, the second libseccomp's or the machine's. Display never
/// repeats the source; print the chain once, where the error leaves the program.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `defaultAction` is `SCMP_ACT_NOTIFY`: even the call that hands over the listener would wait
    /// for an agent that does not have it yet.
    #[error(
        "seccomp profile: SCMP_ACT_NOTIFY cannot be the default action: choose another default and \
         list the syscalls to notify"
    )]
    NotifyAsDefault,

    /// A rule notifies on a syscall that init needs to hand over the listener.
    #[error(
        "seccomp profile: SCMP_ACT_NOTIFY cannot be used for {syscall}: the container's init \
         needs it to hand over the listener, and would wait for ever: remove it from the rule"
    )]
    NotifyOnHandover {
        /// Name of the syscall, one of [`NEVER_NOTIFIED`](crate::NEVER_NOTIFIED).
        syscall: String,
    },

    /// `SCMP_ACT_NOTIFY` is used, but nobody would ever answer.
    #[error("seccomp profile: SCMP_ACT_NOTIFY is used but listenerPath is not set: set it")]
    NotifyWithoutListener,

    /// runtime-spec: "listenerMetadata MUST NOT be set if listenerPath is not set".
    #[error("seccomp profile: listenerMetadata is set without listenerPath: set both or neither")]
    MetadataWithoutListener,

    /// runtime-spec: an errno for an action that returns none MUST be an error.
    #[error(
        "seccomp profile: {field} {errno} is given for {action}, which returns no errno: remove it \
         or use SCMP_ACT_ERRNO"
    )]
    ErrnoUnused {
        /// `defaultErrnoRet` or `syscalls[N].errnoRet`.
        field: String,
        /// The value given.
        errno: u32,
        /// OCI name of the action.
        action: String,
    },

    /// The kernel would cut the number off silently.
    #[error("seccomp profile: {field} is {errno}, the largest possible value is {max}")]
    ErrnoTooLarge {
        /// `defaultErrnoRet` or `syscalls[N].errnoRet`.
        field: String,
        /// The value given.
        errno: u32,
        /// 4094 for `SCMP_ACT_ERRNO`, 65535 for `SCMP_ACT_TRACE`.
        max: u32,
    },

    /// A rule without names restricts nothing and is a mistake.
    #[error("seccomp profile: syscalls[{rule}].names is empty: name at least one syscall")]
    NoNames {
        /// Index in `syscalls`.
        rule: usize,
    },

    /// Syscalls have six arguments.
    #[error("seccomp profile: syscalls[{rule}].args has index {index}: 0 to 5 is possible")]
    ArgumentIndex {
        /// Index in `syscalls`.
        rule: usize,
        /// The argument's index.
        index: usize,
    },

    /// libseccomp refused a step.
    #[error("libseccomp: {step} {subject}")]
    Libseccomp {
        /// What was tried.
        step: &'static str,
        /// With what (architecture, syscall and action).
        subject: String,
        /// libseccomp's answer.
        source: SeccompError,
    },

    /// The export pipe or its reader could not be used.
    #[error("seccomp export: {step}")]
    Export {
        /// What was tried.
        step: &'static str,
        /// The errno.
        source: io::Error,
    },

    /// What came out is not a program the kernel could take: cut off, or not BPF.
    #[error("seccomp program of {bytes} bytes is malformed: {reason}")]
    Malformed {
        /// Its size.
        bytes: usize,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// More than the kernel takes (`BPF_MAXINSNS`).
    #[error(
        "seccomp program has {instructions} instructions, the kernel takes {INSTRUCTIONS_MAX}: use \
         fewer rules with arguments or fewer architectures"
    )]
    TooLarge {
        /// Number of instructions, stub included.
        instructions: usize,
    },
}
