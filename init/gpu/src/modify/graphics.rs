//! Files of graphics: libraries that are not named by the driver's version alone, Vulkan, EGL and X.Org files, and DRM
//! nodes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use holdfast_cdi::{ContainerEdits, Mount};

use super::Error;
use super::parts::Parts;
use crate::capabilities::VARIABLE;
use crate::driver::{self, Driver};
use crate::image::Image;

/// Whether a container of legacy mode asks for graphics: in its own words, without a default.
pub(super) fn wanted(image: &Image) -> bool {
    image
        .variable(VARIABLE)
        .unwrap_or_default()
        .split(',')
        .any(|word| matches!(word, "graphics" | "display" | "all"))
}

/// Mounts and hook for graphics.
pub(super) struct Files {
    pub(super) mounts: Vec<Mount>,
    pub(super) links: Vec<String>,
}

/// Below `/usr/share` in the container.
const SHARED: [&str; 9] = [
    "glvnd/egl_vendor.d/10_nvidia.json",
    "egl/egl_external_platform.d/15_nvidia_gbm.json",
    "egl/egl_external_platform.d/10_nvidia_wayland.json",
    "egl/egl_external_platform.d/09_nvidia_wayland2.json",
    "egl/egl_external_platform.d/20_nvidia_xcb.json",
    "egl/egl_external_platform.d/20_nvidia_xlib.json",
    "nvidia/nvoptix.bin",
    "X11/xorg.conf.d/10-nvidia.conf",
    "X11/xorg.conf.d/nvidia-drm-outputclass.conf",
];
/// Below `/etc` in the container.
const ETC: [&str; 1] = ["OpenCL/vendors/nvidia.icd"];
/// Below `/etc` in the container; on the host also directly below the driver's root.
const VULKAN: [&str; 4] = [
    "vulkan/icd.d/nvidia_icd.json",
    "vulkan/icd.d/nvidia_layers.json",
    "vulkan/implicit_layer.d/nvidia_layers.json",
    if cfg!(target_arch = "aarch64") {
        "vulkan/icd.d/nvidia_icd.aarch64.json"
    } else {
        "vulkan/icd.d/nvidia_icd.x86_64.json"
    },
];

/// The files of graphics.
pub(super) fn files(parts: &Parts<'_>) -> Result<Files, driver::Error> {
    let driver = parts.driver;
    let version = driver.version()?;
    let mut libraries: Vec<PathBuf> = [
        "libnvidia-egl-gbm.so.*.*".to_owned(),
        "libnvidia-egl-wayland.so.*.*".to_owned(),
        "libnvidia-egl-wayland2.so.*.*".to_owned(),
        "libnvidia-egl-xcb.so.*.*".to_owned(),
        "libnvidia-egl-xlib.so.*.*".to_owned(),
        format!("libnvidia-allocator.so.{version}"),
        format!("libnvidia-vulkan-producer.so.{version}"),
    ]
    .iter()
    .flat_map(|pattern| driver.libraries(pattern))
    .collect();
    let xorg = xorg_dirs(driver.library_dirs()?);
    let dirs: Vec<&str> = xorg.iter().map(String::as_str).collect();
    for name in [
        "nvidia_drv.so".to_owned(),
        format!("libglxserver_nvidia.so.{version}"),
    ] {
        libraries.extend(driver.files(&dirs, &name).into_iter().next());
    }
    let mut mounts = parts.mounts(libraries);
    let links = links(&mounts, version);
    // The driver's libraries are mounted as such; this one is in both lists.
    let allocator = format!("libnvidia-allocator.so.{version}");
    mounts.retain(|mount| Path::new(&mount.container_path).file_name() != Some(allocator.as_ref()));
    mounts.extend(parts.mounts(driver.program("nvidia-xconfig", parts.path)));
    let mut configs = |names: &[&str], container: &str, also_root: bool| {
        let mut seen = BTreeSet::new();
        for name in names {
            let found = parts.config_file(name).or_else(|| {
                also_root
                    .then(|| driver.files(&[""], name).into_iter().next())
                    .flatten()
            });
            if let Some(path) = found.filter(|path| seen.insert(path.clone())) {
                mounts.push(Parts::mount_at(&path, &Path::new(container).join(name)));
            }
        }
    };
    configs(&SHARED, "/usr/share", false);
    configs(&ETC, "/etc", false);
    configs(&VULKAN, "/etc", true);
    Ok(Files { mounts, links })
}

