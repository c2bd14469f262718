//! Profiles as attackers write them, for tests and cargo-fuzz (`integration/docs/fuzzing.md`). No
//! promise is made for this module.

use oci_spec::runtime::LinuxSeccomp;

use crate::program::{INSTRUCTION_SIZE, INSTRUCTIONS_MAX};
use crate::{Profile, compile};

/// A profile: checked, brought into its canonical form, compiled.
///
/// # Panics
/// When a profile that passed the checks has no canonical form, or a program that the kernel
/// could not take.
pub fn profile(input: &[u8]) {
    let Ok(seccomp) = serde_json::from_slice::<LinuxSeccomp>(input) else {
        return;
    };
    let Ok(profile) = Profile::new(&seccomp) else {
        return;
    };
    assert!(!profile.canonical().is_empty());
    if endless(&profile) {
        return;
    }
    let Ok(compiled) = compile(&seccomp) else {
        return;
    };
    let len = compiled.program.bytes().len();
    assert!(
        len > 0 && len.is_multiple_of(INSTRUCTION_SIZE),
        "{len} bytes"
    );
    assert!(len / INSTRUCTION_SIZE <= INSTRUCTIONS_MAX, "{len} bytes");
}

/// What keeps libseccomp busy without end (see the crate's documentation): the runtime compiles in
/// a child with a deadline, a fuzz target has none.
fn endless(profile: &Profile<'_>) -> bool {
    let conditions: usize = profile
        .rules()
        .iter()
        .map(|rule| rule.conditions.len())
        .sum();
    let mixed = profile.rules().iter().any(|rule| rule.conditions.len() > 1);
    mixed && conditions > 4
}

#[cfg(test)]
mod tests {
    use holdfast_corpus::{Shape, replay};

    #[test]
    fn profile() {
        replay(
            env!("CARGO_MANIFEST_DIR"),
            "profile",
            Shape::Json,
            400,
            super::profile,
        );
    }
}
