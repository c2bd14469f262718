//! jit-cdi: edits made on the spot, from what NVML and the driver's files say.
//!
//! Per GPU: its device node, DRM nodes of its PCI address and the links to them; for a MIG device the nodes of its
//! capabilities. In common: the driver's control nodes, its libraries, programs, firmware and sockets, and the hooks
//! that make them usable inside. Driver capabilities and `NVIDIA_REQUIRE_*` have no say here, as in the original.

mod imex;
mod libraries;

use std::fs;

use holdfast_cdi::ContainerEdits;

use super::graphics::{self, drm_nodes};
use super::parts::{Parts, tidy, without_common};
use super::{Error, Setup, gated, imex_channels};
use crate::driver::Driver;
use crate::image::Image;
use crate::mode::{self, Platform};
use crate::nvml::{self, Entry, Gpu, Instance, Inventory};

/// The driver's control nodes.
const CONTROL: [&str; 4] = [
    "/dev/nvidia-modeset",
    "/dev/nvidia-uvm-tools",
    "/dev/nvidia-uvm",
    "/dev/nvidiactl",
];
/// The driver's programs.
const PROGRAMS: [&str; 7] = [
    "nvidia-smi",
    "nvidia-debugdump",
    "nvidia-persistenced",
    "nvidia-cuda-mps-control",
    "nvidia-cuda-mps-server",
    "nvidia-imex",
    "nvidia-imex-ctl",
];
/// Libraries without the driver's version in their name, mounted on demand.
const EXPLICIT: [&str; 11] = [
    "libEGL.so",
    "libGL.so",
    "libGLESv1_CM.so",
    "libGLESv2.so",
    "libGLX.so",
    "libGLdispatch.so",
    "libOpenCL.so",
    "libOpenGL.so",
    "libnvidia-api.so",
    "libnvidia-egl-xcb.so",
    "libnvidia-egl-xlib.so",
];

/// A device chosen from the inventory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection<'a> {
    /// A whole GPU.
    Gpu(&'a Gpu),
    /// A part of one.
    Instance(&'a Gpu, &'a Instance),
}

impl Selection<'_> {
    /// Its name: the index, with the part's behind a colon.
    fn name(&self) -> String {
        match self {
            Self::Gpu(gpu) => gpu.index.to_string(),
            Self::Instance(gpu, part) => format!("{}:{}", gpu.index, part.index),
        }
    }
}

type Named = (String, ContainerEdits);

/// The edits for devices of the automatic kind, named without it, and for what the container asks for besides.
pub(super) fn edits(
    setup: &Setup<'_>,
    image: &Image,
    devices: &[String],
) -> Result<Vec<Named>, Error> {
    let config = setup.config;
    let files = Driver::new(&config.cli.root, None);
    let inventory = ask(setup, &files)?;
    let driver = Driver::new(&config.cli.root, inventory.driver.clone());
    let parts = Parts::new(setup, &driver, &config.runtime.modes.jit_cdi.disable_hooks);
    let mut out = automatic(setup, &parts, &inventory, devices)?;
    for feature in gated::requested(image) {
        out.extend(gated::edits(&parts, feature));
    }
    out.extend(imex::edits(
        &parts,
        &imex_channels(image, config),
        setup.strict,
    )?);
    Ok(out)
}

/// The GPUs of the node.
fn ask(setup: &Setup<'_>, files: &Driver) -> Result<Inventory, Error> {
    if mode::platform(files.root(), || false) == Platform::Tegra {
        return Err(Error::CsvUnsupported);
    }
    let library = files.libraries(nvml::LIBRARY).into_iter().next();
    // Not in the usual places: the dynamic linker may know.
    let library = library.unwrap_or_else(|| nvml::LIBRARY.into());
    let inventory = nvml::ask(&library, setup.deadline)?;
    if inventory.has_integrated() {
        return Err(Error::CsvUnsupported);
    }
    Ok(inventory)
}

