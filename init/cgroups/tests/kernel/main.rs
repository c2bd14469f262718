//! Real cgroups of this machine: whatever layout it has, and its v2 mount alone.
//!
//! Needs root. Everything happens below /holdfast-test-PID-NAME and is removed afterwards.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod fixture;
mod life;
mod limits;
mod members;
