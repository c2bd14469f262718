//! Tells containerd what happened.
//!
//! One queue, one task, one event at a time: an event leaves the queue only when containerd
//! has acknowledged it, so the order per container is the order of the owner's calls and
//! nothing overtakes. While containerd is away the queue grows; beyond [`SOFT_LIMIT`] only
//! events whose loss containerd can find out by asking are dropped (and logged), never an
//! exit, an OOM or a delete. Those are as many as processes have ended meanwhile, and without
//! containerd nobody starts new ones.
//!
//! An event with a journal is written there before it is queued, and its acknowledgement after.
//! What a dead shim still had to tell, the `delete` action tells in its place
//! ([`crate::handover`]). containerd may have heard the first of them: an event may come
//! twice, never too late and never not at all.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use containerd_shim_protos::events::task as events;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp as ProtoTime;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::topics;
use containerd_shim_protos::ttrpc::proto::Code;
use holdfast_record::{Namespace, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use crate::task::record::{BundleJournal, Entry};
use crate::wire::client::Connection;

const SERVICE: &str = "containerd.services.events.ttrpc.v1.Events";
const METHOD: &str = "Forward";
/// How long containerd may take over one event, as its own shim has it.
const TRY_LIMIT: Duration = Duration::from_secs(5);
/// How long an answer may be awaited on a connection that stands. A containerd that is
/// stopped finds the event in its socket when it goes on; sent again, it would find it twice.
const PATIENCE: Duration = Duration::from_secs(300);
/// First and longest pause after a failure.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));
/// Events kept before dispensable ones are dropped.
const SOFT_LIMIT: usize = 8192;
/// Tries for a dispensable event that containerd answers with a lasting refusal.
const REFUSALS: u32 = 5;

/// Any task event.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// `/tasks/create`.
    Create(events::TaskCreate),
    /// `/tasks/start`.
    Start(events::TaskStart),
    /// `/tasks/exec-added`.
    ExecAdded(events::TaskExecAdded),
    /// `/tasks/exec-started`.
    ExecStarted(events::TaskExecStarted),
    /// `/tasks/exit`.
    Exit(events::TaskExit),
    /// `/tasks/delete`.
    Delete(events::TaskDelete),
    /// `/tasks/oom`.
    Oom(events::TaskOOM),
    /// `/tasks/paused`.
    Paused(events::TaskPaused),
    /// `/tasks/resumed`.
    Resumed(events::TaskResumed),
}

impl Event {
    fn topic(&self) -> &'static str {
        match self {
            Self::Create(_) => topics::TASK_CREATE_EVENT_TOPIC,
            Self::Start(_) => topics::TASK_START_EVENT_TOPIC,
            Self::ExecAdded(_) => topics::TASK_EXEC_ADDED_EVENT_TOPIC,
            Self::ExecStarted(_) => topics::TASK_EXEC_STARTED_EVENT_TOPIC,
            Self::Exit(_) => topics::TASK_EXIT_EVENT_TOPIC,
            Self::Delete(_) => topics::TASK_DELETE_EVENT_TOPIC,
            Self::Oom(_) => topics::TASK_OOM_EVENT_TOPIC,
            Self::Paused(_) => topics::TASK_PAUSED_EVENT_TOPIC,
            Self::Resumed(_) => topics::TASK_RESUMED_EVENT_TOPIC,
        }
    }

    /// Ready to be sent.
    fn encode(&self) -> Encoded {
        let (name, bytes) = match self {
            Self::Create(event) => ("containerd.events.TaskCreate", event.write_to_bytes()),
            Self::Start(event) => ("containerd.events.TaskStart", event.write_to_bytes()),
            Self::ExecAdded(event) => ("containerd.events.TaskExecAdded", event.write_to_bytes()),
            Self::ExecStarted(event) => {
                ("containerd.events.TaskExecStarted", event.write_to_bytes())
            }
            Self::Exit(event) => ("containerd.events.TaskExit", event.write_to_bytes()),
            Self::Delete(event) => ("containerd.events.TaskDelete", event.write_to_bytes()),
            Self::Oom(event) => ("containerd.events.TaskOOM", event.write_to_bytes()),
            Self::Paused(event) => ("containerd.events.TaskPaused", event.write_to_bytes()),
            Self::Resumed(event) => ("containerd.events.TaskResumed", event.write_to_bytes()),
        };
        Encoded {
            at: Timestamp::now(),
            topic: self.topic().into(),
            kind: name.into(),
            // Encoding to memory fails only for missing required fields; proto3 has none.
            value: bytes.unwrap_or_default(),
            dispensable: self.is_dispensable(),
        }
    }

    /// Whether containerd could find out the same by asking.
    fn is_dispensable(&self) -> bool {
        match self {
            Self::Exit(_) | Self::Delete(_) | Self::Oom(_) => false,
            Self::Create(_)
            | Self::Start(_)
            | Self::ExecAdded(_)
            | Self::ExecStarted(_)
            | Self::Paused(_)
            | Self::Resumed(_) => true,
        }
    }
}

