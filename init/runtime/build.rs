//! Builds `holdfast-init` and leaves its image in `OUT_DIR`, to be embedded.
//!
//! The image needs a profile of its own (no unwinder) and no C runtime, so it is built by
//! a cargo of its own into a target folder of its own: `cargo build -p holdfast` is all
//! anybody has to know.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let manifest = PathBuf::from(env_var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env_var("OUT_DIR")?);
    let target = env_var("TARGET")?;
    let workspace = manifest.join("../..");
    for watched in ["init/init", "init/plan", "Cargo.toml"] {
        println!(
            "cargo:rerun-if-changed={}",
            workspace.join(watched).display()
        );
    }
    let folder = out.join("init-target");
    let mut cargo = Command::new(env_var("CARGO")?);
    // The image depends on its profile: without LTO it would want an unwinder.
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PROFILE_") {
            cargo.env_remove(name);
        }
    }
    let status = cargo
        .args(["build", "--package", "holdfast-init", "--profile", "init"])
        .args(["--target", &target])
        .arg("--target-dir")
        .arg(&folder)
        .current_dir(&workspace)
        // Flags of the outer build (crt-static, clippy's wrapper) are not meant for it.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove(rustflags_of(&target))
        .status()?;
    if !status.success() {
        return Err(io::Error::other("holdfast-init does not build"));
    }
    let image: PathBuf = folder.join(&target).join("init").join("holdfast-init");
    copy(&image, &out.join("holdfast-init"))
}

/// The variable in which the Makefile passes flags for the target's code.
fn rustflags_of(target: &str) -> String {
    let triple = target.to_uppercase().replace('-', "_");
    format!("CARGO_TARGET_{triple}_RUSTFLAGS")
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to).map(drop)
}

fn env_var(name: &str) -> io::Result<String> {
    env::var(name).map_err(|_| io::Error::other(format!("cargo did not set {name}")))
}
