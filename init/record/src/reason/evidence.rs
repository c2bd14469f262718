//! Evidence that more than one reason has.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::process::Description;
use crate::time::millis;

/// Through which request an end was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rpc {
    /// The shim's `Kill`.
    Kill,
    /// The shim's `Delete`.
    Delete,
    /// The shim's `Shutdown`.
    Shutdown,
    /// The clean-up command `containerd-shim-holdfast-v2 delete`.
    ShimDelete,
    /// `holdfast kill` or `holdfast delete --force` on the command line.
    CommandLine,
}

impl fmt::Display for Rpc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "a Kill request",
            Self::Delete => "a Delete request",
            Self::Shutdown => "a Shutdown request",
            Self::ShimDelete => "containerd's clean-up after a shim that was gone",
            Self::CommandLine => "the holdfast command",
        })
    }
}

/// The process that sent a signal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sender {
    /// Its pid in the node's pid namespace.
    pub pid: u32,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
    /// Its arguments joined by spaces; the file of its program alone when it was gone before it was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// Its user id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Its parent as `pid (name)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Its cgroup, which names the service, pod or container it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
}

/// What had no memory left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OomScope {
    /// The limit of a cgroup.
    Cgroup,
    /// The node itself.
    Node,
    /// The kernel counted a kill, but what had run out is not recorded.
    #[default]
    NotRecorded,
}

/// What is known of an OOM kill.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Oom {
    /// What had no memory left.
    #[serde(default)]
    pub scope: OomScope,
    /// The cgroup whose limit was hit, as a path below the cgroup file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// Its limit in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Its usage in bytes; the peak where the kernel keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<u64>,
    /// Kills counted by that cgroup in the container's life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kills: Option<u64>,
    /// Pid of the killed process in the node's pid namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub victim_pid: Option<u32>,
    /// Name of the killed process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub victim: Option<String>,
}

/// Which hook, by its place in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookPlace {
    /// Its stage by the OCI name: `createRuntime`, `poststop`, …
    pub stage: String,
    /// Its place in the stage, counted from 1.
    pub number: usize,
    /// How many hooks the stage has.
    pub of: usize,
    /// The program.
    pub path: String,
}

impl fmt::Display for HookPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} hook {} of {} ({})",
            self.stage, self.number, self.of, self.path
        )
    }
}

/// A panic: where, with which text, and how it was come to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Panicked {
    /// The incident's id, which the caller's error names as well.
    pub incident: String,
    /// The panic's text.
    pub message: String,
    /// `file:line:column`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// The thread's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thread: Option<String>,
    /// The stack, one frame a line.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub backtrace: String,
}

/// A step that was given up at its deadline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimedOut {
    /// What was awaited.
    pub step: String,
    /// For how long.
    #[serde(rename = "waited_ms", with = "millis")]
    pub waited: Duration,
    /// The process that was waited for, as it was then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Description>,
}
