//! The `start` action: finds or makes the shim of a group and prints its address.
//!
//! containerd up to 2.2 sends the runtime options (an Any) and takes a plain address;
//! from 2.3 it sends `BootstrapParams` and takes a `BootstrapResult`. On success nothing
//! but the answer may be printed: containerd reads stdout and stderr as one.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;

use crate::cli::CommandLine;
use crate::fault::Fault;
use crate::handover;
use crate::keeper::{self, Keeper};
use crate::options::Options;
use crate::server::{LISTENER_FD, SOCKET_VARIABLE};
use crate::socket::{self, Claim, SocketError};
use crate::sys::{self, ChildSetup};

/// Most bytes of stdin that are read.
const MAX_STDIN: u64 = 10 << 20;
/// Version of the bootstrap protocol's answer. 2: the task service v2, which lets containerd
/// clean up after each container of a group, see `docs/0001-own-rpc-front.md`.
const RESULT_VERSION: i32 = 2;
/// Annotations that name a group, in order of precedence.
const GROUP_ANNOTATIONS: [&str; 2] = [
    "io.containerd.runc.v2.group",
    "io.kubernetes.cri.sandbox-id",
];

/// The shim could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// A step.
    #[error("{step}")]
    Step {
        /// Which one.
        step: String,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// The socket.
    #[error("shim socket")]
    Socket(#[from] SocketError),
    /// The options.
    #[error("{0}")]
    Options(String),
    /// The cgroup for the shim.
    #[error("put the shim into cgroup {path}")]
    Cgroup {
        /// ShimCgroup.
        path: String,
        /// Why not.
        #[source]
        source: holdfast_cgroups::Error,
    },
    /// The cgroup file systems.
    #[error("find the cgroup file systems")]
    Hierarchies(#[source] holdfast_cgroups::Error),
}

fn step(step: impl Into<String>) -> impl FnOnce(io::Error) -> StartError {
    let step = step.into();
    move |source| StartError::Step { step, source }
}

/// What came on stdin.
#[derive(Debug)]
struct Input {
    /// Some: answer as containerd 2.3 wants it.
    params: Option<BootstrapParams>,
    options: Options,
}

/// Tells the two formats apart. An Any parses as BootstrapParams, too, with its type in
/// `instance_id`; so the ids have to be the ones of the command line.
fn read_input(bytes: &[u8], line: &CommandLine) -> Result<Input, Fault> {
    if let Ok(params) = BootstrapParams::parse_from_bytes(bytes)
        && !params.instance_id.is_empty()
        && params.instance_id == line.id
        && params.namespace == line.namespace
    {
        let options = params
            .extensions
            .iter()
            .filter_map(|extension| extension.value.as_ref())
            .find(|any| any.type_url.ends_with("Options"))
            .map_or_else(|| Ok(Options::default()), Options::from_any)?;
        return Ok(Input {
            params: Some(params),
            options,
        });
    }
    let any = Any::parse_from_bytes(bytes)
        .map_err(|error| Fault::invalid(format!("options on stdin: {error}")))?;
    // Options that are not ours are no reason not to start; Create will say what is wrong.
    Ok(Input {
        params: None,
        options: Options::from_any(&any).unwrap_or_default(),
    })
}

fn group(bundle: &Path, id: &str) -> String {
    #[derive(serde::Deserialize)]
    struct Spec {
        #[serde(default)]
        annotations: BTreeMap<String, String>,
    }
    let annotations = std::fs::read(bundle.join("config.json"))
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Spec>(&bytes).ok())
        .map(|spec| spec.annotations)
        .unwrap_or_default();
    GROUP_ANNOTATIONS
        .iter()
        .find_map(|name| annotations.get(*name).filter(|value| !value.is_empty()))
        .map_or_else(|| id.to_owned(), Clone::clone)
}

/// Runs the action in the bundle that is the working directory.
///
/// # Errors
/// [`StartError`]; its text is what the user of containerd sees.
pub(crate) fn start(line: &CommandLine) -> Result<(), StartError> {
    let mut bytes = Vec::new();
    io::stdin()
        .lock()
        .take(MAX_STDIN)
        .read_to_end(&mut bytes)
        .map_err(step("read stdin"))?;
    let input = read_input(&bytes, line).map_err(|fault| StartError::Options(fault.text))?;
    let bundle = std::env::current_dir().map_err(step("find the bundle (working directory)"))?;
    let params = input.params.as_ref();
    let grpc_address = if line.address.is_empty() {
        params.map_or(String::new(), |params| {
            params.containerd_grpc_address.clone()
        })
    } else {
        line.address.clone()
    };
    let dir = params
        .and_then(|params| params.socket_dir.clone())
        .filter(|dir| !dir.is_empty())
        .unwrap_or_else(|| socket::DEFAULT_DIR.to_owned());
    let path = socket::path(
        Path::new(&dir),
        &grpc_address,
        &line.namespace,
        &group(&bundle, &line.id),
    );
    if let Claim::Listening(listener) = socket::claim(&path)?
        && let Err(error) = spawn_server(line, &input, &grpc_address, &path, listener.into())
    {
        let _ = std::fs::remove_file(&path);
        return Err(error);
    }
    let address = format!("unix://{}", path.display());
    // containerd up to 1.7 finds the shim again by this file, and 2.x after a downgrade.
    std::fs::write(bundle.join("address"), &address).map_err(step("write the address file"))?;
    let answer = if input.params.is_some() {
        BootstrapResult {
            version: RESULT_VERSION,
            address,
            protocol: "ttrpc".to_owned(),
            ..BootstrapResult::default()
        }
        .write_to_bytes()
        .map_err(|error| step("encode the answer")(io::Error::other(error)))?
    } else {
        address.into_bytes()
    };
    // A shim that was killed right after a Delete has left its last events to whoever comes next.
    drop(handover::begin(line));
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(&answer)
        .and_then(|()| stdout.flush())
        .map_err(step("print the address"))
}

fn spawn_server(
    line: &CommandLine,
    input: &Input,
    grpc_address: &str,
    path: &PathBuf,
    listener: OwnedFd,
) -> Result<(), StartError> {
    if std::env::var_os("SCHED_CORE").is_some_and(|value| !value.is_empty()) {
        sys::create_core_scheduling_cookie()
            .map_err(step("enable core scheduling (SCHED_CORE)"))?;
    }
    let program = std::env::current_exe().map_err(step("find this program"))?;
    let server = Server {
        line,
        input,
        grpc_address,
        path,
        program: &program,
    };
    let kept = Keeper::new().and_then(|keeper| {
        let mut command = server.command(Some(&keeper), None);
        sys::prepare_child(
            &mut command,
            ChildSetup {
                fds: keeper.descriptors(listener.try_clone()?)?,
                parent_death_signal: None,
                own_group: true,
            },
        );
        Ok((command.spawn()?, keeper))
    });
    match kept {
        Ok((child, keeper)) => {
            server.settle(child)?;
            // Only now: what it starts is where it is itself.
            keeper.go().map_err(step("let the shim's keeper begin"))
        }
        Err(error) => {
            let mut command = server.command(None, Some(&error));
            sys::prepare_child(
                &mut command,
                ChildSetup {
                    fds: vec![(listener, LISTENER_FD)],
                    parent_death_signal: None,
                    own_group: true,
                },
            );
            let child = command
                .spawn()
                .map_err(step(format!("start the server {}", program.display())))?;
            server.settle(child)
        }
    }
}

/// The server that is to be started.
struct Server<'a> {
    line: &'a CommandLine,
    input: &'a Input,
    grpc_address: &'a str,
    path: &'a PathBuf,
    program: &'a Path,
}

