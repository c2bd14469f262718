//! The rules as cgroup v1 and as the eBPF program decide them, against their plain meaning.

use proptest::prelude::*;

use super::*;
use crate::ebpf;
use crate::sys::{self, BpfInsn};

/// Runs a device program; panics on anything the verifier would refuse too.
fn run(program: &[BpfInsn], node: Node, major: u32, minor: u32, access: u8) -> bool {
    let kind: u32 = if node == Node::Block { 1 } else { 2 };
    let context = [kind | (u32::from(access) << 16), major, minor];
    let mut registers: [Option<u64>; 6] = [None, Some(0), None, None, None, None];
    let mut at = 0_usize;
    for _ in 0..program.len() {
        let insn = program[at];
        let (dst, src) = if cfg!(target_endian = "little") {
            (usize::from(insn.regs & 15), usize::from(insn.regs >> 4))
        } else {
            (usize::from(insn.regs >> 4), usize::from(insn.regs & 15))
        };
        let imm = u64::from(insn.imm.cast_unsigned());
        at += 1;
        let jump = match insn.code {
            0x61 => {
                assert_eq!(src, 1, "loads come from the context");
                let word = context[usize::try_from(insn.off).unwrap() / 4];
                registers[dst] = Some(u64::from(word));
                false
            }
            0xb7 => {
                registers[dst] = Some(imm);
                false
            }
            0xbf => {
                registers[dst] = registers[src];
                assert!(registers[dst].is_some(), "read of an unset register");
                false
            }
            0x74 => {
                registers[dst] = Some((registers[dst].unwrap() & 0xffff_ffff) >> imm);
                false
            }
            0x54 => {
                registers[dst] = Some(registers[dst].unwrap() & imm & 0xffff_ffff);
                false
            }
            0x56 => registers[dst].unwrap() & 0xffff_ffff != imm,
            0x46 => registers[dst].unwrap() & imm != 0,
            0x05 => true,
            0x95 => return registers[0].unwrap() == 1,
            other => panic!("unknown operation {other:#x}"),
        };
        if jump {
            assert!(insn.off > 0, "no loops");
            at += usize::try_from(insn.off).unwrap();
        }
    }
    panic!("the program has no end");
}

/// What the kernel's v1 controller answers for one kind of access.
fn v1_allows(target: &Exceptions, node: Node, major: u32, minor: u32, bit: u8) -> bool {
    let hit = target.list.iter().any(|rule| {
        rule.access & bit != 0
            && rule.node == node
            && rule.major.is_none_or(|m| m == major)
            && rule.minor.is_none_or(|m| m == minor)
    });
    hit != target.allow_by_default
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let number = || prop_oneof![Just(None), Just(Some(1)), Just(Some(2))];
    let node = prop_oneof![Just(Node::Any), Just(Node::Block), Just(Node::Char)];
    (any::<bool>(), node, number(), number(), 1..=ALL).prop_map(
        |(allow, node, major, minor, access)| Rule {
            allow,
            node,
            major,
            minor,
            access,
        },
    )
}

fn every_device() -> impl Iterator<Item = (Node, u32, u32)> {
    [Node::Block, Node::Char].into_iter().flat_map(|node| {
        (1..=3).flat_map(move |major| (1..=3).map(move |minor| (node, major, minor)))
    })
}

proptest! {
    #[test]
    fn the_program_decides_as_the_list_does(rules in prop::collection::vec(any_rule(), 0..12)) {
        let program = ebpf::program(&rules);
        for (node, major, minor) in every_device() {
            for access in 1..=ALL {
                prop_assert_eq!(
                    run(&program, node, major, minor, access),
                    allowed(&rules, node, major, minor, access),
                    "{:?} {}:{} {} of {:?}", node, major, minor, access, rules
                );
            }
        }
    }

    #[test]
    fn v1_decides_as_the_list_does_or_refuses_it(rules in prop::collection::vec(any_rule(), 0..8)) {
        if let Ok(target) = exceptions(&rules) {
            for (node, major, minor) in every_device() {
                for bit in [MKNOD, READ, WRITE] {
                    prop_assert_eq!(
                        v1_allows(&target, node, major, minor, bit),
                        allowed(&rules, node, major, minor, bit),
                        "{:?} {}:{} {} of {:?} by {:?}", node, major, minor, bit, rules, target
                    );
                }
            }
        }
    }

    #[test]
    fn allow_lists_are_never_refused(mut rules in prop::collection::vec(any_rule(), 0..8)) {
        // The form that every engine writes: deny all, then allow.
        for rule in &mut rules {
            rule.allow = true;
        }
        rules.insert(0, DENY_ALL);
        prop_assert!(exceptions(&rules).is_ok());
    }
}

const DENY_ALL: Rule = Rule {
    allow: false,
    node: Node::Any,
    major: None,
    minor: None,
    access: ALL,
};

fn from_json(json: &str) -> Result<Vec<Rule>> {
    parse(&serde_json::from_str::<Vec<LinuxDeviceCgroup>>(json).unwrap())
}

