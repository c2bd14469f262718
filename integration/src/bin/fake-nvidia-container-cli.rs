//! Stands in for `nvidia-container-cli`: writes down how it was called, and then behaves as it is told.
//!
//! Told by variables (the hook hands its environment on) or, where the environment is clean, by the file
//! `PROGRAM.behaviour` next to it: one word and its argument a line, done in order.
//!
//! | line | what it does |
//! |---|---|
//! | `record FILE` | appends the call to FILE as a line of JSON |
//! | `stderr TEXT` | writes a line to standard error |
//! | `flood BYTES` | writes that many bytes to standard error |
//! | `mount DIR` | mounts a tmpfs on DIR of the container, in the container's mount namespace |
//! | `file PATH` | makes an empty file in the container, in the container's mount namespace |
//! | `touch FILE` | makes an empty file on the host |
//! | `once FILE` | does the rest only if FILE does not exist, and makes it |
//! | `kill-init` | kills the process of `--pid`, and waits until it has ended |
//! | `ignore-sigterm` | does that |
//! | `wait FILE` | waits until FILE exists |
//! | `hang` | never ends |
//! | `die NUMBER` | ends itself by that signal |
//! | `exit CODE` | ends |

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::exit;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigSet, Signal, kill, raise};
use nix::unistd::Pid;
use serde_json::{Value, json};

fn main() {
    let record = call();
    if let Some(file) = std::env::var_os("FAKE_CLI_OUT") {
        let _ = fs::write(file, record.to_string());
    }
    if let Ok(text) = std::env::var("FAKE_CLI_STDERR") {
        eprintln!("{text}");
    }
    let own = std::env::args_os().next().unwrap_or_default();
    let mut behaviour = own;
    behaviour.push(".behaviour");
    for line in fs::read_to_string(behaviour).unwrap_or_default().lines() {
        let (word, argument) = line.split_once(' ').unwrap_or((line, ""));
        act(word, argument, &record);
    }
    exit(std::env::var("FAKE_CLI_EXIT").map_or(0, |code| code.parse().unwrap_or(99)));
}

/// How it was called.
fn call() -> Value {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let argv: Vec<_> = std::env::args_os()
        .map(|arg| text(arg.as_bytes()))
        .collect();
    // As the kernel has it: with duplicates, and in order.
    let environment = fs::read("/proc/self/environ").unwrap_or_default();
    let env: Vec<_> = environment
        .split(|byte| *byte == 0)
        .filter(|entry| !entry.is_empty())
        .map(text)
        .collect();
    json!({
        "argv": argv,
        "env": env,
        "cwd": std::env::current_dir().unwrap_or_default(),
        "pid": std::process::id(),
        "group": nix::unistd::getpgrp().as_raw(),
        "namespace": fs::read_link("/proc/self/ns/mnt").unwrap_or_default(),
    })
}

fn act(word: &str, argument: &str, record: &Value) {
    match word {
        "record" => {
            let line = format!("{record}\n");
            let file = OpenOptions::new().append(true).create(true).open(argument);
            let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
        }
        "stderr" => eprintln!("{argument}"),
        "flood" => {
            let line = [b'x'; 1024];
            for _ in 0..argument.parse::<usize>().unwrap_or(0) / line.len() {
                let _ = std::io::stderr().write_all(&line);
            }
            eprintln!();
        }
        "mount" => mount(argument),
        "file" => {
            if let Err(error) = enter().and_then(|()| fs::write(inside(argument), "")) {
                eprintln!("nvidia-container-cli: mount error: {argument}: {error}");
                exit(1);
            }
        }
        "touch" => drop(fs::write(argument, "")),
        "once" => {
            if OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(argument)
                .is_err()
            {
                exit(0);
            }
        }
        "kill-init" => {
            let _ = kill(target(), Signal::SIGKILL);
            let stat = format!("/proc/{}/stat", target());
            let ended = |stat: String| {
                stat.rsplit(") ")
                    .next()
                    .is_some_and(|rest| rest.starts_with(['Z', 'X']))
            };
            until(|| fs::read_to_string(&stat).map_or(true, ended));
        }
        "ignore-sigterm" => ignore_sigterm(),
        "wait" => until(|| Path::new(argument).exists()),
        "hang" => forever(),
        "die" => {
            let number = argument.parse().unwrap_or(9);
            let _ = Signal::try_from(number).map(raise);
            forever();
        }
        "exit" => exit(argument.parse().unwrap_or(98)),
        other => {
            eprintln!("the fake does not know {other:?}");
            exit(97);
        }
    }
}

/// Asleep all the time, so that whoever looks sees that.
fn forever() -> ! {
    loop {
        nix::unistd::pause();
    }
}

fn until(mut done: impl FnMut() -> bool) {
    while !done() {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The process of `--pid`.
fn target() -> Pid {
    let pid = std::env::args()
        .find_map(|arg| arg.strip_prefix("--pid=").and_then(|pid| pid.parse().ok()));
    Pid::from_raw(pid.unwrap_or_else(|| exit(96)))
}

/// A path of the container, as the host sees it.
fn inside(path: &str) -> String {
    let rootfs = std::env::args().next_back().unwrap_or_default();
    format!("{rootfs}/{}", path.trim_start_matches('/'))
}

/// Joins the container's mount namespace.
fn enter() -> std::io::Result<()> {
    let namespace = fs::File::open(format!("/proc/{}/ns/mnt", target()))?;
    Ok(setns(namespace.as_fd(), CloneFlags::CLONE_NEWNS)?)
}

/// As the real program mounts the driver: from the host's view of the root, inside the container's mount namespace.
fn mount(dir: &str) {
    let at = inside(dir);
    let done = enter()
        .and_then(|()| fs::create_dir_all(&at))
        .and_then(|()| {
            Ok(nix::mount::mount(
                Some("fake-driver"),
                at.as_str(),
                Some("tmpfs"),
                nix::mount::MsFlags::empty(),
                None::<&str>,
            )?)
        });
    if let Err(error) = done {
        eprintln!("nvidia-container-cli: mount error: {at}: {error}");
        exit(1);
    }
}

/// Blocked for good, which comes to the same.
fn ignore_sigterm() {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    let _ = set.thread_block();
}
