//! What NVIDIA's own `nvidia-container-runtime` 1.20 did in 115 cases and in some
//! four hundred corners, asked of ours: was the low-level runtime called
//! and with which arguments, what did `config.json` become, and what was the exit code.
//!
//! `vectors/nvidia/runtime.json` and `runtime-more.json` are recorded data; texts are ours. Cases in which we differ on purpose are listed in
//! [`deviation`], with what we do instead.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use holdfast_integration::{driver, place};
use serde_json::Value;

/// What we do instead where we differ on purpose; the names are those of `init/gpu/docs/deviations.md`.
enum Instead {
    /// The call fails with code 1, and the low-level runtime is not called.
    Refused,
}

fn deviation(vector: &Value) -> Option<(&'static str, Instead)> {
    let config = vector["config_toml"].as_str().unwrap_or_default();
    let asks = vector["spec"]
        .to_string()
        .contains("NVIDIA_VISIBLE_DEVICES=");
    // The mode of Tegra; a request is refused, everything else is the same.
    (config.contains("mode = \"csv\"") && asks).then_some(("csv", Instead::Refused))
}

/// Records its arguments, and ends as it is told.
const LOW_LEVEL: &str =
    "#!/bin/sh\nprintf '%s\\0' \"$0\" \"$@\" > \"$FAKE_RT_OUT\"\nexit \"${FAKE_RT_EXIT:-0}\"\n";

struct Case {
    folder: tempfile::TempDir,
    marks: Vec<(&'static str, String)>,
}

impl Case {
    fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("holdfast-gpu-")
            .tempdir()
            .unwrap();
        let tmp = folder.path().display().to_string();
        // The longest first, so that a recorded path is read back as the same mark.
        let marks = vec![
            ("{{ROOTFS}}", format!("{tmp}/bundle/rootfs")),
            ("{{BUNDLE}}", format!("{tmp}/bundle")),
            ("{{RUNC}}", format!("{tmp}/bin/fakerunc")),
            ("{{TMP}}", tmp),
        ];
        for dir in [
            "bundle/rootfs",
            "etc/nvidia-container-runtime",
            "bin",
            "nodrv",
        ] {
            fs::create_dir_all(folder.path().join(dir)).unwrap();
        }
        Self { folder, marks }
    }

    fn fill(&self, text: &str) -> String {
        self.marks
            .iter()
            .fold(text.to_owned(), |text, (mark, value)| {
                text.replace(mark, value)
            })
    }

