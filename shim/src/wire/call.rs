//! A request that is not answered yet, as it is served and as it lies on the slate.

use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::ttrpc::proto::Request;

use super::{Header, REQUEST};

/// An open request.
#[derive(Debug)]
pub(super) struct Call {
    /// When its caller gives up, milliseconds since 1970; 0: never.
    pub(super) deadline: u64,
    /// In how many images that ended soon it has been open.
    pub(super) crashes: u8,
    pub(super) header: Header,
    pub(super) payload: Vec<u8>,
}

impl Call {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.payload.len() + 13);
        bytes.extend_from_slice(&self.deadline.to_le_bytes());
        bytes.push(self.crashes);
        bytes.extend_from_slice(&self.header.len.to_le_bytes());
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    pub(super) fn decode(stream: u32, bytes: &[u8]) -> Option<Self> {
        let (deadline, rest) = bytes.split_first_chunk::<8>()?;
        let (crashes, rest) = rest.split_first()?;
        let (len, payload) = rest.split_first_chunk::<4>()?;
        Some(Self {
            deadline: u64::from_le_bytes(*deadline),
            crashes: *crashes,
            header: Header {
                len: u32::from_le_bytes(*len),
                stream,
                kind: REQUEST,
                flags: 0,
            },
            payload: payload.to_vec(),
        })
    }

    /// Whether it only waits: it is open all the time, and not why somebody kills the shim.
    pub(super) fn is_wait(&self) -> bool {
        Request::parse_from_bytes(&self.payload).is_ok_and(|request| request.method == "Wait")
    }
}
