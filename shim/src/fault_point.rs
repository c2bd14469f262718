//! Places where a test makes the shim fail. In no release build: there the function is empty, and the feature is refused.
//!
//! With the feature `fault-points` a file `fault` in the shim's working directory (the bundle of its
//! first container) names one place and how to fail there, `PLACE HOW`. It is removed first, so each
//! happens once; `PLACE HOW again` stays.

#[cfg(all(feature = "fault-points", not(debug_assertions)))]
compile_error!("fault-points is for tests: a release build must not have it");

/// Fails here if a test wants it so.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
pub(crate) fn fault_point(_place: &str) {}

/// What a step that can fail fails with, if a test wants it so (`PLACE refuse`).
///
/// # Errors
/// Only if a test wants it.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
pub(crate) fn refusal(_place: &str) -> std::io::Result<()> {
    Ok(())
}

/// What a step that can fail fails with, if a test wants it so (`PLACE refuse`).
#[cfg(feature = "fault-points")]
pub(crate) fn refusal(place: &str) -> std::io::Result<()> {
    match ordered(place) {
        Some(_) => Err(std::io::Error::other(format!("on purpose, at {place}"))),
        None => Ok(()),
    }
}

/// How to fail at this place; taken away, unless it is to happen again.
#[cfg(feature = "fault-points")]
fn ordered(place: &str) -> Option<String> {
    const FILE: &str = "fault";
    let wanted = std::fs::read_to_string(FILE).ok()?;
    let mut words = wanted.split_whitespace();
    if words.next() != Some(place) {
        return None;
    }
    let how = words.next().unwrap_or("panic").to_owned();
    if words.next() != Some("again") {
        let _ = std::fs::remove_file(FILE);
    }
    Some(how)
}

/// Fails here if a test wants it so.
#[cfg(feature = "fault-points")]
#[allow(clippy::panic, reason = "what it is for")]
pub(crate) fn fault_point(place: &str) {
    let Some(how) = ordered(place) else {
        return;
    };
    match how.as_str() {
        "panic" => panic!("on purpose, at {place}"),
        "fault" => crate::sys::write_to_nowhere(),
        "twice" => {
            let _second = PanicsOnDrop;
            panic!("the first panic, at {place}");
        }
        "abort" => std::process::abort(),
        "free" => sys::free_garbage(),
        "overflow" => {
            let _ = overflow(0);
        }
        "stall" => loop {
            std::hint::spin_loop();
        },
        other => panic!("no such fault: {other}"),
    }
}

#[cfg(feature = "fault-points")]
struct PanicsOnDrop;

#[cfg(feature = "fault-points")]
#[allow(clippy::panic, reason = "what it is for")]
impl Drop for PanicsOnDrop {
    fn drop(&mut self) {
        panic!("the second panic, while the first one is dealt with");
    }
}

#[cfg(feature = "fault-points")]
mod sys {
    #![allow(unsafe_code)]

    /// Makes glibc abort: "free(): invalid pointer".
    pub(super) fn free_garbage() {
        #[repr(align(16))]
        struct Text([u8; 64]);
        let text = std::hint::black_box(Text([0; 64]));
        // What glibc takes for the size of the chunk, right before the pointer, is zeros of our own.
        // SAFETY: none is claimed: glibc sees that the pointer is not aligned, and aborts. It is the last act of this image.
        unsafe { libc::free(text.0.as_ptr().wrapping_add(17).cast_mut().cast()) }
    }
}

/// Uses up the stack.
#[cfg(feature = "fault-points")]
#[expect(unconditional_recursion, reason = "a stack overflow is what is wanted")]
fn overflow(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 64]);
    overflow(depth + 1) + frame.iter().sum::<u64>()
}
