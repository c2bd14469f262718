//! The pieces that edits are made of: mounts of driver files, device nodes, links.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use holdfast_cdi::{ContainerEdits, DeviceNode, Mount, host_node};

use super::Setup;
use super::hooks::{HookTool, hook_tool};
use crate::config::Config;
use crate::driver::Driver;

/// Options of a mounted file.
const READ_ONLY: [&str; 5] = ["ro", "nosuid", "nodev", "rbind", "rprivate"];
/// Options of a mounted socket or pipe directory.
const IPC: [&str; 5] = ["nosuid", "nodev", "rbind", "rprivate", "noexec"];

/// What edits are made from.
pub(super) struct Parts<'a> {
    pub(super) config: &'a Config,
    pub(super) driver: &'a Driver,
    pub(super) tool: HookTool,
    pub(super) path: Option<&'a OsStr>,
    pub(super) data_dirs: Option<&'a OsStr>,
}

fn options(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

impl<'a> Parts<'a> {
    pub(super) fn new(setup: &'a Setup<'a>, driver: &'a Driver, disabled_hooks: &[String]) -> Self {
        let path = setup.path.as_deref();
        Self {
            config: setup.config,
            driver,
            tool: hook_tool(setup.config, path, disabled_hooks),
            path,
            data_dirs: setup.data_dirs.as_deref(),
        }
    }

    /// Files mounted where they are on the host, without the driver's root.
    pub(super) fn mounts(&self, paths: impl IntoIterator<Item = PathBuf>) -> Vec<Mount> {
        let mut out: Vec<Mount> = Vec::new();
        for path in paths {
            let mount = Mount {
                host_path: text(&path),
                container_path: text(&self.driver.inside(&path)),
                options: options(&READ_ONLY),
                kind: String::new(),
            };
            if !out.contains(&mount) {
                out.push(mount);
            }
        }
        out
    }

    /// As [`Self::mounts`], writable: sockets.
    pub(super) fn ipc_mounts(&self, paths: impl IntoIterator<Item = PathBuf>) -> Vec<Mount> {
        let mut mounts = self.mounts(paths);
        for mount in &mut mounts {
            mount.options = options(&IPC);
        }
        mounts
    }

    /// A file mounted at another place.
    pub(super) fn mount_at(path: &Path, destination: &Path) -> Mount {
        Mount {
            host_path: text(path),
            container_path: text(destination),
            options: options(&READ_ONLY),
            kind: String::new(),
        }
    }

    /// The character devices that match, each with number, mode and group of the host.
    pub(super) fn add_devices(&self, edits: &mut ContainerEdits, patterns: &[&str]) {
        for pattern in patterns {
            for path in self.driver.char_devices(pattern) {
                self.add_device(edits, &path);
            }
        }
    }

    fn add_device(&self, edits: &mut ContainerEdits, path: &Path) {
        let inside = text(&self.driver.inside(path));
        let mut node = DeviceNode {
            host_path: text(path),
            path: inside,
            ..DeviceNode::default()
        };
        if let Ok(found) = host_node(path) {
            node.major = found.major;
            node.minor = found.minor;
            node.file_mode = Some(found.mode).filter(|mode| *mode != 0);
            node.gid = Some(found.gid).filter(|gid| *gid != 0);
            "rwm".clone_into(&mut node.permissions);
        }
        if node.host_path == node.path {
            node.host_path = String::new();
        }
        if let (Some(gid), Some(mode)) = (node.gid, node.file_mode) {
            let open_to_all = mode & 0o006 == 0o006;
            if !open_to_all && !self.config.features.no_additional_gids_for_device_nodes {
                edits.additional_gids.push(gid);
            }
        }
        if !edits.device_nodes.contains(&node) {
            edits.device_nodes.push(node);
        }
    }

    /// A configuration file of the driver: in `/etc`, then in the data directories, below its root.
    pub(super) fn config_file(&self, name: &str) -> Option<PathBuf> {
        let mut dirs = vec!["/etc".to_owned()];
        let given = self.data_dirs.filter(|dirs| !dirs.is_empty());
        match given {
            Some(given) => dirs.extend(
                given
                    .as_bytes()
                    .split(|byte| *byte == b':')
                    .map(|dir| String::from_utf8_lossy(dir).into_owned()),
            ),
            None => dirs.extend(["/usr/local/share".to_owned(), "/usr/share".to_owned()]),
        }
        let dirs: Vec<&str> = dirs.iter().map(String::as_str).collect();
        self.driver.files(&dirs, name).into_iter().next()
    }
}

/// Edits in the order in which the toolkit writes them: device nodes and mounts by depth, then by name; each once.
pub(super) fn tidy(edits: &mut ContainerEdits) {
    dedup(&mut edits.env);
    dedup(&mut edits.hooks);
    dedup(&mut edits.device_nodes);
    dedup(&mut edits.mounts);
    edits.additional_gids.sort_unstable();
    edits.additional_gids.dedup();
    let depth = |path: &str| Path::new(path).components().count();
    edits
        .device_nodes
        .sort_by(|a, b| (depth(&a.path), &a.path).cmp(&(depth(&b.path), &b.path)));
    edits.mounts.sort_by(|a, b| {
        (depth(&a.container_path), &a.container_path)
            .cmp(&(depth(&b.container_path), &b.container_path))
    });
}

fn dedup<T: PartialEq>(items: &mut Vec<T>) {
    let mut kept: Vec<T> = Vec::with_capacity(items.len());
    for item in items.drain(..) {
        if !kept.contains(&item) {
            kept.push(item);
        }
    }
    *items = kept;
}

/// A device's edits without what the common ones have already, unless nothing would be left.
pub(super) fn without_common(edits: &ContainerEdits, common: &ContainerEdits) -> ContainerEdits {
    let mut own = edits.clone();
    own.env.retain(|one| !common.env.contains(one));
    own.hooks.retain(|one| !common.hooks.contains(one));
    own.device_nodes
        .retain(|one| !common.device_nodes.contains(one));
    own.mounts.retain(|one| !common.mounts.contains(one));
    let nothing = own.env.is_empty()
        && own.hooks.is_empty()
        && own.device_nodes.is_empty()
        && own.mounts.is_empty();
    if nothing { edits.clone() } else { own }
}
