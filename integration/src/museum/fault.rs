//! A runtime that fails on purpose: a wrapper around runc or holdfast, found in its place.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::scratch::text;

/// How long [`Fault::Hang`] sleeps, in seconds: a number that no container of the museum uses, so
/// that the process can be recognised.
pub(super) const HANG: &str = "613";

/// What happens when the runtime is called for a verb.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    /// It never does anything.
    Hang,
    /// It does its work, but only after this time.
    Delay(Duration),
    /// It is killed as soon as this file is there and has something in it, or is a folder.
    Die(PathBuf),
}

impl Fault {
    /// The line the wrapper executes before it becomes the runtime.
    fn line(&self) -> String {
        match self {
            Self::Hang => format!("exec sleep {HANG}\n"),
            Self::Delay(time) => format!("sleep {}\n", time.as_secs_f64()),
            // $$ stays the pid when the wrapper becomes the runtime. Files of /proc and of cgroups
            // have no size, so reading decides; no program is started, for that would be too slow.
            Self::Die(path) => format!(
                "(until [ -d '{path}' ] || read line <'{path}' || [ ! -e /proc/$$ ]; do :; done; \
                 kill -9 $$) </dev/null >/dev/null 2>&1 &\n",
                path = text(path)
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
pub(super) fn order(orders: &Path, verb: &str, fault: &Fault) {
    fs::write(orders.join(verb), fault.line()).expect("order a fault");
}

/// Makes a verb work again.
pub(super) fn call_off(orders: &Path, verb: &str) {
    fs::remove_file(orders.join(verb)).expect("call a fault off");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;

    use crate::deadline;

    #[test]
    fn the_wrapper_obeys_for_the_ordered_verb_only() {
        let folder = tempfile::tempdir().unwrap();
        let wrapper = folder.path().join("wrapper");
        write_wrapper(&wrapper, Path::new("/bin/echo"), folder.path());
        let run = |words: &[&str]| {
            deadline::run(Command::new(&wrapper).args(words), Duration::from_secs(10))
        };
        assert_eq!(
            run(&["--log", "x", "create", "box"]).ok(),
            "--log x create box\n"
        );

        order(
            folder.path(),
            "create",
            &Fault::Delay(Duration::from_millis(300)),
        );
        assert!(run(&["create", "box"]).took >= Duration::from_millis(300));
        order(folder.path(), "create", &Fault::Hang);
        assert_eq!(run(&["delete", "create"]).ok(), "delete create\n");
        call_off(folder.path(), "create");
        assert_eq!(run(&["create"]).ok(), "create\n");
    }

    #[test]
    fn the_runtime_dies_when_the_file_has_something_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let wrapper = folder.path().join("wrapper");
        let sign = folder.path().join("sign");
        fs::write(&sign, "").unwrap();
        // The runtime gives the sign itself, and would go on for a minute.
        let script = format!("#!/bin/sh\necho now >{}\nexec sleep 60\n", sign.display());
        let runtime = folder.path().join("runtime");
        fs::write(&runtime, script).unwrap();
        fs::set_permissions(&runtime, Permissions::from_mode(0o755)).unwrap();
        write_wrapper(&wrapper, &runtime, folder.path());
        order(folder.path(), "create", &Fault::Die(sign));
        let died = deadline::run(
            Command::new(&wrapper).arg("create"),
            Duration::from_secs(10),
        );
        assert_eq!(died.status.signal(), Some(9), "{died}");
    }
}
