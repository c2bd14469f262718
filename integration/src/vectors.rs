//! Recorded cases of NVIDIA's own programs (`vectors/nvidia/*.json`), asked of ours: the folder of a
//! case, its files, its host, and the comparison.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;

use serde_json::Value;

use crate::{driver, place};

/// The PATH that the original was started with.
pub const BASE_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The cases of a file in `vectors/nvidia`, or of the file that `variable` names.
///
/// # Panics
/// When it cannot be read.
#[must_use]
pub fn load(file: &str, variable: &str) -> Value {
    let path = std::env::var_os(variable).map_or_else(
        || {
            place::repository()
                .join("integration/vectors/nvidia")
                .join(file)
        },
        PathBuf::from,
    );
    let text = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The folder of a case, and what stands for its parts in the vectors.
#[derive(Debug)]
pub struct Case {
    folder: tempfile::TempDir,
    marks: Vec<(&'static str, String)>,
}

impl Default for Case {
    fn default() -> Self {
        Self::new()
    }
}

impl Case {
    /// An empty one.
    ///
    /// # Panics
    /// When its folder cannot be made.
    #[must_use]
    pub fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("holdfast-gpu-")
            .tempdir()
            .expect("folder");
        let tmp = folder.path().display().to_string();
        // The longest first, so that a recorded path is read back as the same mark.
        let marks = vec![
            ("{{ROOTFS}}", format!("{tmp}/bundle/rootfs")),
            ("{{BUNDLE}}", format!("{tmp}/bundle")),
            ("{{RUNC}}", format!("{tmp}/bin/fakerunc")),
            ("{{CLI}}", format!("{tmp}/clibin/nvidia-container-cli")),
            ("{{CLIDIR}}", format!("{tmp}/clibin")),
            ("{{TMP}}", tmp),
        ];
        for dir in [
            "bundle/rootfs",
            "clibin",
            "etc/nvidia-container-runtime",
            "bin",
            "nodrv",
        ] {
            fs::create_dir_all(folder.path().join(dir)).expect("folder");
        }
        Self { folder, marks }
    }

    /// A text of the vectors with the paths of this case.
    #[must_use]
    pub fn fill(&self, text: &str) -> String {
        self.marks
            .iter()
            .fold(text.to_owned(), |text, (mark, value)| {
                text.replace(mark, value)
            })
    }

    /// The texts of a list of the vectors; none when it is no list.
    ///
    /// # Panics
    /// When one is no text.
    #[must_use]
    pub fn fill_all(&self, list: &Value) -> Vec<String> {
        list.as_array()
            .into_iter()
            .flatten()
            .map(|word| self.fill(word.as_str().expect("a text")))
            .collect()
    }

    /// A document of the vectors: an object, or the raw text of one.
    #[must_use]
    pub fn document(&self, value: &Value) -> String {
        match value {
            Value::String(raw) => self.fill(raw),
            other => self.fill(&other.to_string()),
        }
    }

    /// A path in its folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The working directory that the vector wants.
    #[must_use]
    pub fn cwd(&self, vector: &Value) -> String {
        self.fill(vector["cwd"].as_str().unwrap_or("{{BUNDLE}}"))
    }

    /// Writes the vector's `config.toml` and `config.json`, where it has them.
    ///
    /// # Panics
    /// When one cannot be written.
    pub fn write_documents(&self, vector: &Value) {
        if let Some(text) = vector["config_toml"].as_str() {
            fs::write(self.config(), self.fill(text)).expect("config.toml");
        }
        if !vector["spec"].is_null() {
            fs::write(self.spec(), self.document(&vector["spec"])).expect("config.json");
        }
    }

    /// `config.toml` of the toolkit.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.path("etc/nvidia-container-runtime/config.toml")
    }

    /// `config.json` of the bundle.
    #[must_use]
    pub fn spec(&self) -> PathBuf {
        self.path("bundle/config.json")
    }

    /// Where a file of the vectors belongs; the folder is there then.
    ///
    /// # Panics
    /// When the folder cannot be made.
    #[must_use]
    pub fn place_of(&self, file: &Value) -> PathBuf {
        let path = PathBuf::from(self.fill(file["path"].as_str().expect("a path")));
        fs::create_dir_all(path.parent().expect("a folder")).expect("folder");
        path
    }

    /// Makes a file of the vectors: a text, a link, a device node, or a library of the fake driver.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn put_file(&self, file: &Value) {
        let path = self.place_of(file);
        if let Some(target) = file["symlink"].as_str() {
            return symlink(self.fill(target), &path).expect("symlink");
        }
        let mode = file["mode"].as_str().map(mode_of);
        if let Some([major, minor]) = file["mknod"].as_array().map(Vec::as_slice) {
            let gid = u32::try_from(file["gid"].as_u64().unwrap_or(0)).expect("a gid");
            let number = |value: &Value| value.as_u64().expect("a device number");
            let (major, minor) = (number(major), number(minor));
            return driver::node(&path, major, minor, mode.unwrap_or(0o666), gid);
        }
        if file["fake_nvml"] == true {
            fs::copy(driver::nvml().expect("the fake driver"), &path).expect("copy");
        } else if let Some(soname) = file["elf_soname"].as_str() {
            fs::write(&path, driver::elf(soname)).expect("a library");
        } else {
            let content = file["content"].as_str().unwrap_or_default();
            fs::write(&path, self.fill(content)).expect("a file");
        }
        if let Some(mode) = mode {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
        }
    }

    /// `program` on this host, or on one with the vector's files in `/etc`: a mount namespace with
    /// an overlay.
    ///
    /// # Panics
    /// When a file cannot be written, or is not in `/etc`.
    #[must_use]
    pub fn on_host(&self, vector: &Value, program: &Path) -> Command {
        let Some(files) = vector["host_files"].as_array() else {
            return Command::new(program);
        };
        for dir in ["upper", "work"] {
            fs::create_dir_all(self.path(dir)).expect("folder");
        }
        for file in files {
            let path = file["path"].as_str().expect("a path");
            let name = path
                .strip_prefix("/etc/")
                .expect("only files in /etc are laid over");
            let content = file["content"].as_str().expect("a content");
            fs::write(self.path("upper").join(name), content).expect("a file");
        }
        let tmp = self.path("").display().to_string();
        // The shell sets PWD and OLDPWD, which the original was not given.
        let script = format!(
            "/bin/mount -t overlay overlay -o lowerdir=/etc,upperdir={tmp}upper,workdir={tmp}work /etc && \
             exec /usr/bin/env -u PWD -u OLDPWD \"$0\" \"$@\""
        );
        let mut command = Command::new("/usr/bin/unshare");
        command
            .args(["--mount", "--propagation", "private"])
            .args(["/bin/sh", "-c", &script])
            .arg(program);
        command
    }
}

