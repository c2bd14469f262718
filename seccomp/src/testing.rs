//! What only tests and benchmarks need; no promise is made for it.

use std::os::fd::AsFd;

use oci_spec::runtime::LinuxSeccomp;

use crate::compile::{self, Compiled, Options};
use crate::error::Error;
use crate::profile::Profile;

/// How many programs libseccomp has built in this process. A cache hit does not count.
#[must_use]
pub fn compilations() -> u64 {
    compile::compilations()
}

/// [`compile`](fn@crate::compile) with an export pipe of `capacity` bytes (F_SETPIPE_SZ).
///
/// # Errors
/// As [`compile`](fn@crate::compile).
pub fn compile_through(seccomp: &LinuxSeccomp, capacity: i32) -> Result<Compiled, Error> {
    compile::compile_profile(
        &Profile::new(seccomp)?,
        Options {
            pipe_capacity: Some(capacity),
            ..Options::default()
        },
    )
}

/// The export as it must not be done: into `pipe`, and nobody has been asked to read it.
///
/// # Errors
/// As [`compile`](fn@crate::compile).
pub fn export_without_reader(seccomp: &LinuxSeccomp, pipe: impl AsFd) -> Result<(), Error> {
    let filter = compile::build(&Profile::new(seccomp)?, Options::default())?;
    filter
        .context
        .export_bpf(pipe)
        .map_err(|source| Error::Libseccomp {
            step: "export",
            subject: "the program".to_owned(),
            source,
        })
}
