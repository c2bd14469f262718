//! fd 2, the logger and the panic report, in processes of their own against a journald of our own making.
//!
//! Each test runs this test binary again with a role in its environment; the roles are at the end of this file.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::io::Read;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use holdfast_record::ledger::{Kind, Ledger, Query, Record};
use holdfast_record::logging::{self, Places, Sink, stderr_to_journal};
use holdfast_record::reason::Reason;
use holdfast_record::{ContainerId, Timestamp};

/// Against a hang of the code under test; no test waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(30);

fn places(folder: &Path) -> Places {
    Places {
        stream: folder.join("stdout"),
        datagram: folder.join("socket"),
        kmsg: folder.join("kmsg"),
        file: folder.join("ledger/stderr.log"),
    }
}

fn role(name: &str, folder: &Path) -> ExitStatus {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--ignored",
            "--exact",
            "--nocapture",
            "--test-threads=1",
            name,
        ])
        .env("STDERR_TEST_FOLDER", folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap()
}

fn folder_of_role() -> Option<std::path::PathBuf> {
    std::env::var_os("STDERR_TEST_FOLDER").map(Into::into)
}

/// The header and the lines of the one connection that the role made.
fn received(listener: &UnixListener) -> (Vec<String>, String) {
    listener.set_nonblocking(true).unwrap();
    let (mut stream, _) = listener.accept().expect("the role has connected");
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let mut lines = text.split('\n');
    let header = lines.by_ref().take(7).map(str::to_owned).collect();
    (header, lines.collect::<Vec<_>>().join("\n"))
}

#[test]
fn everything_on_fd_2_reaches_journald() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("stdout")).unwrap();
    assert!(role("speaks", folder.path()).success());
    let (header, text) = received(&listener);
    assert_eq!(header, ["holdfast-test", "", "6", "1", "0", "0", "0"]);
    assert!(
        text.contains("<6>from the logger\n<6>in two lines\n"),
        "{text}"
    );
    assert!(text.contains("<3>an error\n"), "{text}");
    assert!(text.contains("raw bytes from a child\n"), "{text}");
    assert!(!text.contains("too detailed"), "{text}");
}

#[test]
fn without_journald_a_file_has_the_lines_and_the_kernel_log_the_errors() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("kmsg"), "").unwrap();
    assert!(role("speaks", folder.path()).success());
    let text = std::fs::read_to_string(places(folder.path()).file).unwrap();
    assert!(text.contains("raw bytes from a child\n"), "{text}");
    assert!(text.contains("]: from the logger\n"), "{text}");
    let kmsg = std::fs::read_to_string(folder.path().join("kmsg")).unwrap();
    assert!(
        kmsg.starts_with("<3>holdfast-test[") && kmsg.ends_with("]: an error\n"),
        "{kmsg}"
    );
}

#[test]
fn without_a_place_for_the_file_the_kernel_log_has_everything() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("kmsg"), "").unwrap();
    std::fs::write(folder.path().join("ledger"), "in the way").unwrap();
    assert!(role("speaks", folder.path()).success());
    let kmsg = std::fs::read_to_string(folder.path().join("kmsg")).unwrap();
    assert!(kmsg.contains("an error\n"), "{kmsg}");
}

#[test]
fn a_stopped_journald_makes_nobody_wait() {
    let folder = tempfile::tempdir().unwrap();
    // It listens and never accepts nor reads: what a stopped journald looks like.
    let listener = UnixListener::bind(folder.path().join("stdout")).unwrap();
    let _datagrams = UnixDatagram::bind(folder.path().join("socket")).unwrap();
    assert!(role("floods", folder.path()).success());
    let (_, text) = received(&listener);
    assert!(text.starts_with("<6>line 0 "), "{}", &text[..100]);
}

