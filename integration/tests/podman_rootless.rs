//! podman of an ordinary user with our runtime: podman is root in a user namespace of its own then,
//! and so are conmon and the runtime.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use holdfast_integration::deadline::{self, Finished};
use holdfast_integration::scratch::text;
use holdfast_integration::user::User;
use holdfast_integration::{image, leaks, place, skip};

/// How long one call of podman may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(120);

struct Podman<'a> {
    folder: &'a Path,
    user: User,
}

impl Podman<'_> {
    #[track_caller]
    fn call(&self, args: &[&str]) -> Finished {
        let mut inner = Command::new(place::program("podman").unwrap());
        for (flag, name) in [
            ("--root", "root"),
            ("--runroot", "run"),
            ("--tmpdir", "tmp"),
        ] {
            inner.arg(flag).arg(self.folder.join(name));
        }
        inner.args(["--storage-driver", "vfs", "--runtime"]);
        inner.arg(place::built("holdfast")).args(args);
        inner
            .env("CONTAINERS_CONF", self.folder.join("containers.conf"))
            .env("HOLDFAST_LEDGER_DIR", self.folder.join("ledger"))
            .env("HOLDFAST_TEST_FOLDER", self.folder)
            .env("HOME", self.folder)
            .current_dir(self.folder);
        deadline::run(&mut self.user.command(&inner), LIMIT)
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        // The process that holds podman's user namespace, and whatever a failed test left.
        for process in leaks::processes_mentioning(&text(self.folder)) {
            let pid = nix::unistd::Pid::from_raw(process.pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        leaks::unmount_under(self.folder);
    }
}

#[test]
fn the_main_verbs() {
    let test = "podman_rootless::the_main_verbs";
    for need in ["podman", "conmon"] {
        if place::program(need).is_none() {
            return skip(test, &format!("{need} is not installed"));
        }
    }
    let folder = tempfile::Builder::new()
        .prefix("holdfast-test-")
        .tempdir()
        .unwrap();
    let user = match place::is_root()
        .and_then(|()| image::busybox())
        .and_then(|_| User::new(folder.path()))
    {
        Ok(user) => user,
        Err(why) => return skip(test, &why),
    };
    // podman wants to raise limits, which not every machine allows.
    fs::write(
        folder.path().join("containers.conf"),
        "[containers]\ndefault_ulimits = [\"nofile=1024:2048\", \"nproc=4096:4096\"]\n\
         [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n",
    )
    .unwrap();
    let archive = text(&image::write_root_archive(folder.path()));
    user.own(folder.path());
    let podman = Podman {
        folder: folder.path(),
        user,
    };
    podman.call(&["import", "-q", &archive, "busybox"]).ok();

    let run = |args: &[&str]| {
        let words = ["run", "--rm", "--network", "none", "localhost/busybox"];
        podman.call(&[&words[..], args].concat())
    };
    let script = "id -u; sed 1d /proc/self/uid_map | tr -s ' '; echo x >/dev/null && exit 7";
    let ran = run(&["sh", "-c", script]);
    assert_eq!(ran.code(), 7, "{ran}");
    let (first, count) = podman.user.subordinate;
    assert_eq!(ran.stdout, format!("0\n 1 {first} {count}\n"), "{ran}");

    let words = [
        "run",
        "-d",
        "--name",
        "box",
        "--network",
        "none",
        "localhost/busybox",
    ];
    podman.call(&[&words[..], &["sleep", "600"]].concat()).ok();
    assert_eq!(
        podman
            .call(&["exec", "--user", "5", "box", "id", "-u"])
            .ok(),
        "5\n"
    );
    assert_eq!(
        podman.call(&["exec", "box", "sh", "-c", "exit 3"]).code(),
        3
    );
    assert!(podman.call(&["top", "box"]).ok().contains("sleep 600"));
    let words = ["run", "--rm", "--network", "none", "--pid", "container:box"];
    let seen = [&words[..], &["localhost/busybox", "cat", "/proc/1/cmdline"]].concat();
    assert_eq!(podman.call(&seen).ok(), "sleep\x00600\x00");
    podman.call(&["kill", "box"]).ok();
    assert_eq!(podman.call(&["wait", "box"]).ok(), "137\n");
    podman.call(&["rm", "box"]).ok();
    let state = podman.user.runtime_dir.join("holdfast");
    assert!(
        leaks::states_in(&state).is_empty(),
        "{:?}",
        leaks::states_in(&state)
    );
}
