//! Device nodes and the symlinks that belong into `/dev`.

use std::path::{Path, PathBuf};

use holdfast_plan::Step;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};

use super::Draft;
use crate::bundle::{Bundle, clean, cstring};
use crate::error::{Error, Result};

/// The nodes every container has (runtime-spec, `config-linux.md#default-devices`).
const DEFAULT: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// runtime-spec, `runtime-linux.md#dev-symbolic-links`; `core` as every runtime makes it.
const SYMLINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("/proc/kcore", "/dev/core"),
];

/// The paths of all device nodes of a container.
pub(crate) fn paths(bundle: &Bundle) -> Vec<PathBuf> {
    let linux = bundle.spec.linux().as_ref();
    let listed = linux
        .and_then(|linux| linux.devices().as_deref())
        .unwrap_or_default();
    let mut paths: Vec<PathBuf> = DEFAULT.iter().map(|device| device.0.into()).collect();
    for device in listed {
        let path = clean(&Path::new("/").join(device.path()));
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    paths
}

/// Pushes nodes and links. When `/dev` is a bind mount it belongs to the host and stays as
/// it is.
pub(super) fn push(draft: &mut Draft, bundle: &Bundle, user_namespace: bool) -> Result<()> {
    let dev_is_bound = bundle.spec.mounts().iter().flatten().any(|mount| {
        let bound = mount.typ().as_deref() == Some("bind")
            || mount
                .options()
                .iter()
                .flatten()
                .any(|word| word == "bind" || word == "rbind");
        bound && clean(mount.destination()) == Path::new("/dev")
    });
    if dev_is_bound {
        return Ok(());
    }
    let listed = bundle.linux()?.devices().as_deref().unwrap_or_default();
    let overridden = |path: &str| listed.iter().any(|d| d.path() == Path::new(path));
    for (path, major, minor) in DEFAULT {
        if overridden(path) {
            continue;
        }
        let node = Node {
            path: Path::new(path),
            mode: libc::S_IFCHR | 0o666,
            device: encode(major, minor),
            owner: (0, 0),
        };
        node.push(draft, user_namespace)?;
    }
    for (at, device) in listed.iter().enumerate() {
        let node = Node::from_spec(device).map_err(|problem| {
            Error::spec(
                format!("linux.devices[{at}] ({})", device.path().display()),
                problem,
            )
        })?;
        node.push(draft, user_namespace)?;
    }
    for (content, path) in SYMLINKS {
        link(draft, content, path, false)?;
    }
    // The container's own pty multiplexer, not one an image brought along.
    link(draft, "pts/ptmx", "/dev/ptmx", true)
}

fn link(draft: &mut Draft, content: &str, path: &str, replace: bool) -> Result<()> {
    draft.push(
        Step::Symlink {
            content: &cstring("dev", content)?,
            path: &cstring("dev", path)?,
            replace,
        },
        format!("link {path}"),
    );
    Ok(())
}

struct Node<'a> {
    path: &'a Path,
    mode: u32,
    device: u64,
    owner: (u32, u32),
}

impl<'a> Node<'a> {
    fn from_spec(device: &'a LinuxDevice) -> std::result::Result<Self, String> {
        let kind = match device.typ() {
            LinuxDeviceType::B => libc::S_IFBLK,
            LinuxDeviceType::C | LinuxDeviceType::U => libc::S_IFCHR,
            LinuxDeviceType::P => libc::S_IFIFO,
            LinuxDeviceType::A => return Err("type must be b, c, u or p".into()),
        };
        let number = |value: i64, name: &str| {
            u32::try_from(value).map_err(|_| format!("{name} {value} is not a device number"))
        };
        let device_number = if kind == libc::S_IFIFO {
            0
        } else {
            encode(
                number(device.major(), "major")?,
                number(device.minor(), "minor")?,
            )
        };
        Ok(Self {
            path: device.path(),
            mode: kind | (device.file_mode().unwrap_or(0o666) & 0o7777),
            device: device_number,
            owner: (device.uid().unwrap_or(0), device.gid().unwrap_or(0)),
        })
    }

    fn push(&self, draft: &mut Draft, user_namespace: bool) -> Result<()> {
        let path = cstring("linux.devices", clean(&Path::new("/").join(self.path)))?;
        let label = format!("make the device {}", self.path.display());
        if user_namespace && self.mode & libc::S_IFMT != libc::S_IFIFO {
            // mknod is refused inside a user namespace: the host's node is bound instead.
            let host = cstring("linux.devices", self.path)?;
            let tree = draft.tree(&host, false, false, || {
                format!("bind the host's {}", self.path.display())
            })?;
            draft.push(
                Step::BindDevice {
                    fd: tree.fd,
                    path: &path,
                },
                label,
            );
            return Ok(());
        }
        draft.push(
            Step::Mknod {
                path: &path,
                mode: self.mode,
                device: self.device,
                uid: self.owner.0,
                gid: self.owner.1,
            },
            label,
        );
        Ok(())
    }
}

/// The kernel's encoding of a device number in mknod(2).
fn encode(major: u32, minor: u32) -> u64 {
    let (major, minor) = (u64::from(major), u64::from(minor));
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & !0xff) << 12)
}

#[cfg(test)]
mod tests {
    use super::encode;

    #[test]
    fn device_numbers_are_encoded_as_the_kernel_decodes_them() {
        // include/linux/kdev_t.h, new_decode_dev
        let decode = |dev: u64| ((dev & 0xfff00) >> 8, (dev & 0xff) | ((dev >> 12) & 0xfff00));
        for (major, minor) in [(1, 3), (195, 255), (237, 300), (4095, 1_048_575)] {
            assert_eq!(decode(encode(major, minor)), (major.into(), minor.into()));
        }
    }
}
