use std::collections::HashSet;
use std::path::Path;

use super::*;

/// One reason of every kind, with all its optional evidence.
pub(crate) fn examples() -> Vec<Reason> {
    let time = Timestamp::new(1_800_000_000, 0);
    let hook = HookPlace {
        stage: "createRuntime".into(),
        number: 2,
        of: 3,
        path: "/usr/bin/nvidia-container-cli".into(),
    };
    let process = Description {
        pid: 4711,
        comm: Some("nvidia-containe".into()),
        state: Some('D'),
        wchan: Some("rwsem_down_write".into()),
        cmdline: Some("nvidia-container-cli configure".into()),
        parent: Some(4700),
        pipes: vec!["fd 1 -> pipe:[99]".into()],
    };
    let timed_out = TimedOut {
        step: "the barrier".into(),
        waited: Duration::from_secs(30),
        process: Some(process.clone()),
    };
    let oom = Oom {
        scope: OomScope::Cgroup,
        cgroup: Some("/kubepods/pod1/c1".into()),
        limit: Some(512 << 20),
        usage: Some(512 << 20),
        kills: Some(1),
        victim_pid: Some(4712),
        victim: Some("python3".into()),
    };
    let panicked = Panicked {
        incident: "00c0ffee00c0ffee".into(),
        message: "index out of bounds".into(),
        location: Some("shim/src/task.rs:7:1".into()),
        thread: Some("main".into()),
        backtrace: "0: one\n1: two".into(),
    };
    vec![
        Reason::Exited { code: 42 },
        Reason::Faulted {
            signal: Signal::new(libc::SIGSEGV),
            core: true,
        },
        Reason::EndedWithContainer {
            init_pid: 4700,
            init_status: Some(ExitStatus::Exited(0)),
        },
        Reason::OutlivedContainer {
            waited: Duration::from_secs(10),
            process: "pid 4711 (cat), state D (in uninterruptible sleep)".into(),
        },
        Reason::KilledByRequest {
            rpc: Rpc::Kill,
            signal: Signal::KILL,
            requested_at: time,
            grace: Some(Duration::from_secs(30)),
        },
        Reason::ExitedOnRequest {
            code: 0,
            rpc: Rpc::Kill,
            signal: Signal::TERM,
            requested_at: time,
            after: Duration::from_millis(90),
        },
        Reason::OomKilled(oom.clone()),
        Reason::OomKilledChild(oom),
        Reason::SignalFromOutside {
            signal: Signal::KILL,
            sender: Some(Sender {
                pid: 99,
                comm: Some("bash".into()),
                cmdline: Some("-bash".into()),
                uid: Some(0),
                parent: Some("98 (sshd)".into()),
                cgroup: None,
            }),
            sender_unknown_because: Some("tracefs is not mounted".into()),
        },
        Reason::HookFailed {
            hook: hook.clone(),
            status: Some(ExitStatus::Exited(1)),
            text: "ended with exit code 1".into(),
            stdout: "out".into(),
            stderr: "initialization error\ndriver not loaded".into(),
        },
        Reason::HookTimedOut {
            hook,
            waited: Duration::from_secs(30),
            process,
            stdout: "out".into(),
            stderr: "err".into(),
        },
        Reason::CreateStepFailed {
            step: "mount /proc".into(),
            text: "no such file or directory".into(),
        },
        Reason::CreateTimedOut(timed_out.clone()),
        Reason::StartFailed {
            text: "exec format error".into(),
        },
        Reason::ExecFailed {
            text: "permission denied".into(),
        },
        Reason::ExecTimedOut(timed_out.clone()),
        Reason::RuntimeFailed {
            operation: "delete the container".into(),
            status: Some(ExitStatus::Exited(1)),
            text: "no".into(),
        },
        Reason::RuntimeKilled {
            operation: "create".into(),
            signal: Signal::KILL,
        },
        Reason::RuntimePanicked(panicked.clone()),
        Reason::CleanupIncomplete {
            left: vec!["mount /run/x, held by pid 7 (cat)".into()],
        },
        Reason::ShimFinished,
        Reason::ShimPanicked(panicked),
        Reason::ShimCrashed {
            incident: "00c0ffee00c0ffee".into(),
            signal: Signal::new(libc::SIGABRT),
            sent_by: Some("pid 99 (bash)".into()),
            backtrace: "0: one".into(),
        },
        Reason::ShimGone {
            shim_pid: Some(77),
            container_had_ended: false,
            container_was_gone: false,
            findings: vec!["the shim's process 77 is gone".into()],
            sender: Some(Sender {
                pid: 99,
                comm: Some("pkill".into()),
                cmdline: Some("/usr/bin/pkill".into()),
                uid: None,
                parent: Some("98 (cron)".into()),
                cgroup: None,
            }),
            oom: None,
        },
        Reason::ShimStalled {
            incident: "00c0ffee00c0ffee".into(),
            stalled: Duration::from_secs(20),
            threads: vec!["main: in pipe_read".into()],
        },
        Reason::ShimKilled {
            incident: "00c0ffee00c0ffee".into(),
            shim_pid: 77,
            signal: Some(Signal::KILL),
            findings: vec!["the kernel's log has no lack of memory of it".into()],
            sender: Some(Sender {
                pid: 99,
                comm: Some("pkill".into()),
                cmdline: Some("/usr/bin/pkill".into()),
                uid: None,
                parent: Some("98 (cron)".into()),
                cgroup: None,
            }),
            oom: None,
        },
        Reason::ShimStopped {
            signal: Signal::new(libc::SIGSTOP),
            waited: Duration::from_secs(5),
            findings: vec!["the trace of signals has no SIGSTOP for it".into()],
            sender: None,
        },
        Reason::GpuStageFailed {
            step: "discover".into(),
            text: "no device".into(),
            stderr: "nvml error".into(),
        },
        Reason::GpuStageTimedOut(timed_out),
        Reason::NodeShutdown {
            signal: Some(Signal::TERM),
            seen_by: "systemd is stopping".into(),
        },
        Reason::Unknown {
            looked_at: vec!["memory.events: no kill".into()],
        },
    ]
}

