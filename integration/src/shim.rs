//! A shim dialled directly: raw ttrpc by service and method name, so that both versions of the
//! task API, and calls that no client makes, can be tried.

use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{CodedOutputStream, Message, MessageField};
use containerd_shim_protos::shim::oci::Options;
use containerd_shim_protos::ttrpc::{self, Client, Request};

use crate::bundle::Bundle;
use crate::containerd::Containerd;
use crate::scratch::text;

/// The task API as containerd 1.x calls it.
pub const V2: &str = "containerd.task.v2.Task";
/// The task API as containerd 2.x calls it; the same messages.
pub const V3: &str = "containerd.task.v3.Task";

/// Every method of the task API, in the order in which its definition has them.
pub const METHODS: [&str; 17] = [
    "State",
    "Create",
    "Start",
    "Delete",
    "Pids",
    "Pause",
    "Resume",
    "Checkpoint",
    "Kill",
    "Exec",
    "ResizePty",
    "CloseIO",
    "Update",
    "Wait",
    "Stats",
    "Connect",
    "Shutdown",
];

/// gRPC's code, with the message that came with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// gRPC's numbers: 2 unknown, 3 invalid argument, 5 not found, 12 unimplemented …
    pub code: i32,
    /// For people.
    pub message: String,
}

/// A connection to a shim.
#[derive(Clone)]
pub struct Shim {
    client: Client,
    service: &'static str,
    limit: Duration,
}

impl std::fmt::Debug for Shim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shim({})", self.service)
    }
}

impl Shim {
    /// Dials `unix://…`.
    ///
    /// # Panics
    /// When nobody answers.
    #[must_use]
    pub fn dial(address: &str) -> Self {
        let client = Client::connect(address).unwrap_or_else(|e| panic!("dial {address}: {e}"));
        Self {
            client,
            service: V2,
            limit: Duration::from_secs(60),
        }
    }

    /// Dials the shim of a task of containerd's, for the service containerd calls.
    ///
    /// # Panics
    /// When its address is not found, or nobody answers.
    #[must_use]
    pub fn of(containerd: &Containerd, id: &str) -> Self {
        let (address, service) = address_in(&containerd.bundle(id));
        Self::dial(&address).calling(service)
    }

    /// The same connection, calling another service.
    #[must_use]
    pub fn calling(&self, service: &'static str) -> Self {
        Self {
            client: self.client.clone(),
            service,
            limit: self.limit,
        }
    }

    /// The same connection, whose calls may take so long instead of a minute.
    #[must_use]
    pub fn waiting(&self, limit: Duration) -> Self {
        Self {
            limit,
            ..self.clone()
        }
    }

    /// One call with a deadline, of 60 s unless [`Shim::waiting`] says another.
    ///
    /// # Errors
    /// What the shim answered.
    ///
    /// # Panics
    /// When the connection fails or the reply is no such message.
    pub fn call<Q: Message, R: Message>(&self, method: &str, request: &Q) -> Result<R, Refused> {
        self.call_raw(method, request.write_to_bytes().expect("encode"))
            .map(|payload| R::parse_from_bytes(&payload).expect("decode the reply"))
    }

    /// One call with a payload that may be anything.
    ///
    /// # Errors
    /// What the shim answered.
    ///
    /// # Panics
    /// When the connection fails.
    pub fn call_raw(&self, method: &str, payload: Vec<u8>) -> Result<Vec<u8>, Refused> {
        let mut request = Request::new();
        request.service = self.service.to_owned();
        request.method = method.to_owned();
        request.payload = payload;
        request.timeout_nano = i64::try_from(self.limit.as_nanos()).expect("nanoseconds fit");
        match self.client.request(request) {
            Ok(response) => Ok(response.payload),
            Err(ttrpc::Error::RpcStatus(status)) => Err(Refused {
                code: status.code.value(),
                message: status.message,
            }),
            Err(e) => panic!("{}/{method}: {e}", self.service),
        }
    }

    /// Registers a process with null stdio.
    ///
    /// # Errors
    /// What the shim answered.
    pub fn exec(&self, id: &str, exec_id: &str, args: &[&str]) -> Result<(), Refused> {
        let mut request = api::ExecProcessRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        request.spec = MessageField::some(process_any(args));
        self.call::<_, api::Empty>("Exec", &request).map(|_| ())
    }

