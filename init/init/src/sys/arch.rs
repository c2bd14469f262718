//! One system call instruction per architecture.

/// Raw system call; returns what the kernel returns (negative errno on failure).
///
/// # Safety
/// The arguments must be what the call `nr` expects: pointers valid for as long as the
/// kernel uses them, which is the duration of the call for every call in `calls.rs`.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn raw(nr: usize, a: [usize; 6]) -> isize {
    let ret: isize;
    // SAFETY: the x86_64 system call ABI: number in rax, arguments as listed, rcx and r11
    // clobbered; the caller vouches for the arguments.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") nr => ret,
            in("rdi") a[0], in("rsi") a[1], in("rdx") a[2],
            in("r10") a[3], in("r8") a[4], in("r9") a[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack)
        );
    }
    ret
}

/// See the x86_64 twin.
///
/// # Safety
/// As there.
#[cfg(target_arch = "aarch64")]
pub(super) unsafe fn raw(nr: usize, a: [usize; 6]) -> isize {
    let ret: isize;
    // SAFETY: the arm64 system call ABI: number in x8, arguments in x0 to x5, result in x0;
    // the caller vouches for the arguments.
    unsafe {
        core::arch::asm!(
            "svc 0",
            in("x8") nr,
            inlateout("x0") a[0] => ret,
            in("x1") a[1], in("x2") a[2], in("x3") a[3], in("x4") a[4], in("x5") a[5],
            options(nostack)
        );
    }
    ret
}
