//! The task service: decodes requests, asks the container, encodes answers. No logic, no
//! locks held. `containerd.task.v2.Task` and `containerd.task.v3.Task` are one and the same;
//! whatever else is asked for is answered with UNIMPLEMENTED, which containerd understands.

use std::path::PathBuf;
use std::sync::Arc;

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp as ProtoTime;
use containerd_shim_protos::protobuf::{EnumOrUnknown, Message, MessageField};
use containerd_shim_protos::shim::oci::{self, ProcessDetails};
use containerd_shim_protos::ttrpc::proto::Code;
use containerd_shim_protos::types::task::{ProcessInfo, Status as ProtoStatus};
use holdfast_record::{ContainerId, ExecId};
use tokio::sync::Notify;

use crate::event::{no_time, proto_time};
use crate::fault::Fault;
use crate::fault_point::fault_point;
use crate::idle::Idle;
use crate::options::Options;
use crate::resume::{image, upgrade};
use crate::server;
use crate::stats;
use crate::stdio::StdioPaths;
use crate::task::state::Ended;
use crate::task::{
    CheckpointRequest, Command, CreateRequest, Handle, ProcessView, Shim, Status, View,
};
use crate::wire::server::Handler;

/// Both names of the one service.
const SERVICES: [&str; 2] = ["containerd.task.v2.Task", "containerd.task.v3.Task"];
/// What a shim serves that fails again and again.
const FOR_EVERY_SHIM: [&str; 8] = [
    "Wait", "State", "Kill", "Delete", "Pids", "Stats", "Connect", "Shutdown",
];

/// Serves the task API for the containers of one shim.
#[derive(Debug)]
pub(crate) struct TaskService {
    shim: Arc<Shim>,
    shutdown: Arc<Notify>,
    idle: Arc<Idle>,
}

fn parse<M: Message>(payload: &[u8]) -> Result<M, Fault> {
    M::parse_from_bytes(payload)
        .map_err(|error| Fault::invalid(format!("decode the request: {error}")))
}

fn exec_id(id: &str) -> Result<Option<ExecId>, Fault> {
    if id.is_empty() {
        return Ok(None);
    }
    ExecId::new(id)
        .map(Some)
        .map_err(|error| Fault::invalid(error.to_string()))
}

fn process<'a>(view: &'a View, exec: Option<&ExecId>) -> Result<&'a ProcessView, Fault> {
    match exec {
        None => Ok(&view.init),
        Some(id) => view
            .execs
            .get(id)
            .ok_or_else(|| Fault::not_found(&format!("process does not exist {id}"))),
    }
}

fn exited_at(ended: Option<Ended>) -> MessageField<ProtoTime> {
    ended.map_or_else(no_time, |ended| proto_time(ended.at))
}

fn proto_status(status: Status) -> EnumOrUnknown<ProtoStatus> {
    EnumOrUnknown::new(match status {
        Status::Created => ProtoStatus::CREATED,
        Status::Running => ProtoStatus::RUNNING,
        Status::Stopped => ProtoStatus::STOPPED,
        Status::Paused => ProtoStatus::PAUSED,
        Status::Pausing => ProtoStatus::PAUSING,
    })
}

/// The bytes of an Any that has to be there.
fn body(any: MessageField<Any>, what: &str) -> Result<Vec<u8>, Fault> {
    any.into_option()
        .map(|any| any.value)
        .filter(|bytes| !bytes.is_empty())
        .ok_or_else(|| Fault::invalid(format!("{what} is missing")))
}

fn is_checkpoint_options(any: &Any) -> bool {
    any.type_url.ends_with(".CheckpointOptions")
}

impl TaskService {
    /// A service for the containers of `shim`; `shutdown` is told when the shim may end.
    pub(crate) fn new(shim: Arc<Shim>, shutdown: Arc<Notify>) -> Self {
        Self {
            shim,
            shutdown,
            idle: Arc::default(),
        }
    }

    fn container(&self, id: &str) -> Result<Handle, Fault> {
        self.shim.container(id)
    }

