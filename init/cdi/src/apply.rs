//! Container edits applied to an OCI specification.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::edits::{ContainerEdits, DeviceNode, Hook, IntelRdt, Mount};
use crate::host::{HostNode, HostNodeError, host_node};

/// Why edits cannot be applied.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// A part of the specification is not of the type it must have.
    #[error("config.json: {place} must be {wanted}")]
    Spec {
        /// The field.
        place: &'static str,
        /// `an object` or `a list`.
        wanted: &'static str,
    },
    /// The edits leave numbers of a device to the host, which does not have it.
    #[error(
        "the device {} (for {path} in the container) has no number in the CDI file, and the host \
         does not have it: load the driver, or regenerate the CDI file", .host.display()
    )]
    NoHostNode {
        /// Path in the container.
        path: String,
        /// Path on the host.
        host: PathBuf,
        /// What the host said.
        #[source]
        source: HostNodeError,
    },
    /// The edits and the host disagree on what a device is.
    #[error(
        "the device {} (for {path} in the container) is of type {found:?} on the host, not \
         {declared:?} as the CDI file says: regenerate the file", .host.display()
    )]
    TypeMismatch {
        /// Path in the container.
        path: String,
        /// Path on the host.
        host: PathBuf,
        /// The edits' type.
        declared: String,
        /// The host's type.
        found: char,
    },
}

/// Applies `edits` to an OCI specification, as the reference library does:
/// * environment: appended; a variable of the edits that comes twice keeps its first place and
///   its last value, one of the specification is left alone;
/// * device nodes: replace one of the same path; owner filled from the process where it is not
///   root; number, type and mode from the host where they are left open; one allow rule each in
///   `linux.resources.devices`;
/// * mounts: replace one of the same destination; then all mounts of the specification are put in
///   the order of their depth, so that none hides a deeper one;
/// * hooks: appended to their stage. Groups: added unless 0 or there. RDT: replaced.
///
/// # Errors
/// When a device node is not what the edits say, or the specification has a wrong type. `spec` may
/// be changed in part then.
pub fn apply(edits: &ContainerEdits, spec: &mut Value) -> Result<(), ApplyError> {
    let root = as_object(spec, "the specification")?;
    add_env(root, &edits.env)?;
    let owner = Owner::of(root);
    for node in &edits.device_nodes {
        add_device(root, node, owner)?;
    }
    for device in &edits.net_devices {
        let linux = object_in(root, "linux", "linux")?;
        let devices = object_in(linux, "netDevices", "linux.netDevices")?;
        devices.insert(
            device.host_interface_name.clone(),
            json!({ "name": device.name }),
        );
    }
    add_mounts(root, &edits.mounts)?;
    for hook in &edits.hooks {
        add_hook(root, hook)?;
    }
    if let Some(rdt) = &edits.intel_rdt {
        object_in(root, "linux", "linux")?.insert("intelRdt".to_owned(), rdt_value(rdt));
    }
    add_groups(root, &edits.additional_gids)
}

type Object = Map<String, Value>;

fn as_object<'a>(value: &'a mut Value, place: &'static str) -> Result<&'a mut Object, ApplyError> {
    value.as_object_mut().ok_or(ApplyError::Spec {
        place,
        wanted: "an object",
    })
}

/// The object `name` of `parent`, made when missing or null.
fn object_in<'a>(
    parent: &'a mut Object,
    name: &str,
    place: &'static str,
) -> Result<&'a mut Object, ApplyError> {
    let value = parent.entry(name).or_insert(Value::Null);
    if value.is_null() {
        *value = json!({});
    }
    as_object(value, place)
}

/// The list `name` of `parent`, made when missing or null.
fn list_in<'a>(
    parent: &'a mut Object,
    name: &str,
    place: &'static str,
) -> Result<&'a mut Vec<Value>, ApplyError> {
    let value = parent.entry(name).or_insert(Value::Null);
    if value.is_null() {
        *value = json!([]);
    }
    value.as_array_mut().ok_or(ApplyError::Spec {
        place,
        wanted: "a list",
    })
}

