//! Profile to program, with libseccomp.

mod known;
mod words;

use std::sync::atomic::{AtomicU64, Ordering};

use libseccomp::{ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::LinuxSeccomp;

use crate::error::Error;
use crate::export::export;
use crate::profile::Profile;
use crate::program::Program;
use crate::stub::stub;
use known::{known, needs_stub};
use words::{comparison, refused, scmp_action, scmp_arch};

/// With more rules than this libseccomp sorts the syscalls into a binary tree (its optimization 2):
/// loading and every filtered syscall get cheaper. With few rules it gains nothing, and libseccomp
/// up to 2.5.4 builds a wrong tree for none; runc draws the line at the same number.
const LINEAR_RULES_MAX: usize = 32;

/// How often a program was built by libseccomp in this process.
static COMPILATIONS: AtomicU64 = AtomicU64::new(0);

/// A program, and what of the profile it does not contain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Compiled {
    /// The program to load.
    pub program: Program,
    /// Names in the profile that this libseccomp does not know, each once, in the profile's order.
    /// No rule was made for them. Worth a line in the log, no error: profiles are written for the
    /// newest kernel.
    pub unknown_syscalls: Vec<String>,
}

/// Compiles `seccomp` without a cache.
///
/// A helper thread runs meanwhile and is gone when it returns. It takes 2 to 20 ms of CPU. A
/// profile with more than a thousand rules with arguments can take seconds, and there are profiles
/// for which libseccomp never returns (see the crate's page): the process needs a deadline.
///
/// # Errors
/// See [`Error`].
pub fn compile(seccomp: &LinuxSeccomp) -> Result<Compiled, Error> {
    compile_profile(&Profile::new(seccomp)?, Options::default())
}

/// What tests vary.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Options {
    /// Capacity of the export pipe in bytes; the kernel's default if None.
    pub(crate) pipe_capacity: Option<i32>,
    /// libseccomp's optimization; by the number of rules if None.
    pub(crate) optimization: Option<u32>,
}

/// See [`testing::compilations`](crate::testing::compilations).
pub(crate) fn compilations() -> u64 {
    COMPILATIONS.load(Ordering::Relaxed)
}

pub(crate) fn compile_profile(profile: &Profile<'_>, options: Options) -> Result<Compiled, Error> {
    COMPILATIONS.fetch_add(1, Ordering::Relaxed);
    let filter = build(profile, options)?;
    let mut bytes = Vec::new();
    if needs_stub(profile.default_action()) {
        for instruction in stub(&known(profile)) {
            bytes.extend(instruction.encode());
        }
    }
    let filtered = export(&filter.context, options.pipe_capacity)?;
    // Checked by itself first: behind the stub an empty export would not be noticed.
    Program::new(filtered.clone(), profile.flags())?;
    bytes.extend(filtered);
    Ok(Compiled {
        program: Program::new(bytes, profile.flags())?,
        unknown_syscalls: filter.unknown,
    })
}

/// A profile as libseccomp has it.
pub(crate) struct Filter {
    pub(crate) context: ScmpFilterContext,
    unknown: Vec<String>,
}

pub(crate) fn build(profile: &Profile<'_>, options: Options) -> Result<Filter, Error> {
    let default = profile.default_action();
    let mut context = ScmpFilterContext::new(scmp_action(default))
        .map_err(refused("create a filter with default action", || {
            format!("{default:?}")
        }))?;
    for &arch in profile.architectures() {
        context
            .add_arch(scmp_arch(arch))
            .map_err(refused("add architecture", || arch.to_string()))?;
    }

    let mut unknown: Vec<String> = Vec::new();
    let mut rules = 0;
    for rule in profile.rules() {
        let conditions: Vec<_> = rule.conditions.iter().map(comparison).collect();
        for name in rule.names {
            // The native number, or a negative one that stands for a syscall of another
            // architecture; libseccomp translates it for each architecture of the filter.
            let Ok(syscall) = ScmpSyscall::from_name(name) else {
                if !unknown.contains(name) {
                    unknown.push(name.clone());
                }
                continue;
            };
            if rule.action == default {
                // Says nothing new, and libseccomp refuses it (EACCES).
                continue;
            }
            context
                .add_rule_conditional(scmp_action(rule.action), syscall, &conditions)
                .map_err(refused("add rule", || format!("{name}: {:?}", rule.action)))?;
            rules += 1;
        }
    }

    let optimization = options
        .optimization
        .unwrap_or(if rules > LINEAR_RULES_MAX { 2 } else { 1 });
    if optimization != 1
        && let Err(error) = context.set_ctl_optimize(optimization)
    {
        // libseccomp before 2.5: a longer way through the same decisions.
        log::debug!("libseccomp does not optimize: {error}");
    }
    Ok(Filter { context, unknown })
}

#[cfg(test)]
mod tests;