fn automatic(
    setup: &Setup<'_>,
    parts: &Parts<'_>,
    inventory: &Inventory,
    devices: &[String],
) -> Result<Vec<Named>, Error> {
    let mut out = Vec::new();
    match select(inventory, devices, setup.strict)? {
        None => out.push((
            "no device".to_owned(),
            ContainerEdits {
                env: vec!["NVCT_EMPTY_DEVICE=".to_owned()],
                ..ContainerEdits::default()
            },
        )),
        Some(selected) => {
            for device in &selected {
                out.push((device.name(), device_edits(setup, parts, device)?));
            }
            // By name as text, as the toolkit sorts: 10 comes before 2.
            out.sort_by(|a, b| a.0.cmp(&b.0));
        }
    }
    let mut common = common(parts)?;
    tidy(&mut common);
    for (name, edits) in &mut out {
        tidy(edits);
        *edits = without_common(edits, &common);
        *name = format!("device {name}");
    }
    out.push(("the driver".to_owned(), common));
    Ok(out)
}

/// The devices asked for, in the order of the request. `None`: the driver without a device.
fn select<'a>(
    inventory: &'a Inventory,
    devices: &[String],
    strict: bool,
) -> Result<Option<Vec<Selection<'a>>>, Error> {
    let mut out = Vec::new();
    for id in devices {
        match id.as_str() {
            "none" => return Ok(None),
            "all" => return all(inventory, strict).map(Some),
            id => {
                let found = find(inventory, id)?;
                // By its index and by its UUID: the original injects such a device twice.
                if !(strict && out.contains(&found)) {
                    out.push(found);
                }
            }
        }
    }
    Ok(Some(out))
}

/// All GPUs that are not divided, then the parts of those that are.
fn all(inventory: &Inventory, strict: bool) -> Result<Vec<Selection<'_>>, Error> {
    if let Some(Entry::Broken { index, failure }) = inventory
        .gpus
        .iter()
        .find(|entry| matches!(entry, Entry::Broken { .. }))
    {
        return Err(broken(inventory, "all", *index, failure));
    }
    let whole = inventory
        .working()
        .filter(|gpu| !gpu.mig)
        .map(Selection::Gpu);
    let parts = inventory.working().filter(|gpu| gpu.mig).flat_map(|gpu| {
        gpu.instances
            .iter()
            .map(move |part| Selection::Instance(gpu, part))
    });
    let out: Vec<_> = whole.chain(parts).collect();
    if out.is_empty() && strict {
        return Err(Error::NoGpus);
    }
    Ok(out)
}

fn broken(inventory: &Inventory, id: &str, index: u32, failure: &nvml::Failure) -> Error {
    Error::NoSuchGpu {
        id: id.to_owned(),
        why: format!("GPU {index} does not work: {failure}; {}", failure.advice()),
        known: known(inventory),
    }
}

/// By index, `index:part`, or UUID.
fn find<'a>(inventory: &'a Inventory, id: &str) -> Result<Selection<'a>, Error> {
    let missing = |why: &str| Error::NoSuchGpu {
        id: id.to_owned(),
        why: why.to_owned(),
        known: known(inventory),
    };
    let by_index = |text: &str| {
        let index = number(text).ok_or_else(|| missing("it is no index, GPU-… or MIG-…"))?;
        let entry = usize::try_from(index)
            .ok()
            .and_then(|at| inventory.gpus.get(at));
        match entry {
            Some(Entry::Gpu(gpu)) => Ok(gpu),
            Some(Entry::Broken { index, failure }) => Err(broken(inventory, id, *index, failure)),
            None => Err(missing("there is no GPU of this index")),
        }
    };
    if id.starts_with("GPU-") {
        let found = inventory.working().find(|gpu| gpu.uuid == id);
        return found
            .map(Selection::Gpu)
            .ok_or_else(|| missing("there is no GPU of this UUID"));
    }
    if let Some(rest) = id.strip_prefix("MIG-") {
        return inventory
            .working()
            .flat_map(|gpu| gpu.instances.iter().map(move |part| (gpu, part)))
            .find(|(gpu, part)| {
                part.uuid == id || rest == format!("{}/{}/{}", gpu.uuid, part.gi, part.ci)
            })
            .map(|(gpu, part)| Selection::Instance(gpu, part))
            .ok_or_else(|| missing("there is no MIG device of this UUID"));
    }
    match id.split_once(':') {
        None => by_index(id).map(Selection::Gpu),
        Some((gpu, part)) => {
            let gpu = by_index(gpu)?;
            let part = number(part).ok_or_else(|| missing("it is no GPU:MIG index"))?;
            gpu.instances
                .iter()
                .find(|one| u64::from(one.index) == part)
                .map(|part| Selection::Instance(gpu, part))
                .ok_or_else(|| missing("the GPU has no MIG device of this index"))
        }
    }
}

