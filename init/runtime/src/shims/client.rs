//! One ttrpc call to a shim, for callers without an event loop.
//!
//! A frame is the length of its body, a stream and a type, then the body; bodies are protobuf. Source: the protocol of
//! containerd's ttrpc.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const SERVICE: &str = "holdfast.shim.v1.Shim";
/// Longest answer that is read.
const MAX_ANSWER: usize = 4 << 20;

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f).unwrap_or(0) | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap_or(0));
}

fn put_field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    out.push(number << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// The next field of a protobuf message: its number, its number or length, its bytes.
fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, u64, &'a [u8])> {
    let tag = varint(bytes)?;
    let value = varint(bytes)?;
    match tag & 7 {
        0 => Some((tag >> 3, value, &[])),
        2 => {
            let (body, rest) = bytes.split_at_checked(usize::try_from(value).ok()?)?;
            *bytes = rest;
            Some((tag >> 3, value, body))
        }
        _ => None,
    }
}

/// What a ttrpc `Response` holds: the payload, or the status' text.
fn response(mut bytes: &[u8]) -> std::result::Result<Vec<u8>, String> {
    let (mut payload, mut code, mut text) = (Vec::new(), 0, String::new());
    while let Some((number, _, body)) = field(&mut bytes) {
        match number {
            1 => {
                let mut status = body;
                while let Some((number, value, body)) = field(&mut status) {
                    match number {
                        1 => code = value,
                        2 => text = String::from_utf8_lossy(body).into_owned(),
                        _ => {}
                    }
                }
            }
            2 => payload = body.to_vec(),
            _ => {}
        }
    }
    if code == 0 { Ok(payload) } else { Err(text) }
}

/// Calls one method, with JSON and for JSON.
///
/// # Errors
/// What the shim refuses it with, or that it gave no answer within `limit`.
pub(super) fn ask(
    socket: &Path,
    method: &str,
    payload: &[u8],
    limit: Duration,
) -> std::result::Result<Vec<u8>, String> {
    let mut request = Vec::new();
    put_field(&mut request, 1, SERVICE.as_bytes());
    put_field(&mut request, 2, method.as_bytes());
    put_field(&mut request, 3, payload);
    request.push(4 << 3);
    put_varint(
        &mut request,
        u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX),
    );
    let length = u32::try_from(request.len()).map_err(|error| error.to_string())?;
    let exchange = || {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        let mut frame = length.to_be_bytes().to_vec();
        frame.extend_from_slice(&[0, 0, 0, 1, 1, 0]);
        frame.extend_from_slice(&request);
        stream.write_all(&frame)?;
        let mut header = [0u8; 10];
        stream.read_exact(&mut header)?;
        let [a, b, c, d, ..] = header;
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if length > MAX_ANSWER {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        Ok::<_, std::io::Error>(body)
    };
    let body = exchange().map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => format!("no answer within {limit:?}"),
        _ => error.to_string(),
    })?;
    response(&body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_its_payload_or_its_refusal() {
        let mut ok = Vec::new();
        put_field(&mut ok, 2, b"{}");
        assert_eq!(response(&ok), Ok(b"{}".to_vec()));
        let mut status = vec![1 << 3];
        put_varint(&mut status, 300);
        put_field(&mut status, 2, b"no");
        let mut refused = Vec::new();
        put_field(&mut refused, 1, &status);
        assert_eq!(response(&refused), Err("no".to_owned()));
    }
}
