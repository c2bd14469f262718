//! Ledger records as text for a person: one sentence first, then the evidence.
//!
//! Pure functions from records to text; `holdfast why` reads, calls one of these, and prints.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use serde_json::Value;

use crate::deadline::parse_duration;
use crate::exit::ExitStatus;
use crate::ledger::{Kind, Page, Query, Record, Selector};
use crate::reason::Reason;
use crate::time::{InvalidTimestamp, Timestamp, human};

/// The whole answer of `holdfast why`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// For standard output, with its last line feed.
    pub text: String,
    /// Whether there was anything to tell; the exit code is 0 or 1 by it.
    pub found: bool,
}

/// How the answer is to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Every record in full, the latest first.
    Full,
    /// One line a record, the oldest first.
    List,
    /// One line a reason: how often it ended something on this node, and what it ended last.
    Node,
    /// [`json`].
    Json,
}

/// So many records are told in full; what else there is has a line each, unless `--last` asks for more.
const IN_FULL: usize = 3;

/// What else may be, when nothing is recorded of something that was asked for by name.
const MAYBE: &str = "It may still run, have ended so long ago that the ledger has dropped it, or not have been \
     run by Holdfast; the ledger's folder may be another one (HOLDFAST_LEDGER_DIR).\n";

/// What to print for `page`, which was read from `place` for `query`.
#[must_use]
pub fn answer(page: &Page, query: &Query, place: &Path, form: Form) -> Answer {
    let found = !page.records.is_empty();
    let text = match form {
        Form::Json => format!("{:#}\n", json(page)),
        Form::Full | Form::List | Form::Node if !found => {
            let whom = query.who.as_ref().map_or("any end", |who| who.as_str());
            let since = query
                .since
                .map_or_else(String::new, |since| format!(" since {}", since.short()));
            format!(
                "There is no record of {}{since} in {}.\n{}{}",
                visible(whom),
                place.display(),
                if query.who.is_some() { MAYBE } else { "" },
                damage(page)
            )
        }
        Form::Full => explain_all(
            page,
            query.who.as_ref(),
            query.last.map_or(IN_FULL, |last| last.max(IN_FULL)),
        ),
        Form::List => list(page),
        Form::Node => node(page),
    };
    Answer { text, found }
}

/// Reads the argument of `--since`: a time (`2026-01-31`, `2026-01-31 12:00`), or a duration before `now` (`90m`, `2d`).
///
/// # Errors
/// [`InvalidTimestamp`] with the text, when it is neither.
pub fn since(text: &str, now: Timestamp) -> Result<Timestamp, InvalidTimestamp> {
    match parse_duration(text) {
        Some(duration) => Ok(now.before(duration)),
        None => text.parse(),
    }
}

/// The full answer for one record: sentence, identity, timeline, evidence, meaning, advice.
#[must_use]
pub fn explain(record: &Record) -> String {
    let mut text = String::new();
    let line = |text: &mut String, line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    line(&mut text, &sentence(record));
    line(&mut text, "");
    for (name, value) in facts(record) {
        line(&mut text, &format!("  {name:<12}{value}"));
    }
    let timeline = timeline(record);
    if !timeline.is_empty() {
        line(&mut text, "");
        line(&mut text, "  timeline (UTC)");
        for entry in timeline {
            line(&mut text, &format!("    {entry}"));
        }
    }
    let evidence = evidence(record);
    if !evidence.is_empty() {
        line(&mut text, "");
        line(&mut text, "  evidence");
        for entry in evidence {
            line(&mut text, &format!("    {entry}"));
        }
    }
    line(&mut text, "");
    match record.entry() {
        Some(entry) => {
            line(&mut text, &wrap("  means       ", entry.means));
            line(&mut text, &wrap("  what to do  ", entry.advice));
        }
        None => line(
            &mut text,
            &wrap(
                "  means       ",
                "This code comes from a newer version of Holdfast than the one that shows it.",
            ),
        ),
    }
    text
}

/// The full answers for the latest `in_full` records of a page, latest first, then a line for each of the others and one
/// about damaged ones. Asked for a container or a pod, its own end comes before those of exec processes that went down
/// with it or were told after it.
#[must_use]
pub fn explain_all(page: &Page, who: Option<&Selector>, in_full: usize) -> String {
    let mut records: Vec<&Record> = page.records.iter().rev().collect();
    let asked_for_exec = who.is_none_or(|who| {
        let names = |record: &&Record| record.exec.as_deref() == Some(who.as_str());
        page.records.iter().any(|record| names(&record))
    });
    let own = records
        .iter()
        .position(|record| record.kind != Kind::Exec)
        .filter(|_| !asked_for_exec);
    if let Some(own) = own {
        let end = records[own].time;
        // What was started after that end belongs to a later container of the same name.
        let later = |record: &&Record| record.started.is_some_and(|started| started > end);
        if !records[..own].iter().any(later) {
            records[..=own].rotate_right(1);
        }
    }
    let (first, others) = records.split_at(in_full.min(records.len()));
    let mut text = String::new();
    for (index, record) in first.iter().enumerate() {
        if index > 0 {
            text.push('\n');
        }
        text.push_str(&explain(record));
    }
    if !others.is_empty() {
        let _ = writeln!(
            text,
            "\nBefore that, the latest first (--last={} tells all of them in full):",
            records.len()
        );
        for record in others {
            text.push_str(&in_a_line(record));
        }
    }
    text.push_str(&damage(page));
    text
}