    fn filled(&self, value: &Value) -> Value {
        serde_json::from_str(&self.fill(&value.to_string())).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn put_file(case: &Case, file: &Value) {
    let path = PathBuf::from(case.fill(file["path"].as_str().unwrap()));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    if let Some(target) = file["symlink"].as_str() {
        return std::os::unix::fs::symlink(case.fill(target), &path).unwrap();
    }
    let mode = file["mode"]
        .as_str()
        .map(|mode| u32::from_str_radix(mode, 8).unwrap());
    if let Some([major, minor]) = file["mknod"].as_array().map(Vec::as_slice) {
        let gid = u32::try_from(file["gid"].as_u64().unwrap_or(0)).unwrap();
        let (major, minor) = (major.as_u64().unwrap(), minor.as_u64().unwrap());
        return driver::node(&path, major, minor, mode.unwrap_or(0o666), gid);
    }
    if file["fake_nvml"] == true {
        fs::copy(driver::nvml().unwrap(), &path).unwrap();
    } else if let Some(soname) = file["elf_soname"].as_str() {
        fs::write(&path, driver::elf(soname)).unwrap();
    } else {
        fs::write(
            &path,
            case.fill(file["content"].as_str().unwrap_or_default()),
        )
        .unwrap();
    }
    if let Some(mode) = mode {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
}

/// The program on this host, or on one with the vector's files in `/etc`: a mount namespace with an overlay.
fn on_host(case: &Case, vector: &Value, program: &Path) -> Command {
    let Some(files) = vector["host_files"].as_array() else {
        return Command::new(program);
    };
    for file in files {
        let path = file["path"].as_str().unwrap();
        let name = path
            .strip_prefix("/etc/")
            .expect("only files in /etc are laid over");
        fs::create_dir_all(case.path("upper")).unwrap();
        fs::create_dir_all(case.path("work")).unwrap();
        fs::write(
            case.path("upper").join(name),
            file["content"].as_str().unwrap(),
        )
        .unwrap();
    }
    let tmp = case.path("").display().to_string();
    let script = format!(
        "/bin/mount -t overlay overlay -o lowerdir=/etc,upperdir={tmp}upper,workdir={tmp}work /etc && exec \"$0\" \"$@\""
    );
    let mut command = Command::new("/usr/bin/unshare");
    command
        .args([
            "--mount",
            "--propagation",
            "private",
            "/bin/sh",
            "-c",
            &script,
        ])
        .arg(program);
    command
}

/// What happened.
struct Outcome {
    code: Option<i32>,
    stdout: String,
    stderr: String,
    argv: Option<Vec<String>>,
    spec: Option<String>,
    rewritten: bool,
    log: Option<String>,
}

fn run(case: &Case, vector: &Value) -> Outcome {
    let config = case.path("etc/nvidia-container-runtime/config.toml");
    if let Some(text) = vector["config_toml"].as_str() {
        fs::write(&config, case.fill(text)).unwrap();
    }
    let spec = case.path("bundle/config.json");
    match &vector["spec"] {
        Value::Null => {}
        Value::String(raw) => fs::write(&spec, case.fill(raw)).unwrap(),
        other => fs::write(&spec, case.fill(&other.to_string())).unwrap(),
    }
    for file in vector["files"].as_array().into_iter().flatten() {
        put_file(case, file);
    }
    for program in vector["exec"].as_array().into_iter().flatten() {
        let mut file = program.clone();
        file = serde_json::json!({"path": file.take(), "content": "#!/bin/sh\n", "mode": "755"});
        put_file(case, &file);
    }
    for name in ["fakerunc", "runc", "crun"] {
        let path = case.path("bin").join(name);
        fs::write(&path, LOW_LEVEL).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let program = case.path("bin").join(vector["binary"].as_str().unwrap());
    std::os::unix::fs::symlink(place::built("holdfast"), &program).unwrap();
    let called = case.path("called");
    let mut command = on_host(case, vector, &program);
    command
        .args(
            vector["args"]
                .as_array()
                .unwrap()
                .iter()
                .map(|word| case.fill(word.as_str().unwrap())),
        )
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("FAKE_RT_OUT", &called)
        .current_dir(case.fill(vector["cwd"].as_str().unwrap_or("{{BUNDLE}}")))
        .stdin(Stdio::null());
    match vector["config_via"].as_str() {
        None | Some("env") => command.env("NVIDIA_CTK_CONFIG_FILE_PATH", &config),
        Some("xdg") => command.env("XDG_CONFIG_HOME", case.path("etc")),
        Some(other) => panic!("config_via {other}"),
    };
    if let Some(words) = vector["fake_nvml"].as_str() {
        command.env("FAKE_NVML", words);
    }
    if let Some(code) = vector["lowlevel_exit"].as_i64() {
        command.env("FAKE_RT_EXIT", code.to_string());
    }
    for (name, value) in vector["env"].as_object().into_iter().flatten() {
        match value.as_str() {
            Some(value) => command.env(name, case.fill(value)),
            None => command.env_remove(name),
        };
    }
    let before = fs::read_to_string(&spec).ok();
    let output = command.output().unwrap();
    let after = fs::read_to_string(&spec).ok();
    let argv = fs::read_to_string(&called)
        .ok()
        .map(|text| text.split_terminator('\0').map(str::to_owned).collect());
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        argv,
        rewritten: before != after,
        spec: after,
        log: fs::read_to_string(case.path("log.json")).ok(),
    }
}

/// How an outcome differs from what the vector says; empty when it does not.
fn compare(case: &Case, vector: &Value, outcome: &Outcome) -> Vec<String> {
    let expect = &vector["expect"];
    let mut wrong = Vec::new();
    let mut check = |what: &str, ours: String, theirs: String| {
        if ours != theirs {
            wrong.push(format!("{what}: {ours}\n  not {theirs}"));
        }
    };
    if let Some((_, Instead::Refused)) = deviation(vector) {
        check(
            "exit code",
            format!("{:?}", outcome.code),
            "Some(1)".to_owned(),
        );
        check(
            "called",
            outcome.argv.is_some().to_string(),
            "false".to_owned(),
        );
        check(
            "rewritten",
            outcome.rewritten.to_string(),
            "false".to_owned(),
        );
        let said = outcome.stderr.contains("not support").to_string();
        check("it says that it is not supported", said, "true".to_owned());
        return wrong;
    }
    let code = expect["exit_code"].as_i64().unwrap();
    check(
        "exit code",
        format!("{:?}", outcome.code),
        format!("Some({code})"),
    );
    check(
        "called",
        outcome.argv.is_some().to_string(),
        expect["lowlevel_called"].to_string(),
    );
    let argv: Vec<String> = expect["lowlevel_argv"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|word| case.fill(word.as_str().unwrap()))
        .collect();
    check(
        "argv",
        format!("{:?}", outcome.argv.clone().unwrap_or_default()),
        format!("{argv:?}"),
    );
    let spec: Option<Value> = outcome
        .spec
        .as_ref()
        .and_then(|text| serde_json::from_str(text).ok());
    match expect.get("config_after") {
        None | Some(Value::Null) => {}
        Some(after) => {
            let wanted = case.filled(after);
            let ours = spec.unwrap_or_default();
            if ours != wanted {
                check("config.json", ours.to_string(), wanted.to_string());
            }
        }
    }
    if let Some(raw) = expect["config_after_raw"].as_str() {
        check(
            "config.json",
            outcome.spec.clone().unwrap_or_default(),
            raw.to_owned(),
        );
    }
    if expect["config_rewritten"] == false {
        check(
            "rewritten",
            outcome.rewritten.to_string(),
            "false".to_owned(),
        );
    }
    check(
        "log file",
        outcome.log.is_some().to_string(),
        expect["log_file_created"].to_string(),
    );
    if let Some(lines) = expect["stdout"].as_array() {
        let theirs: Vec<_> = lines.iter().filter_map(Value::as_str).collect();
        check(
            "stdout",
            outcome.stdout.trim_end().to_owned(),
            theirs.join("\n").trim_end().to_owned(),
        );
    }
    if code == 1 {
        let said = outcome.stderr.contains("level=error msg=").to_string();
        check("a failure is explained", said, "true".to_owned());
        if let Some(log) = &outcome.log {
            let last = log.lines().last().unwrap_or_default();
            let line: Value = serde_json::from_str(last).unwrap_or_default();
            check(
                "the log's last line is an error",
                line["level"].to_string(),
                "\"error\"".to_owned(),
            );
        }
    }
    wrong
}

/// The cases of `runtime.json`, or of the file that the variable names.
fn vectors() -> Vec<Value> {
    let path = std::env::var_os("HOLDFAST_GPU_RUNTIME_VECTORS").map_or_else(
        || place::repository().join("integration/vectors/nvidia/runtime.json"),
        PathBuf::from,
    );
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The cases of `runtime-more.json`: what the original did in corners that `runtime.json` does not have. Files that
/// many of them share are there once, by name.
fn more_vectors() -> Vec<Value> {
    let path = place::repository().join("integration/vectors/nvidia/runtime-more.json");
    let mut document: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let shared = document["files"].take();
    let Value::Array(mut cases) = document["cases"].take() else {
        panic!("no cases");
    };
    for case in &mut cases {
        let files = case["files"].as_array().unwrap();
        let whole = files.iter().flat_map(|file| match file["set"].as_str() {
            Some(name) => shared[name].as_array().unwrap().clone(),
            None => vec![file.clone()],
        });
        case["files"] = whole.collect();
    }
    cases
}

/// Why a case cannot be run here.
fn missing(vector: &Value) -> Option<String> {
    let text = vector["files"].to_string();
    let needs_root = vector.get("host_files").is_some() || text.contains("mknod");
    if let (true, Err(why)) = (needs_root, place::is_root()) {
        return Some(why);
    }
    text.contains("fake_nvml")
        .then(|| driver::nvml().err())
        .flatten()
}

#[test]
fn the_runtime_does_what_the_original_did() {
    all_agree(&vectors());
}

#[test]
fn the_runtime_does_what_the_original_did_in_corners() {
    all_agree(&more_vectors());
}

fn all_agree(vectors: &[Value]) {
    assert!(!vectors.is_empty());
    let only = std::env::var("HOLDFAST_GPU_CASE").ok();
    let queue = Mutex::new(vectors.iter());
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap().next();
                    let Some(vector) = next else { return };
                    let name = vector["name"].as_str().unwrap();
                    if only.as_ref().is_some_and(|only| only != name) {
                        continue;
                    }
                    if let Some(why) = missing(vector) {
                        holdfast_integration::skip(name, &why);
                        continue;
                    }
                    let case = Case::new();
                    let outcome = run(&case, vector);
                    let wrong = compare(&case, vector, &outcome);
                    if !wrong.is_empty() {
                        let text =
                            format!("{name}: {}\n  stderr: {}", wrong.join("\n"), outcome.stderr);
                        failed.lock().unwrap().push(text);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(
        failed.is_empty(),
        "{} of {} differ:\n{}",
        failed.len(),
        vectors.len(),
        failed.join("\n")
    );
}
