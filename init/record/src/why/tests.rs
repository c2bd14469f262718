use std::time::Duration;

use super::*;
use crate::exit::{ExitStatus, Signal};
use crate::ids::{ContainerId, ExecId, Namespace};
use crate::ledger::{Happening, Pod, Selector};
use crate::process::ProcessIdentity;
use crate::reason::tests::{examples, golden};
use crate::reason::{Group, Rpc};

fn at(millis: i64) -> Timestamp {
    let nanos = u32::try_from(millis.rem_euclid(1000)).unwrap() * 1_000_000;
    Timestamp::new(1_800_000_000 + millis.div_euclid(1000), nanos)
}

/// Without what differs from run to run.
fn steady(mut record: Record) -> Record {
    record.writer = "containerd-shim-holdfast-v2 0.1.0 (pid 77)".into();
    record.boot = "00000000-0000-0000-0000-000000000000".into();
    record
}

fn killed() -> Record {
    let reason = Reason::KilledByRequest {
        rpc: Rpc::Kill,
        signal: Signal::KILL,
        requested_at: at(30_000),
        grace: Some(Duration::from_secs(30)),
    };
    let happening = |millis, text: &str| Happening {
        time: at(millis),
        text: text.into(),
    };
    let id = ContainerId::new("8f3e2a91c0de").unwrap();
    steady(Record::new(Kind::Container, &reason, at(30_012)))
        .of_container(Some(&Namespace::new("k8s.io").unwrap()), &id)
        .with_status(ExitStatus::Signaled {
            signal: Signal::KILL,
            core: false,
        })
        .with_start(at(-86_400_000))
        .with_process(ProcessIdentity {
            pid: 4711,
            start_time: 9,
        })
        .with_pod(Some(Pod {
            name: "train-0".into(),
            namespace: "ml".into(),
            uid: "0a1b".into(),
        }))
        .with_timeline(vec![
            happening(0, "Kill request with SIGTERM"),
            happening(30_000, "Kill request with SIGKILL"),
        ])
}

#[test]
fn a_kill_by_request_is_told_as_in_the_golden_file() {
    golden("why/killed.txt", &explain(&killed()));
}

#[test]
fn every_reason_is_told_as_in_the_golden_file() {
    let id = ContainerId::new("c1").unwrap();
    let records: Vec<Record> = examples()
        .iter()
        .map(|reason| {
            let kind = match reason.entry().group {
                Group::Hook => Kind::Hook,
                Group::Runtime => Kind::Runtime,
                Group::Shim => Kind::Shim,
                Group::Gpu => Kind::Gpu,
                _ if reason.code().starts_with("HF103") => Kind::Exec,
                _ => Kind::Container,
            };
            steady(Record::new(kind, reason, at(0))).of_container(None, &id)
        })
        .collect();
    let page = Page {
        records,
        damaged: 2,
    };
    golden("why/all.txt", &explain_all(&page, None, usize::MAX));
    golden("why/list.txt", &list(&page));
}

#[test]
fn the_sentence_names_what_ended_and_the_status_once() {
    let exec = Record::new(
        Kind::Exec,
        &Reason::ExecFailed {
            text: "permission denied".into(),
        },
        at(0),
    )
    .of_container(None, &ContainerId::new("c1").unwrap())
    .of_exec(&ExecId::new("e1").unwrap());
    assert_eq!(
        sentence(&exec),
        "Exec process e1 in container c1 could not be started: permission denied."
    );
    let exited = Record::new(Kind::Container, &Reason::Exited { code: 42 }, at(0))
        .with_status(ExitStatus::Exited(42));
    assert_eq!(
        sentence(&exited),
        "A container exited by itself with code 42."
    );
    assert!(sentence(&killed()).ends_with("30 s after the first polite signal."));
}

#[test]
fn what_a_container_wrote_cannot_steer_the_terminal() {
    let reason = Reason::CreateStepFailed {
        step: "hook".into(),
        text: "\u{1b}[2Jgone\nsecond \u{7} line".into(),
    };
    let record = Record::new(Kind::Container, &reason, at(0));
    let text = explain(&record)
        + &sentence(&record)
        + &list(&Page {
            records: vec![record],
            damaged: 0,
        });
    assert!(
        text.chars().all(|c| c == '\n' || !c.is_control()),
        "{text:?}"
    );
}

#[test]
fn json_holds_the_record_and_what_its_code_means() {
    let page = Page {
        records: vec![killed()],
        damaged: 0,
    };
    let value = json(&page);
    assert_eq!(value[0]["code"], "HF111");
    assert_eq!(value[0]["title"], "ended by request");
    assert_eq!(value[0]["evidence"]["grace_ms"], 30_000);
    assert_eq!(value[0]["evidence"]["signal"], "SIGKILL");
    assert_eq!(value[0]["pod"]["name"], "train-0");
    let back: Record = serde_json::from_value(value[0].clone()).unwrap();
    assert_eq!(back.reason(), killed().reason());
}

