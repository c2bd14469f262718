//! Streams through fifos.
#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;

use super::*;

fn context() -> LoggerContext {
    LoggerContext {
        reaper: std::sync::Arc::default(),
        namespace: holdfast_record::Namespace::new("ns").unwrap(),
        container: holdfast_record::ContainerId::new("c").unwrap(),
    }
}

fn fifo(dir: &Path, name: &str) -> String {
    let path = dir.join(name);
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    path.to_str().unwrap().to_owned()
}

/// What a runtime has been given.
async fn given(io: &ProcessIo, paths: &StdioPaths, setup: StdioSetup) -> ChildStdio {
    let child = io.open(paths, setup, &context()).await.unwrap();
    io.given();
    child
}

#[tokio::test]
async fn output_is_complete_and_ends_when_the_last_writer_does() {
    let dir = tempfile::tempdir().unwrap();
    let paths = StdioPaths {
        stdout: fifo(dir.path(), "out"),
        ..StdioPaths::default()
    };
    // The client blocks in open(2) until we come, as containerd's does.
    let out = paths.stdout.clone();
    let client = std::thread::spawn(move || {
        let mut text = Vec::new();
        std::fs::File::open(out)
            .unwrap()
            .read_to_end(&mut text)
            .unwrap();
        text
    });
    let io = ProcessIo::default();
    let child = given(&io, &paths, StdioSetup::default()).await;
    let mut process = std::fs::File::from(child.stdout.unwrap());
    let writer = std::thread::spawn(move || process.write_all(&[b'x'; 1_000_000]).unwrap());
    io.drain(Duration::from_secs(20)).await.unwrap();
    writer.join().unwrap();
    assert_eq!(client.join().unwrap().len(), 1_000_000);
}

#[tokio::test]
async fn a_writer_that_stays_is_given_up_after_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let out = fifo(dir.path(), "out");
    let _client = open(Path::new(&out), OFlag::O_RDONLY).unwrap();
    let paths = StdioPaths {
        stdout: out,
        ..StdioPaths::default()
    };
    let io = ProcessIo::default();
    let child = given(&io, &paths, StdioSetup::default()).await;
    // A process of its own, as a background child is.
    let mut holder = std::process::Command::new("sleep")
        .arg("60")
        .stdout(child.stdout.unwrap())
        .spawn()
        .unwrap();
    let held = io.drain(Duration::from_millis(30)).await.unwrap_err();
    holder.kill().unwrap();
    holder.wait().unwrap();
    let text = held.to_string();
    assert!(
        text.contains(&format!("pid {} (sleep)", holder.id())),
        "{text}"
    );
}

#[tokio::test]
async fn stdin_ends_only_after_close_io_and_the_client() {
    let dir = tempfile::tempdir().unwrap();
    let paths = StdioPaths {
        stdin: fifo(dir.path(), "in"),
        ..StdioPaths::default()
    };
    let io = ProcessIo::default();
    let child = given(&io, &paths, StdioSetup::default()).await;
    let mut process = std::fs::File::from(child.stdin.unwrap());
    let mut client = std::fs::OpenOptions::new()
        .write(true)
        .open(&paths.stdin)
        .unwrap();
    client.write_all(b"abc").unwrap();
    drop(client);
    let reader = tokio::task::spawn_blocking(move || {
        let mut first = [0; 3];
        process.read_exact(&mut first).unwrap();
        let mut poll = [nix::poll::PollFd::new(
            process.as_fd(),
            nix::poll::PollFlags::POLLIN,
        )];
        let ready = nix::poll::poll(&mut poll, nix::poll::PollTimeout::from(100u16)).unwrap();
        assert_eq!(ready, 0, "EOF although the shim holds stdin open");
        process
    });
    let mut process = reader.await.unwrap();
    io.close_stdin();
    let rest = tokio::task::spawn_blocking(move || {
        let mut rest = Vec::new();
        process.read_to_end(&mut rest).unwrap();
        rest
    });
    assert_eq!(rest.await.unwrap(), b"");

    // And before the start.
    let io = ProcessIo::default();
    io.close_stdin();
    let child = given(&io, &paths, StdioSetup::default()).await;
    let mut process = std::fs::File::from(child.stdin.unwrap());
    let rest = tokio::task::spawn_blocking(move || {
        let mut rest = Vec::new();
        process.read_to_end(&mut rest).unwrap();
        rest
    });
    assert_eq!(rest.await.unwrap(), b"");
}