fn in_a_line(record: &Record) -> String {
    format!(
        "{}  {}  {}\n",
        record.time.short(),
        record.code,
        sentence(record)
    )
}

/// How often each reason ended something, most often first, with the latest of each.
#[must_use]
pub fn node(page: &Page) -> String {
    let mut counted: BTreeMap<&str, (usize, &Record)> = BTreeMap::new();
    for record in &page.records {
        let entry = counted.entry(&record.code).or_insert((0, record));
        *entry = (entry.0 + 1, record);
    }
    let mut rows: Vec<(usize, &Record)> = counted.into_values().collect();
    rows.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.code.cmp(&b.1.code)));
    let mut text = String::new();
    for (count, latest) in rows {
        let title = latest
            .entry()
            .map_or("a newer version's reason", |entry| entry.title);
        let _ = writeln!(
            text,
            "{count:>7}  {}  {title}\n         latest {}: {}",
            latest.code,
            latest.time.short(),
            sentence(latest)
        );
    }
    text.push_str(&damage(page));
    text
}

/// One line for each record, oldest first.
#[must_use]
pub fn list(page: &Page) -> String {
    let mut text = String::new();
    for record in &page.records {
        text.push_str(&in_a_line(record));
    }
    text.push_str(&damage(page));
    text
}

/// The records as a JSON array, as they are in the ledger, with `title` added where the code is known.
#[must_use]
pub fn json(page: &Page) -> Value {
    Value::Array(
        page.records
            .iter()
            .map(|record| {
                let mut value = serde_json::to_value(record).unwrap_or(Value::Null);
                if let (Some(object), Some(entry)) = (value.as_object_mut(), record.entry()) {
                    object.insert("title".into(), entry.title.into());
                    object.insert("message_id".into(), entry.message_id.to_string().into());
                    object.insert("sentence".into(), sentence(record).into());
                }
                value
            })
            .collect(),
    )
}

fn damage(page: &Page) -> String {
    match page.damaged {
        0 => String::new(),
        1 => "1 damaged line of the ledger was skipped.\n".to_owned(),
        count => format!("{count} damaged lines of the ledger were skipped.\n"),
    }
}

/// The answer in one sentence: what ended, how, and why.
#[must_use]
pub fn sentence(record: &Record) -> String {
    let subject = subject(record);
    let mut text = visible(&format!("{subject} {}", record.summary.trim_end()));
    // Not twice the same: these sentences hold the status already.
    let reason = record.reason();
    let plain = |signal| ExitStatus::Signaled {
        signal,
        core: false,
    };
    let says_status = matches!(
        reason,
        Some(
            Reason::Exited { .. }
                | Reason::ExitedOnRequest { .. }
                | Reason::Faulted { .. }
                | Reason::SignalFromOutside { .. }
        )
    ) || matches!(
        reason,
        Some(Reason::KilledByRequest { signal, .. }) if record.status == Some(plain(signal))
    );
    if let (Some(status), false) = (record.status, says_status) {
        let _ = write!(text, " ({status})");
    }
    if !text.ends_with(['.', '!', '?']) {
        text.push('.');
    }
    text
}

fn subject(record: &Record) -> String {
    let container = record.container.as_deref();
    let exec = record.exec.as_deref();
    match (&record.kind, container, exec) {
        (Kind::Container, Some(id), _) => format!("Container {id}"),
        (Kind::Container, None, _) => "A container".to_owned(),
        (Kind::Exec, Some(id), Some(exec)) => format!("Exec process {exec} in container {id}"),
        (Kind::Exec, Some(id), None) => format!("An exec process in container {id}"),
        (Kind::Exec, None, Some(exec)) => format!("Exec process {exec}"),
        (Kind::Exec, None, None) => "An exec process".to_owned(),
        (Kind::Shim, Some(id), _) => format!("The shim of container {id}"),
        (Kind::Shim, None, _) => "A shim".to_owned(),
        (Kind::Hook | Kind::Gpu, Some(id), _) => format!("Container {id}"),
        (Kind::Hook, None, _) => "A hook".to_owned(),
        (Kind::Gpu, None, _) => "A container".to_owned(),
        (Kind::Runtime, Some(id), _) => format!("An operation on container {id}"),
        (Kind::Runtime, None, _) => "An operation of the runtime".to_owned(),
        (Kind::Other(kind), Some(id), _) => format!("{kind} of container {id}"),
        (Kind::Other(kind), None, _) => kind.clone(),
    }
}

