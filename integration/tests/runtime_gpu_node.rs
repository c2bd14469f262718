//! The GPU stage on a node with a driver: which devices are allowed, what is checked afterwards, and what a container
//! without a request pays. The driver is a few files in a mount namespace of the runtime's own; the GPU is `/dev/kmsg`
//! under another name, a device that no container may open by default.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use holdfast_integration::bundle::Bundle;
use holdfast_integration::deadline::{self, Finished};
use holdfast_integration::on_runtimes;
use holdfast_integration::scratch::{LIMIT, Scratch, text};
use holdfast_integration::{place, skip};
use serde_json::{Value, json};

on_runtimes! {
    the_devices_are_allowed_before_the_cli_runs: holdfast;
    a_reload_of_systemd_takes_nothing_away: holdfast;
    a_missing_node_is_an_error: holdfast;
    unknown_devices_leave_the_rules_to_the_cli: holdfast;
    without_a_request_there_is_no_process_and_few_calls: holdfast;
}

const FAKE: &str = env!("CARGO_BIN_EXE_fake-nvidia-container-cli");

/// Makes a node with one GPU, index 0, of a private mount namespace, and runs the rest of the words in it. `$T` is a
/// folder for its `/dev`.
const NODE: &str = r#"
set -e
mount -t tmpfs none /proc/driver
mkdir -p /proc/driver/nvidia/gpus/0000:07:00.0
printf 'GPU UUID: \t GPU-aa\nDevice Minor: \t 0\nGPU Excluded:\t No\n' >/proc/driver/nvidia/gpus/0000:07:00.0/information
mount -t tmpfs none "$T"
for name in null zero full random urandom tty; do : >"$T/$name"; mount --bind "/dev/$name" "$T/$name"; done
mkdir "$T/pts"
mount --rbind /dev/pts "$T/pts"
ln -s pts/ptmx "$T/ptmx"
mknod "$T/nvidia0" c 1 11
mknod "$T/nvidiactl" c 1 11
mount --move "$T" /dev
exec "$@"
"#;

/// What a container does to see whether it may open the device.
const OPEN: &str = "mknod /dev/gpu c 1 11 && (: >/dev/gpu) && echo opened; sleep 600";

struct Node<'a> {
    scratch: &'a Scratch,
    flags: Vec<String>,
}

impl<'a> Node<'a> {
    fn new(scratch: &'a Scratch, behaviour: &str, own: &str) -> Self {
        for folder in ["cli", "dev"] {
            fs::create_dir_all(scratch.path(folder)).unwrap();
        }
        let cli = scratch.path("cli/nvidia-container-cli");
        symlink(FAKE, &cli).unwrap();
        let record = format!("record {}\n", scratch.path("calls.json").display());
        fs::write(
            scratch.path("cli/nvidia-container-cli.behaviour"),
            record + behaviour,
        )
        .unwrap();
        let config = scratch.path("config.toml");
        fs::write(
            &config,
            format!(
                "[nvidia-container-cli]\npath = \"{}\"\n[nvidia-container-runtime]\nmode = \"legacy\"\n[holdfast]\n{own}\n",
                cli.display()
            ),
        )
        .unwrap();
        let flags = ["--gpu", "auto", "--gpu-config", &text(&config)];
        Self {
            scratch,
            flags: flags.map(str::to_owned).to_vec(),
        }
    }

    /// `create` on the node.
    fn create(&self, bundle: &Bundle) -> Finished {
        bundle.write();
        let pid_file = text(&self.scratch.path(&format!("{}.pid", bundle.id)));
        let mut words: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        let bundle_path = text(&bundle.path);
        words.extend([
            "create",
            "--bundle",
            &bundle_path,
            "--pid-file",
            &pid_file,
            &bundle.id,
        ]);
        let inner = self.scratch.command(&words);
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            NODE,
            "sh",
        ]);
        command.arg(inner.get_program()).args(inner.get_args());
        for (key, value) in inner.get_envs() {
            command.env(key, value.unwrap_or_default());
        }
        command.env("T", self.scratch.path("dev"));
        // What the container says is looked for in a file of its own.
        let mut wrapped = Command::new("sh");
        wrapped.args(["-c", "out=$1; shift; exec \"$@\" >\"$out\"", "sh"]);
        wrapped
            .arg(self.output(bundle))
            .arg(command.get_program())
            .args(command.get_args());
        for (key, value) in command.get_envs() {
            wrapped.env(key, value.unwrap_or_default());
        }
        deadline::run(&mut wrapped, LIMIT)
    }

    fn output(&self, bundle: &Bundle) -> std::path::PathBuf {
        self.scratch.path(&format!("{}.out", bundle.id))
    }

    fn said(&self, bundle: &Bundle) -> String {
        fs::read_to_string(self.output(bundle)).unwrap_or_default()
    }

    fn call(&self) -> String {
        let lines = fs::read_to_string(self.scratch.path("calls.json")).unwrap();
        let call: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
        call["argv"].to_string()
    }

    fn end(&self, bundle: &Bundle, global: &[&str]) {
        let pid_file = self.scratch.path(&format!("{}.pid", bundle.id));
        let pid: i32 = fs::read_to_string(pid_file).unwrap().parse().unwrap();
        let with = |words: &[&str]| {
            let words: Vec<&str> = global.iter().chain(words).copied().collect();
            self.scratch.call(&words).ok();
        };
        with(&["kill", &bundle.id, "KILL"]);
        self.scratch.exit_of(pid);
        with(&["delete", &bundle.id]);
    }
}

