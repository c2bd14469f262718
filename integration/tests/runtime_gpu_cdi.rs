//! The GPU stage of `holdfast create` in the CDI modes, `holdfast gpu plan` and `holdfast gpu check`, against a fake
//! driver. No GPU is needed: device nodes have the numbers of harmless devices.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use holdfast_integration::bundle::Bundle;
use holdfast_integration::deadline::{self, Finished};
use holdfast_integration::driver;
use holdfast_integration::on_runtimes;
use holdfast_integration::place;
use holdfast_integration::scratch::{LIMIT, Scratch, text};
use serde_json::{Value, json};

on_runtimes! {
    edits_of_a_file_are_in_the_container: holdfast;
    an_unknown_device_is_told_with_what_is_wrong_with_the_files: holdfast;
    device_rules_survive_a_reload_and_their_loss_is_told: holdfast;
    edits_made_on_the_spot_are_in_the_container: holdfast;
    less_than_what_was_asked_for_is_an_error: holdfast;
    an_nvml_that_misbehaves_does_not_hang_the_creation: holdfast;
    without_a_request_the_driver_is_not_needed: holdfast;
    the_plan_says_what_create_would_do_and_does_nothing: holdfast;
    the_check_tells_what_would_fail: holdfast;
    the_drop_in_goes_on_as_holdfast: holdfast;
    the_drop_in_does_not_call_itself: holdfast;
    a_real_gpu_is_seen_inside: holdfast;
}

/// A character device that is opened without effect and is not among those that every container may open.
const AUTOFS: (u64, u64) = (10, 235);

struct Node<'a> {
    scratch: &'a Scratch,
}

impl<'a> Node<'a> {
    fn new(scratch: &'a Scratch, config: &str) -> Self {
        let this = Self { scratch };
        this.configure(config);
        this
    }

    /// `{}` is the test's folder.
    fn configure(&self, config: &str) {
        fs::write(self.config(), self.filled(config)).unwrap();
    }

    fn filled(&self, text_: &str) -> String {
        text_.replace("{}", text(&self.scratch.path("")).trim_end_matches('/'))
    }

    fn config(&self) -> PathBuf {
        self.scratch.path("config.toml")
    }

    fn put(&self, path: &str, content: &str) -> PathBuf {
        let path = self.scratch.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, self.filled(content)).unwrap();
        path
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.scratch.command(args);
        command.env("NVIDIA_CTK_CONFIG_FILE_PATH", self.config());
        command.env_remove("HOLDFAST_GPU");
        command
    }

    fn call(&self, args: &[&str]) -> Finished {
        deadline::run(&mut self.command(args), LIMIT)
    }

    /// Runs a script in a container that asks for `devices`.
    fn run(&self, name: &str, devices: &str, script: &str, env: &[(&str, &str)]) -> Finished {
        let bundle = asking(self.scratch.bundle(name), devices).script(script);
        bundle.write();
        let mut command = self.command(&[
            "--gpu",
            "auto",
            "run",
            "--bundle",
            &text(&bundle.path),
            name,
        ]);
        command.envs(env.iter().copied());
        deadline::run(&mut command, LIMIT)
    }

    fn json(&self, args: &[&str]) -> Value {
        let said = self.call(args);
        serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said}"))
    }
}

fn asking(bundle: Bundle, devices: &str) -> Bundle {
    let entry = format!("NVIDIA_VISIBLE_DEVICES={devices}");
    bundle.with(|spec| {
        spec["process"]["env"]
            .as_array_mut()
            .unwrap()
            .push(json!(entry))
    })
}

const CDI: &str = "[nvidia-container-runtime]\nmode = \"cdi\"\n\
                   [nvidia-container-runtime.modes.cdi]\nspec-dirs = [\"{}/cdi\"]\n";

