//! OCI bundles: a config.json to be changed by the test, and a busybox root file system.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// A bundle on disk. Its `spec` is written out by [`Bundle::write`].
#[derive(Debug, Clone)]
pub struct Bundle {
    /// The container id the harness uses for it.
    pub id: String,
    /// The bundle's folder.
    pub path: PathBuf,
    /// config.json.
    pub spec: Value,
}

impl Bundle {
    /// A bundle at `path` with a filled root file system and [`default_spec`].
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn new(path: &Path, id: &str, cgroup: &str) -> Self {
        fs::create_dir_all(path).expect("bundle");
        crate::image::fill_rootfs(&path.join("rootfs"));
        let mut spec = default_spec();
        spec["linux"]["cgroupsPath"] = json!(format!("/{cgroup}/{id}"));
        Self {
            id: id.to_owned(),
            path: path.to_path_buf(),
            spec,
        }
    }

    /// Changes the spec.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.spec);
        self
    }

    /// Sets the arguments of the container's process.
    #[must_use]
    pub fn args(self, args: &[&str]) -> Self {
        self.with(|spec| spec["process"]["args"] = json!(args))
    }

    /// Lets the container's process be a shell script.
    #[must_use]
    pub fn script(self, script: &str) -> Self {
        self.args(&["sh", "-c", script])
    }

    /// Adds a mount.
    #[must_use]
    pub fn mount(self, mount: Value) -> Self {
        self.with(|spec| spec["mounts"].as_array_mut().expect("mounts").push(mount))
    }

    /// Takes a namespace out, which means that the container shares the runtime's.
    #[must_use]
    pub fn without_namespace(self, kind: &str) -> Self {
        self.with(|spec| {
            spec["linux"]["namespaces"]
                .as_array_mut()
                .expect("namespaces")
                .retain(|entry| entry["type"] != kind);
        })
    }

    /// Adds a namespace, new (`None`) or to be joined by path.
    #[must_use]
    pub fn namespace(self, kind: &str, path: Option<&str>) -> Self {
        self.without_namespace(kind).with(|spec| {
            let mut entry = json!({"type": kind});
            if let Some(path) = path {
                entry["path"] = json!(path);
            }
            spec["linux"]["namespaces"]
                .as_array_mut()
                .expect("namespaces")
                .push(entry);
        })
    }

    /// Gives the container a new user namespace that maps its ids 0 to 65535 to `first` and up,
    /// and makes the root file system belong to them.
    ///
    /// # Panics
    /// When chown fails.
    #[must_use]
    pub fn user_namespace(self, first: u32) -> Self {
        chown_tree(&self.path.join("rootfs"), first);
        self.namespace("user", None).with(|spec| {
            let map = json!([{"containerID": 0, "hostID": first, "size": 65536}]);
            spec["linux"]["uidMappings"] = map.clone();
            spec["linux"]["gidMappings"] = map;
        })
    }

    /// Puts docker's default seccomp profile in force.
    #[must_use]
    pub fn docker_seccomp(self) -> Self {
        self.with(|spec| spec["linux"]["seccomp"] = docker_profile())
    }

    /// Writes config.json.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self) {
        fs::write(self.path.join("config.json"), self.spec.to_string()).expect("config.json");
    }

    /// A file or folder of the container's root file system, seen from outside.
    #[must_use]
    pub fn in_rootfs(&self, path: &str) -> PathBuf {
        self.path.join("rootfs").join(path.trim_start_matches('/'))
    }
}

fn chown_tree(path: &Path, owner: u32) {
    std::os::unix::fs::lchown(path, Some(owner), Some(owner)).expect("chown");
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path).expect("read folder") {
            chown_tree(&entry.expect("entry").path(), owner);
        }
    }
}

/// Docker's default profile for a container with docker's default capabilities.
///
/// # Panics
/// Never: the file is part of the harness.
#[must_use]
pub fn docker_profile() -> Value {
    serde_json::from_str(include_str!("../profiles/docker-default.json")).expect("profile")
}

/// The capabilities docker gives a container.
pub const DOCKER_CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// [`DOCKER_CAPABILITIES`] as the kernel prints it in `/proc/PID/status`.
pub const DOCKER_CAPABILITIES_MASK: &str = "00000000a80425fb";

/// What a container engine would ask for a plain container: docker's mounts, namespaces,
/// capabilities, masked paths and devices.
#[must_use]
pub fn default_spec() -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": ["true"],
            "env": ["PATH=/bin:/sbin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                "bounding": DOCKER_CAPABILITIES,
                "effective": DOCKER_CAPABILITIES,
                "permitted": DOCKER_CAPABILITIES,
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "testbox",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"},
                {"type": "mount"},
            ],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}
