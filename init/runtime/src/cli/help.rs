//! What `--help` and `--version` print.

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
