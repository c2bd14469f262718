//! One entry as bytes.

use std::path::Path;

use serde::Serialize;

use super::{JournalError, MAX_PAYLOAD};
use crate::crc::crc32;

pub(super) fn encode<E: Serialize>(
    entry: &E,
    version: u16,
    path: &Path,
) -> Result<Vec<u8>, JournalError> {
    let payload = serde_json::to_vec(entry).map_err(|source| JournalError::Encode {
        path: path.to_owned(),
        source,
    })?;
    let too_long = || JournalError::TooLong {
        path: path.to_owned(),
        len: payload.len(),
    };
    if payload.len() > MAX_PAYLOAD {
        return Err(too_long());
    }
    let len = u32::try_from(payload.len())
        .map_err(|_| too_long())?
        .to_le_bytes();
    let version = version.to_le_bytes();
    let crc = crc32(&[&len, &version, &payload]).to_le_bytes();
    Ok([&len[..], &crc, &version, &payload].concat())
}

/// The first frame of `bytes` as (version, payload), if it is whole.
pub(super) fn frame(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let (version, rest) = rest.split_first_chunk::<2>()?;
    let size = usize::try_from(u32::from_le_bytes(*len)).ok()?;
    if size > MAX_PAYLOAD {
        return None;
    }
    let payload = rest.get(..size)?;
    (crc32(&[len, version, payload]) == u32::from_le_bytes(*crc))
        .then(|| (u16::from_le_bytes(*version), payload))
}
