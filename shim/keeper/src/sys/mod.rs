//! The system calls that `holdfast-keeper` makes: the only unsafe code of the program.
//!
//! Each wrapper takes references whose lifetimes cover the call, so the kernel only sees valid pointers; descriptors
//! are plain numbers, for to hold what has a number is all that this program does.
#![allow(unsafe_code)]

// One system call instruction per architecture, and the memory functions that the compiler may call.
#[path = "../../../../init/init/src/sys/arch.rs"]
mod arch;
mod calls;
mod entry;
#[path = "../../../../init/init/src/sys/mem.rs"]
mod mem;

pub(crate) use calls::*;
