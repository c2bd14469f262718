use std::time::Duration;

use super::*;

fn ended(status: ExitStatus) -> Ended {
    Ended {
        status,
        at: Timestamp::new(100, 0),
    }
}

fn signaled(signal: Signal) -> Ended {
    ended(ExitStatus::Signaled {
        signal,
        core: false,
    })
}

fn asked(signals: &[(Signal, i64)]) -> Vec<Asked> {
    let one = |(signal, at): &(Signal, i64)| Asked {
        rpc: Rpc::Kill,
        signal: *signal,
        at: Timestamp::new(*at, 0),
    };
    signals.iter().map(one).collect()
}

fn of_init(asked: Vec<Asked>) -> Known {
    Known {
        pid: 42,
        asked,
        is_init: true,
        ..Known::default()
    }
}

fn sent(pid: u32, signal: Signal, by_kernel: bool) -> Seen {
    let sender = Sender {
        pid,
        comm: Some("kill".into()),
        cmdline: None,
        uid: None,
        parent: None,
        cgroup: None,
    };
    Seen {
        sent: Some(Ok(Sent {
            time: Timestamp::new(99, 0),
            signal,
            target: 42,
            by_kernel,
            sender,
        })),
        shutdown: None,
    }
}

fn code(ended: Ended, known: &Known, seen: Seen) -> &'static str {
    of_end(ended, known, seen).code()
}

const SEGV: Signal = Signal::new(libc::SIGSEGV);

#[test]
fn an_exit_is_its_own_unless_it_obeys_or_follows_a_lack_of_memory() {
    let none = Seen::default;
    let exit = |code| ended(ExitStatus::Exited(code));
    assert_eq!(code(exit(3), &of_init(Vec::new()), none()), "HF101");
    let term = || of_init(asked(&[(Signal::TERM, 90)]));
    assert_eq!(code(exit(143), &term(), none()), "HF111");
    assert_eq!(code(exit(143), &of_init(Vec::new()), none()), "HF101");
    let child = Known {
        oom: Some(Oom::default()),
        ..of_init(Vec::new())
    };
    assert_eq!(code(exit(1), &child, none()), "HF122");
    assert_eq!(code(exit(0), &child, none()), "HF101");
}

