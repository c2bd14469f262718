//! What an RPC answers when it fails: a gRPC code and a text that clients match on.

use std::error::Error;

use containerd_shim_protos::ttrpc::proto::{Code, Status};

use holdfast_record::Reason;
pub(crate) use holdfast_record::chain;

use crate::task::state::Refusal;

/// How containerd ends the texts of its kinds of errors.
const ENDINGS: [&str; 5] = [
    ": not found",
    ": already exists",
    ": failed precondition",
    ": invalid argument",
    ": unavailable",
];

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

    /// With the stable code of the reason that was written down for it: `… [HF151]`, for whoever reads an event of
    /// Kubernetes or docker's error and wants `holdfast why` or the manual page. It stands behind the text, so that
    /// what clients match on stays, and before containerd's own ending, which its clients cut off.
    pub(crate) fn with_code(mut self, reason: &Reason) -> Self {
        let code = format!(" [{}]", reason.code());
        if self.text.contains(code.trim_start()) {
            return self;
        }
        let end = ENDINGS.iter().find(|end| self.text.ends_with(*end));
        let at = self.text.len() - end.map_or(0, |end| end.len());
        self.text.insert_str(at, &code);
        self
    }

    /// As the wire wants it.
    pub(crate) fn into_status(self) -> Status {
        containerd_shim_protos::ttrpc::get_status(self.code, self.text)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_stands_behind_the_text_once_and_before_containerds_ending() {
        let reason = Reason::StartFailed { text: "x".into() };
        let said = |fault: Fault| fault.with_code(&reason).with_code(&reason).text;
        assert_eq!(
            said(Fault::unknown("no such file or directory")),
            "no such file or directory [HF153]"
        );
        assert_eq!(said(Fault::not_found("box")), "box [HF153]: not found");
        assert_eq!(
            said(Fault::from(Refusal::Precondition("it is gone".into()))),
            "it is gone [HF153]: failed precondition"
        );
    }
}
