//! Profile to program, with libseccomp.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use libseccomp::error::SeccompError;
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompOperator};

use crate::error::Error;
use crate::export::export;
use crate::profile::{Action, Condition, Profile};
use crate::program::Program;
use crate::stub::{AUDIT_ARCH_X86_64, Known, stub};

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

/// Whether a syscall newer than the profile would get an answer that says something else.
const fn needs_stub(default: Action) -> bool {
    match default {
        Action::Allow | Action::Log | Action::Trace(_) => false,
        Action::Errno(errno) => errno as i32 != libc::ENOSYS,
        Action::KillProcess | Action::KillThread | Action::Trap | Action::Notify => true,
    }
}

/// The largest number that the profile names, per audit architecture.
///
/// Every name counts, whatever its rule says: a rule that repeats the default action shows that
/// the author knew the syscall.
fn known(profile: &Profile<'_>) -> Vec<Known> {
    let names: BTreeSet<&str> = profile
        .rules()
        .iter()
        .flat_map(|rule| rule.names)
        .map(String::as_str)
        .collect();
    let has_x32 = profile.architectures().contains(&Arch::ScmpArchX32);
    profile
        .architectures()
        .iter()
        .filter(|&&arch| arch != Arch::ScmpArchX32)
        .map(|&arch| {
            let audit_arch = audit_arch(arch);
            Known {
                audit_arch,
                largest: largest(&names, scmp_arch(arch)),
                largest_x32: (has_x32 && audit_arch == AUDIT_ARCH_X86_64)
                    .then(|| largest(&names, ScmpArch::X32))
                    .flatten(),
            }
        })
        .collect()
}

fn largest(names: &BTreeSet<&str>, arch: ScmpArch) -> Option<u32> {
    /// libseccomp's numbers for the calls behind socketcall(2) and ipc(2).
    const MULTIPLEXED: std::ops::RangeInclusive<i32> = -299..=-100;
    /// Above the tables of all architectures that multiplex.
    const TABLE_END: u32 = 1024;

    let mut largest = None;
    let mut multiplexed = false;
    for name in names {
        let Ok(syscall) = ScmpSyscall::from_name_by_arch(name, arch) else {
            continue;
        };
        let number = syscall.as_raw_syscall();
        multiplexed |= MULTIPLEXED.contains(&number);
        if let Ok(number) = u32::try_from(number) {
            largest = largest.max(Some(number));
        }
    }
    if multiplexed {
        // Such a name has a number of its own too (socket on x86: 359), which libseccomp puts into
        // the filter but does not tell by name, only the other way round.
        let above = largest.map_or(0, |number| number + 1);
        for number in above..TABLE_END {
            let named = i32::try_from(number)
                .ok()
                .and_then(|number| ScmpSyscall::from(number).get_name_by_arch(arch).ok());
            if named.is_some_and(|name| names.contains(name.as_str())) {
                largest = Some(number);
            }
        }
    }
    largest
}

fn refused(
    step: &'static str,
    subject: impl FnOnce() -> String,
) -> impl FnOnce(SeccompError) -> Error {
    move |source| Error::Libseccomp {
        step,
        subject: subject(),
        source,
    }
}

const fn scmp_action(action: Action) -> ScmpAction {
    match action {
        Action::KillProcess => ScmpAction::KillProcess,
        Action::KillThread => ScmpAction::KillThread,
        Action::Trap => ScmpAction::Trap,
        Action::Errno(errno) => ScmpAction::Errno(errno as i32),
        Action::Trace(message) => ScmpAction::Trace(message),
        Action::Log => ScmpAction::Log,
        Action::Allow => ScmpAction::Allow,
        Action::Notify => ScmpAction::Notify,
    }
}

fn comparison(condition: &Condition) -> ScmpArgCompare {
    let Condition {
        index,
        operator,
        value,
        value_two,
    } = *condition;
    let (operator, datum) = match operator {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, value),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, value),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, value),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, value),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, value),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, value),
        LinuxSeccompOperator::ScmpCmpMaskedEq => (ScmpCompareOp::MaskedEqual(value), value_two),
    };
    ScmpArgCompare::new(index, operator, datum)
}

