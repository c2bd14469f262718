//! A runtime that fails on purpose: a wrapper around runc or holdfast, found in its place.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::place;
use crate::scratch::text;

/// How long [`Fault::Hang`] sleeps, in seconds: a number that no container uses, so
/// that the process can be recognised.
pub const HANG: &str = "613";

/// What happens when the runtime is called for a verb.
#[derive(Debug, Clone)]
pub enum Fault {
    /// It says this in its log as runc does, and ends with 1.
    Fail(&'static str),
    /// It ends with 0 and has done nothing.
    Nothing,
    /// It is killed before it does anything.
    Killed,
    /// It never does anything.
    Hang,
    /// It does its work, but only after this time.
    Delay(Duration),
    /// It is killed as soon as this file is there and has something in it, or is a folder.
    Die(PathBuf),
    /// It tells the pid of a process of its own and ends with 0, but has done nothing else: no terminal comes.
    NoTerminal,
    /// It does its work, and leaves a process with its own standard streams; the pid is a line more in this file.
    Child(PathBuf),
}

impl Fault {
    /// The line the wrapper executes before it becomes the runtime.
    fn line(&self) -> String {
        match self {
            // The log is the word after --log.
            Self::Fail(said) => format!(
                "last=; for one; do [ \"$last\" != --log ] || log=$one; last=$one; done\n\
                 echo '{{\"level\":\"error\",\"msg\":\"{said}\"}}' >\"$log\"; exit 1\n"
            ),
            Self::Nothing => "exit 0\n".to_owned(),
            Self::Killed => "kill -9 $$\n".to_owned(),
            Self::Hang => format!("exec sleep {HANG}\n"),
            Self::Delay(time) => format!("sleep {}\n", time.as_secs_f64()),
            // $$ stays the pid when the wrapper becomes the runtime. Files of /proc and of cgroups
            // have no size, so reading decides; no program is started, for that would be too slow.
            Self::Die(path) => format!(
                "(until [ -d '{path}' ] || read line <'{path}' || [ ! -e /proc/$$ ]; do :; done; \
                 kill -9 $$) </dev/null >/dev/null 2>&1 &\n",
                path = text(path)
            ),
            // The pid file is the word after --pid-file.
            Self::NoTerminal => format!(
                "last=; for one; do [ \"$last\" != --pid-file ] || file=$one; last=$one; done\n\
                 sleep {HANG} </dev/null >/dev/null 2>&1 &\nprintf %s $! >\"$file\"; exit 0\n"
            ),
            Self::Child(path) => format!("sleep {HANG} &\necho $! >>'{}'\n", text(path)),
        }
    }
}

/// Writes the wrapper of a runtime (a program, with words before its own arguments), which obeys
/// the files named after verbs in `orders`.
///
/// # Panics
/// When it cannot be written.
pub fn write_wrapper<W: AsRef<OsStr>>(wrapper: &Path, runtime: &[W], orders: &Path) {
    let quoted = |word: &W| {
        let word = word.as_ref().to_str().expect("readable words");
        format!("'{}'", word.replace('\'', "'\\''"))
    };
    let program: Vec<String> = runtime.iter().map(quoted).collect();
    let script = format!(
        "#!/bin/sh\n\
         for word; do\n\
         \tcase $word in create|start|exec|kill|delete|state|pause|resume|update|checkpoint|restore)\n\
         \t\t[ ! -e '{orders}'/$word ] || . '{orders}'/$word\n\
         \t\tbreak\n\
         \tesac\n\
         done\n\
         exec {program} \"$@\"\n",
        orders = text(orders),
        program = program.join(" "),
    );
    place::write_program(wrapper, &script);
}

/// Makes a verb fail from now on.
///
/// # Panics
/// When the order cannot be written.
pub fn order(orders: &Path, verb: &str, fault: &Fault) {
    fs::write(orders.join(verb), fault.line()).expect("order a fault");
}

/// Makes a verb work again.
///
/// # Panics
/// When it was not ordered to fail.
pub fn call_off(orders: &Path, verb: &str) {
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
        write_wrapper(&wrapper, &["/bin/echo"], folder.path());
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
        order(folder.path(), "create", &Fault::Nothing);
        assert_eq!(run(&["create", "box"]).ok(), "");
        order(folder.path(), "create", &Fault::Fail("no such luck"));
        let log = folder.path().join("log");
        let failed = run(&["--log", text(&log).as_str(), "create", "box"]);
        assert_eq!(failed.code(), 1, "{failed}");
        let said = fs::read_to_string(log).unwrap();
        assert!(said.contains("\"msg\":\"no such luck\""), "{said}");
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
        place::write_program(&runtime, &script);
        write_wrapper(&wrapper, &[&runtime], folder.path());
        order(folder.path(), "create", &Fault::Die(sign));
        let died = deadline::run(
            Command::new(&wrapper).arg("create"),
            Duration::from_secs(10),
        );
        assert_eq!(died.status.signal(), Some(9), "{died}");
    }
}
