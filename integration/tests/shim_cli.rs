//! The shim's command line: what `start`, `delete`, `-info` and `-v` print, and what they do not.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use containerd_shim_protos::api;
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::Message as _;
use holdfast_integration::deadline::{self, Finished};
use holdfast_integration::leaks::processes_mentioning;
use holdfast_integration::scratch::text;
use holdfast_integration::shim::Shim;
use holdfast_integration::{image, place, skip};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(20);

/// A folder that looks like a bundle to the shim, and what containerd would pass.
struct Bundle {
    folder: TempDir,
    id: String,
}

impl Bundle {
    fn new(test: &str) -> Option<Self> {
        if let Err(why) = place::is_root() {
            skip(test, &why);
            return None;
        }
        let folder = tempfile::Builder::new()
            .prefix("holdfast-test-")
            .tempdir()
            .unwrap();
        std::fs::write(
            folder.path().join("config.json"),
            "{\"ociVersion\": \"1.0.2\"}",
        )
        .unwrap();
        Some(Self {
            folder,
            id: place::unique("box"),
        })
    }

    fn address(&self) -> String {
        text(&self.folder.path().join("containerd.sock"))
    }

    fn command(&self, id: &str) -> Command {
        let mut command = Command::new(place::built("containerd-shim-holdfast-v2"));
        command.args(["-namespace", "holdfast-test", "-address", &self.address()]);
        command.args(["-publish-binary", "/bin/false", "-id", id]);
        command.current_dir(self.folder.path());
        command.env("TTRPC_ADDRESS", format!("{}.ttrpc", self.address()));
        command.env("HOLDFAST_LEDGER_DIR", self.folder.path().join("ledger"));
        command.env("HOLDFAST_EVENTS_DIR", self.folder.path().join("events"));
        command
    }

    fn start(&self, id: &str, input: &[u8]) -> Finished {
        let file = self.folder.path().join("stdin");
        std::fs::write(&file, input).unwrap();
        let stdin = std::fs::File::open(file).unwrap();
        deadline::run_with_stdin(self.command(id).arg("start"), stdin.into(), LIMIT)
    }

    fn socket(&self, id: &str) -> PathBuf {
        let hashed = PathBuf::from(self.address()).join("holdfast-test").join(id);
        PathBuf::from("/run/containerd/s").join(image::digest(text(&hashed).as_bytes()))
    }

    /// Ends the server as containerd does, and looks that it went.
    fn shut_down(&self, address: &str) {
        let mut request = api::ShutdownRequest::new();
        request.id = self.id.clone();
        Shim::dial(address)
            .call::<_, api::Empty>("Shutdown", &request)
            .unwrap();
        deadline::eventually("the server ends", LIMIT, || {
            self.servers().is_empty().then_some(())
        });
        assert!(!self.socket(&self.id).exists(), "the socket is left");
    }

    /// Its keeper may not have executed it yet.
    #[track_caller]
    fn assert_one_server(&self) {
        let servers = deadline::eventually("a server", LIMIT, || {
            Some(self.servers()).filter(|servers| !servers.is_empty())
        });
        assert_eq!(servers.len(), 1, "{servers:?}");
    }

