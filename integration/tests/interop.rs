//! Both halves are drop-in by themselves: our runtime under containerd's own shim, and other
//! runtimes under ours.

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use holdfast_integration::bundle::Bundle;
use holdfast_integration::containerd::{Containerd, peer};
use holdfast_integration::ctr::LIMIT;
use holdfast_integration::pty::Terminal;
use holdfast_integration::scratch::text;
use holdfast_integration::shim::{Shim, V2, V3, runc_options, toml_options};
use holdfast_integration::{on_containerds, place, skip};

on_containerds! {
    containerd_s_own_shim_drives_holdfast;
    our_shim_drives_runc_by_runc_options;
    our_shim_drives_runc_by_toml_options;
    our_shim_refuses_options_of_another_kind;
    containers_of_a_pod_share_a_shim;
}

fn containerd_s_own_shim_drives_holdfast(containerd: &Containerd) {
    let ours = text(&place::built("holdfast"));
    let flags = ["--runtime", "io.containerd.runc.v2", "--runc-binary", &ours];
    let with = |more: &[&'static str]| -> Vec<String> {
        flags
            .iter()
            .chain(more)
            .map(|word| (*word).to_owned())
            .collect()
    };
    let words = |list: &[String]| {
        list.iter()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join("\u{0}")
    };
    let run = |id: &str, more: &[&'static str], args: &[&str]| {
        let joined = words(&with(more));
        let flags: Vec<&str> = joined.split('\u{0}').collect();
        containerd.run(id, &flags, args)
    };

    let ran = run(
        "one",
        &["--rm", "--seccomp"],
        &[
            "sh",
            "-c",
            "echo out; grep Seccomp: /proc/self/status; exit 42",
        ],
    );
    assert_eq!(ran.code(), 42, "{ran}");
    assert!(
        ran.stdout.contains("out") && ran.stdout.contains('2'),
        "{ran}"
    );
    let missing = run("two", &["--rm"], &["nosuchprogram"]);
    assert!(
        missing
            .failed()
            .contains("executable file not found in $PATH"),
        "{missing}"
    );

    run("box", &["-d", "--null-io"], &["sleep", "600"]).ok();
    let pid = containerd.task("box").unwrap().pid;
    let shim = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let parent = shim
        .lines()
        .find_map(|line| line.strip_prefix("PPid:"))
        .unwrap()
        .trim();
    let parent = std::fs::read_to_string(format!("/proc/{parent}/cmdline")).unwrap();
    assert!(parent.contains("containerd-shim-runc-v2"), "{parent}");
    let exec = containerd.exec("box", "x", &[], &["sh", "-c", "exit 7"]);
    assert_eq!(exec.code(), 7, "{exec}");
    let missing = containerd.exec("box", "y", &[], &["nosuchprogram"]);
    assert!(
        missing
            .failed()
            .contains("executable file not found in $PATH"),
        "{missing}"
    );
    containerd.ctr_ok(&["tasks", "pause", "box"]);
    assert_eq!(containerd.task("box").unwrap().status, "PAUSED");
    containerd.ctr_ok(&["tasks", "resume", "box"]);
    assert!(
        containerd
            .ctr_ok(&["tasks", "ps", "box"])
            .contains(&pid.to_string())
    );
    containerd.end_task("box");

    let (mut terminal, slave) = Terminal::pair();
    let joined = words(&with(&["--rm", "-t"]));
    let flags: Vec<&str> = joined.split('\u{0}').collect();
    let mut client = containerd.spawn_run("tty", &flags, &["sh"], Some(slave));
    terminal.type_in("test -t 0 && echo mark-$((40+2)); exit 5\n");
    terminal.expect("mark-42", LIMIT);
    assert_eq!(client.code(), 5);
}

