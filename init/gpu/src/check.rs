//! `holdfast gpu check`: what a container that asks for a GPU would fail with on this node, in the order in which a
//! person would fix it. What comes later often fails only because of what comes earlier.
//!
//! | step | question |
//! |---|---|
//! | `config` | can `config.toml` be used? |
//! | `module` | is the kernel module loaded? |
//! | `nodes` | are the device nodes there, with the numbers the kernel has now? |
//! | `libraries` | are the driver's libraries there, and of the module's version? |
//! | `nvml` | does the driver answer, and do all GPUs work? |
//! | `cli`, `ldconfig` | is `nvidia-container-cli` there, and what it calls? (legacy mode) |
//! | `hooks` | is the program there that CDI edits call in a container? (CDI modes) |
//! | `cdi` | are the CDI files usable, and their device numbers still right? |
//! | `persistence` | is `nvidia-persistenced` running? |

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_cdi::{Registry, host_node};
use holdfast_record::chain;
use serde::Serialize;

use crate::config::{self, Config};
use crate::driver::Driver;
use crate::legacy::Program;
use crate::modify::hook_tool;
use crate::nvml::{self, Entry};
use crate::paths::is_executable;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, and could be better.
    Warning,
    /// Containers that ask for a GPU fail.
    Failure,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The step.
    pub step: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub text: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    /// All is well.
    #[must_use]
    pub fn ok(step: &'static str, text: impl Into<String>) -> Self {
        Self {
            step,
            level: Level::Ok,
            text: text.into(),
            advice: None,
        }
    }

    /// Something is not.
    #[must_use]
    pub fn bad(
        step: &'static str,
        level: Level,
        text: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            step,
            level,
            text: text.into(),
            advice: Some(advice.into()),
        }
    }
}

/// What is looked at.
#[derive(Clone, Debug)]
pub struct Node {
    /// The root of the node's files: `/`, or a test's.
    pub root: PathBuf,
    /// Where programs are looked for.
    pub path: OsString,
    /// The mode that is asked for instead of the configuration's.
    pub mode: Option<String>,
    /// How long NVML may take.
    pub deadline: Option<Duration>,
}

/// Which parts a mode needs.
#[derive(Clone, Copy)]
struct Needs {
    cli: bool,
    files: bool,
    nvml: bool,
}

/// Asks everything, in order.
#[must_use]
pub fn check(node: &Node, location: &config::Location) -> Vec<Finding> {
    let mut out = Vec::new();
    let config = match location.load_if_there() {
        Ok(config) => {
            let text = if location.path.exists() {
                format!("{} can be used", location.path.display())
            } else {
                format!(
                    "{} does not exist: the toolkit's defaults hold",
                    location.path.display()
                )
            };
            out.push(Finding::ok("config", text));
            config
        }
        Err(error) => {
            out.push(Finding::bad(
                "config",
                Level::Failure,
                chain(&error),
                "correct the file; until then the rest is checked with the defaults",
            ));
            Config::defaults()
        }
    };
    let mode = node
        .mode
        .clone()
        .unwrap_or_else(|| config.runtime.mode.clone());
    let needs = match mode.as_str() {
        "legacy" => Needs {
            cli: true,
            files: false,
            nvml: false,
        },
        "cdi" => Needs {
            cli: false,
            files: true,
            nvml: false,
        },
        "auto" | "jit-cdi" => Needs {
            cli: false,
            files: false,
            nvml: true,
        },
        "csv" => {
            out.push(Finding::bad(
                "config",
                Level::Failure,
                "nvidia-container-runtime.mode is csv, which holdfast does not support",
                "set it to auto, cdi, jit-cdi or legacy",
            ));
            return out;
        }
        other => {
            out.push(Finding::bad(
                "config",
                Level::Failure,
                format!("nvidia-container-runtime.mode {other:?} is no mode"),
                "set it to auto, cdi, jit-cdi or legacy",
            ));
            return out;
        }
    };
    let module = module(node, &mut out);
    nodes(node, &config, &mut out);
    libraries(&config, module.as_deref(), needs, &mut out);
    nvml_answers(node, &config, needs, &mut out);
    programs(node, &config, needs, &mut out);
    cdi_files(&config, needs, &mut out);
    persistence(node, &mut out);
    out
}

