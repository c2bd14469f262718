//! The options of a runtime handler, and the environment a shim is started with: each does what it
//! says.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message as _, MessageField};
use containerd_shim_protos::shim::oci::Options;
use holdfast_integration::leaks;
use holdfast_integration::lone::Lone;
use holdfast_integration::scratch::text;
use holdfast_integration::{deadline, place, skip};
use nix::sys::stat::Mode;

const LIMIT: Duration = Duration::from_secs(30);

fn options(change: impl FnOnce(&mut Options)) -> Any {
    let mut options = Options::new();
    change(&mut options);
    let mut any = Any::new();
    any.type_url = "containerd.runc.v1.Options".to_owned();
    any.value = options.write_to_bytes().unwrap();
    any
}

/// A runtime that writes down its arguments and environment, and does no more.
fn recorder(folder: &Path) -> PathBuf {
    let path = folder.join("recorder");
    let script = format!(
        "#!/bin/sh\necho \"$*\" >>'{0}/arguments'\nenv >'{0}/environment'\nexit 1\n",
        text(folder).trim_end_matches('/')
    );
    place::write_program(&path, &script);
    path
}

#[test]
fn the_runtime_s_own_options_reach_it() {
    let otel = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1"),
        ("NOTIFY_SOCKET", "/nowhere"),
    ];
    let Some(lone) = Lone::start("the_runtime_s_own_options", &otel, None) else {
        return;
    };
    let folder = lone.path("");
    let any = options(|options| {
        options.binary_name = text(&recorder(&folder));
        options.root = text(&lone.path("root"));
        options.no_pivot_root = true;
        options.no_new_keyring = true;
        options.systemd_cgroup = true;
    });
    lone.create("box", Some(&any)).unwrap_err();
    let arguments = fs::read_to_string(lone.path("arguments")).unwrap();
    let create = arguments.lines().next().unwrap();
    let root = format!("--root {}/{} ", text(&lone.path("root")), lone.namespace);
    assert!(create.starts_with(&root), "{create}");
    for word in [
        "--systemd-cgroup create ",
        "--no-pivot ",
        "--no-new-keyring ",
    ] {
        assert!(create.contains(word), "no {word:?} in {create}");
    }
    // What the create may have left is deleted the same way.
    let delete = arguments.lines().last().unwrap();
    assert!(
        delete.starts_with(&root) && delete.ends_with("delete --force box"),
        "{delete}"
    );
    let environment = fs::read_to_string(lone.path("environment")).unwrap();
    assert!(environment.contains("OTEL_EXPORTER_OTLP_ENDPOINT=http"));
    // systemd would take a word there for containerd's.
    assert!(!environment.contains("NOTIFY_SOCKET"), "{environment}");
    // For `delete`, should this shim be killed; nobody else is to read it.
    let kept = lone.bundle_path("box").join("options.json");
    assert_eq!(fs::metadata(&kept).unwrap().mode() & 0o777, 0o600);
    let kept: serde_json::Value =
        serde_json::from_slice(&fs::read(kept).unwrap()).expect("options.json");
    assert_eq!(kept["systemd_cgroup"], true);
    assert_eq!(kept["root"], text(&lone.path("root")));
    let server = fs::read(format!("/proc/{}/environ", lone.shim.pid(""))).unwrap();
    let server = String::from_utf8_lossy(&server);
    assert!(
        server.contains("OTEL_SERVICE_NAME=containerd-shim-box\0"),
        "{server}"
    );
    lone.finish();
}

#[test]
fn delete_takes_the_options_that_the_go_shim_has_written() {
    if let Err(why) = place::is_root() {
        return skip("delete_takes_the_options", &why);
    }
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("box");
    fs::create_dir(&bundle).unwrap();
    // As encoding/json of Go writes it: by field names of the protocol, empty ones left out, and
    // one that newer versions do not have.
    let options = r#"{"root":"/some/root","criu_path":"/usr/sbin/criu","task_api_version":3}"#;
    fs::write(bundle.join("options.json"), options).unwrap();
    fs::write(bundle.join("runtime"), text(&recorder(folder.path()))).unwrap();
    let mut delete = Command::new(place::built("containerd-shim-holdfast-v2"));
    delete
        .args(["-namespace", "holdfast-test", "-id", "box", "-address"])
        .arg(folder.path().join("containerd.sock"))
        .arg("-bundle")
        .arg(&bundle)
        .arg("delete")
        .current_dir(&bundle)
        .env("HOLDFAST_LEDGER_DIR", folder.path().join("ledger"));
    deadline::run(&mut delete, LIMIT).ok();
    let arguments = fs::read_to_string(folder.path().join("arguments")).unwrap();
    assert!(
        arguments.starts_with("--root /some/root/holdfast-test "),
        "{arguments}"
    );
    assert!(
        arguments.trim().ends_with("delete --force box"),
        "{arguments}"
    );
}