/// Only where a driver can be pretended.
fn no_driver_here(test: &str) -> bool {
    let there = Path::new("/proc/driver").is_dir() && !Path::new("/proc/driver/nvidia").exists();
    if !there {
        skip(test, "/proc/driver is missing, or the real driver is there");
    }
    there
}

fn asking(bundle: Bundle, devices: &str) -> Bundle {
    bundle.with(|spec| {
        let env = spec["process"]["env"].as_array_mut().unwrap();
        env.push(json!(format!("NVIDIA_VISIBLE_DEVICES={devices}")));
    })
}

fn the_devices_are_allowed_before_the_cli_runs(scratch: &Scratch) {
    if !no_driver_here("the_devices_are_allowed_before_the_cli_runs") {
        return;
    }
    let node = Node::new(scratch, "file /dev/nvidia0\n", "");
    let with = asking(scratch.bundle("with").script(OPEN), "GPU-aa");
    node.create(&with).ok();
    assert!(
        node.call().contains("\"--no-cgroups\",\"--device=GPU-aa\""),
        "{}",
        node.call()
    );
    scratch.call(&["start", "with"]).ok();
    deadline::eventually("the device is opened", LIMIT, || {
        node.said(&with).contains("opened").then_some(())
    });
    node.end(&with, &[]);

    // One that has the same capabilities and does not ask.
    let without = scratch
        .bundle("without")
        .script(&OPEN.replace("sleep 600", "echo done; sleep 600"));
    node.create(&without).ok();
    scratch.call(&["start", "without"]).ok();
    deadline::eventually("the other has tried", LIMIT, || {
        node.said(&without).contains("done").then_some(())
    });
    assert!(!node.said(&without).contains("opened"));
    node.end(&without, &[]);
}

fn a_reload_of_systemd_takes_nothing_away(scratch: &Scratch) {
    const TEST: &str = "a_reload_of_systemd_takes_nothing_away";
    if !Path::new("/run/systemd/system").exists() {
        return skip(TEST, "systemd does not run here (make test-v2 has one)");
    }
    if !no_driver_here(TEST) {
        return;
    }
    let mut node = Node::new(scratch, "file /dev/nvidia0\n", "");
    node.flags.push("--systemd-cgroup".to_owned());
    let unique = place::unique("holdfast-test");
    let bundle = asking(scratch.bundle("box").script(OPEN), "0")
        .with(|spec| spec["linux"]["cgroupsPath"] = json!(format!("system.slice:{unique}:box")));
    node.create(&bundle).ok();
    scratch.call(&["--systemd-cgroup", "start", "box"]).ok();
    deadline::eventually("the device is opened", LIMIT, || {
        node.said(&bundle).contains("opened").then_some(())
    });
    for reload in [
        &["daemon-reload"][..],
        &[
            "set-property",
            "--runtime",
            &format!("{unique}-box.scope"),
            "CPUWeight=50",
        ],
    ] {
        let mut command = Command::new("systemctl");
        deadline::run(command.args(reload), LIMIT).ok();
        let said = scratch.exec(&bundle, &["sh", "-c", "(: >/dev/gpu) && echo again"]);
        assert!(said.ok().contains("again"), "after {reload:?}: {said}");
    }
    node.end(&bundle, &["--systemd-cgroup"]);
}

