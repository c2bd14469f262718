//! The system calls that `holdfast-init` makes: the only unsafe code of the image.
//!
//! Each wrapper takes references whose lifetimes cover the call, so the kernel only
//! sees valid pointers; descriptors are plain numbers because the process ends in
//! `execve` and everything above 2 is close-on-exec.
#![allow(unsafe_code)]

mod arch;
mod attributes;
mod call;
mod descriptors;
mod entry;
mod files;
mod mem;
mod mounts;
mod privileges;
mod process;
mod terminal;

pub(crate) use attributes::*;
pub(crate) use call::*;
pub(crate) use descriptors::*;
pub(crate) use files::*;
pub(crate) use mounts::*;
pub(crate) use privileges::*;
pub(crate) use process::*;
pub(crate) use terminal::*;