/// A time as protobuf has it.
pub(crate) fn proto_time(time: Timestamp) -> MessageField<ProtoTime> {
    MessageField::some(ProtoTime {
        seconds: time.seconds(),
        nanos: i32::try_from(time.nanos()).unwrap_or(0),
        ..ProtoTime::default()
    })
}

/// An event as it is kept until containerd has taken it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Encoded {
    /// When it happened.
    pub(crate) at: Timestamp,
    /// For example `/tasks/exit`.
    pub(crate) topic: Cow<'static, str>,
    /// Name of the protobuf message.
    pub(crate) kind: Cow<'static, str>,
    /// The message; hexadecimal in the journal.
    #[serde(with = "hex")]
    pub(crate) value: Vec<u8>,
    /// Whether containerd could find out the same by asking.
    pub(crate) dispensable: bool,
}

impl Encoded {
    fn request(&self, namespace: &Namespace) -> Vec<u8> {
        let envelope = Envelope {
            timestamp: proto_time(self.at),
            namespace: namespace.to_string(),
            topic: self.topic.clone().into_owned(),
            event: MessageField::some(Any {
                type_url: self.kind.clone().into_owned(),
                value: self.value.clone(),
                ..Any::default()
            }),
            ..Envelope::default()
        };
        let request = ForwardRequest {
            envelope: MessageField::some(envelope),
            ..ForwardRequest::default()
        };
        request.write_to_bytes().unwrap_or_default()
    }
}

/// Bytes as text, for a journal that is JSON.
mod hex {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};
    use std::fmt::Write as _;

    #[allow(clippy::ptr_arg)] // serde's signature
    pub(super) fn serialize<S: Serializer>(bytes: &Vec<u8>, to: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(bytes.len() * 2);
        for byte in bytes {
            // Writing into a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        to.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        text.as_bytes()
            .chunks(2)
            .map(|pair| {
                let pair = std::str::from_utf8(pair).map_err(D::Error::custom)?;
                u8::from_str_radix(pair, 16).map_err(D::Error::custom)
            })
            .collect()
    }
}

/// A container's journal, written by its owner and here; always from the one thread.
pub(crate) type SharedJournal = Arc<Mutex<BundleJournal>>;

/// Adds an entry to a journal.
pub(crate) fn note(journal: &SharedJournal, entry: &Entry) {
    journal
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .append(entry);
}

#[derive(Debug)]
struct Queued {
    event: Encoded,
    /// Where the acknowledgement is written, and under which number.
    receipt: Option<(SharedJournal, u64)>,
}

/// The queue; see the module.
#[derive(Debug)]
pub(crate) struct Publisher {
    namespace: Namespace,
    address: Option<PathBuf>,
    queue: Mutex<VecDeque<Queued>>,
    added: Notify,
    waiting: watch::Sender<usize>,
    number: AtomicU64,
}

impl Publisher {
    /// A publisher to containerd's ttrpc socket; without an address events are only logged.
    pub(crate) fn new(namespace: Namespace, address: Option<PathBuf>) -> Self {
        Self {
            namespace,
            address,
            queue: Mutex::default(),
            added: Notify::new(),
            waiting: watch::Sender::new(0),
            number: AtomicU64::new(0),
        }
    }

    /// Puts an event at the end of the queue, and into `journal` until it is acknowledged.
    /// Never waits.
    pub(crate) fn publish(&self, event: &Event, journal: Option<&SharedJournal>) {
        if self.address.is_none() {
            log::warn!("no TTRPC_ADDRESS: {} is told to nobody", event.topic());
            return;
        }
        let waiting = *self.waiting.borrow();
        if waiting >= SOFT_LIMIT && event.is_dispensable() {
            log::error!(
                "containerd has not taken {waiting} events; dropping a {}",
                event.topic()
            );
            return;
        }
        let event = event.encode();
        let receipt = journal.map(|journal| {
            let number = self.number.fetch_add(1, Ordering::Relaxed);
            let entry = Entry::EventQueued {
                number,
                event: event.clone(),
            };
            note(journal, &entry);
            (Arc::clone(journal), number)
        });
        self.push(Queued { event, receipt });
    }

    /// Puts an event of another shim at the end of the queue.
    pub(crate) fn adopt(&self, event: Encoded) {
        self.push(Queued {
            event,
            receipt: None,
        });
    }

