//! `--log`: lines as runc writes them, because containerd shows the last error line of the file
//! to its users.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use holdfast_record::Timestamp;
use log::{Level, LevelFilter, Log, Metadata, Record};

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Format {
    /// `time="…" level=error msg="…"`
    #[default]
    Text,
    /// `{"level":"error","msg":"…","time":"…"}`
    Json,
}

/// Where to, how, and how much.
#[derive(Debug, Clone, Default)]
pub(super) struct Destination {
    pub(super) path: Option<PathBuf>,
    pub(super) format: Format,
    pub(super) debug: bool,
}

impl Destination {
    /// Makes this the process's log. Nothing is opened before there is something to write.
    pub(super) fn install(self) {
        let level = if self.debug {
            LevelFilter::Debug
        } else {
            LevelFilter::Warn
        };
        // Fails only when a logger is set already, which only a test could have done.
        if log::set_boxed_logger(Box::new(self)).is_ok() {
            log::set_max_level(level);
        }
    }

    fn line(&self, level: Level, message: &str) -> String {
        let time = Timestamp::now();
        let level = match level {
            Level::Error => "error",
            Level::Warn => "warning",
            Level::Info => "info",
            Level::Debug => "debug",
            Level::Trace => "trace",
        };
        match self.format {
            Format::Json => {
                let line = serde_json::json!({
                    "level": level, "msg": message, "time": time.to_string(),
                });
                format!("{line}\n")
            }
            Format::Text => format!("time=\"{time}\" level={level} msg={message:?}\n"),
        }
    }
}

impl Log for Destination {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = self.line(record.level(), &record.args().to_string());
        let Some(path) = &self.path else {
            if record.level() > Level::Error {
                // Errors are printed by main, once.
                let _ = std::io::stderr().write_all(line.as_bytes());
            }
            return;
        };
        let written = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o644)
            .open(path)
            .and_then(|mut file| file.write_all(line.as_bytes()));
        if written.is_err() {
            // The log is a courtesy; standard error is what remains.
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}
