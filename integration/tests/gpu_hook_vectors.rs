//! What NVIDIA's own `nvidia-container-runtime-hook` 1.20 did in 250 cases, asked of ours: was the CLI called, with
//! which command line and which environment, and what was the exit code.
//!
//! `vectors/nvidia/hook.json` is recorded data. Texts are ours, but what the CLI says must survive. The few cases in
//! which we differ on purpose ([`deviation`]) are run twice: as we do it, and with the deviation switched off.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Stdio;

use holdfast_integration::place;
use holdfast_integration::vectors::{self, BASE_PATH, Case, Differences, all_agree, mode_of};
use serde_json::Value;

const CLI: &str = env!("CARGO_BIN_EXE_fake-nvidia-container-cli");

/// The name, in `init/gpu/docs/deviations.md`, of what we refuse on purpose and the original did not.
fn deviation(vector: &Value) -> Option<&'static str> {
    let mut argv = vector["expect"]["argv"].as_array().into_iter().flatten();
    argv.any(|word| word == "--pid=0").then_some("pid-zero")
}

/// What happened.
#[derive(Debug)]
struct Outcome {
    code: Option<i32>,
    stdout: String,
    stderr: String,
    argv: Option<Vec<String>>,
    env: BTreeSet<String>,
}

fn run(case: &Case, vector: &Value, as_original: Option<&str>) -> Outcome {
    case.write_documents(vector);
    let cli = &vector["cli"];
    if cli["present"] == true {
        let mode = cli["mode"].as_str().map_or(0o755, mode_of);
        put_program(&case.path("clibin/nvidia-container-cli"), mode);
    }
    for file in vector["files"].as_array().into_iter().flatten() {
        if file["copy_cli"] == true {
            put_program(&case.place_of(file), 0o755);
        } else {
            case.put_file(file);
        }
    }
    let out = case.path("called.json");
    let mut set = vec![
        ("PATH".to_owned(), BASE_PATH.to_owned()),
        ("FAKE_CLI_OUT".to_owned(), out.display().to_string()),
        (
            "FAKE_CLI_EXIT".to_owned(),
            cli["exit_code"].as_i64().unwrap_or(0).to_string(),
        ),
    ];
    if let Some(text) = cli["stderr"].as_str() {
        set.push(("FAKE_CLI_STDERR".to_owned(), text.to_owned()));
    }
    let mut args: Vec<String> = Vec::new();
    let config_file = case.config().display().to_string();
    match vector["config_via"].as_str() {
        Some("env") => set.push(("NVIDIA_CTK_CONFIG_FILE_PATH".to_owned(), config_file)),
        Some("flag") => args.extend(["-config".to_owned(), config_file]),
        Some("xdg") => set.push((
            "XDG_CONFIG_HOME".to_owned(),
            case.path("etc").display().to_string(),
        )),
        Some("none") | None => {}
        Some(other) => panic!("config_via {other}"),
    }
    let base: BTreeSet<String> = set
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    for (name, value) in vector["hook_env"].as_object().into_iter().flatten() {
        set.retain(|(known, _)| known != name);
        set.extend(value.as_str().map(|value| (name.clone(), case.fill(value))));
    }
    if let Some(names) = as_original {
        set.push(("HOLDFAST_GPU_AS_ORIGINAL".to_owned(), names.to_owned()));
    }
    args.extend(case.fill_all(&vector["hook_args"]));

    let hook = case.path("bin/nvidia-container-runtime-hook");
    if !hook.exists() {
        symlink(place::built("holdfast"), &hook).unwrap();
    }
    let mut command = case.on_host(vector, &hook);
    command
        .args(args)
        .env_clear()
        .envs(set)
        .current_dir(case.cwd(vector))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It may end without having read its input.
    let _ = child
        .stdin
        .take()
        .unwrap()
        .write_all(case.document(&vector["state"]).as_bytes());
    let output = child.wait_with_output().unwrap();

    let called: Option<Value> = fs::read(&out)
        .ok()
        .map(|bytes| serde_json::from_slice(&bytes).unwrap());
    let texts = |key: &str| -> Vec<String> {
        let list = called.as_ref().and_then(|called| called[key].as_array());
        list.into_iter()
            .flatten()
            .map(|item| item.as_str().unwrap().to_owned())
            .collect()
    };
    let switch = as_original.map(|names| format!("HOLDFAST_GPU_AS_ORIGINAL={names}"));
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        argv: called.is_some().then(|| texts("argv")),
        env: texts("env")
            .into_iter()
            .filter(|entry| !base.contains(entry) && Some(entry) != switch.as_ref())
            // Which file is read is how a case is set up, not what it is about.
            .filter(|entry| !entry.starts_with("NVIDIA_CTK_CONFIG_FILE_PATH="))
            .collect(),
    }
}

