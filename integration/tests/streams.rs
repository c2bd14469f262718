//! Standard streams: every byte arrives, in both directions, and nobody else waits for a reader.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use holdfast_integration::containerd::{Containerd, peer};
use holdfast_integration::leaks::descriptors;
use holdfast_integration::scratch::text;
use holdfast_integration::shim::Shim;
use holdfast_integration::{on_containerds, place, skip};
use nix::sys::stat::Mode;

on_containerds! {
    many_execs_with_three_fifos;
    a_stalled_reader_stalls_only_its_process;
    a_background_child_does_not_hold_the_exit;
    resizing_without_a_terminal_is_no_error;
    output_to_a_file_is_appended;
    a_full_disk_does_not_stop_the_container;
    a_logger_that_fails_says_why;
}

/// The fifos of one process.
struct Fifos([PathBuf; 3]);

impl Fifos {
    fn new(folder: &Path, name: &str) -> Self {
        let paths = ["in", "out", "err"].map(|stream| folder.join(format!("{name}-{stream}")));
        for path in &paths {
            nix::unistd::mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        }
        Self(paths)
    }

    fn texts(&self) -> [String; 3] {
        [0, 1, 2].map(|stream| text(&self.0[stream]))
    }

    /// Reads a stream to its end in a thread.
    fn reader(&self, stream: usize) -> std::thread::JoinHandle<Vec<u8>> {
        let path = self.0[stream].clone();
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
            bytes
        })
    }
}

fn many_execs_with_three_fifos(containerd: &Containerd) {
    const EXECS: usize = 200;
    const AT_ONCE: usize = 8;
    const BYTES: usize = 150_000;
    containerd.start_task("box", &[], &["sleep", "600"]);
    let folder = containerd.path("fifos");
    std::fs::create_dir(&folder).unwrap();
    let shim = Shim::of(containerd, "box");
    one_with_fifos(&shim, &folder, "warm-up", 10);
    let shim_pid = shim.pid("box");
    let before = descriptors(shim_pid).len();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= EXECS {
                        return;
                    }
                    // A few large ones among many small ones.
                    let bytes = if number.is_multiple_of(10) {
                        BYTES
                    } else {
                        100
                    };
                    one_with_fifos(&shim, &folder, &format!("exec-{number}"), bytes);
                }
            });
        }
    });
    assert_eq!(shim.pid("box"), shim_pid);
    let slack = if peer() { EXECS / 10 } else { 0 };
    let after = descriptors(shim_pid);
    assert!(
        after.len() <= before + slack,
        "{before} descriptors before, now {after:?}"
    );
    containerd.end_task("box");
}

fn one_with_fifos(shim: &Shim, folder: &Path, exec: &str, bytes: usize) {
    let fifos = Fifos::new(folder, exec);
    let [stdin, stdout, stderr] = fifos.texts();
    let args = ["sh", "-c", "cat; echo done >&2; exit 6"];
    shim.exec_with_streams("box", exec, &args, [&stdin, &stdout, &stderr])
        .unwrap();
    let (out, err) = (fifos.reader(1), fifos.reader(2));
    let input = fifos.0[0].clone();
    let writer = std::thread::spawn(move || {
        File::options()
            .write(true)
            .open(input)
            .unwrap()
            .write_all(&vec![b'y'; bytes])
            .unwrap();
    });
    shim.start("box", exec).unwrap();
    writer.join().unwrap();
    shim.close_stdin("box", exec).unwrap();
    assert_eq!(shim.wait("box", exec).unwrap(), 6, "{exec}");
    shim.delete("box", exec).unwrap();
    let (out, err) = (out.join().unwrap(), err.join().unwrap());
    assert_eq!(out.len(), bytes, "{exec}");
    assert!(out.iter().all(|byte| *byte == b'y'), "{exec}");
    assert_eq!(err, b"done\n", "{exec}");
}

fn a_stalled_reader_stalls_only_its_process(containerd: &Containerd) {
    containerd.start_task("box", &[], &["sleep", "600"]);
    let shim = Shim::of(containerd, "box");
    let folder = containerd.path("fifos");
    std::fs::create_dir(&folder).unwrap();
    let fifos = Fifos::new(&folder, "stalled");
    let [_, stdout, stderr] = fifos.texts();
    let errors = fifos.reader(2);
    let args = ["head", "-c", "3000000", "/dev/zero"];
    shim.exec_with_streams("box", "stalled", &args, ["", &stdout, &stderr])
        .unwrap();
    // Open for reading, but nothing is read yet.
    let opener = {
        let path = fifos.0[1].clone();
        std::thread::spawn(move || File::open(path).unwrap())
    };
    shim.start("box", "stalled").unwrap();
    let mut reader = opener.join().unwrap();
    // Others are served meanwhile.
    let started = Instant::now();
    for round in 0..5 {
        let exec = format!("other-{round}");
        shim.exec("box", &exec, &["true"]).unwrap();
        shim.start("box", &exec).unwrap();
        assert_eq!(shim.wait("box", &exec).unwrap(), 0);
        shim.delete("box", &exec).unwrap();
    }
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(
        shim.state("box", "stalled").unwrap().status.value(),
        2,
        "it cannot be done yet"
    );
    let all = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        bytes.len()
    });
    assert_eq!(shim.wait("box", "stalled").unwrap(), 0);
    shim.delete("box", "stalled").unwrap();
    assert_eq!(all.join().unwrap(), 3_000_000);
    assert_eq!(errors.join().unwrap(), b"");
    containerd.end_task("box");
}