    /// Registers a process with streams: paths of fifos, empty for none.
    ///
    /// # Errors
    /// What the shim answered.
    pub fn exec_with_streams(
        &self,
        id: &str,
        exec_id: &str,
        args: &[&str],
        [stdin, stdout, stderr]: [&str; 3],
    ) -> Result<(), Refused> {
        let mut request = api::ExecProcessRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        request.stdin = stdin.to_owned();
        request.stdout = stdout.to_owned();
        request.stderr = stderr.to_owned();
        request.spec = MessageField::some(process_any(args));
        self.call::<_, api::Empty>("Exec", &request).map(|_| ())
    }

    /// Tells the shim that no more input will come.
    ///
    /// # Errors
    /// What the shim answered.
    pub fn close_stdin(&self, id: &str, exec_id: &str) -> Result<(), Refused> {
        let mut request = api::CloseIORequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        request.stdin = true;
        self.call::<_, api::Empty>("CloseIO", &request).map(|_| ())
    }

    /// Starts init (`exec_id` empty) or a registered process; its pid.
    ///
    /// # Errors
    /// What the shim answered.
    pub fn start(&self, id: &str, exec_id: &str) -> Result<u32, Refused> {
        let mut request = api::StartRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        self.call::<_, api::StartResponse>("Start", &request)
            .map(|reply| reply.pid)
    }

    /// Its state.
    ///
    /// # Errors
    /// What the shim answered.
    pub fn state(&self, id: &str, exec_id: &str) -> Result<api::StateResponse, Refused> {
        let mut request = api::StateRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        self.call("State", &request)
    }

    /// Waits for its end; its exit status.
    ///
    /// # Errors
    /// What the shim answered.
    pub fn wait(&self, id: &str, exec_id: &str) -> Result<u32, Refused> {
        let mut request = api::WaitRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        self.call::<_, api::WaitResponse>("Wait", &request)
            .map(|reply| reply.exit_status)
    }

    /// Signals it.
    ///
    /// # Errors
    /// What the shim answered.
    pub fn kill(&self, id: &str, exec_id: &str, signal: u32) -> Result<(), Refused> {
        let mut request = api::KillRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        request.signal = signal;
        self.call::<_, api::Empty>("Kill", &request).map(|_| ())
    }

    /// Deletes it.
    ///
    /// # Errors
    /// What the shim answered.
    pub fn delete(&self, id: &str, exec_id: &str) -> Result<api::DeleteResponse, Refused> {
        let mut request = api::DeleteRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        self.call("Delete", &request)
    }

    /// The pids of a container.
    ///
    /// # Errors
    /// What the shim answered.
    pub fn pids(&self, id: &str) -> Result<Vec<u32>, Refused> {
        let mut request = api::PidsRequest::new();
        request.id = id.to_owned();
        self.call::<_, api::PidsResponse>("Pids", &request)
            .map(|reply| reply.processes.iter().map(|process| process.pid).collect())
    }

    /// A bundle for [`Shim::create`]: a sleeping container with docker's profile.
    #[must_use]
    pub fn bundle_by_hand(&self, containerd: &Containerd, id: &str) -> Bundle {
        let path = containerd.path(&format!("bundle-{id}"));
        let bundle = Bundle::new(&path, id, &containerd.namespace);
        bundle.docker_seccomp().args(&["sleep", "600"])
    }

    /// Creates a container without streams, without containerd knowing of it; its pid.
    ///
    /// # Errors
    /// What the shim answered.
    pub fn create(&self, bundle: &Bundle, options: Any) -> Result<u32, Refused> {
        let mut request = api::CreateTaskRequest::new();
        request.id.clone_from(&bundle.id);
        request.bundle = text(&bundle.path);
        request.options = MessageField::some(options);
        self.call::<_, api::CreateTaskResponse>("Create", &request)
            .map(|created| created.pid)
    }

    /// Creates and starts a sleeping container with docker's profile in this shim, as containerd
    /// would for a further container of a pod, but without containerd knowing of it.
    ///
    /// # Panics
    /// When the shim refuses.
    pub fn create_by_hand(&self, containerd: &Containerd, id: &str, options: Any) -> Bundle {
        let bundle = self.bundle_by_hand(containerd, id);
        bundle.write();
        let pid = self.create(&bundle, options).expect("Create");
        assert_ne!(pid, 0);
        assert_eq!(self.start(id, "").expect("Start"), pid);
        bundle
    }