/// The fake, with the mode of the vector. Linked, because a copy that is still open for writing in a fork of a parallel
/// test cannot be executed; copied where links are not possible or the mode differs.
fn put_program(path: &Path, mode: u32) {
    if mode == 0o755 && fs::hard_link(CLI, path).is_ok() {
        return;
    }
    if mode == 0o755 {
        return symlink(CLI, path).unwrap();
    }
    fs::write(path, "").unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// How an outcome differs from what the vector says; empty when it does not.
fn compare(case: &Case, vector: &Value, outcome: &Outcome) -> Differences {
    let expect = &vector["expect"];
    let mut wrong = Differences::default();
    let code = expect["exit_code"]
        .as_i64()
        .map(|code| i32::try_from(code).unwrap());
    wrong.check(
        "exit code",
        format!("{:?}", outcome.code),
        format!("{code:?}"),
    );
    wrong.check("called", outcome.argv.is_some(), &expect["called"]);
    let order = |mut argv: Vec<String>| {
        if expect.get("argv_order").is_some() {
            // The original takes these from a Go map.
            let at: Vec<usize> = (0..argv.len())
                .filter(|at| argv[*at].starts_with("--require="))
                .collect();
            if let (Some(first), Some(last)) = (at.first(), at.last()) {
                argv[*first..=*last].sort();
            }
        }
        argv
    };
    let argv = order(outcome.argv.clone().unwrap_or_default());
    let theirs = order(case.fill_all(&expect["argv"]));
    wrong.check("argv", argv.join("\n"), theirs.join("\n"));
    if expect["called"] == true {
        let extra: BTreeSet<String> = case.fill_all(&expect["env_extra"]).into_iter().collect();
        wrong.check(
            "environment",
            format!("{:?}", outcome.env),
            format!("{extra:?}"),
        );
    }
    wrong.check_stdout(&outcome.stdout, expect);
    if let Some(said) = vector["cli"]["stderr"]
        .as_str()
        .filter(|_| outcome.argv.is_some())
    {
        let survives = outcome.stderr.contains(said);
        wrong.check("the CLI's words survive", survives, true);
    }
    if code != Some(0) {
        let explained = !outcome.stderr.trim().is_empty();
        wrong.check("a failure is explained", explained, true);
    }
    wrong
}

fn vectors() -> Vec<Value> {
    let cases = vectors::load("hook.json", "HOLDFAST_GPU_HOOK_VECTORS");
    cases.as_array().unwrap().clone()
}

#[test]
fn the_hook_does_what_the_original_did() {
    all_agree(&vectors(), |vector| {
        let case = Case::new();
        let outcome = run(&case, vector, deviation(vector));
        (compare(&case, vector, &outcome), outcome.stderr)
    });
}

#[test]
fn deviations_are_refusals_and_in_the_table() {
    let page = fs::read_to_string(place::repository().join("init/gpu/docs/deviations.md")).unwrap();
    let vectors = vectors();
    let deviating: Vec<_> = vectors
        .iter()
        .filter_map(|vector| Some((vector, deviation(vector)?)))
        .collect();
    assert!(!deviating.is_empty());
    for (vector, deviation) in deviating {
        let name = &vector["name"];
        let case = Case::new();
        let outcome = run(&case, vector, None);
        assert_eq!(outcome.code, Some(1), "{name}: {outcome:?}");
        assert_eq!(outcome.argv, None, "{name}");
        assert!(
            outcome.stderr.contains(deviation),
            "{name}: {}",
            outcome.stderr
        );
        assert!(
            page.contains(&format!("| {deviation} |")),
            "{deviation} is not in the table"
        );
    }
}
