//! GPUs through containerd: a handler says which stage, the container says whether, and the ledger says why not.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use holdfast_integration::containerd::{Containerd, peer};
use holdfast_integration::scratch::text;
use holdfast_integration::{deadline, on_containerds, place, skip};
use serde_json::Value;

on_containerds! {
    a_handler_s_option_switches_the_stage_on;
    the_name_of_nvidia_s_wrapper_does_as_well;
    a_failure_is_told_with_its_reason;
}

const FAKE: &str = env!("CARGO_BIN_EXE_fake-nvidia-container-cli");

/// A folder as the GPU operator installs it: wrapper, CLI, and the configuration next to them. Returns the wrapper.
fn toolkit(containerd: &Containerd, behaviour: &str) -> PathBuf {
    let folder = containerd.path("toolkit");
    let config = folder.join(".config/nvidia-container-runtime");
    fs::create_dir_all(&config).unwrap();
    let cli = folder.join("nvidia-container-cli");
    symlink(FAKE, &cli).unwrap();
    let calls = folder.join("calls.json");
    let behaviour = format!("record {}\n{behaviour}", calls.display());
    fs::write(folder.join("nvidia-container-cli.behaviour"), behaviour).unwrap();
    fs::write(
        config.join("config.toml"),
        format!(
            "[nvidia-container-cli]\npath = \"{}\"\n[nvidia-container-runtime]\nmode = \"legacy\"\n\
             [holdfast]\nstrict = false\n",
            cli.display()
        ),
    )
    .unwrap();
    folder.join("nvidia-container-runtime")
}

fn calls(containerd: &Containerd) -> Vec<Value> {
    let text = fs::read_to_string(containerd.path("toolkit/calls.json")).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The flags of `ctr` for a handler with these options.
fn handler(containerd: &Containerd, options: &str) -> [String; 2] {
    let file = containerd.path("handler.toml");
    fs::write(&file, options).unwrap();
    ["--runtime-config-path".to_owned(), text(&file)]
}

fn mounts_of(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap()
}

fn a_handler_s_option_switches_the_stage_on(containerd: &Containerd) {
    if peer() {
        return skip(
            "a_handler_s_option_switches_the_stage_on",
            "the stage is ours",
        );
    }
    let wrapper = toolkit(containerd, "mount /usr/lib/driver\n");
    let config = wrapper.with_file_name(".config/nvidia-container-runtime/config.toml");
    let options = format!("Gpu = \"legacy\"\nGpuConfig = \"{}\"\n", config.display());
    let [flag, file] = handler(containerd, &options);
    let visible = ["--env", "NVIDIA_VISIBLE_DEVICES=0"];
    let with = [&flag, &file, visible[0], visible[1]];
    let pid = containerd.start_task("gpu", &with, &["sleep", "600"]);
    let [call] = &calls(containerd)[..] else {
        panic!("{:?}", calls(containerd))
    };
    assert!(
        call["argv"].to_string().contains(&format!("--pid={pid}\"")),
        "{call}"
    );
    assert_eq!(call["cwd"], serde_json::json!(containerd.bundle("gpu")));
    assert!(mounts_of(pid).contains("fake-driver"));
    assert!(
        !fs::read_to_string("/proc/self/mounts")
            .unwrap()
            .contains("fake-driver")
    );
    // The same handler, no request.
    containerd.start_task("plain", &[&flag, &file], &["sleep", "600"]);
    // The request, no handler.
    containerd.start_task("other", &visible, &["sleep", "600"]);
    assert_eq!(calls(containerd).len(), 1);
    for id in ["gpu", "plain", "other"] {
        containerd.end_task(id);
    }
}

fn the_name_of_nvidia_s_wrapper_does_as_well(containerd: &Containerd) {
    if peer() {
        return skip(
            "the_name_of_nvidia_s_wrapper_does_as_well",
            "the stage is ours",
        );
    }
    let wrapper = toolkit(containerd, "");
    let [flag, file] = handler(
        containerd,
        &format!("BinaryName = \"{}\"\n", wrapper.display()),
    );
    let with = [&flag, &file, "--env", "NVIDIA_VISIBLE_DEVICES=all"];
    containerd.start_task("gpu", &with, &["sleep", "600"]);
    assert_eq!(calls(containerd).len(), 1);
    containerd.end_task("gpu");
}

fn a_failure_is_told_with_its_reason(containerd: &Containerd) {
    if peer() {
        return skip("a_failure_is_told_with_its_reason", "the stage is ours");
    }
    let words = "nvidia-container-cli: initialization error: nvml error: driver not loaded";
    let wrapper = toolkit(containerd, &format!("stderr {words}\nexit 1\n"));
    let [flag, file] = handler(
        containerd,
        &format!("BinaryName = \"{}\"\n", wrapper.display()),
    );
    let with = [&flag, &file, "--env", "NVIDIA_VISIBLE_DEVICES=all"];
    let said = containerd.run("gpu", &with, &["true"]);
    let why = said.failed();
    assert!(
        why.contains(words) && why.contains("modprobe nvidia") && why.contains(" [HF181]"),
        "{why}"
    );
    let mut command = std::process::Command::new(place::built("holdfast"));
    command
        .args(["why", "gpu"])
        .env("HOLDFAST_LEDGER_DIR", containerd.path("ledger"));
    let told = deadline::run(&mut command, std::time::Duration::from_secs(20));
    assert!(
        told.ok().contains(
            "could not be given its GPU: legacy mode: nvidia-container-cli: driver not loaded"
        ) && told.stdout.contains(words),
        "{told}"
    );
    containerd.remove("gpu");
}
