//! Many checks of one expensive daemon: each is told apart in the result, none hides another.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use nix::mount::{MsFlags, mount};

use crate::deadline::{self, Finished};
use crate::scratch::text;
use crate::{leaks, place};

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

/// What docker and podman are both asked.
pub trait Engine {
    /// A path in the folder of the test.
    fn path(&self, name: &str) -> PathBuf;
    /// Its command line with these arguments, to its end.
    fn call(&self, args: &[&str]) -> Finished;
    /// A container that runs until it is removed.
    fn background(&self, name: &str, flags: &[&str]);
    /// Removes a container, running or not.
    fn remove(&self, name: &str);
}

/// Volumes of every propagation: what each side sees of what the other mounts later.
///
/// # Panics
/// When a side sees what it should not, or the other way round.
pub fn volumes_propagate_as_asked(engine: &impl Engine) {
    const KINDS: [&str; 6] = [
        "private", "rprivate", "slave", "rslave", "shared", "rshared",
    ];
    let volumes = engine.path("volumes");
    fs::create_dir(&volumes).expect("folder");
    let none = None::<&str>;
    let tmpfs = |at: &std::path::Path| {
        mount(Some("none"), at, Some("tmpfs"), MsFlags::empty(), none).expect("mount a tmpfs");
    };
    tmpfs(&volumes);
    mount(none, &volumes, none, MsFlags::MS_SHARED, none).expect("make it shared");
    let mut flags = Vec::new();
    for kind in KINDS {
        for inner in ["from-host", "from-container"] {
            fs::create_dir_all(volumes.join(kind).join(inner)).expect("folder");
        }
        let volume = text(&volumes.join(kind));
        flags.push(format!("--volume={volume}:/{kind}:{kind}"));
        flags.push(format!("--volume={volume}:/{kind}-ro:{kind},ro"));
    }
    let able = ["--cap-add=SYS_ADMIN", "--security-opt=seccomp=unconfined"];
    let flags: Vec<&str> = flags.iter().map(String::as_str).chain(able).collect();
    engine.background("volumes", &flags);
    for kind in KINDS {
        let seen_inside = !kind.contains("private");
        let seen_outside = kind.contains("shared");
        let point = volumes.join(kind).join("from-host");
        tmpfs(&point);
        fs::write(point.join("file"), "").expect("file");
        let script = format!(
            "mount -t tmpfs none /{kind}/from-container && touch /{kind}/from-container/file; \
             test -e /{kind}/from-host/file && echo seen; \
             touch /{kind}-ro/x 2>/dev/null && echo written; true"
        );
        let said = engine.call(&["exec", "volumes", "sh", "-c", &script]);
        let expected = if seen_inside { "seen\n" } else { "" };
        assert_eq!(said.ok(), expected, "{kind}: {said}");
        let file = volumes.join(kind).join("from-container/file");
        assert_eq!(file.exists(), seen_outside, "{kind}: {}", file.display());
    }
    engine.remove("volumes");
    leaks::unmount_under(&volumes);
}

/// A checkpoint where criu cannot make one: the user reads why, and the container runs on.
/// `words`: the command of the engine, with the container's name `point`.
///
/// # Panics
/// When the error does not tell, or the container is gone.
pub fn a_checkpoint_that_cannot_be(engine: &impl Engine, test: &str, words: &[&str]) {
    let Some(criu) = place::program("criu") else {
        return crate::skip(test, "criu is not installed");
    };
    let check = deadline::run(Command::new(criu).arg("check"), Duration::from_secs(30));
    if check.status.success() {
        return crate::skip(test, "criu works here; runtime_checkpoint.rs has that case");
    }
    engine.background("point", &[]);
    let said = engine.call(words);
    assert!(said.failed().contains("criu"), "{said}");
    engine.call(&["exec", "point", "true"]).ok();
    engine.remove("point");
}
