use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use super::*;
use crate::exit::Signal;

fn at(seconds: i64) -> Timestamp {
    Timestamp::new(1_800_000_000 + seconds, 0)
}

fn record(id: &str, seconds: i64) -> Record {
    let id = ContainerId::new(id).unwrap();
    Record::new(Kind::Container, &Reason::Exited { code: 42 }, at(seconds))
        .of_container(Some(&Namespace::new("k8s.io").unwrap()), &id)
        .with_status(ExitStatus::Exited(42))
}

fn ids(page: &Page) -> Vec<&str> {
    page.records
        .iter()
        .filter_map(|record| record.container.as_deref())
        .collect()
}

#[test]
fn every_reason_comes_back_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::new(folder.path().join("ledger"));
    let written: Vec<Record> = crate::reason::tests::examples()
        .iter()
        .map(|reason| Record::new(Kind::Container, reason, at(0)))
        .collect();
    for record in &written {
        ledger.append(record).unwrap();
    }
    let page = ledger.read(&Query::default()).unwrap();
    assert_eq!(page.records, written);
    let reasons: Vec<Reason> = page
        .records
        .iter()
        .map(|record| record.reason().unwrap())
        .collect();
    assert_eq!(reasons, crate::reason::tests::examples());
}

#[test]
fn only_the_owner_can_read_it() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::new(folder.path().join("a/b/ledger"));
    ledger.append(&record("one", 0)).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(ledger.dir()), 0o700);
    assert_eq!(mode(&segments(ledger.dir()).unwrap()[0].1), 0o600);
}

#[test]
fn a_ledger_that_is_not_there_is_empty() {
    let page = Ledger::new("/nonexistent/ledger")
        .read(&Query::default())
        .unwrap();
    assert_eq!(page, Page::default());
}

#[test]
fn a_ledger_that_cannot_be_written_is_an_error_that_names_the_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = Ledger::new(file.join("ledger"))
        .append(&record("one", 0))
        .unwrap_err();
    assert!(error.to_string().contains("file/ledger"), "{error}");
}

#[test]
fn a_symlink_in_place_of_a_segment_is_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let victim = folder.path().join("victim");
    std::fs::write(&victim, "").unwrap();
    let ledger = Ledger::new(folder.path().join("ledger"));
    std::fs::create_dir(ledger.dir()).unwrap();
    let segment = ledger.dir().join(format!("ledger-{:020}.jsonl", 1));
    std::os::unix::fs::symlink(&victim, segment).unwrap();
    assert!(ledger.append(&record("one", 0)).is_err());
    assert_eq!(std::fs::read(&victim).unwrap(), b"");
}

#[test]
fn lines_are_json_for_other_tools_too() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::new(folder.path());
    ledger.append(&record("one", 0)).unwrap();
    let text = std::fs::read_to_string(&segments(folder.path()).unwrap()[0].1).unwrap();
    let line = text.lines().find(|line| !line.is_empty()).unwrap();
    let value: Value = serde_json::from_str(line).unwrap();
    assert_eq!(value["container"], "one");
    assert_eq!(value["code"], "HF101");
}

#[test]
fn what_a_newer_version_wrote_is_kept_and_shown() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::new(folder.path());
    let mut newer = record("one", 0);
    newer.v = 9;
    newer.kind = Kind::Other("sandbox".into());
    newer.code = "HF777".into();
    newer.summary = "was eaten by a grue".into();
    newer.evidence = serde_json::json!({"grue": {"teeth": 12}});
    newer.extra.insert("weather".into(), "dark".into());
    ledger.append(&newer).unwrap();
    let page = ledger.read(&Query::default()).unwrap();
    assert_eq!(page.records, [newer]);
    assert_eq!(page.records[0].reason(), None);
    let text = crate::why::explain(&page.records[0]);
    for shown in [
        "was eaten by a grue",
        "HF777",
        "grue.teeth: 12",
        "weather: dark",
    ] {
        assert!(text.contains(shown), "{shown} is missing in {text}");
    }
}

#[test]
fn cut_at_every_byte_it_loses_the_last_record_alone_and_takes_new_ones() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::new(folder.path());
    ledger.append(&record("one", 0)).unwrap();
    let path = segments(folder.path()).unwrap()[0].1.clone();
    let first = std::fs::read(&path).unwrap().len();
    ledger.append(&record("two", 1)).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for cut in first..=whole.len() {
        std::fs::write(&path, &whole[..cut]).unwrap();
        ledger.append(&record("three", 2)).unwrap();
        let page = ledger.read(&Query::default()).unwrap();
        // The last byte is the line feed alone, and the next record brings one of its own.
        let survived = cut >= whole.len() - 1;
        let expected: &[&str] = if survived {
            &["one", "two", "three"]
        } else {
            &["one", "three"]
        };
        assert_eq!(ids(&page), expected, "cut at {cut}");
        let damaged = usize::from(!survived && cut > first + 1);
        assert_eq!(page.damaged, damaged, "cut at {cut}");
    }
}

