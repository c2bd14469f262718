//! Streams through fifos.
#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};

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
    let child = io.open(&paths, (0, 0), &context()).await.unwrap();
    let mut process = std::fs::File::from(child.stdout.unwrap());
    let writer = std::thread::spawn(move || process.write_all(&[b'x'; 1_000_000]).unwrap());
    assert!(io.drain(Duration::from_secs(20)).await);
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
    let child = io.open(&paths, (0, 0), &context()).await.unwrap();
    assert!(!io.drain(Duration::from_millis(30)).await);
    drop(child);
}

#[tokio::test]
async fn stdin_ends_only_after_close_io_and_the_client() {
    let dir = tempfile::tempdir().unwrap();
    let paths = StdioPaths {
        stdin: fifo(dir.path(), "in"),
        ..StdioPaths::default()
    };
    let io = ProcessIo::default();
    let child = io.open(&paths, (0, 0), &context()).await.unwrap();
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
    let child = io.open(&paths, (0, 0), &context()).await.unwrap();
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
    let child = io.open(&paths, (0, 0), &context()).await.unwrap();
    std::fs::File::from(child.stdout.unwrap())
        .write_all(b"out\n")
        .unwrap();
    std::fs::File::from(child.stderr.unwrap())
        .write_all(b"err\n")
        .unwrap();
    drop(child.stdin);
    assert!(io.drain(Duration::from_secs(5)).await);
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
