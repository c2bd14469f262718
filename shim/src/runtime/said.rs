//! What a runtime says: its pid file and its log.

use std::io;
use std::path::Path;

use holdfast_record::Reason;

/// Most bytes of the runtime's log that are looked at.
const MAX_LOG: u64 = 256 * 1024;

pub(super) fn read_pid(path: &Path) -> io::Result<u32> {
    std::fs::read_to_string(path)?
        .trim()
        .parse()
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

/// The message of the last entry with level `error`, as runc and crun write them, and the last reason, as `holdfast`
/// adds it.
pub(super) fn last_error(log: &Path) -> (Option<String>, Option<Box<Reason>>) {
    use io::Read as _;
    #[derive(serde::Deserialize)]
    struct Entry {
        #[serde(default)]
        level: String,
        #[serde(default)]
        msg: String,
        #[serde(default)]
        reason: Option<serde_json::Value>,
    }
    let mut text = String::new();
    let read =
        std::fs::File::open(log).and_then(|file| file.take(MAX_LOG).read_to_string(&mut text));
    if read.is_err() {
        return (None, None);
    }
    let (mut error, mut reason) = (None, None);
    for line in text.lines() {
        let Ok(entry) = serde_json::from_str::<Entry>(line) else {
            continue;
        };
        if entry.level == "error" && !entry.msg.is_empty() {
            error = Some(entry.msg);
        }
        // One that a newer runtime has invented is none for us.
        reason = entry
            .reason
            .and_then(|reason| serde_json::from_value(reason).ok())
            .map(Box::new)
            .or(reason);
    }
    (error, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_the_log_is_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log.json");
        assert_eq!(last_error(&log), (None, None));
        std::fs::write(
            &log,
            "{\"level\":\"error\",\"msg\":\"first\"}\nnoise\n{\"level\":\"error\",\"msg\":\"second\"}\n{\"level\":\"info\",\"msg\":\"x\"}\n\
             {\"level\":\"warning\",\"msg\":\"\",\"reason\":{\"code\":\"HF101\",\"evidence\":{\"code\":7}}}\n\
             {\"level\":\"warning\",\"msg\":\"\",\"reason\":{\"code\":\"HF999\"}}\n",
        )
        .unwrap();
        let (error, reason) = last_error(&log);
        assert_eq!(error.as_deref(), Some("second"));
        assert_eq!(reason, Some(Box::new(Reason::Exited { code: 7 })));
    }
}
