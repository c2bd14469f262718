//! The memory functions the compiler may call. No C library is linked to provide them.
//!
//! They are written with string instructions or volatile-free byte loops over raw
//! pointers that the optimiser cannot turn back into calls to themselves.

#[cfg(target_arch = "x86_64")]
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the compiler calls this with `len` readable bytes at `from` and `len`
    // writable ones at `to`; the direction flag is clear by the ABI.
    unsafe {
        core::arch::asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _,
            inout("rsi") from => _, options(nostack, preserves_flags));
    }
    to
}

#[cfg(target_arch = "x86_64")]
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, len: usize) -> *mut u8 {
    // SAFETY: the compiler calls this with `len` writable bytes at `to`.
    unsafe {
        core::arch::asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _,
            in("al") value.to_le_bytes()[0], options(nostack, preserves_flags));
    }
    to
}

#[cfg(not(target_arch = "x86_64"))]
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    for at in 0..len {
        // SAFETY: as promised by the caller, `at < len` is inside both areas. Volatile so
        // that the loop is not recognised as a memcpy.
        unsafe { to.add(at).write_volatile(from.add(at).read()) };
    }
    to
}

#[cfg(not(target_arch = "x86_64"))]
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, len: usize) -> *mut u8 {
    for at in 0..len {
        // SAFETY: as promised by the caller, `at < len` is inside the area.
        unsafe { to.add(at).write_volatile(value.to_le_bytes()[0]) };
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if (to as usize) <= (from as usize) {
        for at in 0..len {
            // SAFETY: inside both areas; going up never overwrites what is still to be read.
            unsafe { to.add(at).write_volatile(from.add(at).read()) };
        }
    } else {
        for at in (0..len).rev() {
            // SAFETY: inside both areas; going down never overwrites what is still to be read.
            unsafe { to.add(at).write_volatile(from.add(at).read()) };
        }
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    for at in 0..len {
        // SAFETY: the compiler calls this with `len` readable bytes at both.
        let (x, y) = unsafe { (a.add(at).read_volatile(), b.add(at).read_volatile()) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    // SAFETY: the same contract as memcmp.
    unsafe { memcmp(a, b, len) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const core::ffi::c_char) -> usize {
    let mut len = 0;
    // SAFETY: the caller passes a NUL-terminated string.
    while unsafe { text.add(len).read_volatile() } != 0 {
        len += 1;
    }
    len
}
