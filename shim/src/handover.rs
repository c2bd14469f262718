//! Tells containerd what a dead shim had not got acknowledged.
//!
//! `delete` runs while containerd waits for it, possibly before containerd serves anything (it
//! clears leaked shims while it starts), and its bundle is gone soon after. So it starts a
//! process of its own for the events, which tries until containerd has taken them.

use std::io::{BufRead as _, BufReader, Seek as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use holdfast_record::Namespace;
use holdfast_record::logging::{self, Places};

use crate::cli::CommandLine;
use crate::publisher::{Encoded, Publisher};
use crate::server::{IDENTIFIER, ServerError, events_address, step};
use crate::sys;

/// How long containerd may stay away before the events of the dead shim are given up.
const LIMIT: Duration = Duration::from_secs(600);

/// The process that tells.
#[derive(Debug)]
pub(crate) struct Telling(Child);

impl Telling {
    /// Waits until everything is told, at most `limit`; it goes on by itself.
    pub(crate) fn wait(mut self, limit: Duration) {
        let until = Instant::now() + limit;
        // A short-lived process without an event loop: asking every few milliseconds will do.
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Starts to tell `events`; none when there is nothing or nobody to tell.
pub(crate) fn begin(line: &CommandLine, events: &[Encoded]) -> Option<Telling> {
    if events.is_empty() || events_address().is_none() {
        return None;
    }
    match spawn(line, events) {
        Ok(child) => Some(Telling(child)),
        Err(error) => {
            log::error!(
                "{} events of the dead shim are lost: start their publisher: {error}",
                events.len()
            );
            None
        }
    }
}

fn spawn(line: &CommandLine, events: &[Encoded]) -> std::io::Result<Child> {
    // All of it before anybody reads, and without a file system that may be full.
    let mut file = sys::memory_file(c"holdfast-events")?;
    for event in events {
        serde_json::to_writer(&mut file, event)?;
        file.write_all(b"\n")?;
    }
    file.rewind()?;
    Command::new(std::env::current_exe()?)
        .args(["-namespace", &line.namespace, "-id", &line.id, "publish"])
        .stdin(Stdio::from(file))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        // Whatever containerd does to us in the end is not meant for it.
        .process_group(0)
        .spawn()
}

/// The `publish` action: tells the events on standard input.
///
/// # Errors
/// When it cannot begin.
pub(crate) fn publish(line: &CommandLine) -> Result<(), ServerError> {
    let places = Places::default();
    let sink = logging::stderr_to_journal(IDENTIFIER, &places);
    let fields = vec![
        ("id".to_owned(), line.id.clone()),
        ("namespace".to_owned(), line.namespace.clone()),
    ];
    drop(logging::install(
        IDENTIFIER,
        log::LevelFilter::Info,
        sink,
        places,
        fields,
    ));
    let publisher = Publisher::new(Namespace::new(line.namespace.as_str())?, events_address());
    for event in BufReader::new(std::io::stdin()).lines() {
        let event = event.map_err(step("read the events of the dead shim"))?;
        match serde_json::from_str::<Encoded>(&event) {
            Ok(event) => publisher.adopt(event),
            Err(error) => log::error!("an event of the dead shim cannot be read: {error}"),
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(step("start the event loop"))?;
    let left = runtime.block_on(async {
        tokio::select! {
            left = publisher.flush(LIMIT) => left,
            () = publisher.run() => 0,
        }
    });
    if left > 0 {
        log::error!("{left} events of the dead shim are lost: containerd was away for {LIMIT:?}");
    }
    Ok(())
}
