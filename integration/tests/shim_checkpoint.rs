//! Checkpoint and restore through the shim. The criu is the double of `src/bin/fake_criu`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message as _, MessageField};
use containerd_shim_protos::shim::oci::CheckpointOptions;
use holdfast_integration::deadline;
use holdfast_integration::lone::{Faulty, Lone};
use holdfast_integration::runtime::{Kind, Runtime};
use holdfast_integration::scratch::{LIMIT, text};
use holdfast_integration::shim::{Refused, Shim, runc_options};
use holdfast_integration::skip;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// A shim whose runtime finds the double.
struct Pod {
    lone: Lone,
    criu: tempfile::TempDir,
}

impl Pod {
    fn new(test: &str) -> Option<Self> {
        let double = Path::new(env!("CARGO_BIN_EXE_fake_criu"));
        if !double.exists() {
            skip(test, "the double of criu is not on this machine");
            return None;
        }
        let criu = tempfile::tempdir().unwrap();
        symlink(double, criu.path().join("criu")).unwrap();
        let folder = text(criu.path());
        let path = format!("{folder}:{}", std::env::var("PATH").unwrap());
        let environment = [("PATH", path.as_str()), ("FAKE_CRIU_DIR", folder.as_str())];
        let lone = Lone::start(test, &environment, None)?;
        Some(Self { lone, criu })
    }

