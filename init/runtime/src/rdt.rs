//! `linux.intelRdt`: shares of cache and memory bandwidth, through the resctrl file system.
//!
//! libcontainer makes the group, writes the schemata and moves the init process in. What is
//! here is what has to outlive that: which directories are the container's to remove, recorded
//! before the first of them is made, and where an exec process belongs.

use std::io::Write;
use std::path::{Path, PathBuf};

use libcontainer::process::intel_rdt::{
    cleanup_intel_rdt, find_resctrl_mount_point, setup_intel_rdt,
};
use nix::unistd::Pid;
use oci_spec::runtime::{Linux, LinuxIntelRdt};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::{Doing, Error, Result};

/// A container's place in resctrl, as `state.json` keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedRdt {
    /// Directory of the group (class of service).
    pub group: PathBuf,
    /// The group is the container's own, to be removed with it.
    pub own: bool,
    /// Directory of the container's monitoring group, always its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monitoring: Option<PathBuf>,
}

/// New shares, as `update` is given them: lines of a `schemata` file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Schemata {
    /// `--l3-cache-schema`.
    pub l3_cache: Option<String>,
    /// `--mem-bw-schema`.
    pub memory_bandwidth: Option<String>,
}

impl Schemata {
    /// Whether nothing was asked for.
    pub fn is_empty(&self) -> bool {
        self.l3_cache.is_none() && self.memory_bandwidth.is_none()
    }
}

fn mount_point() -> Result<PathBuf> {
    find_resctrl_mount_point().map_err(|error| Error::Step {
        doing: "apply Intel RDT: it needs a CPU with RDT and a mounted resctrl file system \
                (mount -t resctrl resctrl /sys/fs/resctrl)"
            .into(),
        detail: crate::error::chain(&error),
        source: None,
    })
}

/// The group of a container that gets one while it runs; nothing is made yet.
///
/// # Errors
/// That there is no resctrl file system.
pub(crate) fn own_group(id: &str) -> Result<SavedRdt> {
    Ok(place(&LinuxIntelRdt::default(), &mount_point()?, id))
}

/// Where the container will be; nothing is made yet.
///
/// # Errors
/// That there is no resctrl file system.
pub(crate) fn intent(linux: &Linux, id: &str) -> Result<Option<SavedRdt>> {
    let Some(rdt) = linux.intel_rdt() else {
        return Ok(None);
    };
    Ok(Some(place(rdt, &mount_point()?, id)))
}

fn place(rdt: &LinuxIntelRdt, mount_point: &Path, id: &str) -> SavedRdt {
    let group = mount_point.join(rdt.clos_id().as_deref().unwrap_or(id));
    SavedRdt {
        own: rdt.clos_id().is_none() && !group.exists(),
        monitoring: monitored(rdt).then(|| group.join("mon_groups").join(id)),
        group,
    }
}

/// Before runtime-spec 1.3 two flags asked for what is one group.
fn monitored(rdt: &LinuxIntelRdt) -> bool {
    [rdt.enable_monitoring(), rdt.enable_cmt(), rdt.enable_mbm()]
        .into_iter()
        .any(|flag| *flag == Some(true))
}

/// Makes the group and moves the init process into it.
///
/// # Errors
/// The step of libcontainer that failed.
pub(crate) fn apply(linux: &Linux, id: &str, pid: i32) -> Result<()> {
    let Some(rdt) = linux.intel_rdt() else {
        return Ok(());
    };
    let mut rdt = rdt.clone();
    rdt.set_enable_monitoring(Some(monitored(&rdt)));
    let made = setup_intel_rdt(Some(id), &Pid::from_raw(pid), &rdt);
    made.map(drop).map_err(|error| Error::Step {
        doing: "apply linux.intelRdt".into(),
        detail: crate::error::chain(&error),
        source: None,
    })
}

