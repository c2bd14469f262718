//! Which device nodes a legacy request needs, found in `/proc` without asking the driver's library.
//!
//! Used to allow the devices in the specification before the cgroup exists, and to see afterwards whether all of them
//! came. GPUs are numbered in the order of their PCI address, as NVML numbers them; a MIG device cannot be found this
//! way, and then the CLI has to write the rules itself.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::request::Request;

/// A GPU of `/proc/driver/nvidia/gpus`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Such as `0000:07:00.0`.
    pub pci: String,
    /// Such as `GPU-fef8…`; the driver does not know it before the GPU's first use.
    pub uuid: String,
    /// Of its node `/dev/nvidiaN`.
    pub minor: u32,
}

/// A character device that is to be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Number {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// What a request needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nodes {
    /// Names below `/dev` of the GPUs themselves, which have to be in the container afterwards.
    pub gpus: Vec<String>,
    /// All devices, each once.
    pub numbers: Vec<Number>,
}

/// Why the nodes are not known beforehand.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// Nothing of the driver is there yet; the CLI may load it.
    #[error("the driver is not loaded yet")]
    NoDriver,
    /// A device that is not in `/proc`: a MIG device, or none at all.
    #[error("{0:?} is no GPU of /proc/driver/nvidia/gpus")]
    Device(String),
    /// A node without number.
    #[error("/dev/{0} does not exist and its driver has no major number in /proc/devices")]
    Number(String),
}

/// A system's `/proc` and `/dev`.
#[derive(Clone, Debug)]
pub struct Host {
    proc: PathBuf,
    dev: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        Self::below(Path::new("/"))
    }
}

impl Host {
    /// The system whose root is at `root`.
    #[must_use]
    pub fn below(root: &Path) -> Self {
        Self {
            proc: root.join("proc"),
            dev: root.join("dev"),
        }
    }

    /// The GPUs in the order of their PCI address. Those that the driver was told to leave alone are not among them.
    #[must_use]
    pub fn gpus(&self) -> Vec<Gpu> {
        let Ok(entries) = fs::read_dir(self.proc.join("driver/nvidia/gpus")) else {
            return Vec::new();
        };
        let mut gpus: Vec<Gpu> = entries
            .filter_map(Result::ok)
            .filter_map(|entry| {
                let text = fs::read_to_string(entry.path().join("information")).ok()?;
                gpu(entry.file_name().to_string_lossy().into_owned(), &text)
            })
            .collect();
        gpus.sort_by(|one, other| one.pci.cmp(&other.pci));
        gpus
    }