const fn scmp_arch(arch: Arch) -> ScmpArch {
    match arch {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        Arch::ScmpArchLoongarch64 => ScmpArch::Loongarch64,
        Arch::ScmpArchM68k => ScmpArch::M68k,
        Arch::ScmpArchSh => ScmpArch::Sh,
        Arch::ScmpArchSheb => ScmpArch::Sheb,
    }
}

/// `AUDIT_ARCH_*` of linux/audit.h. oci-spec's numbers are these, but for x32, which the kernel
/// does not tell from x86_64 there.
const fn audit_arch(arch: Arch) -> u32 {
    match arch {
        Arch::ScmpArchX32 => AUDIT_ARCH_X86_64,
        other => other as u32,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::interpreter::{Data, run};
    use crate::profile::OPERATORS;
    use crate::program::{INSTRUCTION_SIZE, LoadFlags};
    use crate::stub::X32_BIT;

    const DOCKER: &str = include_str!("../../integration/profiles/docker-default.json");

    const ALLOW: u32 = 0x7fff_0000;
    const EPERM: u32 = 0x0005_0001;
    const ENOSYS: u32 = 0x0005_0026;
    const KILL_THREAD: u32 = 0;
    const KILL_PROCESS: u32 = 0x8000_0000;

    const X86_64: u32 = AUDIT_ARCH_X86_64;
    const X86: u32 = 0x4000_0003;

    fn docker() -> LinuxSeccomp {
        serde_json::from_str(DOCKER).unwrap()
    }

    fn profile(json: serde_json::Value) -> LinuxSeccomp {
        serde_json::from_value(json).unwrap()
    }

    fn optimized(seccomp: &LinuxSeccomp, optimization: u32) -> Compiled {
        let options = Options {
            optimization: Some(optimization),
            ..Options::default()
        };
        compile_profile(&Profile::new(seccomp).unwrap(), options).unwrap()
    }

    fn number(name: &str, arch: ScmpArch) -> u32 {
        u32::try_from(
            ScmpSyscall::from_name_by_arch(name, arch)
                .unwrap()
                .as_raw_syscall(),
        )
        .unwrap()
    }

    fn verdict(compiled: &Compiled, arch: u32, nr: u32, args: &[u64]) -> u32 {
        let mut data = Data {
            nr,
            arch,
            ..Data::default()
        };
        data.args[..args.len()].copy_from_slice(args);
        run(compiled.program.bytes(), &data)
    }

    /// Skips (true) where the test's numbers are not those of the machine.
    fn not_x86_64() -> bool {
        if cfg!(target_arch = "x86_64") {
            return false;
        }
        println!("skipped: the numbers are those of x86_64");
        true
    }

    #[test]
    fn docker_profile_decides_as_written() {
        if not_x86_64() {
            return;
        }
        let seccomp = docker();
        let compiled = compile(&seccomp).unwrap();
        println!(
            "docker default: {} instructions, unknown {:?}",
            compiled.program.instructions(),
            compiled.unknown_syscalls
        );
        assert_eq!(compiled.program.flags(), LoadFlags::SPEC_ALLOW);
        let plain: BTreeSet<&String> = seccomp
            .syscalls()
            .iter()
            .flatten()
            .filter(|rule| rule.args().is_none())
            .filter(|rule| rule.errno_ret().is_none())
            .flat_map(|rule| rule.names())
            .collect();
        let named: BTreeSet<&String> = seccomp
            .syscalls()
            .iter()
            .flatten()
            .flat_map(|rule| rule.names())
            .collect();
        for (audit, arch, base) in [
            (X86_64, ScmpArch::X8664, 0),
            (X86_64, ScmpArch::X32, X32_BIT),
            (X86, ScmpArch::X86, 0),
        ] {
            let name_of = |nr: u32| {
                ScmpSyscall::from(nr.cast_signed())
                    .get_name_by_arch(arch)
                    .ok()
            };
            let largest = (base..base + 1024)
                .filter(|&nr| name_of(nr).is_some_and(|name| named.contains(&name)))
                .max()
                .unwrap();
            let (mut allowed, mut denied) = (0, 0);
            for nr in base..base + 1024 {
                let got = verdict(&compiled, audit, nr, &[]);
                let name = name_of(nr);
                match &name {
                    _ if nr > largest => assert_eq!(got, ENOSYS, "{arch:?} {nr}"),
                    Some(name) if plain.contains(name) => {
                        assert_eq!(got, ALLOW, "{arch:?} {nr} {name}");
                        allowed += 1;
                    }
                    Some(name) if named.contains(name) => {}
                    _ => {
                        assert_eq!(got, EPERM, "{arch:?} {nr} {name:?}");
                        denied += 1;
                    }
                }
            }
            assert!(allowed > 250 && denied > 50, "{arch:?} {allowed} {denied}");
        }
        // Rules with arguments: socket of AF_VSOCK (40), clone with a new namespace.
        let at =
            |name, args: &[u64]| verdict(&compiled, X86_64, number(name, ScmpArch::X8664), args);
        assert_eq!(at("socket", &[1]), ALLOW);
        assert_eq!(at("socket", &[40]), EPERM);
        assert_eq!(at("clone", &[0x11]), ALLOW);
        assert_eq!(at("clone", &[0x1000_0000]), EPERM);
        assert_eq!(at("clone3", &[]), ENOSYS);
        assert_eq!(at("personality", &[8]), ALLOW);
        assert_eq!(at("personality", &[9]), EPERM);
        // An architecture that the profile does not have.
        assert_eq!(verdict(&compiled, 0xc000_00b7, 0, &[]), KILL_THREAD);
    }

    #[test]
    fn the_tree_decides_as_the_list_does() {
        if not_x86_64() {
            return;
        }
        let seccomp = docker();
        let (list, tree) = (optimized(&seccomp, 1), optimized(&seccomp, 2));
        assert_ne!(list, tree);
        assert_eq!(compile(&seccomp).unwrap(), tree);
        for (arch, base) in [(X86_64, 0), (X86_64, X32_BIT), (X86, 0), (7, 0)] {
            for nr in base..base + 1100 {
                for first in [0, 1, 8, 39, 41, 0x2_0000, 0x1000_0000, u64::MAX] {
                    assert_eq!(
                        verdict(&list, arch, nr, &[first]),
                        verdict(&tree, arch, nr, &[first]),
                        "{arch:#x} {nr} {first}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_cut_off_export_is_refused_or_lost_nothing_that_is_ever_reached() {
        let seccomp = docker();
        let profile = Profile::new(&seccomp).unwrap();
        for optimization in [1, 2] {
            let options = Options {
                optimization: Some(optimization),
                ..Options::default()
            };
            let bytes = export(&build(&profile, options).unwrap().context, None).unwrap();
            Program::new(bytes.clone(), LoadFlags::NONE).unwrap();
            for end in (0..bytes.len()).step_by(INSTRUCTION_SIZE) {
                let Ok(cut) = Program::new(bytes[..end].to_vec(), LoadFlags::NONE) else {
                    continue;
                };
                // libseccomp may end with a return that no path leads to.
                assert_eq!(end, bytes.len() - INSTRUCTION_SIZE);
                for arch in [X86_64, X86, 7] {
                    for nr in (0..1024).chain(X32_BIT..X32_BIT + 1024) {
                        let data = Data {
                            nr,
                            arch,
                            ..Data::default()
                        };
                        assert_eq!(run(cut.bytes(), &data), run(&bytes, &data));
                    }
                }
            }
        }
    }

    #[test]
    fn unknown_names_are_reported_once_and_skipped() {
        let compiled = compile(&profile(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [
                {"names": ["zzz", "read", "aaa"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["aaa", "nul\u{0}byte", ""], "action": "SCMP_ACT_KILL"},
            ],
        })))
        .unwrap();
        assert_eq!(
            compiled.unknown_syscalls,
            ["zzz", "aaa", "nul\u{0}byte", ""]
        );
    }

    #[test]
    fn every_action_has_its_return_value() {
        if not_x86_64() {
            return;
        }
        let rule = |action: &str, errno: Option<u32>| {
            profile(json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "listenerPath": "/agent",
                "syscalls": [{"names": ["getppid"], "action": action, "errnoRet": errno}],
            }))
        };
        for (action, errno, expected) in [
            ("SCMP_ACT_KILL", None, KILL_THREAD),
            ("SCMP_ACT_KILL_THREAD", None, KILL_THREAD),
            ("SCMP_ACT_KILL_PROCESS", None, KILL_PROCESS),
            ("SCMP_ACT_TRAP", None, 0x0003_0000),
            ("SCMP_ACT_ERRNO", None, EPERM),
            ("SCMP_ACT_ERRNO", Some(0), 0x0005_0000),
            ("SCMP_ACT_ERRNO", Some(4094), 0x0005_0ffe),
            ("SCMP_ACT_TRACE", None, 0x7ff0_0001),
            ("SCMP_ACT_TRACE", Some(0xffff), 0x7ff0_ffff),
            ("SCMP_ACT_LOG", None, 0x7ffc_0000),
            ("SCMP_ACT_NOTIFY", None, 0x7fc0_0000),
            ("SCMP_ACT_ALLOW", None, ALLOW),
        ] {
            let compiled = compile(&rule(action, errno)).unwrap();
            assert_eq!(verdict(&compiled, X86_64, 110, &[]), expected, "{action}");
            assert_eq!(verdict(&compiled, X86_64, 39, &[]), ALLOW);
            assert_eq!(
                compiled.program.wants_listener(),
                action == "SCMP_ACT_NOTIFY"
            );
        }
    }

    #[test]
    fn every_default_action_has_its_return_value_and_its_stub() {
        if not_x86_64() {
            return;
        }
        for (default, errno, expected, newer) in [
            ("SCMP_ACT_KILL", None, KILL_THREAD, ENOSYS),
            ("SCMP_ACT_KILL_PROCESS", None, KILL_PROCESS, ENOSYS),
            ("SCMP_ACT_TRAP", None, 0x0003_0000, ENOSYS),
            ("SCMP_ACT_ERRNO", None, EPERM, ENOSYS),
            ("SCMP_ACT_ERRNO", Some(13), 0x0005_000d, ENOSYS),
            ("SCMP_ACT_ERRNO", Some(38), ENOSYS, ENOSYS),
            ("SCMP_ACT_TRACE", Some(7), 0x7ff0_0007, 0x7ff0_0007),
            ("SCMP_ACT_LOG", None, 0x7ffc_0000, 0x7ffc_0000),
            ("SCMP_ACT_ALLOW", None, ALLOW, ALLOW),
        ] {
            let compiled = compile(&profile(json!({
                "defaultAction": default,
                "defaultErrnoRet": errno,
                "syscalls": [
                    {"names": ["getppid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99},
                    // What the default does anyway; libseccomp would refuse it.
                    {"names": ["openat2"], "action": default, "errnoRet": errno},
                ],
            })))
            .unwrap();
            let at = |nr| verdict(&compiled, X86_64, nr, &[]);
            assert_eq!(at(110), 0x0005_0063);
            assert_eq!(at(39), expected, "{default}");
            // openat2 is 437, the newest that the profile names.
            assert_eq!(at(437), expected, "{default}");
            assert_eq!(at(438), newer, "{default}");
        }
    }

    #[test]
    fn a_multiplexed_syscall_is_known_by_its_own_number_too() {
        if not_x86_64() {
            return;
        }
        let compiled = compile(&profile(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": ["SCMP_ARCH_X86"],
            "syscalls": [{"names": ["read", "socket"], "action": "SCMP_ACT_ALLOW"}],
        })))
        .unwrap();
        let at = |nr, args: &[u64]| verdict(&compiled, X86, nr, args);
        assert_eq!(at(102, &[1]), ALLOW, "socketcall(SYS_SOCKET)");
        assert_eq!(at(102, &[2]), EPERM, "socketcall(SYS_BIND)");
        assert_eq!(at(359, &[]), ALLOW, "socket");
        assert_eq!(at(358, &[]), EPERM);
        assert_eq!(at(360, &[]), ENOSYS);
    }

    #[test]
    fn x32_is_enosys_unless_the_profile_has_it() {
        if not_x86_64() {
            return;
        }
        let with = |architectures: serde_json::Value| {
            compile(&profile(json!({
                "defaultAction": "SCMP_ACT_ERRNO",
                "architectures": architectures,
                "syscalls": [{"names": ["read", "getppid"], "action": "SCMP_ACT_ALLOW"}],
            })))
            .unwrap()
        };
        let at = |compiled: &Compiled, nr| verdict(compiled, X86_64, nr, &[]);
        let (without, with) = (with(json!([])), with(json!(["SCMP_ARCH_X32"])));
        assert_eq!(at(&without, X32_BIT | 110), ENOSYS);
        assert_eq!(at(&with, X32_BIT | 110), ALLOW);
        assert_eq!(at(&with, X32_BIT | 109), EPERM);
        assert_eq!(at(&with, X32_BIT | 111), ENOSYS);
        for compiled in [&without, &with] {
            assert_eq!(at(compiled, 110), ALLOW);
            assert_eq!(at(compiled, 109), EPERM);
            assert_eq!(at(compiled, 111), ENOSYS);
        }
    }

    #[test]
    fn all_foreign_architectures_of_our_byte_order_compile() {
        if not_x86_64() {
            return;
        }
        let compiled = compile(&profile(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": [
                "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_ARM", "SCMP_ARCH_AARCH64",
                "SCMP_ARCH_MIPSEL", "SCMP_ARCH_MIPSEL64", "SCMP_ARCH_MIPSEL64N32",
                "SCMP_ARCH_PPC64LE", "SCMP_ARCH_RISCV64",
            ],
            "syscalls": [{"names": ["getppid"], "action": "SCMP_ACT_ALLOW"}],
        })))
        .unwrap();
        for (arch, nr) in [
            (X86, 64),
            (0x4000_0028, 64),
            (0xc000_00b7, 173),
            (0x4000_0008, 4064),
            (0xc000_0008, 5108),
            (0xe000_0008, 6108),
            (0xc000_0015, 64),
            (0xc000_00f3, 173),
        ] {
            let verdicts = [nr - 1, nr, nr + 1].map(|nr| verdict(&compiled, arch, nr, &[]));
            assert_eq!(verdicts, [EPERM, ALLOW, ENOSYS], "{arch:#x}");
        }
        let error = compile(&profile(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": ["SCMP_ARCH_S390X"],
        })))
        .unwrap_err();
        assert!(error.to_string().contains("SCMP_ARCH_S390X"), "{error}");
    }

    #[test]
    fn more_than_the_kernel_takes_is_an_error() {
        let rules: Vec<_> = (0..900_u64)
            .map(|n| {
                json!({"names": ["ioctl"], "action": "SCMP_ACT_ALLOW", "args": [
                    {"index": 1, "value": n << 33 | n, "op": "SCMP_CMP_EQ"},
                    {"index": 2, "value": n, "op": "SCMP_CMP_GT"},
                ]})
            })
            .collect();
        let error = compile(&profile(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": rules,
        })))
        .unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    }

    #[test]
    fn of_two_rules_for_one_syscall_the_first_counts() {
        if not_x86_64() {
            return;
        }
        for (first, second, expected) in [
            ("SCMP_ACT_ALLOW", "SCMP_ACT_ALLOW", ALLOW),
            ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", ALLOW),
            ("SCMP_ACT_LOG", "SCMP_ACT_ALLOW", 0x7ffc_0000),
        ] {
            let compiled = compile(&profile(json!({
                "defaultAction": "SCMP_ACT_ERRNO",
                "syscalls": [
                    {"names": ["getppid"], "action": first},
                    {"names": ["getppid"], "action": second},
                ],
            })))
            .unwrap();
            assert_eq!(verdict(&compiled, X86_64, 110, &[]), expected);
        }
    }

    /// What a comparison means, from seccomp_rule_add(3).
    fn holds(condition: &Condition, args: &[u64; 6]) -> bool {
        let arg = args[condition.index as usize];
        let value = condition.value;
        match condition.operator {
            LinuxSeccompOperator::ScmpCmpNe => arg != value,
            LinuxSeccompOperator::ScmpCmpLt => arg < value,
            LinuxSeccompOperator::ScmpCmpLe => arg <= value,
            LinuxSeccompOperator::ScmpCmpEq => arg == value,
            LinuxSeccompOperator::ScmpCmpGe => arg >= value,
            LinuxSeccompOperator::ScmpCmpGt => arg > value,
            LinuxSeccompOperator::ScmpCmpMaskedEq => arg & value == condition.value_two,
        }
    }

    fn interesting() -> impl Strategy<Value = u64> {
        prop_oneof![
            0..4_u64,
            (0..4_u64).prop_map(|n| n << 32),
            (0..4_u64).prop_map(|n| (u64::from(u32::MAX) - 1) + n),
            any::<u64>(),
        ]
    }

    fn small() -> impl Strategy<Value = u64> {
        prop_oneof![0..8_u64, (0..8_u64).prop_map(|n| u64::from(u32::MAX) - n)]
    }

    /// A rule for ioctl with one comparison per argument listed, against a model of its meaning.
    fn compare(
        args: &[(u64, usize, u64, u64)],
        probes: Vec<[u64; 6]>,
    ) -> Result<(), TestCaseError> {
        if not_x86_64() {
            return Ok(());
        }
        let args: Vec<_> = args
            .iter()
            .map(|&(index, operator, value, two)| {
                json!({
                    "index": index,
                    "op": OPERATORS[operator],
                    "value": value,
                    "valueTwo": two & value,
                })
            })
            .collect();
        let seccomp = profile(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [{"names": ["ioctl"], "action": "SCMP_ACT_ALLOW", "args": args}],
        }));
        let rules = Profile::new(&seccomp).unwrap().rules().to_vec();
        let compiled = compile(&seccomp).unwrap();
        for (at, mut probe) in probes.into_iter().enumerate() {
            for condition in rules.iter().flat_map(|rule| &rule.conditions) {
                // Random numbers rarely meet: half of the probes are near the rule's own.
                if at % 2 == 0 {
                    let near = probe[condition.index as usize] % 3;
                    probe[condition.index as usize] =
                        condition.value.wrapping_add(near).wrapping_sub(1);
                }
            }
            let allowed = rules
                .iter()
                .any(|rule| rule.conditions.iter().all(|c| holds(c, &probe)));
            let got = verdict(&compiled, X86_64, 16, &probe);
            prop_assert_eq!(got == ALLOW, allowed, "{:x?} {:x?}", rules, probe);
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 128,
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn comparisons_of_different_arguments_are_combined_by_and(
            indices in prop::sample::subsequence(vec![0, 1, 2, 3, 4, 5_u64], 1..=3),
            comparisons in prop::array::uniform3((0..7_usize, interesting(), interesting())),
            probes in prop::collection::vec(prop::array::uniform6(interesting()), 32),
        ) {
            let args: Vec<_> = indices
                .into_iter()
                .zip(comparisons)
                .map(|(index, (operator, value, two))| (index, operator, value, two))
                .collect();
            compare(&args, probes)?;
        }

        #[test]
        fn comparisons_of_one_argument_are_combined_by_or(
            comparisons in prop::collection::vec((0..7_usize, small(), small()), 2..4),
            probes in prop::collection::vec(prop::array::uniform6(interesting()), 32),
        ) {
            let args: Vec<_> = comparisons
                .into_iter()
                .map(|(operator, value, two)| (0, operator, value, two))
                .collect();
            compare(&args, probes)?;
        }
    }
}
