//! Looking at processes through /proc without waiting for them.
//!
//! `/proc/PID/cmdline` needs the process' memory map: while something holds its lock (a page
//! fault on a dead server, say) the read hangs, and that is just the process one wants to know
//! about. So all of it happens on threads of their own, a few at a time, and what can be read
//! without that lock (state, name, kernel function) is told in any case.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use holdfast_record::process::{self, Stat};

/// How long the whole look may take.
const FULL_LIMIT: Duration = Duration::from_secs(1);
/// How long the part that takes no lock may take.
const BRIEF_LIMIT: Duration = Duration::from_millis(500);
/// Most threads that may hang in /proc at once.
const MAX_HANGING: usize = 4;

/// Threads in a look that may hang.
static LOOKING: AtomicUsize = AtomicUsize::new(0);

/// What there is to say about the process `pid`, after at most a second and a half.
pub(crate) async fn describe(pid: u32) -> String {
    describe_by(pid, FULL_LIMIT, |pid| process::describe(pid).to_string()).await
}

async fn describe_by(
    pid: u32,
    limit: Duration,
    full: impl FnOnce(u32) -> String + Send + 'static,
) -> String {
    let begun = LOOKING.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
        (now < MAX_HANGING).then_some(now + 1)
    });
    if begun.is_ok() {
        let look = tokio::task::spawn_blocking(move || {
            let text = full(pid);
            LOOKING.fetch_sub(1, Ordering::Relaxed);
            text
        });
        if let Ok(Ok(text)) = tokio::time::timeout(limit, look).await {
            return text;
        }
    }
    let look = tokio::task::spawn_blocking(move || brief(pid));
    match tokio::time::timeout(BRIEF_LIMIT, look).await {
        Ok(Ok(text)) => format!("{text}; its memory map is locked: no command line"),
        Ok(Err(_)) | Err(_) => format!("pid {pid} (nothing can be read of it)"),
    }
}

/// What can be read without the lock of the memory map.
pub(crate) fn brief(pid: u32) -> String {
    let Ok(stat) = Stat::read(pid) else {
        return format!("pid {pid} (gone)");
    };
    let mut text = format!(
        "pid {pid} ({}), state {} ({})",
        stat.comm,
        stat.state,
        process::state_in_words(stat.state)
    );
    if let Some(function) = waiting_in(pid) {
        text.push_str(", in kernel function ");
        text.push_str(&function);
    }
    text
}

/// The kernel function a process sleeps in; none when it does not, or it cannot be known.
fn waiting_in(pid: u32) -> Option<String> {
    std::fs::read_to_string(format!("/proc/{pid}/wchan"))
        .ok()
        .map(|text| text.trim().to_owned())
        .filter(|text| !text.is_empty() && text != "0")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test]
    async fn a_look_that_hangs_tells_what_needs_no_lock() {
        let own = std::process::id();
        let text = describe(own).await;
        assert!(text.contains("command"), "{text}");
        // Many at once: the event loop goes on, and so does whoever asks.
        let mut release = Vec::new();
        for _ in 0..2 * MAX_HANGING {
            let (hold, held) = mpsc::channel::<()>();
            release.push(hold);
            let text = describe_by(own, Duration::from_millis(20), move |_| {
                let _ = held.recv();
                String::new()
            })
            .await;
            assert!(
                text.starts_with(&format!("pid {own} (")) && text.contains("memory map"),
                "{text}"
            );
        }
        assert_eq!(LOOKING.load(Ordering::Relaxed), MAX_HANGING);
        assert_eq!(describe(u32::MAX).await.matches("gone").count(), 1);
        drop(release);
    }
}
