//! A classic BPF machine, as far as seccomp filters of libseccomp and our stub need it. Tests only.

use crate::program::decode;

/// `struct seccomp_data`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Data {
    pub(crate) nr: u32,
    pub(crate) arch: u32,
    pub(crate) instruction_pointer: u64,
    pub(crate) args: [u64; 6],
}

impl Data {
    fn word(&self, offset: u32) -> u32 {
        let mut bytes = Vec::new();
        bytes.extend(self.nr.to_ne_bytes());
        bytes.extend(self.arch.to_ne_bytes());
        bytes.extend(self.instruction_pointer.to_ne_bytes());
        for arg in self.args {
            bytes.extend(arg.to_ne_bytes());
        }
        let at = offset as usize;
        assert!(at.is_multiple_of(4), "load at {at}");
        u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
    }
}

/// What the filter returns for `data`. Panics on what the kernel would not have taken.
pub(crate) fn run(program: &[u8], data: &Data) -> u32 {
    let program: Vec<_> = decode(program).collect();
    let mut accumulator = 0_u32;
    let mut at = 0;
    loop {
        let i = program[at];
        at += 1;
        let jump = |holds| usize::from(if holds { i.jt } else { i.jf });
        match i.code {
            0x20 => accumulator = data.word(i.k),
            0x54 => accumulator &= i.k,
            0x05 => at += i.k as usize,
            0x15 => at += jump(accumulator == i.k),
            0x25 => at += jump(accumulator > i.k),
            0x35 => at += jump(accumulator >= i.k),
            0x45 => at += jump(accumulator & i.k != 0),
            0x06 => return i.k,
            code => panic!("instruction {at} has code {code:#x}"),
        }
    }
}
