use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::AtomicU32;

use containerd_shim_protos::events::task as events;
use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::shim::events::ForwardRequest;
use proptest::prelude::*;

use super::*;
use crate::task::journal::{JOURNAL_FILE, read};
use crate::wire::server::{self, Handler};

/// A publisher to the socket `s` of a folder, and a journal there.
fn publisher(dir: &Path) -> (Arc<Publisher>, SharedJournal) {
    let publisher = Publisher::keeping_in(
        &dir.join("events"),
        Namespace::new("ns").unwrap(),
        Some(dir.join("s")),
    );
    let journal = BundleJournal::create(dir);
    (Arc::new(publisher), Arc::new(Mutex::new(journal)))
}

fn exit(n: u32) -> Event {
    Event::Exit(events::TaskExit {
        id: n.to_string(),
        ..events::TaskExit::default()
    })
}

fn exit_in(request: &[u8]) -> events::TaskExit {
    let envelope = ForwardRequest::parse_from_bytes(request).unwrap().envelope;
    events::TaskExit::parse_from_bytes(&envelope.event.value).unwrap()
}

#[derive(Default)]
struct Containerd {
    calls: AtomicU32,
    seen: Mutex<Vec<String>>,
}

impl Handler for Containerd {
    async fn handle(&self, service: &str, method: &str, payload: &[u8]) -> Result<Vec<u8>, Fault> {
        assert_eq!((service, method), (SERVICE, METHOD));
        // Every second try fails, in three ways.
        match self.calls.fetch_add(1, Ordering::Relaxed) % 6 {
            1 => return Err(Fault::new(Code::UNAVAILABLE, "not now")),
            3 => return Err(Fault::unknown("a moment")),
            _ => {}
        }
        let envelope = ForwardRequest::parse_from_bytes(payload)
            .unwrap()
            .envelope
            .unwrap();
        let event = events::TaskExit::parse_from_bytes(&envelope.event.value).unwrap();
        self.seen
            .lock()
            .unwrap()
            .push(format!("{} {}", envelope.topic, event.id));
        Ok(Vec::new())
    }
}

#[tokio::test]
async fn events_arrive_in_order_whatever_containerd_does() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let (publisher, journal) = publisher(dir.path());
    let runner = Arc::clone(&publisher);
    tokio::spawn(async move { runner.run().await });
    for n in 0..20 {
        publisher.publish(&exit(n), &journal);
    }
    // Nobody listens yet, and nothing is lost by it.
    assert_eq!(publisher.flush(Duration::from_millis(50)).await, 20);
    let containerd = Arc::new(Containerd::default());
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let handler = Arc::clone(&containerd);
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            // The first connection dies at once.
            if handler.calls.load(Ordering::Relaxed) > 0 {
                tokio::spawn(server::serve(socket, Arc::clone(&handler)));
            } else {
                handler.calls.store(1, Ordering::Relaxed);
            }
        }
    });
    for n in 20..40 {
        publisher.publish(&exit(n), &journal);
    }
    assert_eq!(publisher.flush(Duration::from_secs(60)).await, 0);
    let expected: Vec<String> = (0..40).map(|n| format!("/tasks/exit {n}")).collect();
    assert_eq!(*containerd.seen.lock().unwrap(), expected);
}

/// Accepts, and answers nothing until told.
struct Silent(watch::Sender<bool>, Mutex<Vec<u64>>);

impl Handler for Silent {
    async fn handle(&self, _: &str, _: &str, payload: &[u8]) -> Result<Vec<u8>, Fault> {
        let envelope = ForwardRequest::parse_from_bytes(payload).unwrap().envelope;
        let event = events::TaskExit::parse_from_bytes(&envelope.event.value).unwrap();
        self.1.lock().unwrap().push(u64::from(event.pid));
        let mut speaks = self.0.subscribe();
        let _ = speaks.wait_for(|speaks| *speaks).await;
        Ok(Vec::new())
    }
}

#[tokio::test]
async fn a_containerd_that_accepts_and_says_nothing_gets_every_event_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let (publisher, journal) = publisher(dir.path());
    let silent = Arc::new(Silent(watch::Sender::new(false), Mutex::default()));
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let handler = Arc::clone(&silent);
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            tokio::spawn(server::serve(socket, Arc::clone(&handler)));
        }
    });
    let runner = Arc::clone(&publisher);
    tokio::spawn(async move { runner.run().await });
    for pid in 0..100 {
        let event = events::TaskExit {
            pid,
            ..events::TaskExit::default()
        };
        publisher.publish(&Event::Exit(event), &journal);
    }
    // More than the time that containerd is given for one event.
    assert_eq!(publisher.flush(Duration::from_secs(6)).await, 100);
    silent.0.send_replace(true);
    assert_eq!(publisher.flush(Duration::from_secs(20)).await, 0);
    let mut seen = silent.1.lock().unwrap().clone();
    // The one that hung had been given up by the server, so it came again.
    seen.dedup();
    assert_eq!(seen, (0..100).collect::<Vec<_>>());
}

