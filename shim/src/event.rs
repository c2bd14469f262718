//! What containerd is told, as protobuf has it.

use std::borrow::Cow;

use containerd_shim_protos::events::task as events;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp as ProtoTime;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::topics;
use holdfast_record::{Namespace, Timestamp};
use serde::{Deserialize, Serialize};

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
    /// Its topic.
    pub(crate) fn topic(&self) -> &'static str {
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
    pub(crate) fn encode(&self) -> Encoded {
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
    pub(crate) fn is_dispensable(&self) -> bool {
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

/// What Go writes for "no time", and clients expect: the first second of year 1.
pub(crate) fn no_time() -> MessageField<ProtoTime> {
    MessageField::some(ProtoTime {
        seconds: -62_135_596_800,
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
    /// The request that tells it.
    pub(crate) fn request(&self, namespace: &Namespace) -> Vec<u8> {
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
