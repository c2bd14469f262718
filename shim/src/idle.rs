//! What a shim lets go of once nobody asks it anything ([decision 0009](../docs/0009-what-an-idle-shim-holds.md)).

mod sys;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::sys::trim_heap;

/// How long nobody must have been answered.
const AFTER: Duration = Duration::from_secs(2);

/// The program's pages go when the loop next sleeps: whatever runs in between would bring them back.
static LET_GO: AtomicBool = AtomicBool::new(false);

/// Whether anybody asks.
#[derive(Debug, Default)]
pub(crate) struct Idle {
    answers: AtomicU64,
    watching: AtomicBool,
}

impl Idle {
    /// A request has been answered: the shim is idle a while after the last one of a burst.
    pub(crate) fn answered(self: &Arc<Self>) {
        self.answers.fetch_add(1, Ordering::SeqCst);
        if self.watching.swap(true, Ordering::SeqCst) {
            return;
        }
        let idle = Arc::clone(self);
        tokio::spawn(async move {
            let mut seen = idle.answers.load(Ordering::SeqCst);
            loop {
                tokio::time::sleep(AFTER).await;
                // A burst may be long, and what it has freed is of use to others.
                trim_heap();
                let now = idle.answers.load(Ordering::SeqCst);
                if now == seen {
                    break;
                }
                seen = now;
            }
            idle.watching.store(false, Ordering::SeqCst);
            LET_GO.store(true, Ordering::SeqCst);
        });
    }
}

/// The event loop has nothing to do and waits.
pub(crate) fn loop_sleeps() {
    if LET_GO.load(Ordering::SeqCst) {
        LET_GO.store(false, Ordering::SeqCst);
        sys::unmap_program();
    }
}