#[test]
fn a_damaged_line_is_skipped_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::new(folder.path());
    ledger.append(&record("one", 0)).unwrap();
    let path = segments(folder.path()).unwrap()[0].1.clone();
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"one\"", "\"won\"")).unwrap();
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(&path)
        .unwrap();
    file.write_all(b"not json at all\n\xff\xfe\n").unwrap();
    ledger.append(&record("two", 1)).unwrap();
    let page = ledger.read(&Query::default()).unwrap();
    assert_eq!((ids(&page), page.damaged), (vec!["two"], 3));
}

#[test]
fn it_stays_within_its_bounds_and_drops_the_oldest() {
    let folder = tempfile::tempdir().unwrap();
    let bounds = Bounds {
        segment: 4096,
        total: 16_384,
        line: 2048,
    };
    let ledger = Ledger::new(folder.path()).with_bounds(bounds);
    for number in 0..300 {
        ledger
            .append(&record(&format!("c{number}"), number))
            .unwrap();
        let total: u64 = segments(folder.path())
            .unwrap()
            .iter()
            .map(|(_, path)| std::fs::metadata(path).unwrap().len())
            .sum();
        // A segment may be passed by one line before it is followed by the next.
        assert!(
            total <= bounds.total + 2048,
            "{total} bytes after {number} records"
        );
    }
    let page = ledger.read(&Query::default()).unwrap();
    let ids = ids(&page);
    let kept: Vec<String> = (300 - ids.len()..300)
        .map(|number| format!("c{number}"))
        .collect();
    assert!(ids.len() > 15, "only {} records were kept", ids.len());
    assert_eq!(ids, kept);
}

#[test]
fn long_evidence_is_shortened_at_its_middle_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let bounds = Bounds {
        line: 4096,
        ..Bounds::default()
    };
    let ledger = Ledger::new(folder.path()).with_bounds(bounds);
    let text = format!("first words {} last words", "é".repeat(50_000));
    let reason = Reason::CreateStepFailed {
        step: "mount".into(),
        text,
    };
    ledger
        .append(&Record::new(Kind::Container, &reason, at(0)))
        .unwrap();
    let size = std::fs::metadata(&segments(folder.path()).unwrap()[0].1)
        .unwrap()
        .len();
    assert!(size <= 4096 + 64, "{size}");
    let page = ledger.read(&Query::default()).unwrap();
    let Some(Reason::CreateStepFailed { text, .. }) = page.records[0].reason() else {
        panic!("{:?}", page.records);
    };
    assert!(text.starts_with("first words") && text.ends_with("last words"));
    assert!(text.contains("bytes left out"));
}

/// The body of the writers below; it is run in processes of its own.
#[test]
#[ignore = "run by many_processes_write_at_once"]
fn one_of_many_writers() {
    let (Ok(dir), Ok(name)) = (
        std::env::var("LEDGER_TEST_DIR"),
        std::env::var("LEDGER_TEST_NAME"),
    ) else {
        return;
    };
    let bounds = Bounds {
        segment: 20_000,
        ..Bounds::default()
    };
    let ledger = Ledger::new(dir).with_bounds(bounds);
    for number in 0..200 {
        ledger
            .append(&record(&format!("{name}-{number}"), number))
            .unwrap();
    }
}

#[test]
fn many_processes_write_at_once_and_nothing_is_lost_or_mixed() {
    let folder = tempfile::tempdir().unwrap();
    let children: Vec<_> = (0..8)
        .map(|writer| {
            std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--ignored", "--exact", "ledger::tests::one_of_many_writers"])
                .env("LEDGER_TEST_DIR", folder.path())
                .env("LEDGER_TEST_NAME", format!("w{writer}"))
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let page = Ledger::new(folder.path()).read(&Query::default()).unwrap();
    assert_eq!((page.records.len(), page.damaged), (1600, 0));
    let distinct: std::collections::HashSet<_> = ids(&page).into_iter().collect();
    assert_eq!(distinct.len(), 1600);
    assert!(
        segments(folder.path()).unwrap().len() > 10,
        "the segments were rolled over meanwhile"
    );
}

#[test]
fn a_segment_dropped_under_a_writer_does_not_take_its_record_along() {
    // With segments of one line and room for one, every append drops what the others wrote: the last one must stand.
    let folder = tempfile::tempdir().unwrap();
    let bounds = Bounds {
        segment: 1,
        total: 1,
        line: 4096,
    };
    let ledger = Ledger::new(folder.path()).with_bounds(bounds);
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let ledger = &ledger;
            scope.spawn(move || {
                for number in 0..50 {
                    ledger
                        .append(&record(&format!("w{writer}-{number}"), number))
                        .unwrap();
                }
            });
        }
    });
    ledger.append(&record("last", 1000)).unwrap();
    let page = ledger.read(&Query::default()).unwrap();
    assert_eq!(ids(&page).last(), Some(&"last"));
}