fn facts(record: &Record) -> Vec<(&'static str, String)> {
    let mut facts = vec![("reason", {
        let title = record.entry().map_or("", |entry| entry.title);
        format!("{} {title}", record.code).trim_end().to_owned()
    })];
    if let Some(status) = record.status {
        facts.push((
            "status",
            format!("{status} (seen as {})", status.shell_code()),
        ));
    }
    facts.push(("time", record.time.to_string()));
    if let Some(started) = record.started {
        let ran = human(record.time.since(started));
        facts.push(("ran for", ran));
    }
    if let Some(pod) = &record.pod {
        let uid = if pod.uid.is_empty() {
            String::new()
        } else {
            format!(" (uid {})", pod.uid)
        };
        facts.push(("pod", format!("{}/{}{uid}", pod.namespace, pod.name)));
    }
    if let Some(name) = &record.name {
        facts.push(("name", name.clone()));
    }
    if let Some(namespace) = &record.namespace {
        facts.push(("namespace", format!("{namespace} (containerd's)")));
    }
    if let Some(process) = record.process {
        facts.push(("pid", process.pid.to_string()));
    }
    if let Some(incident) = &record.incident {
        facts.push(("incident", incident.clone()));
    }
    if !record.writer.is_empty() {
        facts.push(("recorded by", record.writer.clone()));
    }
    facts
}

/// Everything with a time, in the order of time.
fn timeline(record: &Record) -> Vec<String> {
    let mut entries: Vec<(Timestamp, String)> = record
        .timeline
        .iter()
        .map(|happening| (happening.time, happening.text.clone()))
        .collect();
    if let Some(started) = record.started {
        // It is noted when the runtime has answered, and what is short has ended by then.
        let first = entries.iter().map(|(time, _)| *time).min();
        let started = first.map_or(started, |first| first.min(started));
        entries.insert(0, (started.min(record.time), "started".to_owned()));
    }
    if let Some(
        Reason::KilledByRequest {
            rpc,
            signal,
            requested_at,
            ..
        }
        | Reason::ExitedOnRequest {
            rpc,
            signal,
            requested_at,
            ..
        },
    ) = record.reason()
    {
        let told = entries.iter().any(|(time, _)| *time == requested_at);
        if !told {
            entries.push((requested_at, format!("{signal} asked for by {rpc}")));
        }
    }
    if entries.is_empty() {
        return Vec::new();
    }
    let end = match (record.reason(), record.status) {
        // Its status is the container's.
        (Some(Reason::ShimGone { .. }), _) => "containerd had it cleaned up".to_owned(),
        (_, Some(status)) => format!("ended: {status}"),
        (_, None) => "ended".to_owned(),
    };
    entries.push((record.time, end));
    entries.sort_by_key(|(time, _)| *time);
    let mut day = String::new();
    entries
        .into_iter()
        .map(|(time, text)| {
            // The date is said once a day, so that the column of times stays narrow.
            let date = time.short().chars().take(10).collect::<String>();
            let shown = if date == day {
                " ".repeat(10)
            } else {
                date.clone()
            };
            day = date;
            format!("{shown} {}  {text}", time.clock())
        })
        .collect()
}

/// The evidence member by member, whatever version wrote it.
fn evidence(record: &Record) -> Vec<String> {
    let mut lines = Vec::new();
    flatten("", &record.evidence, &mut lines);
    for (name, value) in &record.extra {
        flatten(name, value, &mut lines);
    }
    lines
}

fn flatten(name: &str, value: &Value, lines: &mut Vec<String>) {
    match value {
        Value::Null => {}
        Value::Object(members) => {
            for (member, value) in members {
                let name = if name.is_empty() {
                    member.clone()
                } else {
                    format!("{name}.{member}")
                };
                flatten(&name, value, lines);
            }
        }
        Value::Array(items) => {
            lines.push(format!("{name}:"));
            for item in items {
                let text = item
                    .as_str()
                    .map_or_else(|| item.to_string(), str::to_owned);
                lines.push(format!("  - {}", visible(&text)));
            }
        }
        Value::String(text) if text.trim_end().contains('\n') => {
            lines.push(format!("{name}:"));
            lines.extend(
                text.trim_end()
                    .lines()
                    .map(|line| format!("  | {}", visible(line))),
            );
        }
        Value::String(text) => lines.push(format!("{name}: {}", visible(text.trim_end()))),
        Value::Bool(_) | Value::Number(_) => lines.push(format!("{name}: {value}")),
    }
}

/// Text that came from a container or a hook must not steer the reader's terminal.
fn visible(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() && c != '\t' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

/// `text` behind `lead`, broken into lines of at most 100 characters with a hanging indent.
fn wrap(lead: &str, text: &str) -> String {
    let indent = " ".repeat(lead.chars().count());
    let mut lines = vec![lead.to_owned()];
    let mut empty = true;
    for word in text.split_whitespace() {
        let last = lines.len() - 1;
        if !empty && lines[last].chars().count() + 1 + word.chars().count() > 100 {
            lines.push(format!("{indent}{word}"));
            continue;
        }
        if !empty {
            lines[last].push(' ');
        }
        lines[last].push_str(word);
        empty = false;
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests;