    async fn create(
        &self,
        request: api::CreateTaskRequest,
    ) -> Result<api::CreateTaskResponse, Fault> {
        let id = ContainerId::new(request.id.as_str())
            .map_err(|error| Fault::invalid(error.to_string()))?;
        let bundle = PathBuf::from(&request.bundle);
        if !bundle.is_absolute() || !bundle.is_dir() {
            return Err(Fault::invalid(format!(
                "bundle {:?} is not a directory",
                request.bundle
            )));
        }
        let options = match request.options.as_ref() {
            Some(any) => Options::from_any(any)?,
            None => Options::default(),
        };
        let pid = self
            .shim
            .create(CreateRequest {
                id,
                bundle,
                rootfs: request.rootfs,
                stdio: StdioPaths {
                    stdin: request.stdin,
                    stdout: request.stdout,
                    stderr: request.stderr,
                    terminal: request.terminal,
                },
                options,
                checkpoint: (!request.checkpoint.is_empty()).then(|| request.checkpoint.into()),
            })
            .await?;
        Ok(api::CreateTaskResponse {
            pid,
            ..api::CreateTaskResponse::default()
        })
    }

    fn state(&self, request: &api::StateRequest) -> Result<api::StateResponse, Fault> {
        let view = self.container(&request.id)?.view()?;
        let exec = exec_id(&request.exec_id)?;
        let process = process(&view, exec.as_ref())?;
        Ok(api::StateResponse {
            id: exec.map_or_else(|| request.id.clone(), |id| id.to_string()),
            bundle: view.bundle.display().to_string(),
            pid: process.pid(),
            status: proto_status(process.status),
            stdin: process.stdio.stdin.clone(),
            stdout: process.stdio.stdout.clone(),
            stderr: process.stdio.stderr.clone(),
            terminal: process.stdio.terminal,
            exit_status: process.ended.map_or(0, |ended| ended.status.shell_code()),
            exited_at: exited_at(process.ended),
            ..api::StateResponse::default()
        })
    }

    async fn wait(&self, request: &api::WaitRequest) -> Result<api::WaitResponse, Fault> {
        let exec = exec_id(&request.exec_id)?;
        let mut exit = {
            let view = self.container(&request.id)?.view()?;
            process(&view, exec.as_ref())?.exit.clone()
        };
        let ended = exit
            .wait_for(Option::is_some)
            .await
            .map_err(|_| Fault::not_found(&format!("process does not exist {}", request.exec_id)))
            .map(|ended| *ended)?;
        Ok(api::WaitResponse {
            exit_status: ended.map_or(0, |ended| ended.status.shell_code()),
            exited_at: exited_at(ended),
            ..api::WaitResponse::default()
        })
    }

    fn pids(&self, id: &str) -> Result<api::PidsResponse, Fault> {
        let view = self.container(id)?.view()?;
        let mut pids: Vec<u32> = view
            .cgroup
            .as_ref()
            .filter(|_| view.init.status != Status::Stopped)
            .and_then(|cgroup| cgroup.processes().ok())
            .unwrap_or_default()
            .into_iter()
            .filter_map(|pid| u32::try_from(pid).ok())
            .collect();
        if pids.is_empty() && view.init.process.is_some() {
            // containerd 2.1 takes a shim without pids for leaked when it comes back, and
            // deletes it with the exit it has not heard of. So a stopped container keeps the
            // pid it had until it is deleted.
            pids.push(view.init.pid());
        }
        let info = |pid: u32| {
            let (id, _) = view
                .execs
                .iter()
                .find(|(_, exec)| exec.ended.is_none() && exec.pid() == pid)?;
            let details = ProcessDetails {
                exec_id: id.to_string(),
                ..ProcessDetails::default()
            };
            Some(Any {
                type_url: "containerd.runc.v1.ProcessDetails".to_owned(),
                value: details.write_to_bytes().ok()?,
                ..Any::default()
            })
        };
        Ok(api::PidsResponse {
            processes: pids
                .into_iter()
                .map(|pid| ProcessInfo {
                    pid,
                    info: MessageField::from_option(info(pid)),
                    ..ProcessInfo::default()
                })
                .collect(),
            ..api::PidsResponse::default()
        })
    }

