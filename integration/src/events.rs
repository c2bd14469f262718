//! What containerd tells its subscribers, as `ctr events` prints it.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::containerd::Containerd;
use crate::deadline;

/// One event of the test's containerd namespace.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// For example `/tasks/exit`.
    pub topic: String,
    /// Its fields.
    pub body: Value,
}

impl Event {
    /// A field as text; empty when it is missing, as protobuf has it.
    #[must_use]
    pub fn text(&self, field: &str) -> &str {
        self.body[field].as_str().unwrap_or_default()
    }

    /// A field as number; 0 when it is missing, as protobuf has it.
    #[must_use]
    pub fn number(&self, field: &str) -> u64 {
        self.body[field].as_u64().unwrap_or_default()
    }
}

/// A subscriber that has been seen to receive.
#[derive(Debug)]
pub struct Subscriber {
    client: Child,
    written: PathBuf,
    namespace: String,
}

impl Subscriber {
    /// Subscribes, and waits until an event of ours has come through.
    ///
    /// # Panics
    /// When none does.
    #[must_use]
    pub fn new(containerd: &Containerd) -> Self {
        let written = containerd.path(&crate::place::unique("events"));
        let out = File::create(&written).expect("file for events");
        let client = containerd
            .ctr_command(&["events"])
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(Stdio::null())
            .spawn()
            .expect("start ctr events");
        let subscriber = Self {
            client,
            written,
            namespace: containerd.namespace.clone(),
        };
        let mut round = 0;
        deadline::eventually("the subscription stands", Duration::from_secs(20), || {
            round += 1;
            let label = format!("round={round}");
            containerd.ctr_ok(&["namespaces", "label", &containerd.namespace, &label]);
            fs::read_to_string(&subscriber.written)
                .ok()?
                .contains("/namespaces/")
                .then_some(())
        });
        subscriber
    }

    /// The events of tasks so far, in the order they came.
    ///
    /// # Panics
    /// When a line is not understood.
    #[must_use]
    pub fn tasks(&self) -> Vec<Event> {
        let text = fs::read_to_string(&self.written).expect("events");
        // The last line may be half written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().filter_map(|line| self.parse(line)).collect()
    }

    /// Waits until the events so far satisfy `enough`; returns them.
    ///
    /// # Panics
    /// When they do not within `limit`, with their count.
    #[track_caller]
    pub fn until(
        &self,
        what: &str,
        limit: Duration,
        enough: impl Fn(&[Event]) -> bool,
    ) -> Vec<Event> {
        deadline::eventually(what, limit, || {
            let events = self.tasks();
            enough(&events).then_some(events)
        })
    }

    fn parse(&self, line: &str) -> Option<Event> {
        // "2026-11-21 22:39:10.1 +0000 UTC NAMESPACE /tasks/exit {json}"
        let body_at = line.find('{')?;
        let mut words = line[..body_at].split_whitespace().rev();
        let topic = words.next()?;
        let namespace = words.next()?;
        if !topic.starts_with("/tasks/") || namespace != self.namespace {
            return None;
        }
        let body = serde_json::from_str(&line[body_at..]).unwrap_or_else(|e| panic!("{e}: {line}"));
        Some(Event {
            topic: topic.to_owned(),
            body,
        })
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}
