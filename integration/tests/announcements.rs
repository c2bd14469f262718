//! A stopped task that nobody deletes: its exit, though acknowledged, is told again after a while, for a client that has
//! missed it. The others must not mind: containerd's CRI plugin is not told of exits at all, and docker takes the second
//! one for what it is.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use holdfast_integration::containerd::{Containerd, Extra, Version, peer};
use holdfast_integration::deadline::{self, Finished, eventually};
use holdfast_integration::events::{Event, Subscriber};
use holdfast_integration::scratch::text;
use holdfast_integration::{image, leaks, place, skip};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn an_undeleted_task_is_announced_again_and_cri_does_not_hear_it_1_6() {
    announced_again(Version::V1_6);
}

#[test]
fn an_undeleted_task_is_announced_again_and_cri_does_not_hear_it_2_1() {
    announced_again(Version::V2_1);
}

/// Every exit of init: pid, status and time.
fn exits(events: &[Event]) -> Vec<(u64, u64, String)> {
    let of_init = |event: &&Event| event.topic == "/tasks/exit" && event.text("id") == "box";
    events
        .iter()
        .filter(of_init)
        .map(|event| {
            let (pid, status) = (event.number("pid"), event.number("exit_status"));
            (pid, status, event.body["exited_at"].to_string())
        })
        .collect()
}

fn announced_again(version: Version) {
    const TEST: &str = "an_undeleted_task_is_announced_again";
    if peer() {
        return skip(TEST, "containerd's own shim tells an exit once");
    }
    let drop_in = tempfile::NamedTempFile::new().unwrap();
    fs::write(drop_in.path(), "[debug]\n  level = \"debug\"\n").unwrap();
    let extra = Extra {
        imports: vec![drop_in.path().to_owned()],
        cri: true,
        environment: vec![("HOLDFAST_DEADLINE_ANNOUNCE", "200ms".to_owned())],
        ..Extra::default()
    };
    let Some(containerd) = Containerd::start(version, TEST, &extra) else {
        return;
    };
    let subscriber = Subscriber::new(&containerd);
    let pid = containerd.start_task("box", &[], &["sh", "-c", "exit 7"]);
    let events = subscriber.until("the exit, three times", LIMIT, |events| {
        exits(events).len() >= 3
    });
    let told = exits(&events);
    let (first_pid, status, _) = told[0].clone();
    assert_eq!((first_pid, status), (u64::try_from(pid).unwrap(), 7));
    assert!(told.iter().all(|one| *one == told[0]), "{told:?}");
    assert_eq!(containerd.task("box").unwrap().status, "STOPPED");
    // Deleted, it is not told of any more; and the deletion comes last.
    containerd.ctr(&["tasks", "delete", "box"]);
    containerd.ctr_ok(&["containers", "delete", "box"]);
    let events = subscriber.until("the deletion", LIMIT, |events| {
        events.iter().any(|event| event.topic == "/tasks/delete")
    });
    assert_eq!(events.last().unwrap().topic, "/tasks/delete");
    // CRI says which events it hears. Of an image it does, of an exit it does not.
    let log = containerd.log();
    let heard = |topic: &str| {
        log.lines()
            .filter(|line| line.contains("Received containerd event") && line.contains(topic))
            .count()
    };
    assert!(heard("/images/") > 0, "the CRI plugin says nothing");
    assert_eq!(heard("/tasks/exit"), 0);
    drop(subscriber);
    containerd.assert_nothing_left();
}

/// A private dockerd on a private containerd, in which our shim has the name of containerd's own.
struct Docker<'a> {
    containerd: &'a Containerd,
    daemon: Child,
    client: PathBuf,
    cgroup: String,
    /// Whether its key was there before: dockerd makes one and cannot be told where.
    had_key: bool,
}

const KEY: &str = "/etc/docker/key.json";

