//! The calls, and what their answers say in words that do not depend on the run.

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField, MessageFull};
use containerd_shim_protos::shim::oci::ProcessDetails;
use holdfast_integration::shim::{Refused, process_any};

use super::side::{Container, Side};

/// Those that change nothing, whatever there is.
pub(crate) const GENTLE: &[&str] = &[
    "State",
    "Pids",
    "Stats",
    "Connect",
    "Shutdown",
    "CloseIO",
    "ResizePty",
];

/// Those that name an exec process, or tell of it.
pub(crate) const EXEC: &[&str] = &[
    "State",
    "Start",
    "Delete",
    "Pids",
    "Kill",
    "Exec",
    "ResizePty",
    "CloseIO",
    "Wait",
];

/// Makes one call about `container`; the answer in words.
pub(crate) fn call(side: &Side, container: &Container, method: &str) -> String {
    let shim = &side.shim;
    let (id, exec_id) = (container.id.clone(), container.exec.clone());
    macro_rules! request {
        ($request:ty, $answer:ty, $show:expr, $($field:ident: $value:expr),*) => {{
            let mut request = <$request>::new();
            $(request.$field = $value;)*
            shim.call::<_, $answer>(method, &request).map($show)
        }};
    }
    let nothing = |_: api::Empty| String::new();
    let number = |pid| side.pid_word(container, pid);
    let answer: Result<String, Refused> = match method {
        "State" => request!(api::StateRequest, api::StateResponse, |state: api::StateResponse| {
            format!(
                "id {} bundle {} pid {} status {:?} stdio {:?} {:?} {:?} terminal {} exit {} at {} exec {:?}",
                state.id, state.bundle, number(state.pid), state.status.value(), state.stdin,
                state.stdout, state.stderr, state.terminal, state.exit_status,
                when(state.exited_at.as_ref().map(|at| at.seconds)), state.exec_id
            )
        }, id: id, exec_id: exec_id),
        "Create" => {
            let request = side.create_request(&container.id, &container.bundle);
            shim.call::<_, api::CreateTaskResponse>(method, &request)
                .map(|created| {
                    if created.pid == 0 {
                        return "pid 0".to_owned();
                    }
                    let mut pids = container.pids.lock().unwrap();
                    pids.insert(created.pid, "NEW");
                    "pid NEW".to_owned()
                })
        }
        "Start" => request!(api::StartRequest, api::StartResponse,
            |started: api::StartResponse| format!("pid {}", if started.pid == 0 { "0" } else { "SOME" }),
            id: id, exec_id: exec_id),
        "Delete" => request!(api::DeleteRequest, api::DeleteResponse, |gone: api::DeleteResponse| {
            format!("pid {} exit {} at {}", number(gone.pid), gone.exit_status,
                when(gone.exited_at.as_ref().map(|at| at.seconds)))
        }, id: id, exec_id: exec_id),
        "Pids" => request!(api::PidsRequest, api::PidsResponse, |pids: api::PidsResponse| {
            let mut words: Vec<String> = pids.processes.iter().map(|process| {
                let info = process.info.as_ref().map(|any| {
                    let details = ProcessDetails::parse_from_bytes(&any.value).unwrap();
                    format!(" ({}: {})", any.type_url, details.exec_id)
                });
                format!("{}{}", number(process.pid), info.unwrap_or_default())
            }).collect();
            words.sort();
            words.join(", ")
        }, id: id),
        "Pause" => request!(api::PauseRequest, api::Empty, nothing, id: id),
        "Resume" => request!(api::ResumeRequest, api::Empty, nothing, id: id),
        "Checkpoint" => request!(api::CheckpointTaskRequest, api::Empty, nothing,
            id: id, path: side.path("image")),
        "Kill" => request!(api::KillRequest, api::Empty, nothing,
            id: id, exec_id: exec_id, signal: 9),
        "Exec" => {
            let exec_id = if exec_id.is_empty() {
                "new".to_owned()
            } else {
                exec_id
            };
            request!(api::ExecProcessRequest, api::Empty, nothing,
                id: id, exec_id: exec_id, spec: MessageField::some(process_any(&["sleep", "600"])))
        }
        "ResizePty" => request!(api::ResizePtyRequest, api::Empty, nothing,
            id: id, exec_id: exec_id, width: 80, height: 25),
        "CloseIO" => request!(api::CloseIORequest, api::Empty, nothing,
            id: id, exec_id: exec_id, stdin: true),
        "Update" => {
            let mut any = Any::new();
            any.type_url =
                "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".to_owned();
            any.value = br#"{"cpu":{"shares":512}}"#.to_vec();
            request!(api::UpdateTaskRequest, api::Empty, nothing,
                id: id, resources: MessageField::some(any))
        }
        "Wait" => request!(api::WaitRequest, api::WaitResponse, |ended: api::WaitResponse| {
            format!("exit {} at {}", ended.exit_status,
                when(ended.exited_at.as_ref().map(|at| at.seconds)))
        }, id: id, exec_id: exec_id),
        "Stats" => request!(api::StatsRequest, api::StatsResponse,
            |stats: api::StatsResponse| metrics(&stats.stats), id: id),
        "Connect" => request!(api::ConnectRequest, api::ConnectResponse,
            |shown: api::ConnectResponse| format!("shim {} task {} version {:?}",
                if shown.shim_pid == 0 { "0" } else { "SHIM" }, number(shown.task_pid), shown.version),
            id: id),
        "Shutdown" => request!(api::ShutdownRequest, api::Empty, nothing, id: id, now: true),
        other => panic!("no call is named {other}"),
    };
    match answer {
        Ok(text) => side.neutral(container, &format!("ok {text}")),
        Err(refused) => side.neutral(container, &format!("{}: {}", refused.code, refused.message)),
    }
}