    /// What criu was asked for.
    fn asked(&self, name: &str) -> Value {
        let text = fs::read(self.criu.path().join(format!("{name}.json"))).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    fn images(&self) -> PathBuf {
        self.lone.path("images")
    }

    fn checkpoint(&self, options: &CheckpointOptions) -> Result<(), Refused> {
        let mut request = api::CheckpointTaskRequest::new();
        request.id = "box".to_owned();
        request.path = text(&self.images());
        let mut any = Any::new();
        any.type_url = "containerd.runc.v1.CheckpointOptions".to_owned();
        any.value = options.write_to_bytes().unwrap();
        request.options = MessageField::some(any);
        self.lone
            .shim
            .call::<_, api::Empty>("Checkpoint", &request)
            .map(drop)
    }

    fn create_from_images(&self, options: Option<&Any>) -> Result<u32, Refused> {
        let mut request = self.lone.create_request("box", options);
        request.checkpoint = text(&self.images());
        self.lone
            .shim
            .call::<_, api::CreateTaskResponse>("Create", &request)
            .map(|created| created.pid)
    }

    /// Images, and no container.
    fn dump(&self) {
        self.lone.run(None);
        let mut options = CheckpointOptions::new();
        options.exit = true;
        self.checkpoint(&options).unwrap();
        assert_eq!(self.lone.shim.wait("box", "").unwrap(), 137);
        self.lone.shim.delete("box", "").unwrap();
        self.lone.assert_nothing_left("the dump");
        assert!(self.images().join("inventory.img").exists());
    }
}

fn command_of(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

/// The double lets it go on, and it becomes what it was.
#[track_caller]
fn assert_runs(pid: u32) {
    let runs = deadline::within(LIMIT, || {
        (command_of(pid) == "/bin/sleep 600 ").then_some(())
    });
    assert!(runs.is_some(), "process {pid} is {:?}", command_of(pid));
}

#[test]
fn the_options_reach_criu() {
    let Some(pod) = Pod::new("the_options_reach_criu") else {
        return;
    };
    pod.lone.run(None);
    let mut options = CheckpointOptions::new();
    options.open_tcp = true;
    options.external_unix_sockets = true;
    options.terminal = true;
    options.file_locks = true;
    options.cgroups_mode = "soft".to_owned();
    options.empty_namespaces = vec!["network".to_owned()];
    options.work_path = text(&pod.lone.path("work"));
    pod.checkpoint(&options).unwrap();
    let asked = &pod.asked("dump")["opts"];
    for (name, value) in [
        ("tcp_established", json!(1)),
        ("ext_unix_sk", json!(1)),
        ("shell_job", json!(1)),
        ("file_locks", json!(1)),
        ("leave_running", json!(1)),
    ] {
        assert_eq!(asked[name], value, "{name}: {asked}");
    }
    assert!(pod.lone.path("work/dump.log").exists());
    // It has been left running.
    assert_eq!(pod.lone.shim.state("box", "").unwrap().status.value(), 2);
    pod.lone.end("box");
    pod.lone.finish();
}

#[test]
fn a_failed_checkpoint_leaves_the_container_and_names_the_log() {
    let Some(pod) = Pod::new("a_failed_checkpoint") else {
        return;
    };
    pod.lone.run(None);
    fs::write(pod.criu.path().join("fail"), "unsupported socket").unwrap();
    let refused = pod.checkpoint(&CheckpointOptions::new()).unwrap_err();
    let log = pod.lone.bundle_path("box").join("criu-dump.log");
    let named = format!("path= {}", log.display());
    assert!(refused.message.ends_with(&named), "{refused:?}");
    assert!(refused.message.contains("criu failed"), "{refused:?}");
    assert!(
        fs::read_to_string(log)
            .unwrap()
            .contains("unsupported socket")
    );
    assert_eq!(pod.lone.shim.state("box", "").unwrap().status.value(), 2);
    pod.lone.end("box");
    pod.lone.finish();
}

/// Holdfast, and a runtime that does not know the shim's barrier.
fn runtimes(pod: &Pod) -> Vec<Option<Any>> {
    let mut all = vec![None];
    if let Ok(runc) = Runtime::find(Kind::Runc) {
        let program = PathBuf::from(&runc.words()[0]);
        all.push(Some(runc_options(&program, &pod.lone.path("state"))));
    }
    all
}

/// A crash of the shim, which goes on in its next image.
fn crash(shim: &Shim) {
    // Images that live for less than half a second are a loop of crashes, which is another test.
    std::thread::sleep(Duration::from_millis(600));
    let pid = Pid::from_raw(shim.pid(""));
    let before = images_of(pid);
    kill(pid, Signal::SIGSEGV).unwrap();
    deadline::eventually("the shim executes itself again", LIMIT, || {
        (images_of(pid) != before).then_some(())
    });
}

/// Of an image of the shim: every execve(2) has its own random bytes, and moves the stack.
fn images_of(pid: Pid) -> Vec<u8> {
    fs::read(format!("/proc/{pid}/auxv")).unwrap_or_default()
}

#[test]
fn a_restored_container_runs_from_start_on() {
    let Some(pod) = Pod::new("a_restored_container") else {
        return;
    };
    pod.dump();
    let shim = &pod.lone.shim;
    for options in runtimes(&pod) {
        let _ = fs::remove_file(pod.criu.path().join("restore.json"));
        assert_eq!(pod.create_from_images(options.as_ref()).unwrap(), 0);
        // Created: there are images and no process, whatever the runtime.
        let state = shim.state("box", "").unwrap();
        assert_eq!((state.status.value(), state.pid), (1, 0));
        assert_eq!(shim.pids("box").unwrap(), [] as [u32; 0]);
        assert!(!pod.criu.path().join("restore.json").exists());
        let refused = shim.exec("box", "exec", &["true"]).unwrap_err();
        assert_eq!(
            (refused.code, refused.message.as_str()),
            (2, "cannot exec in a created state")
        );
        let pid = shim.start("box", "").unwrap();
        let state = shim.state("box", "").unwrap();
        assert_eq!((state.status.value(), state.pid), (2, pid));
        assert_runs(pid);
        assert_eq!(shim.pids("box").unwrap(), [pid]);
        assert_eq!(
            pod.asked("restore")["request"]["opts"]["rst_sibling"],
            json!(1)
        );
        shim.kill("box", "", 9).unwrap();
        assert_eq!(shim.wait("box", "").unwrap(), 137);
        assert_eq!(shim.delete("box", "").unwrap().exit_status, 137);
        pod.lone.assert_nothing_left("the restore");
    }
    pod.lone.finish();
}

#[test]
fn a_restored_container_that_is_not_started_can_be_deleted() {
    let Some(pod) = Pod::new("a_restored_container_that_is_not_started") else {
        return;
    };
    pod.dump();
    let shim = &pod.lone.shim;
    for options in runtimes(&pod) {
        pod.create_from_images(options.as_ref()).unwrap();
        // There is nothing to kill, and clients take that for what they wanted.
        assert_eq!(shim.kill("box", "", 9).unwrap_err().code, 5);
        assert_eq!(shim.delete("box", "").unwrap().pid, 0);
        assert_eq!(shim.state("box", "").unwrap_err().code, 5);
        pod.lone.assert_nothing_left("the delete");
        // And it can be restored again.
        pod.create_from_images(options.as_ref()).unwrap();
        shim.start("box", "").unwrap();
        pod.lone.end("box");
        pod.lone.assert_nothing_left("the end");
    }
    pod.lone.finish();
}

#[test]
fn a_restored_container_outlives_crashes_of_the_shim() {
    let Some(pod) = Pod::new("a_restored_container_outlives_crashes") else {
        return;
    };
    pod.dump();
    let shim = &pod.lone.shim;
    for options in runtimes(&pod) {
        pod.create_from_images(options.as_ref()).unwrap();
        crash(shim);
        assert_eq!(shim.state("box", "").unwrap().status.value(), 1);
        let pid = shim.start("box", "").unwrap();
        crash(shim);
        assert_eq!(shim.state("box", "").unwrap().pid, pid);
        assert_runs(pid);
        pod.lone.end("box");
        pod.lone.assert_nothing_left("the end");
    }
    // While criu is at work: the next image goes on with it.
    fs::write(pod.criu.path().join("slow"), "").unwrap();
    pod.create_from_images(None).unwrap();
    let pid = std::thread::scope(|scope| {
        let starting = scope.spawn(|| Shim::dial(&pod.lone.address).start("box", ""));
        deadline::eventually("criu is at work", LIMIT, || {
            pod.criu.path().join("at-work").exists().then_some(())
        });
        crash(shim);
        fs::remove_file(pod.criu.path().join("slow")).unwrap();
        starting.join().unwrap().unwrap()
    });
    assert_eq!(shim.state("box", "").unwrap().pid, pid);
    assert_eq!(shim.pids("box").unwrap(), [pid]);
    pod.lone.end("box");
    pod.lone.finish();
}

#[test]
fn a_restore_that_fails_says_why_and_can_be_tried_again() {
    let Some(pod) = Pod::new("a_restore_that_fails") else {
        return;
    };
    pod.dump();
    let shim = &pod.lone.shim;
    for options in runtimes(&pod) {
        pod.create_from_images(options.as_ref()).unwrap();
        let fail = pod.criu.path().join("fail");
        fs::write(&fail, "pid 1 is taken").unwrap();
        let refused = shim.start("box", "").unwrap_err();
        assert!(
            refused.message.starts_with("OCI runtime restore failed: "),
            "{refused:?}"
        );
        assert_eq!(refused.code, 2, "{refused:?}");
        if options.is_none() {
            assert!(refused.message.contains("pid 1 is taken"), "{refused:?}");
        }
        let state = shim.state("box", "").unwrap();
        assert_eq!((state.status.value(), state.pid), (1, 0));
        fs::remove_file(&fail).unwrap();
        let pid = shim.start("box", "").unwrap();
        assert_eq!(shim.pids("box").unwrap(), [pid]);
        pod.lone.end("box");
        // A delete after nothing but failures.
        pod.create_from_images(options.as_ref()).unwrap();
        fs::write(&fail, "pid 1 is taken").unwrap();
        shim.start("box", "").unwrap_err();
        fs::remove_file(&fail).unwrap();
        shim.delete("box", "").unwrap();
        pod.lone.assert_nothing_left("the refusal");
    }
    // A runtime without the verb: Start says so in its words.
    if let Ok(crun) = Runtime::find(Kind::Crun) {
        let program = Faulty::new(&pod.lone.path(""), &crun).program;
        let options = runc_options(&program, &pod.lone.path("state"));
        pod.create_from_images(Some(&options)).unwrap();
        let refused = shim.start("box", "").unwrap_err();
        assert!(
            refused.message.starts_with("OCI runtime restore failed: "),
            "{refused:?}"
        );
        shim.delete("box", "").unwrap();
    }
    pod.lone.finish();
}
