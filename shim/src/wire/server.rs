//! The server's side of one ttrpc connection.
//!
//! Every request is answered exactly once, also when its handler panics or its deadline
//! passes. Handlers are dropped when the client goes away: what must not stop half-way is
//! done by a container's owner task, which no client can cancel.
//!
//! A connection outlives this image of the shim: what is read and not answered, and what is not
//! wholly written, is on the slate (see [`crate::resume`]).

use std::future::Future;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::ttrpc::proto::{Code, Request, Response};
use holdfast_record::logging::take_incident;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::call::Call;
use super::line::{Line, Outgoing};
use super::reading::Reading;
use super::{Header, MAX_PAYLOAD, REQUEST, RESPONSE};
use crate::fault::Fault;
use crate::resume::descriptor::Descriptor;
use crate::resume::inherited::Inherited;
use crate::resume::request::{self, RequestId, Unheard};
use crate::resume::{self, image};
use crate::sys;

/// Responses that may wait for a client that does not read.
const RESPONSES: usize = 64;
/// Requests that one connection may have open; Wait holds one per process.
const OPEN: usize = 16 * 1024;

/// Bytes read at a time, on the stack.
const CHUNK: usize = 16 * 1024;

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

/// A connection as it is served, and as the image before has left it.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: UnixStream,
    /// What the slate names.
    held: Descriptor,
    number: u64,
    reading: Reading,
    /// Requests that have not been answered.
    calls: Vec<(Unheard, Call)>,
    outgoing: Outgoing,
}

/// Images that may end soon while a request is open before it is not done again.
const POISON: u8 = 3;

fn now_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}

/// The last connection's number.
static NUMBER: AtomicU64 = AtomicU64::new(0);

impl Connection {
    /// A new one, non-blocking. In the step in which it was accepted.
    ///
    /// # Errors
    /// When no descriptor is left, or epoll(7)'s.
    pub(crate) fn new(socket: std::os::unix::net::UnixStream) -> io::Result<Self> {
        let socket = OwnedFd::from(socket);
        sys::finish_taking(socket.as_fd(), None)?;
        Self::numbered(NUMBER.fetch_add(1, Ordering::Relaxed) + 1, socket.into())
    }

    fn numbered(number: u64, held: Descriptor) -> io::Result<Self> {
        let socket = std::os::unix::net::UnixStream::from(OwnedFd::from(held.try_clone()?));
        let socket = UnixStream::from_std(socket)?;
        resume::put_json(&format!("conn/{number}"), &held.name());
        Ok(Self {
            socket,
            held,
            number,
            reading: Reading::default(),
            calls: Vec::new(),
            outgoing: Outgoing::default(),
        })
    }

    /// All that the image before has served.
    pub(crate) fn restore(inherited: &mut Inherited) -> Vec<Self> {
        let mut restored = Vec::new();
        for (number, name) in inherited.all("conn/") {
            let Some((number, name)) = number.parse().ok().zip(serde_json::from_slice(&name).ok())
            else {
                log::error!("connection {number} cannot be read");
                continue;
            };
            NUMBER.fetch_max(number, Ordering::Relaxed);
            match inherited
                .descriptor(name)
                .and_then(|held| Self::numbered(number, held))
            {
                Ok(mut connection) => {
                    connection.take_over(inherited);
                    restored.push(connection);
                }
                Err(error) => log::error!("connection {number} cannot be gone on with: {error}"),
            }
        }
        restored
    }

