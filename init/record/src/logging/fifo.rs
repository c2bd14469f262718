//! containerd's `log` fifo in the bundle, in logrus' text format, which containerd copies to its own log.

use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use crate::text::head;
use crate::time::Timestamp;

/// Longest text in bytes; the rest of [`libc::PIPE_BUF`] is for time, level, fields and the note on lost lines.
const TEXT_LIMIT: usize = 3000;

/// The open fifo, and how many lines did not fit since the last that did.
#[derive(Debug)]
pub(super) struct Fifo {
    file: File,
    lost: u64,
}

impl Fifo {
    /// Opens `path` for reading *and* writing: that succeeds without a reader, and a reader that goes
    /// (containerd restarts) and comes back is no error either, `fifo(7)`.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        if !file.metadata()?.file_type().is_fifo() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} is no fifo", path.display()),
            ));
        }
        Ok(Self { file, lost: 0 })
    }

    /// Writes one line if it fits; returns whether it did.
    pub(super) fn write(
        &mut self,
        level: log::Level,
        text: &str,
        fields: &[(String, String)],
    ) -> bool {
        let mut bytes = Vec::new();
        if self.lost > 0 {
            let note = format!("{} lines did not fit this fifo and were dropped", self.lost);
            bytes.extend(line(log::Level::Warn, &note, &[], Timestamp::now()).into_bytes());
        }
        let cut = head(text, TEXT_LIMIT);
        let text = if cut.len() < text.len() {
            Cow::from(format!(
                "{cut}… ({} bytes left out)",
                text.len() - cut.len()
            ))
        } else {
            Cow::from(text)
        };
        bytes.extend(line(level, &text, fields, Timestamp::now()).into_bytes());
        // Up to PIPE_BUF a write is all or nothing, pipe(7). Only escapes and fields can make a line longer.
        if bytes.len() > libc::PIPE_BUF {
            bytes.truncate(libc::PIPE_BUF - 1);
            bytes.push(b'\n');
        }
        let fits = matches!(self.file.write(&bytes), Ok(written) if written == bytes.len());
        self.lost = if fits { 0 } else { self.lost + 1 };
        fits
    }
}

/// One line in logrus' text format.
fn line(level: log::Level, text: &str, fields: &[(String, String)], time: Timestamp) -> String {
    let level = match level {
        log::Level::Error => "error",
        log::Level::Warn => "warning",
        log::Level::Info => "info",
        log::Level::Debug => "debug",
        log::Level::Trace => "trace",
    };
    let mut line = format!("time=\"{time}\" level={level} msg={}", quote(text));
    for (name, value) in fields {
        line.push_str(&format!(" {name}={}", quote(value)));
    }
    line.push('\n');
    line
}

/// A quoted string with the escapes that logrus' readers know.
fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn fifo(folder: &Path) -> std::path::PathBuf {
        let path = folder.join("log");
        let made = std::process::Command::new("mkfifo")
            .arg(&path)
            .status()
            .unwrap();
        assert!(made.success());
        path
    }

    #[test]
    fn writes_logrus_lines() {
        let fields = [("id".to_owned(), "a\"b".to_owned())];
        assert_eq!(
            line(
                log::Level::Warn,
                "two\nlines",
                &fields,
                Timestamp::new(0, 0)
            ),
            "time=\"1970-01-01T00:00:00.000000000Z\" level=warning msg=\"two\\nlines\" id=\"a\\\"b\"\n"
        );
    }

    #[test]
    fn without_a_reader_it_drops_and_counts_and_says_so_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = fifo(folder.path());
        let mut sink = Fifo::open(&path).unwrap();
        let text = "x".repeat(1000);
        let written = (0..200)
            .take_while(|_| sink.write(log::Level::Info, &text, &[]))
            .count();
        assert!((1..200).contains(&written), "{written}");
        assert!(
            !sink.write(log::Level::Info, "lost as well, or short enough", &[]) || sink.lost == 0
        );
        while sink.write(log::Level::Info, &text, &[]) {}
        let lost = sink.lost;
        assert!(lost >= 1);
        let mut reader = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path)
            .unwrap();
        let mut buffer = vec![0; 1 << 20];
        assert!(reader.read(&mut buffer).unwrap() > 1000);
        assert!(sink.write(log::Level::Info, "room again", &[]));
        let read = reader.read(&mut buffer).unwrap();
        let text = String::from_utf8_lossy(&buffer[..read]);
        assert!(
            text.contains(&format!("{lost} lines did not fit")),
            "{text}"
        );
        assert!(text.contains("room again"));
    }

    #[test]
    fn a_reader_that_goes_and_comes_back_is_served() {
        let folder = tempfile::tempdir().unwrap();
        let path = fifo(folder.path());
        let mut sink = Fifo::open(&path).unwrap();
        for round in 0..3 {
            let mut reader = OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(&path)
                .unwrap();
            assert!(sink.write(log::Level::Info, &format!("round {round}"), &[]));
            let mut buffer = [0; 4096];
            let read = reader.read(&mut buffer).unwrap();
            assert!(String::from_utf8_lossy(&buffer[..read]).contains(&format!("round {round}")));
        }
    }

    #[test]
    fn a_long_line_is_cut_within_its_quotes() {
        let folder = tempfile::tempdir().unwrap();
        let path = fifo(folder.path());
        let mut sink = Fifo::open(&path).unwrap();
        assert!(sink.write(
            log::Level::Error,
            &"é".repeat(4000),
            &[("id".into(), "c1".into())]
        ));
        let mut buffer = [0; 8192];
        let read = sink.file.read(&mut buffer).unwrap();
        let text = std::str::from_utf8(&buffer[..read]).unwrap();
        assert!(
            text.ends_with("… (5000 bytes left out)\" id=\"c1\"\n"),
            "{text}"
        );
    }

    #[test]
    fn an_ordinary_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "").unwrap();
        assert_eq!(
            Fifo::open(&path).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }
}
