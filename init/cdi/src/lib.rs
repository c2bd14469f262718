//! The Container Device Interface: device files, and what they change in a container.
//!
//! A CDI file names devices (`vendor.com/class=name`) and the *container edits* that make one
//! usable: environment, device nodes, mounts, hooks. This crate reads such files as the
//! reference library in Go does, and applies edits to an OCI specification:
//!
//! ```text
//! /etc/cdi/*.yaml ─> Registry::scan ─> resolve(names) ─> ContainerEdits ─> apply(spec)
//!                        └─ problems(): every file that is not usable, and why
//! ```
//! * An OCI specification is a [`serde_json::Value`] here, so fields this crate has never
//!   heard of survive (`docs/0001-json-values.md`).
//! * A broken file never hides the devices of another file. It is remembered, and an
//!   [`Unresolvable`] error shows all that is wrong next to the names that were not found.
//! * No input makes this crate panic. Names of one letter are fine.
//!
//! Source: the CDI specification 1.1.0 and the behaviour of its Go implementation, which
//! `integration/tests/nvidia_runtime.rs` compares case by case.

mod apply;
mod decode;
mod edits;
pub mod fuzz;
mod host;
mod name;
mod number;
mod registry;
mod spec;
mod version;
mod yaml;

pub use apply::{ApplyError, apply};
pub use edits::{ContainerEdits, DeviceNode, Hook, IntelRdt, Mount, NetDevice};
pub use host::{HostNode, HostNodeError, host_node};
pub use name::{Kind, NameError, QualifiedName, is_qualified};
pub use registry::{DEFAULT_SPEC_DIRS, Problem, ProblemKind, Registry, Unresolvable};
pub use spec::{Device, Spec, SpecError, parse};
pub use version::Version;
