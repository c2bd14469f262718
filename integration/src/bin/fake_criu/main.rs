//! A criu for tests, where the kernel does not let the real one work: `fake_criu swrk FD`.
//!
//! It reads requests with a table of its own, writes them as JSON where `FAKE_CRIU_DIR` says, and
//! does what a caller of criu relies on: a dump ends the process unless it is left running, a
//! restore makes a process that stands still until the caller has been told of it, as a sibling
//! and in the cgroups of criu itself. Neither writes nor reads images. Files in `FAKE_CRIU_DIR`
//! choose how it fails:
//!
//! | file | what happens |
//! |---|---|
//! | `fail` | a dump or restore fails, with the file's text in the log |
//! | `kernel` | so does the check of the kernel |
//! | `no-features` | nothing that can be missing is there |
//! | `terminal` | the restored container had a terminal |
//! | `silent` | nothing is ever answered |
//! | `slow` | a restore waits with a process made and not told, until the file is gone; `at-work` is there then |
//!
//! Messages: criu's `rpc.proto`.

mod messages;
mod sys;

use std::fs;
use std::io::{IoSlice, IoSliceMut, Read as _, Write as _};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use messages::{REQUEST, Writer, read};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, recvmsg, sendmsg};
use serde_json::{Value, json};

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let [_, verb, fd] = &words[..] else {
        panic!("this criu only knows swrk FD: {words:?}");
    };
    assert_eq!(verb, "swrk");
    let worker = Worker {
        socket: sys::inherited(fd.parse().unwrap()),
        dir: std::env::var_os("FAKE_CRIU_DIR")
            .expect("FAKE_CRIU_DIR")
            .into(),
    };
    worker.serve();
}

/// Numbers of `criu_req_type`.
mod kind {
    pub(crate) const DUMP: u64 = 1;
    pub(crate) const RESTORE: u64 = 2;
    pub(crate) const CHECK: u64 = 3;
    pub(crate) const PRE_DUMP: u64 = 4;
    pub(crate) const NOTIFY: u64 = 6;
    pub(crate) const FEATURE_CHECK: u64 = 9;
    pub(crate) const VERSION: u64 = 10;
}

struct Worker {
    socket: OwnedFd,
    dir: PathBuf,
}

impl Worker {
    fn has(&self, name: &str) -> bool {
        self.dir.join(name).exists()
    }

    fn serve(&self) {
        let Some(request) = self.receive() else {
            return;
        };
        let kind = request["type"].as_u64().unwrap();
        if self.has("silent") && kind != kind::VERSION {
            // Until the caller has had enough and closes the socket.
            assert!(self.receive().is_none());
            return;
        }
        let mut answer = Writer::default();
        answer.number(1, kind);
        match kind {
            kind::VERSION => {
                let mut version = Writer::default();
                version.number(1, 3).number(2, 17).number(4, 1);
                answer.number(2, 1).message(10, &version);
            }
            kind::FEATURE_CHECK => {
                self.record("features", &request);
                let there = u64::from(!self.has("no-features"));
                let mut features = Writer::default();
                features.number(1, there).number(2, there);
                answer.number(2, 1).message(8, &features);
            }
            kind::CHECK => {
                let failure = self
                    .has("kernel")
                    .then_some("kernel: this cannot work here");
                self.log(&request, failure);
                answer.number(2, u64::from(failure.is_none()));
            }
            kind::DUMP | kind::PRE_DUMP | kind::RESTORE => {
                let failure = fs::read_to_string(self.dir.join("fail")).ok();
                self.log(&request, failure.as_deref());
                if failure.is_some() {
                    answer.number(2, 0).number(7, 5);
                } else if kind == kind::RESTORE {
                    let pid = self.restore(&request);
                    let mut restored = Writer::default();
                    restored.number(1, pid);
                    answer.number(2, u64::from(pid != 0)).message(4, &restored);
                } else {
                    self.dump(&request, kind);
                    answer.number(2, 1);
                }
            }
            other => panic!("request of type {other}"),
        }
        self.send(&answer, None);
        // The real one waits for more requests, too.
        let _ = self.receive();
    }

    fn receive(&self) -> Option<Value> {
        let mut buffer = vec![0; 1 << 20];
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let message =
            recvmsg::<UnixAddr>(self.socket.as_raw_fd(), &mut parts, None, MsgFlags::empty());
        let len = message.map_or(0, |message| message.bytes);
        (len > 0).then(|| read(&buffer[..len], REQUEST))
    }