impl Server<'_> {
    /// Started by a keeper, or by itself for want of one.
    fn command(&self, keeper: Option<&Keeper>, alone: Option<&io::Error>) -> Command {
        let Self {
            line,
            input,
            grpc_address,
            path,
            program,
        } = self;
        let mut command = match keeper {
            Some(keeper) => keeper.command(program),
            None => Command::new(program),
        };
        command
            .args([
                "-namespace",
                &line.namespace,
                "-id",
                &line.id,
                "-address",
                *grpc_address,
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .env(SOCKET_VARIABLE, path);
        if line.debug {
            command.arg("-debug");
        }
        if let Some(params) = &input.params
            && std::env::var_os("TTRPC_ADDRESS").is_none_or(|address| address.is_empty())
        {
            command.env("TTRPC_ADDRESS", &params.containerd_ttrpc_address);
        }
        if std::env::vars_os().any(|(name, _)| name.to_string_lossy().starts_with("OTEL_")) {
            command.env("OTEL_SERVICE_NAME", format!("containerd-shim-{}", line.id));
        }
        match alone {
            Some(why) => command
                .env(keeper::ALONE_VARIABLE, why.to_string())
                .env_remove(keeper::KEPT_VARIABLE),
            None => command.env_remove(keeper::ALONE_VARIABLE),
        };
        command
    }

    /// Puts it where the options want it; ends it when that cannot be.
    fn settle(&self, mut child: Child) -> Result<(), StartError> {
        let pid = child.id();
        if let Err(error) = place(&self.input.options, pid) {
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
        // The kernel refuses to lower it without CAP_SYS_RESOURCE; the container is worth more.
        let _ = adjust_oom_score(pid);
        Ok(())
    }
}

/// Puts the server into the cgroup that the options name.
fn place(options: &Options, pid: u32) -> Result<(), StartError> {
    if options.shim_cgroup.is_empty() {
        return Ok(());
    }
    let hierarchies = holdfast_cgroups::Hierarchies::detect().map_err(StartError::Hierarchies)?;
    let pid = i32::try_from(pid).unwrap_or(i32::MAX);
    holdfast_cgroups::join(&hierarchies, Path::new(&options.shim_cgroup), pid).map_err(|source| {
        StartError::Cgroup {
            path: options.shim_cgroup.clone(),
            source,
        }
    })
}

/// One above containerd's own score: under pressure the shim goes after containerd, and
/// before neither.
fn adjust_oom_score(pid: u32) -> io::Result<()> {
    let parent = nix::unistd::getppid();
    let score: i32 = std::fs::read_to_string(format!("/proc/{parent}/oom_score_adj"))?
        .trim()
        .parse()
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    std::fs::write(
        format!("/proc/{pid}/oom_score_adj"),
        (score + 1).min(1000).to_string(),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use containerd_shim_protos::shim::oci;

    fn line() -> CommandLine {
        CommandLine::parse(["-namespace", "ns", "-id", "c1", "start"].map(str::to_owned)).unwrap()
    }

    fn runc_options() -> Any {
        let mut options = oci::Options::new();
        options.shim_cgroup = "/x".to_owned();
        Any {
            type_url: "containerd.runc.v1.Options".to_owned(),
            value: options.write_to_bytes().unwrap(),
            ..Any::default()
        }
    }

    #[test]
    fn tells_the_formats_of_all_containerds_apart() {
        let legacy = read_input(&runc_options().write_to_bytes().unwrap(), &line()).unwrap();
        assert!(legacy.params.is_none());
        assert_eq!(legacy.options.shim_cgroup, "/x");
        let nothing = read_input(&[], &line()).unwrap();
        assert!(nothing.params.is_none());
        let mut params = BootstrapParams::new();
        params.instance_id = "c1".to_owned();
        params.namespace = "ns".to_owned();
        let mut extension = containerd_shim_protos::bootstrap_api::Extension::new();
        extension.value = containerd_shim_protos::protobuf::MessageField::some(runc_options());
        params.extensions.push(extension);
        let new = read_input(&params.write_to_bytes().unwrap(), &line()).unwrap();
        assert!(new.params.is_some());
        assert_eq!(new.options.shim_cgroup, "/x");
        // Another id on the command line: not meant for us in this form.
        params.instance_id = "other".to_owned();
        assert!(
            read_input(&params.write_to_bytes().unwrap(), &line())
                .is_ok_and(|input| input.params.is_none())
        );
    }

    #[test]
    fn the_group_comes_from_the_annotations() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(group(dir.path(), "c1"), "c1");
        let config =
            r#"{"ociVersion":"1.0.0","annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}"#;
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        assert_eq!(group(dir.path(), "c1"), "pod");
    }
}