fn jit(more: &str) -> String {
    format!(
        "[nvidia-container-cli]\nroot = \"{{}}/drv\"\n[nvidia-ctk]\npath = \"{{}}/nvidia-cdi-hook\"\n\
         [nvidia-container-runtime]\nmode = \"jit-cdi\"\n{more}"
    )
}

/// A node in mode jit-cdi with a fake driver and a hook tool that records its calls.
fn with_driver<'a>(scratch: &'a Scratch, more: &str) -> Option<Node<'a>> {
    let node = Node::new(scratch, &jit(more));
    if let Err(why) = driver::install(&scratch.path("drv")) {
        holdfast_integration::skip("jit-cdi", &why);
        return None;
    }
    let tool = "#!/bin/sh\ncat > /dev/null\necho \"$@\" >> '{}/hook-calls'\n";
    place::write_program(&scratch.path("nvidia-cdi-hook"), &node.filled(tool));
    Some(node)
}

fn edits_of_a_file_are_in_the_container(scratch: &Scratch) {
    let node = Node::new(scratch, CDI);
    let device = scratch.path("node");
    driver::node(&device, AUTOFS.0, AUTOFS.1, 0o666, 0);
    node.put("file", "from the host\n");
    node.put(
        "cdi/a.yaml",
        "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n- name: \"0\"\n  containerEdits:\n    env: [WHICH=zero]\n    \
         deviceNodes: [{path: /dev/nvidia0, hostPath: \"{}/node\"}]\n    \
         mounts: [{hostPath: \"{}/file\", containerPath: /opt/deep/file, options: [ro, bind]}]\n",
    );
    let said = node.run(
        "box",
        "0",
        "echo $WHICH; cat /opt/deep/file; exec 3<>/dev/nvidia0 && echo opened",
        &[],
    );
    assert_eq!(said.ok(), "zero\nfrom the host\nopened\n", "{said}");
    // Without the stage nothing of it is there.
    let bundle =
        asking(scratch.bundle("plain"), "0").script("ls /dev/nvidia0 2>&1; echo \"[$WHICH]\"");
    let said = scratch.run(&bundle);
    assert!(said.ok().ends_with("[]\n"), "{said}");
}

fn an_unknown_device_is_told_with_what_is_wrong_with_the_files(scratch: &Scratch) {
    let node = Node::new(scratch, CDI);
    node.put("cdi/broken.yaml", "kind: [\n");
    let good = "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices: [{name: all, containerEdits: {env: [A=1]}}]\n";
    node.put("cdi/good.yaml", good);
    let said = node.run("box", "7", "true", &[]);
    let why = said.failed();
    for part in [
        "unresolvable CDI devices nvidia.com/gpu=7",
        "broken.yaml",
        "nvidia.com/gpu=all",
    ] {
        assert!(why.contains(part), "{part}: {why}");
    }
    assert!(!scratch.path("state/box").exists());
}

