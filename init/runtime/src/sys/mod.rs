//! All unsafe code of the runtime.
#![allow(unsafe_code)]

mod child;
pub(crate) mod clone;
pub(crate) mod fd;
pub(crate) mod probe;
pub(crate) mod signals;
pub(crate) mod spawn;
pub(crate) mod user_namespace;
pub(crate) mod worker;
