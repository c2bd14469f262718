//! The system calls that `holdfast-init` makes: the only unsafe code of the image.
//!
//! Each wrapper takes references whose lifetimes cover the call, so the kernel only
//! sees valid pointers; descriptors are plain numbers because the process ends in
//! `execve` and everything above 2 is close-on-exec.
#![allow(unsafe_code)]

mod arch;
mod calls;
mod entry;
mod mem;

pub(crate) use calls::*;
