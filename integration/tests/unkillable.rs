//! Incident F: a process that SIGKILL does not end. Where a frozen cgroup of the container holds
//! it, it is thawed; where nothing can be done, Kill and Delete say which process it is and where
//! it sleeps, instead of a success that is none.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use holdfast_integration::containerd::{Containerd, peer};
use holdfast_integration::deadline::{self, eventually};
use holdfast_integration::leaks::{self, is_alive};
use holdfast_integration::shim::Shim;
use holdfast_integration::{on_containerds, place, skip};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

on_containerds! {
    who_waits_for_a_dead_file_server_is_named;
    a_frozen_nested_cgroup_does_not_keep_its_container;
    what_cannot_die_is_named_by_kill_and_delete;
}

/// A FUSE file system whose server reads every question, and answers only what a mount needs: whoever
/// looks for a file in it sleeps, and no signal wakes him, until the server is gone.
struct DeadServer {
    at: PathBuf,
}

impl DeadServer {
    /// None, with a word on the terminal, where there is no FUSE.
    fn mount(test: &str, at: PathBuf) -> Option<Self> {
        let device = File::options().read(true).write(true).open("/dev/fuse");
        // In the guest it is a module, which the device's number would load if the device were there.
        let device = device.or_else(|_| {
            let _ = Command::new("modprobe").arg("fuse").status();
            File::options().read(true).write(true).open("/dev/fuse")
        });
        let Ok(device) = device else {
            skip(test, "no /dev/fuse");
            return None;
        };
        fs::create_dir_all(&at).unwrap();
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
            device.as_raw_fd()
        );
        let none = MsFlags::empty();
        if let Err(errno) = mount(
            Some("dead"),
            &at,
            Some("fuse"),
            none,
            Some(options.as_str()),
        ) {
            skip(test, &format!("mount of a fuse file system: {errno}"));
            return None;
        }
        std::thread::spawn(move || serve(device));
        Some(Self { at })
    }

    /// The end of the connection: everybody who waits gets an error.
    fn end(&self) {
        let _ = umount2(&self.at, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH);
    }
}

impl Drop for DeadServer {
    fn drop(&mut self) {
        self.end();
    }
}

/// Until the connection ends. Layouts: the kernel's `linux/fuse.h`.
fn serve(mut device: File) {
    const LOOKUP: u32 = 1;
    const GETATTR: u32 = 3;
    const INIT: u32 = 26;
    let mut request = vec![0u8; 1 << 17];
    while let Ok(len) = device.read(&mut request) {
        let word = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().unwrap());
        let (opcode, unique) = (word(4), &request[8..16]);
        let mut body = Vec::new();
        let mut error = 0i32;
        match opcode {
            INIT => {
                let words = [7u32, 31, 0, 0, 0, 4096, 1];
                body.extend(words.iter().flat_map(|word| word.to_le_bytes()));
                body.resize(64, 0);
            }
            GETATTR => {
                // Valid for an hour; the root folder, and nothing else is ever known.
                body.extend(3600u64.to_le_bytes());
                body.resize(16, 0);
                body.extend(1u64.to_le_bytes());
                body.resize(16 + 60, 0);
                body.extend(0o40755u32.to_le_bytes());
                body.extend(2u32.to_le_bytes());
                body.resize(16 + 88, 0);
            }
            LOOKUP => continue,
            _ => error = -nix::libc::ENOSYS,
        }
        assert!(len >= 40, "a short request");
        let mut answer = u32::try_from(16 + body.len())
            .unwrap()
            .to_le_bytes()
            .to_vec();
        answer.extend(error.to_le_bytes());
        answer.extend(unique);
        answer.extend(body);
        // To what wants none (FORGET, INTERRUPT) the kernel answers with an error.
        let _ = device.write(&answer);
    }
}

