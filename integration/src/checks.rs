//! Many checks of one expensive daemon: each is told apart in the result, none hides another.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::thread;

/// A named check.
pub type Check<T> = (&'static str, fn(&T));

/// Makes the list that [`run`] wants out of functions: `checks![stop, pause]`.
#[macro_export]
macro_rules! checks {
    ($($name:ident),+ $(,)?) => { &[$((stringify!($name), $name)),+] };
}

/// Runs every check, `threads` at a time.
///
/// # Panics
/// After the last, naming those that failed; what each said is above in the output.
#[track_caller]
pub fn run<T: Sync>(of: &T, checks: &[Check<T>], threads: usize) {
    let queue = Mutex::new(checks.iter());
    let failed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().expect("queue").next();
                    let Some((name, check)) = next else { return };
                    // The checks share nothing that a failed one could leave half changed.
                    if catch_unwind(AssertUnwindSafe(|| check(of))).is_err() {
                        failed.lock().expect("failures").push(*name);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("failures");
    assert!(failed.is_empty(), "failed: {}", failed.join(", "));
}