    /// The shim's own pid.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    pub fn pid(&self, id: &str) -> i32 {
        let mut request = api::ConnectRequest::new();
        request.id = id.to_owned();
        let reply: api::ConnectResponse = self.call("Connect", &request).expect("Connect");
        i32::try_from(reply.shim_pid).expect("a pid fits")
    }
}

/// The parent of a process.
///
/// # Panics
/// When there is no such process.
#[must_use]
pub fn parent_of(pid: i32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process lives");
    let (_, rest) = stat.rsplit_once(") ").expect("a line of /proc");
    let parent = rest.split(' ').nth(1).expect("a parent");
    parent.parse().expect("a pid")
}

/// The keeper that would begin the shim anew; none where it has none.
///
/// # Panics
/// When there is no such shim.
#[must_use]
pub fn keeper_of(shim: i32) -> Option<i32> {
    let parent = parent_of(shim);
    let name = std::fs::read_to_string(format!("/proc/{parent}/comm")).ok()?;
    (name.trim() == "holdfast-keeper").then_some(parent)
}

/// Kills a shim so that it stays dead: its keeper first, if it has one.
///
/// # Panics
/// When there is no such shim.
pub fn kill_for_good(shim: i32) {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    if let Some(keeper) = keeper_of(shim) {
        let _ = kill(Pid::from_raw(keeper), Signal::SIGKILL);
    }
    kill(Pid::from_raw(shim), Signal::SIGKILL).expect("the shim lives");
}

/// Options that make the shim call another runtime, with its state in `root`.
///
/// # Panics
/// Never in practice.
#[must_use]
pub fn runc_options(program: &Path, root: &Path) -> Any {
    let mut options = Options::new();
    options.binary_name = text(program);
    options.root = text(root);
    let mut any = Any::new();
    any.type_url = "containerd.runc.v1.Options".to_owned();
    any.value = options.write_to_bytes().expect("encode");
    any
}

/// Options as containerd passes those of a runtime handler that it does not know itself: the TOML of its configuration.
///
/// # Panics
/// Never in practice.
#[must_use]
pub fn toml_options(body: &str) -> Any {
    // runtimeoptions.v1.Options: type_url = 1, config_path = 2, config_body = 3.
    let mut value = Vec::new();
    let mut stream = CodedOutputStream::vec(&mut value);
    stream
        .write_string(1, "io.containerd.runc.v1.Options")
        .and_then(|()| stream.write_string(3, body))
        .and_then(|()| stream.flush())
        .expect("encode");
    drop(stream);
    let mut any = Any::new();
    any.type_url = "runtimeoptions.v1.Options".to_owned();
    any.value = value;
    any
}

/// Options that leave everything as it is.
#[must_use]
pub fn empty_options() -> Any {
    let mut any = Any::new();
    any.type_url = "containerd.runc.v1.Options".to_owned();
    any
}

/// An OCI process as containerd passes it to Exec.
#[must_use]
pub fn process_any(args: &[&str]) -> Any {
    let process = serde_json::json!({
        "user": {"uid": 0, "gid": 0}, "args": args, "env": ["PATH=/bin:/sbin"], "cwd": "/",
    });
    let mut any = Any::new();
    any.type_url = "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned();
    any.value = process.to_string().into_bytes();
    any
}

/// The address of the shim of a bundle, and the service it announced: containerd 2.x writes
/// `bootstrap.json`, older shims write `address`.
///
/// # Panics
/// When neither is there.
#[must_use]
pub fn address_in(bundle: &Path) -> (String, &'static str) {
    if let Ok(text) = std::fs::read_to_string(bundle.join("bootstrap.json")) {
        let bootstrap: serde_json::Value = serde_json::from_str(&text).expect("bootstrap.json");
        let address = bootstrap["address"]
            .as_str()
            .expect("an address")
            .to_owned();
        let service = if bootstrap["version"].as_u64() == Some(3) {
            V3
        } else {
            V2
        };
        return (address, service);
    }
    let address = std::fs::read_to_string(bundle.join("address")).unwrap_or_else(|e| {
        panic!(
            "{}: neither bootstrap.json nor address: {e}",
            bundle.display()
        )
    });
    (address, V2)
}
