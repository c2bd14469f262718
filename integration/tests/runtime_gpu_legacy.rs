//! The GPU stage of `holdfast create` in legacy mode, against a fake `nvidia-container-cli` that can do what the real one
//! does when it goes wrong.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use holdfast_integration::bundle::Bundle;
use holdfast_integration::deadline::{self, Finished};
use holdfast_integration::leaks::{is_alive, processes_mentioning};
use holdfast_integration::on_runtimes;
use holdfast_integration::place;
use holdfast_integration::scratch::{LIMIT, Scratch, text};
use serde_json::{Value, json};

on_runtimes! {
    the_cli_is_called_as_the_hook_would: holdfast;
    without_a_request_nothing_is_run: holdfast;
    without_a_handler_nothing_is_run: holdfast;
    a_bad_configuration_fails_only_those_who_ask: holdfast;
    what_the_cli_mounts_is_the_container_s_alone: holdfast;
    known_messages_come_with_their_class: holdfast;
    a_flood_on_standard_error_is_bounded: holdfast;
    a_hanging_cli_is_ended_at_its_deadline: holdfast;
    a_cli_that_ignores_sigterm_is_ended: holdfast;
    a_cli_that_cannot_be_killed_is_not_waited_for: holdfast;
    a_timed_out_rpc_is_tried_once_more: holdfast;
    a_second_timeout_of_the_rpc_is_the_end: holdfast;
    a_cli_ended_by_a_signal_says_so: holdfast;
    the_death_of_init_is_reported_first: holdfast;
    a_missing_cli_is_named: holdfast;
    the_container_s_environment_reaches_no_host_process: holdfast;
    a_hook_of_the_engine_is_not_run_as_well: holdfast;
    a_request_that_cannot_be_granted_leaves_nothing: holdfast;
    a_success_without_devices_is_none: holdfast;
    a_hundred_at_once: holdfast;
}

const FAKE: &str = env!("CARGO_BIN_EXE_fake-nvidia-container-cli");

/// The node of one test: configuration and CLI.
struct Node<'a> {
    scratch: &'a Scratch,
    cli: PathBuf,
}

impl<'a> Node<'a> {
    /// One whose CLI does what `behaviour` says; `{}` in it is the test's folder.
    fn new(scratch: &'a Scratch, behaviour: &str) -> Self {
        let this = Self {
            scratch,
            cli: scratch.path("cli/nvidia-container-cli"),
        };
        fs::create_dir_all(this.cli.parent().unwrap()).unwrap();
        // Linked: a copy could still be open for writing in a fork of a parallel test.
        std::os::unix::fs::symlink(FAKE, &this.cli).unwrap();
        let folder = text(&scratch.path(""));
        let record = format!("record {}\n", this.calls_file().display());
        let behaviour = behaviour.replace("{}", folder.trim_end_matches('/'));
        fs::write(
            scratch.path("cli/nvidia-container-cli.behaviour"),
            record + &behaviour,
        )
        .unwrap();
        this.configure("");
        this
    }

    /// Adds lines to the table `[holdfast]`. No node of the tests has the driver, so nothing is strict but by request.
    fn configure(&self, own: &str) {
        let strict = if own.contains("strict") {
            ""
        } else {
            "strict = false\n"
        };
        let cli = self.cli.display();
        let text = format!(
            "[nvidia-container-cli]\npath = \"{cli}\"\nldconfig = \"@/sbin/ldconfig\"\nenvironment = [\"FROM_CONFIG=1\"]\n\
             [nvidia-container-runtime]\nmode = \"legacy\"\n[holdfast]\n{strict}{own}\n"
        );
        fs::write(self.config(), text).unwrap();
    }

    fn config(&self) -> PathBuf {
        self.scratch.path("config.toml")
    }

    fn calls_file(&self) -> PathBuf {
        self.scratch.path("calls.json")
    }