fn drives_runc(containerd: &Containerd, options: Any) {
    if peer() {
        return skip("our_shim_drives_runc", "it is about our shim");
    }
    containerd.start_task("box", &[], &["sleep", "600"]);
    let shim = Shim::of(containerd, "box");
    shim.create_by_hand(containerd, "other", options);
    let state = containerd
        .path("runc-state")
        .join(&containerd.namespace)
        .join("other");
    assert!(
        state.exists(),
        "runc does not know the container: {}",
        state.display()
    );

    shim.exec("other", "bad", &["nosuchprogram"]).unwrap();
    let refused = shim.start("other", "bad").unwrap_err();
    assert!(
        refused
            .message
            .contains("executable file not found in $PATH"),
        "{refused:?}"
    );
    shim.delete("other", "bad").unwrap();

    // The pid comes late with a foreign runtime: processes that are gone at once are the test.
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let shim = &shim;
            scope.spawn(move || {
                for round in 0..25 {
                    let exec = format!("exec-{worker}-{round}");
                    shim.exec("other", &exec, &["sh", "-c", "exit 3"]).unwrap();
                    let pid = shim.start("other", &exec).unwrap();
                    assert_ne!(pid, 0);
                    assert_eq!(shim.wait("other", &exec).unwrap(), 3);
                    assert_eq!(shim.delete("other", &exec).unwrap().pid, pid);
                }
            });
        }
    });

    shim.kill("other", "", 9).unwrap();
    assert_eq!(shim.wait("other", "").unwrap(), 137);
    assert_eq!(shim.delete("other", "").unwrap().exit_status, 137);
    assert!(!state.exists(), "{} is still there", state.display());
    containerd.end_task("box");
}

fn our_shim_drives_runc_by_runc_options(containerd: &Containerd) {
    let Some(runc) = place::program("runc") else {
        return skip("our_shim_drives_runc", "no runc");
    };
    drives_runc(
        containerd,
        runc_options(&runc, &containerd.path("runc-state")),
    );
}

fn our_shim_drives_runc_by_toml_options(containerd: &Containerd) {
    let Some(runc) = place::program("runc") else {
        return skip("our_shim_drives_runc", "no runc");
    };
    let body = format!(
        "BinaryName = \"{}\"\nRoot = \"{}\"\n",
        text(&runc),
        text(&containerd.path("runc-state"))
    );
    drives_runc(containerd, toml_options(&body));
}

fn our_shim_refuses_options_of_another_kind(containerd: &Containerd) {
    if peer() {
        return skip("our_shim_refuses_options", "containerd's own shim panics");
    }
    containerd.start_task("box", &[], &["sleep", "600"]);
    let shim = Shim::of(containerd, "box");
    let bundle = Bundle::new(&containerd.path("bundle-odd"), "odd", &containerd.namespace);
    bundle.write();
    let mut request = api::CreateTaskRequest::new();
    request.id = "odd".to_owned();
    request.bundle = text(&bundle.path);
    let mut any = Any::new();
    any.type_url = "example.com/SomethingElse".to_owned();
    any.value = b"x".to_vec();
    request.options = MessageField::some(any);
    let refused = shim
        .call::<_, api::CreateTaskResponse>("Create", &request)
        .unwrap_err();
    assert_eq!(refused.code, 3, "{refused:?}");
    assert_eq!(shim.state("odd", "").unwrap_err().code, 5);
    assert_eq!(shim.state("box", "").unwrap().status.value(), 2);
    containerd.end_task("box");
}

fn containers_of_a_pod_share_a_shim(containerd: &Containerd) {
    let pod = ["--annotation", "io.kubernetes.cri.sandbox-id=first"];
    containerd.start_task("first", &pod, &["sleep", "600"]);
    containerd.start_task("second", &pod, &["sleep", "600"]);
    containerd.start_task("alone", &[], &["sleep", "600"]);
    let (first, second) = (
        Shim::of(containerd, "first"),
        Shim::of(containerd, "second"),
    );
    assert_eq!(first.pid("first"), second.pid("second"));
    assert_ne!(
        first.pid("first"),
        Shim::of(containerd, "alone").pid("alone")
    );
    assert_eq!(containerd.shims().len(), 2, "{:?}", containerd.shims());
    containerd.end_task("second");
    // The end of one is not the end of the other.
    assert_eq!(containerd.task("first").unwrap().status, "RUNNING");
    assert_eq!(
        containerd
            .exec("first", "x", &[], &["sh", "-c", "exit 4"])
            .code(),
        4
    );
    if !peer() {
        for service in [V2, V3] {
            assert!(first.calling(service).state("first", "").is_ok());
        }
    }
    containerd.end_task("first");
    containerd.end_task("alone");
}