    fn stats(&self, id: &str) -> Result<api::StatsResponse, Fault> {
        let view = self.container(id)?.view()?;
        let cgroup = view
            .cgroup
            .as_ref()
            .ok_or_else(|| Fault::not_found("cgroup does not exist"))?;
        let stats = cgroup.stats().map_err(|error| {
            if error.is_gone() {
                Fault::not_found("cgroup does not exist")
            } else {
                Fault::chain("stats", &error)
            }
        })?;
        Ok(api::StatsResponse {
            stats: MessageField::some(stats::to_any(stats)),
            ..api::StatsResponse::default()
        })
    }

    fn connect(&self, id: &str) -> api::ConnectResponse {
        let task_pid = self
            .container(id)
            .and_then(|container| container.view())
            .map_or(0, |view| view.init.pid());
        api::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            ..api::ConnectResponse::default()
        }
    }

    async fn exec(&self, request: api::ExecProcessRequest) -> Result<api::Empty, Fault> {
        let container = self.container(&request.id)?;
        let id = exec_id(&request.exec_id)?.ok_or_else(|| Fault::invalid("exec id is missing"))?;
        let bytes = body(request.spec, "the process of the exec")?;
        let mut spec: serde_json::Value = serde_json::from_slice(&bytes)
            .map_err(|error| Fault::invalid(format!("the process of the exec: {error}")))?;
        match spec.as_object_mut() {
            Some(spec) => spec.insert("terminal".to_owned(), request.terminal.into()),
            None => return Err(Fault::invalid("the process of the exec is no object")),
        };
        let paths = StdioPaths {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let spec = spec.to_string().into_bytes();
        container
            .ask(|reply| Command::Exec(id, paths, spec, reply))
            .await?;
        Ok(api::Empty::default())
    }

    async fn call(&self, method: &str, payload: &[u8]) -> Result<Vec<u8>, Fault> {
        fault_point(&format!("rpc/{method}"));
        match method {
            "State" => encode(&self.state(&parse(payload)?)?),
            "Create" => encode(&self.create(parse(payload)?).await?),
            "Start" => {
                let request: api::StartRequest = parse(payload)?;
                let exec = exec_id(&request.exec_id)?;
                let container = self.container(&request.id)?;
                let pid = container.ask(|reply| Command::Start(exec, reply)).await?;
                encode(&api::StartResponse {
                    pid,
                    ..api::StartResponse::default()
                })
            }
            "Delete" => {
                let request: api::DeleteRequest = parse(payload)?;
                let exec = exec_id(&request.exec_id)?;
                let container = self.container(&request.id)?;
                let remains = container.ask(|reply| Command::Delete(exec, reply)).await?;
                encode(&api::DeleteResponse {
                    pid: remains.pid,
                    exit_status: remains.ended.map_or(0, |ended| ended.status.shell_code()),
                    exited_at: exited_at(remains.ended),
                    ..api::DeleteResponse::default()
                })
            }
            "Pids" => encode(&self.pids(&parse::<api::PidsRequest>(payload)?.id)?),
            "Pause" => {
                let container = self.container(&parse::<api::PauseRequest>(payload)?.id)?;
                empty(container.ask(Command::Pause).await)
            }
            "Resume" => {
                let container = self.container(&parse::<api::ResumeRequest>(payload)?.id)?;
                empty(container.ask(Command::Resume).await)
            }
            "Checkpoint" => {
                let request: api::CheckpointTaskRequest = parse(payload)?;
                let container = self.container(&request.id)?;
                let options = match request.options.into_option() {
                    Some(any) if !any.type_url.is_empty() && !is_checkpoint_options(&any) => {
                        return Err(Fault::invalid(format!(
                            "checkpoint options of type {:?}",
                            any.type_url
                        )));
                    }
                    Some(any) if !any.value.is_empty() => {
                        oci::CheckpointOptions::parse_from_bytes(&any.value).map_err(|error| {
                            Fault::invalid(format!("checkpoint options: {error}"))
                        })?
                    }
                    Some(_) | None => oci::CheckpointOptions::default(),
                };
                let request = CheckpointRequest {
                    path: request.path,
                    options,
                };
                empty(
                    container
                        .ask(|reply| Command::Checkpoint(request, reply))
                        .await,
                )
            }
            "Kill" => {
                let request: api::KillRequest = parse(payload)?;
                let exec = exec_id(&request.exec_id)?;
                let signal = i32::try_from(request.signal)
                    .map_err(|_| Fault::invalid(format!("signal {}", request.signal)))?;
                let all = request.all;
                let container = self.container(&request.id)?;
                empty(
                    container
                        .ask(|reply| Command::Kill {
                            exec,
                            signal,
                            all,
                            reply,
                        })
                        .await,
                )
            }
            "Exec" => encode(&self.exec(parse(payload)?).await?),
            "ResizePty" => {
                let request: api::ResizePtyRequest = parse(payload)?;
                let exec = exec_id(&request.exec_id)?;
                let size = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
                let (rows, columns) = (size(request.height), size(request.width));
                let container = self.container(&request.id)?;
                empty(
                    container
                        .ask(|reply| Command::Resize(exec, rows, columns, reply))
                        .await,
                )
            }
            "CloseIO" => {
                let request: api::CloseIORequest = parse(payload)?;
                let exec = exec_id(&request.exec_id)?;
                let container = self.container(&request.id)?;
                empty(container.ask(|reply| Command::CloseIo(exec, reply)).await)
            }
            "Update" => {
                let request: api::UpdateTaskRequest = parse(payload)?;
                let container = self.container(&request.id)?;
                let resources = body(request.resources, "resources")?;
                // serde would take a list for a structure whose fields are not named.
                if !resources.trim_ascii_start().starts_with(b"{") {
                    return Err(Fault::invalid("resources are no object"));
                }
                empty(
                    container
                        .ask(|reply| Command::Update(resources, reply))
                        .await,
                )
            }
            "Wait" => encode(&self.wait(&parse(payload)?).await?),
            "Stats" => encode(&self.stats(&parse::<api::StatsRequest>(payload)?.id)?),
            "Connect" => encode(&self.connect(&parse::<api::ConnectRequest>(payload)?.id)),
            "Shutdown" => {
                parse::<api::ShutdownRequest>(payload)?;
                if server::close(&self.shim) {
                    self.shutdown.notify_one();
                }
                encode(&api::Empty::default())
            }
            other => Err(Fault::unimplemented(format!(
                "method {other} is not implemented"
            ))),
        }
    }
}

fn encode(message: &impl Message) -> Result<Vec<u8>, Fault> {
    message
        .write_to_bytes()
        .map_err(|error| Fault::unknown(format!("encode the answer: {error}")))
}

fn empty(result: Result<(), Fault>) -> Result<Vec<u8>, Fault> {
    result.and_then(|()| encode(&api::Empty::default()))
}

impl Handler for TaskService {
    async fn handle(&self, service: &str, method: &str, payload: &[u8]) -> Result<Vec<u8>, Fault> {
        if service == upgrade::SERVICE {
            return upgrade::call(&self.shim, method, payload).await;
        }
        if !SERVICES.contains(&service) {
            return Err(Fault::unimplemented(format!(
                "service {service} is not implemented"
            )));
        }
        if image::is_degraded() && !FOR_EVERY_SHIM.contains(&method) {
            return Err(Fault::new(
                Code::UNAVAILABLE,
                format!(
                    "{method}: the shim fails again and again (incident {}); its containers run, but all that is served for now is {}",
                    image::lives().incident.unwrap_or_default(),
                    FOR_EVERY_SHIM.join(", ")
                ),
            ));
        }
        let answer = self.call(method, payload).await;
        self.idle.answered();
        answer
    }
}