#[test]
fn questions_are_answered_as_asked() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::new(folder.path());
    let pod = Pod {
        name: "train".into(),
        namespace: "ml".into(),
        uid: "u-1".into(),
    };
    let process = ProcessIdentity {
        pid: 4711,
        start_time: 7,
    };
    let by_kill = Reason::KilledByRequest {
        rpc: crate::reason::Rpc::Kill,
        signal: Signal::KILL,
        requested_at: at(2),
        grace: Some(Duration::from_secs(2)),
    };
    let exec = Record::new(Kind::Exec, &by_kill, at(4))
        .of_container(None, &ContainerId::new("abcdef").unwrap())
        .of_exec(&ExecId::new("probe").unwrap());
    ledger
        .append(&record("abc123", 0).with_pod(Some(pod)))
        .unwrap();
    ledger.append(&record("abc", 3)).unwrap();
    ledger
        .append(&record("abcdef", 2).with_process(process))
        .unwrap();
    ledger.append(&exec).unwrap();

    let ask = |who: &str| {
        let query = Query {
            who: Some(Selector::new(who)),
            ..Query::default()
        };
        let page = ledger.read(&query).unwrap();
        page.records
            .iter()
            .map(|record| record.time.since(at(0)).as_secs())
            .collect::<Vec<_>>()
    };
    assert_eq!(ask("abc123"), [0]);
    assert_eq!(ask("abc"), [3], "a whole id is meant as such");
    assert_eq!(
        ask("abcd"),
        [2, 4],
        "a beginning finds container and exec, in the order of time"
    );
    assert_eq!(ask("ab"), [0u64; 0], "two characters are too few");
    assert_eq!(ask("train"), [0]);
    assert_eq!(ask("ml/train"), [0]);
    assert_eq!(ask("other/train"), [0u64; 0]);
    assert_eq!(ask("u-1"), [0]);
    assert_eq!(ask("4711"), [2]);
    assert_eq!(ask("probe"), [4]);
    assert_eq!(ask(""), [0u64; 0]);

    let last = ledger
        .read(&Query {
            last: Some(2),
            ..Query::default()
        })
        .unwrap();
    assert_eq!(ids(&last), ["abc", "abcdef"]);
    let since = ledger
        .read(&Query {
            since: Some(at(3)),
            ..Query::default()
        })
        .unwrap();
    assert_eq!(ids(&since), ["abc", "abcdef"]);
}

#[test]
fn pods_are_known_by_their_annotations() {
    let get = |key: &str| match key {
        "io.kubernetes.cri.sandbox-name" => Some("train"),
        "io.kubernetes.cri.sandbox-namespace" => Some("ml"),
        _ => None,
    };
    let pod = Pod::from_annotations(get).unwrap();
    assert_eq!(
        (pod.name.as_str(), pod.namespace.as_str(), pod.uid.as_str()),
        ("train", "ml", "")
    );
    assert_eq!(Pod::from_annotations(|_| None), None);
}

proptest::proptest! {
    #[test]
    fn bytes_of_any_kind_never_do_harm(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ledger-00000000000000000001.jsonl"), &bytes).unwrap();
        let ledger = Ledger::new(folder.path());
        ledger.append(&record("one", 0)).unwrap();
        let page = ledger.read(&Query::default()).unwrap();
        proptest::prop_assert_eq!(ids(&page), ["one"]);
    }
}

#[test]
fn shims_that_were_done_are_not_told_to_people() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::new(folder.path().join("ledger"));
    let time = Timestamp::new(1_800_000_000, 0);
    for reason in [Reason::Exited { code: 3 }, Reason::ShimFinished] {
        let record = Record::new(Kind::Container, &reason, time);
        ledger.append(&record).unwrap();
    }
    let codes = |quiet| {
        let query = Query {
            last: Some(1),
            quiet,
            ..Query::default()
        };
        let page = ledger.read(&query).unwrap();
        page.records[0].code.clone()
    };
    assert_eq!(codes(true), "HF101");
    assert_eq!(codes(false), "HF170");
}