    /// What `request` needs.
    ///
    /// # Errors
    /// [`Unknown`].
    pub fn nodes(&self, request: &Request) -> Result<Nodes, Unknown> {
        let gpus = self.gpus();
        if gpus.is_empty() {
            return Err(Unknown::NoDriver);
        }
        let mut minors = Vec::new();
        // A name may hold several, separated by commas: a mount's can.
        let names = request
            .devices
            .names
            .iter()
            .flat_map(|name| name.split(','));
        for name in names.filter(|name| !name.is_empty()) {
            if name.eq_ignore_ascii_case("all") {
                minors.extend(gpus.iter().map(|gpu| gpu.minor));
            } else {
                minors.push(find(&gpus, name).ok_or_else(|| Unknown::Device(name.to_owned()))?);
            }
        }
        minors.sort_unstable();
        minors.dedup();
        let mut nodes = Nodes {
            gpus: minors
                .iter()
                .map(|minor| format!("nvidia{minor}"))
                .collect(),
            numbers: Vec::new(),
        };
        let majors = fs::read_to_string(self.proc.join("devices")).unwrap_or_default();
        let mut add = |name: &str, drivers: &[&str], minor: u32| {
            let number = self
                .number(name)
                .or_else(|| {
                    Some(Number {
                        major: major(&majors, drivers)?,
                        minor,
                    })
                })
                .ok_or_else(|| Unknown::Number(name.to_owned()))?;
            nodes.numbers.push(number);
            Ok::<(), Unknown>(())
        };
        const GPU: &[&str] = &["nvidia", "nvidia-frontend"];
        for minor in &minors {
            add(&format!("nvidia{minor}"), GPU, *minor)?;
        }
        add(
            "nvidiactl",
            &["nvidiactl", "nvidia", "nvidia-frontend"],
            255,
        )?;
        for (name, drivers, minor) in [
            ("nvidia-modeset", &["nvidia-modeset"] as &[&str], 254),
            ("nvidia-uvm", &["nvidia-uvm"], 0),
            ("nvidia-uvm-tools", &["nvidia-uvm"], 1),
        ] {
            // A driver may come without these parts.
            let _ = add(name, drivers, minor);
        }
        for channel in request
            .imex_channels
            .iter()
            .filter(|channel| !channel.is_empty())
        {
            let minor = channel
                .parse()
                .map_err(|_| Unknown::Device(channel.clone()))?;
            let name = format!("nvidia-caps-imex-channels/channel{channel}");
            add(&name, &["nvidia-caps-imex-channels"], minor)?;
        }
        for (wanted, file) in [
            (&request.mig_config, "config"),
            (&request.mig_monitor, "monitor"),
        ] {
            if wanted.is_empty() {
                continue;
            }
            let minor = self
                .mig(file)
                .ok_or_else(|| Unknown::Device(format!("mig {file}")))?;
            add(
                &format!("nvidia-caps/nvidia-cap{minor}"),
                &["nvidia-caps"],
                minor,
            )?;
        }
        nodes.numbers.sort_unstable();
        nodes.numbers.dedup();
        Ok(nodes)
    }

    fn number(&self, name: &str) -> Option<Number> {
        let meta = fs::metadata(self.dev.join(name)).ok()?;
        let number = || {
            let rdev = meta.rdev();
            Some(Number {
                major: u32::try_from(nix::sys::stat::major(rdev)).ok()?,
                minor: u32::try_from(nix::sys::stat::minor(rdev)).ok()?,
            })
        };
        meta.file_type().is_char_device().then(number).flatten()
    }

    fn mig(&self, file: &str) -> Option<u32> {
        let path = self.proc.join("driver/nvidia/capabilities/mig").join(file);
        let text = fs::read_to_string(path).ok()?;
        field(&text, "DeviceFileMinor")?.parse().ok()
    }
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        Some(
            line.strip_prefix(name)?
                .trim_start()
                .strip_prefix(':')?
                .trim(),
        )
    })
}

fn gpu(pci: String, information: &str) -> Option<Gpu> {
    if field(information, "GPU Excluded") == Some("Yes") {
        return None;
    }
    Some(Gpu {
        pci,
        uuid: field(information, "GPU UUID")
            .unwrap_or_default()
            .to_owned(),
        minor: field(information, "Device Minor")?.parse().ok()?,
    })
}

/// The minor number of the GPU that `name` names: an index, a UUID or a PCI address.
fn find(gpus: &[Gpu], name: &str) -> Option<u32> {
    if let Ok(index) = name.parse::<usize>() {
        return gpus.get(index).map(|gpu| gpu.minor);
    }
    // A PCI domain has four digits here and may have eight elsewhere.
    let same_place = |pci: &str| {
        let name = name.to_ascii_lowercase();
        name == pci || name.strip_prefix("0000").is_some_and(|rest| rest == pci)
    };
    let one = gpus
        .iter()
        .find(|gpu| gpu.uuid.eq_ignore_ascii_case(name) || same_place(&gpu.pci))?;
    Some(one.minor)
}

