//! A client of containerd's CRI plugin: the part of `runtime.v1` that a pod's life needs, with the
//! numbers of Kubernetes' published protocol. Fields that nobody here uses are left out.

use std::collections::HashMap;
use std::time::Duration;

use holdfast_integration::containerd::Containerd;
use holdfast_integration::scratch::text;
use http::uri::PathAndQuery;
use prost::Message;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// How long a call may take.
const LIMIT: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub(crate) struct Cri {
    event_loop: tokio::runtime::Runtime,
    endpoint: Endpoint,
}

impl Cri {
    pub(crate) fn of(containerd: &Containerd) -> Self {
        let uri = format!("unix://{}", text(&containerd.address()));
        Self {
            event_loop: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap(),
            endpoint: Endpoint::from_shared(uri).unwrap().timeout(LIMIT),
        }
    }

    /// One call on a connection of its own: the daemon may have been another one before.
    pub(crate) fn call<Q, R>(&self, method: &str, request: Q) -> Result<R, Status>
    where
        Q: Message + Default + 'static,
        R: Message + Default + 'static,
    {
        let path = format!("/runtime.v1.RuntimeService/{method}");
        self.event_loop.block_on(async {
            let channel: Channel = self
                .endpoint
                .connect()
                .await
                .map_err(|error| Status::new(Code::Unavailable, format!("connect: {error}")))?;
            let mut client = tonic::client::Grpc::new(channel);
            client
                .ready()
                .await
                .map_err(|error| Status::new(Code::Unavailable, error.to_string()))?;
            let codec = tonic_prost::ProstCodec::default();
            let path = PathAndQuery::try_from(path).unwrap();
            let reply = client
                .unary(tonic::Request::new(request), path, codec)
                .await?;
            Ok(reply.into_inner())
        })
    }

    /// One call that must succeed.
    #[track_caller]
    pub(crate) fn ok<Q, R>(&self, method: &str, request: Q) -> R
    where
        Q: Message + Default + 'static,
        R: Message + Default + 'static,
    {
        self.call(method, request)
            .unwrap_or_else(|status| panic!("{method}: {status}"))
    }
}

macro_rules! messages {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field:meta])* $member:ident: $kind:ty,)* })+) => { $(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Message)]
        pub(crate) struct $name { $($(#[$field])* pub(crate) $member: $kind,)* }
    )+ };
}