/// Decimal digits only.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

fn known(inventory: &Inventory) -> String {
    let names: Vec<_> = inventory
        .working()
        .map(|gpu| format!("{} ({})", gpu.index, gpu.uuid))
        .collect();
    if names.is_empty() {
        "no GPU that works".to_owned()
    } else {
        names.join(", ")
    }
}

fn device_edits(
    setup: &Setup<'_>,
    parts: &Parts<'_>,
    device: &Selection<'_>,
) -> Result<ContainerEdits, Error> {
    let (Selection::Gpu(gpu) | Selection::Instance(gpu, _)) = device;
    let mut edits = ContainerEdits::default();
    let mut nodes = vec![format!("/dev/nvidia{}", gpu.minor)];
    match device {
        Selection::Gpu(_) => nodes.extend(drm_nodes(&gpu.sysfs_address())),
        Selection::Instance(_, part) => nodes.extend(capability_nodes(gpu, part)?),
    }
    let names: Vec<&str> = nodes.iter().map(String::as_str).collect();
    parts.add_devices(&mut edits, &names);
    // DRM nodes are for graphics: one that is missing is not missed by CUDA.
    let needed = nodes.iter().filter(|node| !node.starts_with("/dev/dri/"));
    for node in needed.filter(|_| setup.strict) {
        if !edits.device_nodes.iter().any(|have| have.path == **node) {
            return Err(Error::MissingNode {
                gpu: device.name(),
                path: parts.driver.below(node),
            });
        }
    }
    let links = by_path_links(parts.driver, &gpu.sysfs_address(), &edits);
    edits.hooks.extend(parts.tool.links(&links));
    Ok(edits)
}

/// The nodes of a MIG device's capabilities, whose minor numbers the driver lists.
fn capability_nodes(gpu: &Gpu, part: &Instance) -> Result<[String; 2], Error> {
    const LIST: &str = "/proc/driver/nvidia-caps/mig-minors";
    let missing = |why: String| Error::Mig {
        uuid: part.uuid.clone(),
        why,
    };
    let list = fs::read_to_string(LIST).map_err(|error| missing(format!("{LIST}: {error}")))?;
    let node = |capability: String| {
        list.lines()
            .filter_map(|line| line.split_once(' '))
            .find(|(name, _)| *name == capability)
            .and_then(|(_, minor)| number(minor.trim()))
            .map(|minor| format!("/dev/nvidia-caps/nvidia-cap{minor}"))
            .ok_or_else(|| missing(format!("{LIST} does not have {capability}")))
    };
    let (gpu, gi) = (gpu.minor, part.gi);
    Ok([
        node(format!("gpu{gpu}/gi{gi}/access"))?,
        node(format!("gpu{gpu}/gi{gi}/ci{}/access", part.ci))?,
    ])
}

/// The links of a PCI device in `/dev/dri/by-path`, where what they lead to is injected.
fn by_path_links(driver: &Driver, bus: &str, edits: &ContainerEdits) -> Vec<String> {
    ["card", "render"]
        .iter()
        .filter_map(|kind| {
            let link = driver.below(&format!("/dev/dri/by-path/pci-{bus}-{kind}"));
            let target = fs::read_link(&link).ok()?;
            let dir = link.parent()?;
            let node = crate::paths::absolute(dir, target.as_os_str());
            let inside = driver.inside(&node).display().to_string();
            edits
                .device_nodes
                .iter()
                .any(|have| have.path == inside)
                .then(|| format!("{}::{}", target.display(), link.display()))
        })
        .collect()
}

