//! Frames from `holdfast-init` to its parent, over a `SOCK_SEQPACKET` socket (or, after
//! the gate, the result fifo). One frame is one message:
//!
//! ```text
//! kind u32 | step u32 | errno i32 | reserved u32 | detail bytes (at most 1008)
//! ```
//! The parent answers a reached [`Point`] with the byte [`GO`].

use crate::{Malformed, Point};

/// The parent's answer: go on.
pub const GO: u8 = 0x06;
/// Longest frame in bytes; below `PIPE_BUF`, so a fifo takes it whole.
pub const MAX_FRAME: usize = 1024;
/// Length of the fixed part of a frame.
pub const HEAD: usize = 16;

/// What `holdfast-init` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report<'a> {
    /// The point is reached; the parent's byte is awaited.
    Reached(Point),
    /// A step failed; the process exits.
    Failed(Fault<'a>),
    /// The seccomp listener's descriptor comes with this message (`SCM_RIGHTS`).
    Listener,
}

/// Where and how a step failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault<'a> {
    /// Number of the step, from 0.
    pub step: u32,
    /// errno, 0 when the failure is not a system call's.
    pub errno: i32,
    /// System call or check that failed, and its object: UTF-8 as far as the object is.
    pub detail: &'a [u8],
}

const REACHED: u32 = 1;
const FAILED: u32 = 2;
const LISTENER: u32 = 3;

impl<'a> Report<'a> {
    /// Writes the frame into `buffer` and returns its length; a long detail is cut.
    pub fn write(&self, buffer: &mut [u8; MAX_FRAME]) -> usize {
        let (kind, step, errno, detail): (u32, u32, i32, &[u8]) = match *self {
            Self::Reached(point) => (REACHED, point.code(), 0, &[]),
            Self::Failed(f) => (FAILED, f.step, f.errno, f.detail),
            Self::Listener => (LISTENER, 0, 0, &[]),
        };
        buffer[0..4].copy_from_slice(&kind.to_le_bytes());
        buffer[4..8].copy_from_slice(&step.to_le_bytes());
        buffer[8..12].copy_from_slice(&errno.to_le_bytes());
        buffer[12..16].fill(0);
        let len = detail.len().min(MAX_FRAME - HEAD);
        buffer[HEAD..HEAD + len].copy_from_slice(&detail[..len]);
        HEAD + len
    }

    /// Reads a frame.
    ///
    /// # Errors
    /// [`Malformed`] for a short frame or an unknown kind.
    pub fn read(frame: &'a [u8]) -> Result<Self, Malformed> {
        let word = |at: usize| -> Result<[u8; 4], Malformed> {
            frame
                .get(at..at + 4)
                .and_then(|raw| raw.try_into().ok())
                .ok_or(Malformed)
        };
        let kind = u32::from_le_bytes(word(0)?);
        let step = u32::from_le_bytes(word(4)?);
        let errno = i32::from_le_bytes(word(8)?);
        let detail = frame.get(HEAD..).ok_or(Malformed)?;
        let fault = Fault {
            step,
            errno,
            detail,
        };
        match kind {
            REACHED => Ok(Self::Reached(Point::from_code(step)?)),
            FAILED => Ok(Self::Failed(fault)),
            LISTENER => Ok(Self::Listener),
            _ => Err(Malformed),
        }
    }
}
