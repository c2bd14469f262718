//! What NVIDIA's own `nvidia-container-runtime-hook` 1.20 did in 250 cases, asked of ours: was the CLI called, with
//! which command line and which environment, and what was the exit code.
//!
//! `vectors/nvidia/hook.json` is recorded data. Texts are ours, but what the CLI says must survive. The few cases in
//! which we differ on purpose ([`deviation`]) are run twice: as we do it, and with the deviation switched off.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use holdfast_integration::place;
use serde_json::Value;

const CLI: &str = env!("CARGO_BIN_EXE_fake-nvidia-container-cli");

/// What the original was started with.
const BASE_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The name, in `init/gpu/docs/deviations.md`, of what we refuse on purpose and the original did not.
fn deviation(vector: &Value) -> Option<&'static str> {
    let mut argv = vector["expect"]["argv"].as_array().into_iter().flatten();
    argv.any(|word| word == "--pid=0").then_some("pid-zero")
}

/// The folder of a case, and what stands for its parts in the vectors.
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
            ("{{CLI}}", format!("{tmp}/clibin/nvidia-container-cli")),
            ("{{CLIDIR}}", format!("{tmp}/clibin")),
            ("{{TMP}}", tmp),
        ];
        for dir in [
            "bundle/rootfs",
            "clibin",
            "etc/nvidia-container-runtime",
            "bin",
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

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A document of the vectors: an object, or the raw text of one.
    fn document(&self, value: &Value) -> String {
        match value {
            Value::String(raw) => self.fill(raw),
            other => self.fill(&other.to_string()),
        }
    }
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
    let config = case.path("etc/nvidia-container-runtime/config.toml");
    if let Some(text) = vector["config_toml"].as_str() {
        fs::write(&config, case.fill(text)).unwrap();
    }
    if !vector["spec"].is_null() {
        fs::write(
            case.path("bundle/config.json"),
            case.document(&vector["spec"]),
        )
        .unwrap();
    }
    let cli = &vector["cli"];
    if cli["present"] == true {
        let mode = cli["mode"]
            .as_str()
            .map_or(0o755, |mode| u32::from_str_radix(mode, 8).unwrap());
        put_program(&case.path("clibin/nvidia-container-cli"), mode);
    }
    for file in vector["files"].as_array().into_iter().flatten() {
        put_file(case, file);
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
    let config_file = config.display().to_string();
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
    let words = vector["hook_args"].as_array().into_iter().flatten();
    args.extend(words.map(|word| case.fill(word.as_str().unwrap())));

    let hook = case.path("bin/nvidia-container-runtime-hook");
    if !hook.exists() {
        std::os::unix::fs::symlink(place::built("holdfast"), &hook).unwrap();
    }
    let mut command = on_host(case, vector, &hook);
    command
        .args(args)
        .env_clear()
        .envs(set)
        .current_dir(case.fill(vector["cwd"].as_str().unwrap_or("{{BUNDLE}}")))
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
        return std::os::unix::fs::symlink(CLI, path).unwrap();
    }
    fs::write(path, "").unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn put_file(case: &Case, file: &Value) {
    let path = PathBuf::from(case.fill(file["path"].as_str().unwrap()));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    if let Some(target) = file["symlink"].as_str() {
        return std::os::unix::fs::symlink(case.fill(target), &path).unwrap();
    }
    if file["copy_cli"] == true {
        return put_program(&path, 0o755);
    }
    fs::write(
        &path,
        case.fill(file["content"].as_str().unwrap_or_default()),
    )
    .unwrap();
    if let Some(mode) = file["mode"].as_str() {
        let mode = u32::from_str_radix(mode, 8).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
}

/// The hook on this host, or on one with the vector's files in `/etc`: a mount namespace with an overlay.
fn on_host(case: &Case, vector: &Value, hook: &Path) -> Command {
    let Some(files) = vector["host_files"].as_array() else {
        return Command::new(hook);
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
        "/bin/mount -t overlay overlay -o lowerdir=/etc,upperdir={tmp}upper,workdir={tmp}work /etc && \
         exec /usr/bin/env -u PWD -u OLDPWD \"$0\" \"$@\""
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
        .arg(hook);
    command
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
    let code = expect["exit_code"]
        .as_i64()
        .map(|code| i32::try_from(code).unwrap());
    check(
        "exit code",
        format!("{:?}", outcome.code),
        format!("{code:?}"),
    );
    check(
        "called",
        outcome.argv.is_some().to_string(),
        expect["called"].to_string(),
    );
    let fill = |list: &Value| -> Vec<String> {
        list.as_array()
            .into_iter()
            .flatten()
            .map(|word| case.fill(word.as_str().unwrap()))
            .collect()
    };
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
    check(
        "argv",
        argv.join("\n"),
        order(fill(&expect["argv"])).join("\n"),
    );
    if expect["called"] == true {
        let extra: BTreeSet<String> = fill(&expect["env_extra"]).into_iter().collect();
        check(
            "environment",
            format!("{:?}", outcome.env),
            format!("{extra:?}"),
        );
    }
    if let Some(lines) = expect["stdout"].as_array() {
        let theirs: Vec<_> = lines.iter().filter_map(Value::as_str).collect();
        check(
            "stdout",
            outcome.stdout.trim_end().to_owned(),
            theirs.join("\n"),
        );
    }
    if let Some(said) = vector["cli"]["stderr"]
        .as_str()
        .filter(|_| outcome.argv.is_some())
    {
        check(
            "the CLI's words survive",
            outcome.stderr.contains(said).to_string(),
            "true".to_owned(),
        );
    }
    if code != Some(0) {
        check(
            "a failure is explained",
            (!outcome.stderr.trim().is_empty()).to_string(),
            "true".to_owned(),
        );
    }
    wrong
}

fn vectors() -> Vec<Value> {
    let path = std::env::var_os("HOLDFAST_GPU_HOOK_VECTORS").map_or_else(
        || place::repository().join("integration/vectors/nvidia/hook.json"),
        PathBuf::from,
    );
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn the_hook_does_what_the_original_did() {
    let vectors = vectors();
    assert!(!vectors.is_empty());
    let root = place::is_root();
    let queue = Mutex::new(vectors.iter());
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap().next();
                    let Some(vector) = next else { return };
                    let name = vector["name"].as_str().unwrap();
                    if let (Some(_), Err(why)) = (vector.get("host_files"), &root) {
                        holdfast_integration::skip(name, why);
                        continue;
                    }
                    let case = Case::new();

                    let outcome = run(&case, vector, deviation(vector));
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