#[test]
fn beyond_the_limit_only_what_can_be_asked_for_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let (publisher, journal) = publisher(dir.path());
    for _ in 0..SOFT_LIMIT + 10 {
        publisher.publish(&Event::Start(events::TaskStart::default()), &journal);
    }
    publisher.publish(&Event::Exit(events::TaskExit::default()), &journal);
    assert_eq!(lock(&journal).waiting(), SOFT_LIMIT + 1);
}

#[tokio::test]
async fn a_deleted_container_is_told_of_from_outside_its_bundle_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("bundle");
    std::fs::create_dir(&bundle).unwrap();
    let (publisher, _) = publisher(dir.path());
    let journal = Arc::new(Mutex::new(BundleJournal::create(&bundle)));
    for n in 0..200 {
        publisher.publish(&exit(n), &journal);
    }
    let container = ContainerId::new("box").unwrap();
    publisher.bundle_goes(&container, &journal);
    std::fs::remove_dir_all(&bundle).unwrap();
    let own = lock(&journal).path().to_owned();
    assert!(own.starts_with(dir.path().join("events")));
    assert_eq!(read(&own).len(), 200);
    // As if the shim were killed here, and another process took over.
    drop((journal, publisher));
    let (publisher, _) = super::tests::publisher(dir.path());
    let journal = BundleJournal::open(&own, drop).unwrap();
    publisher.resume(&Arc::new(Mutex::new(journal)));
    let containerd = Arc::new(Containerd::default());
    let listener = tokio::net::UnixListener::bind(dir.path().join("s")).unwrap();
    let handler = Arc::clone(&containerd);
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        server::serve(socket, handler).await.unwrap();
    });
    let runner = Arc::clone(&publisher);
    tokio::spawn(async move { runner.run().await });
    assert_eq!(publisher.flush(Duration::from_secs(60)).await, 0);
    let expected: Vec<String> = (0..200).map(|n| format!("/tasks/exit {n}")).collect();
    assert_eq!(*containerd.seen.lock().unwrap(), expected);
    // No file, no folder.
    assert_eq!(
        std::fs::read_dir(dir.path().join("events"))
            .unwrap()
            .count(),
        0
    );
}

#[tokio::test]
async fn what_a_full_file_system_does_not_take_is_told_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    // A folder that does not exist takes no file, as a full one does not.
    let bundle = dir.path().join("bundle");
    let (publisher, _) = publisher(dir.path());
    let journal = Arc::new(Mutex::new(BundleJournal::create(&bundle)));
    for n in 0..150 {
        publisher.publish(&exit(n), &journal);
    }
    assert!(lock(&journal).is_behind());
    let mut courier = Script::new(150, []);
    let runner = Arc::clone(&publisher);
    tokio::select! {
        () = runner.send_by(&mut courier) => {}
        left = publisher.flush(Duration::from_secs(20)) => assert_eq!(left, 0),
    }
    assert_eq!(courier.got.len(), 150);
    // The file system takes files again, and the journal says what there is to say.
    std::fs::create_dir(&bundle).unwrap();
    assert!(lock(&journal).retry());
    publisher.publish(&exit(150), &journal);
    let entries = read(&bundle.join(JOURNAL_FILE));
    assert!(matches!(
        entries.as_slice(),
        [
            Entry::EventAcknowledged { number: 149 },
            Entry::EventQueued { number: 150, .. }
        ]
    ));
}

/// What a try of the model's containerd comes to.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Taken,
    /// containerd has it, and nobody hears that.
    TakenUnheard,
    NotThere,
    Refused,
    NotNow,
}

/// A containerd that follows a script, and then takes everything.
struct Script {
    fates: VecDeque<Fate>,
    got: Vec<(u32, u32)>,
    wanted: usize,
}

impl Script {
    fn new(wanted: usize, fates: impl IntoIterator<Item = Fate>) -> Self {
        Self {
            fates: fates.into_iter().collect(),
            got: Vec::new(),
            wanted,
        }
    }
}

impl Courier for Script {
    async fn deliver(&mut self, request: Vec<u8>) -> std::io::Result<Result<(), Fault>> {
        let event = exit_in(&request);
        let fate = self.fates.pop_front().unwrap_or(Fate::Taken);
        if matches!(fate, Fate::Taken | Fate::TakenUnheard) {
            self.got.push((event.id.parse().unwrap(), event.pid));
        }
        assert!(self.got.len() <= self.wanted + 500, "endless repetition");
        match fate {
            Fate::Taken => Ok(Ok(())),
            Fate::TakenUnheard => Err(std::io::ErrorKind::UnexpectedEof.into()),
            Fate::NotThere => Err(std::io::ErrorKind::ConnectionRefused.into()),
            Fate::Refused => Ok(Err(Fault::unknown("no"))),
            Fate::NotNow => Ok(Err(Fault::new(Code::UNAVAILABLE, "not now"))),
        }
    }
}

#[derive(Clone, Debug)]
enum Doing {
    /// So many exits of this container.
    Exits(u32, u32),
    /// Its bundle goes.
    Delete(u32),
    /// So many tries.
    Send(usize),
    /// The shim is killed; what it has written last may be lost with it to the last byte but those of whole entries.
    Killed,
}

