//! The task service as clients rely on it: raw ttrpc, error codes, both names of the service.

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::MessageField;
use holdfast_integration::containerd::{Containerd, peer};
use holdfast_integration::on_containerds;
use holdfast_integration::shim::{Refused, Shim, V2, V3, process_any};

on_containerds! {
    what_is_not_served_is_unimplemented;
    both_versions_of_the_service_answer;
    what_is_unknown_is_not_found;
    a_running_container_refuses_what_it_must;
    an_exec_in_every_state;
    an_exec_without_spec_is_invalid;
    a_payload_that_is_no_message_is_an_error;
    a_stopped_container_refuses_what_it_must;
    a_paused_container_refuses_what_it_must;
    a_failed_exec_can_be_deleted;
    many_wait_and_all_are_answered;
    stats_have_numbers;
    connect_and_shutdown_never_fail;
}

const UNKNOWN: i32 = 2;
const INVALID_ARGUMENT: i32 = 3;
const NOT_FOUND: i32 = 5;
const ALREADY_EXISTS: i32 = 6;
const FAILED_PRECONDITION: i32 = 9;
const UNIMPLEMENTED: i32 = 12;

#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, Refused>, code: i32, telling: &str) {
    let refused = answer.expect_err("should have been refused");
    assert_eq!(refused.code, code, "{refused:?}");
    assert!(
        refused.message.contains(telling),
        "no {telling:?} in {refused:?}"
    );
    assert!(!refused.message.is_empty());
}

fn running(containerd: &Containerd) -> Shim {
    containerd.start_task("box", &[], &["sleep", "600"]);
    Shim::of(containerd, "box")
}

fn by_id<R: containerd_shim_protos::protobuf::Message>(
    shim: &Shim,
    method: &str,
    id: &str,
) -> Result<R, Refused> {
    // Pause, Resume, Pids, Stats and Connect have the id as their first field.
    let mut request = api::PauseRequest::new();
    request.id = id.to_owned();
    shim.call(method, &request)
}

fn what_is_not_served_is_unimplemented(containerd: &Containerd) {
    let shim = running(containerd);
    refused(shim.call_raw("Frobnicate", Vec::new()), UNIMPLEMENTED, "");
    refused(
        shim.calling("containerd.task.v9.Task")
            .call_raw("State", Vec::new()),
        UNIMPLEMENTED,
        "",
    );
    refused(shim.calling("").call_raw("", Vec::new()), UNIMPLEMENTED, "");
    containerd.end_task("box");
}

fn both_versions_of_the_service_answer(containerd: &Containerd) {
    let shim = running(containerd);
    // containerd's own shim serves only one of them.
    let services = if peer() { vec![] } else { vec![V2, V3] };
    for service in services {
        let state = shim
            .calling(service)
            .state("box", "")
            .unwrap_or_else(|e| panic!("{service}: {e:?}"));
        assert_eq!(state.status.value(), 2, "{service}: {state:?}");
        refused(
            shim.calling(service).state("nobody", ""),
            NOT_FOUND,
            "not found",
        );
    }
    containerd.end_task("box");
}

fn what_is_unknown_is_not_found(containerd: &Containerd) {
    let shim = running(containerd);
    for id in ["nobody", ""] {
        refused(shim.state(id, ""), NOT_FOUND, "not found");
        refused(shim.start(id, ""), NOT_FOUND, "not found");
        refused(shim.kill(id, "", 9), NOT_FOUND, "not found");
        refused(shim.delete(id, ""), NOT_FOUND, "not found");
        refused(shim.wait(id, ""), NOT_FOUND, "not found");
        refused(shim.pids(id), NOT_FOUND, "not found");
        refused(shim.exec(id, "x", &["true"]), NOT_FOUND, "not found");
        refused(
            by_id::<api::Empty>(&shim, "Pause", id),
            NOT_FOUND,
            "not found",
        );
        refused(
            by_id::<api::Empty>(&shim, "Resume", id),
            NOT_FOUND,
            "not found",
        );
        refused(
            by_id::<api::StatsResponse>(&shim, "Stats", id),
            NOT_FOUND,
            "not found",
        );
    }
    refused(shim.state("box", "nobody"), NOT_FOUND, "");
    refused(shim.start("box", "nobody"), NOT_FOUND, "");
    refused(shim.kill("box", "nobody", 9), NOT_FOUND, "");
    refused(shim.delete("box", "nobody"), NOT_FOUND, "");
    refused(shim.wait("box", "nobody"), NOT_FOUND, "");
    containerd.end_task("box");
}