    fn servers(&self) -> Vec<i32> {
        let all = processes_mentioning(&self.address());
        all.iter()
            .filter(|p| !p.command.contains(" start"))
            .filter(|p| !p.is_keeper())
            .map(|p| p.pid)
            .collect()
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        for process in processes_mentioning(&self.address()) {
            let pid = nix::unistd::Pid::from_raw(process.pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        let _ = std::fs::remove_file(self.socket(&self.id));
    }
}

#[test]
fn an_answered_shutdown_outlives_a_crash() {
    let Some(bundle) = Bundle::new("an_answered_shutdown") else {
        return;
    };
    for _ in 0..20 {
        let address = bundle.start(&bundle.id, b"").ok().trim().to_owned();
        let shim = Shim::dial(&address);
        let pid = nix::unistd::Pid::from_raw(shim.pid(""));
        let mut request = api::ShutdownRequest::new();
        request.id = bundle.id.clone();
        shim.call::<_, api::Empty>("Shutdown", &request).unwrap();
        // It may have ended already.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSEGV);
        deadline::eventually("the server ends", LIMIT, || {
            bundle.servers().is_empty().then_some(())
        });
        assert!(!bundle.socket(&bundle.id).exists(), "the socket is left");
    }
}

#[test]
fn start_prints_the_address_and_nothing_else() {
    let Some(bundle) = Bundle::new("start_prints_the_address") else {
        return;
    };
    // containerd takes standard output and error together for the address.
    let started = bundle.start(&bundle.id, b"");
    let address = started.ok().trim().to_owned();
    assert_eq!(started.stderr, "", "{started}");
    assert_eq!(
        address,
        format!("unix://{}", text(&bundle.socket(&bundle.id)))
    );
    // containerd 1.6 and 1.7 look here after a restart.
    assert_eq!(
        std::fs::read_to_string(bundle.folder.path().join("address")).unwrap(),
        address
    );
    // Starting again finds the server that is there.
    let again = bundle.start(&bundle.id, b"");
    assert_eq!(again.ok().trim(), address);
    bundle.assert_one_server();
    bundle.shut_down(&address);
}

#[test]
fn a_member_of_a_pod_finds_the_pod_s_server() {
    // The first one is for groups that are no pods, and goes before the other.
    for (annotations, other) in [
        ("\"io.kubernetes.cri.sandbox-id\": \"POD\"", ""),
        ("\"io.containerd.runc.v2.group\": \"POD\"", ""),
        (
            "\"io.containerd.runc.v2.group\": \"POD\"",
            ", \"io.kubernetes.cri.sandbox-id\": \"another\"",
        ),
    ] {
        let Some(bundle) = Bundle::new("a_member_of_a_pod") else {
            return;
        };
        let config = format!(
            "{{\"ociVersion\": \"1.0.2\", \"annotations\": {{{}{other}}}}}",
            annotations.replace("POD", &bundle.id)
        );
        std::fs::write(bundle.folder.path().join("config.json"), config).unwrap();
        let first = bundle.start(&bundle.id, b"");
        let second = bundle.start("another-container", b"");
        assert_eq!(first.ok(), second.ok());
        assert_eq!(
            first.ok().trim(),
            format!("unix://{}", text(&bundle.socket(&bundle.id)))
        );
        bundle.assert_one_server();
        bundle.shut_down(first.ok().trim());
    }
}

#[test]
fn a_socket_that_nobody_serves_is_taken_over() {
    let Some(bundle) = Bundle::new("a_socket_that_nobody_serves") else {
        return;
    };
    std::fs::create_dir_all("/run/containerd/s").unwrap();
    drop(std::os::unix::net::UnixListener::bind(bundle.socket(&bundle.id)).unwrap());
    let started = bundle.start(&bundle.id, b"");
    bundle.shut_down(started.ok().trim());
}

#[test]
fn bootstrap_parameters_are_answered_in_kind() {
    let Some(bundle) = Bundle::new("bootstrap_parameters") else {
        return;
    };
    // containerd 2.3 and later.
    let mut parameters = BootstrapParams::new();
    parameters.instance_id = bundle.id.clone();
    parameters.namespace = "holdfast-test".to_owned();
    let file = bundle.folder.path().join("stdin");
    std::fs::write(&file, parameters.write_to_bytes().unwrap()).unwrap();
    let output = bundle
        .command(&bundle.id)
        .arg("start")
        .stdin(std::fs::File::open(file).unwrap())
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    let result = BootstrapResult::parse_from_bytes(&output.stdout).unwrap();
    assert_eq!(
        result.address,
        format!("unix://{}", text(&bundle.socket(&bundle.id)))
    );
    assert_eq!(result.protocol, "ttrpc");
    assert!((2..=3).contains(&result.version), "{result:?}");
    bundle.shut_down(&result.address);
}

#[test]
fn a_start_that_cannot_succeed_says_why() {
    let Some(bundle) = Bundle::new("a_start_that_cannot_succeed") else {
        return;
    };
    let mut command = Command::new(place::built("containerd-shim-holdfast-v2"));
    command.args(["-id", "box", "-address", &bundle.address(), "start"]);
    command.current_dir(bundle.folder.path());
    let refused = deadline::run(&mut command, LIMIT);
    assert_eq!(refused.code(), 1, "{refused}");
    let said = format!("{}{}", refused.stdout, refused.stderr);
    assert!(said.contains("namespace"), "{refused}");
}

#[test]
fn delete_of_what_nobody_knows_answers() {
    let Some(bundle) = Bundle::new("delete_of_what_nobody_knows") else {
        return;
    };
    let mut command = bundle.command(&bundle.id);
    command
        .arg("-bundle")
        .arg(bundle.folder.path())
        .arg("delete");
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let reply = api::DeleteResponse::parse_from_bytes(&output.stdout).unwrap();
    // Never a made-up pid: containerd's own shim answers 2^32 - 1 here.
    assert_eq!(reply.pid, 0, "{reply:?}");
}

#[test]
fn version_and_info_need_no_containerd() {
    let mut version = Command::new(place::built("containerd-shim-holdfast-v2"));
    let said = deadline::run(version.arg("-v"), LIMIT);
    assert!(said.ok().contains(env!("CARGO_PKG_VERSION")), "{said}");
    let mut info = Command::new(place::built("containerd-shim-holdfast-v2"));
    let mut child = info
        .arg("-info")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    // RuntimeInfo's first field is the name of the runtime.
    assert_eq!(
        output.stdout.first(),
        Some(&0x0a),
        "{:?}",
        String::from_utf8_lossy(&output.stdout)
    );
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(shown.contains("io.containerd.holdfast.v2"), "{shown:?}");
    assert!(
        shown.contains("ociVersionMin"),
        "without the runtime's features: {shown:?}"
    );
}