/// The kernel module's version.
fn module(node: &Node, out: &mut Vec<Finding>) -> Option<String> {
    let path = node.root.join("proc/driver/nvidia/version");
    let Ok(text) = fs::read_to_string(&path) else {
        out.push(Finding::bad(
            "module",
            Level::Failure,
            "the kernel module nvidia is not loaded (/proc/driver/nvidia/version does not exist)",
            "modprobe nvidia; if that fails, install the driver for this kernel and read dmesg",
        ));
        return None;
    };
    // "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue …": the first word that is a version.
    let version = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .find(|word| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit()))
        .map(str::to_owned);
    let said = version.as_deref().unwrap_or("of an unknown version");
    out.push(Finding::ok(
        "module",
        format!("the kernel module is loaded: {said}"),
    ));
    version
}

fn nodes(node: &Node, config: &Config, out: &mut Vec<Finding>) {
    let dev = Driver::new(&config.cli.root, None);
    let majors = majors(&node.root);
    let mut wanted = vec![
        ("/dev/nvidiactl".to_owned(), "nvidia"),
        ("/dev/nvidia-uvm".to_owned(), "nvidia-uvm"),
    ];
    let gpus = crate::nodes::Host::below(&node.root).gpus();
    wanted.extend(
        gpus.iter()
            .map(|gpu| (format!("/dev/nvidia{}", gpu.minor), "nvidia")),
    );
    let before = out.len();
    for (path, name) in &wanted {
        let host = dev.below(path);
        let host = if config.cli.root.is_empty() || config.cli.root == "/" {
            node.root.join(path.trim_start_matches('/'))
        } else {
            host
        };
        match host_node(&host) {
            Err(error) => out.push(Finding::bad(
                "nodes",
                Level::Failure,
                format!("{}: {}", host.display(), chain(&error)),
                "nvidia-modprobe -c0 -u makes the nodes; nvidia-persistenced keeps them",
            )),
            Ok(found) => {
                // The module registers as "nvidia-frontend" in older drivers.
                let major = majors.get(*name).or_else(|| majors.get("nvidia-frontend"));
                if let Some(major) = major.filter(|major| **major != found.major) {
                    out.push(Finding::bad(
                        "nodes",
                        Level::Failure,
                        format!(
                            "{} has the major number {}, the kernel has {major}",
                            host.display(),
                            found.major
                        ),
                        "delete the node and run nvidia-modprobe",
                    ));
                }
            }
        }
    }
    if out.len() == before {
        let text = format!(
            "{} device nodes are there, {} of GPUs",
            wanted.len(),
            gpus.len()
        );
        out.push(Finding::ok("nodes", text));
    }
}

/// Major numbers of character devices by the name of their driver.
fn majors(root: &Path) -> HashMap<String, i64> {
    let text = fs::read_to_string(root.join("proc/devices")).unwrap_or_default();
    text.lines()
        .take_while(|line| !line.starts_with("Block"))
        .filter_map(|line| {
            let (major, name) = line.trim().split_once(' ')?;
            Some((name.to_owned(), major.parse().ok()?))
        })
        .collect()
}

