//! Devices and IMEX channels from mounts and environment.

use std::collections::HashSet;
use std::path::Path;

use holdfast_cdi::is_qualified;

use super::{Found, IMEX_CHANNELS, Ignored, MOUNT_ROOT, VISIBLE_DEVICES};
use crate::config::Config;
use crate::image::Image;
use crate::paths::clean;

/// Who asked for the devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Mounts below [`MOUNT_ROOT`].
    Mounts,
    /// These environment variables.
    Environment(Vec<String>),
    /// An old CUDA image, which asks for all GPUs by being one.
    LegacyImage,
}

/// The devices a container asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Devices {
    /// As they were written. `[""]` stands for "the driver, but no device"; an empty name elsewhere is what a device
    /// leaves behind that is asked for again later in the list.
    pub names: Vec<String>,
    /// Who asked.
    pub origin: Origin,
}

/// The devices that mounts or environment ask for; `None` when neither does. Mounts win, where they are accepted.
#[must_use]
pub fn devices(image: &Image, config: &Config) -> Found<Option<Devices>> {
    let mut ignored = Vec::new();
    if config.accept_volume_mounts {
        let names = from_mounts(image, &mut ignored);
        if !names.is_empty() {
            let devices = Devices {
                names,
                origin: Origin::Mounts,
            };
            return Found {
                value: Some(devices),
                ignored,
            };
        }
    }
    let chosen: Vec<&str> = config
        .swarm_resource
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty() && image.variable(name).is_some())
        .collect();
    let chosen = if chosen.is_empty() {
        vec![VISIBLE_DEVICES]
    } else {
        chosen
    };
    let value = from_variables(image, config, &chosen, &mut ignored);
    Found { value, ignored }
}

/// The IMEX channels that mounts or environment ask for.
pub(super) fn imex_channels(image: &Image, config: &Config) -> Found<Vec<String>> {
    let mut ignored = Vec::new();
    if config.features.ignore_imex_channel_requests {
        return Found {
            value: Vec::new(),
            ignored,
        };
    }
    if config.accept_volume_mounts {
        let channels: Vec<String> = mounted(image)
            .iter()
            .filter_map(|device| device.strip_prefix("imex/").map(str::to_owned))
            .collect();
        if !channels.is_empty() {
            return Found {
                value: channels,
                ignored,
            };
        }
    }
    let found = from_variables(image, config, &[IMEX_CHANNELS], &mut ignored);
    let mut value = found.map(|devices| devices.names).unwrap_or_default();
    if value == ["all"] {
        value.clear();
    }
    Found { value, ignored }
}

/// The devices that annotations ask for: the values of keys with one of `prefixes`, in the order of the keys. They are
/// neither trimmed nor checked.
#[must_use]
pub fn annotated(image: &Image, prefixes: &[String]) -> Vec<String> {
    image
        .annotations
        .iter()
        .filter(|(key, _)| {
            prefixes
                .iter()
                .any(|prefix| key.starts_with(prefix.as_str()))
        })
        .flat_map(|(_, value)| value.split(',').map(str::to_owned))
        .collect()
}

/// What `/dev/null` is mounted on below [`MOUNT_ROOT`]. The root is a mere prefix to the toolkit, not a directory.
fn mounted(image: &Image) -> Vec<String> {
    let mut seen = HashSet::new();
    let mut devices = Vec::new();
    for mount in &image.mounts {
        if clean(mount.source.as_ref()) != Path::new("/dev/null") {
            continue;
        }
        let destination = clean(mount.destination.as_ref()).display().to_string();
        let Some(rest) = destination.strip_prefix(MOUNT_ROOT) else {
            continue;
        };
        let device = rest.trim_matches('/').to_owned();
        if seen.insert(destination) && !device.is_empty() {
            devices.push(device);
        }
    }
    devices
}

fn from_mounts(image: &Image, ignored: &mut Vec<Ignored>) -> Vec<String> {
    let mut names = Vec::new();
    for device in mounted(image) {
        if let Some(cdi) = device.strip_prefix("cdi/") {
            match cdi_name(cdi) {
                Some(name) => names.push(name),
                None => ignored.push(Ignored::InvalidMount { device }),
            }
        } else if !device.starts_with("imex/") {
            names.push(device);
        }
    }
    names
}

/// `vendor/class=name`, also written `vendor/class/name` because a path cannot have `=` everywhere.
fn cdi_name(request: &str) -> Option<String> {
    if is_qualified(request) {
        return Some(request.to_owned());
    }
    let mut parts = request.splitn(3, '/');
    let (vendor, class, name) = (parts.next()?, parts.next()?, parts.next()?);
    Some(format!("{vendor}/{class}={name}"))
}

/// What these variables ask for together. When none of them is set, an old CUDA image asks for everything.
fn from_variables(
    image: &Image,
    config: &Config,
    variables: &[&str],
    ignored: &mut Vec<Ignored>,
) -> Option<Devices> {
    let set: Vec<&str> = variables
        .iter()
        .filter_map(|name| image.variable(name))
        .collect();
    let (names, origin) = if set.is_empty() && image.is_legacy() {
        (vec!["all"], Origin::LegacyImage)
    } else {
        let names = set
            .iter()
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .collect();
        let names_of = variables.iter().map(|name| (*name).to_owned()).collect();
        (names, Origin::Environment(names_of))
    };
    if names.is_empty() || names.contains(&"void") {
        return None;
    }
    if !image.privileged && !config.accept_envvar_when_unprivileged {
        let variables = variables.iter().map(|name| (*name).to_owned()).collect();
        ignored.push(Ignored::Unprivileged { variables });
        return None;
    }
    Some(Devices {
        names: selected(&names),
        origin,
    })
}

/// The first `all` or `none` decides; otherwise each name stays where it stands last.
fn selected(names: &[&str]) -> Vec<String> {
    match names.iter().find(|name| matches!(**name, "all" | "none")) {
        Some(&"all") => return vec!["all".to_owned()],
        Some(_) => return vec![String::new()],
        None => {}
    }
    let last_at = |name: &str| names.iter().rposition(|other| *other == name);
    names
        .iter()
        .enumerate()
        .map(|(at, name)| {
            if last_at(name) == Some(at) {
                (*name).to_owned()
            } else {
                String::new()
            }
        })
        .collect()
}
