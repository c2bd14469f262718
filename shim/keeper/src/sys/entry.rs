//! Where the kernel enters the program: no C runtime.

use core::ffi::{CStr, c_char};

use holdfast_keeper::PROGRAM_VARIABLE;

use super::Start;

// The stack pointer at entry points at argc (System V ABI, process initialisation).
#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {main}",
    "ud2",
    main = sym main
);
#[cfg(target_arch = "aarch64")]
core::arch::global_asm!(
    ".globl _start",
    "_start:",
    "mov x29, xzr",
    "mov x0, sp",
    "and sp, x0, -16",
    "bl {main}",
    "brk 1",
    main = sym main
);

extern "C" fn main(stack: *const usize) -> ! {
    // SAFETY: `stack` is the stack pointer at process entry, where the kernel put argc, that many pointers to
    // arguments, a null, and the environment's pointers up to a null; all live as long as the process.
    let start = unsafe {
        let argc = *stack;
        let arguments = core::slice::from_raw_parts(stack.add(1), argc);
        Start {
            arguments,
            environment: stack.add(argc + 2) as usize,
            program: value_of(PROGRAM_VARIABLE, stack.add(argc + 2).cast()),
        }
    };
    super::exit(crate::run(&start))
}

/// The address of a variable's value.
///
/// # Safety
/// `list` are pointers to strings that end with NUL, up to a null; all live as long as the process.
unsafe fn value_of(name: &str, mut list: *const *const c_char) -> Option<usize> {
    loop {
        // SAFETY: as the caller promises, and it goes no further than the null.
        let text = unsafe {
            let entry = list.read();
            if entry.is_null() {
                return None;
            }
            list = list.add(1);
            CStr::from_ptr(entry)
        };
        let value = text.to_bytes().strip_prefix(name.as_bytes());
        if let Some([b'=', value @ ..]) = value {
            return Some(value.as_ptr() as usize);
        }
    }
}
