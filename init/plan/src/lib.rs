//! The flat plan that `holdfast` hands to `holdfast-init`, and the frames the two exchange.
//!
//! `holdfast` resolves everything that needs the host's file system, JSON or a
//! decision, and writes the result down as a list of [`Step`]s. `holdfast-init`
//! only executes that list, in order, without allocating. One step is one idea
//! (`join a namespace`, `mount a file system`, `drop capabilities`), so a failure is
//! reported as *step number + errno* and the parent, which still knows what it
//! wrote, turns it into a sentence.
//!
//! The crate has no dependencies. Without the `std` feature it can only read plans;
//! with it, it can build them ([`PlanBuilder`]) and speak to the shim
//! ([`barrier`]).
//!
//! Why a flat plan and not a second JSON parser inside the container:
//! `docs/0001-flat-plan.md`.
#![cfg_attr(not(feature = "std"), no_std)]

#[cfg(feature = "std")]
pub mod barrier;
#[cfg(feature = "std")]
mod build;
pub mod report;
mod step;
mod wire;

#[cfg(feature = "std")]
pub use build::{PlanBuilder, PlanImage};
pub use step::{Point, Step, TargetKind};
pub use wire::{List, Malformed, Plan, Steps, Words};
