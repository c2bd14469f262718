//! Tells containerd what happened.
//!
//! One queue, one task, one event at a time: an event leaves the queue only when containerd
//! has acknowledged it, so the order per container is the order of the owner's calls and
//! nothing overtakes. While containerd is away the queue grows; beyond [`SOFT_LIMIT`] only
//! events whose loss containerd can find out by asking are dropped (and counted), never an
//! exit, an OOM or a delete.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
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
use tokio::sync::{Notify, watch};

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
/// Tries for an event that containerd answers with a lasting refusal.
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

    fn any(&self) -> Any {
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
        Any {
            type_url: name.to_owned(),
            // Encoding to memory fails only for missing required fields; proto3 has none.
            value: bytes.unwrap_or_default(),
            ..Any::default()
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

#[derive(Debug)]
struct Queued {
    at: Timestamp,
    event: Event,
}

/// The queue; see the module.
#[derive(Debug)]
pub(crate) struct Publisher {
    namespace: Namespace,
    address: Option<PathBuf>,
    queue: Mutex<VecDeque<Queued>>,
    added: Notify,
    waiting: watch::Sender<usize>,
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
        }
    }

    /// Puts an event at the end of the queue. Never waits.
    pub(crate) fn publish(&self, event: Event) {
        if self.address.is_none() {
            log::warn!("no TTRPC_ADDRESS: {} is told to nobody", event.topic());
            return;
        }
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.len() >= SOFT_LIMIT && event.is_dispensable() {
            log::error!(
                "containerd has not taken {} events; dropping a {}",
                queue.len(),
                event.topic()
            );
            return;
        }
        queue.push_back(Queued {
            at: Timestamp::now(),
            event,
        });
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

    fn front(&self) -> Option<(&'static str, Vec<u8>)> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let first = queue.front()?;
        let envelope = Envelope {
            timestamp: proto_time(first.at),
            namespace: self.namespace.to_string(),
            topic: first.event.topic().to_owned(),
            event: MessageField::some(first.event.any()),
            ..Envelope::default()
        };
        let request = ForwardRequest {
            envelope: MessageField::some(envelope),
            ..ForwardRequest::default()
        };
        Some((
            first.event.topic(),
            request.write_to_bytes().unwrap_or_default(),
        ))
    }

    fn acknowledged(&self) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.pop_front();
        if queue.is_empty() {
            queue.shrink_to_fit();
        }
        self.waiting.send_replace(queue.len());
    }

    /// Sends what is queued, for ever.
    pub(crate) async fn run(&self) {
        let Some(address) = &self.address else {
            return;
        };
        let mut connection: Option<Connection> = None;
        let (mut pause, mut refusals, mut away) = (PAUSE.0, 0, false);
        loop {
            let Some((topic, request)) = self.front() else {
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
                    log::warn!("containerd refused {topic}: {}", fault.text);
                    if refusals >= REFUSALS {
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
            publisher.publish(exit(n));
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
            publisher.publish(exit(n));
        }
        assert_eq!(publisher.flush(Duration::from_secs(60)).await, 0);
        let expected: Vec<String> = (0..40).map(|n| format!("/tasks/exit {n}")).collect();
        assert_eq!(*containerd.seen.lock().unwrap(), expected);
    }

    #[test]
    fn beyond_the_limit_only_what_can_be_asked_for_is_dropped() {
        let publisher = Publisher::new(Namespace::new("ns").unwrap(), Some("/nowhere".into()));
        for _ in 0..SOFT_LIMIT + 10 {
            publisher.publish(Event::Start(events::TaskStart::default()));
        }
        publisher.publish(Event::Exit(events::TaskExit::default()));
        assert_eq!(publisher.queue.lock().unwrap().len(), SOFT_LIMIT + 1);
    }
}