#[test]
fn configurations_are_parsed_strictly() {
    let rules = from_json(
        r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":3,"access":"rw"},
            {"allow":true,"type":"b","major":-1,"minor":-1,"access":"m"},{"allow":true,"type":"p","access":"r"},
            {"allow":false}]"#,
    )
    .unwrap();
    let text: Vec<String> = rules.iter().map(ToString::to_string).collect();
    assert_eq!(text, ["a *:* rwm", "c 1:3 rw", "b *:* m", "a *:* rwm"]);
    for (bad, word) in [
        (
            r#"[{"allow":true,"type":"c","major":1,"access":"rx"}]"#,
            "r, w and m",
        ),
        (r#"[{"allow":true,"type":"c","major":1}]"#, "empty"),
        (
            r#"[{"allow":true,"type":"c","major":-7,"access":"r"}]"#,
            "device number",
        ),
    ] {
        let error = from_json(bad).unwrap_err().to_string();
        assert!(
            error.contains("linux.resources.devices[0]") && error.contains(word),
            "{error}"
        );
    }
}

#[test]
fn a_hole_in_a_wide_rule_is_refused_by_v1_and_named() {
    let rules = from_json(
        r#"[{"allow":true,"type":"c","access":"rwm"},{"allow":false,"type":"c","major":1,"minor":3,"access":"w"}]"#,
    )
    .unwrap();
    let error = exceptions(&rules).unwrap_err().to_string();
    assert!(
        error.contains("c 1:3 w") && error.contains("c *:* rwm"),
        "{error}"
    );
}

#[test]
fn v1_is_told_with_as_few_writes_as_possible() {
    let rules = from_json(
        r#"[{"allow":true,"type":"c","major":9,"access":"r"},{"allow":false,"access":"rwm"},
            {"allow":true,"type":"c","major":1,"minor":3,"access":"r"},{"allow":true,"type":"c","major":1,"minor":3,"access":"w"},
            {"allow":true,"type":"c","major":5,"minor":1,"access":"rwm"},{"allow":true,"type":"c","major":5,"access":"rwm"},
            {"allow":true,"type":"c","major":5,"minor":2,"access":"rwm"}]"#,
    )
    .unwrap();
    let text: Vec<String> = exceptions(&rules)
        .unwrap()
        .list
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(text, ["c 1:3 rw", "c 5:* rwm"]);
}

#[test]
fn an_update_touches_only_what_differs() {
    let root = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("devices.list", "c 1:3 rwm\nc 1:5 rwm\nb *:* m\n"),
        ("devices.allow", ""),
        ("devices.deny", ""),
    ] {
        std::fs::write(root.path().join(name), text).unwrap();
    }
    let rules = from_json(
        r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":3,"access":"rwm"},
            {"allow":true,"type":"b","access":"m"},{"allow":true,"type":"c","major":195,"access":"rw"},
            {"allow":true,"type":"c","major":1,"minor":5,"access":"r"}]"#,
    )
    .unwrap();
    let dir = Dir::at(root.path().to_owned());
    apply_v1(&dir, &rules, When::Update).unwrap();
    // The file collects the writes of one open, as the kernel would see them.
    assert_eq!(dir.read("devices.allow").unwrap(), "c 195:* rwc 1:5 r");
    assert_eq!(dir.read("devices.deny").unwrap(), "c 1:5 wm");
}

#[test]
fn the_default_rules_hold_what_a_container_needs() {
    let mut rules = vec![DENY_ALL];
    rules.extend(parse(&default_device_rules()).unwrap());
    assert!(allowed(&rules, Node::Char, 1, 3, READ | WRITE), "null");
    assert!(allowed(&rules, Node::Char, 136, 7, READ | WRITE), "a pty");
    assert!(allowed(&rules, Node::Block, 8, 0, MKNOD));
    assert!(!allowed(&rules, Node::Block, 8, 0, READ), "a disk");
    assert!(!allowed(&rules, Node::Char, 1, 1, READ), "mem");
    assert!(!allowed(&rules, Node::Char, 10, 200, READ), "net/tun");
}

#[test]
fn the_verifier_takes_the_programs() {
    let shapes: [&[Rule]; 5] = [
        &[],
        &[DENY_ALL],
        &[Rule {
            allow: true,
            ..DENY_ALL
        }],
        &[Rule {
            allow: true,
            node: Node::Char,
            major: Some(1),
            minor: None,
            access: READ,
        }],
        &[
            DENY_ALL,
            Rule {
                allow: true,
                node: Node::Any,
                major: Some(u32::MAX),
                minor: Some(3),
                access: ALL,
            },
            Rule {
                allow: false,
                node: Node::Block,
                major: None,
                minor: None,
                access: WRITE,
            },
        ],
    ];
    for rules in shapes {
        match sys::bpf_load_device(&ebpf::program(rules)) {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) => {
                println!("skipped: bpf(2) is not allowed or not there: {error}");
                return;
            }
            Err(error) => panic!("{error}: {rules:?}"),
        }
    }
}
