#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| holdfast_seccomp::fuzz::profile(input));
