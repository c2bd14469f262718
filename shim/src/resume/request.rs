//! Which RPC is being answered, and what became of those that the image before had begun.
//!
//! A change may be recorded and its answer not yet written when an image ends. So each answer to a
//! change is put on the slate in the same step as the change ([`Reply::send`]), and a request that is
//! asked again finds it there ([`rejoin`]). One that is still being carried out is named in the
//! container's record, and the request asked again waits for it.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use containerd_shim_protos::ttrpc::proto::Code;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, oneshot, watch};

use crate::fault::Fault;

/// A request, for as long as its connection lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct RequestId {
    /// The connection's number.
    pub(crate) connection: u64,
    /// ttrpc's stream.
    pub(crate) stream: u32,
}

impl RequestId {
    /// Where the request lies while it is open.
    pub(crate) fn call_key(self) -> String {
        format!("call/{}/{}", self.connection, self.stream)
    }

    /// Where it is said that its signal has been sent.
    pub(crate) fn signalled_key(self) -> String {
        format!("signalled/{}/{}", self.connection, self.stream)
    }

    /// Where its outcome lies.
    pub(crate) fn outcome_key(self) -> String {
        format!("outcome/{}/{}", self.connection, self.stream)
    }
}

tokio::task_local! {
    static CURRENT: RequestId;
}

/// Runs `future` as the answer to a request.
pub(crate) fn answering<F: Future>(
    request: RequestId,
    future: F,
) -> impl Future<Output = F::Output> {
    CURRENT.scope(request, future)
}

/// The request that is being answered here; none outside of any.
pub(crate) fn current() -> Option<RequestId> {
    CURRENT.try_with(|request| *request).ok()
}

#[derive(Debug, Serialize, Deserialize)]
enum Outcome {
    Done(serde_json::Value),
    Refused { code: i32, text: String },
}

#[derive(Debug, Default)]
struct Table {
    /// Changes of the image before that go on.
    underway: HashSet<RequestId>,
    /// What the image before, or a change of it that went on, has answered.
    outcomes: HashMap<RequestId, Outcome>,
}

static TABLE: Mutex<Option<Table>> = Mutex::new(None);
static CHANGED: Notify = Notify::const_new();

fn table() -> MutexGuard<'static, Option<Table>> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An outcome that the slate holds.
pub(crate) fn restore_outcome(request: RequestId, bytes: &[u8]) {
    match serde_json::from_slice(bytes) {
        Ok(outcome) => {
            let mut table = table();
            let table = table.get_or_insert_default();
            table.outcomes.insert(request, outcome);
        }
        Err(error) => log::error!("the outcome of a request cannot be read: {error}"),
    }
}

/// Says that a change of the image before goes on; its request will wait for it.
fn goes_on(request: RequestId) {
    table().get_or_insert_default().underway.insert(request);
}

/// Keeps an answer for the next image.
pub(super) fn keep<T: Serialize>(request: RequestId, result: &Result<T, Fault>) {
    record(request, result, false);
}

fn record<T: Serialize>(request: RequestId, result: &Result<T, Fault>, is_awaited: bool) {
    let outcome = match result {
        Ok(value) => match serde_json::to_value(value) {
            Ok(value) => Outcome::Done(value),
            Err(error) => Outcome::Refused {
                code: Code::INTERNAL as i32,
                text: format!("the answer cannot be kept: {error}"),
            },
        },
        Err(fault) => Outcome::Refused {
            code: fault.code as i32,
            text: fault.text.clone(),
        },
    };
    // Only while somebody may ask for it.
    if super::has(&request.call_key()) {
        super::put_json(&request.outcome_key(), &outcome);
    }
    if is_awaited {
        let mut table = table();
        let table = table.get_or_insert_default();
        table.underway.remove(&request);
        table.outcomes.insert(request, outcome);
        CHANGED.notify_waiters();
    }
}

/// What the image before has made of this request; waits for what it had begun and goes on. None: it
/// had not begun.
pub(crate) async fn rejoin<T: DeserializeOwned>() -> Option<Result<T, Fault>> {
    let request = current()?;
    loop {
        let changed = CHANGED.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        {
            let mut table = table();
            let table = table.as_mut()?;
            if let Some(outcome) = table.outcomes.remove(&request) {
                return Some(match outcome {
                    Outcome::Done(value) => serde_json::from_value(value)
                        .map_err(|error| Fault::unknown(format!("the answer of before: {error}"))),
                    Outcome::Refused { code, text } => Err(Fault::new(
                        containerd_shim_protos::protobuf::Enum::from_i32(code)
                            .unwrap_or(Code::UNKNOWN),
                        text,
                    )),
                });
            }
            if !table.underway.contains(&request) {
                return None;
            }
        }
        changed.await;
    }
}

/// How many requests of the image before have not reached their handlers yet.
static UNHEARD: LazyLock<watch::Sender<usize>> = LazyLock::new(watch::Sender::default);

/// A request of the image before, until its handler has begun with it.
#[derive(Debug)]
pub(crate) struct Unheard(());

impl Unheard {
    /// One more.
    pub(crate) fn new() -> Self {
        UNHEARD.send_modify(|count| *count += 1);
        Self(())
    }
}

impl Drop for Unheard {
    fn drop(&mut self) {
        UNHEARD.send_modify(|count| *count -= 1);
    }
}

/// Waits until every request of the image before has found what it asks for. What was begun goes on only
/// then: a Delete that is done before its request has come again would answer it with `NOT_FOUND`.
pub(crate) async fn all_heard() {
    // Err: the sender is gone, which it never is.
    let _ = UNHEARD.subscribe().wait_for(|count| *count == 0).await;
}

/// Where an RPC's answer goes. A client that is gone is no reason to stop.
#[derive(Debug)]
pub(crate) struct Reply<T> {
    to: Option<oneshot::Sender<Result<T, Fault>>>,
    request: Option<RequestId>,
    /// The image before had it; whoever asks again waits in [`rejoin`].
    restored: bool,
}

impl<T> Reply<T> {
    /// A reply to the request that is being answered here, and its other end.
    pub(crate) fn channel() -> (Self, oneshot::Receiver<Result<T, Fault>>) {
        let (to, answer) = oneshot::channel();
        let reply = Self {
            to: Some(to),
            request: current(),
            restored: false,
        };
        (reply, answer)
    }

    /// The reply to a request that the image before has begun to carry out; none if nobody waits.
    pub(crate) fn restored(request: Option<RequestId>) -> Self {
        if let Some(request) = request {
            goes_on(request);
        }
        Self {
            to: None,
            request,
            restored: true,
        }
    }

    /// Which request it answers.
    pub(crate) fn request(&self) -> Option<RequestId> {
        self.request
    }
}

impl<T: Serialize> Reply<T> {
    /// Answers, and keeps the answer for the case that this image ends before it is written.
    pub(crate) fn send(mut self, result: Result<T, Fault>) {
        if let Some(request) = self.request.take() {
            record(request, &result, self.restored);
        }
        if let Some(to) = self.to.take() {
            // Err: the client is gone.
            let _ = to.send(result);
        }
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        // Given up without a word, after a contained panic: who waits for it must not wait for ever.
        if let Some(request) = self.request.take()
            && self.restored
        {
            let fault = Fault::new(
                Code::INTERNAL,
                "the shim failed inside (panic contained, the container is untouched); see its log",
            );
            record::<()>(request, &Err(fault), true);
        }
    }
}
