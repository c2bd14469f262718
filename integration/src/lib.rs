//! The harness of the black-box tests: a private containerd, OCI bundles, raw ttrpc to a shim,
//! and the proof that nothing is left behind.
//!
//! Nothing here links the code under test: the built binaries are driven from outside, and every
//! test can be run against the peers (`containerd-shim-runc-v2`, runc, crun) to show that it tests
//! what it says. `HOLDFAST_TEST_PEER=runc` makes the containerd tests drive containerd's own shim.
//!
//! Waiting always has a deadline and a name; what a test starts it also ends, on failure too. A
//! harness fails by panicking: that is how a test says what went wrong.

pub mod bench;
pub mod bundle;
pub mod checks;
pub mod containerd;
pub mod ctr;
pub mod deadline;
pub mod driver;
pub mod engine;
pub mod events;
pub mod fault;
pub mod flow;
pub mod image;
pub mod journald;
pub mod killer;
pub mod leaks;
pub mod lone;
pub mod museum;
pub mod place;
pub mod pty;
pub mod runtime;
pub mod scratch;
pub mod shim;
pub mod sysctl;
pub mod tracing;
pub mod user;
pub mod vectors;

/// Says on the terminal, past cargo's capturing of output, why a test is not run.
pub fn skip(test: &str, why: &str) {
    use std::io::Write as _;
    // One write, so that lines of parallel tests do not mix.
    let line = format!("SKIPPED {test}: {why}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Makes one test per runtime out of a function taking `&Scratch`:
/// `on_runtimes!(exit_code: holdfast runc crun);`
#[macro_export]
macro_rules! on_runtimes {
    ($($name:ident: $($runtime:ident)+;)+) => { $(
        mod $name {
            $(
                #[test]
                fn $runtime() {
                    $crate::scratch::with(
                        stringify!($runtime),
                        concat!(stringify!($name), "::", stringify!($runtime)),
                        super::$name,
                    );
                }
            )+
        }
    )+ };
}

/// Makes one test per version of containerd out of a function taking `&Containerd`.
#[macro_export]
macro_rules! on_containerds {
    ($($name:ident;)+) => { $(
        mod $name {
            #[test]
            fn containerd_1_6() {
                $crate::containerd::with(
                    $crate::containerd::Version::V1_6,
                    concat!(stringify!($name), "::containerd_1_6"),
                    super::$name,
                );
            }
            #[test]
            fn containerd_2_1() {
                $crate::containerd::with(
                    $crate::containerd::Version::V2_1,
                    concat!(stringify!($name), "::containerd_2_1"),
                    super::$name,
                );
            }
        }
    )+ };
}