fn when(seconds: Option<i64>) -> &'static str {
    match seconds {
        None => "unset",
        Some(-62_135_596_800) => "year 1",
        Some(0) => "1970",
        Some(_) => "its time",
    }
}

/// Which fields of the statistics are there: their numbers differ from one container to the next.
fn metrics(any: &Any) -> String {
    use containerd_shim_protos::cgroups::metrics as v1;
    use containerd_shim_protos::cgroups_v2::metrics as v2;
    let mut fields = Vec::new();
    match any.type_url.as_str() {
        "io.containerd.cgroups.v1.Metrics" => {
            present::<v1::Metrics>("", &any.value, &mut fields);
        }
        "io.containerd.cgroups.v2.Metrics" => {
            present::<v2::Metrics>("", &any.value, &mut fields);
        }
        other => panic!("statistics of type {other}"),
    }
    format!("{}: {}", any.type_url, fields.join(" "))
}

fn present<M: MessageFull>(path: &str, bytes: &[u8], fields: &mut Vec<String>) {
    let message = M::parse_from_bytes(bytes).unwrap();
    walk(path, &message, fields);
}

fn walk(
    path: &str,
    message: &dyn containerd_shim_protos::protobuf::MessageDyn,
    fields: &mut Vec<String>,
) {
    use containerd_shim_protos::protobuf::reflect::{ReflectFieldRef, ReflectValueRef};
    for field in message.descriptor_dyn().fields() {
        let name = format!("{path}{}", field.name());
        match field.get_reflect(message) {
            ReflectFieldRef::Optional(value) => {
                if let Some(ReflectValueRef::Message(inner)) = value.value() {
                    fields.push(name.clone());
                    walk(&format!("{name}."), &*inner, fields);
                }
            }
            ReflectFieldRef::Repeated(values) if !values.is_empty() => {
                fields.push(format!("{name}[]"))
            }
            ReflectFieldRef::Repeated(_) | ReflectFieldRef::Map(_) => {}
        }
    }
}
