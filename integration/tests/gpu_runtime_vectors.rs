//! What NVIDIA's own `nvidia-container-runtime` 1.20 did in 115 cases and in some four hundred corners, asked of ours:
//! was the low-level runtime called and with which arguments, what did `config.json` become, and what was the exit code.
//!
//! `vectors/nvidia/runtime.json` and `runtime-more.json` are recorded data; texts are ours. Cases in which we differ on
//! purpose are listed in [`deviation`], with what we do instead.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Stdio;

use holdfast_integration::place;
use holdfast_integration::vectors::{self, BASE_PATH, Case, Differences, all_agree};
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
    case.write_documents(vector);
    let spec = case.spec();
    for file in vector["files"].as_array().into_iter().flatten() {
        case.put_file(file);
    }
    for program in vector["exec"].as_array().into_iter().flatten() {
        let mut file = program.clone();
        file = serde_json::json!({"path": file.take(), "content": "#!/bin/sh\n", "mode": "755"});
        case.put_file(&file);
    }
    let low_level = place::repository().join("integration/vectors/nvidia/low-level.sh");
    for name in ["fakerunc", "runc", "crun"] {
        // Linked: what a test has just written is still open in a fork of a parallel one, and cannot be run.
        symlink(&low_level, case.path("bin").join(name)).unwrap();
    }
    let program = case.path("bin").join(vector["binary"].as_str().unwrap());
    symlink(place::built("holdfast"), &program).unwrap();
    let called = case.path("called");
    let mut command = case.on_host(vector, &program);
    command
        .args(case.fill_all(&vector["args"]))
        .env_clear()
        .env("PATH", BASE_PATH)
        .env("FAKE_RT_OUT", &called)
        .current_dir(case.cwd(vector))
        .stdin(Stdio::null());
    match vector["config_via"].as_str() {
        None | Some("env") => command.env("NVIDIA_CTK_CONFIG_FILE_PATH", case.config()),
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

/// How an outcome differs from what the vector says.
fn compare(case: &Case, vector: &Value, outcome: &Outcome) -> Differences {
    let expect = &vector["expect"];
    let mut wrong = Differences::default();
    let ours = format!("{:?}", outcome.code);
    if let Some((_, Instead::Refused)) = deviation(vector) {
        wrong.check("exit code", ours, "Some(1)");
        wrong.check("called", outcome.argv.is_some(), false);
        wrong.check("rewritten", outcome.rewritten, false);
        let said = outcome.stderr.contains("not support");
        wrong.check("it says that it is not supported", said, true);
        return wrong;
    }
    let code = expect["exit_code"].as_i64().unwrap();
    wrong.check("exit code", ours, format!("Some({code})"));
    wrong.check("called", outcome.argv.is_some(), &expect["lowlevel_called"]);
    wrong.check(
        "argv",
        format!("{:?}", outcome.argv.clone().unwrap_or_default()),
        format!("{:?}", case.fill_all(&expect["lowlevel_argv"])),
    );
    if !expect["config_after"].is_null() {
        // Compared as documents: the order of keys is nobody's promise.
        let ours = outcome
            .spec
            .as_ref()
            .and_then(|text| serde_json::from_str(text).ok());
        let ours: Value = ours.unwrap_or_default();
        let wanted: Value = serde_json::from_str(&case.document(&expect["config_after"])).unwrap();
        if ours != wanted {
            wrong.check("config.json", ours, wanted);
        }
    }
    if let Some(raw) = expect["config_after_raw"].as_str() {
        wrong.check("config.json", outcome.spec.clone().unwrap_or_default(), raw);
    }
    if expect["config_rewritten"] == false {
        wrong.check("rewritten", outcome.rewritten, false);
    }
    wrong.check(
        "log file",
        outcome.log.is_some(),
        &expect["log_file_created"],
    );
    wrong.check_stdout(&outcome.stdout, expect);
    if code == 1 {
        let said = outcome.stderr.contains("level=error msg=");
        wrong.check("a failure is explained", said, true);
        if let Some(log) = &outcome.log {
            let last = log.lines().last().unwrap_or_default();
            let line: Value = serde_json::from_str(last).unwrap_or_default();
            let level = &line["level"];
            wrong.check("the log's last line is an error", level, "\"error\"");
        }
    }
    wrong
}

/// The cases of `runtime.json`, or of the file that the variable names.
fn vectors() -> Vec<Value> {
    let cases = vectors::load("runtime.json", "HOLDFAST_GPU_RUNTIME_VECTORS");
    cases.as_array().unwrap().clone()
}

/// The cases of `runtime-more.json`: what the original did in corners that `runtime.json` does not have. Files that
/// many of them share are there once, by name.
fn more_vectors() -> Vec<Value> {
    let mut document = vectors::load("runtime-more.json", "HOLDFAST_GPU_MORE_VECTORS");
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

fn judge(vector: &Value) -> (Differences, String) {
    let case = Case::new();
    let outcome = run(&case, vector);
    (compare(&case, vector, &outcome), outcome.stderr)
}

#[test]
fn the_runtime_does_what_the_original_did() {
    all_agree(&vectors(), judge);
}

#[test]
fn the_runtime_does_what_the_original_did_in_corners() {
    all_agree(&more_vectors(), judge);
}