impl SavedRdt {
    /// Makes the group of a container that did not have one.
    ///
    /// # Errors
    /// The directory that cannot be made: the CPU has no class of service left.
    pub(crate) fn make(&self) -> Result<()> {
        match std::fs::create_dir(&self.group) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            other => other.doing(|| format!("make the resctrl group {}", self.group.display())),
        }
    }

    /// Writes new shares; a resource that is not mentioned keeps its own.
    ///
    /// # Errors
    /// The file that refused it.
    pub(crate) fn set(&self, schemata: &Schemata) -> Result<()> {
        let path = self.group.join("schemata");
        for line in [&schemata.l3_cache, &schemata.memory_bandwidth]
            .into_iter()
            .flatten()
        {
            std::fs::OpenOptions::new()
                .append(true)
                .open(&path)
                .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()))
                .doing(|| format!("write {line:?} to {}", path.display()))?;
        }
        Ok(())
    }

    /// Moves an exec process to where the container is.
    ///
    /// # Errors
    /// The file that refused it.
    pub(crate) fn add(&self, pid: i32) -> Result<()> {
        for dir in [Some(&self.group), self.monitoring.as_ref()]
            .into_iter()
            .flatten()
        {
            let tasks = dir.join("tasks");
            std::fs::write(&tasks, pid.to_string())
                .doing(|| format!("add process {pid} to {}", tasks.display()))?;
        }
        Ok(())
    }

    /// Its part of `events`: the schemata in force here and at the root, and what the CPU has counted.
    pub(crate) fn statistics(&self) -> Value {
        let mut out = Map::new();
        let root = self.group.parent().unwrap_or(Path::new("/"));
        for (dir, suffix) in [(self.group.as_path(), ""), (root, "_root")] {
            let text = std::fs::read_to_string(dir.join("schemata")).unwrap_or_default();
            for (prefix, name) in [("L3:", "l3_cache_schema"), ("MB:", "mem_bw_schema")] {
                let line = text.lines().map(str::trim).find(|l| l.starts_with(prefix));
                if let Some(line) = line {
                    out.insert(format!("{name}{suffix}"), line.into());
                }
            }
        }
        let counted = self
            .monitoring
            .as_ref()
            .unwrap_or(&self.group)
            .join("mon_data");
        let domains = std::fs::read_dir(counted).into_iter().flatten().flatten();
        let mut domains: Vec<PathBuf> = domains.map(|entry| entry.path()).collect();
        domains.sort();
        let read = |dir: &Path, name: &str| {
            let text = std::fs::read_to_string(dir.join(name)).ok()?;
            text.trim().parse::<u64>().ok()
        };
        let (mut cache, mut bandwidth) = (Vec::new(), Vec::new());
        for domain in &domains {
            if let Some(bytes) = read(domain, "llc_occupancy") {
                cache.push(json!({"llc_occupancy": bytes}));
            }
            if let Some(total) = read(domain, "mbm_total_bytes") {
                let local = read(domain, "mbm_local_bytes").unwrap_or(0);
                bandwidth.push(json!({"mbm_total_bytes": total, "mbm_local_bytes": local}));
            }
        }
        for (name, list) in [("cmt_stats", cache), ("mbm_stats", bandwidth)] {
            if !list.is_empty() {
                out.insert(name.into(), list.into());
            }
        }
        out.into()
    }

    /// Removes what is the container's own; what is gone already is fine.
    ///
    /// # Errors
    /// The directories that are still there.
    pub(crate) fn remove(&self) -> Result<()> {
        let own = self.own.then_some(self.group.as_path());
        cleanup_intel_rdt(own, self.monitoring.as_deref(), None, "").map_err(|error| Error::Step {
            doing: "remove the container's resctrl groups".into(),
            detail: crate::error::chain(&error),
            source: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rdt(json: &str) -> LinuxIntelRdt {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_group_named_by_the_container_is_its_own_and_one_of_others_stays() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("gold")).unwrap();
        let own = place(&rdt(r#"{"l3CacheSchema": "L3:0=f"}"#), folder.path(), "box");
        let given = place(&rdt(r#"{"closID": "gold"}"#), folder.path(), "box");
        assert!(own.own && !given.own);
        for saved in [&own, &given] {
            std::fs::create_dir_all(&saved.group).unwrap();
            saved.add(4711).unwrap();
            let told = std::fs::read_to_string(saved.group.join("tasks")).unwrap();
            assert_eq!(told, "4711");
            // In resctrl the file is no obstacle.
            std::fs::remove_file(saved.group.join("tasks")).unwrap();
            saved.remove().unwrap();
            saved.remove().unwrap();
        }
        assert!(!own.group.exists());
        assert!(given.group.exists());
    }

    #[test]
    fn new_shares_go_to_the_group() {
        let folder = tempfile::tempdir().unwrap();
        let own = place(&LinuxIntelRdt::default(), folder.path(), "box");
        own.make().unwrap();
        own.make().unwrap();
        let path = own.group.join("schemata");
        let schemata = Schemata {
            l3_cache: Some("L3:0=f".into()),
            memory_bandwidth: Some("MB:0=20".into()),
        };
        let error = own.set(&schemata).unwrap_err().to_string();
        assert!(
            error.contains("L3:0=f") && error.contains("schemata"),
            "{error}"
        );
        // The kernel's file is there with the group, and takes a line at a time.
        std::fs::write(&path, "").unwrap();
        own.set(&schemata).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "L3:0=f\nMB:0=20\n");
    }

    #[test]
    fn statistics_are_those_of_the_group_and_the_root() {
        let folder = tempfile::tempdir().unwrap();
        let saved = place(&rdt(r#"{"enableMonitoring": true}"#), folder.path(), "box");
        let domain = saved
            .monitoring
            .as_ref()
            .unwrap()
            .join("mon_data/mon_L3_00");
        std::fs::create_dir_all(&domain).unwrap();
        std::fs::write(folder.path().join("schemata"), "    L3:0=ff\nMB:0=100\n").unwrap();
        std::fs::write(saved.group.join("schemata"), "L3:0=f\n").unwrap();
        std::fs::write(domain.join("llc_occupancy"), "4096\n").unwrap();
        std::fs::write(domain.join("mbm_total_bytes"), "Unavailable\n").unwrap();
        let expected = json!({
            "l3_cache_schema": "L3:0=f", "l3_cache_schema_root": "L3:0=ff", "mem_bw_schema_root": "MB:0=100",
            "cmt_stats": [{"llc_occupancy": 4096}],
        });
        assert_eq!(saved.statistics(), expected);
    }

    #[test]
    fn every_flag_that_ever_asked_for_monitoring_does() {
        // As oci-spec 0.10 reads the older two; `document` brings the specification's spelling into that form.
        for flag in ["enableMonitoring", "enableCmt", "enableMbm"] {
            let rdt = rdt(&format!(r#"{{"closID": "gold", "{flag}": true}}"#));
            let saved = place(&rdt, Path::new("/r"), "box");
            let expected = Path::new("/r/gold/mon_groups/box");
            assert_eq!(saved.monitoring.as_deref(), Some(expected), "{flag}");
        }
        assert_eq!(place(&rdt("{}"), Path::new("/r"), "box").monitoring, None);
    }
}