/// What every container with the driver gets.
fn common(parts: &Parts<'_>) -> Result<ContainerEdits, Error> {
    let wanted = "the driver's files";
    let needed = |source| Error::Driver { wanted, source };
    let driver = parts.driver;
    let flag = |name: &str| {
        let flags = &parts.config.runtime.modes.jit_cdi.feature_flags;
        flags.iter().any(|flag| flag == name)
    };
    let version = driver.version().map_err(needed)?;
    let mut edits = ContainerEdits::default();
    parts.add_devices(&mut edits, &CONTROL);

    let graphics = graphics::files(parts).map_err(needed)?;
    edits.mounts.extend(graphics.mounts);
    edits.hooks.extend(parts.tool.links(&graphics.links));

    let mut libraries = driver
        .own_libraries(&["vdpau"], &format!("*.so.{version}"))
        .map_err(needed)?;
    libraries.extend(
        driver
            .own_libraries(&[], "libnvidia-nvvm70.so.*")
            .map_err(needed)?,
    );
    if flag("enable-explicit-driver-libraries") {
        for name in EXPLICIT {
            libraries.extend(driver.own_libraries(&[], name).map_err(needed)?);
        }
    }
    let mounts = parts.mounts(libraries);
    let links = libraries::links(&mounts);
    let folders = libraries::folders(&mounts);
    edits.mounts.extend(mounts);
    if !flag("disable-ipc-discoverer") {
        let sockets = [
            "/nvidia-persistenced/socket",
            "/nvidia-fabricmanager/socket",
        ];
        let sockets = sockets
            .iter()
            .filter_map(|name| driver.files(&["/run", "/var/run"], name).into_iter().next());
        edits.mounts.extend(parts.ipc_mounts(sockets));
        // A file locator finds the pipe directory of MPS only if it is no directory; so does the original's.
        let mps = driver.files(&[""], "/tmp/nvidia-mps").into_iter().next();
        edits.mounts.extend(parts.ipc_mounts(mps));
    }
    let firmware = firmware_dirs();
    let dirs: Vec<&str> = firmware.iter().map(String::as_str).collect();
    edits
        .mounts
        .extend(parts.mounts(driver.files(&dirs, &format!("nvidia/{version}/gsp*.bin"))));
    let programs = PROGRAMS
        .iter()
        .filter_map(|name| driver.program(name, parts.path));
    edits.mounts.extend(parts.mounts(programs));

    let tool = &parts.tool;
    edits.hooks.extend(tool.links(&links));
    edits.hooks.extend(tool.cuda_compat(version));
    if !folders.is_empty() {
        let args = folders
            .iter()
            .flat_map(|dir| ["--folder".to_owned(), dir.clone()]);
        edits.hooks.extend(tool.call("update-ldcache", args));
    }
    edits
        .hooks
        .extend(tool.call("disable-device-node-modification", None));
    edits
        .hooks
        .extend(tool.call("update-application-profile", None));

    let dirs: Vec<_> = driver
        .library_dirs()
        .map_err(needed)?
        .iter()
        .map(|dir| dir.display().to_string())
        .collect();
    edits.env = vec![
        format!("NVIDIA_CTK_LIBCUDA_DIR={}", dirs.join(":")),
        "NVIDIA_VISIBLE_DEVICES=void".to_owned(),
    ];
    Ok(edits)
}

/// Where the kernel looks for firmware.
fn firmware_dirs() -> Vec<String> {
    let mut out = Vec::new();
    let custom =
        fs::read_to_string("/sys/module/firmware_class/parameters/path").unwrap_or_default();
    if !custom.trim().is_empty() {
        out.push(custom.trim().to_owned());
    }
    let release = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    out.push(format!("/lib/firmware/updates/{release}"));
    out.push("/lib/firmware/updates/".to_owned());
    out.push(format!("/lib/firmware/{release}"));
    out.push("/lib/firmware/".to_owned());
    out
}
