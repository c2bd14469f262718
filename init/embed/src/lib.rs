//! For build scripts: builds a program of this workspace and leaves it in `OUT_DIR`, to be embedded.
//!
//! Such a program needs a profile of its own (`init`: no unwinder, no debug information) and none of the flags of the
//! outer build, so it is built by a cargo of its own into a target folder of its own: whoever builds the
//! program around it has to know nothing.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

/// The profile in the workspace's Cargo.toml.
const PROFILE: &str = "init";

/// Builds the program of `package`, anew whenever something under `sources` changes (folders, relative to the
/// workspace at `workspace`, which is relative to the package that embeds). It is then `OUT_DIR/PACKAGE`.
///
/// # Errors
/// When cargo cannot be run, or the program does not build.
pub fn build(package: &str, workspace: &str, sources: &[&str]) -> io::Result<()> {
    let workspace = Path::new(&variable("CARGO_MANIFEST_DIR")?).join(workspace);
    let out = PathBuf::from(variable("OUT_DIR")?);
    let target = variable("TARGET")?;
    for watched in sources.iter().chain(&["Cargo.toml"]) {
        println!(
            "cargo:rerun-if-changed={}",
            workspace.join(watched).display()
        );
    }
    let folder = out.join(format!("{package}-target"));
    let mut cargo = Command::new(variable("CARGO")?);
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PROFILE_") {
            cargo.env_remove(name);
        }
    }
    let triple = target.to_uppercase().replace('-', "_");
    let status = cargo
        .args(["build", "--package", package, "--profile", PROFILE])
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
        return Err(io::Error::other(format!("{package} does not build")));
    }
    let built = folder.join(&target).join(PROFILE).join(package);
    fs::copy(built, out.join(package)).map(drop)
}

fn variable(name: &str) -> io::Result<String> {
    env::var(name).map_err(|_| io::Error::other(format!("cargo did not set {name}")))
}
