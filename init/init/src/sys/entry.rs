//! Where the kernel enters the image: no C runtime, so no constructors, no TLS, no locale.

use core::ffi::CStr;

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
    let mut args = [None; 3];
    // SAFETY: `stack` is the stack pointer at process entry, where the kernel put argc
    // followed by argc pointers to NUL-terminated strings that live as long as the process.
    unsafe {
        let argc = *stack;
        for (index, slot) in args.iter_mut().enumerate().take(argc) {
            let text = *stack.add(1 + index) as *const core::ffi::c_char;
            *slot = Some(CStr::from_ptr::<'static>(text));
        }
    }
    super::exit(crate::run(&args))
}
