//! Legacy mode: the command line of `nvidia-container-cli`.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use crate::capabilities::Capability;
use crate::config::Config;
use crate::paths::{find_program, search_path};
use crate::request::Request;

/// The program's name.
pub const PROGRAM: &str = "nvidia-container-cli";

/// It is nowhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{PROGRAM} is not installed: looked in {} (nvidia-container-cli.path in config.toml names another place)", .0.display())]
pub struct NotFound(pub OsString);

/// The program, and the search path that it inherits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its path. As configured it may be relative; then it is so for the kernel too.
    pub path: PathBuf,
    /// The `PATH` in which it was found; `None` when the configuration names it.
    pub search_path: Option<OsString>,
}

impl Program {
    /// The configured program, else the one found in `path` and the usual directories, below the driver root first.
    ///
    /// # Errors
    /// [`NotFound`].
    pub fn find(config: &Config, path: Option<&OsStr>) -> Result<Self, NotFound> {
        if !config.cli.path.is_empty() {
            return Ok(Self {
                path: config.cli.path.clone().into(),
                search_path: None,
            });
        }
        let dirs = search_path(path, &config.cli.root);
        let joined = dirs.join(OsStr::new(":"));
        match find_program(PROGRAM, &dirs) {
            Some(path) => Ok(Self {
                path,
                search_path: Some(joined),
            }),
            None => Err(NotFound(joined)),
        }
    }
}

/// What differs between the hook and the stage.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The hook's `-debug`: the program's log goes to standard error.
    pub debug: bool,
    /// Do not let the program write device rules, whatever the configuration says.
    pub no_cgroups: bool,
    /// The container's init process, as the program is to read it.
    pub pid: u64,
    /// Absolute path of the container's root.
    pub rootfs: &'a Path,
}

/// The command line, the program's path first.
#[must_use]
pub fn arguments(
    program: &Path,
    config: &Config,
    request: &Request,
    call: &Call<'_>,
) -> Vec<OsString> {
    let cli = &config.cli;
    let mut line = Line(vec![program.into()]);
    line.value("root", &cli.root);
    line.flag(cli.load_kmods, "load-kmods");
    line.flag(
        config.features.disable_imex_channel_creation,
        "no-create-imex-channels",
    );
    line.flag(cli.no_pivot, "no-pivot");
    line.value(
        "debug",
        if call.debug {
            "/dev/stderr"
        } else {
            &cli.debug
        },
    );
    line.value("ldcache", &cli.ldcache);
    line.value("user", &cli.user);
    line.word("configure");
    line.value("cuda-compat-mode", cuda_compat_mode(config));
    line.value("ldconfig", &ldconfig(&cli.ldconfig));
    line.flag(cli.no_cgroups || call.no_cgroups, "no-cgroups");
    line.value("device", &request.devices.names.join(","));
    line.value("mig-config", &request.mig_config);
    line.value("mig-monitor", &request.mig_monitor);
    line.value("imex-channel", &request.imex_channels.join(","));
    for one in request.capabilities.iter().map(Capability::name) {
        line.flag(true, one);
    }
    for one in &request.requirements.0 {
        // Also an empty one, unlike the options above.
        line.word(&format!("--require={one}"));
    }
    line.word(&format!("--pid={}", call.pid));
    line.0.push(call.rootfs.into());
    line.0
}

struct Line(Vec<OsString>);

impl Line {
    fn word(&mut self, word: &str) {
        self.0.push(word.into());
    }

    fn flag(&mut self, on: bool, name: &str) {
        if on {
            self.word(&format!("--{name}"));
        }
    }

    fn value(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.word(&format!("--{name}={value}"));
        }
    }
}

/// Empty: the option is left out.
fn cuda_compat_mode(config: &Config) -> &'static str {
    match config.runtime.modes.legacy.cuda_compat_mode.as_str() {
        "ldconfig" => "ldconfig",
        "mount" => "mount",
        "disabled" | "hook" => "disabled",
        _ if config.features.allow_cuda_compat_libs_from_container => "",
        _ => "disabled",
    }
}

/// A path of the host (`@` in front) with or without `.real`, whichever exists; Debian's `ldconfig` is a wrapper around
/// `ldconfig.real`, which the program cannot run.
fn ldconfig(configured: &str) -> String {
    let Some(path) = configured.strip_prefix('@') else {
        return configured.to_owned();
    };
    let path = path.strip_suffix(".real").unwrap_or(path);
    let real = format!("{path}.real");
    if Path::new(&real).exists() {
        format!("@{real}")
    } else {
        format!("@{path}")
    }
}