fn a_running_container_refuses_what_it_must(containerd: &Containerd) {
    let shim = running(containerd);
    refused(
        shim.start("box", ""),
        UNKNOWN,
        "cannot start a running process",
    );
    refused(
        shim.delete("box", ""),
        UNKNOWN,
        "cannot delete a running process",
    );
    refused(
        by_id::<api::Empty>(&shim, "Resume", "box"),
        UNKNOWN,
        "cannot resume a running process",
    );
    assert_eq!(shim.state("box", "").unwrap().status.value(), 2);
    containerd.end_task("box");
}

fn an_exec_in_every_state(containerd: &Containerd) {
    let shim = running(containerd);
    shim.exec("box", "one", &["sleep", "600"]).unwrap();
    refused(
        shim.exec("box", "one", &["true"]),
        ALREADY_EXISTS,
        "already exists",
    );
    let created = shim.state("box", "one").unwrap();
    assert_eq!((created.status.value(), created.pid), (1, 0), "{created:?}");
    refused(
        shim.kill("box", "one", 9),
        FAILED_PRECONDITION,
        "process not created",
    );

    let pid = shim.start("box", "one").unwrap();
    let state = shim.state("box", "one").unwrap();
    assert_eq!((state.status.value(), state.pid), (2, pid), "{state:?}");
    refused(
        shim.start("box", "one"),
        UNKNOWN,
        "cannot start a running process",
    );
    refused(
        shim.delete("box", "one"),
        UNKNOWN,
        "cannot delete a running process",
    );
    assert!(shim.pids("box").unwrap().contains(&pid));

    shim.kill("box", "one", 15).unwrap();
    assert_eq!(shim.wait("box", "one").unwrap(), 143);
    let state = shim.state("box", "one").unwrap();
    assert_eq!(
        (state.status.value(), state.exit_status),
        (3, 143),
        "{state:?}"
    );
    refused(
        shim.start("box", "one"),
        UNKNOWN,
        "cannot start a stopped process",
    );
    refused(
        shim.kill("box", "one", 9),
        NOT_FOUND,
        "process already finished",
    );
    let deleted = shim.delete("box", "one").unwrap();
    assert_eq!((deleted.pid, deleted.exit_status), (pid, 143));
    refused(shim.state("box", "one"), NOT_FOUND, "");
    refused(shim.delete("box", "one"), NOT_FOUND, "");

    // One that was never started can be deleted, and its name used again.
    shim.exec("box", "two", &["true"]).unwrap();
    shim.delete("box", "two").unwrap();
    shim.exec("box", "two", &["true"]).unwrap();
    shim.delete("box", "two").unwrap();
    containerd.end_task("box");
}

fn an_exec_without_spec_is_invalid(containerd: &Containerd) {
    if peer() {
        // containerd's own shim dereferences the missing spec.
        return holdfast_integration::skip("an_exec_without_spec", "not for containerd's own shim");
    }
    let shim = running(containerd);
    let mut request = api::ExecProcessRequest::new();
    request.id = "box".to_owned();
    request.exec_id = "bare".to_owned();
    refused(
        shim.call::<_, api::Empty>("Exec", &request),
        INVALID_ARGUMENT,
        "missing",
    );
    let mut any = process_any(&["true"]);
    any.value = b"{".to_vec();
    request.spec = MessageField::some(any);
    refused(
        shim.call::<_, api::Empty>("Exec", &request),
        INVALID_ARGUMENT,
        "",
    );
    // Nothing of it stays: the name is free.
    shim.exec("box", "bare", &["true"]).unwrap();
    let mut update = api::UpdateTaskRequest::new();
    update.id = "box".to_owned();
    refused(
        shim.call::<_, api::Empty>("Update", &update),
        INVALID_ARGUMENT,
        "",
    );
    refused(
        shim.call::<_, api::CreateTaskResponse>("Create", &api::CreateTaskRequest::new()),
        INVALID_ARGUMENT,
        "",
    );
    assert_eq!(shim.state("box", "").unwrap().status.value(), 2);
    shim.delete("box", "bare").unwrap();
    containerd.end_task("box");
}

fn a_payload_that_is_no_message_is_an_error(containerd: &Containerd) {
    let shim = running(containerd);
    for method in ["State", "Create", "Exec", "Kill", "Wait"] {
        let answer = shim.call_raw(method, vec![0xff; 64]);
        assert!(answer.is_err(), "{method}: {answer:?}");
    }
    assert_eq!(shim.state("box", "").unwrap().status.value(), 2);
    containerd.end_task("box");
}