#[test]
fn an_exit_after_a_request_is_an_answer_to_it() {
    let none = Seen::default;
    // It ends at 100.
    let exit = |code| ended(ExitStatus::Exited(code));
    let term = of_init(asked(&[(Signal::TERM, 90)]));
    match of_end(exit(0), &term, none()) {
        Reason::ExitedOnRequest { signal, after, .. } => {
            assert_eq!((signal, after), (Signal::TERM, Duration::from_secs(10)));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(code(exit(1), &term, none()), "HF112");
    const HUP: Signal = Signal::new(libc::SIGHUP);
    let hup = |at| of_init(asked(&[(HUP, at)]));
    assert_eq!(code(exit(0), &hup(90), none()), "HF112");
    assert_eq!(code(exit(0), &hup(30), none()), "HF101", "a reload");
    let cont = of_init(asked(&[(Signal::new(libc::SIGCONT), 99)]));
    assert_eq!(code(exit(0), &cont, none()), "HF101");
    let oom = Known {
        oom: Some(Oom::default()),
        ..of_init(asked(&[(Signal::TERM, 90)]))
    };
    assert_eq!(code(exit(1), &oom, none()), "HF122");
}

#[test]
fn a_request_names_the_grace_period() {
    let known = of_init(asked(&[(Signal::TERM, 90), (Signal::KILL, 100)]));
    match of_end(signaled(Signal::KILL), &known, Seen::default()) {
        Reason::KilledByRequest { grace, .. } => assert_eq!(grace, Some(Duration::from_secs(10))),
        other => assert_eq!(other.code(), "HF111"),
    }
}

#[test]
fn a_sender_is_believed_before_a_counter() {
    let oom = Known {
        oom: Some(Oom::default()),
        ..of_init(Vec::new())
    };
    let kill = || signaled(Signal::KILL);
    assert_eq!(code(kill(), &oom, Seen::default()), "HF121");
    assert_eq!(code(kill(), &oom, sent(7, Signal::KILL, true)), "HF121");
    assert_eq!(code(kill(), &oom, sent(7, Signal::KILL, false)), "HF131");
    let with_init = Known {
        init: Some((1, None)),
        is_init: false,
        ..of_init(Vec::new())
    };
    assert_eq!(code(kill(), &with_init, Seen::default()), "HF103");
    assert_eq!(
        code(kill(), &with_init, sent(7, Signal::KILL, false)),
        "HF131"
    );
    let ourselves = std::process::id();
    assert_eq!(
        code(kill(), &with_init, sent(ourselves, Signal::KILL, false)),
        "HF103"
    );
    assert_eq!(
        code(
            kill(),
            &of_init(Vec::new()),
            sent(ourselves, Signal::KILL, false)
        ),
        "HF111"
    );
}

#[test]
fn a_fault_is_the_process_own_unless_somebody_else_sent_it() {
    let known = of_init(Vec::new());
    assert_eq!(code(signaled(SEGV), &known, Seen::default()), "HF102");
    assert_eq!(code(signaled(SEGV), &known, sent(42, SEGV, false)), "HF102");
    assert_eq!(code(signaled(SEGV), &known, sent(7, SEGV, false)), "HF131");
}

#[test]
fn who_is_not_known_is_explained() {
    let known = of_init(Vec::new());
    let because = |seen| match of_end(signaled(Signal::KILL), &known, seen) {
        Reason::SignalFromOutside {
            sender,
            sender_unknown_because,
            ..
        } => (sender.map(|sender| sender.pid), sender_unknown_because),
        other => (None, Some(other.code().to_owned())),
    };
    assert_eq!(because(sent(7, Signal::KILL, false)), (Some(7), None));
    let missing = Seen {
        sent: Some(Err("no tracefs".into())),
        shutdown: None,
    };
    assert_eq!(because(missing), (None, Some("no tracefs".into())));
    let (none, text) = because(sent(7, Signal::KILL, true));
    assert!(none.is_none() && text.is_some_and(|text| text.contains("kernel")));
}

#[test]
fn a_shutdown_takes_what_pid_1_sent_and_nobody_elses() {
    let known = of_init(Vec::new());
    let stopping = |seen: Seen| Seen {
        shutdown: Some("/run/nologin exists".into()),
        ..seen
    };
    let term = || signaled(Signal::TERM);
    let from = |pid| stopping(sent(pid, Signal::TERM, false));
    assert_eq!(code(term(), &known, from(1)), "HF191");
    assert_eq!(code(term(), &known, from(7)), "HF131");
    assert_eq!(code(term(), &known, stopping(Seen::default())), "HF191");
}

#[test]
fn an_exit_while_the_node_goes_down_is_the_nodes_where_that_is_likely() {
    let exit = |code| ended(ExitStatus::Exited(code));
    let stopping = |sent: Option<u32>| Seen {
        shutdown: Some("systemd is stopping it".into()),
        sent: sent.map(|pid| self::sent(pid, Signal::TERM, false).sent.unwrap()),
    };
    let init = of_init(Vec::new());
    assert_eq!(code(exit(143), &init, stopping(None)), "HF191");
    assert_eq!(code(exit(0), &init, stopping(Some(1))), "HF191");
    // A job that was done anyway.
    assert_eq!(code(exit(0), &init, stopping(None)), "HF101");
    assert_eq!(code(exit(0), &init, stopping(Some(77))), "HF101");
    assert_eq!(code(exit(143), &init, Seen::default()), "HF101");
    // Somebody has asked for it first.
    let asked = of_init(asked(&[(Signal::TERM, 90)]));
    assert_eq!(code(exit(143), &asked, stopping(Some(1))), "HF111");
}
