//! `state`: what the container is, as JSON; also what hooks and agents are told.

use std::collections::HashMap;
use std::path::PathBuf;

use holdfast_record::process::ProcessIdentity;
use holdfast_record::{ContainerId, Timestamp};
use serde::Serialize;

use super::Context;
use crate::error::{Error, Result};
use crate::state::{Container, Status};

/// The document that `state` prints: runc's fields, in runc's order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Document {
    oci_version: String,
    id: String,
    pid: i32,
    status: &'static str,
    bundle: PathBuf,
    rootfs: PathBuf,
    created: Timestamp,
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    annotations: HashMap<String, String>,
    owner: String,
}

impl Document {
    /// Describes a container as it is now.
    pub fn of(container: &Container) -> Self {
        let status = container.status();
        Self::with(container, status)
    }

    fn with(container: &Container, status: Status) -> Self {
        let saved = &container.saved;
        let pid = if status.has_process() {
            container
                .init
                .as_ref()
                .map_or(0, |init| init.pid.cast_signed())
        } else {
            0
        };
        Self {
            oci_version: saved.oci_version.clone(),
            id: saved.id.to_string(),
            pid,
            status: status.name(),
            bundle: saved.bundle.clone(),
            rootfs: saved.rootfs.clone(),
            created: saved.created,
            annotations: saved.annotations.clone(),
            owner: owner(saved.owner),
        }
    }

    /// The status' name.
    pub fn status(&self) -> &'static str {
        self.status
    }

    /// Columns of `list`: id, pid, status, bundle, created, owner.
    pub fn columns(&self) -> [String; 6] {
        [
            self.id.clone(),
            self.pid.to_string(),
            self.status.to_owned(),
            self.bundle.display().to_string(),
            self.created.to_string(),
            self.owner.clone(),
        ]
    }
}

fn owner(uid: u32) -> String {
    if uid == 0 {
        return "root".into();
    }
    match nix::unistd::User::from_uid(uid.into()) {
        Ok(Some(user)) => user.name,
        Ok(None) | Err(_) => format!("#{uid}"),
    }
}

/// Prints the state.
///
/// # Errors
/// [`Error::NoContainer`].
pub fn state(context: &Context, id: &ContainerId) -> Result<String> {
    let container = context.container(id)?;
    render(&Document::of(&container))
}

fn render<T: Serialize>(document: &T) -> Result<String> {
    serde_json::to_string_pretty(document).map_err(|source| Error::Json {
        path: "the state to print".into(),
        source,
    })
}

/// The status a stage of hooks is promised (runtime-spec, `config.md#posix-platform-hooks`).
#[derive(Debug, Clone, Copy)]
pub(super) enum HookStatus {
    Creating,
    Created,
    Running,
    Stopped,
}

/// The state on a hook's standard input.
pub(super) fn for_hooks(
    context: &Context,
    id: &ContainerId,
    status: HookStatus,
) -> Result<Vec<u8>> {
    let container = context.container(id)?;
    let state = oci(&container, status);
    serde_json::to_vec(&state).map_err(|source| Error::Json {
        path: "the state for hooks".into(),
        source,
    })
}

/// The state for hooks that run before a restored process is recorded.
pub(super) fn for_restore_hooks(context: &Context, id: &ContainerId, pid: i32) -> Result<Vec<u8>> {
    let mut container = context.container(id)?;
    container.init = ProcessIdentity::read(pid.cast_unsigned()).ok();
    let state = oci(&container, HookStatus::Creating);
    serde_json::to_vec(&state).map_err(|source| Error::Json {
        path: "the state for hooks".into(),
        source,
    })
}

/// The state for a seccomp agent.
pub(super) fn oci_state(context: &Context, id: &ContainerId) -> Result<oci_spec::runtime::State> {
    let container = context.container(id)?;
    let value = oci(&container, HookStatus::Creating);
    serde_json::from_value(value).map_err(|source| Error::Json {
        path: "the state for the seccomp agent".into(),
        source,
    })
}

fn oci(container: &Container, status: HookStatus) -> serde_json::Value {
    let saved = &container.saved;
    let pid = container.init.as_ref().map_or(0, |init| init.pid);
    let (name, pid) = match status {
        HookStatus::Creating => ("creating", pid),
        HookStatus::Created => ("created", pid),
        HookStatus::Running => ("running", pid),
        HookStatus::Stopped => ("stopped", 0),
    };
    serde_json::json!({
        "ociVersion": saved.oci_version,
        "id": saved.id,
        "status": name,
        "pid": pid,
        "bundle": saved.bundle,
        "annotations": saved.annotations,
    })
}
