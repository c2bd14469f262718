//! Frames between `holdfast` and the shim: *register before run*.
//!
//! The shim passes one end of a `SOCK_SEQPACKET` socket to `holdfast create` and
//! `holdfast exec`; its number is in the environment variable [`ENV`]. As soon as the
//! new process exists `holdfast` sends [`Frame::Registered`] with the pidfd as
//! `SCM_RIGHTS`. The process runs nothing of the user's until the shim has stored
//! both and answered [`ACK`]; end of file instead of the answer means that nobody will
//! ever know the process, so it is killed.

use crate::reason::Reason;

/// Environment variable that holds the number of the inherited socket.
pub const ENV: &str = "HOLDFAST_BARRIER";
/// Environment variable by which a shim of ours says, with every call, that it keeps the records of what fails: the
/// containerd namespace.
pub const NAMESPACE_ENV: &str = "HOLDFAST_SHIM_NAMESPACE";
/// The shim's answer to [`Frame::Registered`].
pub const ACK: u8 = 0x06;
/// Longest frame in bytes.
pub const MAX_FRAME: usize = 16 * 1024;

const REGISTERED: u8 = 1;
const FAILED: u8 = 2;
const REASON: u8 = 3;

/// The bytes are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a frame of the barrier")]
pub struct Malformed;

/// What `holdfast` tells the shim.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    /// The process exists and is not running user code yet. The pidfd comes with it.
    Registered {
        /// Pid in the shim's pid namespace.
        pid: u32,
    },
    /// The operation failed; nothing of it is left.
    Failed {
        /// The whole error chain, for a person.
        text: String,
    },
    /// Why it fails, right before [`Frame::Failed`]. A shim that is older than this frame skips it.
    Reason(Box<Reason>),
}

impl Frame {
    /// The bytes of one message; a text over [`MAX_FRAME`] keeps its start.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Registered { pid } => {
                let mut out = vec![REGISTERED];
                out.extend_from_slice(&pid.to_le_bytes());
                out
            }
            Self::Failed { text } => {
                let mut out = vec![FAILED];
                let mut end = text.len().min(MAX_FRAME - 1);
                while !text.is_char_boundary(end) {
                    end -= 1;
                }
                out.extend_from_slice(&text.as_bytes()[..end]);
                out
            }
            Self::Reason(reason) => {
                let mut out = vec![REASON];
                out.extend(encode_reason(reason));
                out
            }
        }
    }

    /// Reads one message.
    ///
    /// # Errors
    /// [`Malformed`] for an empty message, an unknown kind or a short body.
    pub fn decode(message: &[u8]) -> Result<Self, Malformed> {
        match message.split_first() {
            Some((&REGISTERED, pid)) => Ok(Self::Registered {
                pid: u32::from_le_bytes(pid.try_into().map_err(|_| Malformed)?),
            }),
            Some((&FAILED, text)) => Ok(Self::Failed {
                text: String::from_utf8_lossy(text).into_owned(),
            }),
            Some((&REASON, reason)) => Ok(Self::Reason(
                serde_json::from_slice(reason).map_err(|_| Malformed)?,
            )),
            _ => Err(Malformed),
        }
    }
}

/// As JSON. Evidence that does not fit (what a hook has printed, as a rule) is shortened within its texts.
fn encode_reason(reason: &Reason) -> Vec<u8> {
    let Ok(mut value) = serde_json::to_value(reason) else {
        return Vec::new();
    };
    let mut limit = MAX_FRAME / 2;
    loop {
        let bytes = serde_json::to_vec(&value).unwrap_or_default();
        if bytes.len() < MAX_FRAME || limit == 0 {
            return bytes;
        }
        crate::ledger::shorten(&mut value, limit);
        limit /= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_read_back_and_long_texts_are_cut_at_a_character() {
        let registered = Frame::Registered { pid: 4_000_000_000 };
        assert_eq!(Frame::decode(&registered.encode()), Ok(registered));
        let long = "ü".repeat(MAX_FRAME);
        let bytes = Frame::Failed { text: long }.encode();
        assert!(bytes.len() <= MAX_FRAME);
        assert!(std::str::from_utf8(&bytes[1..]).is_ok());
        assert_eq!(Frame::decode(&[]), Err(Malformed));
        assert_eq!(Frame::decode(&[1, 2]), Err(Malformed));
        assert_eq!(Frame::decode(&[9]), Err(Malformed));
    }

    #[test]
    fn a_reason_crosses_whole_or_shortened_and_is_nothing_to_an_older_shim() {
        for reason in crate::reason::tests::examples() {
            let frame = Frame::Reason(Box::new(reason));
            assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
        }
        let long = Reason::CreateStepFailed {
            step: "x".repeat(9000),
            text: "ü\u{1}".repeat(40_000),
        };
        let bytes = Frame::Reason(Box::new(long)).encode();
        assert!(bytes.len() <= MAX_FRAME, "{}", bytes.len());
        match Frame::decode(&bytes).unwrap() {
            Frame::Reason(reason) => assert_eq!(reason.code(), "HF151"),
            other => panic!("{other:?}"),
        }
        // What version 0.1.0 did with a first byte it did not know.
        assert!(bytes[0] != REGISTERED && bytes[0] != FAILED);
    }
}
