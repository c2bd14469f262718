//! Who has killed or stopped a shim, as far as the kernel tells.

use holdfast_record::Signal;
use holdfast_record::reason::{Oom, Sender};
use holdfast_record::witness::Witness;

/// What is known of it.
#[derive(Debug, Default)]
pub(crate) struct Finding {
    /// What was found, and what was not, a sentence each.
    pub(crate) findings: Vec<String>,
    /// Who sent the signal.
    pub(crate) sender: Option<Sender>,
    /// What the kernel says of a lack of memory.
    pub(crate) oom: Option<Oom>,
}

/// Looks in the kernel's records for a signal that a process got. Waits half a second for them at most.
pub(crate) fn of(pid: u32, signal: Signal) -> Finding {
    let mut found = Finding::default();
    let witness = Witness::from_env();
    match witness.sender(pid, signal) {
        Ok(Some(sent)) if sent.by_kernel => {}
        Ok(Some(sent)) => found.sender = Some(sent.sender),
        Ok(None) => found
            .findings
            .push(format!("the trace of signals has no {signal} for it")),
        Err(error) => found.findings.push(error.to_string()),
    }
    if signal != Signal::KILL {
        return found;
    }
    match witness.oom_kill(|kill| kill.victim_pid == pid) {
        Ok(Some(kill)) => found.oom = Some(kill.evidence(None)),
        Ok(None) => found
            .findings
            .push("the kernel's log has no lack of memory of it".to_owned()),
        Err(error) => found
            .findings
            .push(format!("the kernel's log cannot be read: {error}")),
    }
    found
}