fn who_waits_for_a_dead_file_server_is_named(containerd: &Containerd) {
    const TEST: &str = "who_waits_for_a_dead_file_server";
    if peer() {
        return;
    }
    let Some(server) = DeadServer::mount(TEST, containerd.path("dead")) else {
        return;
    };
    let bind = format!(
        "type=bind,src={},dst=/dead,options=rbind",
        server.at.display()
    );
    let flags = ["--mount", bind.as_str()];
    let init = containerd.start_task("box", &flags, &["cat", "/dead/file"]);
    let shim = Shim::of(containerd, "box");
    eventually("it waits for the server", LIMIT, || {
        let wchan = fs::read_to_string(format!("/proc/{init}/wchan")).ok()?;
        let state = fs::read_to_string(format!("/proc/{init}/stack")).unwrap_or_default();
        (wchan.contains("fuse") || wchan.contains("request_wait") || state.contains("fuse"))
            .then_some(())
    });
    let began = Instant::now();
    let refused = shim.kill("box", "", 9).unwrap_err();
    assert!(began.elapsed() < LIMIT, "{:?}", began.elapsed());
    assert_eq!(refused.code, 9, "{refused:?}");
    for part in [
        &format!("pid {init} (cat)") as &str,
        "state D",
        "cat /dead/file",
    ] {
        assert!(refused.message.contains(part), "{part:?}: {refused:?}");
    }
    let began = Instant::now();
    let refused = shim.delete("box", "").unwrap_err();
    assert!(began.elapsed() < LIMIT, "{:?}", began.elapsed());
    assert_eq!(refused.code, 9, "{refused:?}");
    assert!(
        refused.message.contains(&format!("pid {init} (cat)")),
        "{refused:?}"
    );
    assert_eq!(shim.state("box", "").unwrap().status.value(), 2);
    // And whoever asks about the node hears of it, too.
    let check = deadline::run(
        Command::new(place::built("holdfast")).args(["check", "--json"]),
        Duration::from_secs(30),
    );
    assert_eq!(check.code(), 3, "{check}");
    let report: serde_json::Value = serde_json::from_str(&check.stdout).unwrap();
    let stuck = report["findings"].as_array().unwrap().iter();
    let stuck = stuck.filter(|finding| finding["check"] == "stuck-processes");
    let named = format!("pid {init} (cat), in kernel function ");
    assert!(
        stuck
            .map(ToString::to_string)
            .any(|one| one.contains(&named)),
        "{check}"
    );
    server.end();
    assert_eq!(shim.wait("box", "").unwrap(), 137);
    assert!(!is_alive(init));
    containerd.ctr_ok(&["tasks", "delete", "--force", "box"]);
    containerd.ctr_ok(&["containers", "delete", "box"]);
}

const FREEZER: &str = "/sys/fs/cgroup/freezer";
const LIMIT: Duration = Duration::from_secs(10);

/// A frozen cgroup of the v1 freezer or of v2, thawed and removed at the end.
struct Frozen(PathBuf);

