//! A BPF program as `seccomp(2)` takes it.

use serde::Serialize;

use crate::error::Error;

/// Bytes of one `struct sock_filter`: u16 code, u8 jt, u8 jf, u32 k, in native byte order.
pub const INSTRUCTION_SIZE: usize = 8;

/// The most instructions the kernel takes in one filter (`BPF_MAXINSNS`, linux/bpf_common.h).
pub const INSTRUCTIONS_MAX: usize = 4096;

/// Flags of `seccomp(SECCOMP_SET_MODE_FILTER, flags, …)`.
///
/// Source: seccomp(2), include/uapi/linux/seccomp.h.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub struct LoadFlags(u32);

impl LoadFlags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// Apply to all threads of the process.
    pub const TSYNC: Self = Self(1);
    /// Log every action but ALLOW.
    pub const LOG: Self = Self(1 << 1);
    /// Do not turn on the mitigation of Speculative Store Bypass.
    pub const SPEC_ALLOW: Self = Self(1 << 2);
    /// Return a listener for `SCMP_ACT_NOTIFY`.
    pub const NEW_LISTENER: Self = Self(1 << 3);
    /// TSYNC fails with ESRCH and not with a thread id; the kernel wants it when TSYNC and
    /// NEW_LISTENER come together (Linux 5.7).
    pub const TSYNC_ESRCH: Self = Self(1 << 4);
    /// A notified process that has been received can only be killed, not interrupted (Linux 5.19).
    /// The kernel takes it only with NEW_LISTENER.
    pub const WAIT_KILLABLE_RECV: Self = Self(1 << 5);

    const ALL: u32 = (1 << 6) - 1;

    /// The number for the kernel.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The flags of a number, None if it has an unknown bit.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Option<Self> {
        if bits & !Self::ALL == 0 {
            Some(Self(bits))
        } else {
            None
        }
    }

    /// Both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` are set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// When the process that becomes the container loads its filter.
///
/// `seccomp(2)` wants CAP_SYS_ADMIN in the loader's user namespace, or `no_new_privs`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LoadPoint {
    /// `noNewPrivileges` is false: load while CAP_SYS_ADMIN is still there, before capabilities
    /// are dropped; the filter must then allow what dropping them takes.
    BeforeCapabilities,
    /// `noNewPrivileges` is true: set it, and load as late as possible, right before execve, so
    /// that the filter needs to allow little of what init does.
    AfterCapabilities,
}

impl LoadPoint {
    /// The point for `process.noNewPrivileges`. Absent counts as false (runtime-spec).
    #[must_use]
    pub const fn new(no_new_privileges: bool) -> Self {
        if no_new_privileges {
            Self::AfterCapabilities
        } else {
            Self::BeforeCapabilities
        }
    }
}

/// A checked BPF program with the flags to load it.
///
/// Between 1 and [`INSTRUCTIONS_MAX`] instructions, every jump inside the program, a return at the
/// end. The kernel checks again; our check is there because a program that lost its tail on the way
/// (a signal in the middle of a write) must never reach a container. What passes the check has lost
/// nothing that matters: no path from its first instruction leaves it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Program {
    bytes: Vec<u8>,
    flags: LoadFlags,
}

impl Program {
    /// Checks `bytes`, an array of `struct sock_filter`.
    ///
    /// # Errors
    /// [`Error::Malformed`] and [`Error::TooLarge`].
    pub fn new(bytes: Vec<u8>, flags: LoadFlags) -> Result<Self, Error> {
        check(&bytes)?;
        Ok(Self { bytes, flags })
    }

    /// The instructions as the kernel reads them; [`INSTRUCTION_SIZE`] bytes each.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Number of instructions.
    #[must_use]
    pub fn instructions(&self) -> usize {
        self.bytes.len() / INSTRUCTION_SIZE
    }

    /// Flags for `seccomp(2)`.
    #[must_use]
    pub const fn flags(&self) -> LoadFlags {
        self.flags
    }

    /// Whether loading returns a listener that must go to the profile's `listenerPath`.
    #[must_use]
    pub const fn wants_listener(&self) -> bool {
        self.flags.contains(LoadFlags::NEW_LISTENER)
    }
}

/// One instruction, decoded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    pub(crate) jt: u8,
    pub(crate) jf: u8,
    pub(crate) k: u32,
}

impl Instruction {
    pub(crate) fn decode(raw: [u8; INSTRUCTION_SIZE]) -> Self {
        let [c0, c1, jt, jf, k0, k1, k2, k3] = raw;
        Self {
            code: u16::from_ne_bytes([c0, c1]),
            jt,
            jf,
            k: u32::from_ne_bytes([k0, k1, k2, k3]),
        }
    }

