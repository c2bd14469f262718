//! Builds `holdfast-nvml` and leaves it in `OUT_DIR`, to be embedded.
//!
//! The program must be dynamically linked, whatever the flags of the outer build say, so it is built by a cargo of its
//! own into a target folder of its own.

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let manifest = PathBuf::from(env_var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env_var("OUT_DIR")?);
    let target = env_var("TARGET")?;
    let workspace = manifest.join("../..");
    for watched in ["init/nvml", "Cargo.toml"] {
        println!(
            "cargo:rerun-if-changed={}",
            workspace.join(watched).display()
        );
    }
    let folder = out.join("nvml-target");
    let mut cargo = Command::new(env_var("CARGO")?);
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PROFILE_") {
            cargo.env_remove(name);
        }
    }
    let triple = target.to_uppercase().replace('-', "_");
    let status = cargo
        .args(["build", "--package", "holdfast-nvml", "--profile", "init"])
        .args(["--target", &target])
        .arg("--target-dir")
        .arg(&folder)
        .current_dir(&workspace)
        // Flags of the outer build (crt-static, clippy's wrapper) are not meant for it.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove(format!("CARGO_TARGET_{triple}_RUSTFLAGS"))
        .status()?;
    if !status.success() {
        return Err(io::Error::other("holdfast-nvml does not build"));
    }
    let built = folder.join(&target).join("init").join("holdfast-nvml");
    fs::copy(built, out.join("holdfast-nvml")).map(drop)
}

fn env_var(name: &str) -> io::Result<String> {
    env::var(name).map_err(|_| io::Error::other(format!("cargo did not set {name}")))
}
