//! The stub that answers ENOSYS to syscalls newer than the profile knows.
//!
//! A profile is a list of what its author knew. Without the stub a newer syscall gets the default
//! action, mostly EPERM, and a libc that probes for it takes that for an answer and fails, where
//! after ENOSYS it would have used the older syscall. So everything above the largest number that
//! the profile names, per architecture as the kernel's audit code tells them apart, is ENOSYS.
//!
//! One section per audit architecture, all of one form:
//!
//! ```text
//!         jeq   #ARCH, next, over      the accumulator holds the architecture
//!         ld    nr
//!         jgt   #LARGEST, deny, pass
//! deny:   ret   ERRNO|ENOSYS
//! pass:   ja    filter
//! over:   …
//! ```
//!
//! Conditional jumps reach 255 instructions and stay inside their section; only `ja`, which
//! reaches 2^32, leaves it. So no number of architectures needs a longer form.

use crate::program::{Instruction, JA};

/// Offsets in `struct seccomp_data`.
const DATA_NR: u32 = 0;
const DATA_ARCH: u32 = 4;

const LD_W_ABS: u16 = 0x20;
const JEQ_K: u16 = 0x15;
const JGT_K: u16 = 0x25;
const JSET_K: u16 = 0x45;
const RET_K: u16 = 0x06;

const RET_ENOSYS: u32 = 0x0005_0000 | libc::ENOSYS.cast_unsigned();

/// What tells an x32 syscall from one of x86_64; both have the same audit architecture.
pub(crate) const X32_BIT: u32 = 0x4000_0000;

pub(crate) const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const AUDIT_ARCH_S390: u32 = 0x16;
const AUDIT_ARCH_S390X: u32 = 0x8000_0016;

/// The largest syscall numbers that a profile knows under one audit architecture.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Known {
    /// `AUDIT_ARCH_*`, as `seccomp_data.arch` has it.
    pub(crate) audit_arch: u32,
    /// Largest number; None if the profile knows none.
    pub(crate) largest: Option<u32>,
    /// x86_64 only: largest x32 number, with [`X32_BIT`], if the profile has x32. Without it an x32
    /// syscall is above every number of x86_64 and so ENOSYS, as on a kernel without x32.
    pub(crate) largest_x32: Option<u32>,
}

/// The stub, to be put in front of a filter; empty if nothing is known.
pub(crate) fn stub(known: &[Known]) -> Vec<Instruction> {
    let sections: Vec<_> = known.iter().filter_map(section).collect();
    if sections.is_empty() {
        return Vec::new();
    }
    let mut stub = vec![load(DATA_ARCH)];
    let mut rest: usize = sections.iter().map(Vec::len).sum();
    for section in sections {
        rest -= section.len();
        // The last instruction of every section jumps over what is left of the stub.
        let filter = u32::try_from(rest).unwrap_or(u32::MAX);
        stub.extend(section.into_iter().map(|instruction| Instruction {
            k: if instruction.code == JA {
                filter
            } else {
                instruction.k
            },
            ..instruction
        }));
    }
    stub
}

fn section(known: &Known) -> Option<Vec<Instruction>> {
    let mut body = vec![load(DATA_NR)];
    match (known.largest, known.largest_x32) {
        (None, None) => return None,
        (Some(largest), None) => body.push(jump(JGT_K, largest, 0, 1)),
        (largest, Some(largest_x32)) => body.extend([
            jump(JSET_K, X32_BIT, 1, 0),
            // Nothing known means nothing too new: below the bit no number is larger.
            jump(JGT_K, largest.unwrap_or(X32_BIT - 1), 1, 2),
            jump(JGT_K, largest_x32, 0, 1),
        ]),
    }
    if matches!(known.audit_arch, AUDIT_ARCH_S390 | AUDIT_ARCH_S390X) {
        // The kernel of s390 turns numbers too large for its table into 0 before the filter sees
        // them; 0 itself, setup(2), is no syscall any more. `ret` is two instructions on.
        body.insert(1, jump(JEQ_K, 0, 1, 0));
    }
    body.push(Instruction {
        code: RET_K,
        jt: 0,
        jf: 0,
        k: RET_ENOSYS,
    });
    body.push(jump(JA, 0, 0, 0));
    // At most 7 instructions.
    let over = u8::try_from(body.len()).unwrap_or(u8::MAX);
    body.insert(0, jump(JEQ_K, known.audit_arch, 0, over));
    Some(body)
}

const fn load(offset: u32) -> Instruction {
    Instruction {
        code: LD_W_ABS,
        jt: 0,
        jf: 0,
        k: offset,
    }
}

