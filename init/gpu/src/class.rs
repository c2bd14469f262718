//! What the words of `nvidia-container-cli` mean, and what a person does about it.
//!
//! The CLI ends with code 1 whatever went wrong; its one line on standard error is all there is to tell failures apart:
//! `nvidia-container-cli: CLASS error: DETAIL`.

use std::fmt;

/// A kind of failure that has its own remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The kernel module is not loaded.
    DriverNotLoaded,
    /// Kernel module and libraries are of different versions.
    VersionMismatch,
    /// NVML was refused.
    InsufficientPermissions,
    /// NVML failed without saying more.
    NvmlUnknown,
    /// A library of the driver is missing.
    LibraryNotFound,
    /// The driver took longer than the CLI waits.
    RpcTimedOut,
    /// `NVIDIA_REQUIRE_*` is not met.
    RequirementUnmet,
    /// `NVIDIA_REQUIRE_*` cannot be read.
    RequirementInvalid,
    /// There is no such GPU.
    UnknownDevice,
    /// MIG may not be configured so.
    Mig,
    /// `ldconfig` failed.
    Ldconfig,
    /// The cgroup's device rules could not be changed.
    DeviceRules,
    /// The image has a file where the driver's is to be.
    FileExists,
    /// CLI and Holdfast are of different times.
    UnknownOption,
    /// The root or the pid is of no use.
    Input,
    /// Permissions of the CLI itself.
    Permission,
    /// A mount failed.
    Mount,
    /// Something else.
    Other,
}

impl Class {
    /// The class of a failure, by what the CLI said. The last line that it signed counts.
    #[must_use]
    pub fn of(stderr: &str) -> Self {
        let signed = stderr
            .lines()
            .rev()
            .find_map(|line| line.trim().strip_prefix("nvidia-container-cli"));
        let Some(said) = signed else {
            return Self::Other;
        };
        let said = said
            .trim_start_matches(" configure")
            .trim_start_matches(':')
            .trim_start();
        if said.starts_with("unrecognized option") || said.starts_with("unknown option") {
            return Self::UnknownOption;
        }
        let (kind, detail) = said.split_once(" error: ").unwrap_or(("", said));
        let has = |words: &str| detail.contains(words);
        if has("driver rpc error: timed out") || has("driver error: timed out") {
            return Self::RpcTimedOut;
        }
        if has("nvml error: driver not loaded") {
            return Self::DriverNotLoaded;
        }
        if has("driver/library version mismatch") {
            return Self::VersionMismatch;
        }
        if has("nvml error: insufficient permissions") {
            return Self::InsufficientPermissions;
        }
        if has("load library failed") {
            return Self::LibraryNotFound;
        }
        if has("nvml error: unknown error") {
            return Self::NvmlUnknown;
        }
        if has("failed to add device rules") || has("bpf_prog") {
            return Self::DeviceRules;
        }
        if has("file exists") {
            return Self::FileExists;
        }
        match kind {
            "requirement" if has("unsatisfied condition") => Self::RequirementUnmet,
            "requirement" => Self::RequirementInvalid,
            "device" => Self::UnknownDevice,
            "mig-config" | "mig-monitor" => Self::Mig,
            "ldcache" => Self::Ldconfig,
            "input" => Self::Input,
            "permission" => Self::Permission,
            "mount" => Self::Mount,
            _ => Self::Other,
        }
    }

    /// Whether the same call may succeed a moment later.
    #[must_use]
    pub fn is_transient(self) -> bool {
        self == Self::RpcTimedOut
    }

