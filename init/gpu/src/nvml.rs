//! What GPUs the driver has, asked by a process of its own.
//!
//! `holdfast-nvml` (crate `init/nvml`) is embedded here and started from memory: it loads the driver's library, prints
//! what it finds and ends. It has a deadline; a helper that hangs in the driver is killed and not waited for.

mod process;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

pub use process::Stuck;

/// The library, by the name under which every driver has it.
pub const LIBRARY: &str = "libnvidia-ml.so.1";

/// The GPUs of the node.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Inventory {
    /// The driver's version.
    pub driver: Option<String>,
    /// In the order of their index.
    pub gpus: Vec<Entry>,
}

/// A place in the list of GPUs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Entry {
    /// A GPU that works.
    Gpu(Gpu),
    /// One that NVML cannot tell about.
    Broken {
        /// Its index.
        index: u32,
        /// Why not.
        failure: Failure,
    },
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Gpu {
    /// From 0.
    pub index: u32,
    /// `GPU-…`.
    pub uuid: String,
    /// Its product name.
    pub name: String,
    /// The minor number of its device node.
    pub minor: u32,
    /// Its PCI address as NVML writes it: eight digits of domain, upper case.
    pub bus: String,
    /// Whether it is divided (MIG).
    pub mig: bool,
    /// Its parts.
    pub instances: Vec<Instance>,
}

/// A part of a divided GPU.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Instance {
    /// From 0, within its GPU.
    pub index: u32,
    /// `MIG-…`.
    pub uuid: String,
    /// GPU instance.
    pub gi: u32,
    /// Compute instance.
    pub ci: u32,
}

/// What a function of NVML answered.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, thiserror::Error)]
#[error("NVML, {step}: {text} (code {code})")]
pub struct Failure {
    /// The function, in our words.
    pub step: String,
    /// NVML's code.
    pub code: i32,
    /// NVML's words.
    pub text: String,
}

impl Failure {
    /// What to do about it.
    #[must_use]
    pub fn advice(&self) -> &'static str {
        match (self.step.as_str(), self.code) {
            ("load", _) => {
                "the driver's libraries are not installed, or nvidia-container-cli.root in config.toml is not where they are"
            }
            (_, 4) => "the user of the runtime may not open the device nodes",
            (_, 9) => "load the driver's kernel module: modprobe nvidia",
            (_, 18) => {
                "the kernel module is of another version than the libraries, usually after an update: reload it or reboot"
            }
            (_, 15) => {
                "the GPU fell off the bus: see dmesg for Xid 79, drain the node and reset or replace the GPU"
            }
            (_, _) => "nvidia-smi on the node and dmesg say more",
        }
    }
}

/// Why there is no inventory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// NVML says why.
    #[error("{failure}, with {}: {}", .library.display(), .failure.advice())]
    Failed {
        /// The library that was loaded or could not be.
        library: PathBuf,
        /// NVML's answer.
        failure: Failure,
    },
    /// The helper did not answer in time.
    #[error(
        "{stuck}: the driver does not answer. dmesg shows why; a GPU that fell off the bus needs a reboot"
    )]
    Stuck {
        /// Which process, in which state.
        stuck: Stuck,
    },
    /// The helper cannot be started.
    #[error("the helper that asks NVML cannot be started")]
    Start(#[source] std::io::Error),
    /// The helper ended without an answer.
    #[error("the helper that asks NVML ended without an answer ({ending}){}", said(.stderr))]
    Ended {
        /// How it ended.
        ending: String,
        /// What it said.
        stderr: String,
    },
}

fn said(stderr: &str) -> String {
    if stderr.is_empty() {
        String::new()
    } else {
        format!(": {stderr}")
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Inventory(Inventory),
    Failure { failure: Failure },
}

/// Asks the library at `library` what GPUs there are.
///
/// # Errors
/// See [`Error`].
pub fn ask(library: &Path, deadline: Duration) -> Result<Inventory, Error> {
    let output = process::run(library, deadline)?;
    match serde_json::from_slice(&output.stdout) {
        Ok(Answer::Inventory(inventory)) => Ok(inventory),
        Ok(Answer::Failure { failure }) => Err(Error::Failed {
            library: library.to_owned(),
            failure,
        }),
        Err(_) => Err(Error::Ended {
            ending: output.ending,
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        }),
    }
}

impl Inventory {
    /// The GPUs that work.
    pub fn working(&self) -> impl Iterator<Item = &Gpu> {
        self.gpus.iter().filter_map(|entry| match entry {
            Entry::Gpu(gpu) => Some(gpu),
            Entry::Broken { .. } => None,
        })
    }

    /// Whether one of them is part of a system on a chip (Tegra), by its name.
    #[must_use]
    pub fn has_integrated(&self) -> bool {
        self.working()
            .any(|gpu| gpu.name.contains("(nvgpu)") || gpu.name.contains("NVIDIA Thor"))
    }
}

impl Gpu {
    /// Its PCI address as sysfs writes it: four digits of domain unless it needs more, lower case.
    #[must_use]
    pub fn sysfs_address(&self) -> String {
        let address = self.bus.to_lowercase();
        let short = address.strip_prefix("0000").filter(|rest| {
            rest.get(4..5) == Some(":") && rest.bytes().take(4).all(|b| b.is_ascii_hexdigit())
        });
        short.unwrap_or(&address).to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let text = r#"{"driver":"550.1","gpus":[
            {"index":0,"uuid":"GPU-1","name":"X","minor":3,"bus":"00000000:0F:00.0","mig":true,
             "instances":[{"index":1,"uuid":"MIG-1","gi":2,"ci":0}]},
            {"index":1,"failure":{"step":"uuid","code":15,"text":"GPU is lost"}}]}"#;
        let Ok(Answer::Inventory(read)) = serde_json::from_str(text) else {
            panic!("not read");
        };
        assert_eq!(read.gpus.len(), 2);
        let gpu = read.working().next().unwrap();
        assert_eq!(gpu.sysfs_address(), "0000:0f:00.0");
        assert_eq!(gpu.instances[0].gi, 2);
        assert_eq!(read.working().count(), 1);
    }

    #[test]
    fn a_library_that_is_not_there() {
        let error = ask(
            Path::new("/nonexistent/libnvidia-ml.so.1"),
            Duration::from_secs(60),
        )
        .unwrap_err();
        let Error::Failed { failure, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(failure.step, "load");
        let text = error.to_string();
        assert!(text.contains("cannot open shared object file"), "{text}");
        assert!(text.contains("nvidia-container-cli.root"), "{text}");
    }
}
