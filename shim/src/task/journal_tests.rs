use holdfast_record::{ExecId, ExitStatus, Timestamp};

use super::*;

/// An event that can be told from all others.
pub(crate) fn event(n: u64) -> Encoded {
    Encoded {
        at: Timestamp::new(1, 2),
        topic: "/tasks/exit".into(),
        kind: "containerd.events.TaskExit".into(),
        value: n.to_le_bytes().to_vec(),
        dispensable: false,
    }
}

/// Takes everything that waits, in its order.
fn drain(journal: &mut BundleJournal) -> Vec<u64> {
    let mut seen = Vec::new();
    while let Some((number, taken)) = journal.front() {
        assert_eq!(*taken, event(*number));
        seen.push(*number);
        journal.acknowledge();
    }
    seen
}

#[test]
fn a_journal_stays_short_and_keeps_what_counts() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = BundleJournal::create(dir.path());
    let at = Timestamp::new(1, 2);
    let created = Entry::Created {
        pid: Some(1),
        shim: 2,
        shim_start: None,
        at,
    };
    let running = Entry::ExecStarted {
        exec: ExecId::new("stays").unwrap(),
        pid: 3,
        at,
    };
    journal.append(&created);
    journal.append(&running);
    for n in 0..5000u32 {
        let exec = ExecId::new(format!("probe-{n}")).unwrap();
        journal.append(&Entry::ExecStarted {
            exec: exec.clone(),
            pid: n,
            at,
        });
        journal.append(&Entry::ExecExited {
            exec,
            pid: n,
            status: ExitStatus::Exited(0),
            at,
        });
        journal.queue(u64::from(n), event(u64::from(n)));
        journal.front().unwrap();
        journal.acknowledge();
    }
    let path = dir.path().join(JOURNAL_FILE);
    let size = std::fs::metadata(&path).unwrap().len();
    assert!(size <= 2 * SHORTEN_AT, "{size}");
    let entries = read(&path);
    assert_eq!(entries.first(), Some(&created));
    assert!(entries.contains(&running));
    assert!(matches!(
        entries.last(),
        Some(Entry::EventAcknowledged { number: 4999 })
    ));
}

#[test]
fn an_outage_costs_disk_and_not_memory() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = BundleJournal::create(dir.path());
    for n in 0..4_000 {
        journal.queue(n, event(n));
        assert!(journal.outbox.window.len() <= WINDOW);
    }
    assert!(journal.unwritten.is_empty());
    assert_eq!(journal.waiting(), 4_000);
    let size = std::fs::metadata(journal.path()).unwrap().len();
    assert!(size > 2 * SHORTEN_AT, "{size}");
    assert_eq!(drain(&mut journal), (0..4_000).collect::<Vec<_>>());
    assert_eq!(journal.waiting(), 0);
    // Shortened on the way.
    let size = std::fs::metadata(journal.path()).unwrap().len();
    assert!(size < 2 * SHORTEN_AT, "{size}");
}

#[test]
fn a_file_system_that_stays_full_costs_history_and_no_event() {
    let dir = tempfile::tempdir().unwrap();
    // A folder that is not there takes no file, as a full one does not.
    let bundle = dir.path().join("bundle");
    let mut journal = BundleJournal::create(&bundle);
    for n in 0..2000 {
        journal.append(&Entry::Paused);
        journal.queue(n, event(n));
    }
    assert!(journal.is_behind() && !journal.retry());
    assert_eq!(
        journal.unwritten.iter().filter(|e| is_history(e)).count(),
        0
    );
    for n in 0..100 {
        assert_eq!(journal.front().unwrap().0, n);
        journal.acknowledge();
    }
    std::fs::create_dir(&bundle).unwrap();
    assert!(journal.retry());
    journal.append(&Entry::Deleted);
    let mut again = {
        let path = journal.path().to_owned();
        drop(journal);
        BundleJournal::open(&path, drop).unwrap()
    };
    assert_eq!(again.highest(), Some(1999));
    assert_eq!(drain(&mut again), (100..2000).collect::<Vec<_>>());
}

#[test]
fn wherever_the_writer_dies_what_it_had_written_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = BundleJournal::create(dir.path());
    // Byte offsets after which an event is there, and after which one is acknowledged.
    let (mut queued, mut taken) = (Vec::new(), Vec::new());
    let length = |journal: &BundleJournal| journal.file.as_ref().unwrap().len();
    for n in 0..12 {
        journal.append(&Entry::Paused);
        journal.queue(n, event(n));
        queued.push(length(&journal));
        if n % 3 == 2 {
            for _ in 0..2 {
                journal.front().unwrap();
                journal.acknowledge();
                taken.push(length(&journal));
            }
        }
    }
    let whole = std::fs::read(journal.path()).unwrap();
    drop(journal);
    let path = dir.path().join("cut");
    for cut in 0..=whole.len() {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let there = |at: &Vec<u64>| at.iter().filter(|at| **at <= cut as u64).count() as u64;
        let mut journal = BundleJournal::open(&path, drop).unwrap();
        let expected: Vec<u64> = (there(&taken)..there(&queued)).collect();
        assert_eq!(journal.waiting(), expected.len() as u64, "cut at {cut}");
        assert_eq!(
            journal.highest(),
            there(&queued).checked_sub(1),
            "cut at {cut}"
        );
        // And it goes on: what comes next comes last.
        let next = journal.highest().map_or(0, |number| number + 1);
        journal.queue(next, event(next));
        let seen: Vec<u64> = std::iter::from_fn(|| {
            let number = journal.front()?.0;
            // Removed with the last one, for it lies in no bundle.
            journal.acknowledge();
            Some(number)
        })
        .collect();
        assert_eq!(seen, [expected, vec![next]].concat(), "cut at {cut}");
        assert!(!path.exists());
    }
}

#[test]
fn what_lies_in_another_folder_is_told_and_goes() {
    let (bundle, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut journal = BundleJournal::create(bundle.path());
    let to = other.path().join("box.1-1");
    // With nothing to tell it stays and goes with the bundle.
    journal.leave(&to).unwrap();
    assert!(!to.exists() && bundle.path().join(JOURNAL_FILE).exists());
    for n in 0..100 {
        journal.append(&Entry::Paused);
        journal.queue(n, event(n));
    }
    journal.front().unwrap();
    journal.acknowledge();
    journal.append(&Entry::Deleted);
    journal.leave(&to).unwrap();
    assert!(!bundle.path().join(JOURNAL_FILE).exists());
    assert!(matches!(
        BundleJournal::open(&to, drop),
        Err(JournalError::InUse(_))
    ));
    assert!(read(&to).contains(&Entry::Deleted));
    journal.queue(100, event(100));
    assert_eq!(drain(&mut journal), (1..=100).collect::<Vec<_>>());
    assert!(!to.exists());
}