messages! {
    Empty {}
    /// Its namespaces: 0 the pod's, 1 the container's own, 2 the node's.
    NamespaceOption {
        #[prost(int32, tag = "1")] network: i32,
        #[prost(int32, tag = "2")] pid: i32,
        #[prost(int32, tag = "3")] ipc: i32,
    }
    SandboxSecurity {
        #[prost(message, optional, tag = "1")] namespaces: Option<NamespaceOption>,
    }
    LinuxSandbox {
        #[prost(string, tag = "1")] cgroup_parent: String,
        #[prost(message, optional, tag = "2")] security: Option<SandboxSecurity>,
    }
    SandboxMetadata {
        #[prost(string, tag = "1")] name: String,
        #[prost(string, tag = "2")] uid: String,
        #[prost(string, tag = "3")] namespace: String,
        #[prost(uint32, tag = "4")] attempt: u32,
    }
    SandboxConfig {
        #[prost(message, optional, tag = "1")] metadata: Option<SandboxMetadata>,
        #[prost(string, tag = "2")] hostname: String,
        #[prost(string, tag = "3")] log_directory: String,
        #[prost(map = "string, string", tag = "6")] labels: HashMap<String, String>,
        #[prost(message, optional, tag = "8")] linux: Option<LinuxSandbox>,
    }
    RunPodSandbox {
        #[prost(message, optional, tag = "1")] config: Option<SandboxConfig>,
        #[prost(string, tag = "2")] handler: String,
    }
    /// Requests and answers that are one id.
    Id {
        #[prost(string, tag = "1")] id: String,
    }
    SandboxState {
        #[prost(string, tag = "1")] id: String,
        /// 0 ready, 1 not.
        #[prost(int32, tag = "3")] state: i32,
    }
    SandboxStatus {
        #[prost(message, optional, tag = "1")] status: Option<SandboxState>,
    }
    ContainerMetadata {
        #[prost(string, tag = "1")] name: String,
        #[prost(uint32, tag = "2")] attempt: u32,
    }
    Image {
        #[prost(string, tag = "1")] image: String,
    }
    Resources {
        #[prost(int64, tag = "3")] cpu_shares: i64,
        #[prost(int64, tag = "4")] memory_limit: i64,
    }
    ContainerSecurity {
        #[prost(message, optional, tag = "3")] namespaces: Option<NamespaceOption>,
    }
    LinuxContainer {
        #[prost(message, optional, tag = "1")] resources: Option<Resources>,
        #[prost(message, optional, tag = "2")] security: Option<ContainerSecurity>,
    }
    ContainerConfig {
        #[prost(message, optional, tag = "1")] metadata: Option<ContainerMetadata>,
        #[prost(message, optional, tag = "2")] image: Option<Image>,
        #[prost(string, repeated, tag = "3")] command: Vec<String>,
        #[prost(string, tag = "11")] log_path: String,
        #[prost(message, optional, tag = "15")] linux: Option<LinuxContainer>,
    }
    CreateContainer {
        #[prost(string, tag = "1")] sandbox: String,
        #[prost(message, optional, tag = "2")] config: Option<ContainerConfig>,
        #[prost(message, optional, tag = "3")] sandbox_config: Option<SandboxConfig>,
    }
    ContainerState {
        #[prost(string, tag = "1")] id: String,
        /// 0 created, 1 running, 2 exited, 3 unknown.
        #[prost(int32, tag = "3")] state: i32,
        #[prost(int64, tag = "6")] finished_at: i64,
        #[prost(int32, tag = "7")] exit_code: i32,
        #[prost(string, tag = "10")] reason: String,
    }
    ContainerStatus {
        #[prost(message, optional, tag = "1")] status: Option<ContainerState>,
    }
    ExecSync {
        #[prost(string, tag = "1")] container: String,
        #[prost(string, repeated, tag = "2")] command: Vec<String>,
        /// Seconds.
        #[prost(int64, tag = "3")] timeout: i64,
    }
    ExecSyncAnswer {
        #[prost(bytes = "vec", tag = "1")] stdout: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")] stderr: Vec<u8>,
        #[prost(int32, tag = "3")] exit_code: i32,
    }
    Number {
        #[prost(uint64, tag = "1")] value: u64,
    }
    Cpu {
        #[prost(message, optional, tag = "2")] usage: Option<Number>,
    }
    Memory {
        #[prost(message, optional, tag = "2")] working_set: Option<Number>,
        #[prost(message, optional, tag = "4")] usage: Option<Number>,
        #[prost(message, optional, tag = "5")] rss: Option<Number>,
        #[prost(message, optional, tag = "6")] page_faults: Option<Number>,
    }
    Stats {
        #[prost(message, optional, tag = "1")] attributes: Option<Id>,
        #[prost(message, optional, tag = "2")] cpu: Option<Cpu>,
        #[prost(message, optional, tag = "3")] memory: Option<Memory>,
    }
    ContainerStats {
        #[prost(message, optional, tag = "1")] stats: Option<Stats>,
    }
    Processes {
        #[prost(message, optional, tag = "2")] count: Option<Number>,
    }
    LinuxSandboxStats {
        #[prost(message, optional, tag = "1")] cpu: Option<Cpu>,
        #[prost(message, optional, tag = "2")] memory: Option<Memory>,
        #[prost(message, optional, tag = "4")] processes: Option<Processes>,
        #[prost(message, repeated, tag = "5")] containers: Vec<Stats>,
    }
    SandboxStats {
        #[prost(message, optional, tag = "1")] attributes: Option<Id>,
        #[prost(message, optional, tag = "2")] linux: Option<LinuxSandboxStats>,
    }
    SandboxStatsList {
        #[prost(message, repeated, tag = "1")] stats: Vec<SandboxStats>,
    }
    UpdateContainer {
        #[prost(string, tag = "1")] container: String,
        #[prost(message, optional, tag = "2")] linux: Option<Resources>,
    }
    StopContainer {
        #[prost(string, tag = "1")] container: String,
        /// Seconds of grace.
        #[prost(int64, tag = "2")] timeout: i64,
    }
}
