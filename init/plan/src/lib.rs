//! The flat plan that `holdfast` hands to `holdfast-init`, and the frames the two exchange.
//!
//! `holdfast` resolves everything that needs the host's file system, JSON or a
//! decision, and writes the result down as a list of [`Step`]s. `holdfast-init`
//! only executes that list, in order, without allocating. One step is one idea
//! (`join a namespace`, `mount a file system`, `drop capabilities`), so a failure is
//! reported as *step number + errno* and the parent, which still knows what it
//! wrote, turns it into a sentence.
//!
//! The crate has no dependencies, no features and no allocator, so that the same code can be
//! linked into `holdfast-init`; whoever builds plans brings the growing buffer ([`Sink`]).
//!
//! Why a flat plan and not a second JSON parser inside the container:
//! `docs/0001-flat-plan.md`.
#![cfg_attr(not(test), no_std)]

pub mod report;
mod step;
mod wire;

pub use step::{Point, Step, TargetKind};
pub use wire::{HEADER, List, Malformed, Plan, Sink, Steps, Words, header};
