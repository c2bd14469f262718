//! The writing side of a connection: answers leave whole, in their order, and at once if the client reads.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::Notify;

use crate::resume;
use crate::resume::request::RequestId;

/// Frames that are not wholly written.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    /// With their numbers on the slate, if they are there.
    pub(super) frames: VecDeque<(Vec<u8>, Option<u64>)>,
    /// Bytes of the first one that are written.
    pub(super) written: usize,
    pub(super) next: u64,
}

/// The writing side of a connection.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) number: u64,
    pub(super) writer: OwnedWriteHalf,
    pub(super) outgoing: Mutex<Outgoing>,
    /// There is something to write when the client reads again.
    pub(super) more: Notify,
    /// There is less to write than before.
    pub(super) less: Notify,
}

impl Line {
    pub(super) fn outgoing(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a request with its frame: written at once if the client reads, else when it does.
    pub(super) fn answer(&self, request: RequestId, frame: Vec<u8>) {
        let _step = resume::step();
        resume::remove(&request.call_key());
        resume::remove(&request.outcome_key());
        resume::remove(&request.signalled_key());
        let mut outgoing = self.outgoing();
        outgoing.frames.push_back((frame, None));
        if outgoing.frames.len() == 1 {
            self.write(&mut outgoing);
        }
        if !outgoing.frames.is_empty() {
            self.more.notify_one();
        }
        let Outgoing { frames, next, .. } = &mut *outgoing;
        for (frame, kept) in frames.iter_mut().filter(|(_, kept)| kept.is_none()) {
            resume::put(&format!("answer/{}/{next:016}", self.number), frame);
            *kept = Some(*next);
            *next += 1;
        }
    }

    /// Writes what the socket takes. Within a step.
    pub(super) fn write(&self, outgoing: &mut Outgoing) {
        while let Some((frame, kept)) = outgoing.frames.front() {
            match self
                .writer
                .try_write(frame.get(outgoing.written..).unwrap_or_default())
            {
                Ok(size) => {
                    outgoing.written += size;
                    if outgoing.written < frame.len() {
                        let written = (outgoing.written as u64).to_le_bytes();
                        resume::put(&format!("written/{}", self.number), &written);
                        continue;
                    }
                    if let Some(kept) = kept {
                        resume::remove(&format!("answer/{}/{kept:016}", self.number));
                    }
                    resume::remove(&format!("written/{}", self.number));
                    outgoing.written = 0;
                    outgoing.frames.pop_front();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    // Its reading side will find the end and clear what is on the slate.
                    log::debug!("a client is gone with its answer unread: {error}");
                    outgoing.frames.clear();
                }
            }
        }
    }

    /// Writes, whenever the client reads, what has not been written at once.
    pub(super) async fn write_rest(&self) {
        loop {
            if self.outgoing().frames.is_empty() {
                self.more.notified().await;
            }
            if self.writer.writable().await.is_err() {
                return;
            }
            let _step = resume::step();
            let mut outgoing = self.outgoing();
            self.write(&mut outgoing);
            self.less.notify_one();
        }
    }
}