    fn push(&self, queued: Queued) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.push_back(queued);
        self.waiting.send_replace(queue.len());
        drop(queue);
        self.added.notify_one();
    }

    /// Waits until everything was acknowledged, at most `limit`; the number left.
    pub(crate) async fn flush(&self, limit: Duration) -> usize {
        let mut waiting = self.waiting.subscribe();
        let done = tokio::time::timeout(limit, waiting.wait_for(|count| *count == 0)).await;
        if done.is_ok() {
            0
        } else {
            *self.waiting.borrow()
        }
    }

    fn front(&self) -> Option<(Cow<'static, str>, bool, Vec<u8>)> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let first = &queue.front()?.event;
        Some((
            first.topic.clone(),
            first.dispensable,
            first.request(&self.namespace),
        ))
    }

    fn acknowledged(&self) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let first = queue.pop_front();
        if queue.is_empty() {
            queue.shrink_to_fit();
        }
        self.waiting.send_replace(queue.len());
        drop(queue);
        if let Some((journal, number)) = first.and_then(|first| first.receipt) {
            note(&journal, &Entry::EventAcknowledged { number });
        }
    }

    /// Sends what is queued, for ever.
    pub(crate) async fn run(&self) {
        let Some(address) = &self.address else {
            return;
        };
        let mut connection: Option<Connection> = None;
        let (mut pause, mut refusals, mut away) = (PAUSE.0, 0, false);
        loop {
            let Some((topic, dispensable, request)) = self.front() else {
                self.added.notified().await;
                continue;
            };
            let outcome = async {
                if connection.is_none() {
                    connection = Some(Connection::open(address).await?);
                }
                match connection.as_mut() {
                    Some(open) => {
                        open.call(SERVICE, METHOD, request, TRY_LIMIT, PATIENCE)
                            .await
                    }
                    None => Err(std::io::ErrorKind::NotConnected.into()),
                }
            }
            .await;
            match outcome {
                Ok(Ok(_)) => {
                    if std::mem::take(&mut away) {
                        log::info!("containerd takes events again");
                    }
                    self.acknowledged();
                    (pause, refusals) = (PAUSE.0, 0);
                    continue;
                }
                Ok(Err(fault)) => {
                    let passing = matches!(
                        fault.code,
                        Code::UNAVAILABLE
                            | Code::DEADLINE_EXCEEDED
                            | Code::RESOURCE_EXHAUSTED
                            | Code::ABORTED
                    );
                    if !passing {
                        refusals += 1;
                    }
                    if refusals <= REFUSALS {
                        log::warn!("containerd refused {topic}: {}", fault.text);
                    }
                    // What must not be lost is kept even so, and is tried again without end.
                    if refusals >= REFUSALS && dispensable {
                        log::error!("giving up on {topic} after {refusals} refusals");
                        self.acknowledged();
                        refusals = 0;
                    }
                }
                Err(error) => {
                    connection = None;
                    if !std::mem::replace(&mut away, true) {
                        log::warn!(
                            "containerd does not take events ({topic}): {error}; keeping them"
                        );
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::fault::Fault;
    use crate::wire::server::{self, Handler};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[derive(Default)]
    struct Containerd {
        calls: AtomicU32,
        seen: Mutex<Vec<String>>,
    }

    impl Handler for Containerd {
        async fn handle(
            &self,
            service: &str,
            method: &str,
            payload: &[u8],
        ) -> Result<Vec<u8>, Fault> {
            assert_eq!((service, method), (SERVICE, METHOD));
            // Every second try fails, in three ways.
            match self.calls.fetch_add(1, Ordering::Relaxed) % 6 {
                1 => return Err(Fault::new(Code::UNAVAILABLE, "not now")),
                3 => return Err(Fault::unknown("a moment")),
                _ => {}
            }
            let envelope = ForwardRequest::parse_from_bytes(payload)
                .unwrap()
                .envelope
                .unwrap();
            let event = events::TaskExit::parse_from_bytes(&envelope.event.value).unwrap();
            self.seen
                .lock()
                .unwrap()
                .push(format!("{} {}", envelope.topic, event.id));
            Ok(Vec::new())
        }
    }

    #[tokio::test]
    async fn events_arrive_in_order_whatever_containerd_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let publisher = Arc::new(Publisher::new(
            Namespace::new("ns").unwrap(),
            Some(path.clone()),
        ));
        let exit = |n: u32| {
            Event::Exit(events::TaskExit {
                id: n.to_string(),
                ..events::TaskExit::default()
            })
        };
        let runner = Arc::clone(&publisher);
        tokio::spawn(async move { runner.run().await });
        for n in 0..20 {
            publisher.publish(&exit(n), None);
        }
        // Nobody listens yet, and nothing is lost by it.
        assert_eq!(publisher.flush(Duration::from_millis(50)).await, 20);
        let containerd = Arc::new(Containerd::default());
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let handler = Arc::clone(&containerd);
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                // The first connection dies at once.
                if handler.calls.load(Ordering::Relaxed) > 0 {
                    tokio::spawn(server::serve(socket, Arc::clone(&handler)));
                } else {
                    handler.calls.store(1, Ordering::Relaxed);
                }
            }
        });
        for n in 20..40 {
            publisher.publish(&exit(n), None);
        }
        assert_eq!(publisher.flush(Duration::from_secs(60)).await, 0);
        let expected: Vec<String> = (0..40).map(|n| format!("/tasks/exit {n}")).collect();
        assert_eq!(*containerd.seen.lock().unwrap(), expected);
    }

    #[test]
    fn beyond_the_limit_only_what_can_be_asked_for_is_dropped() {
        let publisher = Publisher::new(Namespace::new("ns").unwrap(), Some("/nowhere".into()));
        for _ in 0..SOFT_LIMIT + 10 {
            publisher.publish(&Event::Start(events::TaskStart::default()), None);
        }
        publisher.publish(&Event::Exit(events::TaskExit::default()), None);
        assert_eq!(publisher.queue.lock().unwrap().len(), SOFT_LIMIT + 1);
    }

    #[tokio::test]
    async fn the_journal_keeps_what_is_not_acknowledged() {
        use crate::task::record::{read, unacknowledged};
        let dir = tempfile::tempdir().unwrap();
        let journal = Arc::new(Mutex::new(BundleJournal::create(dir.path())));
        let path = dir.path().join("s");
        let publisher = Arc::new(Publisher::new(
            Namespace::new("ns").unwrap(),
            Some(path.clone()),
        ));
        for n in 0..3 {
            let event = events::TaskExit {
                id: n.to_string(),
                ..events::TaskExit::default()
            };
            publisher.publish(&Event::Exit(event), Some(&journal));
        }
        let left = unacknowledged(&read(dir.path()));
        assert_eq!(left.len(), 3);
        assert_eq!(left[2].topic, "/tasks/exit");
        assert_eq!(left[2].value, b"\x12\x012");
        let containerd = Arc::new(Containerd::default());
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let handler = Arc::clone(&containerd);
        tokio::spawn(async move {
            let (socket, _) = listener.accept().await.unwrap();
            server::serve(socket, handler).await.unwrap();
        });
        let runner = Arc::clone(&publisher);
        tokio::spawn(async move { runner.run().await });
        assert_eq!(publisher.flush(Duration::from_secs(20)).await, 0);
        assert_eq!(unacknowledged(&read(dir.path())), []);
    }

    /// Accepts, and answers nothing until told.
    struct Silent(watch::Sender<bool>, Mutex<Vec<u64>>);

    impl Handler for Silent {
        async fn handle(&self, _: &str, _: &str, payload: &[u8]) -> Result<Vec<u8>, Fault> {
            let envelope = ForwardRequest::parse_from_bytes(payload).unwrap().envelope;
            let event = events::TaskExit::parse_from_bytes(&envelope.event.value).unwrap();
            self.1.lock().unwrap().push(u64::from(event.pid));
            let mut speaks = self.0.subscribe();
            let _ = speaks.wait_for(|speaks| *speaks).await;
            Ok(Vec::new())
        }
    }

    #[tokio::test]
    async fn a_containerd_that_accepts_and_says_nothing_gets_every_event_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let publisher = Arc::new(Publisher::new(
            Namespace::new("ns").unwrap(),
            Some(path.clone()),
        ));
        let silent = Arc::new(Silent(watch::Sender::new(false), Mutex::default()));
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let handler = Arc::clone(&silent);
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                tokio::spawn(server::serve(socket, Arc::clone(&handler)));
            }
        });
        let runner = Arc::clone(&publisher);
        tokio::spawn(async move { runner.run().await });
        for pid in 0..100 {
            let event = events::TaskExit {
                pid,
                ..events::TaskExit::default()
            };
            publisher.publish(&Event::Exit(event), None);
        }
        // More than the time that containerd is given for one event.
        assert_eq!(publisher.flush(Duration::from_secs(6)).await, 100);
        silent.0.send_replace(true);
        assert_eq!(publisher.flush(Duration::from_secs(20)).await, 0);
        let mut seen = silent.1.lock().unwrap().clone();
        // The one that hung had been given up by the server, so it came again.
        seen.dedup();
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
    }
}
