//! Loggers, terminals, disks that fill up, and streams that are closed early: with a lone shim.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::MessageField;
use holdfast_integration::deadline::eventually;
use holdfast_integration::lone::Lone;
use holdfast_integration::place;
use holdfast_integration::scratch::text;
use holdfast_integration::shim::{Refused, process_any, toml_options};
use nix::mount::{MntFlags, MsFlags};
use nix::sys::stat::Mode;

const LIMIT: Duration = Duration::from_secs(60);

fn fifo(lone: &Lone, name: &str) -> PathBuf {
    let path = lone.path(name);
    nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
    path
}

/// Reads a fifo to its end.
fn reader(path: &Path) -> JoinHandle<Vec<u8>> {
    let path = path.to_owned();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    })
}

fn program(lone: &Lone, name: &str, script: &str) -> PathBuf {
    let path = lone.path(name);
    place::write_program(&path, &format!("#!/bin/sh\n{script}\n"));
    path
}

/// Creates `box` with its output there.
fn create_to(lone: &Lone, args: &[&str], stdout: &str, stderr: &str) -> Result<u32, Refused> {
    lone.bundle("box").args(args).write();
    let mut request = lone.create_request("box", None);
    request.stdout = stdout.to_owned();
    request.stderr = stderr.to_owned();
    lone.shim
        .call::<_, api::CreateTaskResponse>("Create", &request)
        .map(|created| created.pid)
}

#[test]
fn a_logger_gets_everything_and_ends_by_itself() {
    let Some(lone) = Lone::start("a_logger_gets_everything", &[], None) else {
        return;
    };
    let script = "\
        [ \"$1 $2\" = \"level info\" ] || exit 1\n\
        cat <&3 >\"$0.out\" 5>&- & cat <&4 >\"$0.err\" 5>&- &\n\
        env >\"$0.env\"\n\
        READY\n\
        exec 3<&- 4<&-\n\
        wait";
    for (scheme, ready) in [("binary", "exec 5>&-"), ("binary-v2", "echo >&5")] {
        let logger = program(&lone, scheme, &script.replace("READY", ready));
        let uri = format!("{scheme}://{}?level=info", text(&logger));
        let write = "head -c 300000 /dev/zero; echo err >&2; exit 3";
        create_to(&lone, &["sh", "-c", write], &uri, &uri).unwrap();
        lone.shim.start("box", "").unwrap();
        assert_eq!(lone.shim.wait("box", "").unwrap(), 3);
        lone.shim.delete("box", "").unwrap();
        let read = |end: &str| fs::read(format!("{}.{end}", text(&logger))).unwrap();
        assert_eq!(read("out").len(), 300_000, "{scheme}");
        assert_eq!(read("err"), b"err\n", "{scheme}");
        // Nothing but what the contract says.
        let env = String::from_utf8(read("env")).unwrap();
        assert!(env.contains("CONTAINER_ID=box\n"), "{env}");
        assert!(env.contains(&format!("CONTAINER_NAMESPACE={}\n", lone.namespace)));
        assert!(!env.contains("HOLDFAST_"), "{env}");
        lone.assert_nothing_left("a logger");
    }
    lone.finish();
}

#[test]
fn a_logger_that_is_never_ready_fails_the_create_in_time() {
    let limit = [("HOLDFAST_DEADLINE_LOGGER", "700ms")];
    let Some(lone) = Lone::start("a_logger_that_is_never_ready", &limit, None) else {
        return;
    };
    let logger = program(
        &lone,
        "mute",
        "echo 'cannot reach the log server' >&2\nexec sleep 600",
    );
    for scheme in ["binary", "binary-v2"] {
        let uri = format!("{scheme}://{}", text(&logger));
        let began = Instant::now();
        let refused = create_to(&lone, &["true"], &uri, &uri).unwrap_err();
        assert!(began.elapsed() < Duration::from_secs(20), "{refused:?}");
        for word in ["was not ready within 700ms", "cannot reach the log server"] {
            assert!(refused.message.contains(word), "{refused:?}");
        }
        assert_eq!(lone.shim.state("box", "").unwrap_err().code, 5);
        lone.assert_nothing_left("a mute logger");
    }
    lone.finish();
}

