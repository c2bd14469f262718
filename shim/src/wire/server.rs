//! The server's side of one ttrpc connection.
//!
//! Every request is answered exactly once, also when its handler panics or its deadline
//! passes. Handlers are dropped when the client goes away: what must not stop half-way is
//! done by a container's owner task, which no client can cancel.

use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::ttrpc::proto::{Code, Request, Response};
use holdfast_record::logging::take_incident;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{Header, MAX_PAYLOAD, REQUEST, RESPONSE, read_frame};
use crate::fault::Fault;

/// Responses that may wait for a client that does not read.
const RESPONSES: usize = 64;
/// Requests that one connection may have open; Wait holds one per process.
const OPEN: usize = 16 * 1024;

/// Answers requests.
pub(crate) trait Handler: Send + Sync + 'static {
    /// The encoded answer of `service`/`method`, or why there is none.
    fn handle(
        &self,
        service: &str,
        method: &str,
        payload: &[u8],
    ) -> impl Future<Output = Result<Vec<u8>, Fault>> + Send;
}

/// A future whose panic is an error.
struct Contained<F>(Pin<Box<F>>);

impl<F: Future> Future for Contained<F> {
    type Output = Result<F::Output, String>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let inner = &mut self.0;
        match std::panic::catch_unwind(AssertUnwindSafe(|| inner.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(value)) => Poll::Ready(Ok(value)),
            Err(panic) => Poll::Ready(Err(panic
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "panic without a text".to_owned()))),
        }
    }
}

/// Runs `future`; a panic in it becomes the error text.
pub(crate) fn contain<F: Future>(future: F) -> impl Future<Output = Result<F::Output, String>> {
    Contained(Box::pin(future))
}

/// Serves one connection until its client closes it.
///
/// # Errors
/// What the socket reports.
pub(crate) async fn serve(socket: UnixStream, handler: Arc<impl Handler>) -> io::Result<()> {
    let (mut reader, mut writer) = socket.into_split();
    let (responses, mut outgoing) = mpsc::channel::<Vec<u8>>(RESPONSES);
    let mut calls = JoinSet::new();
    // Within the set, so that it ends with the connection.
    calls.spawn(async move {
        while let Some(frame) = outgoing.recv().await {
            if let Err(error) = writer.write_all(&frame).await {
                log::debug!("a client is gone with its answer unread: {error}");
                return;
            }
        }
    });
    loop {
        // Not in a select: a frame that is half read must not be dropped.
        let frame = read_frame(&mut reader).await?;
        while calls.try_join_next().is_some() {}
        let Some((header, payload)) = frame else {
            return Ok(());
        };
        if header.kind != REQUEST {
            // Streams are not part of the task service; a stray close is not worth an answer.
            continue;
        }
        let (handler, responses) = (Arc::clone(&handler), responses.clone());
        let full = calls.len() > OPEN;
        calls.spawn(async move {
            let result = if full {
                Err(Fault::new(
                    Code::RESOURCE_EXHAUSTED,
                    "too many open requests on this connection",
                ))
            } else {
                answer(header, &payload, handler.as_ref()).await
            };
            let frame = encode(header.stream, result);
            // Err: the writer is gone and with it the client.
            let _ = responses.send(frame).await;
        });
    }
}

async fn answer(header: Header, payload: &[u8], handler: &impl Handler) -> Result<Vec<u8>, Fault> {
    if header.stream.is_multiple_of(2) {
        return Err(Fault::invalid("stream id must be odd"));
    }
    if header.len as usize > MAX_PAYLOAD {
        return Err(Fault::new(
            Code::RESOURCE_EXHAUSTED,
            format!(
                "message length {} exceeds the maximum of {MAX_PAYLOAD}",
                header.len
            ),
        ));
    }
    let request = Request::parse_from_bytes(payload)
        .map_err(|error| Fault::invalid(format!("decode the request: {error}")))?;
    let name = format!("{}/{}", request.service, request.method);
    let call = contain(handler.handle(&request.service, &request.method, &request.payload));
    let limit = u64::try_from(request.timeout_nano)
        .ok()
        .filter(|nanos| *nanos > 0);
    let outcome = match limit {
        Some(nanos) => tokio::time::timeout(Duration::from_nanos(nanos), call)
            .await
            .map_err(|_| Fault::deadline(format!("{name}: the caller's deadline has passed")))?,
        None => call.await,
    };
    outcome.unwrap_or_else(|panic| {
        let incident = take_incident().unwrap_or_default();
        log::error!("contained a panic in {name}, incident {incident}: {panic}");
        Err(Fault::new(
            Code::INTERNAL,
            format!("{name}: the shim failed inside (panic contained, the container is untouched), incident {incident}: {panic}"),
        ))
    })
}

