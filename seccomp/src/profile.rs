//! An OCI seccomp profile, checked and brought into one form. No libseccomp here.

use std::path::Path;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};
use serde::Serialize;

use crate::error::Error;
use crate::program::LoadFlags;

/// OCI names of the actions a profile may use, for the runtime's `features`.
pub const ACTIONS: [&str; 9] = [
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];

/// OCI names of the operators a profile may use, for the runtime's `features`.
pub const OPERATORS: [&str; 7] = [
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_LE",
    "SCMP_CMP_LT",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_NE",
];

/// OCI names of the architectures a profile may use, for the runtime's `features`.
pub const ARCHITECTURES: [&str; 20] = [
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_X32",
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X86_64",
];

/// OCI names of the flags a profile may use, for the runtime's `features`.
pub const FLAGS: [&str; 4] = [
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
];

/// Syscalls that may not be notified: with them the container's init hands over the listener, so
/// nobody could answer yet. runc refuses `write` for the same reason; our init uses `sendmsg`.
pub const NEVER_NOTIFIED: [&str; 2] = ["sendmsg", "write"];

/// Largest errno that libseccomp takes; the kernel turns those above 4095 (`MAX_ERRNO`) into 4095.
const ERRNO_MAX: u32 = 4094;
/// Largest message for a tracer (`SECCOMP_RET_DATA`).
const TRACE_MAX: u32 = 0xffff;
/// runtime-spec: "If not specified then its default value is EPERM".
const ERRNO_DEFAULT: u16 = 1;

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

fn push_rules<'a>(
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

fn action(
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

fn architectures(listed: &[Arch]) -> Vec<Arch> {
    let mut all = vec![NATIVE];
    for &arch in listed {
        if arch != Arch::ScmpArchNative && !all.contains(&arch) {
            all.push(arch);
        }
    }
    all
}

fn flags(listed: Option<&[LinuxSeccompFilterFlag]>, notifies: bool) -> LoadFlags {
    let mut flags = if notifies {
        LoadFlags::NEW_LISTENER
    } else {
        LoadFlags::NONE
    };
    let Some(listed) = listed else {
        return flags.with(LoadFlags::SPEC_ALLOW);
    };
    for flag in listed {
        flags = flags.with(match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => LoadFlags::LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => LoadFlags::SPEC_ALLOW,
            // The kernel cannot return a listener and a thread id in one number.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync if notifies => {
                LoadFlags::TSYNC.with(LoadFlags::TSYNC_ESRCH)
            }
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => LoadFlags::TSYNC,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv if notifies => {
                LoadFlags::WAIT_KILLABLE_RECV
            }
            // Says how to wait for an answer; without questions the kernel refuses it (EINVAL).
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => LoadFlags::NONE,
        });
    }
    flags
}