#[test]
fn output_goes_on_when_the_disk_has_room_again() {
    let Some(lone) = Lone::start("output_goes_on", &[], None) else {
        return;
    };
    let disk = lone.path("disk");
    fs::create_dir(&disk).unwrap();
    let size = Some("size=64k");
    nix::mount::mount(Some("tmpfs"), &disk, Some("tmpfs"), MsFlags::empty(), size).unwrap();
    let log = disk.join("log");
    let uri = format!("file://{}", text(&log));
    // More than fits, then a line now and then until it is told to end.
    let script = "yes | head -c 500000; touch /filled\n\
        until [ -e /end ]; do echo later; sleep 0.05; done; exit 8";
    create_to(&lone, &["sh", "-c", script], &uri, "").unwrap();
    lone.shim.start("box", "").unwrap();
    let rootfs = lone.bundle_path("box").join("rootfs");
    eventually("the container is not held up", LIMIT, || {
        rootfs.join("filled").exists().then_some(())
    });
    assert!(fs::metadata(&log).unwrap().len() <= 65536);
    // As a rotation would do.
    File::options()
        .write(true)
        .open(&log)
        .unwrap()
        .set_len(0)
        .unwrap();
    let written = eventually("output goes on", LIMIT, || {
        let written = fs::read_to_string(&log).ok()?;
        written.contains("later\n").then_some(written)
    });
    assert!(
        written.contains("bytes of stdout were dropped here: No space left on device"),
        "{}",
        written.escape_debug()
    );
    fs::write(rootfs.join("end"), "").unwrap();
    assert_eq!(lone.shim.wait("box", "").unwrap(), 8);
    lone.shim.delete("box", "").unwrap();
    nix::mount::umount2(&disk, MntFlags::MNT_DETACH).unwrap();
    lone.finish();
}

#[test]
fn the_policy_of_the_options_decides() {
    const FILLS: &str = "head -c 300000 /dev/zero; touch /filled\n\
        until [ -e /end ]; do echo later; sleep 0.05; done; exit 8";
    // The options win over containerd's environment, which wins over what is usual for a fifo.
    let environment = [
        ("HOLDFAST_STDIO_POLICY", "block"),
        ("HOLDFAST_DEADLINE_SINK", "300ms"),
    ];
    let Some(lone) = Lone::start("the_policy_of_the_options", &environment, None) else {
        return;
    };
    let out = fifo(&lone, "out");
    // Open, so that there is a reader; it reads nothing yet.
    let both = File::options().read(true).write(true).open(&out);
    let mut client = both.unwrap();
    lone.bundle("box").args(&["sh", "-c", FILLS]).write();
    let mut request = lone.create_request("box", Some(&toml_options("StdioPolicy = \"drop\"\n")));
    request.stdout = text(&out);
    lone.shim
        .call::<_, api::CreateTaskResponse>("Create", &request)
        .unwrap();
    lone.shim.start("box", "").unwrap();
    let rootfs = lone.bundle_path("box").join("rootfs");
    eventually("the container is not held up", LIMIT, || {
        rootfs.join("filled").exists().then_some(())
    });
    // The reader comes back: it sees what fitted, how much is missing, and what comes now.
    let seen = std::thread::spawn(move || {
        let mut seen = Vec::new();
        let mut buffer = [0; 65536];
        while !String::from_utf8_lossy(&seen).contains("bytes of stdout were dropped here")
            || !seen.ends_with(b"later\n")
        {
            let size = client.read(&mut buffer).unwrap();
            seen.extend_from_slice(&buffer[..size]);
        }
        (client, seen)
    });
    eventually("the loss is told", LIMIT, || {
        seen.is_finished().then_some(())
    });
    let (_client, seen) = seen.join().unwrap();
    assert!(seen.len() < 300_000, "{} bytes", seen.len());
    fs::write(rootfs.join("end"), "").unwrap();
    assert_eq!(lone.shim.wait("box", "").unwrap(), 8);
    lone.shim.delete("box", "").unwrap();
    lone.finish();
}

