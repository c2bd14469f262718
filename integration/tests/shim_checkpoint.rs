//! Checkpoint and restore through the shim. The criu is the double of `src/bin/fake_criu`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message as _, MessageField};
use containerd_shim_protos::shim::oci::CheckpointOptions;
use holdfast_integration::lone::Lone;
use holdfast_integration::runtime::{Kind, Runtime};
use holdfast_integration::scratch::text;
use holdfast_integration::shim::{Refused, runc_options};
use holdfast_integration::skip;
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

#[test]
fn a_restored_container_runs_from_start_on() {
    let Some(pod) = Pod::new("a_restored_container") else {
        return;
    };
    pod.dump();
    let shim = &pod.lone.shim;
    let pid = pod.create_from_images(None).unwrap();
    // Created: it stands still, as criu made it, and nothing can be executed in it.
    assert_eq!(shim.state("box", "").unwrap().status.value(), 1);
    assert!(command_of(pid).contains("swrk"), "{}", command_of(pid));
    let refused = shim.exec("box", "exec", &["true"]).unwrap_err();
    assert_eq!(
        (refused.code, refused.message.as_str()),
        (2, "cannot exec in a created state")
    );
    assert_eq!(shim.start("box", "").unwrap(), pid);
    assert_eq!(shim.state("box", "").unwrap().status.value(), 2);
    assert_eq!(shim.pids("box").unwrap(), [pid]);
    assert_eq!(
        pod.asked("restore")["request"]["opts"]["rst_sibling"],
        json!(1)
    );
    shim.kill("box", "", 9).unwrap();
    assert_eq!(shim.wait("box", "").unwrap(), 137);
    assert_eq!(shim.delete("box", "").unwrap().exit_status, 137);
    pod.lone.finish();
}

#[test]
fn a_restored_container_that_is_not_started_can_be_deleted() {
    let Some(pod) = Pod::new("a_restored_container_that_is_not_started") else {
        return;
    };
    pod.dump();
    let shim = &pod.lone.shim;
    let pid = pod.create_from_images(None).unwrap();
    assert_eq!(shim.delete("box", "").unwrap().pid, pid);
    assert_eq!(shim.state("box", "").unwrap_err().code, 5);
    pod.lone.assert_nothing_left("the delete");
    // Killed first, and so on.
    pod.create_from_images(None).unwrap();
    pod.lone.end("box");
    pod.lone.assert_nothing_left("the end");
    // And it can be restored yet again.
    let pid = pod.create_from_images(None).unwrap();
    assert_eq!(shim.start("box", "").unwrap(), pid);
    pod.lone.end("box");
    pod.lone.finish();
}

#[test]
fn a_restore_that_fails_says_why_and_leaves_nothing() {
    let Some(pod) = Pod::new("a_restore_that_fails") else {
        return;
    };
    pod.dump();
    fs::write(pod.criu.path().join("fail"), "pid 1 is taken").unwrap();
    let refused = pod.create_from_images(None).unwrap_err();
    assert!(
        refused.message.starts_with("OCI runtime restore failed: "),
        "{refused:?}"
    );
    assert!(refused.message.contains("pid 1 is taken"), "{refused:?}");
    assert_eq!(pod.lone.shim.state("box", "").unwrap_err().code, 5);
    pod.lone.assert_nothing_left("the refusal");
    // With a runtime that has no barrier it would run before Start.
    if let Ok(runc) = Runtime::find(Kind::Runc) {
        let program = PathBuf::from(&runc.words()[0]);
        let options = runc_options(&program, &pod.lone.path("state"));
        let refused = pod.create_from_images(Some(&options)).unwrap_err();
        assert_eq!(refused.code, 12, "{refused:?}");
    }
    pod.lone.finish();
}
