//! The server process: one thread, one event loop, until the last container is gone and
//! containerd says Shutdown.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use holdfast_record::deadline::limit_from_env;
use holdfast_record::ledger::{Kind, Record};
use holdfast_record::logging::{self, Places};
use holdfast_record::{ContainerId, Namespace, Reason};
use nix::sys::socket::{getsockopt, sockopt};
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::cli::CommandLine;
use crate::ends;
use crate::handover;
use crate::keeper::{self, Stop};
use crate::killer;
use crate::publisher::Publisher;
use crate::resume::image::{self, Begun};
use crate::resume::{self};
use crate::service::TaskService;
use crate::sys;
use crate::task::scribe::Scribe;
use crate::task::{Shim, node};
use crate::wire::server::{Connection, contain, serve_connection};

/// Where `start` leaves the listening socket.
pub(crate) const LISTENER_FD: i32 = 3;
/// Tells the server the path of its socket, to be removed at its end.
pub(crate) const SOCKET_VARIABLE: &str = "HOLDFAST_SHIM_SOCKET";
/// What the log and journald call us.
pub(crate) const IDENTIFIER: &str = "containerd-shim-holdfast-v2";
/// How long unacknowledged events may hold back the end: a containerd that is being replaced
/// takes its time.
fn flush_limit() -> Duration {
    limit_from_env("FLUSH", Duration::from_secs(150))
}
/// Exit status after a panic that nothing contains and no image survives.
const PANICKED: i32 = 101;
/// On the slate: the shim is ending, and only has to tell what is left.
const CLOSING: &str = "closing";
/// How long a blocking thread stays for the next piece of work.
const IDLE_THREAD: Duration = Duration::from_millis(100);

/// The server cannot run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServerError {
    /// A step of its start.
    #[error("{step}")]
    Step {
        /// Which one.
        step: &'static str,
        /// The errno.
        #[source]
        source: std::io::Error,
    },
    /// The id that came with the command line.
    #[error("{0}")]
    Id(#[from] holdfast_record::ids::InvalidId),
}

pub(crate) fn step(step: &'static str) -> impl FnOnce(std::io::Error) -> ServerError {
    move |source| ServerError::Step { step, source }
}