fn device_rules_survive_a_reload_and_their_loss_is_told(scratch: &Scratch) {
    let devices = PathBuf::from("/sys/fs/cgroup/devices").join(&scratch.cgroup);
    if !devices.parent().unwrap().is_dir() {
        return holdfast_integration::skip(
            "device_rules_survive_a_reload",
            "no device controller of version 1",
        );
    }
    let node = Node::new(scratch, CDI);
    driver::node(&scratch.path("node"), AUTOFS.0, AUTOFS.1, 0o666, 0);
    node.put(
        "cdi/a.yaml",
        "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n- name: \"0\"\n  containerEdits:\n    \
         deviceNodes: [{path: /dev/nvidia0, hostPath: \"{}/node\"}]\n",
    );
    let bundle = asking(scratch.bundle("box"), "0").args(&["sleep", "600"]);
    bundle.write();
    let plan = node.json(&["gpu", "plan", "--json", "--bundle", &text(&bundle.path)]);
    let pid_file = text(&scratch.path("box.pid"));
    node.call(&[
        "--gpu",
        "auto",
        "create",
        "--bundle",
        &text(&bundle.path),
        "--pid-file",
        &pid_file,
        "box",
    ])
    .ok();
    node.call(&["start", "box"]).ok();
    let pid: i32 = fs::read_to_string(&pid_file)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let opens = || node.call(&["exec", "box", "sh", "-c", "exec 3<>/dev/nvidia0"]);
    opens().ok();

    // What systemd does on a reload: everything is denied, then what the unit has is allowed, and no more.
    let cgroup = cgroup_of(pid);
    let write = |file: &str, rule: &str| fs::write(cgroup.join(file), rule).unwrap();
    write("devices.deny", "a");
    let rules = plan["spec"]["linux"]["resources"]["devices"]
        .as_array()
        .unwrap();
    let allowed: Vec<_> = rules.iter().filter(|rule| rule["allow"] == true).collect();
    assert!(!allowed.is_empty(), "{plan}");
    for rule in allowed {
        let access = rule["access"].as_str().unwrap();
        write(
            "devices.allow",
            &format!("c {}:{} {access}", rule["major"], rule["minor"]),
        );
    }
    opens().ok();
    let found = containers(&node);
    assert!(found.iter().all(|one| one["level"] == "ok"), "{found:?}");

    // And what becomes of rules that it does not know.
    write("devices.deny", &format!("c {}:{} rwm", AUTOFS.0, AUTOFS.1));
    let why = opens();
    assert_ne!(why.code(), 0, "{why}");
    let found = containers(&node);
    let told = found
        .iter()
        .find(|one| {
            one["level"] == "failure" && one["text"].as_str().unwrap().contains(&pid.to_string())
        })
        .unwrap_or_else(|| panic!("{found:?}"));
    assert!(
        told["text"].as_str().unwrap().contains("/dev/nvidia0"),
        "{told}"
    );

    node.call(&["kill", "box", "KILL"]).ok();
    scratch.exit_of(pid);
    node.call(&["delete", "box"]).ok();
}

/// What `gpu check` says about running containers.
fn containers(node: &Node<'_>) -> Vec<Value> {
    let all = node.json(&["gpu", "check", "--json"]);
    let findings = all["findings"].as_array().unwrap();
    findings
        .iter()
        .filter(|one| one["step"] == "containers")
        .cloned()
        .collect()
}

fn cgroup_of(pid: i32) -> PathBuf {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = text
        .lines()
        .find_map(|line| line.split_once(":devices:"))
        .unwrap()
        .1;
    PathBuf::from(format!("/sys/fs/cgroup/devices{path}"))
}

fn edits_made_on_the_spot_are_in_the_container(scratch: &Scratch) {
    let Some(node) = with_driver(scratch, "") else {
        return;
    };
    let script = "ls /dev | grep nvidia | tr '\\n' ' '; echo; echo $NVIDIA_VISIBLE_DEVICES; \
                  ls /usr/lib/x86_64-linux-gnu/libcuda.so.550.54.15; head -c 4 /dev/nvidia1 | wc -c";
    let said = node.run("box", "1", script, &[]);
    assert_eq!(
        said.ok(),
        "nvidia-modeset nvidia-uvm nvidia-uvm-tools nvidia1 nvidiactl \nvoid\n\
         /usr/lib/x86_64-linux-gnu/libcuda.so.550.54.15\n4\n",
        "{said}"
    );
    let calls = fs::read_to_string(scratch.path("hook-calls")).unwrap();
    let names: Vec<_> = calls
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert_eq!(
        names,
        [
            "create-symlinks",
            "enable-cuda-compat",
            "update-ldcache",
            "disable-device-node-modification",
            "update-application-profile"
        ]
    );
    // Named twice, a device is there once; the original gives none.
    let said = node.run("twice", "0,0", "ls /dev/nvidia0", &[]);
    assert_eq!(said.ok(), "/dev/nvidia0\n", "{said}");
    // By UUID, and none.
    let uuid = "GPU-11111111-2222-3333-4444-555555555555";
    assert_eq!(
        node.run("uuid", uuid, "ls /dev/nvidia1", &[]).ok(),
        "/dev/nvidia1\n"
    );
    let none = node.run(
        "none",
        "none",
        "ls -d /dev/nvidiactl /dev/nvidia? 2>/dev/null; true",
        &[],
    );
    assert_eq!(none.ok(), "/dev/nvidiactl\n", "{none}");
}

