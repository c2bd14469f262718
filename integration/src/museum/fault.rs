//! A runtime that fails on purpose: a wrapper around runc or holdfast, found in its place.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use crate::scratch::text;

/// How long [`Fault::Hang`] sleeps, in seconds: a number that no container of the museum uses, so
/// that the process can be recognised.
pub(super) const HANG: &str = "613";

/// What happens when the runtime is called for a verb.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    /// It never does anything.
    Hang,
    /// It does its work, but only after this time.
    Delay(Duration),
    /// It is killed this long after it has begun.
    Die(Duration),
}

impl Fault {
    /// The line the wrapper executes before it becomes the runtime.
    fn line(self) -> String {
        match self {
            Self::Hang => format!("exec sleep {HANG}\n"),
            Self::Delay(time) => format!("sleep {}\n", time.as_secs_f64()),
            // $$ stays the pid when the wrapper becomes the runtime.
            Self::Die(time) => format!(
                "(sleep {}; kill -9 $$) </dev/null >/dev/null 2>&1 &\n",
                time.as_secs_f64()
            ),
        }
    }
}

/// Writes the wrapper of `program`, which obeys the files named after verbs in `orders`.
pub(super) fn write_wrapper(wrapper: &Path, program: &Path, orders: &Path) {
    let script = format!(
        "#!/bin/sh\n\
         for word; do\n\
         \tcase $word in create|start|exec|kill|delete|state|pause|resume|update)\n\
         \t\t[ ! -e '{orders}'/$word ] || . '{orders}'/$word\n\
         \t\tbreak\n\
         \tesac\n\
         done\n\
         exec {program} \"$@\"\n",
        orders = text(orders),
        program = text(program),
    );
    fs::write(wrapper, script).expect("write the wrapper");
    fs::set_permissions(wrapper, Permissions::from_mode(0o755)).expect("chmod the wrapper");
}

/// Makes a verb fail from now on.
pub(super) fn order(orders: &Path, verb: &str, fault: Fault) {
    fs::write(orders.join(verb), fault.line()).expect("order a fault");
}

/// Makes a verb work again.
pub(super) fn call_off(orders: &Path, verb: &str) {
    fs::remove_file(orders.join(verb)).expect("call a fault off");
}
