//! An OCI seccomp profile, checked and brought into one form. No libseccomp here.

mod machine;
mod names;
mod rules;

use std::path::Path;

use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompOperator};
use serde::Serialize;

use crate::error::Error;
use crate::program::LoadFlags;
use machine::{architectures, flags};
pub use names::{ACTIONS, ARCHITECTURES, FLAGS, NEVER_NOTIFIED, OPERATORS};
use rules::{action, push_rules};

/// What the kernel does with a syscall; seccomp(2), "filter return values".
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub enum Action {
    /// End the process.
    KillProcess,
    /// End the thread (`SCMP_ACT_KILL` and `SCMP_ACT_KILL_THREAD`).
    KillThread,
    /// Send SIGSYS.
    Trap,
    /// Fail with this errno, 0 to 4094.
    Errno(u16),
    /// Ask the tracer, with this message; ENOSYS without one.
    Trace(u16),
    /// Allow, and log.
    Log,
    /// Allow.
    Allow,
    /// Ask the agent behind `listenerPath`.
    Notify,
}

/// One comparison of a syscall's argument.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct Condition {
    /// Which argument, 0 to 5.
    pub index: u32,
    /// How to compare.
    pub operator: LinuxSeccompOperator,
    /// With what; for `SCMP_CMP_MASKED_EQ` the mask.
    pub value: u64,
    /// For `SCMP_CMP_MASKED_EQ` what must remain under the mask, else unused.
    pub value_two: u64,
}

/// Syscalls, and what happens to them if all conditions hold.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Rule<'a> {
    /// Names, at least one; libseccomp may not know all of them.
    pub names: &'a [String],
    /// What happens.
    pub action: Action,
    /// Every argument at most once. Empty: always.
    pub conditions: Vec<Condition>,
}

/// Where the listener of `SCMP_ACT_NOTIFY` goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Listener<'a> {
    /// Unix socket of the agent.
    pub path: &'a Path,
    /// Opaque text for the agent.
    pub metadata: Option<&'a str>,
}

/// A profile that keeps the rules of the OCI specification.
///
/// Its JSON form is canonical: two profiles that mean the same program in the same order have the
/// same one, however their configuration was written. The listener is no part of it, as it does
/// not change the program.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Profile<'a> {
    default: Action,
    architectures: Vec<Arch>,
    flags: LoadFlags,
    rules: Vec<Rule<'a>>,
    #[serde(skip)]
    listener: Option<Listener<'a>>,
}

impl<'a> Profile<'a> {
    /// Checks `seccomp` and normalizes it: architectures without duplicates and with the native one
    /// first, default errnos filled in, a rule that compares one argument twice split into several.
    ///
    /// Without `flags` SPEC_ALLOW is taken, as runc does since 1.2: the mitigation it turns off
    /// costs every process of the container, and kernels since 5.16 do not want it either. An
    /// empty list means no flag.
    ///
    /// # Errors
    /// The first group of [`Error`].
    pub fn new(seccomp: &'a LinuxSeccomp) -> Result<Self, Error> {
        let default = action(
            seccomp.default_action(),
            seccomp.default_errno_ret(),
            &|| "defaultErrnoRet".to_owned(),
        )?;
        if default == Action::Notify {
            return Err(Error::NotifyAsDefault);
        }

        let mut rules = Vec::new();
        for (at, syscall) in seccomp.syscalls().iter().flatten().enumerate() {
            push_rules(&mut rules, at, syscall)?;
        }

        let listener = seccomp.listener_path().as_deref().map(|path| Listener {
            path,
            metadata: seccomp.listener_metadata().as_deref(),
        });
        let notifies = rules.iter().any(|rule| rule.action == Action::Notify);
        if listener.is_none() {
            if notifies {
                return Err(Error::NotifyWithoutListener);
            }
            if seccomp
                .listener_metadata()
                .as_ref()
                .is_some_and(|text| !text.is_empty())
            {
                return Err(Error::MetadataWithoutListener);
            }
        }

        Ok(Self {
            default,
            architectures: architectures(seccomp.architectures().as_deref().unwrap_or_default()),
            flags: flags(seccomp.flags().as_deref(), notifies),
            rules,
            listener: listener.filter(|_| notifies),
        })
    }

    /// What happens to syscalls without a rule; never [`Action::Notify`].
    #[must_use]
    pub const fn default_action(&self) -> Action {
        self.default
    }

    /// The native architecture, then the others, each once.
    #[must_use]
    pub fn architectures(&self) -> &[Arch] {
        &self.architectures
    }

    /// The flags to load the program with.
    #[must_use]
    pub const fn flags(&self) -> LoadFlags {
        self.flags
    }

    /// The rules in the profile's order.
    #[must_use]
    pub fn rules(&self) -> &[Rule<'a>] {
        &self.rules
    }

    /// Where the listener goes; Some exactly if a rule notifies.
    #[must_use]
    pub const fn listener(&self) -> Option<Listener<'a>> {
        self.listener
    }

    /// What identifies the program: see the type.
    pub(crate) fn canonical(&self) -> Vec<u8> {
        // Only a map with keys that are no strings, or a failing writer, can make this fail.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