#[test]
fn a_panic_is_on_fd_2_in_the_ledger_and_in_the_journal() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("stdout")).unwrap();
    let datagrams = UnixDatagram::bind(folder.path().join("socket")).unwrap();
    datagrams.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(role("panics_and_goes_on", folder.path()).success());

    let (_, text) = received(&listener);
    let head = text
        .lines()
        .find(|line| line.contains("internal error"))
        .unwrap();
    assert!(
        head.starts_with("<2>") && head.ends_with("the answer is wrong"),
        "{head}"
    );
    assert!(head.contains("tests/stderr.rs:"), "{head}");
    assert!(
        text.contains("panics_and_goes_on"),
        "no backtrace in {text}"
    );

    let ledger = Ledger::new(folder.path().join("ledger"));
    let page = ledger.read(&Query::default()).unwrap();
    let Some(Reason::ShimPanicked(panicked)) = page.records[0].reason() else {
        panic!("{page:?}");
    };
    assert_eq!(panicked.message, "the answer is wrong");
    assert!(head.contains(&panicked.incident));
    assert!(
        text.contains(&format!("caught incident {}", panicked.incident)),
        "{text}"
    );

    let mut buffer = vec![0; 1 << 20];
    let read = datagrams.recv(&mut buffer).unwrap();
    let entry = String::from_utf8_lossy(&buffer[..read]);
    for field in [
        "REASON=HF171\n",
        "CONTAINER_ID=c1\n",
        "PRIORITY=3\n",
        &format!("INCIDENT={}\n", panicked.incident),
        &format!(
            "MESSAGE_ID={}\n",
            Reason::ShimPanicked(panicked).entry().message_id
        ),
    ] {
        assert!(entry.contains(field), "{field} is missing in {entry}");
    }
}

#[test]
fn a_second_panic_while_panicking_is_reported_too() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("stdout")).unwrap();
    assert!(!role("panics_twice", folder.path()).success());
    let (_, text) = received(&listener);
    assert!(text.contains("the first panic"), "{text}");
    assert!(text.contains("the second panic"), "{text}");
}

#[test]
fn the_last_words_of_libc_and_of_a_full_stack_reach_journald() {
    for (role_name, words) in [
        ("frees_garbage", "invalid pointer"),
        ("overflows_its_stack", "has overflowed its stack"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("stdout")).unwrap();
        assert!(!role(role_name, folder.path()).success());
        let (_, text) = received(&listener);
        assert!(text.contains(words), "{role_name}: {text:?}");
    }
}

/// systemd's own journald, as an instance of its own with a tmpfs for its files; none, with a word, where it is not to
/// be had.
struct Journald {
    process: std::process::Child,
    name: String,
}