    pub(crate) fn encode(self) -> [u8; INSTRUCTION_SIZE] {
        let [c0, c1] = self.code.to_ne_bytes();
        let [k0, k1, k2, k3] = self.k.to_ne_bytes();
        [c0, c1, self.jt, self.jf, k0, k1, k2, k3]
    }
}

/// `bytes` as instructions; a rest shorter than an instruction is left out.
pub(crate) fn decode(bytes: &[u8]) -> impl ExactSizeIterator<Item = Instruction> + '_ {
    let (instructions, _rest) = bytes.as_chunks::<INSTRUCTION_SIZE>();
    instructions.iter().map(|raw| Instruction::decode(*raw))
}

/// Class, and the jump operation, of an instruction's code (linux/bpf_common.h).
pub(crate) const CLASS: u16 = 0x07;
pub(crate) const JMP: u16 = 0x05;
pub(crate) const RET: u16 = 0x06;
pub(crate) const JA: u16 = 0x05;

fn check(bytes: &[u8]) -> Result<(), Error> {
    let malformed = |reason| Error::Malformed {
        bytes: bytes.len(),
        reason,
    };
    if bytes.is_empty() {
        return Err(malformed("it is empty"));
    }
    if !bytes.len().is_multiple_of(INSTRUCTION_SIZE) {
        return Err(malformed("it ends inside an instruction"));
    }
    let count = bytes.len() / INSTRUCTION_SIZE;
    if count > INSTRUCTIONS_MAX {
        return Err(Error::TooLarge {
            instructions: count,
        });
    }
    for (at, instruction) in decode(bytes).enumerate() {
        let last = at + 1 == count;
        match instruction.code & CLASS {
            RET => {}
            _ if last => return Err(malformed("it does not end with a return")),
            JMP => {
                let farthest = if instruction.code == JA {
                    u64::from(instruction.k)
                } else {
                    u64::from(instruction.jt.max(instruction.jf))
                };
                // usize is at most 64 bits on every Linux.
                if (at as u64) + 1 + farthest >= count as u64 {
                    return Err(malformed("a jump leads out of it"));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(instructions: &[(u16, u8, u8, u32)]) -> Vec<u8> {
        instructions
            .iter()
            .flat_map(|&(code, jt, jf, k)| Instruction { code, jt, jf, k }.encode())
            .collect()
    }

    #[test]
    fn a_lone_return_is_a_program() {
        let bytes = program(&[(RET, 0, 0, 0x7fff_0000)]);
        let program = Program::new(bytes.clone(), LoadFlags::LOG).unwrap();
        assert_eq!(program.instructions(), 1);
        assert_eq!(program.bytes(), bytes);
        assert!(!program.wants_listener());
    }

    #[test]
    fn broken_programs_are_refused() {
        let cases: [(Vec<u8>, &str); 6] = [
            (vec![], "empty"),
            (vec![0; 7], "inside an instruction"),
            (program(&[(0x20, 0, 0, 0)]), "end with a return"),
            (program(&[(0x15, 1, 0, 0), (RET, 0, 0, 0)]), "jump"),
            (program(&[(JA, 0, 0, 1), (RET, 0, 0, 0)]), "jump"),
            (program(&[(JA, 0, 0, u32::MAX), (RET, 0, 0, 0)]), "jump"),
        ];
        for (bytes, text) in cases {
            let error = Program::new(bytes, LoadFlags::NONE).unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    #[test]
    fn the_kernels_limit_is_ours() {
        let bytes = |count| program(&vec![(RET, 0, 0, 0); count]);
        assert!(Program::new(bytes(INSTRUCTIONS_MAX), LoadFlags::NONE).is_ok());
        let error = Program::new(bytes(INSTRUCTIONS_MAX + 1), LoadFlags::NONE).unwrap_err();
        assert!(matches!(error, Error::TooLarge { instructions: 4097 }));
    }

    #[test]
    fn flags_are_the_kernels() {
        for (ours, kernels) in [
            (LoadFlags::TSYNC, libc::SECCOMP_FILTER_FLAG_TSYNC),
            (LoadFlags::LOG, libc::SECCOMP_FILTER_FLAG_LOG),
            (LoadFlags::SPEC_ALLOW, libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW),
            (
                LoadFlags::NEW_LISTENER,
                libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            ),
            (
                LoadFlags::TSYNC_ESRCH,
                libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH,
            ),
            (
                LoadFlags::WAIT_KILLABLE_RECV,
                libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
            ),
        ] {
            assert_eq!(libc::c_ulong::from(ours.bits()), kernels);
        }
        assert_eq!(LoadFlags::from_bits(64), None);
    }

    #[test]
    fn early_or_late() {
        assert_eq!(LoadPoint::new(false), LoadPoint::BeforeCapabilities);
        assert_eq!(LoadPoint::new(true), LoadPoint::AfterCapabilities);
    }
}