    fn send(&self, message: &Writer, fd: Option<RawFd>) {
        let fds: Vec<RawFd> = fd.into_iter().collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights };
        let parts = [IoSlice::new(&message.0)];
        // A caller that is gone is not told.
        let _ = sendmsg::<UnixAddr>(
            self.socket.as_raw_fd(),
            &parts,
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        );
    }

    /// Tells of a moment; whether the caller wants to go on.
    fn notify(&self, script: &str, pid: Option<u64>, fd: Option<RawFd>) -> bool {
        let mut notify = Writer::default();
        notify.text(1, script);
        if let Some(pid) = pid {
            notify.number(2, pid);
        }
        let mut message = Writer::default();
        message
            .number(1, kind::NOTIFY)
            .number(2, 1)
            .message(5, &notify);
        self.send(&message, fd);
        self.receive()
            .is_some_and(|answer| answer["notify_success"] == json!(1))
    }

    fn record(&self, name: &str, what: &Value) {
        fs::write(self.dir.join(format!("{name}.json")), what.to_string()).unwrap();
    }

    /// A descriptor of the caller, as criu opens them.
    fn callers(&self, request: &Value, field: &str) -> Option<PathBuf> {
        let fd = request["opts"][field].as_u64()?;
        Some(format!("/proc/{}/fd/{fd}", sys::peer(&self.socket)).into())
    }

    fn log(&self, request: &Value, failure: Option<&str>) {
        let dir = self
            .callers(request, "work_dir_fd")
            .or_else(|| self.callers(request, "images_dir_fd"))
            .unwrap();
        let name = request["opts"]["log_file"].as_str().unwrap();
        let mut text = "(00.000024) Version: 3.17.1 (gitid 0)\n".to_owned();
        if let Some(failure) = failure {
            text.push_str(&format!("(00.000100) Error (criu/fake.c:1): {failure}\n"));
        }
        fs::write(dir.join(name), text).unwrap();
    }

    fn dump(&self, request: &Value, kind: u64) {
        let opts = &request["opts"];
        let pre = kind == kind::PRE_DUMP;
        self.record(if pre { "pre-dump" } else { "dump" }, request);
        let images = self.callers(request, "images_dir_fd").unwrap();
        fs::write(images.join("inventory.img"), "fake").unwrap();
        if let Some(status) = self.callers(request, "status_fd") {
            fs::File::options()
                .write(true)
                .open(status)
                .unwrap()
                .write_all(b"\0")
                .unwrap();
        }
        for script in ["pre-dump", "network-lock", "post-dump", "network-unlock"] {
            assert!(self.notify(script, None, None), "{script} was refused");
        }
        if !pre && opts["leave_running"] != json!(1) {
            let pid = i32::try_from(opts["pid"].as_u64().unwrap()).unwrap();
            sys::kill_and_wait(pid);
        }
    }

    /// The pid of the restored process, 0 when the caller wanted none.
    fn restore(&self, request: &Value) -> u64 {
        let opts = &request["opts"];
        let streams: Vec<String> = (0..3).map(link).collect();
        let inherited: Vec<Value> = opts["inherit_fd"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|entry| {
                json!([
                    entry["key"],
                    link(i32::try_from(entry["fd"].as_i64().unwrap()).unwrap())
                ])
            })
            .collect();
        let root = opts["root"].as_str().unwrap();
        self.record(
            "restore",
            &json!({
                "request": request,
                "streams": streams,
                "inherited": inherited,
                "cgroup": fs::read_to_string("/proc/self/cgroup").unwrap(),
                "mounts": fs::read_link("/proc/self/ns/mnt").unwrap(),
                "root_is_mounted": is_mount_point(Path::new(root)),
            }),
        );
        let (mut gate, key) = std::io::pipe().unwrap();
        let sibling = opts["rst_sibling"] == json!(1);
        let pid = sys::fork(sibling, || {
            let mut byte = [0];
            // An end of file: nobody wants it any more.
            if gate.read(&mut byte).unwrap_or(0) == 0 {
                return;
            }
            let error = Command::new("/bin/sleep").arg("600").exec();
            panic!("{error}");
        });
        let told = u64::try_from(pid).unwrap();
        if self.has("slow") {
            fs::write(self.dir.join("at-work"), "").unwrap();
            while self.has("slow") {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
        let mut wanted = true;
        for (script, pid) in [
            ("pre-restore", None),
            ("setup-namespaces", Some(told)),
            ("post-restore", Some(told)),
        ] {
            wanted = wanted && self.notify(script, pid, None);
        }
        if wanted && self.has("terminal") {
            let pty = nix::pty::openpty(None, None).unwrap();
            wanted = self.notify("orphan-pts-master", None, Some(pty.master.as_raw_fd()));
        }
        if !wanted {
            drop(key);
            return 0;
        }
        (&key).write_all(b"x").unwrap();
        told
    }
}

fn link(fd: i32) -> String {
    fs::read_link(format!("/proc/self/fd/{fd}"))
        .map(|link| link.display().to_string())
        .unwrap_or_default()
}

fn is_mount_point(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts
        .lines()
        .any(|line| line.split(' ').nth(4) == path.to_str())
}