#[tokio::test]
async fn files_are_appended_to_and_unknown_schemes_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("sub/log");
    let uri = format!("file://{}?x=y", file.display());
    let paths = StdioPaths {
        stdout: uri.clone(),
        stderr: uri,
        ..StdioPaths::default()
    };
    check(&paths).unwrap();
    let io = ProcessIo::default();
    let child = given(&io, &paths, StdioSetup::default()).await;
    std::fs::File::from(child.stdout.unwrap())
        .write_all(b"out\n")
        .unwrap();
    std::fs::File::from(child.stderr.unwrap())
        .write_all(b"err\n")
        .unwrap();
    drop(child.stdin);
    io.drain(Duration::from_secs(5)).await.unwrap();
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text == "out\nerr\n" || text == "err\nout\n", "{text:?}");
    let paths = StdioPaths {
        stdout: "gopher:///x".to_owned(),
        ..StdioPaths::default()
    };
    assert!(
        check(&paths)
            .unwrap_err()
            .to_string()
            .contains("gopher:///x")
    );
}

/// Makes a pipe as small as can be.
fn shrink(pipe: &std::fs::File) {
    nix::fcntl::fcntl(pipe.as_raw_fd(), nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
}

#[tokio::test]
async fn a_full_disk_does_not_stop_the_process_and_is_told_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let mounted = nix::mount::mount(
        Some("tmpfs"),
        dir.path(),
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        Some("size=64k"),
    );
    if let Err(error) = mounted {
        eprintln!("SKIPPED: mounting a small disk: {error}");
        return;
    }
    let log = dir.path().join("log");
    let filler = dir.path().join("filler");
    std::fs::write(&filler, vec![0; 32 * 1024]).unwrap();
    let paths = StdioPaths {
        stdout: format!("file://{}", log.display()),
        ..StdioPaths::default()
    };
    let io = ProcessIo::default();
    let child = given(&io, &paths, StdioSetup::default()).await;
    let mut process = std::fs::File::from(child.stdout.unwrap());
    // What is still in the pipe when the disk has room again must fit there.
    shrink(&process);
    // Far more than fits into disk and pipe together.
    let mut process = tokio::task::spawn_blocking(move || {
        process.write_all(&vec![b'x'; 1 << 20]).unwrap();
        process
    })
    .await
    .unwrap();
    // The one that is full is taken from, not added to.
    std::fs::remove_file(&filler).unwrap();
    // Longer than the pause between two tries, which nothing announces.
    tokio::time::sleep(Duration::from_millis(300)).await;
    process.write_all(b"after\n").unwrap();
    drop(process);
    io.drain(Duration::from_secs(10)).await.unwrap();
    let text = std::fs::read_to_string(&log).unwrap();
    nix::mount::umount2(dir.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    let kept = text.bytes().filter(|byte| *byte == b'x').count();
    let marker = text
        .lines()
        .find(|line| line.starts_with("[holdfast: "))
        .unwrap_or_else(|| panic!("no marker in {} bytes", text.len()));
    let lost: usize = marker.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(
        marker.contains("stdout") && marker.contains("No space left"),
        "{marker}"
    );
    // Markers may be several, if some of the disk was freed between.
    let all: usize = text
        .lines()
        .filter_map(|line| line.strip_prefix("[holdfast: "))
        .map(|line| line.split(' ').next().unwrap().parse::<usize>().unwrap())
        .sum();
    assert!(lost > 0 && text.ends_with("after\n"), "{marker}");
    assert_eq!(kept + all, 1 << 20);
}

#[tokio::test]
async fn a_stalled_reader_blocks_or_is_dropped_as_the_policy_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let out = fifo(dir.path(), "out");
    let mut client = std::fs::File::from(open(Path::new(&out), OFlag::O_RDONLY).unwrap());
    let paths = StdioPaths {
        stdout: out,
        ..StdioPaths::default()
    };
    let setup = StdioSetup {
        policy: Some(Policy::Drop {
            after: Duration::from_millis(20),
        }),
        ..StdioSetup::default()
    };
    let io = ProcessIo::default();
    let child = given(&io, &paths, setup).await;
    let mut process = std::fs::File::from(child.stdout.unwrap());
    shrink(&process);
    let mut process = tokio::task::spawn_blocking(move || {
        process.write_all(&vec![b'x'; 1 << 20]).unwrap();
        process
    })
    .await
    .unwrap();
    // What is still in the pipe must fit into the fifo: it is much smaller.
    // The reader wakes: what is in the fifo, then the marker, then what comes now.
    let mut text = Vec::new();
    let mut read_some = |text: &mut Vec<u8>| {
        let mut buffer = [0; 65536];
        while let Ok(size @ 1..) = client.read(&mut buffer) {
            text.extend_from_slice(&buffer[..size]);
        }
    };
    read_some(&mut text);
    process.write_all(b"after\n").unwrap();
    drop(process);
    io.drain(Duration::from_secs(10)).await.unwrap();
    read_some(&mut text);
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("bytes of stdout were dropped here: its reader takes nothing"));
    assert!(text.ends_with("after\n"));
    assert!(text.len() < 1 << 20);

    // Blocking is what a fifo does by itself.
    let io = ProcessIo::default();
    let child = given(&io, &paths, StdioSetup::default()).await;
    let process = child.stdout.unwrap();
    set_nonblocking(&process).unwrap();
    let mut process = std::fs::File::from(process);
    let mut written = 0;
    let until = std::time::Instant::now() + Duration::from_millis(400);
    while std::time::Instant::now() < until {
        match process.write(&[b'y'; 4096]) {
            Ok(size) => written += size,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
        tokio::task::yield_now().await;
    }
    assert!(written < 1 << 20, "{written} bytes went somewhere");
}