    /// How the CLI was called, each time.
    fn calls(&self) -> Vec<Value> {
        let lines = fs::read_to_string(self.calls_file()).unwrap_or_default();
        lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    fn bundle(&self, name: &str) -> Bundle {
        self.scratch.bundle(name).args(&["sleep", "600"])
    }

    /// A container that asks for the first GPU.
    fn gpu_bundle(&self, name: &str) -> Bundle {
        asking(self.bundle(name))
    }

    fn command(&self, bundle: &Bundle) -> Command {
        bundle.write();
        let pid_file = text(&self.scratch.path(&format!("{}.pid", bundle.id)));
        let mut command = self.scratch.command(&[
            "--gpu",
            "auto",
            "create",
            "--bundle",
            &text(&bundle.path),
            "--pid-file",
            &pid_file,
            &bundle.id,
        ]);
        command.env("NVIDIA_CTK_CONFIG_FILE_PATH", self.config());
        command.env("HOLDFAST_DEADLINE_GPU", "20s");
        // What must not reach the CLI of a host.
        command.env("FROM_CALLER", "1");
        command
    }

    fn create(&self, bundle: &Bundle) -> Finished {
        deadline::run(&mut self.command(bundle), LIMIT)
    }

    fn created(&self, bundle: &Bundle) -> i32 {
        let said = self.create(bundle);
        said.ok();
        self.pid(bundle)
    }

    fn pid(&self, bundle: &Bundle) -> i32 {
        let path = self.scratch.path(&format!("{}.pid", bundle.id));
        fs::read_to_string(path).unwrap().trim().parse().unwrap()
    }

    fn end(&self, bundle: &Bundle) {
        let pid = self.pid(bundle);
        self.scratch.call(&["kill", &bundle.id, "KILL"]).ok();
        self.scratch.exit_of(pid);
        self.scratch.call(&["delete", &bundle.id]).ok();
    }

    /// A create that must fail, and leave nothing of the container.
    fn refused(&self, bundle: &Bundle) -> String {
        let said = self.create(bundle);
        let why = said.failed().to_owned();
        assert!(
            !self.scratch.path(&format!("state/{}", bundle.id)).exists(),
            "{why}"
        );
        why
    }
}

fn asking(bundle: Bundle) -> Bundle {
    with_env(bundle, &["NVIDIA_VISIBLE_DEVICES=0"])
}

fn with_env(bundle: Bundle, entries: &[&str]) -> Bundle {
    bundle.with(|spec| {
        let env = spec["process"]["env"].as_array_mut().unwrap();
        env.extend(entries.iter().map(|entry| json!(entry)));
    })
}

fn texts(value: &Value) -> Vec<&str> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item.as_str().unwrap())
        .collect()
}

fn the_cli_is_called_as_the_hook_would(scratch: &Scratch) {
    let node = Node::new(scratch, "");
    let bundle = node.gpu_bundle("box");
    let pid = node.created(&bundle);
    let [call] = &node.calls()[..] else {
        panic!("{:?}", node.calls())
    };
    let rootfs = bundle.path.join("rootfs");
    assert_eq!(
        texts(&call["argv"]),
        [
            text(&node.cli).as_str(),
            "--load-kmods",
            "configure",
            "--cuda-compat-mode=ldconfig",
            "--ldconfig=@/sbin/ldconfig",
            "--device=0",
            "--compute",
            "--utility",
            &format!("--pid={pid}"),
            &text(&rootfs),
        ]
    );
    assert_eq!(call["cwd"], json!(bundle.path));
    assert_eq!(call["pid"], call["group"], "a process group of its own");
    assert_eq!(
        texts(&call["env"]),
        [
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "FROM_CONFIG=1"
        ]
    );
    node.end(&bundle);
}

fn without_a_request_nothing_is_run(scratch: &Scratch) {
    let node = Node::new(scratch, "");
    let bundle = node.bundle("box");
    node.created(&bundle);
    assert!(node.calls().is_empty());
    node.end(&bundle);
    let void = with_env(
        node.bundle("void"),
        &["NVIDIA_VISIBLE_DEVICES=void", "BROKEN"],
    );
    node.created(&void);
    assert!(node.calls().is_empty());
    node.end(&void);
}

fn without_a_handler_nothing_is_run(scratch: &Scratch) {
    let node = Node::new(scratch, "");
    let bundle = node.gpu_bundle("box");
    let pid = scratch.create(&bundle);
    assert!(node.calls().is_empty());
    scratch.call(&["kill", "box", "KILL"]).ok();
    scratch.exit_of(pid);
    scratch.call(&["delete", "box"]).ok();
    let mut wrong = scratch.command(&["--gpu", "nonsense", "delete", "--force", "box"]);
    deadline::run(&mut wrong, LIMIT).ok();
}