fn a_background_child_does_not_hold_the_exit(containerd: &Containerd) {
    containerd.start_task("box", &[], &["sleep", "600"]);
    let shim = Shim::of(containerd, "box");
    let folder = containerd.path("fifos");
    std::fs::create_dir(&folder).unwrap();
    let fifos = Fifos::new(&folder, "parent");
    let [_, stdout, stderr] = fifos.texts();
    let errors = fifos.reader(2);
    let args = ["sh", "-c", "sleep 500 & echo said"];
    shim.exec_with_streams("box", "parent", &args, ["", &stdout, &stderr])
        .unwrap();
    let out = fifos.reader(1);
    let started = Instant::now();
    shim.start("box", "parent").unwrap();
    assert_eq!(shim.wait("box", "parent").unwrap(), 0);
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "exit told after {:?}",
        started.elapsed()
    );
    // Delete drains for a while, and then closes although the child still holds the pipe.
    shim.delete("box", "parent").unwrap();
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "deleted after {:?}",
        started.elapsed()
    );
    assert_eq!(out.join().unwrap(), b"said\n");
    assert_eq!(errors.join().unwrap(), b"");
    containerd.end_task("box");
}

fn resizing_without_a_terminal_is_no_error(containerd: &Containerd) {
    use containerd_shim_protos::api;
    containerd.start_task("box", &[], &["sleep", "600"]);
    let shim = Shim::of(containerd, "box");
    let mut request = api::ResizePtyRequest::new();
    request.id = "box".to_owned();
    request.width = 80;
    request.height = 25;
    shim.call::<_, api::Empty>("ResizePty", &request).unwrap();
    containerd.end_task("box");
}

fn output_to_a_file_is_appended(containerd: &Containerd) {
    let log = containerd.path("output");
    std::fs::write(&log, "before\n").unwrap();
    let uri = format!("file://{}", log.display());
    containerd
        .run(
            "box",
            &["-d", "--log-uri", &uri],
            &["sh", "-c", "echo out; echo err >&2"],
        )
        .ok();
    containerd.await_status("box", "STOPPED");
    containerd.remove("box");
    let written = std::fs::read_to_string(log).unwrap();
    assert!(written.starts_with("before\n"), "{written}");
    assert!(
        written.contains("out\n") && written.contains("err\n"),
        "{written}"
    );
}

fn a_full_disk_does_not_stop_the_container(containerd: &Containerd) {
    if peer() {
        return skip("a_full_disk", "containerd's own shim stops its container");
    }
    let disk = containerd.path("disk");
    std::fs::create_dir(&disk).unwrap();
    nix::mount::mount(
        Some("tmpfs"),
        &disk,
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        Some("size=64k"),
    )
    .unwrap();
    let log = disk.join("log");
    let uri = format!("file://{}", log.display());
    let script = "yes | head -c 2000000; exit 7";
    containerd
        .run("box", &["-d", "--log-uri", &uri], &["sh", "-c", script])
        .ok();
    containerd.await_status("box", "STOPPED");
    assert_eq!(Shim::of(containerd, "box").wait("box", "").unwrap(), 7);
    containerd.remove("box");
    let kept = std::fs::metadata(&log).unwrap().len();
    nix::mount::umount2(&disk, nix::mount::MntFlags::MNT_DETACH).unwrap();
    assert!(kept > 0 && kept <= 65536, "{kept} bytes on the disk");
}

fn a_logger_that_fails_says_why(containerd: &Containerd) {
    if peer() {
        return skip("a_logger", "containerd's own shim does not quote it");
    }
    let logger = containerd.path("logger");
    let script = "#!/bin/sh\necho 'no such collector: loki' >&2\nexit 1\n";
    place::write_program(&logger, script);
    let uri = format!("binary-v2://{}", logger.display());
    let ran = containerd.run("box", &["-d", "--log-uri", &uri], &["true"]);
    assert!(
        ran.failed().contains("it said: no such collector: loki"),
        "{ran}"
    );
    let _ = containerd.ctr(&["containers", "delete", "box"]);
}