    fn take_over(&mut self, inherited: &mut Inherited) {
        let number = self.number;
        let taken = inherited
            .bytes(&format!("taken/{number}"))
            .and_then(|bytes| bytes.first_chunk::<8>().copied())
            .map(u64::from_le_bytes);
        if let Err(error) = sys::finish_taking(self.held.as_fd(), taken) {
            log::error!("connection {number}: {error}");
        }
        resume::remove(&format!("taken/{number}"));
        for (_, piece) in inherited.all(&format!("rx/{number}/")) {
            self.reading.bytes.extend(piece);
            self.reading.pieces += 1;
        }
        let count = |bytes: Option<Vec<u8>>| {
            bytes
                .and_then(|bytes| bytes.first_chunk::<8>().copied())
                .map_or(0, u64::from_le_bytes)
        };
        self.reading.skip = count(inherited.bytes(&format!("skip/{number}")));
        let written = count(inherited.bytes(&format!("written/{number}")));
        self.outgoing.written = usize::try_from(written).unwrap_or(0);
        for (place, frame) in inherited.all(&format!("answer/{number}/")) {
            let place = place.parse().unwrap_or(0);
            self.outgoing.next = place + 1;
            self.outgoing.frames.push_back((frame, Some(place)));
        }
        for (stream, bytes) in inherited.all(&format!("call/{number}/")) {
            let Some((stream, mut call)) = stream
                .parse()
                .ok()
                .and_then(|stream| Some((stream, Call::decode(stream, &bytes)?)))
            else {
                log::error!("request {stream} of connection {number} cannot be read");
                continue;
            };
            let request = RequestId {
                connection: number,
                stream,
            };
            if let Some(outcome) = inherited.bytes(&request.outcome_key()) {
                request::restore_outcome(request, &outcome);
            }
            if !image::was_quick() {
                call.crashes = 0;
            } else if !(image::follows_a_kill() && call.is_wait()) {
                call.crashes += 1;
            }
            resume::put(&request.call_key(), &call.encode());
            self.calls.push((Unheard::new(), call));
        }
    }
}

/// Serves one connection until its client closes it.
///
/// # Errors
/// What the socket reports.
#[cfg(test)]
pub(crate) async fn serve(socket: UnixStream, handler: Arc<impl Handler>) -> io::Result<()> {
    serve_connection(Connection::new(socket.into_std()?)?, handler).await
}

/// Serves one connection until its client closes it.
///
/// # Errors
/// What the socket reports.
pub(crate) async fn serve_connection(
    connection: Connection,
    handler: Arc<impl Handler>,
) -> io::Result<()> {
    let number = connection.number;
    let result = go_on(connection, handler).await;
    // Nobody is left to be answered.
    let _step = resume::step();
    for what in ["conn", "skip", "taken", "written"] {
        resume::remove(&format!("{what}/{number}"));
    }
    for what in ["rx", "call", "answer", "outcome", "signalled"] {
        resume::remove_all(&format!("{what}/{number}/"));
    }
    result
}