fn libraries(config: &Config, module: Option<&str>, needs: Needs, out: &mut Vec<Finding>) {
    let level = if needs.files {
        Level::Warning
    } else {
        Level::Failure
    };
    let driver = Driver::new(&config.cli.root, None);
    match (driver.version(), module) {
        (Err(crate::driver::Error::NoLibraries { root, version }), _) => {
            let text = format!(
                "neither libcuda.so.{version} nor libnvidia-ml.so.{version} is below {}",
                root.display()
            );
            let advice = "install the driver's libraries, or correct nvidia-container-cli.root";
            out.push(Finding::bad("libraries", level, text, advice));
        }
        (Ok(version), Some(module)) if version != module => out.push(Finding::bad(
            "libraries",
            level,
            format!("the libraries are of version {version}, the kernel module of {module}"),
            "after an update of the driver: unload the module and load it again, or reboot",
        )),
        (Ok(version), _) => {
            let dirs: Vec<_> = driver
                .library_dirs()
                .unwrap_or_default()
                .iter()
                .map(|dir| dir.display().to_string())
                .collect();
            let text = format!(
                "version {version} in {}, below {}",
                dirs.join(", "),
                driver.root().display()
            );
            out.push(Finding::ok("libraries", text));
        }
    }
}

fn nvml_answers(node: &Node, config: &Config, needs: Needs, out: &mut Vec<Finding>) {
    let level = if needs.nvml {
        Level::Failure
    } else {
        Level::Warning
    };
    let driver = Driver::new(&config.cli.root, None);
    let library = driver.libraries(nvml::LIBRARY).into_iter().next();
    let library = library.unwrap_or_else(|| nvml::LIBRARY.into());
    let inventory = match nvml::ask(&library, node.deadline.unwrap_or(config.own.deadline)) {
        Ok(inventory) => inventory,
        Err(error) => {
            let advice = match &error {
                nvml::Error::Failed { failure, .. } => failure.advice(),
                nvml::Error::Stuck { .. } => {
                    "a GPU may have fallen off the bus: dmesg, then a reset or a reboot"
                }
                nvml::Error::Start(_) | nvml::Error::Ended { .. } => {
                    "holdfast why --last and dmesg say more"
                }
            };
            let text = match &error {
                nvml::Error::Failed { library, failure } => {
                    format!("{failure}, with {}", library.display())
                }
                nvml::Error::Stuck { .. } | nvml::Error::Start(_) | nvml::Error::Ended { .. } => {
                    chain(&error)
                }
            };
            out.push(Finding::bad("nvml", level, text, advice));
            return;
        }
    };
    for entry in &inventory.gpus {
        if let Entry::Broken { index, failure } = entry {
            let text = format!("GPU {index} does not work: {failure}");
            out.push(Finding::bad("nvml", Level::Failure, text, failure.advice()));
        }
    }
    let working: Vec<_> = inventory
        .working()
        .map(|gpu| {
            let parts = gpu.instances.len();
            let mig = if gpu.mig {
                format!(", {parts} MIG devices")
            } else {
                String::new()
            };
            format!("{} {} ({}{mig})", gpu.index, gpu.name, gpu.uuid)
        })
        .collect();
    if working.is_empty() {
        let advice = "lspci -d 10de: shows whether the GPUs are there; dmesg why the driver does not take them";
        out.push(Finding::bad("nvml", level, "no GPU works", advice));
    } else {
        out.push(Finding::ok(
            "nvml",
            format!("{} GPUs work: {}", working.len(), working.join("; ")),
        ));
    }
}