/// The architecture this program is built for, as OCI names it.
pub(crate) const NATIVE: Arch = {
    #[cfg(target_arch = "x86_64")]
    {
        Arch::ScmpArchX86_64
    }
    #[cfg(target_arch = "x86")]
    {
        Arch::ScmpArchX86
    }
    #[cfg(target_arch = "aarch64")]
    {
        Arch::ScmpArchAarch64
    }
    #[cfg(target_arch = "arm")]
    {
        Arch::ScmpArchArm
    }
    #[cfg(target_arch = "riscv64")]
    {
        Arch::ScmpArchRiscv64
    }
    #[cfg(target_arch = "loongarch64")]
    {
        Arch::ScmpArchLoongarch64
    }
    #[cfg(target_arch = "s390x")]
    {
        Arch::ScmpArchS390x
    }
    #[cfg(all(target_arch = "powerpc64", target_endian = "little"))]
    {
        Arch::ScmpArchPpc64le
    }
    #[cfg(all(target_arch = "powerpc64", target_endian = "big"))]
    {
        Arch::ScmpArchPpc64
    }
};

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn seccomp(json: Value) -> LinuxSeccomp {
        serde_json::from_value(json).unwrap()
    }

    fn error(json: Value) -> String {
        Profile::new(&seccomp(json)).unwrap_err().to_string()
    }

    fn rule(rule: Value) -> Value {
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]})
    }

    #[test]
    fn the_profiles_mistakes_are_named() {
        let notify = |name: &str, path: Option<&str>| {
            json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "listenerPath": path,
                "syscalls": [{"names": ["read", name], "action": "SCMP_ACT_NOTIFY"}],
            })
        };
        let cases = [
            (
                json!({"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/a"}),
                "cannot be the default",
            ),
            (notify("write", Some("/a")), "cannot be used for write"),
            (notify("sendmsg", Some("/a")), "cannot be used for sendmsg"),
            (notify("getppid", None), "listenerPath is not set"),
            (
                json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "m"}),
                "listenerMetadata is set without",
            ),
            (
                json!({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}),
                "defaultErrnoRet 1 is given for SCMP_ACT_ALLOW",
            ),
            (
                rule(json!({"names": ["a"], "action": "SCMP_ACT_KILL", "errnoRet": 5})),
                "syscalls[0].errnoRet 5 is given for SCMP_ACT_KILL",
            ),
            (
                rule(json!({"names": ["a"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4095})),
                "4095, the largest possible value is 4094",
            ),
            (
                rule(json!({"names": ["a"], "action": "SCMP_ACT_TRACE", "errnoRet": 65536})),
                "65536, the largest possible value is 65535",
            ),
            (
                rule(json!({"names": [], "action": "SCMP_ACT_KILL"})),
                "syscalls[0].names is empty",
            ),
            (
                rule(json!({"names": ["a"], "action": "SCMP_ACT_KILL", "args": [
                    {"index": 6, "value": 0, "op": "SCMP_CMP_EQ"},
                ]})),
                "index 6",
            ),
        ];
        for (json, text) in cases {
            let error = error(json);
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn write_may_be_allowed_or_denied_only_not_notified() {
        for action in ["SCMP_ACT_ALLOW", "SCMP_ACT_KILL", "SCMP_ACT_ERRNO"] {
            let seccomp = seccomp(rule(json!({"names": ["write"], "action": action})));
            assert!(Profile::new(&seccomp).is_ok());
        }
    }

    #[test]
    fn the_native_architecture_comes_first_and_once() {
        let with = |architectures: Value| {
            let seccomp = seccomp(json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": architectures,
            }));
            Profile::new(&seccomp).unwrap().architectures().to_vec()
        };
        let other = Arch::ScmpArchMipsel;
        assert_eq!(with(Value::Null), [NATIVE]);
        assert_eq!(with(json!([NATIVE, "SCMP_ARCH_NATIVE"])), [NATIVE]);
        assert_eq!(with(json!([other, NATIVE, other])), [NATIVE, other]);
    }

    #[test]
    fn one_argument_twice_is_or_and_different_ones_are_and() {
        let args = |first: u64, second: u64| {
            seccomp(rule(
                json!({"names": ["a"], "action": "SCMP_ACT_KILL", "args": [
                    {"index": first, "value": 1, "op": "SCMP_CMP_EQ"},
                    {"index": 3, "value": 2, "op": "SCMP_CMP_MASKED_EQ", "valueTwo": 4},
                    {"index": second, "value": 3, "op": "SCMP_CMP_GT", "valueTwo": 9},
                ]}),
            ))
        };
        let lengths = |seccomp: &LinuxSeccomp| -> Vec<usize> {
            let profile = Profile::new(seccomp).unwrap();
            profile.rules().iter().map(|r| r.conditions.len()).collect()
        };
        assert_eq!(lengths(&args(0, 1)), [3]);
        assert_eq!(lengths(&args(0, 0)), [1, 1, 1]);

        let seccomp = args(0, 1);
        let profile = Profile::new(&seccomp).unwrap();
        let values: Vec<_> = profile.rules()[0]
            .conditions
            .iter()
            .map(|c| (c.index, c.value, c.value_two))
            .collect();
        assert_eq!(values, [(0, 1, 0), (3, 2, 4), (1, 3, 0)]);
    }

    #[test]
    fn flags_follow_the_profile_and_the_kernels_rules() {
        let with = |flags: Value, action: &str| {
            let seccomp = seccomp(json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "listenerPath": "/agent",
                "flags": flags,
                "syscalls": [{"names": ["getppid"], "action": action}],
            }));
            let profile = Profile::new(&seccomp).unwrap();
            assert_eq!(profile.listener().is_some(), action == "SCMP_ACT_NOTIFY");
            profile.flags().bits()
        };
        assert_eq!(with(Value::Null, "SCMP_ACT_KILL"), 0b100);
        assert_eq!(with(json!([]), "SCMP_ACT_KILL"), 0);
        assert_eq!(with(Value::Null, "SCMP_ACT_NOTIFY"), 0b1100);
        let all = json!(FLAGS);
        assert_eq!(with(all.clone(), "SCMP_ACT_KILL"), 0b00_0111);
        assert_eq!(with(all, "SCMP_ACT_NOTIFY"), 0b11_1111);
    }

    #[test]
    fn the_listener_is_kept_but_changes_no_program() {
        let with = |path: &str, metadata: &str| {
            seccomp(json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "listenerPath": path,
                "listenerMetadata": metadata,
                "syscalls": [{"names": ["getppid"], "action": "SCMP_ACT_NOTIFY"}],
            }))
        };
        let (first, second) = (with("/a", "1"), with("/b", "2"));
        let (first, second) = (
            Profile::new(&first).unwrap(),
            Profile::new(&second).unwrap(),
        );
        let listener = first.listener().unwrap();
        assert_eq!(listener.path, Path::new("/a"));
        assert_eq!(listener.metadata, Some("1"));
        assert_ne!(first, second);
        assert_eq!(first.canonical(), second.canonical());
        assert!(!first.canonical().is_empty());
    }

    #[test]
    fn the_names_for_features_are_those_that_parse() {
        for name in ACTIONS {
            serde_json::from_value::<LinuxSeccompAction>(json!(name)).unwrap();
        }
        for name in OPERATORS {
            serde_json::from_value::<LinuxSeccompOperator>(json!(name)).unwrap();
        }
        for name in ARCHITECTURES {
            serde_json::from_value::<Arch>(json!(name)).unwrap();
        }
        for name in FLAGS {
            serde_json::from_value::<LinuxSeccompFilterFlag>(json!(name)).unwrap();
        }
    }
}
