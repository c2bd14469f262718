//! The OCI runtime: what `holdfast create`, `start`, `exec`, `kill`, `delete` … do.
//!
//! ```text
//! config.json ──> bundle (parsed, checked) ──> plan (steps for holdfast-init)
//!                                                │
//!    state directory, cgroups                    │ launch: one clone3, one execveat
//!           │                                    ▼
//!           └────────── verbs ◄──── link ◄── holdfast-init ──execve──> the user's process
//! ```
//!
//! The runtime is a short-lived, single-threaded process. It changes nothing process-wide
//! that a caller could notice, writes a container's intent to disk before the first side
//! effect (so that `delete --force` can undo a create that was killed at any point), and
//! waits for nothing without a deadline that has a name.
//!
//! | module | idea |
//! |---|---|
//! | [`bundle`] | config.json, read and checked |
//! | [`document`] | JSON that oci-spec's types are too strict for |
//! | [`plan`] | the specification turned into steps |
//! | [`launch`] | clone, register, maps, cgroups |
//! | [`user_map`] | id maps, also of an ordinary user |
//! | [`link`] | the conversation with `holdfast-init` |
//! | [`state`] | what is kept on disk, and what status follows from it |
//! | [`verb`] | one module per command |
//! | [`gpu`] | the GPU stage of create |
//! | [`hooks`] | OCI hooks with deadline and captured output |
//! | [`cli`] | runc's command line |
//! | [`fuzz`] | the parsers under attack; tests only |

pub mod bundle;
mod cause;
pub mod cli;
mod criu;
pub mod default_spec;
pub mod document;
pub mod error;
pub mod features;
pub mod fuzz;
pub mod gpu;
pub mod hooks;
mod host_path;
mod image;
pub mod launch;
pub mod link;
mod net_devices;
mod own_stderr;
pub mod plan;
pub mod rdt;
mod registration;
pub mod shims;
pub mod state;
mod sys;
mod terminal;
pub mod user_map;
pub mod verb;

pub use error::{Error, Result};
