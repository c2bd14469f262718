//! Structured fields for systemd's journal, by its datagram protocol (systemd's `docs/JOURNAL_NATIVE_PROTOCOL.md`).

use std::io;
use std::os::unix::net::UnixDatagram;

use super::Places;
use crate::chain;
use crate::ledger::{Ledger, Record};
use crate::text::head;
use crate::why;

/// Longest value in bytes; a datagram must stay well below the default send buffer (`net.core.wmem_default`, 212992).
const VALUE_LIMIT: usize = 48 << 10;

/// Sends one entry with `fields` to journald. `Ok(false)`: no journald runs here.
///
/// Names are upper case letters, digits and underscores, not beginning with an underscore; values are any text, cut
/// after 48 KiB. Never waits.
///
/// # Errors
/// `InvalidInput` for a name that journald would refuse; `WouldBlock` when journald does not keep up.
pub fn journal_fields(places: &Places, fields: &[(&str, &str)]) -> io::Result<bool> {
    let mut entry = Vec::new();
    for (name, value) in fields {
        let valid = name.len() <= 64
            && name.starts_with(|c: char| c.is_ascii_uppercase())
            && name
                .bytes()
                .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
        if !valid {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{name:?} is no name of a journal field"),
            ));
        }
        let value = head(value, VALUE_LIMIT);
        entry.extend_from_slice(name.as_bytes());
        if value.contains('\n') {
            entry.push(b'\n');
            entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            entry.push(b'=');
        }
        entry.extend_from_slice(value.as_bytes());
        entry.push(b'\n');
    }
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    match socket.send_to(&entry, &places.datagram) {
        Ok(_) => Ok(true),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// The journal fields of a record: its sentence as MESSAGE, its MESSAGE_ID, and whose end it is.
#[must_use]
pub fn record_fields(record: &Record) -> Vec<(&'static str, String)> {
    let mut fields = vec![
        ("MESSAGE", why::sentence(record)),
        ("PRIORITY", priority(record).to_owned()),
        ("SYSLOG_IDENTIFIER", "holdfast".to_owned()),
        ("REASON", record.code.clone()),
        ("KIND", record.kind.to_string()),
    ];
    if let Some(entry) = record.entry() {
        fields.push(("MESSAGE_ID", entry.message_id.to_string()));
    }
    if let Some(status) = record.status {
        fields.push(("EXIT_STATUS", status.shell_code().to_string()));
    }
    let optional = [
        ("CONTAINER_ID", record.container.as_ref()),
        ("CONTAINERD_NAMESPACE", record.namespace.as_ref()),
        ("EXEC_ID", record.exec.as_ref()),
        ("INCIDENT", record.incident.as_ref()),
        ("POD_NAME", record.pod.as_ref().map(|pod| &pod.name)),
        (
            "POD_NAMESPACE",
            record.pod.as_ref().map(|pod| &pod.namespace),
        ),
        ("POD_UID", record.pod.as_ref().map(|pod| &pod.uid)),
    ];
    for (name, value) in optional {
        if let Some(value) = value
            && !value.is_empty()
        {
            fields.push((name, value.clone()));
        }
    }
    if !record.evidence.is_null() {
        fields.push(("EVIDENCE", record.evidence.to_string()));
    }
    fields
}

/// Info for what somebody wanted or the program chose, error for the rest.
fn priority(record: &Record) -> &'static str {
    match record.code.as_str() {
        "HF101" | "HF103" | "HF111" | "HF112" | "HF170" | "HF191" => "6",
        _ => "3",
    }
}

/// Writes `record` to the ledger and its fields to journald. Failures of either are logged and otherwise ignored:
/// no end waits for its record.
pub fn publish(ledger: &Ledger, places: &Places, record: &Record) {
    if let Err(error) = ledger.append(record) {
        log::error!("{}, ignoring: {}", why::sentence(record), chain(&error));
    }
    let fields = record_fields(record);
    let fields: Vec<(&str, &str)> = fields
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    match journal_fields(places, &fields) {
        Ok(true) => {}
        Ok(false) => log::info!("{} [{}]", why::sentence(record), record.code),
        Err(error) => log::warn!(
            "{} [{}] (journald did not take the record, ignoring: {error})",
            why::sentence(record),
            record.code
        ),
    }
}