/// The mode that a vector writes as an octal text.
///
/// # Panics
/// When it is none.
#[must_use]
pub fn mode_of(text: &str) -> u32 {
    u32::from_str_radix(text, 8).expect("an octal mode")
}

/// How ours differs from what was recorded.
#[derive(Debug, Default)]
pub struct Differences(Vec<String>);

impl Differences {
    /// Notes a difference, if there is one.
    pub fn check(&mut self, what: &str, ours: impl ToString, theirs: impl ToString) {
        let (ours, theirs) = (ours.to_string(), theirs.to_string());
        if ours != theirs {
            self.0.push(format!("{what}: {ours}\n  not {theirs}"));
        }
    }

    /// Notes a difference in what was written to standard output, if the vector has that.
    pub fn check_stdout(&mut self, ours: &str, expect: &Value) {
        if let Some(lines) = expect["stdout"].as_array() {
            let theirs: Vec<_> = lines.iter().filter_map(Value::as_str).collect();
            self.check("stdout", ours.trim_end(), theirs.join("\n").trim_end());
        }
    }
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

/// Runs every case, four at a time; `HOLDFAST_GPU_CASE` picks one by name. `judge` runs one and
/// says how it differs, with what ours wrote to standard error.
///
/// # Panics
/// After the last, with those that differ.
pub fn all_agree(vectors: &[Value], judge: impl Fn(&Value) -> (Differences, String) + Sync) {
    assert!(!vectors.is_empty());
    let only = std::env::var("HOLDFAST_GPU_CASE").ok();
    let queue = Mutex::new(vectors.iter());
    let failed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().expect("queue").next();
                    let Some(vector) = next else { return };
                    let name = vector["name"].as_str().expect("a name");
                    if only.as_ref().is_some_and(|only| only != name) {
                        continue;
                    }
                    if let Some(why) = missing(vector) {
                        crate::skip(name, &why);
                        continue;
                    }
                    let (Differences(wrong), stderr) = judge(vector);
                    if !wrong.is_empty() {
                        let text = format!("{name}: {}\n  stderr: {stderr}", wrong.join("\n"));
                        failed.lock().expect("failures").push(text);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("failures");
    assert!(
        failed.is_empty(),
        "{} of {} differ:\n{}",
        failed.len(),
        vectors.len(),
        failed.join("\n")
    );
}