/// File, word and what is read back, to freeze and to thaw.
fn words(
    cgroup: &Path,
) -> (
    &'static str,
    [&'static str; 2],
    (&'static str, &'static str),
) {
    if cgroup.starts_with(FREEZER) {
        let file = "freezer.state";
        (file, ["FROZEN", "THAWED"], (file, "FROZEN"))
    } else {
        ("cgroup.freeze", ["1", "0"], ("cgroup.events", "frozen 1"))
    }
}

impl Frozen {
    fn holding(cgroup: PathBuf, pid: i32) -> Self {
        fs::create_dir(&cgroup).unwrap();
        let frozen = Self(cgroup);
        fs::write(frozen.0.join("cgroup.procs"), pid.to_string()).unwrap();
        let (file, [freeze, _], (told_in, told)) = words(&frozen.0);
        fs::write(frozen.0.join(file), freeze).unwrap();
        eventually("the cgroup is frozen", LIMIT, || {
            let text = fs::read_to_string(frozen.0.join(told_in)).ok()?;
            text.lines().any(|line| line == told).then_some(())
        });
        frozen
    }

    fn thaw(&self) {
        let (file, [_, thaw], _) = words(&self.0);
        let _ = fs::write(self.0.join(file), thaw);
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.thaw();
        leaks::remove_busy_folder(&self.0, LIMIT);
    }
}

fn has_freezer(test: &str) -> bool {
    let there = Path::new(FREEZER).join("cgroup.procs").exists();
    if !there {
        skip(test, "no cgroup v1 freezer on this machine");
    }
    there
}

/// The cgroup of a process in the v1 freezer; in v2 where there is none.
fn freezer_of(pid: i32) -> PathBuf {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let of = |what: &str| text.lines().find_map(|line| Some(line.split_once(what)?.1));
    match of(":freezer:") {
        Some(path) => Path::new(FREEZER).join(path.trim_start_matches('/')),
        None => Path::new("/sys/fs/cgroup").join(of("0::/").unwrap()),
    }
}

fn a_frozen_nested_cgroup_does_not_keep_its_container(containerd: &Containerd) {
    if peer() {
        return;
    }
    let init = containerd.start_task("box", &[], &["sh", "-c", "sleep 599 & wait"]);
    let shim = Shim::of(containerd, "box");
    let child = eventually("the child runs", LIMIT, || {
        shim.pids("box")
            .unwrap()
            .into_iter()
            .map(|pid| i32::try_from(pid).unwrap())
            .find(|pid| *pid != init)
    });
    let own = freezer_of(init);
    let roots = [Path::new(FREEZER), Path::new("/sys/fs/cgroup")];
    assert!(
        !roots.contains(&own.as_path()),
        "the container has no cgroup of its own"
    );
    let nested = Frozen::holding(own.join("nested"), child);
    let began = Instant::now();
    shim.kill("box", "", 9).unwrap();
    assert_eq!(shim.wait("box", "").unwrap(), 137);
    assert!(began.elapsed() < Duration::from_secs(5));
    drop(nested);
    containerd.ctr_ok(&["tasks", "delete", "--force", "box"]);
    containerd.ctr_ok(&["containers", "delete", "box"]);
}

fn what_cannot_die_is_named_by_kill_and_delete(containerd: &Containerd) {
    if peer() || !has_freezer("what_cannot_die") {
        return;
    }
    let init = containerd.start_task("box", &[], &["sleep", "598"]);
    let shim = Shim::of(containerd, "box");
    // Not below the container's cgroup, so it is not the shim's to thaw.
    let elsewhere = Frozen::holding(
        Path::new(FREEZER).join(place::unique("holdfast-test-frozen")),
        init,
    );
    for _ in 0..2 {
        let began = Instant::now();
        let refused = shim.kill("box", "", 9).unwrap_err();
        let took = began.elapsed();
        assert!(took < Duration::from_secs(5), "{took:?}");
        assert_eq!(refused.code, 9, "{refused:?}");
        for part in [
            &format!("pid {init} (sleep)") as &str,
            "state D",
            "in kernel function",
            "sleep 598",
        ] {
            assert!(refused.message.contains(part), "{part:?}: {refused:?}");
        }
    }
    let began = Instant::now();
    let refused = shim.delete("box", "").unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(refused.code, 9, "{refused:?}");
    assert!(
        refused.message.contains("cannot delete a running process")
            && refused.message.contains(&format!("pid {init} (sleep)")),
        "{refused:?}"
    );
    // Others are not disturbed, and when the kernel lets go it ends by itself.
    assert_eq!(shim.state("box", "").unwrap().status.value(), 2);
    elsewhere.thaw();
    assert_eq!(shim.wait("box", "").unwrap(), 137);
    assert!(!is_alive(init));
    containerd.ctr_ok(&["tasks", "delete", "--force", "box"]);
    containerd.ctr_ok(&["containers", "delete", "box"]);
}
