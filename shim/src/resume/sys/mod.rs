//! All unsafe code of the passage from image to image.
#![allow(unsafe_code)]

mod descriptors;
mod execute;
mod handlers;
mod report;

pub(super) use descriptors::{close_stale, inherit, send_with_descriptors, unread};
pub(super) use execute::{execute_with, let_signals_in};
pub(super) use handlers::{
    Setup, disarm, enter_step, install, leave_step, loop_lives, loop_sleeps, loop_wakes, replace,
};
pub(super) use report::take_report;
pub(crate) use report::{Cause, Report};
