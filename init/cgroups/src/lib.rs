//! Control groups v1, v2 and hybrid, through the file system; made by systemd where it is asked to ([`systemd`]).
//!
//! Used by the runtime (create, exec, update, delete) and by the shim (pids, stats, pause, resume, kill, oom), hence:
//! nothing process-wide is touched, every wait has a deadline, all fds are close-on-exec.
//!
//! ```no_run
//! # use holdfast_cgroups::{Cgroup, CgroupPath, Driver, Hierarchies, When};
//! # use std::{path::Path, time::{Duration, Instant}};
//! # fn main() -> holdfast_cgroups::Result<()> {
//! # let resources = oci_spec::runtime::LinuxResources::default(); let pid = 1;
//! let hierarchies = Hierarchies::detect()?;
//! let path = CgroupPath::new(Some(Path::new("/parent/c1")), Driver::Cgroupfs, "holdfast", "c1")?;
//! let cgroup = Cgroup::create(&hierarchies, &path, Some(&resources))?;
//! cgroup.apply(&resources, When::Create)?;
//! cgroup.attach(pid)?; // or, a hundred times cheaper, clone3 with dir_fd() and entrance()
//! cgroup.kill_and_remove(Instant::now() + Duration::from_secs(10))?;
//! # Ok(()) }
//! ```

mod below;
mod cgroup;
mod controllers;
mod delegate;
mod devices;
mod dir;
mod ebpf;
mod entrance;
mod error;
mod freezer;
mod hierarchy;
mod kill;
mod oom;
mod path;
mod place;
mod remove;
mod resources;
mod stats;
mod sys;
pub mod systemd;

pub use below::Below;
pub use cgroup::{Cgroup, SavedCgroup, SavedPlace, join};
pub use devices::default_device_rules;
pub use entrance::Entrance;
pub use error::{Error, Hint, Holder, Result};
pub use freezer::FreezerState;
pub use hierarchy::{Hierarchies, Hierarchy, Kind, Layout};
pub use oom::{OomEvents, OomKills};
pub use path::{CgroupPath, Driver};
pub use resources::When;
pub use stats::*;