impl Journald {
    fn start() -> Option<Self> {
        let program = "/lib/systemd/systemd-journald";
        if !Path::new(program).exists() || !Path::new("/run/systemd").is_dir() {
            println!("SKIPPED: no {program}");
            return None;
        }
        let name = format!("holdfast-record-{}", std::process::id());
        let script = format!(
            "mount -t tmpfs none /var/log && mkdir /var/log/journal && exec {program} {name}"
        );
        let process = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &script])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(process) = process else {
            println!("SKIPPED: no unshare(1)");
            return None;
        };
        let mut journald = Self { process, name };
        let until = std::time::Instant::now() + PATIENCE;
        while !journald.folder().join("stdout").exists() {
            if matches!(journald.process.try_wait(), Ok(Some(_))) {
                println!("SKIPPED: systemd-journald does not run here");
                return None;
            }
            assert!(
                std::time::Instant::now() < until,
                "journald does not come up"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(journald)
    }

    fn folder(&self) -> std::path::PathBuf {
        format!("/run/systemd/journal.{}", self.name).into()
    }

    /// What journalctl says with these matches, an object a line, once `enough` is true of it.
    fn said(
        &self,
        matches: &[&str],
        enough: impl Fn(&[serde_json::Value]) -> bool,
    ) -> Vec<serde_json::Value> {
        let until = std::time::Instant::now() + PATIENCE;
        loop {
            let said = Command::new("nsenter")
                .args([
                    "-t",
                    &self.process.id().to_string(),
                    "-m",
                    "journalctl",
                    "-o",
                    "json",
                    "--no-pager",
                ])
                .arg(format!("--namespace={}", self.name))
                .args(matches)
                .output()
                .unwrap();
            let entries: Vec<serde_json::Value> = String::from_utf8_lossy(&said.stdout)
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok())
                .collect();
            if enough(&entries) {
                return entries;
            }
            assert!(
                std::time::Instant::now() < until,
                "{matches:?}: {entries:#?}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Journald {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(self.folder());
    }
}

#[test]
fn a_real_journald_has_panics_aborts_and_full_stacks_with_their_fields() {
    let Some(journald) = Journald::start() else {
        return;
    };
    let folder = journald.folder();
    assert!(role("panics_and_goes_on", &folder).success());
    for name in ["panics_twice", "frees_garbage", "overflows_its_stack"] {
        assert!(!role(name, &folder).success(), "{name}");
    }
    let texts = |entries: &[serde_json::Value]| -> String {
        let messages = entries.iter().filter_map(|entry| entry["MESSAGE"].as_str());
        messages.collect::<Vec<_>>().join("\n")
    };
    let words = [
        "internal error ",
        "the second panic",
        "has overflowed its stack",
        "free(): invalid pointer",
    ];
    let glibc = cfg!(target_env = "gnu");
    let stream = journald.said(&["SYSLOG_IDENTIFIER=holdfast-test"], |entries| {
        let said = texts(entries);
        words
            .iter()
            .filter(|word| glibc || !word.contains("free()"))
            .all(|word| said.contains(word))
    });
    let panic = stream
        .iter()
        .find(|entry| {
            entry["MESSAGE"]
                .as_str()
                .is_some_and(|text| text.starts_with("internal error "))
        })
        .unwrap();
    assert_eq!(panic["PRIORITY"], "2", "{panic}");
    assert_eq!(panic["_TRANSPORT"], "stdout", "{panic}");
    // The record of the same panic, with fields.
    let entry = Reason::ShimPanicked(example()).entry();
    let by_id = format!("MESSAGE_ID={}", entry.message_id);
    let records = journald.said(&[&by_id], |entries| !entries.is_empty());
    let record = &records[0];
    assert_eq!(record["REASON"], entry.code);
    assert_eq!(record["CONTAINER_ID"], "c1");
    assert_eq!(record["PRIORITY"], "3");
    let incident = record["INCIDENT"].as_str().unwrap();
    assert!(
        panic["MESSAGE"].as_str().unwrap().contains(incident) || texts(&stream).contains(incident)
    );
}

fn example() -> holdfast_record::reason::Panicked {
    holdfast_record::reason::Panicked {
        incident: String::new(),
        message: String::new(),
        location: None,
        thread: None,
        backtrace: String::new(),
    }
}

#[test]
fn values_with_line_feeds_are_sent_by_length() {
    let folder = tempfile::tempdir().unwrap();
    let places = places(folder.path());
    assert!(!logging::journal_fields(&places, &[("MESSAGE", "x")]).unwrap());
    let datagrams = UnixDatagram::bind(&places.datagram).unwrap();
    datagrams.set_nonblocking(true).unwrap();
    let fields = [("MESSAGE", "one"), ("TRACE", "a\nb=c")];
    assert!(logging::journal_fields(&places, &fields).unwrap());
    let mut buffer = [0; 4096];
    let read = datagrams.recv(&mut buffer).unwrap();
    assert_eq!(
        &buffer[..read],
        b"MESSAGE=one\nTRACE\n\x05\0\0\0\0\0\0\0a\nb=c\n"
    );
    for bad in ["", "_TRUSTED", "lower", "A=B", "A\nB"] {
        assert!(
            logging::journal_fields(&places, &[(bad, "x")]).is_err(),
            "{bad:?}"
        );
    }
}

#[test]
fn a_journald_that_does_not_read_is_an_error_and_no_wait() {
    let folder = tempfile::tempdir().unwrap();
    let places = places(folder.path());
    let _datagrams = UnixDatagram::bind(&places.datagram).unwrap();
    let error = (0..100_000)
        .find_map(|_| logging::journal_fields(&places, &[("MESSAGE", "x")]).err())
        .expect("the queue of a socket has an end");
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
}

fn start(folder: &Path) -> (Sink, Places) {
    let places = places(folder);
    let sink = stderr_to_journal("holdfast-test", &places);
    logging::install(
        "holdfast-test",
        log::LevelFilter::Info,
        sink,
        places.clone(),
        Vec::new(),
    )
    .unwrap();
    (sink, places)
}

fn report_panics(folder: &Path, places: Places) {
    logging::report_panics(Ledger::new(folder.join("ledger")), places, |panicked| {
        Record::new(
            Kind::Shim,
            &Reason::ShimPanicked(panicked),
            Timestamp::now(),
        )
        .of_container(None, &ContainerId::new("c1").unwrap())
    });
}

#[test]
#[ignore = "a role of the tests above"]
fn speaks() {
    let Some(folder) = folder_of_role() else {
        return;
    };
    let (sink, _) = start(&folder);
    assert_ne!(sink, Sink::Inherited);
    log::info!("from the logger\nin two lines");
    log::debug!("too detailed");
    log::error!("an error");
    let child = Command::new("/bin/sh")
        .args(["-c", "echo raw bytes from a child >&2"])
        .status();
    assert!(child.unwrap().success());
    assert_eq!(logging::dropped_lines(), 0);
}

#[test]
#[ignore = "a role of the tests above"]
fn floods() {
    let Some(folder) = folder_of_role() else {
        return;
    };
    let (sink, _) = start(&folder);
    assert_eq!(sink, Sink::Journal);
    let started = std::time::Instant::now();
    for number in 0..10_000 {
        log::info!("line {number} {}", "x".repeat(1000));
    }
    assert!(
        logging::dropped_lines() > 0,
        "ten million bytes cannot have fit"
    );
    assert!(started.elapsed() < PATIENCE);
}

#[test]
#[ignore = "a role of the tests above"]
fn panics_and_goes_on() {
    let Some(folder) = folder_of_role() else {
        return;
    };
    let (_, places) = start(&folder);
    report_panics(&folder, places);
    let caught = std::panic::catch_unwind(|| panic!("the answer is wrong"));
    assert!(caught.is_err());
    log::info!("caught incident {}", logging::take_incident().unwrap());
    assert_eq!(logging::take_incident(), None);
}

struct PanicsOnDrop;

impl Drop for PanicsOnDrop {
    fn drop(&mut self) {
        panic!("the second panic");
    }
}

#[test]
#[ignore = "a role of the tests above"]
fn panics_twice() {
    let Some(folder) = folder_of_role() else {
        return;
    };
    let (_, places) = start(&folder);
    report_panics(&folder, places);
    let _second = PanicsOnDrop;
    panic!("the first panic");
}

mod sys {
    #![allow(unsafe_code)]

    /// Makes glibc abort: "free(): invalid pointer".
    pub(super) fn free_garbage() {
        #[repr(align(16))]
        struct Text([u8; 64]);
        let text = std::hint::black_box(Text([0; 64]));
        // What glibc takes for the size of the chunk, right before the pointer, is zeros of our own.
        // SAFETY: none is claimed: glibc sees that the pointer is not aligned, and aborts. It is the last act of this process.
        unsafe { libc::free(text.0.as_ptr().wrapping_add(17).cast_mut().cast()) }
    }
}

#[test]
#[ignore = "a role of the tests above"]
fn frees_garbage() {
    let Some(folder) = folder_of_role() else {
        return;
    };
    let _ = start(&folder);
    sys::free_garbage();
}

fn deeper(level: u64) -> u64 {
    let here = std::hint::black_box([level; 512]);
    if level == u64::MAX {
        0
    } else {
        deeper(level + 1) + here[7]
    }
}

#[test]
#[ignore = "a role of the tests above"]
fn overflows_its_stack() {
    let Some(folder) = folder_of_role() else {
        return;
    };
    let _ = start(&folder);
    println!("{}", deeper(0));
}
