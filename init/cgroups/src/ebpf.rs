//! Device rules for cgroup v2: a small eBPF program of type cgroup_device.
//!
//! Sources: cgroup-v2.rst ("Device controller"), bpf(2), Documentation/bpf/standardization/instruction-set.rst,
//! `struct bpf_cgroup_dev_ctx` of linux/bpf.h.

use std::os::fd::AsFd;

use crate::devices::{ALL, Node, Rule};
use crate::dir::Dir;
use crate::error::{Error, Hint, Result};
use crate::resources::When;
use crate::sys::{self, BpfInsn};

// Operations (class | size or source | operation).
const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const MOVE: u8 = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
const MOVE_REGISTER: u8 = 0xbf; // BPF_ALU64 | BPF_MOV | BPF_X
const SHIFT_RIGHT_32: u8 = 0x74; // BPF_ALU | BPF_RSH | BPF_K
const AND_32: u8 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP_UNLESS_EQUAL_32: u8 = 0x56; // BPF_JMP32 | BPF_JNE | BPF_K
const JUMP_IF_ANY_32: u8 = 0x46; // BPF_JMP32 | BPF_JSET | BPF_K
const JUMP: u8 = 0x05; // BPF_JMP | BPF_JA
const EXIT: u8 = 0x95; // BPF_JMP | BPF_EXIT

const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const TYPE: u8 = 2;
/// The access bits that no rule has decided yet.
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// `BPF_DEVCG_DEV_BLOCK` and `_CHAR`.
const BLOCK: i32 = 1;
const CHAR: i32 = 2;

fn answer(allow: bool) -> [BpfInsn; 2] {
    [
        BpfInsn::new(MOVE, RESULT, 0, 0, i32::from(allow)),
        BpfInsn::new(EXIT, 0, 0, 0, 0),
    ]
}

/// The program for an ordered list of rules.
///
/// It asks the rules from the last to the first. An allowing rule takes its bits off the access that is asked for and
/// answers yes when none is left; a denying rule answers no when one of its bits is still asked for. So each bit is
/// decided by the last rule that matches it, which is the meaning of the list, with no normalisation before.
pub(crate) fn program(rules: &[Rule]) -> Vec<BpfInsn> {
    let mut out = vec![
        BpfInsn::new(LOAD_WORD, TYPE, CONTEXT, 0, 0),
        BpfInsn::new(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        BpfInsn::new(LOAD_WORD, MINOR, CONTEXT, 8, 0),
        BpfInsn::new(MOVE_REGISTER, ACCESS, TYPE, 0, 0),
        BpfInsn::new(SHIFT_RIGHT_32, ACCESS, 0, 0, 16),
        BpfInsn::new(AND_32, TYPE, 0, 0, 0xffff),
    ];
    for rule in rules.iter().rev() {
        if rule.is_total() {
            // Decides everything that is left; the verifier wants no code that cannot be reached behind it.
            out.extend(answer(rule.allow));
            return out;
        }
        let mut action = Vec::with_capacity(4);
        if rule.access != ALL {
            if rule.allow {
                action.push(BpfInsn::new(
                    AND_32,
                    ACCESS,
                    0,
                    0,
                    i32::from(ALL & !rule.access),
                ));
                action.push(BpfInsn::new(JUMP_UNLESS_EQUAL_32, ACCESS, 0, 2, 0));
            } else {
                action.push(BpfInsn::new(
                    JUMP_IF_ANY_32,
                    ACCESS,
                    0,
                    1,
                    i32::from(rule.access),
                ));
                action.push(BpfInsn::new(JUMP, 0, 0, 2, 0));
            }
        }
        action.extend(answer(rule.allow));
        let node = match rule.node {
            Node::Any => None,
            Node::Block => Some(BLOCK),
            Node::Char => Some(CHAR),
        };
        let tests = [
            (TYPE, node),
            (MAJOR, rule.major.map(u32::cast_signed)),
            (MINOR, rule.minor.map(u32::cast_signed)),
        ];
        let mut matching: Vec<(u8, i32)> = tests
            .into_iter()
            .filter_map(|(register, value)| Some((register, value?)))
            .collect();
        // Each test jumps over the tests behind it and the action; at most 2 + 4 instructions.
        let mut skip = action.len() + matching.len();
        for (register, value) in matching.drain(..) {
            skip -= 1;
            let distance = i16::try_from(skip).unwrap_or(i16::MAX);
            out.push(BpfInsn::new(
                JUMP_UNLESS_EQUAL_32,
                register,
                0,
                distance,
                value,
            ));
        }
        out.extend(action);
    }
    out.extend(answer(false));
    out
}

/// Loads the program and attaches it to the cgroup; on update it takes the place of the one before.
pub(crate) fn apply(dir: &Dir, rules: &[Rule], when: When) -> Result<()> {
    let failed = |step: &'static str| {
        move |source: std::io::Error| {
            Error::Bpf {
            step,
            path: dir.path().to_owned(),
            hint: Hint(
                match source.raw_os_error() {
                    Some(libc::EPERM) => {
                        "needs CAP_BPF and CAP_NET_ADMIN, or CAP_SYS_ADMIN; before Linux 5.11 also RLIMIT_MEMLOCK"
                    }
                    Some(libc::ENOSYS) => "the kernel has no bpf(2)",
                    Some(libc::EINVAL) => "the kernel may lack CONFIG_CGROUP_BPF",
                    _ => "",
                }
                .to_owned(),
            ),
            source,
        }
        }
    };
    let program = sys::bpf_load_device(&program(rules)).map_err(failed("load"))?;
    let cgroup = dir.fd()?;
    let old = match when {
        When::Create => Vec::new(),
        When::Update => sys::bpf_device_programs(cgroup).map_err(failed("query"))?,
    };
    match old.as_slice() {
        [] => sys::bpf_attach_device(cgroup, program.as_fd(), None).map_err(failed("attach")),
        // One step: there is no moment without a program, and none with both.
        [one] => sys::bpf_attach_device(cgroup, program.as_fd(), Some(one.as_fd()))
            .map_err(failed("attach")),
        // Somebody else attached more. All must allow, so the new one first, then away with the others.
        many => {
            sys::bpf_attach_device(cgroup, program.as_fd(), None).map_err(failed("attach"))?;
            many.iter().try_for_each(|old| {
                sys::bpf_detach_device(cgroup, old.as_fd()).map_err(failed("detach"))
            })
        }
    }
}