fn a_bad_configuration_fails_only_those_who_ask(scratch: &Scratch) {
    let node = Node::new(scratch, "");
    fs::write(node.config(), "[nvidia-container-cli]\nno-pivot = 3\n").unwrap();
    let bundle = node.bundle("box");
    node.created(&bundle);
    node.end(&bundle);
    let why = node.refused(&node.gpu_bundle("gpu"));
    for part in [
        "config.toml",
        "line 2, column 1",
        "nvidia-container-cli.no-pivot",
        "not the number 3",
    ] {
        assert!(why.contains(part), "{why}");
    }
    let mut command = node.command(&node.bundle("plain"));
    command.env("HOLDFAST_GPU_AS_ORIGINAL", "config-errors");
    let said = deadline::run(&mut command, LIMIT);
    assert!(said.failed().contains("no-pivot"), "{said}");
}

fn what_the_cli_mounts_is_the_container_s_alone(scratch: &Scratch) {
    let node = Node::new(scratch, "mount /usr/lib/driver\n");
    let bundle = node
        .gpu_bundle("box")
        .script("grep fake-driver /proc/mounts; sleep 600");
    let pid = node.created(&bundle);
    assert!(
        !fs::read_to_string("/proc/self/mounts")
            .unwrap()
            .contains("fake-driver")
    );
    scratch.call(&["start", "box"]).ok();
    let mounts = fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap();
    assert!(
        mounts.contains("fake-driver /usr/lib/driver tmpfs"),
        "{mounts}"
    );
    node.end(&bundle);
}

fn known_messages_come_with_their_class(scratch: &Scratch) {
    let cases = [
        (
            "initialization error: nvml error: driver not loaded",
            "driver not loaded",
            "modprobe nvidia",
        ),
        (
            "initialization error: load library failed: libnvidia-ml.so.1: cannot open shared object file: no such file or directory",
            "library not found",
            "nvidia-container-cli.root",
        ),
        (
            "requirement error: unsatisfied condition: cuda>=99.0, please update your driver to a newer version",
            "requirement unmet",
            "NVIDIA_DISABLE_REQUIRE",
        ),
        (
            "device error: 9: unknown device",
            "unknown device",
            "nvidia-smi -L",
        ),
        (
            "ldcache error: process /sbin/ldconfig failed with error code: 1",
            "ldconfig failed",
            "ld.so.cache",
        ),
        (
            "mount error: failed to add device rules: bpf_prog_query failed",
            "device rules refused",
            "no-cgroups",
        ),
        (
            "mount error: file creation failed: /x/merged/libcuda.so: file exists",
            "file exists",
            "the image",
        ),
    ];
    let node = Node::new(scratch, "");
    let bundle = node.gpu_bundle("box");
    for (words, class, advice) in cases {
        let said = format!("stderr nvidia-container-cli: {words}\nexit 1\n");
        fs::write(scratch.path("cli/nvidia-container-cli.behaviour"), said).unwrap();
        let why = node.refused(&bundle);
        for part in [words, class, advice, "exit code 1"] {
            assert!(why.contains(part), "{part:?} is not in {why}");
        }
    }
}

fn a_flood_on_standard_error_is_bounded(scratch: &Scratch) {
    let node = Node::new(
        scratch,
        "flood 8000000\nstderr nvidia-container-cli: initialization error: nvml error: driver not loaded\nexit 1\n",
    );
    let why = node.refused(&node.gpu_bundle("box"));
    assert!(
        why.contains("nvml error: driver not loaded") && why.contains("left out"),
        "{}",
        why.len()
    );
    assert!(why.len() < 100_000, "{}", why.len());
}

fn a_hanging_cli_is_ended_at_its_deadline(scratch: &Scratch) {
    let node = Node::new(scratch, "stderr it was here\nhang\n");
    let bundle = node.gpu_bundle("box");
    let mut command = node.command(&bundle);
    command.env("HOLDFAST_DEADLINE_GPU", "3s");
    let said = deadline::run(&mut command, LIMIT);
    let why = said.failed();
    let pid = node.calls()[0]["pid"].as_i64().unwrap();
    for part in [
        "did not finish within 3000 ms and was killed",
        &format!("pid {pid} "),
        "it was here",
        "state S",
    ] {
        assert!(why.contains(part), "{part:?} is not in {why}");
    }
    assert!(!is_alive(pid.try_into().unwrap()));
}

fn a_cli_that_ignores_sigterm_is_ended(scratch: &Scratch) {
    let node = Node::new(scratch, "ignore-sigterm\nhang\n");
    let mut command = node.command(&node.gpu_bundle("box"));
    command.env("HOLDFAST_DEADLINE_GPU", "3s");
    let said = deadline::run(&mut command, LIMIT);
    assert!(said.failed().contains("and was killed"), "{said}");
    let pid = node.calls()[0]["pid"].as_i64().unwrap();
    assert!(!is_alive(pid.try_into().unwrap()));
}

