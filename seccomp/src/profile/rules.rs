//! One entry of `syscalls`: its rules, conditions and action.

use oci_spec::runtime::{LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall};

use super::{Action, Condition, NEVER_NOTIFIED, Rule};
use crate::error::Error;

/// Largest errno that libseccomp takes; the kernel turns those above 4095 (`MAX_ERRNO`) into 4095.
const ERRNO_MAX: u32 = 4094;
/// Largest message for a tracer (`SECCOMP_RET_DATA`).
const TRACE_MAX: u32 = 0xffff;
/// runtime-spec: "If not specified then its default value is EPERM".
const ERRNO_DEFAULT: u16 = 1;

pub(super) fn push_rules<'a>(
    rules: &mut Vec<Rule<'a>>,
    at: usize,
    syscall: &'a LinuxSyscall,
) -> Result<(), Error> {
    let names = syscall.names().as_slice();
    if names.is_empty() {
        return Err(Error::NoNames { rule: at });
    }
    let action = action(syscall.action(), syscall.errno_ret(), &|| {
        format!("syscalls[{at}].errnoRet")
    })?;
    let handover = |name: &&String| NEVER_NOTIFIED.contains(&name.as_str());
    if action == Action::Notify
        && let Some(name) = names.iter().find(handover)
    {
        return Err(Error::NotifyOnHandover {
            syscall: name.clone(),
        });
    }

    let mut conditions = Vec::new();
    let mut seen = [false; 6];
    let mut twice = false;
    for arg in syscall.args().iter().flatten() {
        let condition = condition(at, arg)?;
        if let Some(seen) = seen.get_mut(arg.index()) {
            twice |= *seen;
            *seen = true;
        }
        conditions.push(condition);
    }
    if twice {
        // libseccomp cannot and-combine comparisons of one argument. runc splits such a rule into
        // one rule per comparison, which or-combines all of them; profiles are written for that.
        rules.extend(conditions.into_iter().map(|condition| Rule {
            names,
            action,
            conditions: vec![condition],
        }));
    } else {
        rules.push(Rule {
            names,
            action,
            conditions,
        });
    }
    Ok(())
}

fn condition(rule: usize, arg: &LinuxSeccompArg) -> Result<Condition, Error> {
    let index = match u32::try_from(arg.index()) {
        Ok(index @ 0..=5) => index,
        _ => {
            return Err(Error::ArgumentIndex {
                rule,
                index: arg.index(),
            });
        }
    };
    let operator = arg.op();
    let value_two = match operator {
        LinuxSeccompOperator::ScmpCmpMaskedEq => arg.value_two().unwrap_or(0),
        LinuxSeccompOperator::ScmpCmpNe
        | LinuxSeccompOperator::ScmpCmpLt
        | LinuxSeccompOperator::ScmpCmpLe
        | LinuxSeccompOperator::ScmpCmpEq
        | LinuxSeccompOperator::ScmpCmpGe
        | LinuxSeccompOperator::ScmpCmpGt => 0,
    };
    Ok(Condition {
        index,
        operator,
        value: arg.value(),
        value_two,
    })
}

pub(super) fn action(
    action: LinuxSeccompAction,
    errno: Option<u32>,
    field: &dyn Fn() -> String,
) -> Result<Action, Error> {
    let plain = match action {
        LinuxSeccompAction::ScmpActErrno => {
            return return_data(errno, ERRNO_MAX, field).map(Action::Errno);
        }
        LinuxSeccompAction::ScmpActTrace => {
            return return_data(errno, TRACE_MAX, field).map(Action::Trace);
        }
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            Action::KillThread
        }
        LinuxSeccompAction::ScmpActKillProcess => Action::KillProcess,
        LinuxSeccompAction::ScmpActTrap => Action::Trap,
        LinuxSeccompAction::ScmpActNotify => Action::Notify,
        LinuxSeccompAction::ScmpActLog => Action::Log,
        LinuxSeccompAction::ScmpActAllow => Action::Allow,
    };
    match errno {
        None => Ok(plain),
        Some(errno) => Err(Error::ErrnoUnused {
            field: field(),
            errno,
            action: action.to_string(),
        }),
    }
}

/// The 16 bits that go with ERRNO and TRACE.
fn return_data(errno: Option<u32>, max: u32, field: &dyn Fn() -> String) -> Result<u16, Error> {
    let Some(errno) = errno else {
        return Ok(ERRNO_DEFAULT);
    };
    u16::try_from(errno)
        .ok()
        .filter(|_| errno <= max)
        .ok_or_else(|| Error::ErrnoTooLarge {
            field: field(),
            errno,
            max,
        })
}