/// The major number of the first of `drivers` in `/proc/devices`.
fn major(devices: &str, drivers: &[&str]) -> Option<u32> {
    let characters = devices.split("Block devices:").next().unwrap_or_default();
    drivers.iter().find_map(|driver| {
        characters.lines().find_map(|line| {
            let (number, name) = line.trim().split_once(' ')?;
            (name.trim() == *driver)
                .then(|| number.parse().ok())
                .flatten()
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capabilities;
    use crate::config::Config;
    use crate::image::Image;

    const DEVICES: &str = "Character devices:\n  1 mem\n195 nvidia\n195 nvidia-modeset\n195 nvidiactl\n507 nvidia-uvm\n508 nvidia-caps-imex-channels\n509 nvidia-caps\n\nBlock devices:\n  7 loop\n";

    fn host() -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        let gpus = dir.path().join("proc/driver/nvidia/gpus");
        for (pci, uuid, minor, excluded) in [
            ("0000:0f:00.0", "GPU-bb", 0, "No"),
            ("0000:07:00.0", "GPU-aa", 3, "No"),
            ("0000:06:00.0", "GPU-cc", 1, "Yes"),
        ] {
            fs::create_dir_all(gpus.join(pci)).unwrap();
            let text = format!(
                "Model: \t x\nGPU UUID: \t {uuid}\nDevice Minor: \t {minor}\nGPU Excluded:\t {excluded}\n"
            );
            fs::write(gpus.join(pci).join("information"), text).unwrap();
        }
        let mig = dir.path().join("proc/driver/nvidia/capabilities/mig");
        fs::create_dir_all(&mig).unwrap();
        fs::write(
            mig.join("config"),
            "DeviceFileMinor: 1\nDeviceFileMode: 256\n",
        )
        .unwrap();
        fs::write(dir.path().join("proc/devices"), DEVICES).unwrap();
        let host = Host::below(dir.path());
        (dir, host)
    }

    fn request(env: &[&str]) -> Request {
        let config = Config::defaults();
        let mut image = Image::lenient(env.iter().copied());
        image.privileged = true;
        let supported = capabilities::supported(&config).unwrap();
        Request::find(&image, &config, &supported)
            .unwrap()
            .value
            .unwrap()
    }

    #[test]
    fn gpus_are_found_by_index_uuid_and_address() {
        let (_dir, host) = host();
        let gpus = |devices: &str| {
            host.nodes(&request(&[&format!("NVIDIA_VISIBLE_DEVICES={devices}")]))
                .map(|nodes| nodes.gpus)
        };
        assert_eq!(gpus("0"), Ok(vec!["nvidia3".to_owned()]));
        assert_eq!(
            gpus("1,0,1"),
            Ok(vec!["nvidia0".to_owned(), "nvidia3".to_owned()])
        );
        assert_eq!(
            gpus("all"),
            Ok(vec!["nvidia0".to_owned(), "nvidia3".to_owned()])
        );
        assert_eq!(gpus("gpu-BB"), Ok(vec!["nvidia0".to_owned()]));
        assert_eq!(gpus("00000000:07:00.0"), Ok(vec!["nvidia3".to_owned()]));
        assert_eq!(gpus("none"), Ok(vec![]));
        assert_eq!(gpus("2"), Err(Unknown::Device("2".to_owned())));
        assert_eq!(gpus("MIG-x"), Err(Unknown::Device("MIG-x".to_owned())));
    }

    #[test]
    fn numbers_come_from_proc_where_nodes_are_missing() {
        let (_dir, host) = host();
        let request = request(&[
            "NVIDIA_VISIBLE_DEVICES=0",
            "NVIDIA_IMEX_CHANNELS=2",
            "NVIDIA_MIG_CONFIG_DEVICES=all",
        ]);
        let numbers: Vec<_> = host
            .nodes(&request)
            .unwrap()
            .numbers
            .iter()
            .map(|n| (n.major, n.minor))
            .collect();
        assert_eq!(
            numbers,
            [
                (195, 3),
                (195, 254),
                (195, 255),
                (507, 0),
                (507, 1),
                (508, 2),
                (509, 1)
            ]
        );
    }

    #[test]
    fn no_driver_is_no_guess() {
        let dir = tempfile::tempdir().unwrap();
        let found = Host::below(dir.path()).nodes(&request(&["NVIDIA_VISIBLE_DEVICES=all"]));
        assert_eq!(found, Err(Unknown::NoDriver));
    }
}
