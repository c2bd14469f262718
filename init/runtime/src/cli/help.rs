//! What `--help` and `--version` print.

use std::ffi::OsString;

use lexopt::Parser;

/// Version of the runtime specification that is implemented.
pub(super) const SPEC: &str = crate::features::OCI_VERSION_MAX;

/// The text of `--version`; containerd and docker read the first word and these labels.
pub(super) fn version() -> String {
    format!(
        "holdfast version {}\nspec: {SPEC}\nlibseccomp: {}\ninit: {} bytes",
        env!("CARGO_PKG_VERSION"),
        holdfast_seccomp::library_version(),
        crate::image::size(),
    )
}

/// The text of `--help`.
pub(super) const HELP: &str = "\
holdfast - OCI runtime

usage: holdfast [global options] COMMAND [options] [arguments]

containers
  create  [--bundle DIR] [--console-socket S] [--pidfd-socket S] [--pid-file F]
          [--no-pivot] [--no-new-keyring] [--preserve-fds N] ID
  start   ID
  run     as create, and [--detach] [--keep] ID
  exec    [--process F | --cwd DIR --env K=V --user UID[:GID] --tty --cap CAP ...]
          [--detach] [--console-socket S] [--pidfd-socket S] [--pid-file F]
          [--preserve-fds N] [--ignore-paused] [--cgroup [CONTROLLER,...:]PATH]... ID [COMMAND ARG...]
  kill    [--all] ID [SIGNAL]
  delete  [--force] ID
  pause   ID
  resume  ID
  update  [--resources FILE|-] [--cpu-share N, --memory SIZE, ... as runc] ID
  checkpoint  [--image-path DIR] [--work-path DIR] [--leave-running] [--pre-dump]
              [--parent-path DIR] [--tcp-established, ... as runc] ID
  restore     [--bundle DIR] [--image-path DIR] [--work-path DIR] [--detach]
              [--pid-file F] [--console-socket S] [--tcp-established, ...] ID

shims
  upgrade [--all | ID|PID...] [--namespace NAME] [--program FILE]
                                                      to the installed version; their
                                                      containers do not notice

questions
  state   ID
  list    [--format table|json] [--quiet]
  events  [--stats | --interval TIME] ID              what it uses, and its OOM kills
  ps      [--format table|json] ID [PS-OPTION...]
  why     [ID|NAME|POD|PID] [--last[=N]] [--since TIME] [--namespace NAME] [--node] [--json]
                                                      why something ended
  shims   [--json]                                    the shims of this node
  check   [--json]                                    what is wrong with this node
  spec    [--bundle DIR] [--rootless]                 print a template of config.json
  features                                            what this runtime can do, as JSON
  gpu plan  [--bundle DIR] [--json]                   what a container would get
  gpu check [--json]                                  what would fail on this node, and why

global options
  --root DIR            state of containers (default /run/holdfast)
  --log FILE            where errors and warnings go beside standard error
  --log-format FORMAT   text or json
  --systemd-cgroup      the systemd cgroup driver
  --criu PROGRAM        criu, for checkpoint and restore (default: criu in PATH)
  --debug               more in the log
  --version, --help
";

/// Whether the next word asks for help. Only the next: behind an ID of exec it is the container's.
pub(super) fn is_next(parser: &mut Parser) -> bool {
    let next = parser
        .try_raw_args()
        .and_then(|args| args.peek().map(OsString::from));
    next.is_some_and(|word| word == "--help" || word == "-h")
}

/// The part of [`HELP`] that is about a command, or none when there is no such command.
pub(super) fn of(command: &str) -> Option<String> {
    if !command.starts_with(|first: char| first.is_ascii_lowercase()) {
        return None;
    }
    let mut lines = String::new();
    let mut inside = false;
    for line in HELP.lines() {
        let entry = line.strip_prefix("  ");
        // What goes on on the next line stands further to the right.
        if !entry.is_some_and(|rest| rest.starts_with(' ')) {
            let rest = entry.and_then(|entry| entry.strip_prefix(command));
            inside = rest.is_some_and(|rest| rest.starts_with(' ') || rest.is_empty());
        }
        if inside {
            lines += "\n";
            lines += line;
        }
    }
    if lines.is_empty() {
        return None;
    }
    Some(format!(
        "usage: holdfast [global options] COMMAND [options] [arguments]\n{lines}\n\n\
         All commands and the global options: holdfast --help. More: holdfast(8)."
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_s_help_is_its_own_lines() {
        let create = of("create").unwrap();
        assert!(create.contains("  create  [--bundle DIR]") && create.contains("--preserve-fds"));
        assert!(!create.contains("start") && !create.contains("containers"));
        let gpu = of("gpu").unwrap();
        assert!(gpu.contains("gpu plan") && gpu.contains("gpu check"));
        assert!(!of("gpu plan").unwrap().contains("gpu check"));
        let shims = of("shims").unwrap();
        assert!(shims.contains("shims   [--json]") && !shims.contains("upgrade"));
    }

    #[test]
    fn what_is_no_command_has_none() {
        for word in ["", "cre", "nothing", "global", "--root", "usage:"] {
            assert_eq!(of(word), None, "{word}");
        }
    }
}