#[test]
fn the_shim_is_put_into_its_cgroup() {
    let parent = place::unique("holdfast-test-shims");
    let path = format!("/{parent}/shim");
    // It has to be there, as for containerd's own shim; a new one of cpuset can hold nobody.
    for hierarchy in leaks::hierarchies() {
        if place::is_root().is_ok() && !hierarchy.ends_with("cpuset") {
            fs::create_dir_all(hierarchy.join(path.trim_start_matches('/'))).unwrap();
        }
    }
    let any = options(|options| options.shim_cgroup.clone_from(&path));
    let Some(lone) = Lone::start("the_shim_is_put_into_its_cgroup", &[], Some(&any)) else {
        return;
    };
    let pid = lone.shim.pid("");
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let places: Vec<&str> = table
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .collect();
    assert!(places.contains(&path.as_str()), "{table}");
    // Its containers are not there.
    let init = lone.run(None);
    let members = leaks::cgroup_members(&parent);
    assert!(members.contains(&pid), "{members:?}");
    assert!(
        !members.contains(&i32::try_from(init).unwrap()),
        "{members:?}"
    );
    lone.end("box");
    lone.finish();
    // The test's own folder is what Lone clears; this cgroup is not in it.
    leaks::remove_cgroups(&parent);
}

#[test]
fn the_streams_belong_to_the_container_s_user() {
    const FIRST: u32 = 200_000;
    let change = |bundle: holdfast_integration::bundle::Bundle| bundle.user_namespace(FIRST);
    let Some(lone) = Lone::start_with("the_streams_belong", &[], None, change) else {
        return;
    };
    // To open a stream again, by name, takes the permission that its owner has.
    let script = "echo again >/dev/stdout; echo $? ; sleep 600";
    for (uid, said) in [(FIRST, "again\n0\n"), (0, "1\n")] {
        lone.bundle("box")
            .with(|spec| {
                let map = serde_json::json!([
                    {"containerID": 0, "hostID": FIRST, "size": 65536}
                ]);
                let linux = &mut spec["linux"];
                linux["uidMappings"] = map.clone();
                linux["gidMappings"] = map;
                let namespaces = linux["namespaces"].as_array_mut().unwrap();
                namespaces.push(serde_json::json!({"type": "user"}));
                spec["mounts"].as_array_mut().unwrap().retain(|mount| {
                    // Of the network namespace's owner alone.
                    mount["destination"] != "/sys"
                });
                spec["process"]["args"] = serde_json::json!(["sh", "-c", script]);
            })
            .write();
        let any = options(|options| {
            options.io_uid = uid;
            options.io_gid = uid;
        });
        let fifo = lone.path(&format!("out-{uid}"));
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        let reader = {
            let fifo = fifo.clone();
            std::thread::spawn(move || {
                use std::io::Read as _;
                let mut file = fs::File::open(fifo).unwrap();
                let mut text = vec![0; said.len()];
                file.read_exact(&mut text).unwrap();
                String::from_utf8(text).unwrap()
            })
        };
        let mut request = lone.create_request("box", Some(&any));
        request.stdout = text(&fifo);
        let created: api::CreateTaskResponse = lone.shim.call("Create", &request).unwrap();
        let stream = fs::metadata(format!("/proc/{}/fd/1", created.pid)).unwrap();
        assert_eq!((stream.uid(), stream.gid()), (uid, uid));
        lone.shim.start("box", "").unwrap();
        assert_eq!(reader.join().unwrap(), said, "with streams of {uid}");
        let mapped = fs::read_to_string(format!("/proc/{}/uid_map", created.pid)).unwrap();
        assert!(mapped.contains("200000"), "{mapped}");
        lone.end("box");
    }
    lone.finish();
}