const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::interpreter::{Data, run};

    const ENOSYS: u32 = RET_ENOSYS;
    /// Stands for the filter behind the stub.
    const FILTER: u32 = 0x0003_1234;

    const AUDIT_ARCHS: [u32; 23] = [
        0x4000_0003,
        AUDIT_ARCH_X86_64,
        0x4000_0028,
        0xc000_00b7,
        0x8,
        0x8000_0008,
        0xa000_0008,
        0x4000_0008,
        0xc000_0008,
        0xe000_0008,
        0x14,
        0x8000_0015,
        0xc000_0015,
        AUDIT_ARCH_S390,
        AUDIT_ARCH_S390X,
        0xf,
        0x8000_000f,
        0xc000_00f3,
        0xc000_0102,
        0x4,
        0x2a,
        0x4000_002a,
        0x1234_5678,
    ];

    fn with_filter(known: &[Known]) -> Vec<u8> {
        let mut program = stub(known);
        program.push(Instruction {
            code: RET_K,
            jt: 0,
            jf: 0,
            k: FILTER,
        });
        program.iter().flat_map(|i| i.encode()).collect()
    }

    /// What the stub is for, said without jumps.
    fn expected(known: &[Known], arch: u32, nr: u32) -> u32 {
        let Some(known) = known.iter().find(|known| known.audit_arch == arch) else {
            return FILTER;
        };
        let largest = if nr & X32_BIT != 0 && known.largest_x32.is_some() {
            known.largest_x32
        } else {
            known.largest
        };
        let zero_on_s390 = matches!(arch, AUDIT_ARCH_S390 | AUDIT_ARCH_S390X)
            && nr == 0
            && known.largest.is_some();
        let x32_only = known.largest.is_none() && nr & X32_BIT == 0;
        match largest {
            _ if zero_on_s390 => ENOSYS,
            // A number without the x32 bit, nothing known of x86_64: only what no table could hold.
            None if x32_only && known.largest_x32.is_some() && nr >= X32_BIT => ENOSYS,
            Some(largest) if nr > largest => ENOSYS,
            _ => FILTER,
        }
    }

    prop_compose! {
        fn known_of(arch: u32)(
            largest in prop::option::weighted(0.9, 0..7000_u32),
            x32 in prop::option::of(0..1024_u32),
        ) -> Known {
            Known {
                audit_arch: arch,
                largest,
                largest_x32: x32.filter(|_| arch == AUDIT_ARCH_X86_64).map(|nr| nr | X32_BIT),
            }
        }
    }

    fn knowns() -> impl Strategy<Value = Vec<Known>> {
        prop::sample::subsequence(AUDIT_ARCHS.to_vec(), 0..=AUDIT_ARCHS.len())
            .prop_shuffle()
            .prop_flat_map(|archs| archs.into_iter().map(known_of).collect::<Vec<_>>())
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn newer_is_enosys_and_known_falls_through(
            known in knowns(),
            arch in prop::sample::select(AUDIT_ARCHS.to_vec()),
            random in any::<u32>(),
        ) {
            let program = with_filter(&known);
            let mut numbers = vec![0, 1, random, X32_BIT - 1, X32_BIT, 0x8000_0000, u32::MAX];
            for known in &known {
                for nr in [known.largest, known.largest_x32].into_iter().flatten() {
                    numbers.extend([nr.saturating_sub(1), nr, nr + 1, nr ^ X32_BIT, (nr + 1) ^ X32_BIT]);
                }
            }
            for nr in numbers {
                let got = run(&program, &Data { nr, arch, ..Data::default() });
                prop_assert_eq!(got, expected(&known, arch, nr), "arch {:#x} nr {:#x}", arch, nr);
            }
        }
    }

    #[test]
    fn nothing_known_is_no_stub() {
        assert_eq!(stub(&[]), []);
        let nothing = Known {
            audit_arch: AUDIT_ARCH_X86_64,
            largest: None,
            largest_x32: None,
        };
        assert_eq!(stub(&[nothing]), []);
    }

    #[test]
    fn the_stub_of_x86_64_x32_and_x86_is_the_golden_one() {
        let stub = stub(&[
            Known {
                audit_arch: AUDIT_ARCH_X86_64,
                largest: Some(450),
                largest_x32: Some(X32_BIT | 547),
            },
            Known {
                audit_arch: 0x4000_0003,
                largest: Some(449),
                largest_x32: None,
            },
        ]);
        let text: Vec<String> = stub
            .iter()
            .map(|i| format!("{:02x} {} {} {:#x}", i.code, i.jt, i.jf, i.k))
            .collect();
        assert_eq!(
            text,
            [
                "20 0 0 0x4",
                "15 0 6 0xc000003e",
                "20 0 0 0x0",
                "45 1 0 0x40000000",
                "25 1 2 0x1c2",
                "25 0 1 0x40000223",
                "06 0 0 0x50026",
                "05 0 0 0x5",
                "15 0 4 0x40000003",
                "20 0 0 0x0",
                "25 0 1 0x1c1",
                "06 0 0 0x50026",
                "05 0 0 0x0",
            ]
        );
    }

    #[test]
    fn a_stub_longer_than_a_conditional_jump_reaches_works() {
        // No real machine has so many; the point is that the form has no limit.
        let known: Vec<_> = (0..200)
            .map(|n| Known {
                audit_arch: 0x9000_0000 + n,
                largest: Some(n),
                largest_x32: None,
            })
            .collect();
        let program = with_filter(&known);
        assert!(program.len() / 8 > 900);
        for arch in [0x9000_0000_u32, 0x9000_0064, 0x9000_00c7] {
            let largest = arch - 0x9000_0000;
            let at = |nr| {
                run(
                    &program,
                    &Data {
                        nr,
                        arch,
                        ..Data::default()
                    },
                )
            };
            assert_eq!(at(largest), FILTER);
            assert_eq!(at(largest + 1), ENOSYS);
        }
    }
}
