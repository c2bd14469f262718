//! A driver without a GPU: libraries that are none, device nodes that nobody opens, and a fake NVML.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::place;

/// The version of the fake driver, in its NVML and in the names of its files.
pub const VERSION: &str = "550.54.15";

/// A fake `libnvidia-ml.so.1`, compiled once per process from `vectors/nvidia/fake_nvml.c`; what the node has is said
/// in `FAKE_NVML`. An error says why there is none.
pub fn nvml() -> Result<&'static Path, String> {
    static BUILT: OnceLock<Result<(tempfile::TempDir, PathBuf), String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let library = dir.path().join("libnvidia-ml.so.1");
        let source = place::repository().join("integration/vectors/nvidia/fake_nvml.c");
        let made = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror"])
            .arg("-Wl,-soname,libnvidia-ml.so.1")
            .arg("-o")
            .arg(&library)
            .arg(source)
            .status();
        match made {
            Ok(status) if status.success() => Ok((dir, library)),
            Ok(status) => Err(format!("cc does not compile the fake NVML: {status}")),
            Err(error) => Err(format!("cc: {error}")),
        }
    });
    match built {
        Ok((_, library)) => Ok(library),
        Err(why) => Err(why.clone()),
    }
}

/// The smallest ELF library with this name of its own (`DT_SONAME`): a header, a segment with everything, the dynamic
/// table and its text.
pub fn elf(soname: &str) -> Vec<u8> {
    const HEADER: u64 = 64;
    const SEGMENT: u64 = 56;
    let dynamic = HEADER + 2 * SEGMENT;
    let strings = dynamic + 3 * 16;
    let end = strings + 2 + soname.len() as u64;
    let mut out = b"\x7fELF\x02\x01\x01".to_vec();
    out.resize(16, 0);
    let (word, half) = (u32::to_le_bytes, u16::to_le_bytes);
    out.extend(half(3)); // a shared object
    out.extend(half(62)); // for x86-64
    out.extend(word(1));
    for offset in [0, HEADER, 0] {
        out.extend(u64::to_le_bytes(offset)); // entry, program headers, section headers
    }
    out.extend(word(0));
    for size in [64, 56, 2, 0, 0, 0] {
        out.extend(half(size));
    }
    for (kind, offset, length) in [(1, 0, end), (2, dynamic, 3 * 16)] {
        out.extend(word(kind));
        out.extend(word(4));
        for number in [offset, offset, offset, length, length, 8] {
            out.extend(u64::to_le_bytes(number));
        }
    }
    for (tag, value) in [(14, 1), (5, strings), (0, 0_u64)] {
        out.extend(u64::to_le_bytes(tag));
        out.extend(u64::to_le_bytes(value));
    }
    out.push(0);
    out.extend(soname.bytes().chain([0]));
    out
}

/// Puts a device node at `path`, with this mode and group.
pub fn node(path: &Path, major: u64, minor: u64, mode: u32, gid: u32) {
    mknod(path, SFlag::S_IFCHR, Mode::empty(), makedev(major, minor)).unwrap();
    std::os::unix::fs::chown(path, Some(0), Some(gid)).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A whole fake driver below `root`: libraries, programs, firmware, a socket, and nodes of two GPUs whose numbers are
/// those of `/dev/zero`, so that a container can open them.
pub fn install(root: &Path) -> Result<(), String> {
    let lib = root.join("usr/lib/x86_64-linux-gnu");
    let put = |path: PathBuf, content: &[u8], mode: u32| {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    put(
        lib.join(format!("libcuda.so.{VERSION}")),
        &elf("libcuda.so.1"),
        0o755,
    );
    put(
        lib.join(format!("libnvidia-ml.so.{VERSION}")),
        &fs::read(nvml()?).map_err(|error| error.to_string())?,
        0o755,
    );
    for (target, link) in [
        (format!("libcuda.so.{VERSION}"), "libcuda.so.1"),
        ("libcuda.so.1".to_owned(), "libcuda.so"),
        (format!("libnvidia-ml.so.{VERSION}"), "libnvidia-ml.so.1"),
    ] {
        std::os::unix::fs::symlink(target, lib.join(link)).unwrap();
    }
    put(root.join("usr/bin/nvidia-smi"), b"#!/bin/sh\n", 0o755);
    put(
        root.join(format!("lib/firmware/nvidia/{VERSION}/gsp_ga10x.bin")),
        b"",
        0o644,
    );
    fs::create_dir_all(root.join("dev")).unwrap();
    for name in [
        "nvidia0",
        "nvidia1",
        "nvidiactl",
        "nvidia-uvm",
        "nvidia-uvm-tools",
        "nvidia-modeset",
    ] {
        node(&root.join("dev").join(name), 1, 5, 0o666, 0);
    }
    Ok(())
}