async fn go_on(connection: Connection, handler: Arc<impl Handler>) -> io::Result<()> {
    let Connection {
        socket,
        held: _held,
        number,
        mut reading,
        calls: restored,
        outgoing,
    } = connection;
    let (reader, writer) = socket.into_split();
    let line = Arc::new(Line {
        number,
        writer,
        outgoing: Mutex::new(outgoing),
        more: Notify::new(),
        less: Notify::new(),
    });
    let mut calls = JoinSet::new();
    // Within the set, so that it ends with the connection.
    let writing = Arc::clone(&line);
    calls.spawn(async move { writing.write_rest().await });
    for (unheard, call) in restored {
        let answering = carry_out(call, Arc::clone(&line), Arc::clone(&handler));
        calls.spawn(after_first_poll(answering, unheard));
    }
    loop {
        while line.outgoing().frames.len() > RESPONSES {
            line.less.notified().await;
        }
        reader.readable().await?;
        while calls.try_join_next().is_some() {}
        let mut frames = Vec::new();
        {
            // What is read is gone from the socket: in the same step it is on the slate.
            let _step = resume::step();
            let mut buffer = [0u8; CHUNK];
            let kept = resume::is_kept();
            let read = if kept {
                // Looked at and not taken: this process may be killed before it is on the slate.
                let socket = reader.as_ref();
                socket.try_io(tokio::io::Interest::READABLE, || {
                    sys::peek(socket.as_fd(), &mut buffer)
                })
            } else {
                reader.try_read(&mut buffer)
            };
            let size = match read {
                Ok(0) if reading.bytes.is_empty() && reading.skip == 0 => return Ok(()),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(size) => size,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            };
            reading.feed(number, buffer.get(..size).unwrap_or_default(), &mut frames);
            for (header, payload) in frames {
                if header.kind != REQUEST {
                    // Streams are not part of the task service; a stray close is not worth an answer.
                    continue;
                }
                let call = Call {
                    deadline: deadline_of(&payload),
                    crashes: 0,
                    header,
                    payload,
                };
                let request = RequestId {
                    connection: number,
                    stream: header.stream,
                };
                resume::put(&request.call_key(), &call.encode());
                if calls.len() > OPEN {
                    let fault = Fault::new(
                        Code::RESOURCE_EXHAUSTED,
                        "too many open requests on this connection",
                    );
                    line.answer(request, encode(header.stream, Err(fault)));
                } else {
                    calls.spawn(carry_out(call, Arc::clone(&line), Arc::clone(&handler)));
                }
            }
            if kept {
                let taken = format!("taken/{number}");
                resume::put(&taken, &(size as u64).to_le_bytes());
                resume::commit();
                sys::take(reader.as_ref().as_fd(), &mut buffer, size)?;
                resume::remove(&taken);
                // Before anything else is looked at.
                resume::commit();
            }
        }
    }
}

/// When the caller of a request gives up, in milliseconds since 1970; 0: never.
fn deadline_of(payload: &[u8]) -> u64 {
    Request::parse_from_bytes(payload)
        .ok()
        .and_then(|request| u64::try_from(request.timeout_nano).ok())
        .filter(|nanos| *nanos > 0)
        .map_or(0, |nanos| {
            now_ms().saturating_add((nanos / 1_000_000).max(1))
        })
}

/// Runs `future`, and lets go of `held` when it has run up to where it waits for the first time.
async fn after_first_poll<T>(future: impl Future<Output = ()>, held: T) {
    let mut future = std::pin::pin!(future);
    let mut held = Some(held);
    std::future::poll_fn(move |cx| {
        let polled = future.as_mut().poll(cx);
        drop(held.take());
        polled
    })
    .await;
}

/// Answers one request.
async fn carry_out(call: Call, line: Arc<Line>, handler: Arc<impl Handler>) {
    let stream = call.header.stream;
    let request = RequestId {
        connection: line.number,
        stream,
    };
    let result = if call.crashes >= POISON {
        Err(Fault::new(
            Code::INTERNAL,
            format!(
                "the shim failed {POISON} times in a row while this request was open, and does not try it again (the container is untouched): incident {}",
                image::lives().incident.unwrap_or_default()
            ),
        ))
    } else {
        request::answering(request, answer(call, handler.as_ref())).await
    };
    line.answer(request, encode(stream, result));
}

async fn answer(call: Call, handler: &impl Handler) -> Result<Vec<u8>, Fault> {
    let header = call.header;
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
    let request = Request::parse_from_bytes(&call.payload)
        .map_err(|error| Fault::invalid(format!("decode the request: {error}")))?;
    let (deadline, started) = (call.deadline, now_ms());
    drop(call.payload);
    let name = format!("{}/{}", request.service, request.method);
    let answer = contain(handler.handle(&request.service, &request.method, &request.payload));
    let outcome = if deadline > 0 {
        let limit = Duration::from_millis(deadline.saturating_sub(started));
        tokio::time::timeout(limit, answer)
            .await
            .map_err(|_| Fault::deadline(format!("{name}: the caller's deadline has passed")))?
    } else {
        answer.await
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
    use crate::wire::{client, read_frame};
    use tokio::io::AsyncWriteExt;

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