fn less_than_what_was_asked_for_is_an_error(scratch: &Scratch) {
    let Some(node) = with_driver(scratch, "") else {
        return;
    };
    let zero = [("FAKE_NVML", "zero")];
    let why = node.run("zero", "all", "true", &zero);
    assert!(
        why.failed()
            .contains("asks for all GPUs and the node has none"),
        "{why}"
    );
    for (name, devices, said) in [
        ("index", "5", "there is no GPU of this index"),
        ("garbage", "foo", "it is no index"),
        (
            "uuid",
            "GPU-99999999-1111-2222-3333-444444444444",
            "there is no GPU of this UUID",
        ),
    ] {
        let why = node.run(name, devices, "true", &[]);
        assert!(why.failed().contains(said), "{why}");
        assert!(
            why.failed()
                .contains("GPU-00000000-1111-2222-3333-444444444444"),
            "{why}"
        );
    }
    let why = node.run("lost", "1", "true", &[("FAKE_NVML", "lost")]);
    assert!(why.failed().contains("GPU is lost"), "{why}");
    node.run("other", "0", "true", &[("FAKE_NVML", "lost")])
        .ok();
    fs::remove_file(scratch.path("drv/dev/nvidia1")).unwrap();
    let why = node.run("gone", "1", "true", &[]);
    assert!(why.failed().contains("drv/dev/nvidia1"), "{why}");
    // As the original does it, where that is wanted.
    node.configure(&jit("[holdfast]\nstrict = false\n"));
    node.run("zero2", "all", "true", &zero).ok();
    node.run("gone2", "1", "true", &[]).ok();
}

fn an_nvml_that_misbehaves_does_not_hang_the_creation(scratch: &Scratch) {
    let Some(node) = with_driver(scratch, "[holdfast]\ndeadline = \"1s\"\n") else {
        return;
    };
    let why = node.run("hang", "0", "true", &[("FAKE_NVML", "hang")]);
    assert!(why.failed().contains("gave no answer"), "{why}");
    assert!(why.failed().contains("was killed"), "{why}");
    node.configure(&jit(""));
    let why = node.run("die", "0", "true", &[("FAKE_NVML", "die")]);
    assert!(why.failed().contains("signal 6"), "{why}");
    let why = node.run("init", "0", "true", &[("FAKE_NVML", "initrc=18")]);
    assert!(
        why.failed().contains("Driver/library version mismatch"),
        "{why}"
    );
    node.run("flood", "0", "true", &[("FAKE_NVML", "flood")])
        .ok();
}

fn without_a_request_the_driver_is_not_needed(scratch: &Scratch) {
    let node = Node::new(
        scratch,
        "[nvidia-container-cli]\nroot = \"/nonexistent\"\n[nvidia-container-runtime]\nmode = \"auto\"\n",
    );
    node.run("void", "void", "true", &[]).ok();
    let why = node.run("box", "all", "true", &[]);
    assert!(why.failed().contains("libnvidia-ml.so.1"), "{why}");
}

