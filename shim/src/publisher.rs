//! Tells containerd what happened.
//!
//! Every event is in its container's journal before it is queued, and leaves the queue only when containerd has
//! acknowledged it ([`crate::task::journal`]). One task sends them one at a time over one connection, always the oldest of
//! all containers, so nothing overtakes anything. While containerd is away the journals grow and memory does not; beyond
//! [`SOFT_LIMIT`] events whose loss containerd can find out by asking are dropped (and logged), never an exit, an OOM or a
//! delete. Those are as many as processes have ended meanwhile, and without containerd nobody starts new ones.
//!
//! What a dead shim still had to tell, a process of its own tells in its place ([`crate::handover`]). containerd may have
//! heard the first of it: an event may come twice, never too late and never not at all.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use containerd_shim_protos::ttrpc::proto::Code;
use holdfast_record::{ContainerId, Namespace};
use tokio::sync::{Notify, watch};

use crate::event::Event;
use crate::fault::{Fault, chain};
use crate::outbox;
use crate::task::journal::BundleJournal;
use crate::task::record::Entry;
use crate::wire::client::Connection;

const SERVICE: &str = "containerd.services.events.ttrpc.v1.Events";
const METHOD: &str = "Forward";
/// How long containerd may take over one event, as its own shim has it.
const TRY_LIMIT: Duration = Duration::from_secs(5);
/// How long an answer may be awaited on a connection that stands. A containerd that is
/// stopped finds the event in its socket when it goes on; sent again, it would find it twice.
const PATIENCE: Duration = Duration::from_secs(300);
/// First and longest pause after a failure.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));
/// Pause before a journal that could not be written or read is tried again.
const DISK_PAUSE: Duration = Duration::from_secs(1);
/// Events kept before dispensable ones are dropped.
const SOFT_LIMIT: u64 = 8192;
/// Tries for a dispensable event that containerd answers with a lasting refusal.
const REFUSALS: u32 = 5;

/// A container's journal, written by its owner and here; always from the one thread.
pub(crate) type SharedJournal = Arc<Mutex<BundleJournal>>;

/// Adds an entry to a journal.
pub(crate) fn note(journal: &SharedJournal, entry: &Entry) {
    lock(journal).append(entry);
}

fn lock(journal: &SharedJournal) -> MutexGuard<'_, BundleJournal> {
    journal.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whatever takes requests to containerd.
trait Courier {
    /// Takes one there. The outer error is the way's, the inner one containerd's refusal.
    async fn deliver(&mut self, request: Vec<u8>) -> std::io::Result<Result<(), Fault>>;
}

/// One connection to containerd's ttrpc socket, made when it is needed.
struct Socket<'a> {
    address: &'a Path,
    connection: Option<Connection>,
}

impl Courier for Socket<'_> {
    async fn deliver(&mut self, request: Vec<u8>) -> std::io::Result<Result<(), Fault>> {
        let mut open = match self.connection.take() {
            Some(open) => open,
            None => Connection::open(self.address).await?,
        };
        let answer = open
            .call(SERVICE, METHOD, request, TRY_LIMIT, PATIENCE)
            .await?;
        self.connection = Some(open);
        Ok(answer.map(|_| ()))
    }
}

/// The next event to be sent.
struct Next {
    journal: SharedJournal,
    number: u64,
    topic: String,
    dispensable: bool,
    request: Vec<u8>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Publisher {
    namespace: Namespace,
    address: Option<PathBuf>,
    /// Journals with something to tell.
    journals: Mutex<Vec<SharedJournal>>,
    added: Notify,
    waiting: watch::Sender<u64>,
    number: AtomicU64,
    /// Where journals go whose bundle goes; none when nobody is told anything.
    folder: Option<PathBuf>,
}

impl Publisher {
    /// A publisher to containerd's ttrpc socket; without an address events are only logged.
    pub(crate) fn new(namespace: Namespace, address: Option<PathBuf>) -> Self {
        Self::keeping_in(&outbox::parent(), namespace, address)
    }

    /// As [`Publisher::new`], with another parent for the folder of journals without a bundle.
    pub(crate) fn keeping_in(
        parent: &Path,
        namespace: Namespace,
        address: Option<PathBuf>,
    ) -> Self {
        let folder = address
            .as_deref()
            .map(|address| outbox::folder(parent, address, &namespace));
        Self {
            namespace,
            address,
            journals: Mutex::default(),
            added: Notify::new(),
            waiting: watch::Sender::new(0),
            number: AtomicU64::new(0),
            folder,
        }
    }

    fn journals(&self) -> MutexGuard<'_, Vec<SharedJournal>> {
        // Every change is one insertion or removal, so a panic leaves nothing half done.
        self.journals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an event behind all others, by way of its container's journal. Never waits.
    pub(crate) fn publish(&self, event: &Event, journal: &SharedJournal) {
        if self.address.is_none() {
            log::warn!("no TTRPC_ADDRESS: {} is told to nobody", event.topic());
            return;
        }
        let waiting = *self.waiting.borrow();
        if waiting >= SOFT_LIMIT && event.is_dispensable() {
            log::error!(
                "containerd has not taken {waiting} events; dropping a {}",
                event.topic()
            );
            return;
        }
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        lock(journal).queue(number, event.encode());
        self.attend(journal);
    }

    /// Goes on with a journal that an earlier image of this shim, or a dead one, has left.
    pub(crate) fn resume(&self, journal: &SharedJournal) {
        let after = lock(journal).highest().map_or(0, |number| number + 1);
        self.number.fetch_max(after, Ordering::Relaxed);
        self.attend(journal);
    }