/// Frozen, a process obeys SIGKILL as little as in state D.
fn a_cli_that_cannot_be_killed_is_not_waited_for(scratch: &Scratch) {
    let freezer = Path::new("/sys/fs/cgroup/freezer");
    if !freezer.join("cgroup.procs").exists() {
        return holdfast_integration::skip("a CLI that cannot be killed", "there is no v1 freezer");
    }
    let node = Node::new(scratch, "hang\n");
    let bundle = node.gpu_bundle("box");
    let mut command = node.command(&bundle);
    command.env("HOLDFAST_DEADLINE_GPU", "5s");
    let group = freezer.join(place::unique("holdfast-gpu-test"));
    fs::create_dir(&group).unwrap();
    let frozen = std::thread::spawn({
        let (group, calls) = (group.clone(), node.calls_file());
        move || {
            let pid = deadline::eventually("the CLI's call", LIMIT, || {
                let line = fs::read_to_string(&calls).ok()?;
                let call: Value = serde_json::from_str(line.lines().next()?).ok()?;
                call["pid"].as_i64()
            });
            fs::write(group.join("cgroup.procs"), pid.to_string()).unwrap();
            fs::write(group.join("freezer.state"), "FROZEN").unwrap();
            pid
        }
    });
    let said = deadline::run(&mut command, LIMIT);
    let pid: i32 = frozen.join().unwrap().try_into().unwrap();
    let was_alive = is_alive(pid);
    fs::write(group.join("freezer.state"), "THAWED").unwrap();
    deadline::eventually("the CLI's end", LIMIT, || (!is_alive(pid)).then_some(()));
    deadline::eventually("an empty cgroup", LIMIT, || fs::remove_dir(&group).ok());
    let why = said.failed();
    assert!(was_alive, "{why}");
    for part in [
        "SIGKILL, which it does not obey",
        &format!("pid {pid} "),
        "state D",
        "in kernel function",
    ] {
        assert!(why.contains(part), "{part:?} is not in {why}");
    }
}

const RPC: &str =
    "stderr nvidia-container-cli: initialization error: driver rpc error: timed out\n";

fn a_timed_out_rpc_is_tried_once_more(scratch: &Scratch) {
    // The first call makes the file and fails; the second one ends well.
    let node = Node::new(scratch, &format!("once {{}}/first\n{RPC}exit 1\n"));
    let bundle = node.gpu_bundle("box");
    node.created(&bundle);
    assert_eq!(node.calls().len(), 2);
    node.end(&bundle);
}

fn a_second_timeout_of_the_rpc_is_the_end(scratch: &Scratch) {
    let node = Node::new(scratch, &format!("{RPC}exit 1\n"));
    let why = node.refused(&node.gpu_bundle("box"));
    assert_eq!(node.calls().len(), 2);
    for part in ["rpc timed out", "two attempts", "nvidia-persistenced"] {
        assert!(why.contains(part), "{why}");
    }
}

fn a_cli_ended_by_a_signal_says_so(scratch: &Scratch) {
    let node = Node::new(scratch, "stderr last words\ndie 6\n");
    let why = node.refused(&node.gpu_bundle("box"));
    assert!(
        why.contains("SIGABRT") && why.contains("last words"),
        "{why}"
    );
}

fn the_death_of_init_is_reported_first(scratch: &Scratch) {
    for (name, behaviour) in [
        (
            "failing",
            "kill-init\nstderr nvidia-container-cli: mount error: stat failed\nexit 1\n",
        ),
        ("hanging", "kill-init\nhang\n"),
    ] {
        let _ = fs::remove_dir_all(scratch.path("cli"));
        let node = Node::new(scratch, behaviour);
        let why = node.refused(&node.gpu_bundle(name));
        assert!(
            why.contains("the container's init process ended") && why.contains("signal 9"),
            "{why}"
        );
    }
}

fn a_missing_cli_is_named(scratch: &Scratch) {
    let node = Node::new(scratch, "");
    fs::remove_file(&node.cli).unwrap();
    let why = node.refused(&node.gpu_bundle("box"));
    assert!(
        why.contains("nvidia-container-cli: cannot execute it: No such file"),
        "{why}"
    );
    fs::write(
        node.config(),
        "[nvidia-container-runtime]\nmode = \"legacy\"\n",
    )
    .unwrap();
    let why = node.refused(&node.gpu_bundle("other"));
    assert!(
        why.contains("nvidia-container-cli is not installed: looked in /usr/local/sbin"),
        "{why}"
    );
}

