//! Writes ends to the ledger, in order and off the event loop: the disk may hang, and so may the kernel's records that
//! tell why something ended.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use holdfast_record::ledger::{Ledger, Record};
use holdfast_record::logging::{Places, publish};
use holdfast_record::why;
use holdfast_record::witness::Witness;

use super::reason::Case;
use super::termination;

/// Ends that may wait for a slow disk.
const MAX_WAITING: usize = 4096;

/// See the module.
#[derive(Debug)]
pub(crate) struct Scribe {
    ledger: Ledger,
    places: Places,
    witness: Witness,
    waiting: Mutex<Waiting>,
}

/// What is to be written.
#[derive(Debug)]
struct Item {
    record: Record,
    /// The reason is yet to be found; the record has the one that is likely.
    case: Option<Case>,
    /// Kubernetes' termination log of the container.
    termination_log: Option<PathBuf>,
}

#[derive(Debug, Default)]
struct Waiting {
    items: VecDeque<Item>,
    /// A thread is at it.
    busy: bool,
}

impl Scribe {
    /// A scribe for the ledger and the kernel's records that the environment names.
    pub(crate) fn new(places: Places) -> Self {
        Self {
            ledger: Ledger::from_env(),
            places,
            witness: Witness::from_env(),
            waiting: Mutex::default(),
        }
    }

    /// Sees to it that the kernel records who sends signals, now and on this thread.
    pub(crate) fn watch_signals(&self) {
        match self.witness.set_up() {
            Ok(()) => {}
            // Each end that it matters for says so again.
            Err(error) => log::info!("{error}"),
        }
    }

    /// Writes one record, now and on this thread.
    pub(crate) fn write_now(&self, record: &Record) {
        publish(&self.ledger, &self.places, record);
    }

    /// Writes one record soon.
    pub(crate) fn write(self: &Arc<Self>, record: Record) {
        self.queue(Item {
            record,
            case: None,
            termination_log: None,
        });
    }

    /// Finds the reason of an end and writes it soon: to the ledger, and to the termination log where there is one.
    pub(crate) fn write_end(
        self: &Arc<Self>,
        record: Record,
        case: Case,
        termination_log: Option<PathBuf>,
    ) {
        self.queue(Item {
            record,
            case: Some(case),
            termination_log,
        });
    }

    fn queue(self: &Arc<Self>, item: Item) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.items.len() >= MAX_WAITING {
            log::error!(
                "the ledger's disk takes nothing; not recorded: {}",
                item.record.summary
            );
            return;
        }
        waiting.items.push_back(item);
        if !std::mem::replace(&mut waiting.busy, true) {
            let scribe = Arc::clone(self);
            tokio::task::spawn_blocking(move || scribe.drain());
        }
    }

    fn drain(&self) {
        loop {
            let next = {
                let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                let next = waiting.items.pop_front();
                if next.is_none() {
                    waiting.busy = false;
                    waiting.items.shrink_to_fit();
                }
                next
            };
            match next {
                Some(item) => self.finish(item),
                None => return,
            }
        }
    }

    fn finish(&self, item: Item) {
        let Item {
            mut record,
            case,
            termination_log,
        } = item;
        if let Some(case) = case {
            let (reason, timeline) = case.close(&self.witness);
            record = record.with_reason(&reason).with_timeline(timeline);
            if let Some(path) = termination_log
                && termination::is_told(&reason)
                && let Err(error) = termination::write(&path, &why::sentence(&record))
            {
                log::warn!("the termination log {}: {error}", path.display());
            }
        }
        self.write_now(&record);
    }

    /// Whether everything is written.
    pub(crate) fn is_idle(&self) -> bool {
        !self
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .busy
    }
}