#[test]
fn an_empty_answer_says_where_it_was_looked_and_for_what() {
    let query = Query {
        who: Some(Selector::new("c1")),
        since: Some(at(0)),
        last: None,
        ..Query::default()
    };
    let nothing = answer(&Page::default(), &query, Path::new("/ledger"), Form::Full);
    assert!(
        nothing.text.starts_with(
            "There is no record of c1 since 2027-01-15 08:00:00 UTC in /ledger.\nIt may still run"
        ),
        "{}",
        nothing.text
    );
    assert!(!nothing.found);
    let json = answer(&Page::default(), &query, Path::new("/ledger"), Form::Json);
    assert_eq!((json.text.as_str(), json.found), ("[]\n", false));
    let page = Page {
        records: vec![killed()],
        damaged: 0,
    };
    let found = answer(&page, &query, Path::new("/ledger"), Form::Full);
    assert_eq!((found.text, found.found), (explain(&killed()), true));
}

#[test]
fn since_takes_times_and_durations() {
    assert_eq!(since("90m", at(5_400_000)).unwrap(), at(0));
    assert_eq!(since("2027-01-15 08:00", at(9)).unwrap(), at(0));
    assert!(since("yesterday", at(0)).is_err());
}

#[test]
fn a_container_comes_before_the_execs_that_were_told_after_it() {
    let id = ContainerId::new("box").unwrap();
    let end = |kind, millis| {
        let reason = Reason::Exited { code: 1 };
        steady(Record::new(kind, &reason, at(millis))).of_container(None, &id)
    };
    let exec = |millis| end(Kind::Exec, millis).of_exec(&ExecId::new("e1").unwrap());
    let first = |records: Vec<Record>, who: &str| {
        let page = Page {
            records,
            damaged: 0,
        };
        let text = explain_all(&page, Some(&Selector::new(who)), 1);
        text.lines().next().unwrap().to_owned()
    };
    let both = || vec![end(Kind::Container, 1000), exec(2000)];
    assert!(first(both(), "box").starts_with("Container box"));
    assert!(first(both(), "e1").starts_with("Exec process e1"));
    let of_the_next = exec(9000).with_start(at(5000));
    let records = vec![end(Kind::Container, 1000), of_the_next];
    assert!(first(records, "box").starts_with("Exec process e1"));
    assert!(first(vec![exec(1)], "box").starts_with("Exec process e1"));
}

#[test]
fn what_has_many_records_is_told_in_full_only_at_first() {
    let id = ContainerId::new("box").unwrap();
    let end = |millis| {
        let reason = Reason::Exited { code: 1 };
        steady(Record::new(Kind::Container, &reason, at(millis))).of_container(None, &id)
    };
    let page = Page {
        records: (0..5).map(|second| end(second * 1000)).collect(),
        damaged: 0,
    };
    let told = |last| {
        let query = Query {
            who: Some(Selector::new("box")),
            last,
            ..Query::default()
        };
        answer(&page, &query, Path::new("/ledger"), Form::Full).text
    };
    let short = told(None);
    assert_eq!(short.matches("  what to do  ").count(), 3, "{short}");
    let rest: Vec<&str> = short.lines().rev().take(3).collect();
    assert_eq!(
        rest,
        [
            "2027-01-15 08:00:00 UTC  HF101  Container box exited by itself with code 1.",
            "2027-01-15 08:00:01 UTC  HF101  Container box exited by itself with code 1.",
            "Before that, the latest first (--last=5 tells all of them in full):",
        ]
    );
    assert_eq!(told(Some(5)).matches("  what to do  ").count(), 5);
}

#[test]
fn a_node_is_told_by_reasons() {
    let exited = |code, millis| {
        let id = ContainerId::new(format!("c{code}")).unwrap();
        steady(Record::new(
            Kind::Container,
            &Reason::Exited { code },
            at(millis),
        ))
        .of_container(None, &id)
    };
    let page = Page {
        records: vec![exited(1, 0), killed(), exited(2, 40_000)],
        damaged: 1,
    };
    let text = node(&page);
    assert_eq!(
        text.lines().collect::<Vec<_>>(),
        [
            "      2  HF101  exited by itself",
            "         latest 2027-01-15 08:00:40 UTC: Container c2 exited by itself with code 2.",
            "      1  HF111  ended by request",
            &format!(
                "         latest 2027-01-15 08:00:30 UTC: {}",
                sentence(&killed())
            ),
            "1 damaged line of the ledger was skipped.",
        ]
    );
}
