//! The specification, turned into steps for `holdfast-init`.
//!
//! [`create`] and [`exec`] write the two kinds of plan; the other modules write the steps of
//! one subject each. Whatever needs the host is done here, before the clone: bind sources
//! become detached trees, namespace paths become descriptors, names become numbers.

mod builder;
mod cgroup_mounts;
pub mod create;
pub(crate) mod devices;
mod draft;
pub mod exec;
pub mod filter;
mod identity;
mod idmap;
mod mounts;
pub mod namespaces;
pub mod options;
pub mod placement;

pub use builder::{PlanBuilder, PlanImage};
pub use draft::Draft;

#[cfg(test)]
mod tests;
