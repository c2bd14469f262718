//! GPU requests of containers: what `nvidia-container-runtime` and its hook decide, as functions without side effects.
//!
//! ```text
//! config.toml ──> Config ─┐
//!                         ├─> Request (devices, capabilities, requirements, …) ──> argv of nvidia-container-cli
//! config.json ──> Image ──┘                                                   └──> CDI edits (holdfast-cdi)
//! ```
//!
//! | module | idea |
//! |---|---|
//! | [`config`] | `config.toml` as the NVIDIA container toolkit reads it, and our own table in it |
//! | [`image`] | what a container says about GPUs: environment, mounts, annotations, privilege |
//! | [`request`] | which devices that asks for, and from where the request came |
//! | [`capabilities`] | driver capabilities |
//! | [`requirements`] | `NVIDIA_REQUIRE_*` and the version of old CUDA images |
//! | [`legacy`] | the command line of `nvidia-container-cli` |
//! | [`class`] | what the words of `nvidia-container-cli` mean |
//! | [`nodes`] | the device nodes of a request, out of `/proc` |
//! | [`hook`] | the drop-in entry `nvidia-container-runtime-hook` |
//! | [`deviation`] | where we differ from the original on purpose |
//! | [`version`] | versions of specifications and images |
//! | [`mode`] | legacy, cdi, jit-cdi, csv; and how `auto` is resolved |
//! | [`modify`] | what is changed in a specification, in every mode |
//! | [`runtime`] | the drop-in `nvidia-container-runtime` |
//! | [`driver`] | the driver's files on the host |
//! | [`nvml`] | the GPUs of the node, asked by a process of its own |
//! | [`oci`] | a specification as the toolkit's runtime reads and writes it |
//! | [`check`] | what would fail on this node, and why |
//! | [`fuzz`] | the parsers under attack; tests only |
//! | [`json`] | JSON as Go's decoder reads it: keys in any case, the last one wins |
//! | [`paths`] | lexical paths and program search as Go does them |
//!
//! The order of use:
//!
//! 1. [`config::locate`] and [`config::Location::load`] give a [`config::Config`], or the built-in defaults where no file
//!    has to be.
//! 2. An [`image::Image`] holds what matters of a specification.
//! 3. [`request::Request::find`] says whether a GPU is asked for. `None`: leave the container alone.

pub mod capabilities;
pub mod check;
pub mod class;
pub mod config;
pub mod deviation;
pub mod driver;
pub mod fuzz;
pub mod hook;
pub mod image;
pub mod json;
pub mod legacy;
pub mod mode;
pub mod modify;
pub mod nodes;
pub mod nvml;
pub mod oci;
pub mod paths;
pub mod request;
pub mod requirements;
pub mod runtime;
pub mod version;