fn encode(stream: u32, result: Result<Vec<u8>, Fault>) -> Vec<u8> {
    let mut response = Response::new();
    match result {
        Ok(payload) => response.payload = payload,
        Err(fault) => response.set_status(fault.into_status()),
    }
    let frame = response
        .write_to_bytes()
        .map_err(io::Error::other)
        .and_then(|bytes| Header::frame(stream, RESPONSE, &bytes));
    frame.unwrap_or_else(|error| {
        let mut response = Response::new();
        response.set_status(Fault::new(Code::RESOURCE_EXHAUSTED, error.to_string()).into_status());
        let bytes = response.write_to_bytes().unwrap_or_default();
        Header::frame(stream, RESPONSE, &bytes).unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::wire::client;

    struct Echo;

    impl Handler for Echo {
        async fn handle(
            &self,
            service: &str,
            method: &str,
            payload: &[u8],
        ) -> Result<Vec<u8>, Fault> {
            match method {
                "Echo" => Ok(payload.to_vec()),
                "Hang" => std::future::pending().await,
                "Panic" => panic!("on purpose"),
                other => Err(Fault::unimplemented(format!("{service}/{other}"))),
            }
        }
    }

    fn connection() -> client::Connection {
        let (ours, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(serve(theirs, Arc::new(Echo)));
        client::Connection::new(ours)
    }

    #[tokio::test]
    async fn frames_in_pieces_and_ends_of_calls_between_them_do_no_harm() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(serve(theirs, Arc::new(Echo)));
        for stream in [1u32, 3, 5] {
            let mut request = Request::new();
            request.method = "Echo".to_owned();
            request.payload = vec![1; 300];
            let frame = Header::frame(stream, REQUEST, &request.write_to_bytes().unwrap()).unwrap();
            // In pieces, so that the call before ends while this frame is being read.
            for piece in frame.chunks(97) {
                ours.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
        }
        for stream in [1, 3, 5] {
            let (header, payload) = read_frame(&mut ours).await.unwrap().unwrap();
            assert_eq!((header.kind, header.stream), (RESPONSE, stream));
            assert_eq!(
                Response::parse_from_bytes(&payload).unwrap().payload.len(),
                300
            );
        }
    }

    #[tokio::test]
    async fn every_call_gets_its_answer() {
        let mut connection = connection();
        let limit = Duration::from_secs(5);
        let answer = connection
            .call("s", "Echo", b"hello".to_vec(), limit, limit)
            .await
            .unwrap();
        assert_eq!(answer.unwrap(), b"hello");
        let fault = connection
            .call("s", "Nope", Vec::new(), limit, limit)
            .await
            .unwrap()
            .unwrap_err();
        assert_eq!(
            (fault.code, fault.text.as_str()),
            (Code::UNIMPLEMENTED, "s/Nope")
        );
        let fault = connection
            .call("s", "Panic", Vec::new(), limit, limit)
            .await
            .unwrap()
            .unwrap_err();
        assert_eq!(fault.code, Code::INTERNAL);
        assert!(fault.text.contains("on purpose"), "{}", fault.text);
        let fault = connection
            .call("s", "Hang", Vec::new(), Duration::from_millis(20), limit)
            .await
            .unwrap()
            .unwrap_err();
        assert_eq!(fault.code, Code::DEADLINE_EXCEEDED);
        // And the connection is as good as before.
        let answer = connection
            .call("s", "Echo", vec![7; 100_000], limit, limit)
            .await
            .unwrap();
        assert_eq!(answer.unwrap().len(), 100_000);
    }
}
