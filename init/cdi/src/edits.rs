//! Container edits: what a device changes in a container.

use std::collections::HashSet;

use serde_json::Value;

use crate::decode::Fields;

/// One set of edits: of a file, of a device, or of several joined.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerEdits {
    /// `KEY=value`, appended to the environment.
    pub env: Vec<String>,
    /// Device nodes.
    pub device_nodes: Vec<DeviceNode>,
    /// Network interfaces to move in (1.1.0).
    pub net_devices: Vec<NetDevice>,
    /// Hooks, each with its stage.
    pub hooks: Vec<Hook>,
    /// Mounts.
    pub mounts: Vec<Mount>,
    /// Cache and memory bandwidth allocation (0.7.0).
    pub intel_rdt: Option<IntelRdt>,
    /// Supplementary groups of the process (0.7.0).
    pub additional_gids: Vec<u32>,
}

/// A device node inside the container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceNode {
    /// Path in the container.
    pub path: String,
    /// Path on the host; empty means the same path.
    pub host_path: String,
    /// `b`, `c`, `u`, `p`, or empty: taken from the host.
    pub kind: String,
    /// Major number; 0 means: taken from the host.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// Permission bits; `None` means: taken from the host where the node exists.
    pub file_mode: Option<u32>,
    /// Letters of `rwm` for the device cgroup; empty means all three.
    pub permissions: String,
    /// Owner; `None` means the container's user, unless that is root.
    pub uid: Option<u32>,
    /// Group; `None` means the container's group, unless that is root's.
    pub gid: Option<u32>,
}

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mount {
    /// Source on the host.
    pub host_path: String,
    /// Destination in the container.
    pub container_path: String,
    /// Options as in the OCI specification.
    pub options: Vec<String>,
    /// File system type, usually empty for a bind mount (0.4.0).
    pub kind: String,
}

/// A hook and its stage.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hook {
    /// `prestart`, `createRuntime`, `createContainer`, `startContainer`, `poststart` or `poststop`.
    pub stage: String,
    /// Program.
    pub path: String,
    /// Arguments, the program's name first.
    pub args: Vec<String>,
    /// Environment of the hook.
    pub env: Vec<String>,
    /// Seconds.
    pub timeout: Option<i64>,
}

/// Resource director technology settings.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IntelRdt {
    /// Class of service.
    pub clos_id: String,
    /// L3 cache schema.
    pub l3_cache_schema: String,
    /// Memory bandwidth schema.
    pub mem_bw_schema: String,
    /// Further schemata (1.1.0).
    pub schemata: Option<Vec<String>>,
    /// Whether a monitoring group is made (1.1.0).
    pub enable_monitoring: bool,
}

/// A network interface of the host and its name in the container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetDevice {
    /// Name on the host.
    pub host_interface_name: String,
    /// Name in the container.
    pub name: String,
}

/// The stages of hooks an edit may name.
pub(crate) const STAGES: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

impl ContainerEdits {
    pub(crate) fn decode(place: &str, value: Value) -> Result<Self, String> {
        let mut fields = Fields::of(place, value)?;
        let mut this = Self {
            env: fields.texts("env")?,
            additional_gids: fields.integers("additionalGids")?,
            ..Self::default()
        };
        for (place, value) in fields.list("deviceNodes")?.unwrap_or_default() {
            this.device_nodes.push(DeviceNode::decode(&place, value)?);
        }
        for (place, value) in fields.list("netDevices")?.unwrap_or_default() {
            this.net_devices.push(NetDevice::decode(&place, value)?);
        }
        for (place, value) in fields.list("hooks")?.unwrap_or_default() {
            this.hooks.push(Hook::decode(&place, value)?);
        }
        for (place, value) in fields.list("mounts")?.unwrap_or_default() {
            this.mounts.push(Mount::decode(&place, value)?);
        }
        let rdt = fields.take("intelRdt");
        if !rdt.is_null() {
            this.intel_rdt = Some(IntelRdt::decode(&format!("{place}.intelRdt"), rdt)?);
        }
        fields.end()?;
        Ok(this)
    }

    /// Whether nothing is edited. A device must edit something.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self == &Self::default()
    }

    /// Adds `other` behind these edits; its RDT settings win.
    pub fn append(&mut self, other: &Self) {
        self.env.extend_from_slice(&other.env);
        self.device_nodes.extend_from_slice(&other.device_nodes);
        self.net_devices.extend_from_slice(&other.net_devices);
        self.hooks.extend_from_slice(&other.hooks);
        self.mounts.extend_from_slice(&other.mounts);
        if other.intel_rdt.is_some() {
            self.intel_rdt.clone_from(&other.intel_rdt);
        }
        self.additional_gids
            .extend_from_slice(&other.additional_gids);
    }

    /// What makes these edits unusable, if anything.
    pub(crate) fn check(&self, place: &str) -> Result<(), String> {
        check_env(&format!("{place}.env"), &self.env)?;
        for (i, node) in self.device_nodes.iter().enumerate() {
            node.check(&format!("{place}.deviceNodes[{i}]"))?;
        }
        for (i, hook) in self.hooks.iter().enumerate() {
            hook.check(&format!("{place}.hooks[{i}]"))?;
        }
        for (i, mount) in self.mounts.iter().enumerate() {
            mount.check(&format!("{place}.mounts[{i}]"))?;
        }
        if let Some(rdt) = &self.intel_rdt {
            rdt.check(&format!("{place}.intelRdt"))?;
        }
        self.check_net_devices(&format!("{place}.netDevices"))
    }

    fn check_net_devices(&self, place: &str) -> Result<(), String> {
        let mut hosts = HashSet::new();
        let mut names = HashSet::new();
        for (i, device) in self.net_devices.iter().enumerate() {
            let place = format!("{place}[{i}]");
            if device.host_interface_name.is_empty() || device.name.is_empty() {
                return Err(format!(
                    "{place}: hostInterfaceName and name must not be empty"
                ));
            }
            if !hosts.insert(&device.host_interface_name) || !names.insert(&device.name) {
                return Err(format!("{place}: an interface or a name is there twice"));
            }
        }
        Ok(())
    }
}