fn the_container_s_environment_reaches_no_host_process(scratch: &Scratch) {
    let node = Node::new(scratch, "");
    let bundle = with_env(
        node.gpu_bundle("box"),
        &[
            "LD_PRELOAD=/evil.so",
            "LD_LIBRARY_PATH=/evil",
            "PATH=/evil",
            "NVIDIA_DRIVER_ROOT=/evil",
        ],
    );
    node.created(&bundle);
    let calls = node.calls();
    let env = texts(&calls[0]["env"]);
    assert_eq!(env.len(), 2, "{env:?}");
    assert!(!env.iter().any(|entry| entry.contains("evil")), "{env:?}");
    node.end(&bundle);
}

fn a_hook_of_the_engine_is_not_run_as_well(scratch: &Scratch) {
    let node = Node::new(scratch, "");
    let bundle = node.gpu_bundle("box").with(|spec| {
        spec["hooks"]["prestart"] =
            json!([{"path": "/usr/bin/nvidia-container-runtime-hook", "args": ["nvidia-container-runtime-hook", "prestart"]}]);
    });
    node.created(&bundle);
    assert_eq!(node.calls().len(), 1);
    node.end(&bundle);
}

fn a_request_that_cannot_be_granted_leaves_nothing(scratch: &Scratch) {
    let node = Node::new(scratch, "");
    let why = node.refused(&with_env(
        node.gpu_bundle("box"),
        &["NVIDIA_MIG_CONFIG_DEVICES=all"],
    ));
    assert!(
        why.contains("NVIDIA_MIG_CONFIG_DEVICES") && why.contains("CAP_SYS_ADMIN"),
        "{why}"
    );
    let why = node.refused(&with_env(
        node.gpu_bundle("other"),
        &["NVIDIA_DRIVER_CAPABILITIES=compute,flying"],
    ));
    assert!(why.contains("\"flying\" is not supported"), "{why}");
    assert!(node.calls().is_empty());
}

fn a_success_without_devices_is_none(scratch: &Scratch) {
    let node = Node::new(scratch, "");
    if Path::new("/proc/driver/nvidia/gpus").exists() {
        return holdfast_integration::skip(
            "a success without devices",
            "this machine has the driver",
        );
    }
    node.configure("strict = true");
    let why = node.refused(&node.gpu_bundle("box"));
    assert!(
        why.contains("succeeded, but the container has no driver")
            && why.contains("strict = false"),
        "{why}"
    );
    // The driver alone, without a device, is no such promise.
    let none = with_env(node.bundle("none"), &["NVIDIA_VISIBLE_DEVICES=none"]);
    node.created(&none);
    node.end(&none);
}

fn a_hundred_at_once(scratch: &Scratch) {
    let node = Node::new(scratch, "mount /usr/lib/driver\n");
    let bundles: Vec<_> = (0..100)
        .map(|at| node.gpu_bundle(&format!("box{at}")))
        .collect();
    let queue = std::sync::Mutex::new(bundles.iter());
    let queue = &queue;
    std::thread::scope(|scope| {
        for _ in 0..25 {
            let node = &node;
            scope.spawn(move || {
                loop {
                    let next = queue.lock().unwrap().next();
                    let Some(bundle) = next else { return };
                    let mut command = node.command(bundle);
                    deadline::run(&mut command, Duration::from_secs(120)).ok();
                }
            });
        }
    });
    let calls = node.calls();
    assert_eq!(calls.len(), 100);
    for bundle in &bundles {
        let pid = node.pid(bundle);
        let rootfs = text(&bundle.path.join("rootfs"));
        let own = calls
            .iter()
            .filter(|call| texts(&call["argv"]).last() == Some(&rootfs.as_str()));
        let pids: Vec<_> = own
            .map(|call| call["argv"].to_string().contains(&format!("--pid={pid}\"")))
            .collect();
        assert_eq!(pids, [true], "{}", bundle.id);
        let mounts = fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap();
        assert_eq!(mounts.matches("fake-driver").count(), 1, "{}", bundle.id);
    }
    for bundle in &bundles {
        node.end(bundle);
    }
    assert!(processes_mentioning(&text(&node.cli)).is_empty());
}
