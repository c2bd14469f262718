//! Tells containerd what a shim that is gone had not got acknowledged.
//!
//! `delete` runs while containerd waits for it, possibly before containerd serves anything (it clears leaked shims while
//! it starts), and its bundle is gone soon after. So the journal leaves the bundle ([`crate::outbox`]), and a process of
//! its own tells it until containerd has taken everything. Whoever finds a journal there that nobody tells does the same:
//! every `start` and `delete` of this containerd and namespace looks.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use holdfast_record::deadline::limit_from_env;
use holdfast_record::journal::is_in_use;
use holdfast_record::logging::{self, Places};
use holdfast_record::{ContainerId, Namespace};

use crate::cli::CommandLine;
use crate::fault::chain;
use crate::outbox;
use crate::publisher::Publisher;
use crate::server::{IDENTIFIER, ServerError, events_address, step};
use crate::task::journal::BundleJournal;

/// Tells the action `publish` which journals to tell, separated by colons as in PATH.
const JOURNALS_VARIABLE: &str = "HOLDFAST_SHIM_JOURNALS";

/// How long containerd may stay away before the process ends; the journals stay for the next one.
fn limit() -> Duration {
    limit_from_env("HANDOVER", Duration::from_secs(600))
}

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

/// The folder of journals without a bundle; none when nobody is told anything.
pub(crate) fn folder(namespace: &Namespace) -> Option<PathBuf> {
    let address = events_address()?;
    Some(outbox::folder(&outbox::parent(), &address, namespace))
}

/// Takes the journal of a dead shim out of its bundle if there is something to tell; true then.
pub(crate) fn take_over(journal: &Path, namespace: &Namespace, container: &ContainerId) -> bool {
    let Some(folder) = folder(namespace).filter(|_| journal.exists()) else {
        return false;
    };
    let mut entries = 0;
    let taken = BundleJournal::open(journal, |_| entries += 1)
        .map_err(|error| chain(&error))
        .and_then(|mut journal| {
            outbox::take_in(&mut journal, &folder, container, entries)?;
            Ok(journal.waiting() > 0)
        });
    taken.unwrap_or_else(|error| {
        log::error!("the last events of {container} are lost: {error}");
        false
    })
}

/// Starts to tell every journal that nobody tells; none when there is nothing or nobody to tell.
pub(crate) fn begin(line: &CommandLine) -> Option<Telling> {
    let namespace = Namespace::new(line.namespace.as_str()).ok()?;
    let mut journals = outbox::files(&folder(&namespace)?);
    // As a rule a living shim's, which is about to be done with it.
    journals.retain(|path| matches!(is_in_use(path), Ok(false)));
    begin_with(&line.namespace, &line.id, &journals)
}

/// Starts to tell these journals.
pub(crate) fn begin_with(namespace: &str, id: &str, journals: &[PathBuf]) -> Option<Telling> {
    if journals.is_empty() {
        return None;
    }
    match spawn(namespace, id, journals) {
        Ok(child) => Some(Telling(child)),
        Err(error) => {
            log::error!(
                "{} journals wait to be told: start their publisher: {error}",
                journals.len()
            );
            None
        }
    }
}

fn spawn(namespace: &str, id: &str, journals: &[PathBuf]) -> std::io::Result<Child> {
    let journals = std::env::join_paths(journals).map_err(std::io::Error::other)?;
    Command::new(std::env::current_exe()?)
        .args(["-namespace", namespace, "-id", id, "publish"])
        .env(JOURNALS_VARIABLE, journals)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        // Whatever containerd does to us in the end is not meant for it.
        .process_group(0)
        .spawn()
}

/// The `publish` action: tells the journals that the environment names and that nobody tells.
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
    let journals = std::env::var_os(JOURNALS_VARIABLE).unwrap_or_default();
    let mut telling = Vec::new();
    for path in std::env::split_paths(&journals) {
        match BundleJournal::open(&path, drop) {
            Ok(journal) => {
                let journal = Arc::new(Mutex::new(journal));
                publisher.resume(&journal);
                telling.push(journal);
            }
            // Its shim lives, or another process of this kind has it.
            Err(error) => log::debug!("{}", chain(&error)),
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(step("start the event loop"))?;
    let left = runtime.block_on(async {
        tokio::select! {
            left = publisher.flush(limit()) => left,
            () = publisher.run() => 0,
        }
    });
    if left > 0 {
        log::error!(
            "containerd was away for {:?}: {left} events wait in {} for the next shim that is started",
            limit(),
            journals.display()
        );
    }
    Ok(())
}
