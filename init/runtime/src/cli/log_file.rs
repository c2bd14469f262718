//! `--log`: lines as runc writes them, because containerd shows the last error line of the file
//! to its users.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use holdfast_record::Timestamp;
use log::{Level, LevelFilter, Log, Metadata, Record};

/// The target of lines that carry a reason as JSON.
const REASON_TARGET: &str = "holdfast::reason";

/// Tells the reader of `--log`, if that is JSON, the reason of the error that follows: a line of level `warning`, which
/// those who look for an error skip.
pub(super) fn tell_reason(reason: &holdfast_record::Reason) {
    if let Ok(json) = serde_json::to_string(reason) {
        log::warn!(target: REASON_TARGET, "{json}");
    }
}

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

    /// The reason as a member of its own beside the message, for the shim that reads this log.
    fn reason_line(json: &str) -> Option<String> {
        let reason: serde_json::Value = serde_json::from_str(json).ok()?;
        let line = serde_json::json!({
            "level": "warning", "msg": format!("reason {}", reason["code"].as_str()?),
            "time": Timestamp::now().to_string(), "reason": reason,
        });
        Some(format!("{line}\n"))
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
        let text = record.args().to_string();
        let line = if record.target() == REASON_TARGET {
            match (self.format, &self.path) {
                (Format::Json, Some(_)) => Self::reason_line(&text).unwrap_or_default(),
                // For a person it says nothing that the error does not say.
                (Format::Json | Format::Text, _) => return,
            }
        } else {
            self.line(record.level(), &text)
        };
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
            // A fifo that nobody reads must hold nobody up.
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .and_then(|mut file| file.write_all(line.as_bytes()));
        if written.is_err() {
            // The log is a courtesy; standard error is what remains.
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}