/// Runs the server.
///
/// # Errors
/// [`ServerError`] when it cannot begin.
pub(crate) fn run(line: &CommandLine) -> Result<(), ServerError> {
    // First of all: what is open now was left by the image before.
    let mut begun = image::begin(line.resume);
    if let (Err(error), Some(slate), Some(program)) = (&begun, line.resume, line.back) {
        let text = error.to_string();
        let back = image::go_back(program, slate);
        begun = Err(std::io::Error::other(format!(
            "{text}; and not back: {back}"
        )));
    }
    sys::share_one_heap();
    let places = Places::default();
    let sink = logging::stderr_to_journal(IDENTIFIER, &places);
    let level = if line.debug {
        log::LevelFilter::Debug
    } else {
        log::LevelFilter::Info
    };
    let fields = vec![
        ("id".to_owned(), line.id.clone()),
        ("namespace".to_owned(), line.namespace.clone()),
    ];
    if let Err(error) = logging::install(IDENTIFIER, level, sink, places.clone(), fields) {
        log::debug!("{error}");
    }
    let id = ContainerId::new(line.id.as_str())?;
    let namespace = Namespace::new(line.namespace.as_str())?;
    if let Err(error) = logging::serve_fifo(Path::new("log")) {
        log::debug!("no log fifo: {error}");
    }
    let begun = begun.map_err(step("go on from where the image before has ended"))?;
    if begun.inherited.is_some() {
        // execve(2) of a descriptor has named the process after its number.
        let _ = nix::sys::prctl::set_name(c"containerd-shim");
    }
    nix::sys::prctl::set_child_subreaper(true)
        .map_err(|errno| step("become subreaper")(errno.into()))?;
    let listener = sys::take_inherited(LISTENER_FD)
        .map_err(step("take the listening socket from descriptor 3"))?;
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder
        .enable_io()
        .enable_time()
        .thread_keep_alive(IDLE_THREAD)
        .max_blocking_threads(64);
    image::watch_loop(&mut builder);
    let runtime = builder.build().map_err(step("start the event loop"))?;
    let serving = serve_containers(namespace, id, listener.into(), places, begun);
    let result = runtime.block_on(vital(serving));
    // A blocking thread may hang in umount(2) for ever.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// Runs what the shim cannot do without: a panic in it is the end of this image.
async fn vital<F: Future>(future: F) -> F::Output {
    match contain(future).await {
        Ok(output) => output,
        Err(panic) => {
            let incident = logging::take_incident().unwrap_or_default();
            log::error!("incident {incident}: the shim cannot go on in this image: {panic}");
            image::end_by_panic(&incident);
            std::process::exit(PANICKED);
        }
    }
}

async fn serve_containers(
    namespace: Namespace,
    id: ContainerId,
    listener: std::os::unix::net::UnixListener,
    places: Places,
    begun: Begun,
) -> Result<(), ServerError> {
    let own = id.clone();
    listener
        .set_nonblocking(true)
        .map_err(step("set up the listening socket"))?;
    let listener = sys::watch_listener(listener).map_err(step("watch the listening socket"))?;
    let mut children = signal(SignalKind::child()).map_err(step("handle SIGCHLD"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(step("handle SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(step("handle SIGINT"))?;
    let mut user = signal(SignalKind::user_defined1()).map_err(step("handle SIGUSR1"))?;
    let mut hangup = signal(SignalKind::hangup()).map_err(step("handle SIGHUP"))?;
    image::let_signals_in();

    let publisher = Arc::new(Publisher::new(namespace.clone(), events_address()));
    let scribe = Arc::new(Scribe::new(places));
    let watching = Arc::clone(&scribe);
    tokio::task::spawn_blocking(move || watching.watch_signals());
    let shim = Arc::new(Shim::new(
        namespace,
        Arc::clone(&publisher),
        Arc::clone(&scribe),
    ));
    let shutdown = Arc::new(Notify::new());
    let service = Arc::new(TaskService::new(Arc::clone(&shim), Arc::clone(&shutdown)));
    let Begun {
        inherited,
        before,
        alone,
        probe,
        unkept,
    } = begun;
    if let Some(why) = unkept {
        log::warn!(
            "the shim has no keeper ({why}): should it be killed its containers end with it"
        );
    }
    if let Some(error) = alone {
        log::error!("a fault of this shim would be its end: it cannot prepare for it: {error}");
    }
    let mut closing = false;
    if let Some(mut inherited) = inherited {
        let _step = resume::step();
        inherited.owned(LISTENER_FD);
        let restored = shim.restore(&mut inherited);
        let connections = Connection::restore(&mut inherited);
        closing = inherited.bytes(CLOSING).is_some();
        inherited.close_rest();
        publisher.resume_left();
        shim.begin(restored);
        resume::taken_over();
        for connection in connections {
            serve(connection, Arc::clone(&service));
        }
        // Whoever has ended meanwhile has sent its signal to nobody.
        shim.reaper.sweep();
    } else {
        resume::taken_over();
    }
    let from_keeper = resume::link::listener().map_err(step("duplicate the keeper's line"))?;
    if let Some(line) = from_keeper {
        let listening = keeper::listen(line, Arc::clone(&shim.reaper), watch_stops(&shim, &own));
        tokio::spawn(vital(listening));
    }
    if let Some(before) = before {
        before.log();
        let (scribe, namespace) = (Arc::clone(&scribe), shim.namespace.clone());
        // Names for its addresses are sought in the program's file, which takes a while.
        tokio::task::spawn_blocking(move || {
            if let Some(record) = before.record(&namespace, &id) {
                scribe.write_now(&record);
            }
        });
    }
    if let Some(probe) = probe {
        tokio::spawn(image::answer_watchdog(probe));
    }
    let publishing = Arc::clone(&publisher);
    let publishing = tokio::spawn(vital(async move { publishing.run().await }));
    let accepting = tokio::spawn(vital(accept(listener, service)));
    log::info!("serving, version {}", env!("CARGO_PKG_VERSION"));

    let count = shim.count();
    while !(closing && shim.close()) {
        tokio::select! {
            Some(()) = children.recv() => shim.reaper.sweep(),
            () = shutdown.notified() => break,
            Some(()) = terminate.recv() => if may_end("SIGTERM", &shim) { break },
            Some(()) = interrupt.recv() => if may_end("SIGINT", &shim) { break },
            Some(()) = user.recv() => log::info!("SIGUSR1: {} containers", *count.borrow()),
            Some(()) = hangup.recv() => log::debug!("SIGHUP ignored"),
        }
    }
    accepting.abort();
    let left = publisher.flush(flush_limit()).await;
    if left > 0 {
        log::warn!(
            "ending with {left} events that containerd has not taken: another process goes on"
        );
        publishing.abort();
        let _ = publishing.await;
        // It finds the journals as files, and that nobody has them locked any more.
        handover::begin_with(shim.namespace.as_str(), "", &publisher.hand_over());
    }
    scribe.write(ends::finished(&shim.namespace, own.as_str()));
    let until = tokio::time::Instant::now() + Duration::from_secs(2);
    while !scribe.is_idle() && tokio::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    log::info!("ending");
    Ok(())
}

/// Writes down that the shim was stopped.
fn watch_stops(shim: &Arc<Shim>, id: &ContainerId) -> impl Fn(Stop) + use<> {
    let (shim, id) = (Arc::clone(shim), id.clone());
    move |stop| {
        log::error!(
            "the shim was stopped by {}: its keeper let it go on after {:?}",
            stop.signal,
            stop.waited
        );
        let (shim, id) = (Arc::clone(&shim), id.clone());
        // The kernel's records may have to be waited for.
        tokio::task::spawn_blocking(move || {
            let known = killer::of(std::process::id(), stop.signal);
            let reason = Reason::ShimStopped {
                signal: stop.signal,
                waited: stop.waited,
                findings: known.findings,
                sender: known.sender,
            };
            let record = Record::new(Kind::Shim, &reason, stop.since);
            shim.scribe
                .write_now(&record.of_container(Some(&shim.namespace), &id));
        });
    }
}

/// containerd's ttrpc socket, where events go.
pub(crate) fn events_address() -> Option<PathBuf> {
    std::env::var("TTRPC_ADDRESS")
        .ok()
        .map(|address| address.trim_start_matches("unix://").to_owned())
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
}

/// Begins the end, unless there are containers; false then. Whoever asked for it is answered
/// afterwards: what has been promised the next image has to know.
pub(crate) fn close(shim: &Shim) -> bool {
    let before = shim.is_closed();
    let close = shim.close();
    // The path may be another shim's by the time somebody asks again.
    if close && !before {
        let _step = resume::step();
        resume::put(CLOSING, &[]);
        // From here on a `start` of this group makes a new shim, and no Create is taken.
        remove_socket();
    }
    close
}

/// A signal ends the shim only when that costs no container.
fn may_end(name: &str, shim: &Arc<Shim>) -> bool {
    let close = close(shim);
    if !close {
        node::is_told_to_end(shim);
        log::warn!("{name} ignored: containers live here; end them through containerd");
    }
    close
}

async fn accept(listener: AsyncFd<std::os::unix::net::UnixListener>, service: Arc<TaskService>) {
    loop {
        let accepted = {
            let Ok(mut ready) = listener.readable().await else {
                return;
            };
            // A connection that is accepted and not on the slate would be closed by the next image.
            let _step = resume::step();
            match listener.get_ref().accept() {
                Ok((socket, _)) if is_same_user(&socket) => socket
                    .set_nonblocking(true)
                    .and_then(|()| Connection::new(socket))
                    .map(Some),
                Ok(_) => {
                    log::warn!("refused a connection of another user");
                    Ok(None)
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    ready.clear_ready();
                    Ok(None)
                }
                Err(error) => Err(error),
            }
        };
        match accepted {
            Ok(Some(connection)) => serve(connection, Arc::clone(&service)),
            Ok(None) => {}
            Err(error) => {
                // No descriptors left, as a rule: give the others time to close some.
                log::error!("accept: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn serve(connection: Connection, service: Arc<TaskService>) {
    tokio::spawn(async move {
        if let Err(error) = serve_connection(connection, service).await {
            log::debug!("a connection ended: {error}");
        }
    });
}

fn is_same_user(socket: &std::os::unix::net::UnixStream) -> bool {
    getsockopt(socket, sockopt::PeerCredentials)
        .is_ok_and(|peer| peer.uid() == nix::unistd::geteuid().as_raw())
}

/// Removes the socket of our group, if it is still ours.
fn remove_socket() {
    if let Some(path) = std::env::var_os(SOCKET_VARIABLE)
        && let Err(error) = std::fs::remove_file(&path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        log::warn!("remove {}: {error}", Path::new(&path).display());
    }
}