fn programs(node: &Node, config: &Config, needs: Needs, out: &mut Vec<Finding>) {
    let level = if needs.cli {
        Level::Failure
    } else {
        Level::Warning
    };
    if needs.cli {
        match Program::find(config, Some(&node.path)) {
            Ok(program) if is_executable(&program.path) => {
                out.push(Finding::ok("cli", program.path.display().to_string()));
            }
            Ok(program) => out.push(Finding::bad(
                "cli",
                level,
                format!("{} is no program", program.path.display()),
                "correct nvidia-container-cli.path, or install libnvidia-container-tools",
            )),
            Err(error) => out.push(Finding::bad(
                "cli",
                level,
                error.to_string(),
                "install libnvidia-container-tools, or set nvidia-container-cli.path",
            )),
        }
        if let Some(path) = config.cli.ldconfig.strip_prefix('@') {
            let real = path.strip_suffix(".real").unwrap_or(path);
            let there = [format!("{real}.real"), real.to_owned()]
                .iter()
                .any(|path| is_executable(Path::new(path)));
            if there {
                out.push(Finding::ok("ldconfig", path));
            } else {
                let text = format!("{path} does not exist");
                out.push(Finding::bad(
                    "ldconfig",
                    level,
                    text,
                    "correct nvidia-container-cli.ldconfig",
                ));
            }
        }
        return;
    }
    let tool = hook_tool(config, Some(&node.path), &[]);
    if is_executable(&tool.path) {
        out.push(Finding::ok("hooks", tool.path.display().to_string()));
    } else {
        let level = if needs.nvml && !hooks_are_off(config) {
            Level::Failure
        } else {
            Level::Warning
        };
        out.push(Finding::bad(
            "hooks",
            level,
            format!(
                "{} does not exist; the hooks of CDI edits are its calls",
                tool.path.display()
            ),
            "install nvidia-container-toolkit-base, or set nvidia-ctk.path in config.toml",
        ));
    }
}

fn hooks_are_off(config: &Config) -> bool {
    let disabled = &config.runtime.modes.jit_cdi.disable_hooks;
    disabled.iter().any(|hook| hook == "all")
}

fn cdi_files(config: &Config, needs: Needs, out: &mut Vec<Finding>) {
    let level = if needs.files {
        Level::Failure
    } else {
        Level::Warning
    };
    let dirs = &config.runtime.modes.cdi.spec_dirs;
    let registry = Registry::scan(dirs);
    for problem in registry.problems() {
        let advice = "generate it anew (nvidia-ctk cdi generate), or delete it";
        out.push(Finding::bad("cdi", level, problem.to_string(), advice));
    }
    let mut stale = false;
    for (path, spec) in registry.files() {
        let edits = spec
            .devices
            .iter()
            .map(|device| &device.edits)
            .chain([&spec.edits]);
        for node in edits.flat_map(|edits| &edits.device_nodes) {
            let host = if node.host_path.is_empty() {
                &node.path
            } else {
                &node.host_path
            };
            let text = match host_node(Path::new(host)) {
                Ok(found)
                    if node.major == 0
                        || (found.major, found.minor) == (node.major, node.minor) =>
                {
                    continue;
                }
                Ok(found) => format!(
                    "{}: {host} is {}:{} in it and {}:{} on the node",
                    path.display(),
                    node.major,
                    node.minor,
                    found.major,
                    found.minor
                ),
                Err(error) => format!("{}: {host}: {}", path.display(), chain(&error)),
            };
            stale = true;
            let advice = "the file is older than the driver: nvidia-ctk cdi generate";
            out.push(Finding::bad("cdi", level, text, advice));
        }
    }
    let devices = registry.devices();
    if devices.is_empty() && needs.files {
        let text = format!("no CDI device in {}", dirs.join(", "));
        out.push(Finding::bad(
            "cdi",
            level,
            text,
            "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml",
        ));
    } else if registry.problems().is_empty() && !stale {
        out.push(Finding::ok(
            "cdi",
            format!("{} devices in {}", devices.len(), dirs.join(", ")),
        ));
    }
}

fn persistence(node: &Node, out: &mut Vec<Finding>) {
    let socket = node.root.join("run/nvidia-persistenced/socket");
    if fs::symlink_metadata(&socket).is_ok() {
        out.push(Finding::ok("persistence", "nvidia-persistenced is running"));
    } else {
        out.push(Finding::bad(
            "persistence",
            Level::Warning,
            "nvidia-persistenced is not running: the first use of a GPU can take longer than programs wait for it",
            "systemctl enable --now nvidia-persistenced",
        ));
    }
}

#[cfg(test)]
#[path = "check/tests.rs"]
mod tests;
