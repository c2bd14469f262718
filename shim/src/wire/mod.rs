//! ttrpc on the wire: frames, the server's side of a connection, and a small client.
//!
//! Why not the crate's server: `docs/0001-own-rpc-front.md`.

mod call;
pub(crate) mod client;
mod line;
mod reading;
pub(crate) mod server;

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes of a frame's header.
pub(crate) const HEADER: usize = 10;
/// Longest payload either side accepts.
pub(crate) const MAX_PAYLOAD: usize = 4 << 20;
/// Frame type of a request.
pub(crate) const REQUEST: u8 = 1;
/// Frame type of a response.
pub(crate) const RESPONSE: u8 = 2;

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// Bytes that follow.
    pub(crate) len: u32,
    /// Which call it belongs to.
    pub(crate) stream: u32,
    /// [`REQUEST`], [`RESPONSE`] or data (3).
    pub(crate) kind: u8,
    /// Only of use to streams.
    pub(crate) flags: u8,
}

impl Header {
    fn parse(bytes: [u8; HEADER]) -> Self {
        let [a, b, c, d, e, f, g, h, kind, flags] = bytes;
        Self {
            len: u32::from_be_bytes([a, b, c, d]),
            stream: u32::from_be_bytes([e, f, g, h]),
            kind,
            flags,
        }
    }

    /// A whole frame.
    ///
    /// # Errors
    /// `InvalidInput` for a payload over [`MAX_PAYLOAD`].
    pub(crate) fn frame(stream: u32, kind: u8, payload: &[u8]) -> io::Result<Vec<u8>> {
        let len = u32::try_from(payload.len())
            .ok()
            .filter(|_| payload.len() <= MAX_PAYLOAD)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "message over 4 MiB"))?;
        let mut frame = Vec::with_capacity(HEADER + payload.len());
        frame.extend_from_slice(&len.to_be_bytes());
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(&[kind, 0]);
        frame.extend_from_slice(payload);
        Ok(frame)
    }
}

/// One frame, or `None` at a clean end. A payload that is too long is skipped and comes
/// back empty with its true length in the header.
///
/// # Errors
/// The socket's; `UnexpectedEof` in the middle of a frame.
pub(crate) async fn read_frame(
    socket: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<(Header, Vec<u8>)>> {
    let mut bytes = [0; HEADER];
    let mut got = 0;
    while got < HEADER {
        let Some(rest) = bytes.get_mut(got..) else {
            break;
        };
        match socket.read(rest).await? {
            0 if got == 0 => return Ok(None),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => got += n,
        }
    }
    let header = Header::parse(bytes);
    let len = header.len as usize;
    if len > MAX_PAYLOAD {
        tokio::io::copy(
            &mut socket.take(u64::from(header.len)),
            &mut tokio::io::sink(),
        )
        .await?;
        return Ok(Some((header, Vec::new())));
    }
    let mut payload = vec![0; len];
    socket.read_exact(&mut payload).await?;
    Ok(Some((header, payload)))
}