#[test]
fn the_catalogue_lists_every_reason_once_in_order() {
    let codes: Vec<&str> = examples().iter().map(Reason::code).collect();
    let listed: Vec<&str> = CATALOGUE.iter().map(|entry| entry.code).collect();
    // The examples are one of each variant: `entry` is exhaustive, so a variant without an example has an entry that
    // is missing here.
    assert_eq!(codes, listed);
    let mut sorted = listed.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted, listed);
}

#[test]
fn codes_are_well_formed_and_agree_with_their_group() {
    for entry in CATALOGUE {
        let number: u32 = entry.code.strip_prefix("HF").unwrap().parse().unwrap();
        let group = match number {
            100..=109 => Group::Ended,
            110..=119 => Group::Request,
            120..=129 => Group::Oom,
            130..=139 => Group::Outside,
            140..=149 => Group::Hook,
            150..=159 => Group::Create,
            160..=169 => Group::Runtime,
            170..=179 => Group::Shim,
            180..=189 => Group::Gpu,
            190..=198 => Group::Node,
            199 => Group::Unknown,
            _ => panic!("{}", entry.code),
        };
        assert_eq!(entry.group, group, "{}", entry.code);
        for text in [entry.means, entry.advice] {
            assert!(
                text.ends_with('.') && text.len() > 10,
                "{}: {text}",
                entry.code
            );
        }
        assert!(!entry.title.ends_with('.'), "{}", entry.code);
    }
}

#[test]
fn message_ids_are_random_and_different() {
    let ids: HashSet<_> = CATALOGUE.iter().map(|entry| entry.message_id).collect();
    assert_eq!(ids.len(), CATALOGUE.len());
    for id in ids {
        assert_eq!(id.to_string().len(), 32);
        assert!(
            (30..=98).contains(&id.0.count_ones()),
            "{id} does not look random"
        );
    }
}

#[test]
fn on_disk_the_tag_is_the_code_and_nothing_is_lost() {
    for reason in examples() {
        let value = serde_json::to_value(&reason).unwrap();
        assert_eq!(value["code"], reason.code());
        assert_eq!(serde_json::from_value::<Reason>(value).unwrap(), reason);
    }
}

#[test]
fn evidence_of_a_newer_writer_is_no_error() {
    let text = r#"{"code":"HF101","evidence":{"code":7,"mood":"sad"}}"#;
    assert_eq!(
        serde_json::from_str::<Reason>(text).unwrap(),
        Reason::Exited { code: 7 }
    );
}

#[test]
fn a_status_proves_what_it_proves_and_no_more() {
    let signaled = |number| ExitStatus::Signaled {
        signal: Signal::new(number),
        core: false,
    };
    assert_eq!(
        Reason::of_status(ExitStatus::Exited(3)),
        Some(Reason::Exited { code: 3 })
    );
    assert_eq!(
        Reason::of_status(signaled(libc::SIGSEGV)).unwrap().code(),
        "HF102"
    );
    assert_eq!(Reason::of_status(signaled(libc::SIGKILL)), None);
    assert_eq!(Reason::of_status(signaled(libc::SIGTERM)), None);
}

#[test]
fn incidents_differ() {
    let ids: HashSet<String> = (0..100).map(|_| new_incident()).collect();
    assert_eq!(ids.len(), 100);
    assert!(ids.iter().all(|id| id.len() == 16));
}

#[test]
fn sentences_are_as_in_the_golden_file() {
    let text: String = examples()
        .iter()
        .map(|reason| format!("{} It {reason}.\n", reason.code()))
        .collect();
    golden("reason/sentences.txt", &text);
}

#[test]
fn codes_that_a_shell_takes_over_are_explained_and_no_others() {
    let said = |code| Reason::Exited { code }.to_string();
    for plain in [0, 1, 125, 128, 160, 255] {
        assert_eq!(said(plain), format!("exited by itself with code {plain}"));
    }
    assert!(said(127).ends_with("(what a shell says of a command that it cannot find)"));
    assert!(said(137).ends_with("(what a shell says of a command that was ended by SIGKILL)"));
}

#[test]
fn the_manual_page_is_current() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/man/holdfast-reasons.7");
    compare(&page, &man_page());
}

#[test]
fn the_manual_page_has_no_line_that_roff_would_take_for_a_command() {
    let known = [
        ".\\\"", ".TH", ".SH", ".SS", ".TP", ".B", ".BR", ".IP", ".RI", ".I", ".PP", ".RS", ".RE",
    ];
    for line in man_page().lines() {
        assert!(!line.starts_with('\''), "{line}");
        if line.starts_with('.') {
            let command = line.split(' ').next().unwrap();
            assert!(known.contains(&command), "{line}");
        }
    }
}

/// Compares with `src/<name>`, or writes it when the variable UPDATE is 1.
pub(crate) fn golden(name: &str, text: &str) {
    compare(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(name),
        text,
    );
}

fn compare(path: &Path, text: &str) {
    if std::env::var("UPDATE").is_ok_and(|update| update == "1") {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == text,
        "{} is not current; run the tests of this crate with UPDATE=1 and look at the difference.\n--- now ---\n{text}",
        path.display()
    );
}
