//! Makes whole frames of what a client sends in pieces.

use super::{HEADER, Header, MAX_PAYLOAD};
use crate::resume;

/// What is read and is no whole frame yet.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub(super) bytes: Vec<u8>,
    /// In how many pieces it is on the slate.
    pub(super) pieces: u32,
    /// Bytes of a payload over the limit that are still to come, and of no interest.
    pub(super) skip: u64,
}

impl Reading {
    /// Takes bytes in; what they complete comes out.
    pub(super) fn feed(
        &mut self,
        number: u64,
        mut bytes: &[u8],
        calls: &mut Vec<(Header, Vec<u8>)>,
    ) {
        if self.skip > 0 {
            let skipped = usize::try_from(self.skip)
                .unwrap_or(usize::MAX)
                .min(bytes.len());
            bytes = bytes.get(skipped..).unwrap_or_default();
            self.skip -= skipped as u64;
            resume::put(&format!("skip/{number}"), &self.skip.to_le_bytes());
        }
        let before = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        let mut used = 0;
        while let Some(header) = self
            .bytes
            .get(used..)
            .and_then(|rest| rest.first_chunk::<HEADER>())
        {
            let header = Header::parse(*header);
            let len = header.len as usize;
            let body = used + HEADER;
            if len > MAX_PAYLOAD {
                // Answered at once; what of it is here already is skipped with the rest.
                let here = (self.bytes.len() - body).min(len);
                calls.push((header, Vec::new()));
                self.skip = (len - here) as u64;
                resume::put(&format!("skip/{number}"), &self.skip.to_le_bytes());
                used = body + here;
                continue;
            }
            let Some(payload) = self.bytes.get(body..body + len) else {
                break;
            };
            calls.push((header, payload.to_vec()));
            used = body + len;
        }
        if used > 0 {
            for piece in 0..self.pieces {
                resume::remove(&format!("rx/{number}/{piece:08}"));
            }
            self.pieces = 0;
            self.bytes.drain(..used);
            if self.bytes.is_empty() {
                self.bytes = Vec::new();
            } else {
                self.keep(number, 0);
            }
        } else if self.bytes.len() > before {
            self.keep(number, before);
        }
    }

    pub(super) fn keep(&mut self, number: u64, from: usize) {
        let piece = self.bytes.get(from..).unwrap_or_default();
        resume::put(&format!("rx/{number}/{:08}", self.pieces), piece);
        self.pieces += 1;
    }
}