fn add_env(root: &mut Object, env: &[String]) -> Result<(), ApplyError> {
    if env.is_empty() {
        return Ok(());
    }
    let list = list_in(object_in(root, "process", "process")?, "env", "process.env")?;
    let mut added: HashMap<&str, usize> = HashMap::new();
    for entry in env {
        let key = entry.split('=').next().unwrap_or(entry);
        if let Some(slot) = added.get(key).and_then(|&at| list.get_mut(at)) {
            *slot = json!(entry);
        } else {
            added.insert(key, list.len());
            list.push(json!(entry));
        }
    }
    Ok(())
}

/// User and group of the process, where they are not root's.
#[derive(Debug, Clone, Copy, Default)]
struct Owner {
    uid: Option<u64>,
    gid: Option<u64>,
}

impl Owner {
    fn of(root: &Object) -> Self {
        let id = |name: &str| {
            root.get("process")?
                .get("user")?
                .get(name)?
                .as_u64()
                .filter(|&id| id > 0)
        };
        Self {
            uid: id("uid"),
            gid: id("gid"),
        }
    }
}

/// A device node with nothing left open.
struct Filled {
    kind: String,
    major: i64,
    minor: i64,
    mode: Option<u32>,
}

/// Fills what the edits leave open from the host. A node with type and major needs no host.
fn fill(node: &DeviceNode) -> Result<Filled, ApplyError> {
    let host = if node.host_path.is_empty() {
        &node.path
    } else {
        &node.host_path
    };
    let mut filled = Filled {
        kind: node.kind.clone(),
        major: node.major,
        minor: node.minor,
        mode: node.file_mode,
    };
    let complete = !node.kind.is_empty() && (node.major != 0 || node.kind == "p");
    let found = match host_node(Path::new(host)) {
        Ok(found) => found,
        Err(_) if complete => return Ok(filled),
        Err(source) => {
            return Err(ApplyError::NoHostNode {
                path: node.path.clone(),
                host: host.into(),
                source,
            });
        }
    };
    filled.mode = filled.mode.or(Some(found.mode));
    if complete {
        return Ok(filled);
    }
    fill_number(node, host, found, &mut filled)?;
    Ok(filled)
}

fn fill_number(
    node: &DeviceNode,
    host: &str,
    found: HostNode,
    filled: &mut Filled,
) -> Result<(), ApplyError> {
    if filled.kind.is_empty() {
        filled.kind = found.kind.to_string();
    }
    if filled.kind != found.kind.to_string() {
        return Err(ApplyError::TypeMismatch {
            path: node.path.clone(),
            host: host.into(),
            declared: filled.kind.clone(),
            found: found.kind,
        });
    }
    if found.kind != 'p' && filled.major == 0 {
        filled.major = found.major;
        filled.minor = found.minor;
    }
    Ok(())
}

fn add_device(root: &mut Object, node: &DeviceNode, owner: Owner) -> Result<(), ApplyError> {
    let filled = fill(node)?;
    let mut device = Object::new();
    device.insert("path".to_owned(), json!(node.path));
    device.insert("type".to_owned(), json!(filled.kind));
    device.insert("major".to_owned(), json!(filled.major));
    device.insert("minor".to_owned(), json!(filled.minor));
    if let Some(mode) = filled.mode {
        device.insert("fileMode".to_owned(), json!(mode));
    }
    if let Some(uid) = node.uid.map(u64::from).or(owner.uid) {
        device.insert("uid".to_owned(), json!(uid));
    }
    if let Some(gid) = node.gid.map(u64::from).or(owner.gid) {
        device.insert("gid".to_owned(), json!(gid));
    }
    let linux = object_in(root, "linux", "linux")?;
    let devices = list_in(linux, "devices", "linux.devices")?;
    let path = Value::String(node.path.clone());
    if let Some(at) = devices.iter().position(|d| d.get("path") == Some(&path)) {
        devices.remove(at);
    }
    // A second one of that path, if the specification had two, is replaced in its place.
    match devices.iter_mut().find(|d| d.get("path") == Some(&path)) {
        Some(slot) => *slot = Value::Object(device),
        None => devices.push(Value::Object(device)),
    }
    if !matches!(filled.kind.as_str(), "b" | "c") {
        return Ok(());
    }
    let access = if node.permissions.is_empty() {
        "rwm"
    } else {
        &node.permissions
    };
    let resources = object_in(linux, "resources", "linux.resources")?;
    list_in(resources, "devices", "linux.resources.devices")?.push(json!({
        "allow": true,
        "type": filled.kind,
        "major": filled.major,
        "minor": filled.minor,
        "access": access,
    }));
    Ok(())
}