fn doing() -> impl Strategy<Value = Doing> {
    prop_oneof![
        4 => (0..3u32, 1..90u32).prop_map(|(container, many)| Doing::Exits(container, many)),
        1 => (0..3u32).prop_map(Doing::Delete),
        4 => (1..60usize).prop_map(Doing::Send),
        1 => Just(Doing::Killed),
    ]
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        6 => Just(Fate::Taken),
        1 => Just(Fate::TakenUnheard),
        1 => Just(Fate::NotThere),
        1 => Just(Fate::Refused),
        1 => Just(Fate::NotNow),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever containerd answers, whenever bundles go, wherever the shim is killed: every container's exits come in
    /// their order, all of them, and twice only where an acknowledgement was lost or the shim was killed before it had
    /// noted it.
    #[test]
    fn nothing_is_lost_and_nothing_overtakes(
        steps in proptest::collection::vec(doing(), 1..14),
        fates in proptest::collection::vec(fate(), 0..120),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let open = |dir: &Path| publisher(dir).0;
        let mut shim = open(dir.path());
        let mut journals: BTreeMap<u32, SharedJournal> = BTreeMap::new();
        let mut courier = Script::new(usize::MAX - 500, fates);
        let mut told: BTreeMap<u32, u32> = BTreeMap::new();
        let mut killed = 0;
        let mut generation = 0;
        for step in steps {
            match step {
                Doing::Exits(container, many) => {
                    let journal = journals.entry(container).or_insert_with(|| {
                        generation += 1;
                        let bundle = dir.path().join(format!("{container}-{generation}"));
                        std::fs::create_dir(&bundle).unwrap();
                        Arc::new(Mutex::new(BundleJournal::create(&bundle)))
                    });
                    for _ in 0..many {
                        let number = told.entry(container).or_default();
                        let event = events::TaskExit {
                            id: container.to_string(),
                            pid: *number,
                            ..events::TaskExit::default()
                        };
                        *number += 1;
                        shim.publish(&Event::Exit(event), journal);
                    }
                }
                Doing::Delete(container) => {
                    if let Some(journal) = journals.remove(&container) {
                        let id = ContainerId::new(format!("box-{container}")).unwrap();
                        let bundle = lock(&journal).path().parent().unwrap().to_owned();
                        shim.bundle_goes(&id, &journal);
                        std::fs::remove_dir_all(bundle).unwrap();
                    }
                }
                Doing::Send(tries) => {
                    let until = courier.fates.len().saturating_sub(tries);
                    let mut counted = Counted(&mut courier, tries);
                    runtime.block_on(async {
                        tokio::select! {
                            biased;
                            () = shim.send_by(&mut counted) => {}
                            // All told, or the tries are used up and it sleeps.
                            () = tokio::time::sleep(Duration::from_secs(3600)) => {}
                        }
                    });
                    prop_assert!(courier.fates.len() >= until);
                }
                Doing::Killed => {
                    killed += 1;
                    let paths: BTreeMap<u32, PathBuf> = journals
                        .iter()
                        .map(|(id, journal)| (*id, lock(journal).path().to_owned()))
                        .collect();
                    // Locks go with the process.
                    journals.clear();
                    drop(std::mem::replace(&mut shim, open(dir.path())));
                    let folders = std::fs::read_dir(dir.path().join("events"));
                    let orphans = folders.into_iter().flatten().flatten()
                        .flat_map(|folder| outbox::files(&folder.path()));
                    for path in orphans {
                        let journal = BundleJournal::open(&path, drop).unwrap();
                        shim.resume(&Arc::new(Mutex::new(journal)));
                    }
                    for (id, path) in paths {
                        let journal = Arc::new(Mutex::new(BundleJournal::open(&path, drop).unwrap()));
                        shim.resume(&journal);
                        journals.insert(id, journal);
                    }
                }
            }
        }
        // containerd is well in the end.
        courier.fates.clear();
        runtime.block_on(async {
            tokio::select! {
                () = shim.send_by(&mut courier) => {}
                left = shim.flush(Duration::from_secs(86_400)) => assert_eq!(left, 0),
            }
        });
        let mut seen: BTreeMap<u32, u32> = BTreeMap::new();
        for (container, number) in &courier.got {
            let next = seen.entry(*container).or_default();
            if number == next {
                *next += 1;
            } else {
                // Again, but only the latest one.
                prop_assert_eq!(number + 1, *next, "container {}, kills {}", container, killed);
            }
        }
        prop_assert_eq!(seen, told);
    }
}

/// A courier that does not come back after so many tries.
struct Counted<'a>(&'a mut Script, usize);

impl Courier for Counted<'_> {
    async fn deliver(&mut self, request: Vec<u8>) -> std::io::Result<Result<(), Fault>> {
        if self.1 == 0 {
            std::future::pending::<()>().await;
        }
        self.1 -= 1;
        self.0.deliver(request).await
    }
}