/// What comes of a start with a logger that is this script.
async fn start_logger(scheme: &str, script: &str) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("logger");
    std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, mode).unwrap();
    let paths = StdioPaths {
        stdout: format!("{scheme}://{}", program.display()),
        ..StdioPaths::default()
    };
    ProcessIo::default()
        .open(&paths, StdioSetup::default(), &context())
        .await
        .map(|_| ())
        .map_err(|error| crate::fault::chain(&error))
}

#[tokio::test]
async fn a_logger_that_fails_is_quoted_in_the_error() {
    let script = "echo 'no such collector: loki' >&2\nexit 1";
    // Of version 1 the end of the pipe means ready, and its death ends the pipe, too: over and
    // over, since the two come close together.
    for scheme in ["binary-v2"].into_iter().chain(["binary"; 20]) {
        let text = start_logger(scheme, script).await.unwrap_err();
        assert!(
            text.contains("ended before it was ready; it said: no such collector: loki"),
            "{scheme}: {text}"
        );
    }
    let text = start_logger("binary", "kill -9 $$").await.unwrap_err();
    assert!(text.contains("ended before it was ready"), "{text}");
}

#[tokio::test]
async fn a_logger_says_that_it_is_ready() {
    let rest = "cat <&3 >/dev/null";
    let closes = format!("exec 5>&-\n{rest}");
    let writes = format!("echo >&5\n{rest}");
    start_logger("binary", &closes).await.unwrap();
    start_logger("binary", &writes).await.unwrap();
    start_logger("binary-v2", &writes).await.unwrap();
    let text = start_logger("binary-v2", &closes).await.unwrap_err();
    assert!(text.contains("without the byte"), "{text}");
}