fn the_plan_says_what_create_would_do_and_does_nothing(scratch: &Scratch) {
    let node = Node::new(scratch, CDI);
    node.put(
        "cdi/a.yaml",
        "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices: [{name: \"0\", containerEdits: {env: [A=1]}}]\n",
    );
    let bundle = asking(scratch.bundle("box"), "0");
    bundle.write();
    let path = text(&bundle.path);
    let config = bundle.path.join("config.json");
    let before = fs::read(&config).unwrap();
    let plan = node.json(&["gpu", "plan", "--json", "--bundle", &path]);
    assert_eq!(plan["mode"], "cdi");
    assert_eq!(plan["devices"], json!(["nvidia.com/gpu=0"]));
    assert_eq!(plan["requestedBy"], "environment: NVIDIA_VISIBLE_DEVICES");
    assert_eq!(plan["edits"][0]["edits"]["env"], json!(["A=1"]));
    let env = plan["spec"]["process"]["env"].as_array().unwrap();
    assert_eq!(env.last(), Some(&json!("A=1")));
    let said = node.call(&["gpu", "plan", "--bundle", &path]);
    for part in ["mode      cdi", "  env     A=1", "\"ociVersion\""] {
        assert!(said.ok().contains(part), "{part}: {said}");
    }
    assert_eq!(fs::read(&config).unwrap(), before);

    // Legacy mode: the command line, which is not run.
    let cli = scratch.path("nvidia-container-cli");
    place::write_program(&cli, &node.filled("#!/bin/sh\n: > '{}/called'\n"));
    node.configure("[nvidia-container-cli]\npath = \"{}/nvidia-container-cli\"\n[nvidia-container-runtime]\nmode = \"legacy\"\n");
    let plan = node.json(&["gpu", "plan", "--json", "--bundle", &path]);
    let command: Vec<_> = plan["command"]
        .as_array()
        .unwrap()
        .iter()
        .map(|w| w.as_str().unwrap())
        .collect();
    assert_eq!(command[0], text(&cli));
    assert!(
        command.contains(&"--device=0") && command.contains(&"--pid=PID"),
        "{command:?}"
    );
    assert!(!scratch.path("called").exists());
    assert!(!scratch.path("state/box").exists());

    // No request, and one that fails.
    let plain = scratch.bundle("plain");
    plain.write();
    let plan = node.json(&["gpu", "plan", "--json", "--bundle", &text(&plain.path)]);
    assert_eq!(plan["gpu"], false);
    node.configure("not toml");
    assert_ne!(node.call(&["gpu", "plan", "--bundle", &path]).code(), 0);
}

fn the_check_tells_what_would_fail(scratch: &Scratch) {
    let Some(node) = with_driver(scratch, "") else {
        return;
    };
    let all = node.json(&["gpu", "check", "--json"]);
    let of = |step: &str| {
        let findings = all["findings"].as_array().unwrap();
        findings
            .iter()
            .find(|one| one["step"] == step)
            .unwrap_or_else(|| panic!("{step}: {all}"))
            .clone()
    };
    assert_eq!(of("config")["level"], "ok");
    assert_eq!(of("libraries")["level"], "ok");
    assert_eq!(of("nvml")["level"], "ok", "{all}");
    assert_eq!(of("hooks")["level"], "ok");
    // This node has no driver module, and says so first.
    if !fs::exists("/proc/driver/nvidia/version").unwrap() {
        assert_eq!(of("module")["level"], "failure");
        assert_eq!(all["usable"], false);
        let said = node.call(&["gpu", "check"]);
        assert_eq!(said.code(), 1, "{said}");
        assert!(said.stdout.contains("FAILS    module"), "{said}");
    }
    let mut lost = node.command(&["gpu", "check", "--json"]);
    lost.env("FAKE_NVML", "lost");
    let said = deadline::run(&mut lost, LIMIT);
    assert!(said.stdout.contains("GPU 1 does not work"), "{said}");
}

/// The drop-in by its name, with holdfast as its low-level runtime.
fn drop_in(node: &Node<'_>, name: &str, runtimes: &str) -> PathBuf {
    let program = node.scratch.path(name);
    std::os::unix::fs::symlink(place::built("holdfast"), &program).unwrap();
    node.configure(&format!(
        "{}\n",
        CDI.replace(
            "mode = \"cdi\"",
            &format!("mode = \"cdi\"\nruntimes = [\"{runtimes}\"]")
        )
    ));
    program
}