#[test]
fn core_scheduling_is_asked_for() {
    let test = "core_scheduling_is_asked_for";
    let (Ok(()), Some(strace)) = (place::is_root(), place::program("strace")) else {
        return skip(test, "it needs root and strace");
    };
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), "{}").unwrap();
    for (value, asked) in [("1", true), ("", false)] {
        let trace = folder.path().join("trace");
        let mut start = Command::new(&strace);
        start
            .args(["-qq", "-e", "trace=prctl", "-o"])
            .arg(&trace)
            .arg(place::built("containerd-shim-holdfast-v2"))
            .args(["-namespace", "holdfast-test", "-id", &place::unique("core")])
            .arg("-address")
            .arg(folder.path().join("containerd.sock"))
            .arg("start")
            .current_dir(folder.path())
            .env("SCHED_CORE", value)
            .env("HOLDFAST_LEDGER_DIR", folder.path().join("ledger"));
        let started = deadline::run(&mut start, LIMIT);
        let trace = fs::read_to_string(trace).unwrap();
        let call = trace.lines().find(|line| line.contains("PR_SCHED_CORE"));
        assert_eq!(call.is_some(), asked, "{trace}");
        // Where the kernel cannot do it the start fails and says so: nobody is to believe in
        // a protection that is not there.
        if call.is_some_and(|call| !call.contains("= 0")) {
            assert!(started.failed().contains("SCHED_CORE"), "{started}");
            continue;
        }
        let address = started.ok().trim().to_owned();
        let shim = holdfast_integration::shim::Shim::dial(&address);
        let pid = shim.pid("");
        shim.call::<_, api::Empty>("Shutdown", &api::ShutdownRequest::new())
            .unwrap();
        deadline::eventually("the shim ends", LIMIT, || {
            (!leaks::is_alive(pid)).then_some(())
        });
    }
}

#[test]
fn an_any_of_another_type_is_invalid() {
    const INVALID_ARGUMENT: i32 = 3;
    let Some(lone) = Lone::start("an_any_of_another_type", &[], None) else {
        return;
    };
    let other = |type_url: &str, value: &[u8]| {
        let mut any = Any::new();
        any.type_url = type_url.to_owned();
        any.value = value.to_vec();
        any
    };
    for wrong in [
        other("containerd.runhcs.v1.Options", b""),
        other("containerd.runc.v1.Options", &[0xff]),
        other("types.containerd.io/whatever", b"{}"),
    ] {
        let refused = lone.create("box", Some(&wrong)).unwrap_err();
        assert_eq!(refused.code, INVALID_ARGUMENT, "{refused:?}");
    }
    assert_eq!(lone.shim.state("box", "").unwrap_err().code, 5);
    lone.run(None);
    for wrong in [
        other("containerd.runc.v1.Options", b""),
        other("containerd.runc.v1.CheckpointOptions", &[0xff]),
    ] {
        let mut request = api::CheckpointTaskRequest::new();
        request.id = "box".to_owned();
        request.options = MessageField::some(wrong);
        let refused = lone.shim.call::<_, api::Empty>("Checkpoint", &request);
        assert_eq!(refused.unwrap_err().code, INVALID_ARGUMENT);
    }
    for wrong in [
        None,
        Some(other("x", b"")),
        Some(other("x", b"[]")),
        Some(other("x", b"{")),
    ] {
        let mut request = api::UpdateTaskRequest::new();
        request.id = "box".to_owned();
        request.resources = MessageField::from_option(wrong.clone());
        let refused = lone.shim.call::<_, api::Empty>("Update", &request);
        assert_eq!(refused.unwrap_err().code, INVALID_ARGUMENT, "{wrong:?}");
        let mut request = api::ExecProcessRequest::new();
        request.id = "box".to_owned();
        request.exec_id = "exec".to_owned();
        request.spec = MessageField::from_option(wrong.clone());
        let refused = lone.shim.call::<_, api::Empty>("Exec", &request);
        assert_eq!(refused.unwrap_err().code, INVALID_ARGUMENT, "{wrong:?}");
    }
    // Nothing of it has done anything.
    assert_eq!(lone.shim.state("box", "exec").unwrap_err().code, 5);
    assert_eq!(lone.shim.state("box", "").unwrap().status.value(), 2);
    lone.end("box");
    lone.finish();
}
