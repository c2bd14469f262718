//! What comes out, run by an interpreter of the kernel's instructions.

use std::collections::BTreeSet;

use libseccomp::ScmpArch;
use oci_spec::runtime::LinuxSeccompOperator;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::interpreter::{Data, run};
use crate::profile::{Condition, OPERATORS};
use crate::program::{INSTRUCTION_SIZE, LoadFlags};
use crate::stub::{AUDIT_ARCH_X86_64, X32_BIT};

const DOCKER: &str = include_str!("../../../integration/profiles/docker-default.json");

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
    let at = |name, args: &[u64]| verdict(&compiled, X86_64, number(name, ScmpArch::X8664), args);
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
fn compare(args: &[(u64, usize, u64, u64)], probes: Vec<[u64; 6]>) -> Result<(), TestCaseError> {
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
