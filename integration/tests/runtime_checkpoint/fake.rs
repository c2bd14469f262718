//! The double of criu, and the containers that are dumped and restored with it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use holdfast_integration::bundle::Bundle;
use holdfast_integration::deadline::{self, Finished};
use holdfast_integration::scratch::{LIMIT, Scratch, text};
use holdfast_integration::skip;
use serde_json::{Value, json};

/// A double of criu in a folder of its own, which becomes the first of PATH.
pub(crate) struct Fake {
    dir: PathBuf,
}

impl Fake {
    pub(crate) fn new(scratch: &Scratch) -> Option<Self> {
        let program = Path::new(env!("CARGO_BIN_EXE_fake_criu"));
        if !program.exists() {
            skip(
                "runtime_checkpoint",
                "the double of criu is not on this machine",
            );
            return None;
        }
        let dir = scratch.path("criu");
        fs::create_dir(&dir).unwrap();
        symlink(program, dir.join("criu")).unwrap();
        Some(Self { dir })
    }

    /// See the table of `fake_criu`.
    pub(crate) fn set(&self, name: &str, content: &str) {
        fs::write(self.dir.join(name), content).unwrap();
    }

    pub(crate) fn said(&self, name: &str) -> Value {
        let text = fs::read(self.dir.join(format!("{name}.json")));
        serde_json::from_slice(&text.unwrap_or_else(|e| panic!("{name}: {e}"))).unwrap()
    }

    pub(crate) fn command<S: AsRef<str>>(&self, scratch: &Scratch, words: &[S]) -> Command {
        let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
        let mut command = scratch.command(&words);
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{path}", text(&self.dir)));
        command.env("FAKE_CRIU_DIR", &self.dir);
        command
    }

    pub(crate) fn call(&self, scratch: &Scratch, words: &[&str]) -> Finished {
        deadline::run(&mut self.command(scratch, words), LIMIT)
    }

    /// `checkpoint` of a container.
    pub(crate) fn checkpoint(
        &self,
        scratch: &Scratch,
        id: &str,
        images: &Path,
        flags: &[&str],
    ) -> Finished {
        let images = text(images);
        let words = [&["checkpoint", "--image-path", &images], flags, &[id]];
        self.call(scratch, &words.concat())
    }

    /// Images as a dump leaves them.
    pub(crate) fn images(&self, scratch: &Scratch) -> PathBuf {
        let images = scratch.path("images");
        let (bundle, _) = running(scratch, "dumped");
        self.checkpoint(scratch, &bundle.id, &images, &["--leave-running"])
            .ok();
        scratch.end(&bundle);
        images
    }

    /// Restores detached, and returns the pid. The container keeps our streams: they are no pipes.
    pub(crate) fn restore(
        &self,
        scratch: &Scratch,
        bundle: &Bundle,
        images: &Path,
        more: &[&str],
    ) -> i32 {
        let (done, pid) = self.try_restore(scratch, bundle, images, more);
        done.ok();
        pid.expect("a pid file")
    }

    pub(crate) fn try_restore(
        &self,
        scratch: &Scratch,
        bundle: &Bundle,
        images: &Path,
        more: &[&str],
    ) -> (Finished, Option<i32>) {
        let words = restore_words(scratch, bundle, images, more);
        let done = deadline::run(&mut self.command(scratch, &words), LIMIT);
        (done, restored_pid(scratch))
    }
}

/// The words of a detached restore with a pid file, for which the bundle is written.
pub(crate) fn restore_words(
    scratch: &Scratch,
    bundle: &Bundle,
    images: &Path,
    more: &[&str],
) -> Vec<String> {
    bundle.write();
    let mut words = vec!["restore".to_owned(), "--detach".to_owned()];
    for (flag, path) in [
        ("--bundle", &*bundle.path),
        ("--image-path", images),
        ("--work-path", &scratch.path("work")),
        ("--pid-file", &pid_file(scratch)),
    ] {
        words.extend([flag.to_owned(), text(path)]);
    }
    words.extend(more.iter().copied().map(str::to_owned));
    words.push(bundle.id.clone());
    words
}

fn pid_file(scratch: &Scratch) -> PathBuf {
    scratch.path("restored.pid")
}

/// What the restore wrote to its pid file; `None` without one.
pub(crate) fn restored_pid(scratch: &Scratch) -> Option<i32> {
    let pid = fs::read_to_string(pid_file(scratch)).ok()?;
    Some(pid.trim().parse().unwrap())
}

/// A container that sleeps, and its pid.
pub(crate) fn running(scratch: &Scratch, name: &str) -> (Bundle, i32) {
    fs::write(scratch.path("volume"), "x").unwrap();
    let bundle = bundle(scratch, name);
    let pid = scratch.start(&bundle);
    (bundle, pid)
}

/// One with a volume, of which criu has to be told.
pub(crate) fn bundle(scratch: &Scratch, name: &str) -> Bundle {
    scratch.bundle(name).args(&["sleep", "600"]).mount(json!({
        "destination": "/volume", "type": "bind", "source": text(&scratch.path("volume")),
        "options": ["bind"],
    }))
}

/// Ends what was restored: it is a child of the test, which is a subreaper.
pub(crate) fn end(scratch: &Scratch, bundle: &Bundle, pid: i32) {
    scratch.call(&["kill", &bundle.id, "KILL"]).ok();
    scratch.exit_of(pid);
    scratch.call(&["delete", &bundle.id]).ok();
}

/// The options of a request without those that say where things are.
pub(crate) fn asked(mut opts: Value) -> Value {
    let object = opts.as_object_mut().unwrap();
    for place in [
        "images_dir_fd",
        "work_dir_fd",
        "log_level",
        "pid",
        "root",
        "freeze_cgroup",
        "ext_mnt",
        "cg_root",
        "log_file",
        "config_file",
        "status_fd",
        "notify_scripts",
        "manage_cgroups",
        "evasive_devices",
        "inherit_fd",
    ] {
        object.remove(place);
    }
    // A flag that is off may be said or not.
    object.retain(|_, value| *value != json!(0));
    opts
}

/// The mounts that criu is told to leave alone, as key and value.
pub(crate) fn externals(opts: &Value) -> Vec<(String, String)> {
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    let mut pairs: Vec<_> = opts["ext_mnt"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|pair| (word(&pair["key"]), word(&pair["val"])))
        .collect();
    pairs.sort();
    pairs
}
