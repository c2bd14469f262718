use super::frame::frame;
use super::*;
use proptest::prelude::*;
use serde::Deserialize;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Entry {
    Created { id: String, pid: u32 },
    Exited { status: i32 },
    Deleted,
}

fn entries() -> Vec<Entry> {
    vec![
        Entry::Created {
            id: "one".into(),
            pid: 77,
        },
        Entry::Exited { status: 9 },
        Entry::Deleted,
    ]
}

fn written(folder: &Path) -> PathBuf {
    let path = folder.join("journal");
    let mut journal = Journal::create(&path, 1).unwrap();
    for entry in entries() {
        journal.append(&entry).unwrap();
    }
    path
}

#[test]
fn cut_at_every_byte_it_gives_the_entries_before_the_cut_and_takes_new_ones() {
    let folder = tempfile::tempdir().unwrap();
    let whole = std::fs::read(written(folder.path())).unwrap();
    let mut ends = vec![0];
    while let Some((_, payload)) = frame(&whole[*ends.last().unwrap()..]) {
        ends.push(ends.last().unwrap() + HEADER + payload.len());
    }
    assert_eq!(ends.len(), 4);
    for cut in 0..=whole.len() {
        let path = folder.path().join("cut");
        std::fs::write(&path, &whole[..cut]).unwrap();
        let good = ends.iter().filter(|end| **end > 0 && **end <= cut).count();
        let (mut journal, replay) = Journal::<Entry>::open(&path, 1).unwrap();
        assert_eq!(replay.entries, entries()[..good], "cut at {cut}");
        let clean = ends.contains(&cut) || whole[ends[good]..cut].iter().all(|b| *b == 0);
        assert_eq!(replay.end == End::Clean, clean, "cut at {cut}");
        journal.append(&Entry::Deleted).unwrap();
        let again = super::replay::<Entry>(&path, 1).unwrap();
        assert_eq!(again.end, End::Clean);
        assert_eq!(again.entries.len(), good + 1);
        assert_eq!(again.entries.last(), Some(&Entry::Deleted));
    }
}

#[test]
fn any_flipped_bit_hides_only_what_comes_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = written(folder.path());
    let whole = std::fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        std::fs::write(&path, &damaged).unwrap();
        let replay = super::replay::<Entry>(&path, 1).unwrap();
        assert_eq!(replay.entries, entries()[..replay.entries.len()]);
        assert!(replay.entries.len() < 3, "byte {at} went unnoticed");
        assert!(replay.len <= at as u64);
    }
}

#[test]
fn another_version_is_refused_before_anything_changes() {
    let folder = tempfile::tempdir().unwrap();
    let path = written(folder.path());
    let before = std::fs::read(&path).unwrap();
    let error = Journal::<Entry>::open(&path, 2).unwrap_err();
    assert!(matches!(
        error,
        JournalError::Version {
            found: 1,
            known: 2,
            at: 0,
            ..
        }
    ));
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn a_whole_frame_with_strange_content_is_not_taken_for_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let mut journal = Journal::create(&path, 1).unwrap();
    journal.append(&"a string".to_owned()).unwrap();
    let error = super::replay::<Entry>(&path, 1).unwrap_err();
    assert!(matches!(error, JournalError::Payload { at: 0, .. }));
}

#[test]
fn one_writer_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let journal = Journal::<Entry>::create(&path, 1).unwrap();
    assert!(matches!(
        Journal::<Entry>::open(&path, 1).unwrap_err(),
        JournalError::InUse(_)
    ));
    assert!(is_in_use(&path).unwrap());
    drop(journal);
    assert!(!is_in_use(&path).unwrap());
    assert!(Journal::<Entry>::open(&path, 1).is_ok());
}

#[test]
fn reserved_space_is_not_content() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let mut journal = Journal::create(&path, 1).unwrap();
    if let Err(JournalError::Io { source, .. }) = journal.reserve(65_536) {
        println!("skipped: this file system cannot preallocate: {source}");
        return;
    }
    journal.append(&Entry::Deleted).unwrap();
    let replay = super::replay::<Entry>(&path, 1).unwrap();
    assert_eq!((replay.entries.len(), replay.end), (1, End::Clean));
}

#[test]
fn a_rewrite_leaves_exactly_the_new_entries_and_stays_writable() {
    let folder = tempfile::tempdir().unwrap();
    let path = written(folder.path());
    std::fs::write(folder.path().join("journal.new"), b"left by a dead writer").unwrap();
    let (mut journal, _) = Journal::<Entry>::open(&path, 1).unwrap();
    journal
        .retain(|entry| matches!(entry, Entry::Exited { .. }))
        .unwrap();
    journal.append(&Entry::Deleted).unwrap();
    let replay = super::replay::<Entry>(&path, 1).unwrap();
    assert_eq!(
        replay.entries,
        [Entry::Exited { status: 9 }, Entry::Deleted]
    );
    assert!(!folder.path().join("journal.new").exists());
    assert!(matches!(
        Journal::<Entry>::open(&path, 1).unwrap_err(),
        JournalError::InUse(_)
    ));
}

#[test]
fn a_full_disk_leaves_the_journal_as_it_was() {
    let path = Path::new("/dev/full");
    let mut journal = Journal::<Entry> {
        file: OpenOptions::new().write(true).open(path).unwrap(),
        path: path.to_owned(),
        version: 1,
        len: 0,
        broken: false,
        entries: PhantomData,
    };
    let error = journal.append(&Entry::Deleted).unwrap_err();
    assert!(matches!(
        error,
        JournalError::Io {
            action: "write",
            ..
        }
    ));
    // A device cannot be cut, so the journal knows that it is not to be trusted any more.
    assert!(matches!(
        journal.append(&Entry::Deleted).unwrap_err(),
        JournalError::Broken(_)
    ));
}

