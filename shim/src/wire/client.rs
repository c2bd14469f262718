//! A ttrpc client for one call at a time: all that the event publisher needs.

use std::io;
use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::ttrpc::proto::{Code, Request, Response};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::{Header, REQUEST, RESPONSE, read_frame};
use crate::fault::Fault;

/// A connection to a ttrpc server.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: UnixStream,
    next_stream: u32,
}

impl Connection {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// See connect(2).
    pub(crate) async fn open(path: &Path) -> io::Result<Self> {
        Ok(Self::new(UnixStream::connect(path).await?))
    }

    /// Wraps a connected socket.
    pub(crate) fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            next_stream: 1,
        }
    }

    /// Calls a method and waits for its answer. The outer error means that the connection
    /// is of no more use, the inner one is the server's refusal.
    ///
    /// # Errors
    /// The socket's; `TimedOut` after `patience`. `limit` is what the server is told.
    pub(crate) async fn call(
        &mut self,
        service: &str,
        method: &str,
        payload: Vec<u8>,
        limit: Duration,
        patience: Duration,
    ) -> io::Result<Result<Vec<u8>, Fault>> {
        let mut request = Request::new();
        request.service = service.to_owned();
        request.method = method.to_owned();
        request.payload = payload;
        request.timeout_nano = i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX);
        let stream = self.next_stream;
        self.next_stream = stream.wrapping_add(2);
        let bytes = request.write_to_bytes().map_err(io::Error::other)?;
        let frame = Header::frame(stream, REQUEST, &bytes)?;
        let exchange = async {
            self.socket.write_all(&frame).await?;
            loop {
                let Some((header, payload)) = read_frame(&mut self.socket).await? else {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                };
                if header.kind == RESPONSE && header.stream == stream {
                    return Response::parse_from_bytes(&payload).map_err(io::Error::other);
                }
            }
        };
        let response = tokio::time::timeout(patience, exchange)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let status = response.status();
        if status.code() == Code::OK {
            Ok(Ok(response.payload))
        } else {
            Ok(Err(Fault::new(status.code(), status.message())))
        }
    }
}
