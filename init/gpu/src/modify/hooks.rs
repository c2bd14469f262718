//! Hooks: the toolkit's prestart hook, and the small programs that CDI edits name.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use holdfast_cdi::{ContainerEdits, Hook};
use serde_json::{Value, json};

use super::Error;
use super::parts::Parts;
use crate::config::Config;
use crate::hook;
use crate::paths::{find_program, is_executable, search_path};

/// Where the prestart hook is when it is not found.
const DEFAULT_HOOK: &str = "/usr/bin/nvidia-container-runtime-hook";
/// Where `nvidia-ctk` is when it is not found.
const DEFAULT_CTK: &str = "/usr/bin/nvidia-ctk";

/// The prestart hook of legacy mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrestartHook {
    /// Its path.
    pub path: PathBuf,
}

/// An absolute path as it is, and a relative one that leads to a program from here; another name searched in `path` and
/// the usual directories, with a last resort.
fn resolve(configured: &str, path: Option<&OsStr>, last_resort: &str) -> PathBuf {
    if configured.starts_with('/') {
        return configured.into();
    }
    if configured.contains('/') {
        let relative = PathBuf::from(configured);
        return if is_executable(&relative) {
            relative
        } else {
            last_resort.into()
        };
    }
    let name = if configured.is_empty() {
        Path::new(last_resort).file_name().and_then(OsStr::to_str)
    } else {
        Some(configured)
    };
    name.and_then(|name| find_program(name, &search_path(path, "")))
        .unwrap_or_else(|| last_resort.into())
}

/// The path of the prestart hook.
#[must_use]
pub fn hook_path(config: &Config, path: Option<&OsStr>) -> PathBuf {
    resolve(&config.hook.path, path, DEFAULT_HOOK)
}

impl PrestartHook {
    /// The configured one.
    #[must_use]
    pub fn of(config: &Config, path: Option<&OsStr>) -> Self {
        Self {
            path: hook_path(config, path),
        }
    }

    /// Appends it to the prestart hooks, unless one of its names is among them. Other stages are not looked at.
    pub fn insert(&self, spec: &mut Value) {
        if prestart(spec).is_some_and(|hooks| hooks.iter().any(is_ours)) {
            return;
        }
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let hook = json!({"path": self.path.display().to_string(), "args": [name, "prestart"]});
        let hooks = &mut spec["hooks"];
        if !hooks.is_object() {
            *hooks = json!({});
        }
        let list = &mut hooks["prestart"];
        match list.as_array_mut() {
            Some(list) => list.push(hook),
            None => *list = json!([hook]),
        }
    }
}

fn prestart(spec: &mut Value) -> Option<&mut Vec<Value>> {
    spec.get_mut("hooks")?.get_mut("prestart")?.as_array_mut()
}

fn is_ours(hook: &Value) -> bool {
    let path = hook.get("path").and_then(Value::as_str).unwrap_or_default();
    hook::is_its_name(OsStr::new(path))
}

/// Takes the prestart hook out, by its names. A list that becomes empty goes too, as Go writes it.
pub(super) fn remove(spec: &mut Value) {
    let Some(list) = prestart(spec) else { return };
    let before = list.len();
    list.retain(|hook| !is_ours(hook));
    if list.is_empty()
        && before > 0
        && let Some(hooks) = spec.get_mut("hooks").and_then(Value::as_object_mut)
    {
        hooks.remove("prestart");
    }
}

/// The program that CDI edits call in a container: `nvidia-cdi-hook`, or `nvidia-ctk hook`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookTool {
    /// Its path.
    pub path: PathBuf,
    /// What is not called.
    disabled: Vec<String>,
}

/// The configured program (`nvidia-ctk.path`), without the calls named in `disabled`.
#[must_use]
pub fn hook_tool(config: &Config, path: Option<&OsStr>, disabled: &[String]) -> HookTool {
    HookTool {
        path: resolve(&config.ctk.path, path, DEFAULT_CTK),
        disabled: disabled.to_vec(),
    }
}

impl HookTool {
    /// A call, unless it is switched off.
    pub(super) fn call(&self, name: &str, args: impl IntoIterator<Item = String>) -> Option<Hook> {
        if self.disabled.iter().any(|one| one == "all" || one == name) {
            return None;
        }
        let program = self.path.file_name().unwrap_or_default().to_string_lossy();
        let mut words = vec![program.clone().into_owned()];
        if program == "nvidia-ctk" {
            words.push("hook".to_owned());
        }
        words.push(name.to_owned());
        words.extend(args);
        Some(Hook {
            stage: "createContainer".to_owned(),
            path: self.path.display().to_string(),
            args: words,
            // Never empty: a hook without an environment would inherit one (CVE-2025-23266).
            env: vec!["NVIDIA_CTK_DEBUG=false".to_owned()],
            timeout: None,
        })
    }

    /// The call that makes links in a container, one `TARGET::LINK` each.
    pub(super) fn links(&self, links: &[String]) -> Option<Hook> {
        if links.is_empty() {
            return None;
        }
        let args = links
            .iter()
            .flat_map(|link| ["--link".to_owned(), link.clone()]);
        self.call("create-symlinks", args)
    }

    /// The call that finds the CUDA compat libraries of an image.
    pub(super) fn cuda_compat(&self, version: &str) -> Option<Hook> {
        let version = (!version.contains('*')).then(|| format!("--host-driver-version={version}"));
        self.call("enable-cuda-compat", version)
    }
}

/// The CUDA compat hook of legacy mode, where the configuration wants it.
pub(super) fn cuda_compat(parts: &Parts<'_>) -> Result<Option<ContainerEdits>, Error> {
    let config = parts.config;
    if config.features.disable_cuda_compat_lib_hook
        || config.runtime.modes.legacy.cuda_compat_mode != "hook"
    {
        return Ok(None);
    }
    let version = parts.driver.version().map_err(|source| Error::Driver {
        wanted: "cuda-compat-mode = \"hook\" needs the driver's version",
        source,
    })?;
    let hooks = parts.tool.cuda_compat(version).into_iter().collect();
    Ok(Some(ContainerEdits {
        hooks,
        ..ContainerEdits::default()
    }))
}
