//! Streams of a container that have to go on while something happens to its shim.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::containerd::Containerd;
use crate::ctr::Client;
use crate::deadline::eventually;
use crate::pty::Terminal;

const LIMIT: Duration = Duration::from_secs(30);
/// Lines written at a time.
const BLOCK: usize = 2000;
/// So many lines later, bytes have gone on.
const MORE: usize = 20_000;

/// Numbered lines that go through `cat` in a container, as many as its client takes.
#[derive(Debug)]
pub struct Flow {
    /// Of the container's init process.
    pub pid: i32,
    client: Client,
    sent: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    feeding: JoinHandle<()>,
}

impl Flow {
    /// Through a container of its own with this id.
    ///
    /// # Panics
    /// When the container does not run.
    #[must_use]
    pub fn start(containerd: &Containerd, id: &str) -> Self {
        let mut client = containerd.spawn_run(id, &["--rm"], &["cat"], None);
        let pid = eventually("the container runs", LIMIT, || {
            let task = containerd.task(id)?;
            (task.status == "RUNNING").then_some(task.pid)
        });
        let mut stdin = client.child.stdin.take().expect("a pipe");
        let sent = Arc::new(AtomicUsize::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let (lines, stopped) = (Arc::clone(&sent), Arc::clone(&stop));
        let feeding = thread::spawn(move || {
            // As fast as the far end takes it, so that there is always something on its way.
            while !stopped.load(Ordering::SeqCst) {
                let from = lines.load(Ordering::SeqCst);
                let block: String = (from..from + BLOCK).map(line).collect();
                stdin.write_all(block.as_bytes()).expect("the client reads");
                lines.store(from + BLOCK, Ordering::SeqCst);
            }
        });
        Self {
            pid,
            client,
            sent,
            stop,
            feeding,
        }
    }

    /// How many lines were written so far.
    #[must_use]
    pub fn sent(&self) -> usize {
        self.sent.load(Ordering::SeqCst)
    }

    /// Waits until more lines have gone through than `before`.
    ///
    /// # Panics
    /// When they do not.
    #[track_caller]
    pub fn goes_on(&self, before: usize) {
        eventually("bytes go on", LIMIT, || {
            (self.sent() > before + MORE).then_some(())
        });
    }

    /// Ends the container by the end of its input: all that went in has come out, once and in its order.
    ///
    /// # Panics
    /// When it has not.
    #[track_caller]
    pub fn finish(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.feeding.join().expect("all was written");
        assert_eq!(self.client.code(), 0);
        let output = self.client.output();
        let mut wrong = output
            .lines()
            .enumerate()
            .filter(|(n, line)| *line != format!("{n:015}"));
        assert_eq!(wrong.next(), None);
        assert_eq!(output.len(), self.sent.load(Ordering::SeqCst) * 16);
    }
}

fn line(n: usize) -> String {
    format!("{n:015}\n")
}

/// A shell on a terminal answers after each of three calls of `strike`, which are `spacing` apart, and ends as told.
///
/// # Panics
/// When it does not.
#[track_caller]
pub fn terminal_goes_on(containerd: &Containerd, spacing: Duration, strike: impl Fn()) {
    let (mut terminal, slave) = Terminal::pair();
    let mut client = containerd.spawn_run("tty", &["--rm", "-t"], &["sh"], Some(slave));
    terminal.type_in("echo mark-$((40+2))\n");
    terminal.expect("mark-42", LIMIT);
    for n in 0..3 {
        strike();
        terminal.type_in(&format!("echo mark-$((50+{n}))\n"));
        terminal.expect(&format!("mark-{}", 50 + n), LIMIT);
        thread::sleep(spacing);
    }
    terminal.type_in("exit 5\n");
    assert_eq!(client.code(), 5);
}