fn add_mounts(root: &mut Object, mounts: &[Mount]) -> Result<(), ApplyError> {
    if mounts.is_empty() {
        return Ok(());
    }
    let list = list_in(root, "mounts", "mounts")?;
    for mount in mounts {
        let destination = Value::String(mount.container_path.clone());
        if let Some(at) = list
            .iter()
            .position(|m| m.get("destination") == Some(&destination))
        {
            list.remove(at);
        }
        let mut value = Object::new();
        value.insert("destination".to_owned(), destination);
        if !mount.kind.is_empty() {
            value.insert("type".to_owned(), json!(mount.kind));
        }
        value.insert("source".to_owned(), json!(mount.host_path));
        if !mount.options.is_empty() {
            value.insert("options".to_owned(), json!(mount.options));
        }
        list.push(Value::Object(value));
    }
    list.sort_by_key(|mount| {
        depth(
            mount
                .get("destination")
                .and_then(Value::as_str)
                .unwrap_or_default(),
        )
    });
    Ok(())
}

/// The number of slashes in a path once it is cleaned of `.`, `..` and repeated slashes.
pub(crate) fn depth(path: &str) -> usize {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(&last) if last != ".." => {
                    parts.pop();
                }
                Some(_) => parts.push(".."),
                None if rooted => {}
                None => parts.push(".."),
            },
            other => parts.push(other),
        }
    }
    if rooted {
        parts.len().max(1)
    } else {
        parts.len().saturating_sub(1)
    }
}

fn add_hook(root: &mut Object, hook: &Hook) -> Result<(), ApplyError> {
    let mut value = Object::new();
    value.insert("path".to_owned(), json!(hook.path));
    if !hook.args.is_empty() {
        value.insert("args".to_owned(), json!(hook.args));
    }
    if !hook.env.is_empty() {
        value.insert("env".to_owned(), json!(hook.env));
    }
    if let Some(timeout) = hook.timeout {
        value.insert("timeout".to_owned(), json!(timeout));
    }
    let hooks = object_in(root, "hooks", "hooks")?;
    list_in(hooks, &hook.stage, "a stage of hooks")?.push(Value::Object(value));
    Ok(())
}

fn rdt_value(rdt: &IntelRdt) -> Value {
    let mut value = Object::new();
    let texts = [
        ("closID", &rdt.clos_id),
        ("l3CacheSchema", &rdt.l3_cache_schema),
        ("memBwSchema", &rdt.mem_bw_schema),
    ];
    for (name, text) in texts {
        if !text.is_empty() {
            value.insert(name.to_owned(), json!(text));
        }
    }
    if let Some(schemata) = rdt.schemata.as_ref().filter(|list| !list.is_empty()) {
        value.insert("schemata".to_owned(), json!(schemata));
    }
    if rdt.enable_monitoring {
        value.insert("enableMonitoring".to_owned(), json!(true));
    }
    Value::Object(value)
}

fn add_groups(root: &mut Object, gids: &[u32]) -> Result<(), ApplyError> {
    if gids.iter().all(|&gid| gid == 0) {
        return Ok(());
    }
    let process = object_in(root, "process", "process")?;
    let user = object_in(process, "user", "process.user")?;
    let list = list_in(user, "additionalGids", "process.user.additionalGids")?;
    for &gid in gids.iter().filter(|&&gid| gid != 0) {
        let gid = json!(gid);
        if !list.contains(&gid) {
            list.push(gid);
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "apply/tests.rs"]
mod tests;