fn check_env(place: &str, env: &[String]) -> Result<(), String> {
    match env.iter().find(|entry| entry.find('=').unwrap_or(0) == 0) {
        None => Ok(()),
        Some(entry) => Err(format!("{place}: {entry:?} is not KEY=value")),
    }
}

impl DeviceNode {
    fn decode(place: &str, value: Value) -> Result<Self, String> {
        let mut fields = Fields::of(place, value)?;
        let this = Self {
            path: fields.text("path")?,
            host_path: fields.text("hostPath")?,
            kind: fields.text("type")?,
            major: fields.integer("major")?.unwrap_or(0),
            minor: fields.integer("minor")?.unwrap_or(0),
            file_mode: fields.integer("fileMode")?,
            permissions: fields.text("permissions")?,
            uid: fields.integer("uid")?,
            gid: fields.integer("gid")?,
        };
        fields.end()?;
        Ok(this)
    }

    fn check(&self, place: &str) -> Result<(), String> {
        if self.path.is_empty() {
            return Err(format!("{place}: path must not be empty"));
        }
        if !matches!(self.kind.as_str(), "" | "b" | "c" | "u" | "p") {
            return Err(format!(
                "{place}: type {:?} is none of b, c, u, p",
                self.kind
            ));
        }
        if self.permissions.contains(|c| !matches!(c, 'r' | 'w' | 'm')) {
            return Err(format!(
                "{place}: permissions {:?} has letters other than r, w, m",
                self.permissions
            ));
        }
        Ok(())
    }
}

impl Mount {
    fn decode(place: &str, value: Value) -> Result<Self, String> {
        let mut fields = Fields::of(place, value)?;
        let this = Self {
            host_path: fields.text("hostPath")?,
            container_path: fields.text("containerPath")?,
            options: fields.texts("options")?,
            kind: fields.text("type")?,
        };
        fields.end()?;
        Ok(this)
    }

    fn check(&self, place: &str) -> Result<(), String> {
        if self.host_path.is_empty() || self.container_path.is_empty() {
            return Err(format!(
                "{place}: hostPath and containerPath must not be empty"
            ));
        }
        Ok(())
    }
}

impl Hook {
    fn decode(place: &str, value: Value) -> Result<Self, String> {
        let mut fields = Fields::of(place, value)?;
        let this = Self {
            stage: fields.text("hookName")?,
            path: fields.text("path")?,
            args: fields.texts("args")?,
            env: fields.texts("env")?,
            timeout: fields.integer("timeout")?,
        };
        fields.end()?;
        Ok(this)
    }

    fn check(&self, place: &str) -> Result<(), String> {
        if !STAGES.contains(&self.stage.as_str()) {
            return Err(format!(
                "{place}: hookName {:?} is no stage of hooks",
                self.stage
            ));
        }
        if self.path.is_empty() {
            return Err(format!("{place}: path must not be empty"));
        }
        check_env(&format!("{place}.env"), &self.env)
    }
}

impl IntelRdt {
    fn decode(place: &str, value: Value) -> Result<Self, String> {
        let mut fields = Fields::of(place, value)?;
        let this = Self {
            clos_id: fields.text("closID")?,
            l3_cache_schema: fields.text("l3CacheSchema")?,
            mem_bw_schema: fields.text("memBwSchema")?,
            schemata: fields.optional_texts("schemata")?,
            enable_monitoring: fields.flag("enableMonitoring")?,
        };
        fields.end()?;
        Ok(this)
    }

    /// The class is a folder's name in resctrl, or `/` for its root.
    fn check(&self, place: &str) -> Result<(), String> {
        let id = self.clos_id.as_str();
        if id == "/" {
            return Ok(());
        }
        if id.len() >= 4096 || id == "." || id == ".." || id.contains(['/', '\n']) {
            return Err(format!("{place}: closID {id:?} is no folder's name"));
        }
        Ok(())
    }
}

impl NetDevice {
    fn decode(place: &str, value: Value) -> Result<Self, String> {
        let mut fields = Fields::of(place, value)?;
        let this = Self {
            host_interface_name: fields.text("hostInterfaceName")?,
            name: fields.text("name")?,
        };
        fields.end()?;
        Ok(this)
    }
}