    /// What to do about it.
    #[must_use]
    pub fn advice(self) -> &'static str {
        match self {
            Self::DriverNotLoaded => {
                "load the kernel module (modprobe nvidia) and see in the kernel's log why it was not loaded"
            }
            Self::VersionMismatch => {
                "the driver was upgraded while its old kernel module is loaded: unload it, or boot the node"
            }
            Self::InsufficientPermissions => {
                "look at the owner and mode of /dev/nvidia*, and at nvidia-container-cli.user in config.toml"
            }
            Self::NvmlUnknown => {
                "run nvidia-smi on the node and look for Xid messages in the kernel's log"
            }
            Self::LibraryNotFound => {
                "the driver's libraries are not installed, or not below nvidia-container-cli.root of config.toml"
            }
            Self::RpcTimedOut => {
                "the driver needs long to wake the GPUs: enable nvidia-persistenced, and run nvidia-smi to see whether it answers"
            }
            Self::RequirementUnmet => {
                "the image needs a newer driver or another GPU: use another image or another node; NVIDIA_DISABLE_REQUIRE=true \
                 in the container skips the check"
            }
            Self::RequirementInvalid => "correct the variable NVIDIA_REQUIRE_* of the container",
            Self::UnknownDevice => "ask for a GPU that the node has: nvidia-smi -L lists them",
            Self::Mig => "MIG devices can only be configured and monitored with the value all",
            Self::Ldconfig => {
                "check nvidia-container-cli.ldconfig in config.toml, and that the image's /etc/ld.so.cache and /etc are usable"
            }
            Self::DeviceRules => {
                "let holdfast allow the devices: device-rules = \"spec\" in the table [holdfast] of config.toml, or no-cgroups = true"
            }
            Self::FileExists => {
                "the image, or a volume, has a file of the driver at this place: remove it there (an image must not contain the driver)"
            }
            Self::UnknownOption => {
                "this nvidia-container-cli is older than the toolkit that config.toml is for: install versions that belong together"
            }
            Self::Input => {
                "this is a fault of ours or of config.toml: see the whole command line in the log"
            }
            Self::Permission => {
                "the CLI lacks privileges on this node; rootless set-ups need no-cgroups = true"
            }
            Self::Mount => {
                "see what is mounted at the place named, and whether the container's root is writable"
            }
            Self::Other => "run `holdfast gpu check` on the node",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DriverNotLoaded => "driver not loaded",
            Self::VersionMismatch => "driver and library versions differ",
            Self::InsufficientPermissions => "insufficient permissions",
            Self::NvmlUnknown => "unknown error of the driver",
            Self::LibraryNotFound => "library not found",
            Self::RpcTimedOut => "rpc timed out",
            Self::RequirementUnmet => "requirement unmet",
            Self::RequirementInvalid => "requirement invalid",
            Self::UnknownDevice => "unknown device",
            Self::Mig => "mig refused",
            Self::Ldconfig => "ldconfig failed",
            Self::DeviceRules => "device rules refused",
            Self::FileExists => "file exists",
            Self::UnknownOption => "option unknown to the CLI",
            Self::Input => "input refused",
            Self::Permission => "permission denied",
            Self::Mount => "mount failed",
            Self::Other => "unclassified",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_messages_have_their_class() {
        let cases = [
            (
                "nvidia-container-cli: initialization error: nvml error: driver not loaded",
                Class::DriverNotLoaded,
            ),
            (
                "nvidia-container-cli: initialization error: nvml error: driver/library version mismatch",
                Class::VersionMismatch,
            ),
            (
                "nvidia-container-cli: initialization error: nvml error: unknown error",
                Class::NvmlUnknown,
            ),
            (
                "nvidia-container-cli: initialization error: nvml error: insufficient permissions",
                Class::InsufficientPermissions,
            ),
            (
                "nvidia-container-cli: initialization error: load library failed: libnvidia-ml.so.1: cannot open shared object file: no such file or directory",
                Class::LibraryNotFound,
            ),
            (
                "nvidia-container-cli: initialization error: driver rpc error: timed out",
                Class::RpcTimedOut,
            ),
            (
                "nvidia-container-cli: initialization error: driver error: timed out",
                Class::RpcTimedOut,
            ),
            (
                "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=99.0, please update",
                Class::RequirementUnmet,
            ),
            (
                "nvidia-container-cli: requirement error: invalid expression",
                Class::RequirementInvalid,
            ),
            (
                "nvidia-container-cli: device error: 9: unknown device",
                Class::UnknownDevice,
            ),
            (
                "nvidia-container-cli: mig-config error: permission denied",
                Class::Mig,
            ),
            (
                "nvidia-container-cli: ldcache error: process /sbin/ldconfig failed with error code: 1",
                Class::Ldconfig,
            ),
            (
                "nvidia-container-cli: mount error: failed to add device rules: unable to find any existing device filters attached to the cgroup: bpf_prog_query(BPF_CGROUP_DEVICE) failed: operation not permitted",
                Class::DeviceRules,
            ),
            (
                "nvidia-container-cli: mount error: file creation failed: /x/merged/usr/lib/libcuda.so.1: file exists",
                Class::FileExists,
            ),
            (
                "nvidia-container-cli: mount error: mount operation failed: /x: permission denied",
                Class::Mount,
            ),
            (
                "nvidia-container-cli configure: unrecognized option '--cuda-compat-mode=ldconfig'",
                Class::UnknownOption,
            ),
            (
                "nvidia-container-cli: input error: invalid rootfs directory",
                Class::Input,
            ),
            (
                "nvidia-container-cli: permission error: capability change failed",
                Class::Permission,
            ),
            ("Segmentation fault", Class::Other),
            ("", Class::Other),
        ];
        for (said, class) in cases {
            assert_eq!(
                Class::of(&format!("Using requested mode 'legacy'\n{said}\n")),
                class,
                "{said}"
            );
            assert!(!class.advice().is_empty());
        }
    }

    #[test]
    fn the_last_signed_line_counts() {
        let said = "nvidia-container-cli: device error: 9: unknown device\n\
                    nvidia-container-cli: initialization error: driver rpc error: timed out\nnoise\n";
        assert_eq!(Class::of(said), Class::RpcTimedOut);
        assert!(Class::of(said).is_transient());
    }
}
