//! `SystemdCgroup = true` under containerd: a container of a shim lives in a scope of systemd, with
//! every verb. Needs a machine that systemd has booted with pure cgroup v2 (`make test-v2`).

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message as _, MessageField};
use containerd_shim_protos::shim::oci::Options;
use holdfast_integration::containerd::Containerd;
use holdfast_integration::deadline;
use holdfast_integration::shim::Shim;
use holdfast_integration::{on_containerds, place, skip};
use serde_json::json;

on_containerds! {
    a_container_lives_in_a_scope;
}

const LIMIT: Duration = Duration::from_secs(60);

fn any(type_url: &str, value: Vec<u8>) -> Any {
    let mut any = Any::new();
    any.type_url = type_url.to_owned();
    any.value = value;
    any
}

fn show(unit: &str, property: &str) -> String {
    let mut command = Command::new("systemctl");
    command.args(["show", unit, "-p", property]);
    let said = deadline::run(&mut command, LIMIT).ok().trim().to_owned();
    let value = said.split_once('=').map(|(_, value)| value.to_owned());
    value.unwrap_or(said)
}

fn a_container_lives_in_a_scope(containerd: &Containerd) {
    let booted = Path::new("/run/systemd/system").is_dir()
        && Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    if !booted {
        let why = "no systemd with pure cgroup v2 runs here (make test-v2 boots one)";
        return skip("shim_systemd", why);
    }
    containerd.start_task("box", &[], &["sleep", "600"]);
    let shim = Shim::of(containerd, "box");
    let prefix = place::unique("holdfast-test");
    let unit = format!("{prefix}-scoped.scope");
    let dir = Path::new("/sys/fs/cgroup/system.slice").join(&unit);
    let file = |name: &str| {
        fs::read_to_string(dir.join(name))
            .unwrap()
            .trim()
            .to_owned()
    };

    let mut options = Options::new();
    options.systemd_cgroup = true;
    let options = any(
        "containerd.runc.v1.Options",
        options.write_to_bytes().unwrap(),
    );
    let bundle = shim.bundle_by_hand(containerd, "scoped").with(|spec| {
        spec["linux"]["cgroupsPath"] = json!(format!("system.slice:{prefix}:scoped"));
        spec["linux"]["resources"]["pids"] = json!({"limit": 50});
    });
    bundle.write();
    let pid = shim.create(&bundle, options).unwrap();
    assert_eq!(shim.start("scoped", "").unwrap(), pid);
    assert_eq!(show(&unit, "ActiveState"), "active");
    assert_eq!(file("cgroup.procs"), pid.to_string());
    assert_eq!(file("pids.max"), "50");

    shim.exec("scoped", "more", &["sleep", "600"]).unwrap();
    let more = shim.start("scoped", "more").unwrap().to_string();
    assert!(file("cgroup.procs").lines().any(|line| line == more));
    shim.kill("scoped", "more", 9).unwrap();
    assert_eq!(shim.wait("scoped", "more").unwrap(), 137);
    shim.delete("scoped", "more").unwrap();

    // What systemd has been told outlives its reload.
    let mut update = api::UpdateTaskRequest::new();
    update.id = "scoped".to_owned();
    update.resources = MessageField::some(any(
        "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources",
        json!({"pids": {"limit": 33}}).to_string().into_bytes(),
    ));
    let _: api::Empty = shim.call("Update", &update).unwrap();
    deadline::run(Command::new("systemctl").arg("daemon-reload"), LIMIT).ok();
    assert_eq!(file("pids.max"), "33");
    assert_eq!(show(&unit, "TasksMax"), "33");

    let mut stats = api::StatsRequest::new();
    stats.id = "scoped".to_owned();
    let metrics: api::StatsResponse = shim.call("Stats", &stats).unwrap();
    assert!(
        metrics.stats().type_url.contains("cgroups.v2"),
        "{metrics:?}"
    );
    assert!(!metrics.stats().value.is_empty());

    shim.kill("scoped", "", 9).unwrap();
    assert_eq!(shim.wait("scoped", "").unwrap(), 137);
    shim.delete("scoped", "").unwrap();
    assert!(!dir.exists());
    assert_eq!(show(&unit, "LoadState"), "not-found");
    containerd.end_task("box");
}
