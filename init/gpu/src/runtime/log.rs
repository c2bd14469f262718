//! The log of the wrapper: the file of `--log`, from which containerd takes the reason of a failure, and the one of the
//! configuration.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use holdfast_record::Timestamp;
use serde_json::json;

use super::arguments;

/// The open log files.
#[derive(Debug)]
pub(super) struct Log {
    files: Vec<File>,
    json: bool,
}

impl Log {
    /// Before the configuration is known there is none.
    pub(super) fn none() -> Self {
        Self {
            files: Vec::new(),
            json: false,
        }
    }

    /// The files of the configuration and of the arguments, made when they do not exist. One that cannot be opened is
    /// gone without: a container must not depend on a log.
    pub(super) fn of(arguments: &[OsString], configured: &str) -> Self {
        let (file, format) = arguments::log(arguments);
        let paths = [Some(OsString::from(configured)), file];
        let files = if arguments::has_version(arguments) {
            Vec::new()
        } else {
            paths
                .into_iter()
                .flatten()
                .filter_map(|path| open(Path::new(&path)))
                .collect()
        };
        Self {
            files,
            json: format.is_some_and(|format| format == "json"),
        }
    }

    pub(super) fn error(&mut self, text: &str) {
        self.write("error", text);
    }

    pub(super) fn warning(&mut self, text: &str) {
        self.write("warning", text);
    }

    fn write(&mut self, level: &str, text: &str) {
        let line = if self.json {
            let time = Timestamp::now().to_string();
            format!("{}\n", json!({"level": level, "msg": text, "time": time}))
        } else {
            text_line(level, text)
        };
        for file in &mut self.files {
            // See `of`.
            let _ = file.write_all(line.as_bytes());
        }
    }
}

/// A line as runc and the original write it.
pub(super) fn text_line(level: &str, text: &str) -> String {
    format!("time=\"{}\" level={level} msg={text:?}\n", Timestamp::now())
}

fn open(path: &Path) -> Option<File> {
    if path.as_os_str().is_empty() || path == Path::new("/dev/null") {
        return None;
    }
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        fs::create_dir_all(dir).ok()?;
    }
    OpenOptions::new().append(true).create(true).open(path).ok()
}
