//! Features that a container asks for by variables: GPUDirect Storage, InfiniBand, GDRCopy, NVSwitch.

use holdfast_cdi::ContainerEdits;

use super::parts::{Parts, tidy};
use crate::image::Image;

/// A feature with a variable of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Feature {
    Gds,
    Mofed,
    Gdrcopy,
    Nvswitch,
}

impl Feature {
    const ALL: [Self; 4] = [Self::Gds, Self::Mofed, Self::Gdrcopy, Self::Nvswitch];

    fn variable(self) -> &'static str {
        match self {
            Self::Gds => "NVIDIA_GDS",
            Self::Mofed => "NVIDIA_MOFED",
            Self::Gdrcopy => "NVIDIA_GDRCOPY",
            Self::Nvswitch => "NVIDIA_NVSWITCH",
        }
    }

    fn devices(self) -> &'static [&'static str] {
        match self {
            Self::Gds => &["/dev/nvidia-fs*"],
            Self::Mofed => &["/dev/infiniband/uverbs*", "/dev/infiniband/rdma_cm"],
            Self::Gdrcopy => &["/dev/gdrdrv"],
            Self::Nvswitch => &["/dev/nvidia-nvswitchctl", "/dev/nvidia-nvswitch*"],
        }
    }
}

/// The features whose variable is exactly `enabled`.
pub(super) fn requested(image: &Image) -> Vec<Feature> {
    Feature::ALL
        .into_iter()
        .filter(|feature| image.variable(feature.variable()) == Some("enabled"))
        .collect()
}

/// The edits of a feature, those of its devices first.
pub(super) fn edits(parts: &Parts<'_>, feature: Feature) -> [(String, ContainerEdits); 2] {
    let mut devices = ContainerEdits::default();
    parts.add_devices(&mut devices, feature.devices());
    if feature == Feature::Gds && !devices.device_nodes.is_empty() {
        let udev = parts.driver.directories("/run/udev");
        let cufile = parts.driver.files(&[""], "/etc/cufile.json");
        devices.mounts = parts.mounts(udev.into_iter().chain(cufile));
    }
    tidy(&mut devices);
    let of = feature.variable().to_owned();
    [(of.clone(), devices), (of, void())]
}

/// What every generated specification has in common: the prestart hook of a toolkit further down must not act too.
pub(super) fn void() -> ContainerEdits {
    ContainerEdits {
        env: vec!["NVIDIA_VISIBLE_DEVICES=void".to_owned()],
        ..ContainerEdits::default()
    }
}
