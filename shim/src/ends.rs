//! Ends of our own processes, for the ledger: panics, starts that failed, and work that is done.

use holdfast_record::ledger::{Kind, Ledger, Record};
use holdfast_record::logging::{self, Places, publish};
use holdfast_record::process::ProcessIdentity;
use holdfast_record::{ContainerId, Namespace, Reason, Timestamp};

use crate::cli::CommandLine;

/// A record about the shim of the container that the command line names.
fn record(kind: Kind, reason: &Reason, namespace: &str, id: &str) -> Record {
    let record = Record::new(kind, reason, Timestamp::now());
    match ContainerId::new(id) {
        Ok(id) => record.of_container(Namespace::new(namespace).ok().as_ref(), &id),
        Err(_) => record,
    }
}

/// Panics of this process go to fd 2, the ledger and journald.
pub(crate) fn report_panics(line: &CommandLine) {
    let (namespace, id) = (line.namespace.clone(), line.id.clone());
    logging::report_panics(Ledger::from_env(), Places::default(), move |panicked| {
        let reason = Reason::ShimPanicked(panicked);
        record(Kind::Shim, &reason, &namespace, &id)
    });
}

/// A shim that could not begin: its container was not created, and no shim is there to say so.
pub(crate) fn record_failed_start(line: &CommandLine, text: &str) {
    let reason = Reason::CreateStepFailed {
        step: "start the shim".to_owned(),
        text: text.to_owned(),
    };
    let record = record(Kind::Container, &reason, &line.namespace, &line.id);
    publish(&Ledger::from_env(), &Places::default(), &record);
}

/// The end that every shim is to have.
pub(crate) fn finished(namespace: &Namespace, id: &str) -> Record {
    let record = record(Kind::Shim, &Reason::ShimFinished, namespace.as_str(), id);
    match ProcessIdentity::read(std::process::id()) {
        Ok(process) => record.with_process(process),
        Err(_) => record,
    }
}