fn a_stopped_container_refuses_what_it_must(containerd: &Containerd) {
    let shim = running(containerd);
    shim.kill("box", "", 9).unwrap();
    assert_eq!(shim.wait("box", "").unwrap(), 137);
    // Wait is answered again, and at once.
    assert_eq!(shim.wait("box", "").unwrap(), 137);
    let state = shim.state("box", "").unwrap();
    assert_eq!(
        (state.status.value(), state.exit_status),
        (3, 137),
        "{state:?}"
    );
    assert!(state.exited_at.seconds > 0, "{state:?}");
    refused(
        shim.start("box", ""),
        UNKNOWN,
        "cannot start a stopped process",
    );
    refused(
        shim.kill("box", "", 9),
        NOT_FOUND,
        "process already finished",
    );
    refused(
        by_id::<api::Empty>(&shim, "Pause", "box"),
        UNKNOWN,
        "cannot pause a stopped container",
    );
    refused(
        by_id::<api::Empty>(&shim, "Resume", "box"),
        UNKNOWN,
        "cannot resume a stopped container",
    );
    assert!(shim.exec("box", "late", &["true"]).is_err());
    containerd.await_status("box", "STOPPED");
    containerd.remove("box");
}

fn a_paused_container_refuses_what_it_must(containerd: &Containerd) {
    let shim = running(containerd);
    by_id::<api::Empty>(&shim, "Pause", "box").unwrap();
    assert_eq!(shim.state("box", "").unwrap().status.value(), 4);
    refused(
        by_id::<api::Empty>(&shim, "Pause", "box"),
        UNKNOWN,
        "cannot pause a paused container",
    );
    refused(
        shim.start("box", ""),
        UNKNOWN,
        "cannot start a paused process",
    );
    refused(
        shim.delete("box", ""),
        UNKNOWN,
        "cannot delete a paused process",
    );
    refused(
        shim.exec("box", "x", &["true"]),
        UNKNOWN,
        "cannot exec in a paused state",
    );
    by_id::<api::Empty>(&shim, "Resume", "box").unwrap();
    assert_eq!(shim.state("box", "").unwrap().status.value(), 2);
    containerd.end_task("box");
}

fn a_failed_exec_can_be_deleted(containerd: &Containerd) {
    let shim = running(containerd);
    shim.exec("box", "bad", &["nosuchprogram"]).unwrap();
    refused(
        shim.start("box", "bad"),
        UNKNOWN,
        "executable file not found in $PATH",
    );
    if !peer() {
        // It may be tried again, as often as one likes; containerd's own shim dies of that.
        for _ in 0..3 {
            refused(
                shim.start("box", "bad"),
                UNKNOWN,
                "executable file not found",
            );
        }
    }
    shim.delete("box", "bad").unwrap();
    assert_eq!(shim.pids("box").unwrap().len(), 1);
    containerd.end_task("box");
}

fn many_wait_and_all_are_answered(containerd: &Containerd) {
    let shim = running(containerd);
    shim.exec("box", "one", &["sh", "-c", "exit 21"]).unwrap();
    let waiters: Vec<_> = (0..20)
        .map(|_| {
            let shim = shim.clone();
            std::thread::spawn(move || (shim.wait("box", "one"), shim.wait("box", "")))
        })
        .collect();
    shim.start("box", "one").unwrap();
    assert_eq!(shim.wait("box", "one").unwrap(), 21);
    shim.kill("box", "", 9).unwrap();
    for waiter in waiters {
        assert_eq!(waiter.join().unwrap(), (Ok(21), Ok(137)));
    }
    containerd.await_status("box", "STOPPED");
    containerd.remove("box");
}

fn stats_have_numbers(containerd: &Containerd) {
    let shim = running(containerd);
    let stats: api::StatsResponse = by_id(&shim, "Stats", "box").unwrap();
    assert!(
        [
            "io.containerd.cgroups.v1.Metrics",
            "io.containerd.cgroups.v2.Metrics"
        ]
        .contains(&stats.stats.type_url.as_str()),
        "{}",
        stats.stats.type_url
    );
    assert!(
        stats.stats.value.len() > 50,
        "{} bytes of metrics",
        stats.stats.value.len()
    );
    let shown = containerd.ctr_ok(&["tasks", "metrics", "box"]);
    assert!(
        shown.contains("memory.usage_in_bytes") || shown.contains("memory.usage"),
        "{shown}"
    );
    containerd.end_task("box");
}

fn connect_and_shutdown_never_fail(containerd: &Containerd) {
    let shim = running(containerd);
    let mut request = api::ConnectRequest::new();
    for id in ["box", "nobody", ""] {
        request.id = id.to_owned();
        let reply: api::ConnectResponse = shim.call("Connect", &request).unwrap();
        assert_ne!(reply.shim_pid, 0);
        assert_eq!(reply.task_pid != 0, id == "box", "{id:?}: {reply:?}");
    }
    // No effect while there is a container.
    let mut request = api::ShutdownRequest::new();
    request.id = "box".to_owned();
    request.now = true;
    shim.call::<_, api::Empty>("Shutdown", &request).unwrap();
    assert_eq!(shim.state("box", "").unwrap().status.value(), 2);
    containerd.end_task("box");
}