proptest! {
    #[test]
    fn bytes_of_any_kind_never_do_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(replay) = super::replay::<Entry>(&path, 1) {
            prop_assert!(replay.len <= bytes.len() as u64);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever is done to a journal and wherever its writer dies, it holds what a list would hold that lost the
    /// entries of the torn end, and nothing else.
    #[test]
    fn a_journal_is_a_list_that_may_lose_its_end(steps in proptest::collection::vec(step(), 1..60)) {
        let folder = tempfile::tempdir().unwrap();
        let mut path = folder.path().join("first");
        let mut journal = Some(Journal::<Entry>::create(&path, 1).unwrap());
        let mut model: Vec<Entry> = Vec::new();
        for (number, step) in steps.into_iter().enumerate() {
            let open = journal.as_mut().unwrap();
            match step {
                Step::Append(text) => {
                    let entry = Entry::Created { id: text, pid: u32::try_from(number).unwrap() };
                    open.append(&entry).unwrap();
                    model.push(entry);
                }
                Step::Retain(divisor) => {
                    open.retain(|entry| kept(entry, divisor)).unwrap();
                    model.retain(|entry| kept(entry, divisor));
                }
                Step::Move(divisor) => {
                    let old = std::mem::replace(&mut path, folder.path().join(number.to_string()));
                    open.move_to(&path, |entry| kept(entry, divisor)).unwrap();
                    model.retain(|entry| kept(entry, divisor));
                    prop_assert!(!old.exists());
                    prop_assert_eq!(open.path(), path.as_path());
                }
                Step::Scan(skip) => {
                    let skip = skip.min(model.len());
                    let mut scan = open.scan(0);
                    prop_assert_eq!(scan.by_ref().take(skip).count(), skip);
                    let from = scan.position();
                    let rest: Vec<Entry> = open.scan(from).map(Result::unwrap).collect();
                    prop_assert_eq!(&rest, &model[skip..]);
                }
                Step::Crash { cut, garbage } => {
                    drop(journal.take());
                    let len = std::fs::metadata(&path).unwrap().len();
                    let left = len - u64::from(cut).min(len);
                    let file = OpenOptions::new().write(true).open(&path).unwrap();
                    file.set_len(left).unwrap();
                    file.write_all_at(&garbage, left).unwrap();
                    let mut room = left;
                    let whole = model.iter().take_while(|entry| {
                        let frame = encode(*entry, 1, &path).unwrap().len() as u64;
                        room.checked_sub(frame).map(|rest| room = rest).is_some()
                    }).count();
                    model.truncate(whole);
                    let (reopened, replay) = Journal::<Entry>::open(&path, 1).unwrap();
                    prop_assert_eq!(&replay.entries, &model);
                    journal = Some(reopened);
                }
            }
            let read = super::replay::<Entry>(&path, 1).unwrap();
            prop_assert_eq!(&read.entries, &model);
            prop_assert_eq!(read.end, End::Clean);
            prop_assert_eq!(read.len, journal.as_ref().unwrap().len());
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Append(String),
    Retain(u32),
    Move(u32),
    Scan(usize),
    Crash { cut: u16, garbage: Vec<u8> },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => "[a-z]{0,600}".prop_map(Step::Append),
        1 => (1..4u32).prop_map(Step::Retain),
        1 => (1..4u32).prop_map(Step::Move),
        1 => (0..8usize).prop_map(Step::Scan),
        // Garbage of less than a header's bytes: it can be no frame.
        2 => (0..900u16, proptest::collection::vec(any::<u8>(), 0..HEADER))
            .prop_map(|(cut, garbage)| Step::Crash { cut, garbage }),
    ]
}

fn kept(entry: &Entry, divisor: u32) -> bool {
    matches!(entry, Entry::Created { pid, .. } if pid % divisor == 0)
}

/// A file system that is full at first: the entry that failed leaves no trace, and the next one is taken.
#[test]
fn a_disk_that_has_room_again_is_written_to_again() {
    let folder = tempfile::tempdir().unwrap();
    let Some(_mounted) = SmallTmpfs::on(folder.path()) else {
        println!("skipped: no tmpfs can be mounted here");
        return;
    };
    let path = folder.path().join("journal");
    let mut journal = Journal::<Entry>::create(&path, 1).unwrap();
    journal.append(&Entry::Deleted).unwrap();
    let filler = folder.path().join("filler");
    let full = std::fs::write(&filler, vec![1; 1 << 20]).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
    let long = Entry::Created {
        id: "x".repeat(9000),
        pid: 1,
    };
    for _ in 0..2 {
        let error = journal.append(&long).unwrap_err();
        assert!(matches!(
            error,
            JournalError::Io {
                action: "write",
                ..
            }
        ));
        let replay = super::replay::<Entry>(&path, 1).unwrap();
        assert_eq!((replay.entries.len(), replay.end), (1, End::Clean));
    }
    std::fs::remove_file(&filler).unwrap();
    journal.append(&long).unwrap();
    let replay = super::replay::<Entry>(&path, 1).unwrap();
    assert_eq!(replay.entries, [Entry::Deleted, long]);
}

/// A file system of 64 KiB, for the time of a test.
struct SmallTmpfs(PathBuf);

impl SmallTmpfs {
    fn on(at: &Path) -> Option<Self> {
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64k", "none"])
            .arg(at)
            .stderr(std::process::Stdio::null())
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then(|| Self(at.to_owned()))
    }
}

impl Drop for SmallTmpfs {
    fn drop(&mut self) {
        // Lazily: the journal may be open still.
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
    }
}