fn the_drop_in_goes_on_as_holdfast(scratch: &Scratch) {
    let node = Node::new(scratch, CDI);
    node.put(
        "cdi/a.yaml",
        "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices: [{name: \"0\", containerEdits: {env: [WHICH=zero]}}]\n",
    );
    let holdfast = text(&place::built("holdfast"));
    let program = drop_in(&node, "nvidia-container-runtime", &holdfast);
    let bundle = asking(scratch.bundle("box"), "0").script("echo $WHICH > /which");
    bundle.write();
    let pid_file = text(&scratch.path("box.pid"));
    let call = |args: &[&str]| {
        let mut command = node.command(args);
        let mut other = Command::new(&program);
        other.args(
            command
                .get_args()
                .map(std::ffi::OsStr::to_owned)
                .collect::<Vec<_>>(),
        );
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => other.env(name, value),
                None => other.env_remove(name),
            };
        }
        std::mem::swap(&mut command, &mut other);
        deadline::run(&mut command, LIMIT)
    };
    call(&[
        "create",
        "--bundle",
        &text(&bundle.path),
        "--pid-file",
        &pid_file,
        "box",
    ])
    .ok();
    let pid: i32 = fs::read_to_string(&pid_file)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    call(&["start", "box"]).ok();
    scratch.exit_of(pid);
    call(&["delete", "box"]).ok();
    assert_eq!(
        fs::read_to_string(bundle.in_rootfs("which")).unwrap(),
        "zero\n"
    );
    let version = call(&["--version"]);
    assert!(
        version.ok().starts_with(
            "NVIDIA Container Runtime version 1.20.0\nspec: 1.3.0\n\nholdfast version"
        ),
        "{version}"
    );
}

fn the_drop_in_does_not_call_itself(scratch: &Scratch) {
    let node = Node::new(scratch, CDI);
    let program = drop_in(
        &node,
        "nvidia-container-runtime",
        "{}/nvidia-container-runtime",
    );
    let mut command = Command::new(program);
    command
        .env("NVIDIA_CTK_CONFIG_FILE_PATH", node.config())
        .args(["state", "box"]);
    let said = deadline::run(&mut command, LIMIT);
    assert_eq!(said.code(), 1, "{said}");
    assert!(said.stderr.contains("would call itself"), "{said}");
}

/// Runs where there is a GPU: `nvidia-smi` of the node in a container that has nothing but what jit-cdi gave it, and
/// the node's own C library.
fn a_real_gpu_is_seen_inside(scratch: &Scratch) {
    if !fs::exists("/proc/driver/nvidia/version").unwrap() {
        return holdfast_integration::skip(
            "a_real_gpu_is_seen_inside",
            "this node has no NVIDIA driver",
        );
    }
    let node = Node::new(
        scratch,
        "[nvidia-container-runtime]\nmode = \"jit-cdi\"\n\
         [nvidia-container-runtime.modes.jit-cdi]\nnvcdi-disable-hooks = [\"all\"]\n",
    );
    let mut bundle = asking(scratch.bundle("box"), "all").args(&["/usr/bin/nvidia-smi", "-L"]);
    for dir in ["/usr", "/lib", "/lib64"] {
        if fs::exists(dir).unwrap() {
            bundle = bundle.mount(json!({
                "destination": dir, "source": dir, "type": "bind", "options": ["rbind", "ro"]
            }));
        }
    }
    bundle.write();
    let inside = node.call(&[
        "--gpu",
        "auto",
        "run",
        "--bundle",
        &text(&bundle.path),
        "box",
    ]);
    let outside = deadline::run(Command::new("nvidia-smi").arg("-L"), LIMIT);
    assert!(outside.ok().contains("GPU 0:"), "{outside}");
    assert_eq!(inside.ok(), outside.ok());
}