    /// Goes on with what earlier images of this shim have left of containers whose bundles are gone.
    pub(crate) fn resume_left(&self) {
        let Some(folder) = &self.folder else {
            return;
        };
        let own = format!(".{}-", std::process::id());
        for path in outbox::files(folder) {
            if !path.to_string_lossy().contains(&own) {
                continue;
            }
            match BundleJournal::open(&path, |_| {}) {
                Ok(journal) => self.resume(&Arc::new(Mutex::new(journal))),
                Err(error) => log::error!("{}", chain(&error)),
            }
        }
    }

    /// Sees to it that the container's last events outlive its bundle; before Delete is answered.
    pub(crate) fn bundle_goes(&self, container: &ContainerId, journal: &SharedJournal) {
        let Some(folder) = &self.folder else {
            return;
        };
        let mut journal = lock(journal);
        if journal.waiting() == 0 {
            return;
        }
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let left = outbox::take_in(&mut journal, folder, container, number);
        if let Err(error) = left {
            log::error!(
                "{container}: {error}; should the shim be killed before containerd has taken them, its last events are lost"
            );
        }
    }

    fn attend(&self, journal: &SharedJournal) {
        let mut journals = self.journals();
        if !journals.iter().any(|known| Arc::ptr_eq(known, journal)) {
            journals.push(Arc::clone(journal));
        }
        self.count(&journals);
        drop(journals);
        self.added.notify_one();
    }

    fn count(&self, journals: &[SharedJournal]) {
        let waiting = journals.iter().map(|journal| lock(journal).waiting()).sum();
        self.waiting.send_replace(waiting);
    }

    /// Whether containerd has taken all that this journal had to tell.
    pub(crate) fn has_told(journal: &SharedJournal) -> bool {
        lock(journal).waiting() == 0
    }

    /// Waits until everything was acknowledged, at most `limit`; the number left.
    pub(crate) async fn flush(&self, limit: Duration) -> u64 {
        let mut waiting = self.waiting.subscribe();
        let done = tokio::time::timeout(limit, waiting.wait_for(|count| *count == 0)).await;
        if done.is_ok() {
            0
        } else {
            *self.waiting.borrow()
        }
    }

    /// Gives up: where the journals lie that have something to tell, for another process to go on with.
    pub(crate) fn hand_over(&self) -> Vec<PathBuf> {
        let journals = std::mem::take(&mut *self.journals());
        self.waiting.send_replace(0);
        journals
            .iter()
            .map(|journal| lock(journal).path().to_owned())
            .collect()
    }

    /// The oldest event of all. Journals that have told everything are forgotten.
    fn next(&self) -> Option<Next> {
        let mut journals = self.journals();
        journals.retain(|journal| {
            let journal = lock(journal);
            journal.waiting() > 0 || journal.is_behind()
        });
        let next = journals
            .iter()
            .filter_map(|journal| Some((lock(journal).front()?.0, journal)))
            .min_by_key(|(number, _)| *number)
            .map(|(_, journal)| Arc::clone(journal));
        // Reading back may have found that there is less.
        self.count(&journals);
        drop(journals);
        let journal = next?;
        let mut open = lock(&journal);
        let (number, event) = open.front()?;
        let (number, topic, dispensable, request) = (
            *number,
            event.topic.clone().into_owned(),
            event.dispensable,
            event.request(&self.namespace),
        );
        drop(open);
        Some(Next {
            journal,
            number,
            topic,
            dispensable,
            request,
        })
    }

    fn acknowledged(&self, next: &Next) {
        log::trace!("event {} ({}) is taken", next.number, next.topic);
        lock(&next.journal).acknowledge();
        self.count(&self.journals());
    }

    /// Waits for something to do. Journals that a full file system has not taken are tried again meanwhile.
    async fn idle(&self) {
        let disk = self.journals().iter().any(|journal| {
            let journal = lock(journal);
            journal.is_behind() || journal.waiting() > 0
        });
        if !disk {
            self.added.notified().await;
            return;
        }
        // Err: nothing was added.
        let _ = tokio::time::timeout(DISK_PAUSE, self.added.notified()).await;
        for journal in self.journals().iter() {
            lock(journal).retry();
        }
    }

    /// Sends what is queued, for ever.
    pub(crate) async fn run(&self) {
        if let Some(address) = &self.address {
            let mut socket = Socket {
                address,
                connection: None,
            };
            self.send_by(&mut socket).await;
        }
    }

    async fn send_by(&self, courier: &mut impl Courier) {
        let (mut pause, mut refusals, mut away) = (PAUSE.0, 0, false);
        loop {
            let Some(mut next) = self.next() else {
                self.idle().await;
                continue;
            };
            match courier.deliver(std::mem::take(&mut next.request)).await {
                Ok(Ok(())) => {
                    if std::mem::take(&mut away) {
                        log::info!("containerd takes events again");
                    }
                    self.acknowledged(&next);
                    (pause, refusals) = (PAUSE.0, 0);
                    continue;
                }
                Ok(Err(fault)) => {
                    let passing = matches!(
                        fault.code,
                        Code::UNAVAILABLE
                            | Code::DEADLINE_EXCEEDED
                            | Code::RESOURCE_EXHAUSTED
                            | Code::ABORTED
                    );
                    if !passing {
                        refusals += 1;
                    }
                    let topic = &next.topic;
                    if refusals <= REFUSALS {
                        log::warn!("containerd refused {topic}: {}", fault.text);
                    }
                    // What must not be lost is kept even so, and is tried again without end.
                    if refusals >= REFUSALS && next.dispensable {
                        log::error!("giving up on {topic} after {refusals} refusals");
                        self.acknowledged(&next);
                        refusals = 0;
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut away, true) {
                        log::warn!(
                            "containerd does not take events ({}): {error}; keeping them",
                            next.topic
                        );
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }
}

#[cfg(test)]
#[path = "publisher_tests.rs"]
mod tests;
