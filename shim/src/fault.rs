//! What an RPC answers when it fails: a gRPC code and a text that clients match on.

use std::error::Error;

use containerd_shim_protos::ttrpc::proto::{Code, Status};

use holdfast_record::Reason;

use crate::task::state::Refusal;

/// A failed RPC.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Fault {
    /// The gRPC code.
    pub(crate) code: Code,
    /// The text containerd shows, verbatim.
    pub(crate) text: String,
    /// For the records, where it is known.
    pub(crate) reason: Option<Box<Reason>>,
}

impl Fault {
    /// Any code with any text.
    pub(crate) fn new(code: Code, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
            reason: None,
        }
    }

    /// Code 2, what Go answers for plain errors.
    pub(crate) fn unknown(text: impl Into<String>) -> Self {
        Self::new(Code::UNKNOWN, text)
    }

    /// Code 3.
    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self::new(
            Code::INVALID_ARGUMENT,
            format!("{}: invalid argument", text.into()),
        )
    }

    /// Code 5; the text gets containerd's ending.
    pub(crate) fn not_found(text: &str) -> Self {
        Self::new(Code::NOT_FOUND, format!("{text}: not found"))
    }

    /// Code 5 for a container that is not here.
    pub(crate) fn no_container() -> Self {
        Self::not_found("container not created")
    }

    /// Code 5 for a process that has ended; clients take it for success of Kill.
    pub(crate) fn finished() -> Self {
        Self::not_found("process already finished")
    }

    /// Code 12.
    pub(crate) fn unimplemented(text: impl Into<String>) -> Self {
        Self::new(Code::UNIMPLEMENTED, text)
    }

    /// Code 4.
    pub(crate) fn deadline(text: impl Into<String>) -> Self {
        Self::new(Code::DEADLINE_EXCEEDED, text)
    }

    /// Code 2 with the whole chain of an error behind `what`.
    pub(crate) fn chain(what: &str, error: &(dyn Error + 'static)) -> Self {
        Self::unknown(format!("{what}: {}", chain(error)))
    }

    /// As the wire wants it.
    pub(crate) fn into_status(self) -> Status {
        containerd_shim_protos::ttrpc::get_status(self.code, self.text)
    }
}

/// An error with everything it was caused by, once.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut out = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        out.push_str(": ");
        out.push_str(&error.to_string());
        cause = error.source();
    }
    out
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        let code = match &refusal {
            Refusal::State(_) => Code::UNKNOWN,
            Refusal::NotFound(_) => Code::NOT_FOUND,
            Refusal::Exists(_) => Code::ALREADY_EXISTS,
            Refusal::Precondition(_) => Code::FAILED_PRECONDITION,
            Refusal::Busy(_) => Code::UNAVAILABLE,
        };
        Self::new(code, refusal.to_string())
    }
}