/// Links that graphics programs look for, one `TARGET::LINK` each.
fn links(mounts: &[Mount], version: &str) -> Vec<String> {
    mounts
        .iter()
        .filter_map(|mount| {
            let path = Path::new(&mount.container_path);
            let (dir, name) = (path.parent()?, path.file_name()?.to_str()?);
            let library = name.strip_suffix(version)?.strip_suffix('.')?;
            let (target, link) = match library {
                "libnvidia-allocator.so" => (
                    "../libnvidia-allocator.so.1",
                    dir.join("gbm/nvidia-drm_gbm.so"),
                ),
                "libnvidia-vulkan-producer.so" | "libglxserver_nvidia.so" => {
                    (name, dir.join(library))
                }
                _ => return None,
            };
            Some(format!("{target}::{}", link.display()))
        })
        .collect()
}

/// Where modules of X.Org are: next to the driver's libraries, then in the usual places.
fn xorg_dirs(library_dirs: &[PathBuf]) -> Vec<String> {
    const MODULES: [&str; 4] = [
        "modules/drivers",
        "modules/extensions",
        "modules/updates/drivers",
        "modules/updates/extensions",
    ];
    let below = |base: &Path| MODULES.map(|module| base.join(module).display().to_string());
    let mut usual = Vec::new();
    for base in [
        "/usr/lib/xorg",
        "/usr/lib64/xorg",
        "/usr/X11R6/lib",
        "/usr/X11R6/lib64",
    ] {
        usual.extend(below(Path::new(base)));
    }
    let mut out = Vec::new();
    for dir in library_dirs {
        out.push(dir.join("nvidia/xorg").display().to_string());
        out.extend(below(&dir.join("xorg")));
        out.extend(usual.iter().cloned());
    }
    out
}

/// The edits of graphics in legacy mode.
pub(super) fn legacy_edits(parts: &Parts<'_>, devices: &[String]) -> Result<ContainerEdits, Error> {
    let files = files(parts).map_err(|source| Error::Driver {
        wanted: "graphics need the driver's version",
        source,
    })?;
    let mut edits = ContainerEdits::default();
    let buses = selected_buses(parts.driver, devices);
    add_drm_nodes(parts, &mut edits, &buses);
    let by_path = by_path_links(parts.driver, &edits);
    edits.hooks.extend(parts.tool.links(&by_path));
    edits.mounts = files.mounts;
    edits.hooks.extend(parts.tool.links(&files.links));
    Ok(edits)
}

/// The PCI addresses of the devices asked for, from what the kernel module tells in `/proc`.
fn selected_buses(driver: &Driver, devices: &[String]) -> Vec<String> {
    let all = devices.iter().any(|device| device == "all");
    let void = devices
        .iter()
        .any(|device| matches!(device.as_str(), "" | "none" | "void"));
    if void && !all {
        return Vec::new();
    }
    let has = |id: &str| !id.is_empty() && (all || devices.iter().any(|device| device == id));
    driver
        .files(&[""], "/proc/driver/nvidia/gpus/*/information")
        .iter()
        .filter_map(|path| {
            let text = fs::read_to_string(path).ok()?;
            let field = |name: &str| {
                text.lines()
                    .filter_map(|line| line.split_once(':'))
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| value.trim().to_owned())
                    .unwrap_or_default()
            };
            let bus = field("Bus Location");
            let chosen = has(&field("Device Minor")) || has(&field("GPU UUID")) || has(&bus);
            chosen.then_some(bus)
        })
        .collect()
}

/// The names of the DRM nodes of a PCI device: `/dev/dri/card0`, `/dev/dri/renderD128`.
pub(super) fn drm_nodes(bus: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(format!("/sys/bus/pci/devices/{bus}/drm")) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| Some(format!("/dev/dri/{}", entry.ok()?.file_name().to_str()?)))
        .collect();
    names.sort();
    names
}

fn add_drm_nodes(parts: &Parts<'_>, edits: &mut ContainerEdits, buses: &[String]) {
    let wanted: Vec<String> = buses.iter().flat_map(|bus| drm_nodes(bus)).collect();
    for pattern in ["/dev/dri/card*", "/dev/dri/renderD*"] {
        for path in parts.driver.char_devices(pattern) {
            let inside = parts.driver.inside(&path).display().to_string();
            if wanted.contains(&inside) {
                parts.add_devices(edits, &[&inside]);
            }
        }
    }
}

/// The links in `/dev/dri/by-path` to DRM nodes that are injected.
fn by_path_links(driver: &Driver, edits: &ContainerEdits) -> Vec<String> {
    let injected: BTreeSet<_> = edits
        .device_nodes
        .iter()
        .filter_map(|node| Path::new(&node.path).file_name())
        .collect();
    driver
        .files(&[""], "/dev/dri/by-path/pci-*-*")
        .iter()
        .filter_map(|link| {
            let target = fs::read_link(link).ok()?;
            injected
                .contains(target.file_name()?)
                .then(|| format!("{}::{}", target.display(), link.display()))
        })
        .collect()
}
