//! Why a command failed, for the records: told to the shim that runs us, or written to the ledger by ourselves when
//! no shim of ours does.

use std::path::Path;
use std::sync::OnceLock;

use holdfast_record::barrier::NAMESPACE_ENV;
use holdfast_record::ledger::{Kind, Ledger, NAME_ANNOTATIONS, Pod, Record};
use holdfast_record::logging::{self, Places};
use holdfast_record::reason::TimedOut;
use holdfast_record::{ContainerId, Namespace, Reason, Timestamp};

use crate::error::{Error, chain};

/// The code of what was written down as the reason of this command's failure.
static RECORDED: OnceLock<&'static str> = OnceLock::new();

/// What was to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// `create`, and `run` up to its start.
    Create,
    /// `start`.
    Start,
    /// `exec`.
    Exec,
    /// `delete`.
    Delete,
}

/// The reason that `error` is, as one of the closed list.
pub(crate) fn reason(error: &Error, operation: Operation) -> Reason {
    if let Error::Hook(hook) = error {
        return hook.reason();
    }
    if let Error::Gpu(gpu) = error {
        return gpu.reason();
    }
    if let Error::Expired { waited, seen, .. } = error {
        let timed_out = TimedOut {
            step: waited.what.clone(),
            waited: waited.limit,
            process: Some((**seen).clone()),
        };
        match operation {
            Operation::Create | Operation::Start => return Reason::CreateTimedOut(timed_out),
            Operation::Exec => return Reason::ExecTimedOut(timed_out),
            Operation::Delete => {}
        }
    }
    let text = chain(error);
    match operation {
        Operation::Create => Reason::CreateStepFailed {
            step: error.to_string(),
            // What the step's own words do not say yet.
            text: std::error::Error::source(error).map_or_else(|| text.clone(), chain),
        },
        Operation::Start => Reason::StartFailed { text },
        Operation::Exec => Reason::ExecFailed { text },
        Operation::Delete => Reason::RuntimeFailed {
            operation: "delete the container".to_owned(),
            status: None,
            text,
        },
    }
}

/// The containerd namespace of the shim that runs us and keeps the records; none when somebody else runs us.
pub(crate) fn shim_namespace() -> Option<&'static Namespace> {
    static NAMESPACE: OnceLock<Option<Namespace>> = OnceLock::new();
    NAMESPACE
        .get_or_init(|| Namespace::new(std::env::var(NAMESPACE_ENV).ok()?).ok())
        .as_ref()
}

/// Records that `operation` failed, when there is no shim of ours to do so.
///
/// `bundle` is where the pod's annotations are.
pub(crate) fn record(error: &Error, operation: Operation, id: &ContainerId, bundle: &Path) {
    let is_known = match error {
        // Nothing ended: the command made no sense, or what it was for is not there.
        Error::Usage(_) | Error::NoContainer { .. } | Error::Exists { .. } => true,
        // It still runs, and goes on running.
        Error::Status { .. } if operation == Operation::Delete => true,
        _ => shim_namespace().is_some(),
    };
    if is_known {
        return;
    }
    let kind = match operation {
        Operation::Create | Operation::Start => Kind::Container,
        Operation::Exec => Kind::Exec,
        Operation::Delete => Kind::Runtime,
    };
    let reason = reason(error, operation);
    if write(kind, &reason, id, bundle) {
        // The first is what the others follow from.
        let _ = RECORDED.set(reason.code());
    }
}

/// What this command says of its failure: the text, and the code of the reason where one was written down, for
/// `holdfast why` and `holdfast-reasons(7)`. Behind the text: docker, podman and containerd match on what is in it.
/// (A shim of ours keeps the record, and says the code itself.)
pub(crate) fn with_code(text: String) -> String {
    match RECORDED.get() {
        Some(code) => format!("{text} [{code}]"),
        None => text,
    }
}

/// Records a hook whose failure stops nothing (poststop), whoever runs us: no answer tells of it.
pub(crate) fn record_hook(error: &crate::hooks::Error, id: &ContainerId, bundle: &Path) {
    write(Kind::Hook, &error.reason(), id, bundle);
}

fn write(kind: Kind, reason: &Reason, id: &ContainerId, bundle: &Path) -> bool {
    if !nix::unistd::geteuid().is_root() {
        // The ledger is root's; a user's own containers are that user's matter.
        return false;
    }
    let annotations = annotations(bundle);
    let get = |key: &str| annotations.get(key).and_then(serde_json::Value::as_str);
    let record = Record::new(kind, reason, Timestamp::now())
        .of_container(shim_namespace(), id)
        .with_name(
            NAME_ANNOTATIONS
                .iter()
                .find_map(|key| get(key))
                .map(str::to_owned),
        )
        .with_pod(Pod::from_annotations(get));
    logging::publish(&Ledger::from_env(), &Places::default(), &record);
    true
}

fn annotations(bundle: &Path) -> serde_json::Map<String, serde_json::Value> {
    let spec: Option<serde_json::Value> = crate::document::now(&bundle.join("config.json"))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    match spec.map(|mut spec| spec["annotations"].take()) {
        Some(serde_json::Value::Object(annotations)) => annotations,
        Some(_) | None => serde_json::Map::new(),
    }
}

/// Panics are reported where our words go, and recorded as ends of the runtime.
pub(crate) fn report_panics() {
    logging::report_panics(Ledger::from_env(), Places::default(), |panicked| {
        let record = Record::new(
            Kind::Runtime,
            &Reason::RuntimePanicked(panicked),
            Timestamp::now(),
        );
        // The id is the last word of every command that a shim gives.
        let last = std::env::args().next_back().unwrap_or_default();
        match ContainerId::new(last) {
            Ok(id) => record.of_container(shim_namespace(), &id),
            Err(_) => record,
        }
    });
}
