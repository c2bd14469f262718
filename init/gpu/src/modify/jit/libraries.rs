//! The driver's libraries in a container: the links that programs look for, and the folders that the linker must know.

use std::fs;
use std::path::Path;

use holdfast_cdi::Mount;

use crate::driver::soname;

/// The links that a driver's installation has next to its libraries, one `TARGET::LINK` each.
pub(super) fn links(mounts: &[Mount]) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for mount in mounts {
        let (host, inside) = (
            Path::new(&mount.host_path),
            Path::new(&mount.container_path),
        );
        let (Some(dir), Some(name)) =
            (inside.parent(), inside.file_name().and_then(|n| n.to_str()))
        else {
            continue;
        };
        let mut add = |target: &str, link: &str| {
            let link = format!("{target}::{}", dir.join(link).display());
            if !out.contains(&link) {
                out.push(link);
            }
        };
        if is_versioned(name, "libcuda.so") {
            add("libcuda.so.1", "libcuda.so");
        } else if is_versioned(name, "libGLX_nvidia.so") {
            add(name, "libGLX_indirect.so.0");
        } else if is_versioned(name, "libnvidia-opticalflow.so") {
            add("libnvidia-opticalflow.so.1", "libnvidia-opticalflow.so");
        }
        if !has_version(name) {
            continue;
        }
        // One that is no ELF file gets no links; it is mounted all the same.
        let Ok(own) = soname(host) else { continue };
        let own = own.unwrap_or_else(|| name.to_owned());
        let beside = |link: &str| {
            host.parent().is_some_and(|dir| {
                fs::symlink_metadata(dir.join(link)).is_ok_and(|meta| meta.is_symlink())
            })
        };
        if own != name && !own.is_empty() && beside(&own) {
            add(name, &own);
        }
        let target = if own.is_empty() { name } else { &own };
        let plain = plain_name(target).filter(|plain| *plain != target);
        if let Some(plain) = plain.filter(|plain| beside(plain)) {
            add(target, plain);
        }
    }
    out
}

/// Whether `name` is `library` with a version of two numbers or more behind it.
fn is_versioned(name: &str, library: &str) -> bool {
    name.strip_prefix(library)
        .and_then(|rest| rest.strip_prefix('.'))
        .is_some_and(|version| version.contains('.'))
}

/// Whether a name has the form `*.*.*`.
fn has_version(name: &str) -> bool {
    name.matches('.').count() >= 2
}

/// The name up to `.so`.
fn plain_name(name: &str) -> Option<&str> {
    let mut name = name;
    loop {
        let (base, extension) = name.rsplit_once('.')?;
        if extension == "so" {
            return Some(name);
        }
        name = base;
    }
}

/// The folders with libraries among what is mounted, each once.
pub(super) fn folders(mounts: &[Mount]) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for mount in mounts {
        let path = Path::new(&mount.container_path);
        let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str()))
        else {
            continue;
        };
        let dir = dir.display().to_string();
        if is_library(name) && !out.contains(&dir) {
            out.push(dir);
        }
    }
    out
}

/// `lib?*.so`, `lib?*.so.VERSION`.
fn is_library(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("lib") else {
        return false;
    };
    match rest.rfind(".so") {
        Some(at) if at > 0 => {
            let tail = &rest[at + 3..];
            tail.is_empty() || tail.starts_with('.')
        }
        Some(_) | None => false,
    }
}