#[test]
fn a_terminal_loses_nothing() {
    let Some(lone) = Lone::start("a_terminal_loses_nothing", &[], None) else {
        return;
    };
    lone.run(None);
    let out = fifo(&lone, "tty");
    let all = reader(&out);
    let mut request = api::ExecProcessRequest::new();
    request.id = "box".to_owned();
    request.exec_id = "tty".to_owned();
    request.terminal = true;
    request.stdout = text(&out);
    let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done";
    request.spec = MessageField::some(process_any(&["sh", "-c", script]));
    lone.shim.call::<_, api::Empty>("Exec", &request).unwrap();
    lone.shim.start("box", "tty").unwrap();
    assert_eq!(lone.shim.wait("box", "tty").unwrap(), 0);
    lone.shim.delete("box", "tty").unwrap();
    let expected: String = (0..20_000).map(|i| format!("line {i}\r\n")).collect();
    let all = String::from_utf8(all.join().unwrap()).unwrap();
    assert_eq!(all.len(), expected.len());
    assert!(all == expected);
    lone.end("box");
    lone.finish();
}

#[test]
fn standard_input_may_be_closed_before_the_start() {
    let Some(lone) = Lone::start("standard_input_may_be_closed", &[], None) else {
        return;
    };
    lone.run(None);
    for (exec, closed_first) in [("early", true), ("late", false)] {
        let (input, out) = (fifo(&lone, &format!("{exec}-in")), fifo(&lone, exec));
        let all = reader(&out);
        let streams = [text(&input), text(&out), String::new()];
        let streams = streams.each_ref().map(String::as_str);
        lone.shim
            .exec_with_streams("box", exec, &["cat"], streams)
            .unwrap();
        if closed_first {
            lone.shim.close_stdin("box", exec).unwrap();
        }
        // The client's own end: it writes, and goes. Open for both, it waits for no reader, and
        // is there before the shim may find that nobody writes.
        let both = File::options().read(true).write(true).open(input);
        let mut client = both.unwrap();
        client.write_all(b"said\n").unwrap();
        lone.shim.start("box", exec).unwrap();
        drop(client);
        if !closed_first {
            lone.shim.close_stdin("box", exec).unwrap();
        }
        assert_eq!(lone.shim.wait("box", exec).unwrap(), 0, "{exec}");
        lone.shim.delete("box", exec).unwrap();
        assert_eq!(all.join().unwrap(), b"said\n", "{exec}");
    }
    lone.end("box");
    lone.finish();
}

#[test]
fn much_output_takes_no_memory() {
    const BYTES: u64 = 200 << 20;
    let Some(lone) = Lone::start("much_output_takes_no_memory", &[], None) else {
        return;
    };
    lone.run(None);
    let pid = lone.shim.pid("");
    let private = || -> u64 {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let line = rollup
            .lines()
            .find(|line| line.starts_with("Private_Dirty:"));
        line.unwrap()
            .split_whitespace()
            .nth(1)
            .unwrap()
            .parse()
            .unwrap()
    };
    let mut held = Vec::new();
    for round in 0..2 {
        let exec = format!("exec-{round}");
        let out = fifo(&lone, &exec);
        let count = BYTES.to_string();
        let args = ["head", "-c", &count, "/dev/zero"];
        lone.shim
            .exec_with_streams("box", &exec, &args, ["", &text(&out), ""])
            .unwrap();
        let counter = std::thread::spawn(move || {
            std::io::copy(&mut File::open(out).unwrap(), &mut std::io::sink()).unwrap()
        });
        lone.shim.start("box", &exec).unwrap();
        assert_eq!(lone.shim.wait("box", &exec).unwrap(), 0);
        lone.shim.delete("box", &exec).unwrap();
        assert_eq!(counter.join().unwrap(), BYTES);
        held.push(private());
    }
    // The first round has paid for what is reached for the first time; a buffer that grew with
    // the output would be hundreds of times this.
    assert!(held[1] <= held[0] + 512, "KiB held: {held:?}");
    lone.end("box");
    lone.finish();
}

#[test]
fn without_streams_output_goes_nowhere() {
    let Some(lone) = Lone::start("without_streams", &[], None) else {
        return;
    };
    let script = "echo out && echo err >&2 && ! read line && exit 5";
    create_to(&lone, &["sh", "-c", script], "", "").unwrap();
    lone.shim.start("box", "").unwrap();
    assert_eq!(lone.shim.wait("box", "").unwrap(), 5);
    lone.shim.delete("box", "").unwrap();
    lone.finish();
}
