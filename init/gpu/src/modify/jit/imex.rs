//! IMEX channels: shared memory between the GPUs of several nodes.

use std::fs;
use std::path::PathBuf;

use holdfast_cdi::{ContainerEdits, DeviceNode};

use super::{Named, number};
use crate::driver::Driver;
use crate::modify::parts::Parts;
use crate::modify::{Error, gated};

/// The largest channel.
const MAX_CHANNEL: u64 = (1 << 20) - 1;

/// IMEX channels: a node each. `all` gives those that exist.
///
/// An empty name is what a repeated channel leaves behind, or all that is left of `none`; of the latter the original
/// makes *all* channels.
pub(super) fn edits(
    parts: &Parts<'_>,
    channels: &[String],
    strict: bool,
) -> Result<Vec<Named>, Error> {
    const DIR: &str = "/dev/nvidia-caps-imex-channels";
    let mut named: Vec<&str> = channels.iter().map(String::as_str).collect();
    named.retain(|channel| !channel.is_empty());
    if named.is_empty() {
        if channels.is_empty() || strict {
            return Ok(Vec::new());
        }
        named.push("all");
    }
    let mut ids = Vec::new();
    for channel in named {
        let id = channel.strip_prefix("channel").unwrap_or(channel);
        let wrong = |why: &str| Error::Imex {
            id: channel.to_owned(),
            why: why.to_owned(),
        };
        if id == "all" {
            ids = existing_channels(parts.driver, DIR);
            break;
        }
        let number = number(id).ok_or_else(|| wrong("it is no number"))?;
        if number > MAX_CHANNEL {
            return Err(wrong("the channels are 0 to 1048575"));
        }
        ids.push(id.to_owned());
    }
    let mut out = Vec::new();
    for id in ids {
        let path = format!("{DIR}/channel{id}");
        let host: PathBuf = parts.driver.below(&path);
        if let Err(error) = fs::metadata(&host) {
            return Err(Error::Imex {
                id,
                why: format!("{}: {error}", host.display()),
            });
        }
        let mut edits = ContainerEdits::default();
        edits.device_nodes.push(DeviceNode {
            path,
            host_path: host.display().to_string(),
            ..DeviceNode::default()
        });
        out.push((id, edits));
    }
    out.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, _) in &mut out {
        *name = format!("IMEX channel {name}");
    }
    out.push(("IMEX".to_owned(), gated::void()));
    Ok(out)
}

fn existing_channels(driver: &Driver, dir: &str) -> Vec<String> {
    driver
        .char_devices(&format!("{dir}/channel*"))
        .iter()
        .filter_map(|path| {
            let name = path.file_name()?.to_str()?;
            name.strip_prefix("channel").map(str::to_owned)
        })
        .collect()
}