impl<'a> Docker<'a> {
    fn start(containerd: &'a Containerd) -> Result<Self, &'static str> {
        let program = place::program("dockerd").ok_or("dockerd is not installed")?;
        let client = place::program("docker").ok_or("docker is not installed")?;
        let at = |name: &str| text(&containerd.path(name));
        let log = File::create(at("dockerd.log")).unwrap();
        let cgroup = place::unique("holdfast-test");
        let had_key = std::path::Path::new(KEY).exists();
        fs::write(at("daemon.json"), "{}").unwrap();
        let daemon = Command::new(program)
            .args(["--config-file", &at("daemon.json")])
            .args(["--containerd", &text(&containerd.address())])
            .args(["--containerd-namespace", &containerd.namespace])
            .args(["--data-root", &at("data"), "--exec-root", &at("exec")])
            .args(["-H", &format!("unix://{}", at("docker.sock"))])
            .args(["--pidfile", &at("docker.pid"), "--group", "root"])
            .args([
                "--iptables=false",
                "--ip6tables=false",
                "--ip-forward=false",
            ])
            .args(["--bridge=none", "--cgroup-parent", &format!("/{cgroup}")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap();
        let docker = Self {
            containerd,
            daemon,
            client,
            cgroup,
            had_key,
        };
        eventually("dockerd answers", LIMIT, || {
            docker
                .containerd
                .path("docker.sock")
                .exists()
                .then_some(())?;
            docker.call(&["version"]).status.success().then_some(())
        });
        let archive = image::write_root_archive(&containerd.path("opt"));
        docker.call(&["import", &text(&archive), "busybox"]).ok();
        Ok(docker)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.client);
        let socket = text(&self.containerd.path("docker.sock"));
        command.arg("-H").arg(format!("unix://{socket}"));
        command.args(args).env("HOME", self.containerd.path("home"));
        command
    }

    #[track_caller]
    fn call(&self, args: &[&str]) -> Finished {
        deadline::run(&mut self.command(args), LIMIT)
    }

    fn inspect(&self, what: &str) -> String {
        let format = format!("{{{{{what}}}}}");
        let said = self.call(&["inspect", "-f", &format, "box"]);
        said.ok().trim().to_owned()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.daemon.id()).unwrap());
        kill(pid, signal).unwrap();
    }

    fn log(&self) -> String {
        fs::read_to_string(self.containerd.path("dockerd.log")).unwrap_or_default()
    }
}

impl Drop for Docker<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("dockerd said:\n{}", self.log());
        }
        self.signal(Signal::SIGCONT);
        self.signal(Signal::SIGTERM);
        if deadline::wait(&mut self.daemon, Duration::from_secs(20)).is_none() {
            let _ = self.daemon.kill();
            let _ = self.daemon.wait();
        }
        leaks::remove_cgroups(&self.cgroup);
        leaks::unmount_under(&self.containerd.path("exec"));
        leaks::unmount_under(&self.containerd.path("data"));
        if !self.had_key {
            let _ = fs::remove_file(KEY);
        }
    }
}

#[test]
fn docker_takes_a_repeated_exit_for_one() {
    const TEST: &str = "docker_takes_a_repeated_exit_for_one";
    if peer() {
        return skip(TEST, "containerd's own shim tells an exit once");
    }
    let extra = Extra {
        environment: vec![("HOLDFAST_DEADLINE_ANNOUNCE", "200ms".to_owned())],
        ..Extra::default()
    };
    let Some(containerd) = Containerd::start(Version::V1_6, TEST, &extra) else {
        return;
    };
    let first = containerd.programs_first();
    fs::create_dir(&first).unwrap();
    // docker 20.10 asks for this shim and no other.
    std::os::unix::fs::symlink(
        place::built("containerd-shim-holdfast-v2"),
        first.join("containerd-shim-runc-v2"),
    )
    .unwrap();
    fs::create_dir_all(containerd.path("opt")).unwrap();
    let docker = match Docker::start(&containerd) {
        Ok(docker) => docker,
        Err(why) => return skip(TEST, why),
    };
    let subscriber = Subscriber::new(&containerd);
    let exits = |events: &[Event]| {
        let of_it = |event: &&Event| event.topic == "/tasks/exit";
        events.iter().filter(of_it).count()
    };
    let script = "read x; exit 7";
    let flags = ["run", "-d", "-i", "--name", "box", "--network", "none"];
    docker
        .call(&[&flags[..], &["busybox", "sh", "-c", script]].concat())
        .ok();
    let pid: i32 = docker.inspect(".State.Pid").parse().unwrap();
    // docker deletes a task as soon as it has heard of its end, so it must not hear for a while.
    docker.signal(Signal::SIGSTOP);
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    subscriber.until("the exit, three times", LIMIT, |events| exits(events) >= 3);
    docker.signal(Signal::SIGCONT);
    eventually("docker knows that it has ended", LIMIT, || {
        (docker.inspect(".State.Status") == "exited").then_some(())
    });
    assert_eq!(docker.inspect(".State.ExitCode"), "137");
    subscriber.until("the deletion", LIMIT, |events| {
        events.iter().any(|event| event.topic == "/tasks/delete")
    });
    // One death, and the next life is not touched by an exit of the last one.
    docker.call(&["start", "box"]).ok();
    assert_eq!(docker.inspect(".State.Status"), "running");
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() + 1;
    let until = format!("--until={now}");
    let died = docker.call(&["events", "--since=0", &until, "--filter", "event=die"]);
    assert_eq!(died.ok().lines().count(), 1, "{died}");
    assert_eq!(docker.inspect(".RestartCount"), "0");
    assert!(!docker.log().contains("level=error"), "{}", docker.log());
    docker.call(&["rm", "-f", "box"]).ok();
}