fn a_missing_node_is_an_error(scratch: &Scratch) {
    if !no_driver_here("a_missing_node_is_an_error") {
        return;
    }
    let node = Node::new(scratch, "", "");
    let bundle = asking(scratch.bundle("box").args(&["sleep", "600"]), "all");
    let said = node.create(&bundle);
    let why = said.failed();
    assert!(
        why.contains("has no /dev/nvidia0 of the GPUs that were asked for (all)"),
        "{why}"
    );
}

fn unknown_devices_leave_the_rules_to_the_cli(scratch: &Scratch) {
    if !no_driver_here("unknown_devices_leave_the_rules_to_the_cli") {
        return;
    }
    let node = Node::new(scratch, "", "");
    let bundle = asking(scratch.bundle("mig").args(&["sleep", "600"]), "MIG-1");
    let said = node.create(&bundle);
    said.ok();
    assert!(
        said.stderr
            .contains("is no GPU of /proc/driver/nvidia/gpus"),
        "{said}"
    );
    assert!(!node.call().contains("--no-cgroups"), "{}", node.call());
    node.end(&bundle, &[]);
    fs::remove_dir_all(scratch.path("cli")).unwrap();
    let node = Node::new(scratch, "file /dev/nvidia0\n", "device-rules = \"cli\"");
    let bundle = asking(scratch.bundle("cli").args(&["sleep", "600"]), "0");
    node.create(&bundle).ok();
    assert!(!node.call().contains("--no-cgroups"), "{}", node.call());
    node.end(&bundle, &[]);
}

/// The system calls of `create`, by name.
fn calls(scratch: &Scratch, id: &str, global: &[&str]) -> BTreeMap<String, usize> {
    let bundle = scratch.bundle(id).args(&["sleep", "600"]);
    bundle.write();
    let (trace, pid_file) = (
        scratch.path(&format!("{id}.trace")),
        text(&scratch.path(&format!("{id}.pid"))),
    );
    let path = text(&bundle.path);
    let mut words = global.to_vec();
    words.extend(["create", "--bundle", &path, "--pid-file", &pid_file, id]);
    let inner = scratch.command(&words);
    let mut command = Command::new("strace");
    // Not the children: they are counted by the calls that make them.
    command
        .args(["-o", &text(&trace)])
        .arg(inner.get_program())
        .args(inner.get_args());
    for (key, value) in inner.get_envs() {
        command.env(key, value.unwrap_or_default());
    }
    deadline::run(&mut command, LIMIT).ok();
    let pid: i32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    scratch.call(&["kill", id, "KILL"]).ok();
    scratch.exit_of(pid);
    scratch.call(&["delete", id]).ok();
    let mut counts = BTreeMap::new();
    for line in fs::read_to_string(trace).unwrap().lines() {
        if let Some((name, _)) = line.split_once('(') {
            *counts.entry(name.to_owned()).or_insert(0) += 1;
        }
    }
    counts
}

fn without_a_request_there_is_no_process_and_few_calls(scratch: &Scratch) {
    if place::program("strace").is_none() {
        return skip(
            "without_a_request_there_is_no_process_and_few_calls",
            "no strace",
        );
    }
    let config = scratch.path("config.toml");
    fs::write(&config, "[nvidia-container-runtime]\nmode = \"legacy\"\n").unwrap();
    // The first run fills caches.
    calls(scratch, "warm", &[]);
    let off = calls(scratch, "off", &[]);
    let on = calls(
        scratch,
        "on",
        &["--gpu", "auto", "--gpu-config", &text(&config)],
    );
    let count =
        |counts: &BTreeMap<String, usize>, name: &str| counts.get(name).copied().unwrap_or(0);
    for name in [
        "clone", "clone3", "fork", "vfork", "execve", "execveat", "pipe2", "socket",
    ] {
        assert_eq!(count(&on, name), count(&off, name), "{name}");
    }
    // Waits differ from run to run; the stage makes none.
    let of_files = [
        "open",
        "openat",
        "openat2",
        "read",
        "readv",
        "stat",
        "statx",
        "newfstatat",
        "fstat",
        "close",
        "lseek",
        "access",
        "readlink",
    ];
    let sum = |counts: &BTreeMap<String, usize>| {
        of_files
            .iter()
            .map(|name| count(counts, name))
            .sum::<usize>()
    };
    let (on, off) = (sum(&on), sum(&off));
    // os-release, ldconfig.real, and config.toml: opened, measured, read to its end, closed.
    assert!(
        on > off && on - off <= 16,
        "{off} calls on files without the stage, {on} with it"
    );
}
